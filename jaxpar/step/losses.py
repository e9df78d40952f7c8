"""A model's loss on a layout: weights brought to where they are used, what is named pinned.

`plain_loss` is the model's own and knows of no device; the others are the same loss as XLA's
partitioner (`placed_loss`), the stages of a pipeline (`staged_loss`), manual mode (`named_loss`)
and explicit mode (`typed_loss`) want it.
"""

from functools import partial

import jax
from flax import nnx
from jax.sharding import PartitionSpec

from jaxpar.attention.fit import dealt
from jaxpar.core import hooks
from jaxpar.core.errors import LayoutError, RequestError
from jaxpar.inference.losses import SpokenLoss
from jaxpar.models.modules import take_apart, values_of
from jaxpar.models.record import Mean, role_of
from jaxpar.step.constraints import pinned, shared


def plain_loss(layout, parameters, model_state, batch, key, *, train=True, chosen=None):
    """The model's own loss, told nothing of devices: (Mean, metrics, new model state)."""
    module = layout.module.put_together(parameters, model_state)
    module.train() if train else module.eval()
    loss, metrics = _checked(layout, layout.model.loss(module, batch, key=key, **(chosen or {})))
    new = values_of(take_apart(module, layout.model.trainable).state) if train else model_state
    return loss, metrics, new


def named_loss(
    layout, parameters, model_state, batch, key, *, chosen=None, fetch=None, share=None, **how
):
    """The model's own loss, what it names pinned as the layout wants, its attention exchanged."""
    if layout.mesh.devices == 1:
        return plain_loss(layout, parameters, model_state, batch, key, chosen=chosen, **how)
    exchange = layout.exchange
    if exchange is not None:
        chosen = {**(chosen or {}), "attend": exchange}
        batch = dealt(exchange, layout.model, batch, layout.batch)

    def place(x, dims, *, between):
        return pinned(layout, x, layout.place_of(dims, between=between))

    with hooks.placing(place, fetch, share):
        return plain_loss(layout, parameters, model_state, batch, key, chosen=chosen, **how)


def typed_loss(layout, parameters, model_state, batch, key):
    """The model's own loss as it is spoken, for one who finds out himself where its arrays lie."""
    with hooks.placing(lambda x, dims, *, between: x):
        return plain_loss(layout, parameters, model_state, batch, key)


def staged_loss(layout, parameters, batch, key, through, *, train=True):
    """The loss with another way through its layers: (Mean, metrics)."""
    if layout.state and train:
        raise LayoutError(
            f"model '{layout.model.name}' changes {', '.join(layout.state)} in its forward pass, "
            f"and strategy '{layout.strategy.name}' hands on activations only: use pipe=1"
        )
    return named_loss(layout, parameters, {}, batch, key, train=train, chosen={"through": through})[
        :2
    ]


def _checked(layout, returned):
    """The loss's return value, if it is what a Model's loss returns."""
    pair = isinstance(returned, tuple) and len(returned) == 2
    if pair and isinstance(returned[0], Mean) and isinstance(returned[1], dict):
        if all(isinstance(metric, Mean) for metric in returned[1].values()):
            return returned
    raise RequestError(
        f"model '{layout.model.name}': its loss returned {type(returned).__name__}, and a loss "
        "returns (Mean, {name: Mean}): return (jaxpar.weighted_mean(values, batch['weight']), {})"
    )


def placed_loss(layout, parameters, model_state, batch, key, *, train=True):
    """The loss with weights gathered for use and activations pinned between layers."""
    through_layers = "through" in layout.model.seams
    # Layers of a model that nobody annotated are found, and fetched, by what speaks its loss.
    spoken = isinstance(layout.model.loss, SpokenLoss)
    used = {}
    for path, array in layout.parameters.items():
        is_stack = bool(array.dims) and role_of(layout.model, array.dims[0]) == "layers"
        in_layers = (through_layers or spoken) and is_stack
        used[path] = parameters[path] if in_layers else _for_use(layout, array, parameters[path])
    chosen = {}
    fetch = partial(_fetched, layout) if spoken else None
    share = partial(shared, layout) if spoken else None
    if through_layers:
        gathers = any(a.stored != a.computed for a in layout.parameters.values())
        chosen["through"] = partial(
            hooks.in_order,
            place_weights=partial(_place_layer, layout) if gathers else None,
            place_activation=lambda x, dims: pinned(layout, x, layout.place_of(dims, between=True)),
        )
    return named_loss(
        layout,
        used,
        model_state,
        batch,
        key,
        train=train,
        chosen=chosen,
        fetch=fetch,
        share=share,
    )


def _for_use(layout, array, value, *, drop=0):
    """A stored weight, cast and gathered as its use needs it; `drop` leading dims are gone."""
    if array.stored == array.computed:
        return value
    dtype = layout.model.compute_dtype
    # The name ends up in the compiled program, where `inspect` reads whose gather it is.
    with jax.named_scope(f"weight({array.path.replace('/', '.')})"):
        if dtype is not None and value.ndim > 1:
            value = value.astype(dtype)  # before the gather: half the bytes on the wire
        # Pinned before and after, so that in backward the gradient goes straight back to the stored
        # cut: an all-reduce and a slice, which XLA:GPU fuses into a reduce-scatter.
        value = pinned(layout, value, PartitionSpec(*array.stored[drop:]))
        return pinned(layout, value, PartitionSpec(*array.computed[drop:]))


def _fetched(layout, value, dims):
    """One layer's weight, known by the names of its dims, where it is used."""
    for array in layout.parameters.values():
        own = tuple(dim.partition("*")[0] for dim in array.dims)
        if array.dims and (own[1:], array.shape[1:]) == (dims, value.shape):
            if role_of(layout.model, array.dims[0]) == "layers":
                return _for_use(layout, array, value, drop=1)
    return value


def _place_layer(layout, layer):
    """One layer's weights, sliced from the stack, gathered for use."""
    by_names = {(a.dims, a.shape): a for a in layout.parameters.values()}

    def place(leaf):
        if not isinstance(leaf, nnx.Variable):
            return leaf
        names, value = leaf.get_metadata().get("out_sharding"), leaf.get_value()
        if names is None:
            return leaf
        stack = next(n for (d, n) in by_names if d == tuple(names) and n[1:] == value.shape)
        placed = _for_use(layout, by_names[tuple(names), stack], value, drop=1)
        return jax.tree.unflatten(jax.tree.structure(leaf), [placed])

    return jax.tree.map(place, layer, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
