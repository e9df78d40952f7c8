"""How jaxpar says no: one plain sentence with the place, the value met, the rule and the repair.

`RequestError` is what a person can cause by what they type; the runner prints its sentence and
exits with status 2. `LayoutError` is the request that cannot be laid out on devices. Anything else
that is raised is a bug of jaxpar's own and keeps its traceback.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Any

LONGEST_WORD = 160
"""Characters of a word in a sentence, such as a name that was typed; of a longer one its ends."""

LONGEST_SENTENCE = 1500

LOOKED_AT = 65_536
"""Counts that are tried for one that divides: a sentence is worth some milliseconds."""

_LONG = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


class RequestError(ValueError):
    """What was asked for makes no sense; the sentence says why and what to type instead.

    It is one line, whatever is quoted in it.
    """

    def __init__(self, sentence: object):
        super().__init__(one_line(str(sentence)))


class LayoutError(RequestError):
    """The arrays cannot be sharded as asked: a dim that does not divide, or an axis used twice."""


class OwnCodeError(RequestError):
    """A person's own code, such as a factory, raised an error, which is the cause of this one."""


def one_line(text: str) -> str:
    """A text as one line that any terminal can show: nothing invisible, no word without end.

    >>> one_line("a \\x1b[31mname\\n" + "x" * 1000)
    'a \\\\x1b[31mname xxxxxxxxxxxxxxxxxxxx...(960 more)...xxxxxxxxxxxxxxxxxxxx'
    """
    line = _LONG.sub(
        lambda word: f"{word[0][:20]}...({len(word[0]) - 40} more)...{word[0][-20:]}",
        visible(" ".join(text.split())),
    )
    over = len(line) - LONGEST_SENTENCE
    return f"{line[:LONGEST_SENTENCE]} ...({over} more)" if over > 0 else line


def visible(line: str) -> str:
    r"""A line in which what a terminal would obey, or cannot show, is written as Python writes it.

    >>> print(visible("a \x1b[31mname"))
    a \x1b[31mname
    """
    if line.isprintable():
        return line
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line
    )


def words_of(error: BaseException) -> str:
    """What an exception says, whatever it is: its first line, its type's name if it says nothing.

    >>> words_of(KeyError("no such\\nfield")), words_of(FileNotFoundError(2, "No such file", "a"))
    ("'no such\\\\nfield'", "No such file: 'a'")
    """
    try:
        said = str(error).strip()
    except Exception:  # a person's __str__ may raise anything
        return "it cannot be printed"
    if isinstance(error, OSError):
        said = said.removeprefix(f"[Errno {error.errno}]").strip()  # a number is no help
    return said.splitlines()[0] if said else type(error).__name__


def expect(what: str, value: Any, kind: Any, repair: str) -> None:
    """Refuse an argument that is of another kind than those that a function takes.

    Args:
        what: the argument, for people: "lay_out's model".
        value: it.
        kind: its type, or types joined by |.
        repair: what to give, or how to make it.
    """
    if not isinstance(value, kind):
        raise RequestError(f"{what} is of type {type(value).__name__}: {repair}")


def unknown(noun: str, name: str, known: Iterable[str]) -> RequestError:
    """The refusal of a name that does not exist, with the nearest name that does.

    >>> print(unknown("strategy", "tensr", ["data", "fsdp", "tensor"]))
    unknown strategy 'tensr': did you mean 'tensor'? (there are: data, fsdp, tensor)
    """
    known = list(known)
    name = str(name)
    near = difflib.get_close_matches(name[:LONGEST_WORD], known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    there = f"there are: {', '.join(known[:20])}{more}" if known else "there is none"
    return RequestError(f"unknown {noun} '{name}': {hint}" + (f"({there})" if near else there))


def sizes_that_work(size: int, wanted: int) -> str:
    """Which counts near `wanted` divide `size`, and which sizes near `size` `wanted` divides.

    >>> sizes_that_work(60, 8)
    '6 or 10 devices divide it, and 8 divides 56 and 64'
    """
    below = next((d for d in range(min(wanted - 1, size), 0, -1) if size % d == 0), None)
    most = min(size, wanted + LOOKED_AT)
    above = next((d for d in range(wanted + 1, most + 1) if size % d == 0), None)
    fitting = [str(d) for d in (below, above) if d is not None]
    multiple = size // wanted * wanted
    sizes = [str(m) for m in (multiple, multiple + wanted) if m > 0]
    devices = " or ".join(fitting) + (
        " devices divide it" if fitting[-1] != "1" else " device fits"
    )
    return f"{devices}, and {wanted} divides {' and '.join(sizes)}"
