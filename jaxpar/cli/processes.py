"""Several processes, as the command line asks for them: started here, by hand, or by a cluster."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxpar.cli.options import Options, check_auto
from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import MeshShape

MOST = 64
"""Processes on one machine."""

_MPI = (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"))
"""Variables of Open MPI, whose fifth version JAX 0.10 does not detect, and of other MPIs."""

GLOO = "[Gloo] Rank "
"""What gloo prints of every connection."""

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_USUAL_MESH = "data=4,model=2"


def starts_several(options: Options) -> bool:
    """Whether processes are to be started here; whatever else is said of them is checked.

    Raises:
        RequestError: for options that make no sense together.
    """
    several, told = options.values["processes"], _by_hand(options)
    if several is not None and told:
        raise RequestError(
            f"--processes starts all processes here, and --{told[0]} is for one that is started by "
            "hand: leave one out"
        )
    if several is not None and not 1 <= several <= MOST:
        raise RequestError(
            f"--processes {several}: use from 1 to {MOST} on one machine; on several, start each "
            "with --coordinator, --process-id and --process-count"
        )
    if options.patience < 5:
        raise RequestError(f"--patience {options.patience}: a process needs 5 seconds at least")
    if told:
        _check_by_hand(options, told)
    if several is not None and several > 1:
        _check_asked(options, several)
    return several is not None and several > 1


def run_here(options: Options, argv: Sequence[str], program: str) -> int:
    """Start the processes, pass on what they say, and return the status of all."""
    from jaxpar.runtime.supervise import Children, free_port, handing_on

    count, port = options.processes, free_port()
    held: dict[int, str] = {}

    def listen(number: int, line: str) -> None:
        if line.startswith(f"{program}: "):
            held[number] = line  # its last word, perhaps the same as another's
        elif not line.startswith(GLOO):
            print(f"[process {number}] {line}", file=sys.stderr, flush=True)

    children = Children([_command(argv, program, i, count, port) for i in range(count)], listen)
    with handing_on(children) as signals:
        children.wait()
    ended = children.ended
    refused = {number for number, end in ended.items() if end.status == 2}
    for number, line in sorted(held.items()):
        if not (ended[number].by_us or signals or (refused >= {0, number})):
            print(line, file=sys.stderr, flush=True)
    statuses = [ended[number].status for number in range(count)]
    if signals:
        # Process 0 speaks for all. Another that was past its last step ends by the signal itself.
        usual = (0, 128 + signal.SIGTERM)
        whole = statuses[0] == 0 and all(status in usual for status in statuses)
        return 0 if whole else 128 + signals[0]
    if len(set(statuses)) == 1 and statuses[0] >= 0:  # each has said why itself
        return statuses[0]
    first = min((n for n in ended if ended[n].status), key=lambda n: ended[n].seconds)
    deaf = [f"process {n}" for n in ended if ended[n].by_us and ended[n].status == -signal.SIGKILL]
    killed = f"; {' and '.join(deaf)} did not answer any more and had to be killed" if deaf else ""
    print(
        f"{program}: process {first} of {count} {_how(ended[first])} after "
        f"{ended[first].seconds:.0f} s, and so the others were ended{killed}",
        file=sys.stderr,
        flush=True,
    )
    return 1


class ProcessFailed(RequestError):
    """One of several processes failed, and has said so if it speaks; the others are to end too."""


@contextmanager
def taking_part(options: Options, program: str) -> Iterator[bool | None]:
    """Within, this process has joined the others, if it is one of several.

    Yields whether it speaks for all: shows what a person reads, and writes files; None for one
    alone. A `ProcessFailed` ends here.
    """
    from jaxpar.runtime.distributed import Place, detected, join
    from jaxpar.runtime.supervise import parent_of_all

    if _by_hand(options):
        number, count = options.values["process-id"], options.values["process-count"]
        place = Place(number, count, options.coordinator, parent=parent_of_all())
    else:
        place = None if options.processes is not None else detected()
    if place is None or place.count == 1:
        if options.processes is None:
            _refuse_undetected()
        yield None
        return
    _check_asked(options, place.count)
    try:
        with join(place, program=program, patience_seconds=options.patience):
            yield place.number == 0
    except ProcessFailed as error:
        if place.number:
            print(f"{program}: {place}: {error}", file=sys.stderr, flush=True)
    except RequestError as error:
        error.args = (f"{place}: {error}",)
        raise


def as_typed(words: Sequence[str]) -> list[str]:
    """The words of a command as a person typed them, where they are those of a process of several.

    >>> as_typed(["--coordinator=a:1", "--process-id=0", "--process-count=2", "train", "mlp"])
    ['train', 'mlp', '--processes', '2']
    """
    place = {f"--{name}": "" for name in ("coordinator", "process-id", "process-count")}
    kept = []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in place:
            place[name] = value
        else:
            kept.append(word)
    return [*kept, "--processes", place["--process-count"]] if all(place.values()) else [*words]


def _refuse_undetected() -> None:
    """Refuse to run alone as one of many tasks of MPI, whose files would be each other's."""
    for size, rank in _MPI:
        count = os.environ.get(size, "")
        if count.isdigit() and int(count) > 1:
            raise RequestError(
                f"this is one of {count} tasks ({size}), and JAX does not detect its place: say "
                f"--coordinator host:port --process-id ${rank} --process-count ${size}, or "
                "--processes 1 to let each task train by itself"
            )


def _by_hand(options: Options) -> list[str]:
    """The options by which a process is told its place."""
    names = ("coordinator", "process-id", "process-count")
    return [name for name in names if options.values[name] is not None]


def _check_by_hand(options: Options, told: list[str]) -> None:
    """Refuse a place that is not told whole, or is none."""
    missing = [f"--{n}" for n in ("coordinator", "process-id", "process-count") if n not in told]
    if missing:
        raise RequestError(
            f"--{told[0]} without {' and '.join(missing)}: a process that is started by hand needs "
            "all three"
        )
    number, count = options.values["process-id"], options.values["process-count"]
    if count < 1 or not 0 <= number < count:
        raise RequestError(
            f"--process-id {number} of --process-count {count}: processes are numbered from 0 to "
            "one less than their count"
        )
    found = _ADDRESS.fullmatch(options.coordinator)
    if not found or not 0 < int(found[2]) < 65_536:
        raise RequestError(
            f"--coordinator {options.coordinator}: write host:port, for example node0:12345, with "
            "a free port of the machine that process 0 runs on"
        )


def _check_asked(options: Options, count: int) -> None:
    """Refuse what several processes cannot do, before any of them starts its devices."""
    from jaxpar.hardware.own import hardware_of
    from jaxpar.program.shares import device_share

    hardware = hardware_of(options.hardware)
    if hardware.kind == "described":
        raise RequestError(
            f"hardware '{hardware.name}' is described, not present, so {count} processes cannot "
            "run on it: use --hardware cpu or local"
        )
    if options.values.get("verify"):
        raise RequestError(
            f"--verify compares with one device, which {count} processes do not share: verify the "
            "layout in one process first, with the verb verify"
        )
    if options.mesh is None and hardware.kind == "local":
        raise RequestError(
            f"{count} processes need a mesh: say --mesh, with as many devices as they have together"
        )
    if options.mesh == "auto":
        return check_auto(options)  # which is known once the run that is resumed has been looked at
    device_share(MeshShape.parse(_USUAL_MESH if options.mesh is None else options.mesh), count)


def _command(
    argv: Sequence[str], program: str, number: int, count: int, port: int
) -> tuple[str, ...]:
    """What starts one of the processes: the same words, and its place."""
    folder = str(Path(__file__).parents[2])  # of jaxpar, and of jaxpar_command beside it
    start = f"import sys; sys.path.insert(0, {folder!r}); from jaxpar_command import main; "
    words = _without_count(argv)
    place = (
        f"--coordinator=127.0.0.1:{port}",
        f"--process-id={number}",
        f"--process-count={count}",
    )
    return (sys.executable, "-c", f"{start}sys.exit(main({program!r}))", *place, *words)


def _without_count(argv: Sequence[str]) -> list[str]:
    """The words without --processes and its value."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            return [*kept, word, *words]
        name, equals, _ = word.lstrip("-").partition("=")
        if not word.startswith("-") or name != "processes":
            kept.append(word)
        elif not equals:
            next(words, None)
    return kept


def _how(end: Any) -> str:
    """How a process ended, for people."""
    if end.stopped:
        return "was stopped (SIGSTOP), did not go on, and was killed"
    if end.status < 0:
        return f"was ended by {signal.Signals(-end.status).name}"
    return f"ended with status {end.status}"
