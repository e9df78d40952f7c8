"""An explanation on the screen: why each collective is there, and what fills the memory."""

from jaxpar.cli.screen import Screen
from jaxpar.core.figures import bytes_text, place_text
from jaxpar.measures.explain.memory import StepMemory
from jaxpar.measures.explain.record import Explained, Explanation

SHOWN = 8
"""Rows of collectives; all are in the record and on the page."""

MODULES_SHOWN = 4


def show_explanation(screen: Screen, explanation: Explanation) -> None:
    """Show what the collectives with most bytes move, and why."""
    together = (*explanation.rows, *explanation.synchronisation)
    rows = sorted((row for row in together if row.bytes), key=lambda row: -row.bytes)
    if rows:
        screen.table(
            ["collective", "over", "phase", "count", "bytes per step", "hidden", "what"],
            [_cells(row) for row in rows[:SHOWN]],
        )
        reasons = dict.fromkeys(row.reason for row in rows[:SHOWN] if row.reason)
        for reason in reasons:
            screen.say(f"why: {reason}", style="dim")
        rest, share = rows[SHOWN:], explanation.unattributed_share
        size = bytes_text(sum(row.bytes for row in rest))
        more = f"; {len(rest)} more rows with {size}" if rest else ""
        screen.say(f"without a line or a reason: {share:.1%} of bytes{more}")


def show_held(screen: Screen, held: StepMemory | None) -> None:
    """Show what the peak of memory consists of, by meaning and by module."""
    if held is None:
        return
    rows = [
        [name.replace("_", " "), bytes_text(size), f"{size / held.peak_bytes:.1%}"]
        for name, size in sorted(held.parts.items(), key=lambda pair: -pair[1])
        if size
    ]
    screen.table(["at the peak", "bytes per device", "share"], rows)
    largest = sorted(held.modules.items(), key=lambda pair: -pair[1])[:MODULES_SHOWN]
    told = ", ".join(f"{name or 'elsewhere'} {bytes_text(size)}" for name, size in largest)
    screen.say(f"peak: {bytes_text(held.peak_bytes)}; by module {told}")


def _cells(row: Explained) -> list[str]:
    """A row of the table."""
    what = row.what or row.module or "-"
    where = f", {place_text(row.source)}" if row.source and not row.parameter else ""
    return [
        row.kind, " x ".join(row.axes), f"{row.phase}{', again' if row.recomputed else ''}",
        f"{row.count:,}", bytes_text(row.bytes), "yes" if row.overlapped else "no", what + where,
    ]  # fmt: skip
