"""The Section record: one part of a page, which draws what a record has of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxpar.core.catalogue import Catalogue
from jaxpar.report.elements import Element, element

Record = Mapping[str, Any]

SECTIONS = Catalogue("jaxpar.report.sections", "section")
"""A file each."""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        place: where it stands: smaller ones come first.
        draw: a record as JSON has it -> what is drawn of it; nothing where it has none of that.
    """

    title: str
    place: int
    draw: Callable[[Record], Sequence[Element]]


def drawn(record: Record) -> list[Element]:
    """All that the sections draw of a record, each under its heading."""
    sections = sorted((SECTIONS.load(name) for name in SECTIONS.names()), key=lambda s: s.place)
    found = ((section, section.draw(record)) for section in sections)
    return [
        element("section", element("h2", section.title), parts) for section, parts in found if parts
    ]
