"""Where a loss says how an array is sharded, beside what its dims are known to be.

A model says so by names for an array's dims, or by JAX's own sharding constraints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jax.extend.core import Literal, jaxprs_in_params
from jax.sharding import PartitionSpec

from jaxpar.core.annotations import NAMED
from jaxpar.core.jax_compat import open_jaxpr
from jaxpar.core.mesh import axes_of
from jaxpar.core.source_lines import line_of
from jaxpar.jaxprs.equations import turns
from jaxpar.jaxprs.record import Scope

Entries = tuple[tuple[str, ...] | None, ...]
"""For each dim of an array the mesh axes that shard it; None where that is left to XLA."""


@dataclass(frozen=True)
class Aside:
    """A sharding constraint of a loss whose constraints are set aside.

    Attributes:
        line: of the constraint, as `line_of` gives it.
        made_at: the same of what made the array, "" for an argument.
        shape: of the array.
        entries: what the constraint says of its dims.
    """

    line: str
    made_at: str
    shape: tuple[int, ...]
    entries: Entries


def asides(closed: Any) -> tuple[Aside, ...]:
    """The sharding constraints of a loss, each once."""
    found = []
    for jaxpr in _jaxprs(open_jaxpr(closed)[0]):
        made = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
        for eqn in jaxpr.eqns:
            entries = entries_of(eqn)
            if entries is None:
                continue
            source = eqn.invars[0]
            by = None if isinstance(source, Literal) else made.get(source)
            found.append(
                Aside(
                    line=line_of(eqn.source_info),
                    made_at=line_of(by.source_info) if by else "",
                    shape=tuple(eqn.outvars[0].aval.shape),
                    entries=entries,
                )
            )
    return tuple(dict.fromkeys(found))


def entries_of(eqn: Any) -> Entries | None:
    """What a sharding constraint says of each dim; None for another equation, or one by devices."""
    sharding = eqn.params.get("sharding", eqn.params.get("dst_sharding"))
    spec = getattr(sharding, "spec", None)
    if eqn.primitive.name not in ("sharding_constraint", "reshard") or spec is None:
        return None
    free = eqn.params.get("unconstrained_dims") or ()
    rank = eqn.outvars[0].aval.ndim
    entries = [*spec, *[None] * (rank - len(spec))]
    return tuple(
        None if n in free or entry is PartitionSpec.UNCONSTRAINED else axes_of(entry)
        for n, entry in enumerate(entries)
    )


def scoped_equations(jaxpr: Any, scope: Scope, times: int = 1) -> Iterator[tuple[Any, Scope, int]]:
    """Yield (equation, the scope that its variables are in, how often it runs), callers first.

    Args:
        jaxpr: of a loss.
        scope: from `relate`, of this very jaxpr.
        times: how often the jaxpr runs.
    """
    for index, eqn in enumerate(open_jaxpr(jaxpr)[0].eqns):
        yield eqn, scope, times
        held = list(jaxprs_in_params(eqn.params))
        for inner, below in zip(held, scope.inner.get(index, ()), strict=False):
            yield from scoped_equations(inner, below, times * turns(eqn))


def is_named(eqn: Any) -> bool:
    """Whether an equation is a model's own word for an array's dims."""
    return eqn.primitive.name == NAMED


def _jaxprs(jaxpr: Any) -> Iterator[Any]:
    """A jaxpr and all that its equations hold, opened."""
    yield jaxpr
    for eqn in jaxpr.eqns:
        for inner in jaxprs_in_params(eqn.params):
            yield from _jaxprs(open_jaxpr(inner)[0])
