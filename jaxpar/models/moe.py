"""A decoder whose feed-forward part is a choice of experts: each token visits a few of many.

The router scores every expert for a token in at least float32; the token goes to the likeliest
`active` of them, as far as these have places, and comes back as their weighted sum. A dropped
choice adds nothing, and the token goes on by the residual.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxpar.core import hooks
from jaxpar.core.errors import RequestError
from jaxpar.models import layers, transformer
from jaxpar.models.classify import scores
from jaxpar.models.record import Mean, Model, weighted_mean
from jaxpar.models.routing import combined, dispatched, places_of, route, statistics
from jaxpar.models.transformer import ACTIVATIONS, Transformer

STATISTICS = ("balance", "busiest", "dropped")
"""What is told of the routing, each the mean over layers of a row's."""

# Shape suffixes as in `transformer` and `_routing`; P places.


@dataclass(frozen=True)
class MoE(Transformer):
    """The decoder's sizes and choices, and those of its experts.

    Attributes:
        ffn: inner width of one expert.
        experts: feed-forward parts in a layer.
        active: experts that a token visits.
        capacity: places that an expert keeps for each row, as a multiple of the even share
            active x sequence / experts; 0 keeps one for every token, so that none is dropped.
        balance: coefficient of the auxiliary loss, summed over layers.
    """

    ffn: int = 512
    experts: int = 8
    active: int = 2
    capacity: float = 1.25
    balance: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if self.active > self.experts:
            raise RequestError(
                f"moe: active={self.active} experts a token of experts={self.experts}: a token "
                "visits an expert once; use no more than there are"
            )
        for name in ("capacity", "balance"):
            if getattr(self, name) < 0:
                raise RequestError(f"moe: {name}={getattr(self, name)}: use 0 or more")
        if self.bias:
            raise RequestError("moe: bias=True: experts have no biases; use bias=false")


class Block(transformer.Block):
    """Attention and experts, each added to the residual, the routing's statistics beside it."""

    config: MoE

    def _make_feed_forward(self, out: float, rngs: nnx.Rngs) -> None:
        """Create the router and the experts' two stacks of matrices; `out` scales the second."""
        c, sides = self.config, 2 if self.config.gated else 1
        normal, param = nnx.initializers.normal, layers.param
        # Every device scores all experts for its own tokens: not the dim of the experts themselves.
        self.router = param(rngs, normal(0.02), (c.width, c.experts), ("embed", "choices"))
        shape = (c.experts, c.width, sides, c.ffn)
        self.up = param(rngs, normal(0.02), shape, ("experts", "embed", "sides", "ffn"))
        shape = (c.experts, c.ffn, c.width)
        self.down = param(rngs, normal(0.02 * out), shape, ("experts", "ffn", "embed"))

    def __call__(self, carried, key, *, attend) -> Any:
        """Run one block on {"residual": (B, S, D), and each of `STATISTICS`: (B,)}."""
        keys = (None, None) if key is None else jax.random.split(key)
        x_BSD = self._attended(carried["residual"], keys[0], attend)
        y_BSD, found = self._mixed(self.ffn_norm(x_BSD))
        after = {name: carried[name] + found[name] for name in STATISTICS}
        return {"residual": x_BSD + self._dropped(y_BSD, keys[1]), **after}

    def _mixed(self, x_BSD):
        """What the experts add, and the statistics of each row."""
        c = self.config
        wide = jnp.promote_types(x_BSD.dtype, jnp.float32)
        scores_BSE = jnp.einsum("bsd,de->bse", x_BSD.astype(wide), self.router[...].astype(wide))
        probability_BSE = jax.nn.softmax(scores_BSE)
        places = places_of(x_BSD.shape[1], experts=c.experts, active=c.active, capacity=c.capacity)
        routes = jax.vmap(partial(route, active=c.active, places=places))(probability_BSE)
        found = jax.vmap(partial(statistics, places=places))(probability_BSE, routes)
        sent = jax.vmap(partial(dispatched, size=c.experts * places))(x_BSD, routes.place)
        # Named rows first the tokens are where they came from, experts first where these are: what
        # is between is the way there, and the way back.
        sent_BEPD = hooks.named(sent.reshape(-1, c.experts, places, c.width), _ROWS_FIRST)
        here_EBPD = hooks.named(jnp.swapaxes(sent_BEPD, 0, 1), _EXPERTS_FIRST)
        y_EBPD = self._experts(checkpoint_name(here_EBPD, hooks.ARRIVED))
        back_EBPD = hooks.named(y_EBPD, _EXPERTS_FIRST)
        back_BEPD = hooks.named(jnp.swapaxes(back_EBPD, 0, 1), _ROWS_FIRST)
        return jax.vmap(combined)(back_BEPD.reshape(sent.shape), routes), found

    def _experts(self, x_EBPD):
        """Each expert's feed-forward part on its own places: (E, B, P, D) to the same shape."""
        h_EBPCF = jnp.einsum("ebpd,edcf->ebpcf", x_EBPD, self.up[...].astype(x_EBPD.dtype))
        h_EBPCF = checkpoint_name(h_EBPCF, "ffn_inner")
        y_EBPF = ACTIVATIONS[self.config.activation](h_EBPCF[..., 0, :])
        if self.config.gated:
            y_EBPF = y_EBPF * h_EBPCF[..., 1, :]
        y_EBPD = jnp.einsum("ebpf,efd->ebpd", y_EBPF, self.down[...].astype(x_EBPD.dtype))
        return checkpoint_name(y_EBPD, "mlp_out")


_ROWS_FIRST = ("batch", "experts", "places", "embed")
_EXPERTS_FIRST = ("experts", "batch", "places", "embed")


class Decoder(transformer.Decoder):
    """Token ids (batch, sequence) -> logits (batch, sequence, vocab) and statistics (batch,)."""

    block = Block

    def __call__(
        self, tokens_BS, key=None, *, through=hooks.in_order, attend=hooks.attention
    ) -> Any:
        """Score the next token at every position; of each of `STATISTICS`, a row's mean layer."""
        x_BSD, keys = self._embedded(tokens_BS, key)
        none_B = jnp.zeros(x_BSD.shape[:1], jnp.promote_types(x_BSD.dtype, jnp.float32))
        carried = {"residual": x_BSD, **dict.fromkeys(STATISTICS, none_B)}
        dims = {"residual": ("batch", "sequence", "embed")} | dict.fromkeys(STATISTICS, ("batch",))
        carried = self._through(carried, keys, dims, through, attend)
        found = {name: carried[name] / self.config.layers for name in STATISTICS}
        return self._scored(carried["residual"]), found


def balanced_loss(
    config: MoE, module, batch, *, key=None, **chosen
) -> tuple[Mean, dict[str, Mean]]:
    """The decoder's loss, and the auxiliary loss of each row weighted as the row's tokens are.

    One numerator and one denominator: no split of the batch changes either. The metrics hold the
    next-token loss without the auxiliary one as `next_token`.
    """
    logits, found = module(batch["tokens"], key, **chosen)
    loss, metrics = scores(logits, batch["targets"], batch["weight"])
    weight_B = jnp.sum(batch["weight"], axis=1)
    means = {name: weighted_mean(values_B, weight_B) for name, values_B in found.items()}
    aux = config.balance * config.layers * means["balance"].total
    return Mean(loss.total + aux, loss.weight), {**metrics, "next_token": loss, **means}


def model(config: MoE = MoE(), *, name="moe", **fields) -> Model:  # noqa: B008  (frozen)
    """Return the mixture of experts; `fields` replace those of `MoE`."""
    config = replace(config, **fields)
    plain = transformer.model(config, name=name)
    return replace(
        plain,
        build=lambda rngs: Decoder(config, rngs),
        loss=partial(balanced_loss, config),
        remake=partial(model, name=name),
    )
