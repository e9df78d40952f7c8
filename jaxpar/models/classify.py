"""Cross entropy and accuracy of scores against labels, each a weighted mean over what is scored."""

import jax
import jax.numpy as jnp

from jaxpar.models.record import Mean, weighted_mean


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Negative log likelihood in nats: logits (..., classes), label (...) -> (...).

    The label's score is picked by comparing and summing, not by indexing: over a class dim that is
    split across devices a sum needs one all-reduce of (...), an index can make XLA gather the
    logits.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    classes = jax.lax.broadcasted_iota(label.dtype, logits.shape, logits.ndim - 1)
    picked = jnp.sum(jnp.where(classes == label[..., None], logits, 0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - picked


def scores(logits: jax.Array, label: jax.Array, weight: jax.Array) -> tuple[Mean, dict[str, Mean]]:
    """The loss, and the share of labels that score highest."""
    loss = weighted_mean(cross_entropy(logits, label), weight)
    # Right when no score is above the label's: a maximum crosses a split class dim, an argmax does
    # not.
    fixed = jax.lax.stop_gradient(logits)
    classes = jax.lax.broadcasted_iota(label.dtype, logits.shape, logits.ndim - 1)
    own = jnp.max(jnp.where(classes == label[..., None], fixed, -jnp.inf), axis=-1)
    right = (own >= jnp.max(fixed, axis=-1)).astype(weight.dtype)
    return loss, {"accuracy": weighted_mean(right, weight)}


def classification_loss(module, batch, *, key=None) -> tuple[Mean, dict[str, Mean]]:
    """Loss of a classifier: `image` (batch, ...), `label` (batch,), `weight` (batch,)."""
    return scores(module(batch["image"], key), batch["label"], batch["weight"])
