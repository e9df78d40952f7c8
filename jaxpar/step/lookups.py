"""Tables of which a loss only looks rows up, such as embeddings: rows may travel instead of tables.

Where a table is stored sharded along its width, each device can look every row of the batch up in
its own columns; an all-to-all then gives each device all columns of its own rows. That is as many
bytes as a device's rows have, where a gather is as many as the table has.

Where the rows are sharded over more axes, and a minor one stays, those that a device looks up are
not one block of the batch: (`data`, `model`) over the rows and `data` over the width leave
`model` alone, so the rows have a dim for each axis until they have travelled. Without it XLA
permutes them between the two orders of the devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.extend.core import Literal
from jax.sharding import PartitionSpec

from jaxpar.core.jax_compat import open_jaxpr
from jaxpar.core.mesh import axes_of, entry_of, shards
from jaxpar.core.scopes import weight_scope
from jaxpar.inference.record import TracedLoss
from jaxpar.jaxprs.interpreter import held_by
from jaxpar.jaxprs.rules import is_cast, rule_of
from jaxpar.layout.record import Array, Layout
from jaxpar.step.constraints import constrained


def rows_travel(layout: Layout, traced: TracedLoss) -> dict[str, PartitionSpec]:
    """Path -> how the rows that are looked up in a table are sharded before they travel.

    Of tables (rows, width) stored sharded along their width alone by axes that also shard the rows
    of the batch, where the rows of a batch are fewer bytes than the table. The sharding has entries
    for the dims of the result, or instead of its first dim one for each axis of the rows and one
    for what is left of them.
    """
    found = {}
    for path, result in _looked_up(traced).items():
        spec = _before(layout, layout.parameters[path], result)
        if spec is not None:
            found[path] = spec
    return found


def is_lookup(eqn: Any) -> bool:
    """Whether an equation takes whole rows of a matrix by their index."""
    if eqn.primitive.name != "gather" or len(eqn.invars[0].aval.shape) != 2:
        return False
    dims, width = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape[1]
    last = len(eqn.outvars[0].aval.shape) - 1
    return (
        tuple(dims.collapsed_slice_dims) == (0,)
        and tuple(eqn.params["slice_sizes"]) == (1, width)
        and tuple(dims.offset_dims) == (last,)
    )


def looked_up(
    layout: Layout, path: str, spec: PartitionSpec, eqn: Any, table: jax.Array, indices: jax.Array
) -> jax.Array:
    """Rows of a table, each device its columns of them, exchanged for all columns of its own rows.

    Args:
        layout: how the table and the rows are sharded.
        path: of the table.
        spec: how the rows are sharded before they travel, as `rows_travel` has it.
        eqn: the lookup.
        table, indices: its operands; (words, width) and (rows, ..., 1).
    """
    shape, rows = eqn.outvars[0].aval.shape, layout.row_axes
    own = PartitionSpec(entry_of(rows))
    numbers, apart = eqn.params["dimension_numbers"], own
    with weight_scope(path):
        table = constrained(layout, table, layout.parameters[path].stored)
        # Constrained before they are gathered, or what they were computed from is gathered.
        indices = constrained(layout, indices, own)
        if len(spec) > len(shape):
            apart = PartitionSpec(*rows)
            indices = indices.reshape(*map(layout.mesh.size, rows), -1, *indices.shape[1:])
            indices = constrained(layout, indices, apart)
            numbers = numbers._replace(offset_dims=(len(spec) - 1,))
        indices = constrained(layout, indices, PartitionSpec(*spec[: indices.ndim - 1]))
        params = {**eqn.params, "dimension_numbers": numbers}
        found = constrained(layout, eqn.primitive.bind(table, indices, **params), spec)
        return constrained(layout, constrained(layout, found, apart).reshape(shape), own)


def _before(layout: Layout, table: Array, result: Any) -> PartitionSpec | None:
    """The sharding of a lookup's result before it travels; None where the table travels better."""
    if table.used != PartitionSpec(None, None) or axes_of(table.stored[0]):
        return None
    excess, rows = axes_of(table.stored[1]), layout.row_axes
    if not excess or not set(excess) <= set(rows):
        return None
    fewer = result.size // layout.row_shares < table.size // shards(table.used, layout.mesh)
    if not fewer or result.shape[0] != layout.model.batch_size:
        return None
    kept = tuple(axis for axis in rows if axis not in excess)
    apart = [axis if axis in kept else None for axis in rows] + [None]
    first = [entry_of(kept)] if rows[: len(kept)] == kept else apart
    return PartitionSpec(*first, *[None] * (len(result.shape) - 2), table.stored[1])


def _looked_up(traced: TracedLoss) -> dict[str, Any]:
    """Path -> the abstract rows that the one reader of a table looks up in it."""
    reads: dict[str, list[Any]] = {}

    def walk(jaxpr: Any, paths: Mapping[Any, str]) -> None:
        paths = dict(paths)
        for eqn in jaxpr.eqns:
            known = [None if isinstance(a, Literal) else paths.get(a) for a in eqn.invars]
            if not any(known):
                continue
            if is_cast(eqn):
                paths[eqn.outvars[0]] = known[0] or ""
            elif rule_of(eqn).kind == "call":
                inner = open_jaxpr(held_by(eqn))[0]
                walk(inner, {v: p for v, p in zip(inner.invars, known, strict=True) if p})
            else:
                rows = eqn.outvars[0].aval if known[0] and is_lookup(eqn) else None
                for path in filter(None, known):
                    reads.setdefault(path, []).append(rows)
        for atom in jaxpr.outvars:
            if not isinstance(atom, Literal) and atom in paths:
                reads.setdefault(paths[atom], []).append(None)

    jaxpr = traced.closed.jaxpr
    pairs = zip(jaxpr.invars, traced.arguments, strict=True)
    walk(jaxpr, {v: path for v, path in pairs if path in traced.weights})
    return {p: found[0] for p, found in reads.items() if len(found) == 1 and found[0] is not None}
