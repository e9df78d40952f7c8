"""Sum a compiled program's collectives into a table: which kind, along which mesh axes, how much.

Takes the text of the program and the mesh, returns rows sorted by bytes. Counts every execution,
loops included. Nothing is dropped: collectives whose groups are not whole axes get rows of their
own, with `whole` false.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxpar.core.source_lines import is_library, own_file
from jaxpar.hlo.collectives import Collective, axes_of, collectives, spans_whole_axes
from jaxpar.hlo.parse import parse

SOURCES_SHOWN = 3
_WEIGHT = re.compile(r"weight\(([\w.]+)\)")
"""The scope that a step puts around the gather of a weight."""


@dataclass(frozen=True)
class TrafficRow:
    """All collectives of one kind along the same axes in one execution of the program.

    `bytes` is `Collective.bytes_each` over all executions: payload as one device sees it, not
    what a particular algorithm puts on the links. If not `exact`, both sums are lower bounds.
    """

    kind: str
    axes: tuple[str, ...]  # outermost first
    whole: bool  # the groups are exactly the product of these axes
    count: int
    bytes: int
    exact: bool
    sources: tuple[str, ...]  # the one with most bytes first


def traffic(text: str, axis_sizes: Mapping[str, int]) -> tuple[TrafficRow, ...]:
    """Return rows from the text of a compiled module, most bytes first.

    `axis_sizes` is the mesh the program was compiled for, outermost axis first.
    """
    grouped: dict[tuple[str, tuple[str, ...], bool], list[Collective]] = {}
    for one in collectives(parse(text)):
        axes = axes_of(one, axis_sizes)
        whole = spans_whole_axes(one, axis_sizes)
        grouped.setdefault((one.kind, axes, whole), []).append(one)
    rows = [_row(*key, members) for key, members in grouped.items()]
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.kind, row.axes)))


def _row(kind: str, axes: tuple[str, ...], whole: bool, members: list[Collective]) -> TrafficRow:
    """One row for all collectives of one kind over the same axes."""
    sources: Counter[str] = Counter()
    for one in members:
        sources[_source(one)] += round(one.executions * one.bytes_each)
    return TrafficRow(
        kind=kind,
        axes=axes,
        whole=whole,
        count=round(sum(one.executions for one in members)),
        bytes=round(sum(one.executions * one.bytes_each for one in members)),
        exact=all(one.exact for one in members),
        sources=tuple(source for source, _ in sources.most_common(SOURCES_SHOWN) if source),
    )


def _source(one: Collective) -> str:
    """Where a collective is from: the weight it gathers, else the user's line, else XLA's name."""
    if weight := _WEIGHT.search(one.op_name):
        return f"weight {weight[1].replace('.', '/')}"
    files = [frame.file for frame in one.frames]
    at = own_file(files)
    if at is None:
        at = next((n for n, file in enumerate(files) if not is_library(file)), None)
    if at is None:
        return one.op_name
    frame = one.frames[at]
    return f"{frame.file}:{frame.line} {frame.function}"


def as_records(rows: Iterable[TrafficRow]) -> list[dict]:
    """Return the rows as dicts that `json.dumps` takes, with the keys the reports read."""
    return [
        {
            "kind": row.kind,
            "axes": list(row.axes),
            "count": row.count,
            "bytes": row.bytes,
            "sources": list(row.sources),
        }
        for row in rows
    ]
