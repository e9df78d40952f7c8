"""What a model is tried on: itself in float64, nudged off its zeros, and an uneven batch.

With equal weights everywhere a mean of means is exactly right, and a bias of zero hides where it is
added; a probe has neither.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
from flax import nnx

from jaxpar.jaxprs.float64 import wide_dtype
from jaxpar.models.record import Model

WIDE = "float64"


def widened(model: Model) -> Model:
    """`model` with parameters, state and float inputs in float64; x64 must be on when it is built.

    A compute dtype in the model's config is set aside, so that weights are used as they are.
    """
    if model.compute_dtype is not None and hasattr(model.config, "compute_dtype"):
        model = model.with_fields(compute_dtype=None)

    batch = {
        name: replace(f, dtype=str(wide_dtype(np.dtype(f.dtype))))
        for name, f in model.batch.items()
    }
    loss = getattr(model.loss, "widened", model.loss)
    written = None if model.written is None else widened(model.written)
    build = _WideBuild(model.build)
    return replace(model, build=build, batch=batch, loss=loss, compute_dtype=None, written=written)


@dataclass(frozen=True)
class _WideBuild:
    """Builds in float64 what `narrow` builds; equal where that is the same function."""

    narrow: Callable[[nnx.Rngs], nnx.Module]

    def __call__(self, rngs: nnx.Rngs) -> nnx.Module:
        module = self.narrow(rngs)
        nnx.update(module, jax.tree.map(_widened, nnx.state(module)))
        return module


def probe_batch(model: Model, seed: int) -> dict[str, np.ndarray]:
    """A legal batch whose rows differ: of the user's example if it has values, else random.

    Rows of an example are drawn from it, the same for every field. Of random fields, weights of
    whole examples are in 0.25 .. 1.75; weights of positions are 1 up to a random length of a
    quarter to all of the row, then 0.
    """
    rng = np.random.default_rng(seed)
    chosen = _chosen(model, rng)
    batch = {}
    for name, f in model.batch.items():
        if model.example is not None and not _stands_for_any(model.example[name]):
            batch[name] = model.example[name][chosen].astype(f.dtype)
        elif name == "weight" and len(f.shape) > 1:
            length = rng.integers(max(1, f.shape[1] // 4), f.shape[1] + 1, size=(f.shape[0], 1))
            ends = length.reshape(-1, *[1] * (len(f.shape) - 1))
            position = np.arange(f.shape[1]).reshape(1, -1, *[1] * (len(f.shape) - 2))
            batch[name] = np.broadcast_to(position < ends, f.shape).astype(f.dtype)
        elif name == "weight":
            batch[name] = rng.uniform(0.25, 1.75, f.shape).astype(f.dtype)
        elif f.below is not None:
            batch[name] = rng.integers(0, f.below, f.shape).astype(f.dtype)
        elif not np.issubdtype(np.dtype(f.dtype), np.inexact):
            # Nothing is known of these but that they are no ids: flags, or counts.
            batch[name] = rng.integers(0, 2, f.shape).astype(f.dtype)
        else:
            batch[name] = rng.standard_normal(f.shape).astype(f.dtype)
    return batch


def _chosen(model: Model, rng: np.random.Generator) -> np.ndarray:
    """Which rows of an example make up the probe: each as often as it must be, in random order.

    What is left over when all have been taken as often is drawn, so that shares are uneven.
    """
    rows = model.batch_size
    have = rows if model.example is None else len(next(iter(model.example.values())))
    whole = np.tile(np.arange(have), rows // have)
    return rng.permutation(np.concatenate([whole, rng.permutation(have)[: rows % have]]))


def _stands_for_any(example: np.ndarray) -> bool:
    """Whether a field of an example only shows its shape: floats that are all one number."""
    floats = np.issubdtype(example.dtype, np.inexact)
    return bool(floats and example.size > 1 and (example == example.flat[0]).all())


def nudged(parameters: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """`parameters` with every constant array (zero biases, unit scales) moved by about 0.05."""
    rng = np.random.default_rng(seed + 1)
    moved = {}
    for path, value in parameters.items():
        flat = np.ravel(value)
        constant = np.issubdtype(value.dtype, np.floating) and flat.size and (flat == flat[0]).all()
        noise = 0.05 * rng.standard_normal(value.shape) if constant else 0.0
        moved[path] = (value + noise).astype(value.dtype)
    return moved


def _widened(leaf):
    """A leaf in the wide dtype of its kind: float64, complex128, or itself."""
    dtype = wide_dtype(leaf.dtype)
    return leaf if dtype == leaf.dtype else leaf.astype(dtype)
