"""A difference on the screen: figures before and after, collectives added and gone, arrays."""

from collections.abc import Mapping
from typing import Any

from jaxpar.cli.screen import Screen
from jaxpar.core.figures import bytes_text
from jaxpar.report.sections.difference import amount_text, change_text

ARRAYS_SHOWN = 20


def show_difference(screen: Screen, pair: Mapping[str, Any]) -> None:
    """Show one difference; what did not change is left out."""
    screen.say(f"from {pair['before']} to {pair['after']}", style="bold")
    if pair["same"]:
        screen.say("no difference", style="green")
        return
    changed = [one for one in pair["figures"] if one["before"] != one["after"]]
    rows = [
        [
            one["what"],
            amount_text(one["what"], one["before"]),
            amount_text(one["what"], one["after"]),
            change_text(one["before"], one["after"]),
        ]
        for one in changed
    ]
    if rows:
        screen.table(["what", "before", "after", "change"], rows)
    if pair["collectives"]:
        _show_collectives(screen, pair)
    if pair["arrays"]:
        shown = pair["arrays"][:ARRAYS_SHOWN]
        cells = [[one["path"], one["before"] or "-", one["after"] or "-"] for one in shown]
        screen.table(["array", "sharded before", "sharded after"], cells)
        if left := len(pair["arrays"]) - len(shown):
            screen.say(f"and {left} more arrays", style="dim")


def _show_collectives(screen: Screen, pair: Mapping[str, Any]) -> None:
    """Show each kind that was added, is gone or changed, with count and bytes."""
    rows = []
    for one in pair["collectives"]:
        before, after = one["before"], one["after"]
        rows.append(
            [
                one["change"],
                f"{one['kind']}{' of ' + one['of'] if one['of'] else ''}",
                " x ".join(one["axes"]),
                "-" if before is None else f"{before['count']:,}",
                "-" if after is None else f"{after['count']:,}",
                "-" if before is None else bytes_text(before["bytes"]),
                "-" if after is None else bytes_text(after["bytes"]),
            ]
        )
    head = ["change", "collective", "over axes", "count before", "count after", "bytes before",
            "bytes after"]  # fmt: skip
    screen.table(head, rows)
