"""What a comparison comes to, in a few sentences: which layouts can be used, and which are best."""

from collections.abc import Callable, Sequence

from jaxpar.core.figures import bytes_text, seconds_text
from jaxpar.report.elements import Child, Element, element
from jaxpar.report.marks import mark
from jaxpar.report.section import Record, Section

AS_GOOD = 0.01
"""Layouts whose times differ by less than this share are as good as each other."""

NAMED = 3
"""Layouts that are named one by one; of more it is told how many they are."""


def _draw(record: Record) -> list[Element]:
    """One paragraph, where there are several layouts to choose from."""
    made = [one for one in record.get("layouts", ()) if "refusal" not in one]
    if len(made) < 2:
        return []
    fits = [one for one in made if (one.get("memory") or {}).get("fits") is not False]
    usable = [one for one in fits if one.get("ok", True)]
    says: list[Child] = [f"{_where(made)}. {_usable(made, fits, usable)}. "]
    if len(usable) > 1:
        says += _fastest(usable)
        says += _least(usable, "needs the least memory", _memory)
        says += _least(usable, "communicates the least", lambda one: one.get("bytes_per_step"))
    return [element("p", *says)]


def _where(made: Sequence[Record]) -> str:
    """For which devices, and of how many rows; of what is not the same in all, the range."""

    def range_of(name: str) -> str:
        found = sorted({one[name] for one in made if isinstance(one.get(name), int)})
        return " to ".join(f"{n:,}" for n in dict.fromkeys((found[0], found[-1]))) if found else ""

    hardware = " or ".join(dict.fromkeys(str(one.get("hardware", "")) for one in made))
    rows = range_of("batch")
    return f"Each on {range_of('devices')} x {hardware}" + (f", {rows} rows a step" if rows else "")


def _usable(made: Sequence[Record], fits: Sequence[Record], usable: Sequence[Record]) -> str:
    """How many can be used, and why others cannot."""
    if len(usable) == len(made):
        return "All of them can be used"
    why = []
    if len(fits) < len(made):
        why.append(f"{len(made) - len(fits)} would not fit into a device's memory")
    if len(usable) < len(fits):
        why.append(f"{len(fits) - len(usable)} would not do what was asked for")
    return f"{len(usable)} of {len(made)} can be used: {' and '.join(why)}"


def _fastest(usable: Sequence[Record]) -> list[Child]:
    """Which takes the least time, predicted if it is, else by what it takes at least."""
    predicted = {one["layout"]: one.get("step_seconds") for one in usable}
    bounds = {one["layout"]: (one.get("bounds") or {}).get("step_seconds") for one in usable}
    times = predicted if all(predicted.values()) else bounds
    if not all(times.values()):
        return []
    best = min(seconds for seconds in times.values() if seconds)
    names = [name for name, seconds in times.items() if seconds and seconds <= best * (1 + AS_GOOD)]
    text = f"{seconds_text(best)} a step "
    if times is predicted:
        return [*_named(names), " will be the fastest, ", text, mark("predicted"), ". "]
    if len(names) == len(times):
        who: list[Child] = ["They"]
    else:
        who = _named(names)
    return [
        *who, " can be the fastest: no less than ", text, mark("predicted"),
        ", which is a bound; a real step takes longer, and predict says by how much. ",
    ]  # fmt: skip


def _least(
    usable: Sequence[Record], does: str, read: Callable[[Record], float | None]
) -> list[Child]:
    """Which has the least bytes of something."""
    found = {one["layout"]: size for one in usable if (size := read(one))}
    if len(set(found.values())) < 2:
        return []
    best = min(found.values())
    names = [name for name, size in found.items() if size <= best * (1 + AS_GOOD)]
    verb = does if len(names) == 1 else does.replace("needs", "need").replace("tes the", "te the")
    return [*_named(names), f" {verb}, {bytes_text(best)} a device ", mark("measured"), ". "]


def _named(names: Sequence[str]) -> list[Child]:
    """Layouts as the subject of a sentence."""
    if len(names) > NAMED:
        return [f"{len(names)} of them"]
    bold: list[Child] = []
    for number, name in enumerate(names):
        between = "" if not number else " and " if number == len(names) - 1 else ", "
        bold += [between, element("b", name)]
    return bold


def _memory(one: Record) -> float | None:
    """Bytes that one device needs."""
    memory = one.get("memory") or {}
    return memory.get("peak_bytes", memory.get("total_bytes"))


section = Section("In short", 11, _draw)
