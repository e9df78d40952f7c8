"""Work and time: what a device computes and communicates in a step, and how long at least."""

from typing import Any

from jaxpar.core.figures import bytes_text, flops_text, seconds_text
from jaxpar.report.elements import Element, element
from jaxpar.report.marks import mark
from jaxpar.report.section import Record, Section
from jaxpar.report.tables import Cell, Column, table


def _draw(record: Record) -> list[Element]:
    """A table of work, and the bound that follows."""
    work = record.get("work")
    if not work:
        return []
    bound = record.get("bounds") or {}
    rows: list[list[Any]] = [
        _row("products", work["flops_per_device_per_step"], flops_text,
             bound.get("compute_seconds")),
        _row("products computed again in backward", work["recomputed_flops_per_device_per_step"],
             flops_text, bound.get("recomputation_seconds")),
        *(_row(f"communication {title}", size, bytes_text, bound.get(key))
          for title, size, key in _communication(record)),
    ]  # fmt: skip
    columns = [Column("of one step"), Column("per device", "measured")]
    if bound:
        columns.append(Column("takes at least", "predicted"))
    else:
        rows = [row[:2] for row in rows]
    parts = [table(columns, rows, title="Work of one step")]
    if bound:
        parts.append(_least(work, bound))
    if record.get("attention"):
        parts.append(element("p", record["attention"], class_="note"))
    return parts


def _row(title: str, size: float, text: Any, seconds: float | None) -> list[Any]:
    """Cells of what, how much and how long."""
    least = Cell("-", -1.0) if seconds is None else Cell(seconds_text(seconds), seconds)
    return [title, Cell(text(size), size), least]


def _communication(record: Record) -> list[tuple[str, float, str]]:
    """Bytes inside nodes, between them, and where that is not known."""
    keys = {
        "inside_nodes": ("inside nodes", "link_seconds"),
        "between_nodes": ("between nodes", "network_seconds"),
        "anywhere": ("", ""),
    }
    found = []
    for place, (title, key) in keys.items():
        sums = [s[place] for s in record.get("bytes_per_step_by_axes", {}).values() if place in s]
        if sums:
            found.append((title, sum(sums), key))
    return found


def _least(work: Record, bound: Record) -> Element:
    """The bound in a sentence."""
    count, unit = (
        (work["tokens_per_step"], "tokens")
        if work.get("tokens_per_step")
        else (work["rows_per_step"], "rows")
    )
    seconds = bound["step_seconds"]
    most = f", at most {count / seconds:,.0f} {unit} per second" if seconds else ""
    return element(
        "p",
        f"A step takes at least {seconds_text(seconds)}{most} ",
        mark("predicted"),
        ", by the published rates of the hardware; a real step takes longer.",
    )


section = Section("Work and time", 60, _draw)
