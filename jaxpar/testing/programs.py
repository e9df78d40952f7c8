"""Assertions about compiled programs, for a project's own tests: collectives, memory, traffic.

    program = jaxpar.compile_step(step, hardware="h100")
    assert_no_collective(program, "all-gather", over="model", phase="forward")
    assert_peak_under(program, 70e9)
    assert_same_traffic(program, json.loads(Path("saved.json").read_text()))
    assert_sharded_equals_single(layout)

Nothing is run but by the last. Each raises AssertionError with what was found, by line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxpar.core.errors import RequestError, unknown
from jaxpar.hlo.collectives import KINDS
from jaxpar.layout.record import Layout
from jaxpar.measures.explain.explain import explain
from jaxpar.measures.explain.memory import step_memory
from jaxpar.measures.explain.record import PHASES, Explained
from jaxpar.measures.verify.verify import verify
from jaxpar.program.record import Program
from jaxpar.step.make_step import make_step
from jaxpar.step.record import Step

_SHOWN = 5


def assert_no_collective(
    program: Program, kind: str, *, over: str | None = None, phase: str | None = None
) -> None:
    """No collective of a kind is in an update.

    Args:
        program: compiled for anything.
        kind: XLA's, such as "all-gather".
        over: of those, only what moves along this mesh axis.
        phase: of those, only what belongs to it: "forward", "backward" or "update".

    Raises:
        RequestError: an unknown kind, phase or axis, of which there never is one.
    """
    for called, value, known in (
        ("kind of collective", kind, KINDS),
        ("phase", phase, (None, *PHASES)),
        ("mesh axis", over, (None, *program.step.layout.mesh.axes)),
    ):
        if value not in known:
            raise unknown(called, str(value), [name for name in known if name])
    found = [
        row
        for row in explain(program).rows
        if row.kind == kind
        and (over is None or over in row.axes)
        and (phase is None or row.phase == phase)
    ]
    assert not found, "\n".join(_told(row) for row in found[:_SHOWN])


def assert_peak_under(program: Program, most_bytes: float) -> None:
    """An update's peak of memory on one device is less than so many bytes.

    Raises:
        RequestError: XLA tells nothing of the program's memory.
    """
    held = step_memory(program)
    if held is None:
        raise RequestError("XLA tells nothing of this program's memory: ask for h100 or cpu")
    parts = ", ".join(f"{name} {count / 1e9:.2f} GB" for name, count in held.parts.items() if count)
    assert held.peak_bytes < most_bytes, (
        f"the peak is {held.peak_bytes / 1e9:.2f} GB, not under {most_bytes / 1e9:.2f} GB: {parts}"
    )


def assert_same_traffic(program: Program, record: Mapping[str, Any]) -> None:
    """An update moves by kind and mesh axes what it moved when a record was saved.

    Args:
        program: compiled for the hardware of the record.
        record: from `jaxpar inspect --json`, or an explanation's own.
    """
    now = _sums((row.kind, row.axes, row.bytes) for row in explain(program).rows)
    then = _sums((r["kind"], tuple(r["axes"]), r["bytes"]) for r in record["collectives"])
    changed = [
        f"{kind} over {' x '.join(axes)}: {then.get((kind, axes), 0):,} bytes in the record, "
        f"{now.get((kind, axes), 0):,} now"
        for kind, axes in dict.fromkeys((*then, *now))
        if then.get((kind, axes), 0) != now.get((kind, axes), 0)
    ]
    assert not changed, "\n".join(changed)


def assert_sharded_equals_single(
    layout: Layout, *, make: Callable[[Layout], Step] = make_step, steps: int = 3
) -> None:
    """A layout computes what one device does: loss, gradients, an update and a few steps.

    Args:
        layout: it runs on simulated devices.
        make: makes the step, so that mode, optimizer and microbatches are the project's.
        steps: whole steps after the single update.
    """
    verdict = verify(layout, hardware="cpu", make=make, steps=steps)
    assert verdict.ok, f"{verdict!r}; {verdict.likely_mistake or 'no likely mistake is known'}"


def _sums(
    rows: Iterable[tuple[str, tuple[str, ...], int]],
) -> dict[tuple[str, tuple[str, ...]], int]:
    """(kind, axes) -> bytes."""
    sums: dict[tuple[str, tuple[str, ...]], int] = {}
    for kind, axes, size in rows:
        sums[kind, axes] = sums.get((kind, axes), 0) + size
    return sums


def _told(row: Explained) -> str:
    """A collective for a person who did not expect it."""
    moved = f"{row.kind} of {row.what} in {row.phase}, {row.bytes:,} bytes"
    return f"{row.source}: {moved}: {row.reason}"
