"""A checkpoint of so many replicas of local SGD as one of another number of them, or of none.

Replicas that are as many as before go on as they were. Else each begins with the mean of those that
there were, of optimizer state too; what is no float is the first one's. A random key stays its
replica's, and those of new replicas are folded from the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxpar.runtime.checkpoint.own_state import (
    MODEL_STATE,
    OPTIMIZER,
    PARAMETERS,
    REPLICAS,
    REST,
    Tree,
    as_key,
    mean_of,
)
from jaxpar.step.record import Step
from jaxpar.strategies.record import REPLICA

ANCHOR, MOMENTUM = "anchor", "momentum"
"""What replicas keep together, where their synchronisation is a step of its own."""


@dataclass(frozen=True)
class Kept:
    """What a checkpoint or a step has of replicas.

    Attributes:
        count: of replicas; 0 where there are none.
        has_outer: whether they keep an anchor and a momentum.
    """

    count: int
    has_outer: bool

    def __str__(self) -> str:
        return f"{self.count or 'no'} replicas of local SGD"


def kept_by(step: Step) -> Kept:
    """What the state of a step has."""
    has_replicas = step.layout.strategy.averaging is not None
    return Kept(step.layout.mesh.size(REPLICA) if has_replicas else 0, bool(step.state.outer))


def kept_in(arrays: Mapping[str, Mapping[str, Any]]) -> Kept:
    """What a checkpoint has, by what its metadata says of its arrays."""
    own = [x["shape"] for name, x in arrays.items() if name.startswith(f"{REPLICAS}/")]
    has_outer = any(name.startswith(f"{REST}/{ANCHOR}/") for name in arrays)
    return Kept(int(own[0][0]) if own and own[0] else 0, has_outer)


def change(then: Kept, now: Kept) -> tuple[str, ...]:
    """The sentence on replicas that are not those of the checkpoint; none where they are."""
    if then == now:
        return ()
    goes = "each goes on" if now.count else "it goes on"
    why = "" if then.count == now.count else f": {goes} from {_source(then)}"
    momentum = "; the outer momentum starts at zero" if now.has_outer and not then.has_outer else ""
    return (f"the checkpoint has {then}, and this run {now}{why}{momentum}",)


def _source(then: Kept) -> str:
    """What new replicas begin with, in words."""
    return "their mean" if then.count else "the state that is there"


def as_there(step: Step, own: Mapping[str, Tree], then: Kept) -> dict[str, Tree]:
    """The parts as a checkpoint with other replicas has them.

    Args:
        step: whose parts they are.
        own: its own parts, nested dicts of jax.ShapeDtypeStruct with shardings.
        then: what the checkpoint has.
    """
    now = kept_by(step)
    shared = now.count and then.count % now.count == 0
    front = (REPLICA if shared else None,) if then.count else ()

    def led(x: Any, skipped: int) -> jax.ShapeDtypeStruct:
        shape = (*(then.count for _ in front), *x.shape[skipped:])
        spec = PartitionSpec(*front, *x.sharding.spec[skipped:])
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=NamedSharding(x.sharding.mesh, spec))

    skipped = 1 if now.count else 0
    one = {PARAMETERS: own[PARAMETERS], MODEL_STATE: own[MODEL_STATE]}
    outer = {name: own[PARAMETERS] for name in (ANCHOR, MOMENTUM) if then.has_outer}
    rest = {"step": own[REST]["step"], "key": led(own[REST]["key"], skipped)}
    replicas = {REPLICAS: jax.tree.map(lambda x: led(x, 0), one)} if then.count else {}
    optimizer = jax.tree.map(lambda x: led(x, skipped), own[OPTIMIZER])
    return {**one, **replicas, OPTIMIZER: optimizer, REST: {**rest, **outer}}


def for_step(step: Step, parts: Mapping[str, Tree], then: Kept) -> Mapping[str, Tree]:
    """The parts of a step, given those of a checkpoint with other replicas; traceable."""
    now = kept_by(step)
    if then == now:
        return parts
    one = {name: parts[name] for name in (PARAMETERS, MODEL_STATE)}
    outer: Tree = {}
    if now.has_outer:
        still = jax.tree.map(jnp.zeros_like, one[PARAMETERS])
        outer = {ANCHOR: one[PARAMETERS], MOMENTUM: still}
        outer |= {name: parts[REST][name] for name in outer if then.has_outer}
    rest = {**parts[REST], **outer}
    if then.count == now.count:
        return {**parts, REST: rest}

    def spread(tree: Tree) -> Tree:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (now.count, *x.shape)), tree)

    optimizer = parts[OPTIMIZER]
    if then.count:
        optimizer = jax.tree.map(mean_of, optimizer)
    replicas = {REPLICAS: spread(one)} if now.count else {}
    rest["key"] = _keys(step, rest["key"], then.count, now.count)
    return {**one, **replicas, OPTIMIZER: spread(optimizer) if now.count else optimizer, REST: rest}


def _keys(step: Step, data: Any, then: int, now: int) -> Any:
    """The data of the keys of so many replicas, or of one without any, from that of others."""
    if not now:
        return data[0]
    first = as_key(data[0] if then else data, step.state.key)
    new = jax.vmap(jax.random.fold_in, (None, 0))(first, jnp.arange(then, max(then, now)))
    new = jax.random.key_data(new)
    return jnp.concatenate([data, new])[:now] if then else new
