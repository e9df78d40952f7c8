"""The proof: every check of the layout against one device, and how far it may be off."""

from jaxpar.core.figures import number_text
from jaxpar.report.elements import Element, element
from jaxpar.report.section import Record, Section
from jaxpar.report.tables import Cell, Column, table


def _draw(record: Record) -> list[Element]:
    """The verdict in a sentence, and its checks in a table."""
    verdict = record.get("verified") or record
    if "checks" not in verdict:
        return []
    what = "equals one device" if verdict["ok"] else "differs from one device"
    says = (
        f"The sharded step {what}: {verdict['steps']} steps of {verdict['batch']} rows, judged in "
        f"{verdict['dtype']}; one device did {verdict['algorithm']}."
    )
    columns = [Column("check"), Column("holds"), Column("arrays", "measured"),
               Column("largest relative error", "measured"), Column("accepted", "quoted"),
               Column("in array")]  # fmt: skip
    rows = [
        [
            check["name"],
            "yes" if check["ok"] else "NO",
            Cell(f"{check['arrays']:,}", check["arrays"]),
            _number(check["error"]),
            _number(check["bound"]),
            check["worst"],
        ]
        for check in verdict["checks"]
    ]
    return [
        element("p", says, class_="good" if verdict["ok"] else "bad"),
        table(columns, rows, title="Checks against one device"),
    ]


def _number(value: float | None) -> Cell:
    """A number, or that it is none."""
    return Cell("no number") if value is None else Cell(number_text(value), value)


section = Section("The same as one device?", 90, _draw)
