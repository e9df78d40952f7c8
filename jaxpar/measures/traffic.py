"""Sum a compiled program's collectives into a table: which kind, along which mesh axes, how much.

Takes the text of the program and the mesh, returns rows sorted by bytes. Counts every execution,
loops included. Nothing is dropped: collectives whose groups are not whole axes get rows of their
own, with `whole` false; so do gathers of weights and of activations, and collectives within nodes
and between them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from jaxpar.core.source_lines import is_library, own_file
from jaxpar.hlo.collectives import Collective, axes_of, collectives, spans_whole_axes
from jaxpar.hlo.parse import parse
from jaxpar.measures.links import Moved, moved
from jaxpar.measures.purpose import OPTIMIZER, UNKNOWN, kinds_of, purpose_of, weight_of
from jaxpar.step import optimization

SOURCES_SHOWN = 3


@dataclass(frozen=True)
class TrafficRow:
    """All collectives of one kind along the same axes in one execution of the program.

    `bytes` is `Collective.bytes_each` over all executions: payload as one device sees it, not
    what a particular algorithm puts on the links. If not `exact`, both sums are lower bounds.

    Attributes:
        kind: XLA's.
        axes: the mesh axes along which data moves, outermost first.
        whole: whether the groups are exactly the product of these axes.
        count, bytes: of one execution of the program.
        exact: whether every loop around them is counted as often as it turns.
        sources: where they are from, the one with most bytes first.
        purpose: what is moved, as `purpose_of` tells.
        between_nodes: whether devices of several nodes take part; None where nodes are not known.
        link_bytes, node_bytes: the fewest bytes, each way, that a device moves within its node, and
            that a node exchanges with others; see `jaxpar.measures.links`.
    """

    kind: str
    axes: tuple[str, ...]
    whole: bool
    count: int
    bytes: int
    exact: bool
    sources: tuple[str, ...]
    purpose: str = UNKNOWN
    between_nodes: bool | None = None
    link_bytes: float = 0.0
    node_bytes: float = 0.0

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds, as strategies name them, that these may be of."""
        return kinds_of(self.kind, self.purpose)

    @property
    def title(self) -> str:
        """The kind, and what is moved if that is known: "all-gather of weights"."""
        if self.purpose == OPTIMIZER:
            return f"{self.kind} in the optimizer"
        return f"{self.kind} of {self.purpose}" if self.purpose else self.kind


_Key = tuple[str, tuple[str, ...], bool, str, bool | None]
"""What the collectives of a row have in common: kind, axes, whole, purpose, between nodes."""


def traffic(
    text: str,
    axis_sizes: Mapping[str, int],
    devices_per_node: int | None = None,
    called: Callable[[str], str] = str,
) -> tuple[TrafficRow, ...]:
    """Return rows from the text of a compiled module, most bytes first.

    Args:
        text: of the module.
        axis_sizes: the mesh that it was compiled for, outermost axis first.
        devices_per_node: how many consecutive devices share a node, or None if that is not known.
        called: what a person calls a weight, given its path in the program.
    """
    grouped: dict[_Key, list[tuple[Collective, Moved | None]]] = {}
    for one in collectives(parse(text)):
        axes, whole = axes_of(one, axis_sizes), spans_whole_axes(one, axis_sizes)
        over = None if devices_per_node is None else moved(one, devices_per_node)
        between = None if over is None else over.between_nodes
        key = (one.kind, axes, whole, purpose_of(one), between)
        grouped.setdefault(key, []).append((one, over))
    rows = [_row(key, members, called) for key, members in grouped.items()]
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.title, row.axes)))


def _row(
    key: _Key, members: list[tuple[Collective, Moved | None]], called: Callable[[str], str]
) -> TrafficRow:
    """One row for all collectives of one kind over the same axes."""
    kind, axes, whole, purpose, between_nodes = key
    sources: Counter[str] = Counter()
    for one, _ in members:
        sources[_source(one, called)] += round(one.executions * one.bytes_each)
    links = [(one.executions, over) for one, over in members if over is not None]
    return TrafficRow(
        kind=kind,
        axes=axes,
        whole=whole,
        count=round(sum(one.executions for one, _ in members)),
        bytes=round(sum(one.executions * one.bytes_each for one, _ in members)),
        exact=all(one.exact for one, _ in members),
        sources=tuple(source for source, _ in sources.most_common(SOURCES_SHOWN) if source),
        purpose=purpose,
        between_nodes=between_nodes,
        link_bytes=float(sum(n * over.device_bytes for n, over in links)),
        node_bytes=float(sum(n * over.node_bytes for n, over in links)),
    )


def _source(one: Collective, called: Callable[[str], str]) -> str:
    """Where a collective is from: the weight it gathers, else the user's line, else XLA's name."""
    if weight := weight_of(one):
        return f"weight {called(weight)}"
    files = [frame.file for frame in one.frames]
    at = own_file(files)
    if at is None and optimization.__file__ in files:
        return "the optimizer"
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
            "of": row.purpose or None,
            "axes": list(row.axes),
            "between_nodes": row.between_nodes,
            "count": row.count,
            "bytes": row.bytes,
            "sources": list(row.sources),
        }
        for row in rows
    ]
