"""Tables as lines of text in which no figure is ever cut, however narrow the screen.

The words of a head give way first, then text: they go on in the next line. Where even that is too
wide every row is a block of its own, a line an entry.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

GAP = "  "
_MAY_END = re.compile(r"(?<=[ /,+.])(?!(?<=\d[/,+.])\d)")
"""Where text may go on in the next line: after these, but not inside 1,024 or 0.5."""


@dataclass(frozen=True)
class Table:
    """Lines to show: those of the head, and those of the rows."""

    head: tuple[str, ...]
    body: tuple[str, ...]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Table:
    """Lay out cells in at most `width` columns of characters.

    Columns of figures are set to the right and keep the width of their cells.
    """
    columns = [[row[i] for row in rows] for i in range(len(head))]
    figures = [_are_figures(cells) for cells in columns]
    widest = [max(map(len, cells), default=0) for cells in columns]
    in_words = [_longest_word(name) for name in head]
    least = [
        max(word, wide if are else max(map(_longest_word, cells), default=0))
        for word, wide, are, cells in zip(in_words, widest, figures, columns, strict=True)
    ]
    room = width - len(GAP) * (len(head) - 1)
    if sum(least) > room:
        return Table((), tuple(line for row in rows for line in _block(head, row, width)))
    widths = [max(len(name), wide) for name, wide in zip(head, widest, strict=True)]
    for bound in ([max(pair) for pair in zip(in_words, widest, strict=True)], least):
        _shrink(widths, bound, room)

    def lines(cells: Sequence[str], **how: bool) -> list[str]:
        folded = [fold(cell, w) for cell, w in zip(cells, widths, strict=True)]
        return _lines(folded, widths, figures, **how)

    body = tuple(line for row in rows for line in lines(row))
    return Table(tuple(lines(head, at_bottom=True)), body)


def fold(text: str, width: int) -> list[str]:
    """Text as lines of at most `width` characters, longer only where a word is.

    >>> fold("weight layers/0/kernel of 1,024 rows", 14)
    ['weight layers/', '0/kernel of', '1,024 rows']
    """
    lines = [""]
    for word in _MAY_END.split(text):
        if lines[-1] and len((lines[-1] + word).rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines]


def _are_figures(cells: Sequence[str]) -> bool:
    """Whether every cell is a number or begins with one; a dash or nan stands for one missing."""
    return bool(cells) and all(c in ("-", "nan", "inf") or c[:1].isdigit() for c in cells)


def _longest_word(text: str) -> int:
    """How narrow text can be, in characters."""
    return max(len(word.rstrip()) for word in _MAY_END.split(text))


def _shrink(widths: list[int], least: Sequence[int], room: int) -> None:
    """Narrow the widest columns first, none below its least, until all fit in the room."""
    while sum(widths) > room:
        wide, at = max((w if w > least[i] else 0, i) for i, w in enumerate(widths))
        if not wide:
            return
        widths[at] -= 1


def _lines(
    cells: Sequence[Sequence[str]],
    widths: Sequence[int],
    figures: Sequence[bool],
    *,
    at_bottom: bool = False,
) -> list[str]:
    """The lines of one row, whose cells are lines themselves, at its top or at its bottom."""
    lines, height = [], max(map(len, cells))
    for at in range(height):
        shifted = [at - (height - len(cell) if at_bottom else 0) for cell in cells]
        parts = [c[i] if 0 <= i < len(c) else "" for c, i in zip(cells, shifted, strict=True)]
        padded = [
            part.rjust(w) if right else part.ljust(w)
            for part, w, right in zip(parts, widths, figures, strict=True)
        ]
        lines.append(GAP.join(padded).rstrip())
    return lines


def _block(head: Sequence[str], row: Sequence[str], width: int) -> list[str]:
    """One row as a line an entry, the first one without its name."""
    lines = [row[0]]
    for name, cell in zip(head[1:], row[1:], strict=True):
        lines += [GAP + line for line in fold(f"{name}: {cell}", width - len(GAP))]
    return lines
