"""A loss taken apart at its stack of layers: what comes before, one layer, and what comes after.

The loss is the user's own and is called twice: once with a `through` that notes what it is given,
and once with one that hands in the stack's result. What either call does not need is dead code, and
is dropped. Pure; shapes and types only.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxpar.core.errors import LayoutError


@dataclass(frozen=True)
class Parts:
    """A loss in three functions of whole arrays.

    Attributes:
        before: (rest, batch, key) -> the activation (an array, or a tree of them) that enters the
            first layer.
        aside: (rest, batch, key) -> [array], what layers are given beside weights and activation:
            first stacks with a leading dim of layers (random keys), then what all layers share.
        stacked_asides: how many of them are stacks.
        layer: (weights, asides, x) -> x, of one layer; weights by path, without the layers dim.
        after: (rest, y, batch, key) -> (Mean, metrics), from what leaves the last layer.
        layer_paths: the parameters that the layers are made of, each with a leading layers dim.
        dims: the names of the activation's dims, in a tree like it.
        remat: what is kept from forward for backward; see `seams.rematerialized`.
        activation, asides: abstract values of the activation and of what `aside` returns.

    `rest` holds the other parameters, by path.
    """

    before: Callable
    aside: Callable
    stacked_asides: int
    layer: Callable
    after: Callable
    layer_paths: tuple[str, ...]
    dims: Any
    remat: str
    activation: Any
    asides: tuple[jax.ShapeDtypeStruct, ...]


class _Notes:
    """What `through` was given, noted while the loss is traced."""

    def __init__(self):
        self.calls = []

    def through(self, block, stacked, x, *, dims, remat="none", unroll=1, **_):
        """Stand in for the way through the layers: note everything and change nothing."""
        del unroll
        leaves, tree = jax.tree.flatten(stacked)
        one = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in leaves]
        # Traced alone, so that whatever the block closes over becomes a constant of it.
        closed = jax.make_jaxpr(lambda layer, y: block(jax.tree.unflatten(tree, layer), y))(one, x)
        self.calls.append((closed, leaves, x, dims, remat))
        return x


def take_loss_apart(
    name: str,
    loss_of: Callable,
    parameters: Mapping[str, jax.ShapeDtypeStruct],
    batch: Mapping[str, jax.ShapeDtypeStruct],
    key: jax.ShapeDtypeStruct,
) -> Parts:
    """Find the layers in a loss.

    Args:
        name: of the model, for refusals.
        loss_of: (parameters, batch, key, through) -> (Mean, metrics).
        parameters, batch, key: abstract arguments.

    Raises:
        LayoutError: when the loss runs no stack of layers or several, or gives its layers weights
            that are no parameters of their own.
    """
    notes = _Notes()

    def noting(parameters, batch, key):
        notes.calls.clear()
        loss_of(parameters, batch, key, notes.through)
        _check_calls(name, notes.calls)
        ((closed, leaves, x, _, _),) = notes.calls
        return x, leaves, list(closed.consts)

    whole, shapes = jax.make_jaxpr(noting, return_shape=True)(parameters, batch, key)
    ((block, _, _, dims, remat),) = notes.calls
    x, leaves, consts = shapes
    entering = len(jax.tree.leaves(x))
    paths = dict(zip(whole.jaxpr.invars, sorted(parameters), strict=False))
    origins = [paths.get(var) for var in whole.jaxpr.outvars[entering : entering + len(leaves)]]
    layer_paths = tuple(dict.fromkeys(path for path in origins if path))
    beside = [i for i, path in enumerate(origins) if path is None]
    outs = [*(entering + i for i in beside)]
    outs += range(entering + len(leaves), len(whole.jaxpr.outvars))
    if _depends(whole.jaxpr, outs, set(paths)):
        raise LayoutError(
            f"model '{name}': what its layers are given beside their own weights depends on other "
            "parameters, and stages hand on one activation only: pass it through the activation, "
            "or use a strategy without stages"
        )
    _check_apart(name, loss_of, layer_paths, (parameters, batch, key), x)
    rest_of = _with_layers(parameters, layer_paths)

    def layer(weights, asides, y):
        values = iter(asides)
        given = [weights[path] if path else next(values) for path in origins]
        leaves, tree = jax.tree.flatten(y)
        return jax.tree.unflatten(
            tree, jax.core.eval_jaxpr(block.jaxpr, list(values), *given, *leaves)
        )

    def after(rest, y, batch, key):
        return loss_of(rest_of(rest), batch, key, lambda *_, **__: y)

    return Parts(
        before=lambda rest, batch, key: noting(rest_of(rest), batch, key)[0],
        aside=lambda rest, batch, key: _beside(noting(rest_of(rest), batch, key), beside),
        stacked_asides=len(beside),
        layer=layer,
        after=after,
        layer_paths=layer_paths,
        dims=dims,
        remat=remat,
        activation=x,
        asides=tuple(_beside((x, leaves, consts), beside)),
    )


def _beside(noted, beside):
    _, leaves, consts = noted
    return [*(leaves[i] for i in beside), *consts]


def _with_layers(parameters, layer_paths):
    """Fill the layers' own weights in with zeros, where a part has been seen not to use them."""

    def fill(rest):
        shapes = {path: parameters[path] for path in layer_paths}
        return {**rest, **{p: jnp.zeros(s.shape, s.dtype) for p, s in shapes.items()}}

    return fill


def _check_calls(name: str, calls: list) -> None:
    if len(calls) != 1:
        times = "never" if not calls else f"{len(calls)} times"
        raise LayoutError(
            f"model '{name}': its loss calls `through` {times}, and a pipeline cuts one stack of "
            "layers into stages: call it once, or use a strategy without stages"
        )


def _check_apart(name, loss_of, layer_paths, arguments, x) -> None:
    """Refuse a loss that reads its layers' weights before or after the layers too."""

    def around(parameters, batch, key, y):
        notes = _Notes()
        seen = []

        def through(block, stacked, entering, **how):
            seen.append(notes.through(block, stacked, entering, **how))
            return y

        return loss_of(parameters, batch, key, through), seen

    traced = jax.make_jaxpr(around)(*arguments, x).jaxpr
    paths = zip(traced.invars, sorted(arguments[0]), strict=False)
    layers = {var for var, path in paths if path in layer_paths}
    if _depends(traced, range(len(traced.outvars)), layers):
        raise LayoutError(
            f"model '{name}': its loss reads the weights of its layers outside of them too, and "
            "each stage holds its own layers only: use a strategy without stages"
        )


def _depends(jaxpr, outs: Iterable[int], variables: set) -> bool:
    """Whether any of the results `outs` is computed from one of `variables`."""
    needed = {jaxpr.outvars[i] for i in outs if not isinstance(jaxpr.outvars[i], Literal)}
    for eqn in reversed(jaxpr.eqns):
        if any(var in needed for var in eqn.outvars):
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
    return bool(needed & variables)
