"""Several layouts side by side: one table that sorts, and charts of memory, traffic and time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxpar.core.catalogue import STRATEGIES
from jaxpar.core.figures import bytes_text, flops_text, seconds_text, share_text
from jaxpar.report.charts import bars, chart
from jaxpar.report.elements import Element, coded, element
from jaxpar.report.marks import mark
from jaxpar.report.section import Record, Section
from jaxpar.report.sections.memory import capacity, parts_of
from jaxpar.report.tables import Cell, Column, table

CHARTED = 40
"""Layouts in a chart: the first; all are in the table."""

BOUNDS = {
    "compute_seconds": ("products", "compute"),
    "recomputation_seconds": ("products computed again", "compute"),
    "link_seconds": ("communication inside nodes", "links"),
    "network_seconds": ("communication between nodes", "network"),
}
"""An entry of a bound -> its title, and what it keeps busy: these three can be busy at once."""


@dataclass(frozen=True)
class _Read:
    """A column, what it has of each layout, and how that is written."""

    column: Column
    values: Sequence[Any]
    text: Callable[[Any], str]

    def cell(self, number: int) -> Cell:
        """That of one layout, bold if it is the least."""
        value = self.values[number]
        if value is None:
            return Cell("-")
        is_least = value == min(one for one in self.values if one is not None)
        is_best = is_least and self.column.title != "devices"
        return Cell(self.text(value), value, "least" if is_best else None)


def _draw(record: Record) -> list[Element]:
    """Words on how to read it, the table, the charts."""
    layouts = record.get("layouts", ())
    made = [one for one in layouts if "refusal" not in one]
    if not layouts:
        return []
    refused = len(layouts) - len(made)
    says = (
        f"{len(layouts)} layouts of {record.get('model', 'a model')}, one row each"
        f"{f'; {refused} of them could not be laid out' if refused else ''}. A layout is called "
        "STRATEGY@MESH: what is sharded, and how many devices there are along each axis of the "
        "mesh. All figures are of one device and one step; in each column the smallest is bold. "
        "Press a column's name to sort by it."
    )
    parts = [element("p", says), _strategies(layouts)]
    if made:
        parts += [*_table(made), *_charts(made[:CHARTED])]
    return parts


def _strategies(layouts: Sequence[Record]) -> Element:
    """What each strategy shards, in its own words."""
    named = [str(one.get("strategy") or str(one["layout"]).partition("@")[0]) for one in layouts]
    parts = dict.fromkeys(part for name in named for part in name.split("+"))
    known = [name for name in parts if name in STRATEGIES.names()]
    items = [
        element("li", element("b", name), ": ", coded(STRATEGIES.summary(name))) for name in known
    ]
    return element("ul", items, class_="quiet")


def _columns() -> list[tuple[Column, Callable[[Record], Any], Callable[[Any], str]]]:
    """Each column that there may be: its head, what it reads, and how that is written."""
    measured, predicted = "measured", "predicted"
    return [
        (Column("devices", "quoted"), lambda r: r.get("devices"), lambda n: f"{n:,}"),
        (Column("step predicted", predicted), lambda r: r.get("step_seconds"), seconds_text),
        (Column("step at least", predicted), lambda r: (r.get("bounds") or {}).get("step_seconds"),
         seconds_text),
        (Column("memory", measured), _total, bytes_text),
        (Column("of a device's", measured), _share, share_text),
        (Column("communication", measured), lambda r: r.get("bytes_per_step"), bytes_text),
        (Column("inside nodes", measured), lambda r: _bytes(r, "inside_nodes"), bytes_text),
        (Column("between nodes", measured), lambda r: _bytes(r, "between_nodes"), bytes_text),
        (Column("FLOPs", measured), lambda r: _flops(r, ""), flops_text),
        (Column("recomputed", measured), lambda r: _flops(r, "recomputed_"), flops_text),
    ]  # fmt: skip


def _found(made: Sequence[Record]) -> list[_Read]:
    """The columns of which some layout has something; the others would only take room."""
    found = []
    for column, read, text in _columns():
        values = [read(one) for one in made]
        if any(values):
            found.append(_Read(column, values, text))
    return found


def _table(made: Sequence[Record]) -> list[Element]:
    """A row a layout, and in a sentence what all of them have alike."""
    found = _found(made)
    alike = [one for one in found if len(made) > 1 and len(set(one.values)) == 1]
    shown = [one for one in found if one not in alike]
    rows = [
        [Cell(one["layout"]), _state(one), *(read.cell(number) for read in shown)]
        for number, one in enumerate(made)
    ]
    columns = [Column("layout"), Column("verdict"), *(read.column for read in shown)]
    parts = [table(columns, rows, title="Layouts compared, per device and step")]
    if alike:
        says = [[f"{one.column.title} {one.text(one.values[0])} ", mark(one.column.kind or ""),
                 "; "] for one in alike]  # fmt: skip
        parts.append(element("p", "Alike in all: ", *says[:-1], says[-1][:-1], "."))
    return parts


def _state(one: Record) -> Cell:
    """Whether a layout fits, as far as that is known, and does what was asked for."""
    fits = (one.get("memory") or {}).get("fits")
    if fits is False:
        return Cell("does not fit", class_="bad")
    if not one.get("ok"):
        return Cell("not as asked", class_="bad")
    return Cell("fits" if fits else "as asked", class_="good")


def _total(one: Record) -> float | None:
    """Bytes that one device needs."""
    memory = one.get("memory") or {}
    return memory.get("peak_bytes", memory.get("total_bytes"))


def _share(one: Record) -> float | None:
    """The same as a share of what it has."""
    has, total = (one.get("memory") or {}).get("device_bytes"), _total(one)
    return total / has if has and total is not None else None


def _bytes(one: Record, place: str) -> float | None:
    """Bytes that go inside nodes or between them; None where nodes are not known."""
    sums = one.get("bytes_per_step_by_axes") or {}
    if any("anywhere" in found for found in sums.values()):
        return None
    return sum(found.get(place, 0.0) for found in sums.values())


def _flops(one: Record, which: str) -> float | None:
    """FLOPs of one device."""
    return (one.get("work") or {}).get(f"{which}flops_per_device_per_step")


def _charts(made: Sequence[Record]) -> list[Element]:
    """Memory by its parts, bytes by axes, least time by its causes."""
    memory = [(one["layout"], parts_of(one.get("memory") or {})) for one in made]
    traffic = [
        (one["layout"], {f"over {axes}": sum(sums.values()) for axes, sums in
                         (one.get("bytes_per_step_by_axes") or {}).items()})
        for one in made
    ]  # fmt: skip
    time = [
        (one["layout"], {title: (one.get("bounds") or {}).get(key) or 0.0
                         for key, (title, _) in BOUNDS.items()})
        for one in made
    ]  # fmt: skip
    tracks = dict(BOUNDS.values())
    has = next((h for one in made if (h := (one.get("memory") or {}).get("device_bytes"))), None)
    charts = [
        _stacked(memory, "memory of one device by what it holds", "bytes of one device",
                 bytes_text, "measured", has),
        _stacked(traffic, "communication by the mesh axes that it goes over",
                 "bytes per device per step", bytes_text, "measured"),
        _stacked(time, "least time of what may pass at once: a step takes no less than the longest",
                 "seconds", seconds_text, "predicted", tracks=tracks),
    ]  # fmt: skip
    return [drawn for drawn in charts if drawn is not None]


def _stacked(
    named: Sequence[tuple[str, Mapping[str, float]]],
    title: str,
    unit: str,
    text: Callable[[float], str],
    kind: str,
    full: float | None = None,
    tracks: Mapping[str, str] | None = None,
) -> Element | None:
    """A bar a layout, or one for each of its tracks; None where there is nothing to draw."""
    values = [
        {"name": name, "size": size, "told": text(size), "part": part,
         **({"track": tracks[part]} if tracks else {})}
        for name, parts in named
        for part, size in parts.items()
        if size
    ]  # fmt: skip
    if not values:
        return None
    order = list(dict.fromkeys(value["part"] for value in values))
    spec = bars(values, unit=unit, colour="part", order=order,
                beside="track" if tracks else "")  # fmt: skip
    largest = max(sum(parts.values()) for _, parts in named)
    if full and full < 4 * largest:
        layers = [{n: spec.pop(n) for n in ("data", "mark", "encoding")}, capacity(full)]
        spec = {**spec, "layer": layers}
        title = f"{title}; the dashed line is what a device has"
    return chart(spec, title=title, kind=kind)


section = Section("The layouts compared", 20, _draw)
