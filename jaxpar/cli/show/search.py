"""A search on the screen: each layout as it is compiled, then the ranking and why it is so."""

from jaxpar.cli.screen import Screen
from jaxpar.core.figures import bytes_text, seconds_text
from jaxpar.search.outcome import Search
from jaxpar.search.record import Candidate, Found

SHOWN = 15
REFUSED_SHOWN = 5


def show_found(screen: Screen, number: int, count: int, one: Found) -> None:
    """Show one layout that was compiled."""
    told = one.prediction.get("refusal")
    if told is None:
        fits = "" if one.fits else ", does not fit"
        told = f"{seconds_text(one.seconds)}, {bytes_text(one.prediction['peak_bytes'])}{fits}"
    screen.say(f"  {number} of {count}: {one.candidate.name}: {told}")


def show_search(screen: Screen, found: Search) -> None:
    """Show the ranking."""
    front = {one.candidate.name for one in found.front}
    compiled = [one for one in found.found if "refusal" not in one.prediction]
    if compiled:
        _show_ranking(screen, compiled, front)
    else:
        _show_estimates(screen, found)
    screen.say(
        f"{found.considered:,} layouts considered, {len(found.rated):,} estimated, "
        f"{len(compiled)} compiled, in {found.seconds:.0f} s"
    )
    for one in found.refused[:REFUSED_SHOWN]:
        screen.say(f"refused, {one.count}: {one.candidate.name}: {one.reason}", style="dim")
    if len(found.refused) > REFUSED_SHOWN:
        screen.say(f"and for {len(found.refused) - REFUSED_SHOWN} other reasons", style="dim")
    for sentence in found.why():
        screen.say(sentence)


def _show_ranking(screen: Screen, compiled: list[Found], front: set[str]) -> None:
    """Show the layouts that were compiled, the fastest first."""
    screen.table(
        ["strategy", "mesh", "set", "step", "MFU", "peak memory"],
        [
            [
                *_words(one.candidate), seconds_text(one.seconds), f"{one.prediction['mfu']:.1%}",
                bytes_text(one.prediction["peak_bytes"]) + _mark(one, front),
            ]
            for one in compiled[:SHOWN]
        ],
    )  # fmt: skip
    screen.say(
        "step and memory are predicted; * none is both faster and smaller; ! does not fit",
        style="dim",
    )


def _show_estimates(screen: Screen, found: Search) -> None:
    """Show the layouts that are the most promising by formulas."""
    screen.table(
        ["strategy", "mesh", "set", "step", "memory"],
        [
            [
                *_words(one.candidate), seconds_text(one.estimate.seconds),
                bytes_text(one.estimate.memory_bytes) + ("" if one.may_fit else " !"),
            ]
            for one in found.rated[:SHOWN]
        ],
    )  # fmt: skip
    screen.say("step and memory are estimated by formulas; ! will hardly fit", style="dim")


def _words(one: Candidate) -> list[str]:
    """The strategy, the mesh and the fields of a layout."""
    return [one.strategy, one.mesh, ", ".join(f"{n}={v}" for n, v in one.set.items()) or "-"]


def _mark(one: Found, front: set[str]) -> str:
    """What is shown behind a layout's memory."""
    return " !" if not one.fits else " *" if one.candidate.name in front else ""
