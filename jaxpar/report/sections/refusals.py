"""What is not as it was asked for: refusals, unexpected collectives, findings; a sentence each."""

from collections.abc import Iterator

from jaxpar.report.elements import Element, coded, element
from jaxpar.report.section import Record, Section


def _draw(record: Record) -> list[Element]:
    """A list of sentences."""
    items = [
        element("li", element("b", name), ": " if name else None, coded(sentence))
        for name, sentence in _sentences(record)
    ]
    return [element("ul", items, class_="refused")] if items else []


def _sentences(record: Record) -> Iterator[tuple[str, str]]:
    """Whose each is, and what it says."""
    yield from _of(record, "")
    for layout in record.get("layouts", ()):
        yield from _of(layout, layout.get("layout", ""))
    for row in record.get("rows", ()):
        name = " ".join(str(row.get(part, "")) for part in ("model", "strategy", "mesh"))
        yield from _of(row, name)


def _of(record: Record, name: str) -> Iterator[tuple[str, str]]:
    """What one record has."""
    if record.get("refusal"):
        yield name, f"refused: {record['refusal']}"
    if record.get("stopped"):
        yield name, str(record["stopped"])
    if isinstance(record.get("faults"), list):
        yield from ((name, str(fault)) for fault in record["faults"])
    for finding in record.get("findings") or ():
        yield name, f"{finding['kind']}: {finding['sentence']}"
    memory = record.get("memory") or {}
    if memory.get("fits") is False:
        yield name, "does not fit into the memory of one device"
    if record.get("likely_mistake"):
        yield name, f"mismatch with one device: {record['likely_mistake']}"


section = Section("Not as it was asked for", 25, _draw)
