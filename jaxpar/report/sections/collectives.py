"""The collectives of a step: what devices send each other, over which axes, how often, and why."""

from collections.abc import Mapping
from typing import Any

from jaxpar.core.figures import bytes_text, place_text
from jaxpar.report.charts import bars, chart
from jaxpar.report.elements import Child, Element, coded, element
from jaxpar.report.marks import mark
from jaxpar.report.section import Record, Section
from jaxpar.report.tables import Cell, Column, table

SAYS = {
    "all-reduce": "each device has a part of a sum, and all get the whole sum",
    "all-gather": "each device has a shard, and all get the whole",
    "reduce-scatter": "each device has a part of a sum, and each gets a shard of the sum",
    "all-to-all": "each device sends a different piece to every other",
    "collective-permute": "each device sends its piece to one other",
}
"""What each kind does, for who meets it for the first time."""

SUMS = {
    "bytes_per_step_by_phase": "bytes per device per step, by the phase that they are in",
    "bytes_per_step_by_module": "bytes per device per step, by the module that they are for",
}
"""Sums that a record may have."""


def _draw(record: Record) -> list[Element]:
    """The words, a chart by axes, and a sorted table."""
    if "collectives" not in record:
        return []
    rows = [*record["collectives"], *(record.get("averaging_collectives") or ())]
    if not rows:
        return [element("p", "No collectives: no device waits for another in a step.")]
    kinds = dict.fromkeys(row["kind"] for row in rows)
    says = [[element("b", kind), f": {SAYS[kind]}. "] for kind in kinds if kind in SAYS]
    parts = [element("p", "What devices send each other in one step. ", *says)]
    if record.get("bytes_per_step_by_axes"):
        parts.append(chart(_spec(record), title="bytes per device per step, by the mesh axes they "
                           "go over", kind="measured"))  # fmt: skip
    for name, title in SUMS.items():
        if sums := record.get(name):
            values = [{"name": str(at), "size": size, "told": bytes_text(size), "part": "all"}
                      for at, size in list(sums.items())[:12]]  # fmt: skip
            parts.append(chart(bars(values, unit="bytes", colour="part", order=["all"]),
                               title=title, kind="measured"))  # fmt: skip
    parts.append(_table(record))
    share = record.get("unattributed_share")
    if share is not None:
        parts.append(
            element("p", f"{share:.2%} ", mark("measured"), " of the bytes have no line or reason.")
        )
    if record.get("collectives_differ"):
        parts.append(element("p", f"Note: {record['collectives_differ']}", class_="note"))
    return parts


def _spec(record: Record) -> dict[str, Any]:
    """Bars of the bytes over each set of axes, inside nodes and between them."""
    places = {"anywhere": "anywhere", "inside_nodes": "inside nodes",
              "between_nodes": "between nodes"}  # fmt: skip
    values = [
        {"name": axes, "size": size, "told": bytes_text(size), "where": places.get(place, place)}
        for axes, sums in record["bytes_per_step_by_axes"].items()
        for place, size in sums.items()
    ]
    found = dict.fromkeys(value["where"] for value in values)
    return bars(values, unit="bytes", colour="where", order=list(found))


def _table(record: Record) -> Element:
    """Every collective; a synchronisation of replicas is marked, since it is not in every step."""
    rows = [(row, "") for row in record["collectives"]]
    rows += [(row, " (synchronisation)") for row in record.get("averaging_collectives") or ()]
    has_nodes = len({_crosses(row) for row, _ in rows}) > 1
    phases = any(row.get("phase") for row, _ in rows)
    overlaps = any(row.get("overlapped") is not None for row, _ in rows)
    columns = [
        Column("collective"),
        Column("over axes"),
        *([Column("nodes")] if has_nodes else ()),
        Column("count per step", "measured"),
        Column("bytes per device per step", "measured"),
        *([Column("phase")] if phases else ()),
        *([Column("overlapped")] if overlaps else ()),
        Column("why, and from where" if any(row.get("reason") for row, _ in rows) else "from"),
    ]
    cells = [
        [
            f"{row['kind']}{_of(row)}{after}",
            " x ".join(row["axes"]),
            *([_nodes(row)] if has_nodes else ()),
            Cell(f"{row['count']:,}", row["count"]),
            Cell(bytes_text(row["bytes"]), row["bytes"]),
            *([str(row.get("phase") or "")] if phases else ()),
            *(["yes" if row.get("overlapped") else "no"] if overlaps else ()),
            Cell(_why(row), class_="why"),
        ]
        for row, after in rows
    ]
    nodes = "" if has_nodes or not rows else _nodes(rows[0][0])
    where = {"inside": ", all inside one node", "between": ", all between nodes"}.get(nodes, "")
    return table(columns, cells, title=f"Collectives of one step{where}")


def _why(row: Mapping[str, Any]) -> list[Child]:
    """Its reason if there is one, then the module and the line."""
    reason, module, source = row.get("reason"), row.get("module"), _source(row)
    places = ", ".join(filter(None, (module, source)))
    return [coded(f"{reason} ") if reason else None, element("span", places, class_="quiet")]


def _of(row: Mapping[str, Any]) -> str:
    """What is moved, where the record tells."""
    moved = row.get("what") or row.get("of")
    return f" of {moved}" if moved else ""


def _crosses(row: Mapping[str, Any]) -> bool | None:
    """Whether data goes between nodes; None where nodes are not known."""
    return row.get("crosses_nodes", row.get("between_nodes"))


def _nodes(row: Mapping[str, Any]) -> str:
    """The same in a word."""
    return {None: "", False: "inside", True: "between"}[_crosses(row)]


def _source(row: Mapping[str, Any]) -> str:
    """The line or the weight that it is from."""
    sources = row.get("sources") or ([row["source"]] if row.get("source") else [])
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return f"{place_text(str(sources[0]))}{more}" if sources else ""


section = Section("Collectives", 40, _draw)
