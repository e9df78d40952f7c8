"""Which exchange a strategy wants of a model on a mesh, and whether the model's attention suits it.

What a model asks of its attention is found by tracing its loss with one that only looks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxpar.attention.record import Exchange, Local, Split, Whole
from jaxpar.core.annotations import ATTEND
from jaxpar.core.catalogue import EXCHANGES
from jaxpar.core.errors import LayoutError
from jaxpar.core.mesh import MeshShape, refuse_faults
from jaxpar.jaxprs.equations import equations
from jaxpar.models.record import Model, role_of
from jaxpar.strategies.record import Strategy


@dataclass(frozen=True)
class Call:
    """One call of attention: the shapes of its operands."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    values: tuple[int, ...]


def exchange_of(model: Model, strategy: Strategy, mesh: MeshShape) -> Exchange | None:
    """The exchange that attention needs, or None where no sequence is split.

    Raises:
        LayoutError: the strategy wants one, and the model's loss takes no `attend`.
        RequestError: there is no exchange of that name.
    """
    if strategy.attend is None:
        return None
    if "attend" not in model.hooks:
        raise LayoutError(
            f"model '{model.name}' has no attention that strategy '{strategy.name}' could put an "
            "exchange in the place of: let its loss take attend= and say so in its hooks, or "
            "choose a strategy that leaves the sequence whole"
        )
    make = EXCHANGES.load(strategy.attend)
    batch, sequence = (sharded_over(strategy, mesh, role) for role in ("batch", "sequence"))
    if not sequence:
        return None
    return make(Split(mesh, batch, sequence, ordered="positions" in model.hooks))


def local_attention(strategy: Strategy, mesh: MeshShape) -> Local:
    """Attention where no sequence is split."""
    batch, heads = (sharded_over(strategy, mesh, role) for role in ("batch", "heads"))
    return Local(Split(mesh, batch, (), heads))


def sharded_over(strategy: Strategy, mesh: MeshShape, role: str) -> tuple[str, ...]:
    """The mesh axes, each larger than 1, over which a strategy shards dims of a role in use."""
    return tuple(axis for axis in strategy.compute.get(role, ()) if mesh.size(axis) > 1)


def refuse_unfit(exchange: Exchange, model: Model, calls: Sequence[Call]) -> None:
    """Refuse lengths, heads and kinds of attention that an exchange cannot serve.

    Args:
        exchange: from `exchange_of`.
        model: for its name and the lengths of its batch.
        calls: what its loss asks of its attention.

    Raises:
        LayoutError: a sentence with the lengths that do not fit; if all do, with the heads and
            kinds of attention that do not.
    """
    refuse_faults({f"batch {name}": why for name, why in _lengths(exchange, model).items()})
    what = f"attention of model '{model.name}'"
    refuse_faults({what: list(dict.fromkeys(f for c in calls for f in _unfit(exchange, c)))})


def calls_in(jaxpr: Any) -> list[Call]:
    """Every call of attention in a traced loss, with its shapes."""
    return [
        Call(*(tuple(v.aval.shape) for v in eqn.invars))
        for eqn, _ in equations(jaxpr)
        if eqn.primitive.name == ATTEND
    ]


def dealt(
    attention: Exchange | Local | Whole,
    model: Model,
    batch: Mapping[str, jax.Array],
    specs: Mapping[str, PartitionSpec],
) -> dict[str, jax.Array]:
    """A batch whose positions are in the order that attention wants."""
    batch = dict(batch)
    if attention.deal is not None:
        for name, dim in _sequence_dims(model):
            batch[name] = attention.deal(batch[name], dim, specs[name])
    return batch


def _sequence_dims(model):
    """Every (batch field, dim) in role `sequence`."""
    for name, field in model.batch.items():
        for dim, called in enumerate(field.dims):
            if role_of(model, called) == "sequence":
                yield name, dim


def _lengths(exchange, model) -> dict[str, list[str]]:
    """Batch field -> why this exchange cannot shard its sequence; only fields that it cannot."""
    faults = {}
    for name, dim in _sequence_dims(model):
        length, pieces = model.batch[name].shape[dim], exchange.pieces
        if length % pieces:
            near = [n for n in (length // pieces * pieces, -(-length // pieces) * pieces) if n]
            faults[name] = [
                f"exchange '{exchange.name}' splits {length} positions into {pieces} equal pieces "
                f"for {exchange.split.ways} devices, and {pieces} does not divide {length}: use "
                f"a sequence of {' or '.join(map(str, near))}"
            ]
    return faults


def _unfit(exchange, call: Call) -> list[str]:
    """Why one call of `attend` does not suit an exchange, a sentence each; none if it does."""
    this = f"exchange '{exchange.name}' "
    if len(call.queries) != 5 or call.keys != (*call.queries[:3], call.queries[-1]):
        return [
            f"{this}needs queries (batch, sequence, kv_heads, group, head_dim) and keys (batch, "
            f"sequence, kv_heads, head_dim) of one sequence, and got {call.queries} and "
            f"{call.keys}: call attend with these shapes, or keep the sequence whole"
        ]
    if call.values != call.keys:
        return [f"{this}needs values of the keys' shape {call.keys}, and got {call.values}"]
    return exchange.faults(call.queries[2], call.queries[3])
