"""Parameters that are left replicated though others are sharded, by the line that declares them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from jaxpar.core.mesh import axes_of
from jaxpar.core.source_lines import file_and_line
from jaxpar.layout.record import Array, Layout
from jaxpar.layout.stages import AXIS as STAGES
from jaxpar.measures.explain.lines import first_lines
from jaxpar.measures.finding import Finding
from jaxpar.measures.replicated import NOTABLE_ELEMENTS
from jaxpar.models.modules import lines_of_variables
from jaxpar.models.record import role_of
from jaxpar.step.record import Step

_OF_ACTIVATIONS = ("batch", "sequence")
"""Roles of dims that weights have not, or not for their strategy's sake."""

NOTABLE_SHARE = 0.01
"""Of a device's bytes of parameters: with less than that a parameter is left out."""


def left_replicated(step: Step) -> list[Finding]:
    """A finding for each line whose parameters are replicated, though others are sharded.

    Left out are vectors, and what is small: a strategy replicates it because it is, or it is a
    small share of what a device holds.
    """
    layout = step.layout
    axes = _weight_axes(layout)
    least = NOTABLE_SHARE * layout.parameter_device_bytes
    found = [
        array
        for array in layout.parameters.values()
        if axes
        and not set(axes) & _axes_of(array)
        and array.whole_bytes >= least
        and _is_large(layout, array)
    ]
    if not found:
        return []
    lines = _lines(step, found)
    grouped: dict[tuple[str, str, str], list[Array]] = {}
    for array in found:
        key = (lines[array.path], *_why(layout, array, axes))
        grouped.setdefault(key, []).append(array)
    return [
        _finding(layout, arrays, axes, *key) for key, arrays in grouped.items()
    ]  # in the order of the parameters


def _weight_axes(layout: Layout) -> tuple[str, ...]:
    """The mesh axes over which the strategy shards weights between uses, if they fit."""
    compute = layout.strategy.compute.items()
    axes = {axis for role, over in compute if role not in _OF_ACTIVATIONS for axis in over}
    axes |= set(_store(layout))
    axes -= {STAGES}  # shards layers, and nothing else
    return tuple(a for a in layout.mesh.axes if a in axes and layout.mesh.size(a) > 1)


def _is_large(layout: Layout, array: Array) -> bool:
    """Whether a layer's part of a parameter is a matrix, or more, that is worth sharding."""
    pairs = zip(array.dims, array.shape, strict=True)
    sizes = [n for dim, n in pairs if n > 1 and role_of(layout.model, dim) != "layers"]
    least = max(layout.strategy.whole_below, NOTABLE_ELEMENTS)
    return len(sizes) > 1 and prod(sizes) >= least


def _store(layout: Layout) -> tuple[str, ...]:
    """The mesh axes that shard weights between uses only."""
    strategy = layout.strategy
    return tuple(strategy.store) if "parameters" in strategy.sharded else ()


def _axes_of(array: Array) -> set[str]:
    """The mesh axes that shard a parameter between uses."""
    return {axis for entry in array.stored for axis in axes_of(entry)}


def _why(layout: Layout, array: Array, axes: tuple[str, ...]) -> tuple[str, str]:
    """(why an array is sharded over none of these axes, what to do)."""
    model, strategy = layout.model, layout.strategy
    for dim, size in zip(array.dims, array.shape, strict=True):
        over = [a for a in strategy.compute.get(role_of(model, dim), ()) if a in axes]
        ways = prod(layout.mesh.size(axis) for axis in over)
        if over and model.units.get(dim, size) % ways:
            return (
                f"dim `{dim}` ({size}) is to be sharded over {' x '.join(over)}, and {ways} does "
                f"not divide {'it' if dim not in model.units else f'its {model.units[dim]} units'}",
                f"use a size that {ways} divides, or fewer devices along {' x '.join(over)}",
            )
    dims = ", ".join(f"`{dim}`" for dim in array.dims)
    if store := set(_store(layout)) & set(axes):
        ways = prod(layout.mesh.size(axis) for axis in store)
        return (
            f"none of its dims ({dims}) divides by {ways}",
            f"use a size that {ways} divides",
        )
    return (
        f"none of its dims ({dims}) has a role that strategy '{strategy.name}' shards over "
        f"{' x '.join(axes)}",
        "name its dims as those of other weights, give one of them its role (roles=), or use a "
        "strategy that shards weights between uses, such as fsdp",
    )


def _lines(step: Step, found: list[Array]) -> Mapping[str, str]:
    """path -> the line that declares a parameter, else the first that uses it; "" for neither."""
    model = step.layout.model
    declared = lines_of_variables(model)
    used, _ = first_lines(step.asked.loss)
    return {
        a.path: file_and_line(declared.get(a.path, ""))
        or file_and_line(model.read_at.get(a.path, ""))
        or used.get(a.path, "")
        for a in found
    }


def _finding(
    layout: Layout,
    arrays: list[Array],
    axes: tuple[str, ...],
    source: str,
    why: str,
    repair: str,
) -> Finding:
    """The finding of parameters that one line declares and one reason leaves replicated."""
    first = max(arrays, key=lambda a: a.whole_bytes)
    count = sum(a.whole_bytes for a in arrays)
    path, shape = layout.called(first.path), " x ".join(map(str, first.shape))
    more = f" and {len(arrays) - 1} more parameters" if len(arrays) > 1 else ""
    stay = "stay" if more else "stays"
    return Finding(
        kind="parameter",
        where=source or path,
        says=f"{path} ({shape}){more} {stay} replicated, {count:,} bytes on every device: {why}",
        repair=repair,
        source=source,
        module=path.rpartition("/")[0] or path,
        bytes=count,
        is_error=False,
    )
