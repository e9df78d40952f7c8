"""How a layout scales: the same one on more and more devices, each compiled and predicted.

Strong scaling keeps the batch, weak scaling the rows of a device. One axis of the mesh grows: the
replicas where there are any, else `data`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxpar.case import Case
from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import MOST_DEVICES, MeshShape
from jaxpar.report.notebook import notebook_html
from jaxpar.search.compiled import compile_all
from jaxpar.strategies.record import REPLICA

SHOWS = 0.1
"""From this share of a step on, exposed communication is said to show."""

WEAK, STRONG = "weak", "strong"


@dataclass(frozen=True)
class Point:
    """One size.

    Attributes:
        way: WEAK or STRONG.
        devices, mesh, batch: of it.
        prediction: the record of `jaxpar.predict`, or {"refusal": why}.
    """

    way: str
    devices: int
    mesh: str
    batch: int
    prediction: Mapping[str, Any]

    @property
    def rows_per_second(self) -> float:
        """Rows a second of all devices; 0 where there is no program."""
        return self.prediction.get("rows_per_second", 0.0)


@dataclass(frozen=True)
class Scaling:
    """The same layout on more and more devices, the fewest first.

    Attributes:
        points: of weak scaling, then of strong.
    """

    points: tuple[Point, ...]

    def __repr__(self) -> str:
        sizes = [point.devices for point in self.points]
        return f"<Scaling on {min(sizes)} to {max(sizes)} devices: {len(self.points)} points>"

    def _repr_html_(self) -> str:
        return notebook_html({"kind": "scale", **self.record()})

    def of(self, way: str) -> tuple[Point, ...]:
        """The points of one way."""
        return tuple(point for point in self.points if point.way == way)

    def efficiency(self, point: Point) -> float | None:
        """Its rows a second and device, as a share of those of the fewest devices of its way."""
        first = next((one for one in self.of(point.way) if one.rows_per_second), None)
        if first is None or not point.rows_per_second:
            return None
        return (point.rows_per_second / point.devices) / (first.rows_per_second / first.devices)

    def turning_points(self) -> Iterator[str]:
        """Sentences: from how many devices on communication shows, and efficiency is lost."""
        for way in (WEAK, STRONG):
            known = [one for one in self.of(way) if one.rows_per_second]
            shows = [
                one for one in known
                if one.prediction["exposed_seconds"] > SHOWS * one.prediction["step_seconds"]
            ]  # fmt: skip
            if shows:
                yield (
                    f"{way} scaling: from {shows[0].devices} devices on collectives that nothing "
                    f"hides take more than {SHOWS:.0%} of a step"
                )
            for share in (0.9, 0.5):
                below = [one for one in known if (self.efficiency(one) or 1.0) < share]
                if below:
                    yield f"{way} scaling: below {share:.0%} from {below[0].devices} devices on"
            out = next((o for o in self.of(way) if o.prediction.get("fits") is False), None)
            if out is not None:
                yield f"{way} scaling: it does not fit on {out.devices} devices"

    def record(self) -> dict[str, Any]:
        """The study as one JSON-ready dict."""
        return {
            "points": [
                {
                    "way": one.way, "devices": one.devices, "mesh": one.mesh, "batch": one.batch,
                    "efficiency": self.efficiency(one), **one.prediction,
                }
                for one in self.points
            ],
            "turning_points": list(self.turning_points()),
        }  # fmt: skip


def scaling(
    question: Case,
    *,
    least: int,
    most: int,
    workers: int | None = None,
    watch: Callable[[Point], None] | None = None,
) -> Scaling:
    """Predict a layout on `least`, twice as many, ... up to `most` devices.

    Args:
        question: the layout on the fewest devices; its batch is that of the fewest in weak scaling
            and of all in strong scaling.
        least, most: devices.
        workers: processes that compile; as many as there are cores when None.
        watch: told each point as it is known.

    Raises:
        RequestError: numbers of devices that make no sense, or a layout that cannot be made.
    """
    if not 1 <= least <= most <= MOST_DEVICES:
        raise RequestError(
            f"devices {least}..{most}: use a range from 1 to {MOST_DEVICES:,}, such as 8..1024"
        )
    mesh = question.mesh or f"data={least}"
    if MeshShape.parse(mesh).devices != least:
        raise RequestError(
            f"mesh {mesh} has {MeshShape.parse(mesh).devices} devices, and the study begins with "
            f"{least}: say the mesh of the fewest"
        )
    first = replace(question, mesh=mesh).resolve()
    rows = first.layout.model.batch_size
    axis = REPLICA if REPLICA in question.strategy.split("+") else "data"
    sizes = [least * 2**n for n in range(64) if least * 2**n <= most]
    plans = [
        Point(way, size, _grown(mesh, axis, size // least),
              rows * (size // least if way == WEAK else 1), {})
        for way in (WEAK, STRONG)
        for size in sizes
    ]  # fmt: skip
    # The first point is the same both ways.
    asked = list(dict.fromkeys((one.mesh, one.batch) for one in plans))
    cases = [_words(question, *one) for one in asked]
    known: dict[tuple[str, int], Mapping[str, Any]] = {}
    for number, found in compile_all(
        cases, until=time.monotonic() + 24 * 3600, workers=workers or os.cpu_count() or 1
    ):
        known[asked[number]] = found
        if watch is not None:
            like = next(one for one in plans if (one.mesh, one.batch) == asked[number])
            watch(replace(like, prediction=found))
    return Scaling(tuple(replace(p, prediction=known[p.mesh, p.batch]) for p in plans))


def _grown(mesh: str, axis: str, times: int) -> str:
    """A mesh with one axis so many times as large."""
    sizes = dict(MeshShape.parse(mesh).sizes)
    sizes[axis] = sizes.get(axis, 1) * times
    return str(MeshShape(**sizes))


def _words(question: Case, mesh: str, batch: int) -> dict[str, Any]:
    """A case as a worker takes it."""
    return {
        "model": question.model, "strategy": question.strategy, "mesh": mesh,
        "hardware": question.hardware, "mode": question.mode,
        "set": {**question.set, "batch": batch},
    }  # fmt: skip
