"""Where a number comes from: each is measured, predicted or quoted, and says so."""

from jaxpar.report.elements import Element, element

MEANING = {
    "measured": "read from the compiled program or the traced loss, or timed while it ran",
    "predicted": "follows by calculation, from published rates or a model of the hardware",
    "quoted": "said by the maker of the hardware, or by whoever asked",
}
"""What each mark says."""


def mark(kind: str) -> Element:
    """The mark of one number or of a column of them."""
    return element("abbr", kind, class_=f"mark {kind}", title=MEANING[kind])


def legend() -> Element:
    """What the marks mean, for the head of a page."""
    parts = [[mark(kind), f" {meaning}. "] for kind, meaning in MEANING.items()]
    return element("p", *parts, class_="legend")
