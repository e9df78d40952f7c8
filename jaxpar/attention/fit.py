"""Which exchange a strategy wants of a model on a mesh, and whether the model's attention suits it.

What a model asks of its attention is found by tracing its loss with one that only looks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxpar.attention.record import Exchange, Split
from jaxpar.core.catalogue import EXCHANGES
from jaxpar.core.errors import LayoutError
from jaxpar.core.mesh import MeshShape, refuse_faults
from jaxpar.models.record import Model, role_of
from jaxpar.strategies.record import Strategy


@dataclass(frozen=True)
class Call:
    """One call of attention: the shapes of its operands, and what else was said."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    values: tuple[int, ...]
    more: int
    options: frozenset[str]


def exchange_of(model: Model, strategy: Strategy, mesh: MeshShape) -> Exchange | None:
    """The exchange that attention needs, or None where no sequence is split.

    Raises:
        LayoutError: the strategy wants one, and the model's loss takes no `attend`.
        RequestError: there is no exchange of that name.
    """
    if strategy.attend is None:
        return None
    if "attend" not in model.seams:
        raise LayoutError(
            f"model '{model.name}' has no attention that strategy '{strategy.name}' could put an "
            "exchange in the place of: let its loss take attend= and say so in its seams, or "
            "choose a strategy that leaves the sequence whole"
        )
    make = EXCHANGES.load(strategy.attend)
    batch, sequence = (
        tuple(axis for axis in strategy.compute.get(role, ()) if mesh.size(axis) > 1)
        for role in ("batch", "sequence")
    )
    return make(Split(mesh, batch, sequence, "positions" in model.seams)) if sequence else None


def refuse_unfit(exchange: Exchange, model: Model, parts: Any) -> None:
    """Refuse lengths, heads and kinds of attention that an exchange cannot serve.

    Args:
        exchange: from `exchange_of`.
        model: whose loss is traced.
        parts: its module taken apart, abstract.

    Raises:
        LayoutError: one sentence with all that is wrong.
    """
    refuse_faults({f"batch {name}": why for name, why in _lengths(exchange, model).items()})
    calls = _calls(model, parts)
    what = f"attention of model '{model.name}'"
    refuse_faults({what: list(dict.fromkeys(f for c in calls for f in _unfit(exchange, c)))})


def dealt(
    exchange: Exchange,
    model: Model,
    batch: Mapping[str, jax.Array],
    specs: Mapping[str, PartitionSpec],
) -> dict[str, jax.Array]:
    """A batch whose positions are in the order that the exchange wants."""
    batch = dict(batch)
    if exchange.deal is not None:
        for name, dim in _sequence_dims(model):
            batch[name] = exchange.deal(batch[name], dim, specs[name])
    return batch


def _sequence_dims(model):
    for name, field in model.batch.items():
        for dim, called in enumerate(field.dims):
            if role_of(model, called) == "sequence":
                yield name, dim


def _lengths(exchange, model) -> dict[str, list[str]]:
    faults = {}
    for name, dim in _sequence_dims(model):
        length, pieces = model.batch[name].shape[dim], exchange.pieces
        if length % pieces:
            near = [n for n in (length // pieces * pieces, -(-length // pieces) * pieces) if n]
            faults[name] = [
                f"exchange '{exchange.name}' cuts {length} positions into {pieces} equal pieces "
                f"for {exchange.split.ways} devices, and {pieces} does not divide {length}: use "
                f"a sequence of {' or '.join(map(str, near))}"
            ]
    return faults


def _calls(model, parts) -> list[Call]:
    """What the model's loss asks of its attention, a record a call."""
    seen = []

    def attend(q, k, v, *more, causal=True, **options):
        del causal
        seen.append(Call(q.shape, k.shape, v.shape, len(more), frozenset(options)))
        return jnp.zeros_like(q)

    def loss(parameters, state, batch, key):
        module = parts.put_together(parameters, state)
        module.train()
        return model.loss(module, batch, key=key, attend=attend)

    variables = (parts.parameters, parts.state)
    values = ({path: v.get_value() for path, v in group.items()} for group in variables)
    batch = {n: jax.ShapeDtypeStruct(f.shape, f.dtype) for n, f in model.batch.items()}
    jax.eval_shape(loss, *values, batch, jax.eval_shape(lambda: jax.random.key(0)))
    return seen


def _unfit(exchange, call: Call) -> list[str]:
    said = f"exchange '{exchange.name}' "
    if call.more or call.options:
        what = ", ".join(sorted(call.options)) or "a fourth operand"
        return [
            f"{said}knows attention that is causal or sees everything, and is also given {what}: "
            "leave that out, or choose a strategy that keeps the sequence whole"
        ]
    if len(call.queries) != 5 or call.keys != (*call.queries[:3], call.queries[-1]):
        return [
            f"{said}needs queries (batch, sequence, kv_heads, group, head_dim) and keys (batch, "
            f"sequence, kv_heads, head_dim) of one sequence, and got {call.queries} and "
            f"{call.keys}: call attend with these shapes, or keep the sequence whole"
        ]
    if call.values != call.keys:
        return [f"{said}needs values of the keys' shape {call.keys}, and got {call.values}"]
    return exchange.faults(call.queries[2], call.queries[3])
