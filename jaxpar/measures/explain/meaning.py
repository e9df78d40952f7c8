"""What a collective moves, in which phase of a step, of which module, asked for by which line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxpar.core.scopes import BACK, BOTH, ONWARD, is_to_all, way_of, weight_in
from jaxpar.core.source_lines import own_file
from jaxpar.hlo.frames import Frame
from jaxpar.measures.explain.asked import Asked, parameter_of
from jaxpar.measures.explain.lines import first_lines
from jaxpar.measures.explain.places import BATCH, MODEL, OPTIMIZER, OTHER, PARAMETERS, Places
from jaxpar.measures.explain.record import BACKWARD, FORWARD, UPDATE
from jaxpar.step import make_step, optimization, updated

WEIGHT, GRADIENT, NEW, STATE, STATISTIC, FIELD, SCALAR, ACTIVATION, COTANGENT, OPTIMIZERS = (
    "weight",
    "gradient",
    "new value",
    "optimizer state",
    "model state",
    "batch field",
    "loss and metrics",
    "activation",
    "gradient of an activation",
    "value of the optimizer",
)
"""What a collective may move."""

MESSAGES = "activation, and gradient of an activation"
"""What stages of a pipeline hand to their neighbours, some the one and some the other."""

_WAYS = {ONWARD: ACTIVATION, BACK: COTANGENT, BOTH: MESSAGES}

_OPTIMIZERS = tuple(module.__file__ for module in (optimization, updated))


@dataclass(frozen=True)
class Meaning:
    """What a collective moves.

    Attributes:
        is_a: WEIGHT, GRADIENT, NEW, STATE, STATISTIC, FIELD, SCALAR, ACTIVATION, COTANGENT or
            MESSAGES.
        path: of the parameter or other array; "" for an activation.
        phase, recomputed, module, source: as `Explained` has them.
    """

    is_a: str
    path: str
    phase: str
    recomputed: bool
    module: str
    source: str

    def what(self, places: Places) -> str:
        """It in words, "gradient of blocks/up"."""
        path = (
            places.called(self.path) if self.is_a in (WEIGHT, GRADIENT, NEW, STATE) else self.path
        )
        if not path:
            return self.is_a
        return (
            f"{self.is_a} {path}"
            if self.is_a in (WEIGHT, FIELD, STATISTIC)
            else (f"{self.is_a} of {path}")
        )


class Meanings:
    """Tells the meaning of the collectives of a step."""

    def __init__(self, places: Places):
        self.places = places

    @cached_property
    def _lines(self):
        """(path -> the line that uses it first, the line of the stack of layers)."""
        return first_lines(self.places.step.asked.loss)

    def of(self, one: Asked) -> Meaning:
        """What a collective of the partitioned module moves."""
        phase, recomputed = phase_of(one)
        is_a, path = self._what(one, FORWARD if recomputed else phase)
        owner = path if is_a in (WEIGHT, GRADIENT, NEW, STATE) else ""
        if is_a in (GRADIENT, COTANGENT, MESSAGES):
            phase = BACKWARD
        elif way_of(one.name):
            phase = FORWARD
        elif is_a in (NEW, STATE, OPTIMIZERS):
            phase = UPDATE
        module = self.places.module_of(owner or one.nearest)
        return Meaning(is_a, path, phase, recomputed, module, self._source(one, owner))

    def _what(self, one: Asked, phase: str) -> tuple[str, str]:
        """(what it is, the path of it)."""
        if way := way_of(one.name):
            return _WAYS[way], ""
        if path := weight_in(one.name):
            is_back = one.kind in ("all-reduce", "reduce-scatter") and phase == BACKWARD
            return (GRADIENT if is_back else WEIGHT), path
        origins = one.ends.origins
        groups = {place.group for place in origins}
        if groups == {PARAMETERS}:
            return WEIGHT, parameter_of(origins)
        if groups == {OPTIMIZER}:
            return STATE, parameter_of(origins)
        if groups == {BATCH}:
            return FIELD, next(iter(origins)).path
        results = one.ends.results
        groups = {place.group for place in results}
        path = parameter_of(results)
        if groups == {PARAMETERS} and path and one.kind == "all-gather":
            return NEW, path
        if groups & {PARAMETERS, OPTIMIZER} and path:
            return (OPTIMIZERS if phase == UPDATE else GRADIENT), path
        if groups & {PARAMETERS, OPTIMIZER}:
            return (OPTIMIZERS if phase == UPDATE else GRADIENT), ""
        if groups == {MODEL}:
            return STATISTIC, next(iter(results)).path
        if groups == {OTHER}:
            return SCALAR, ""
        if phase == UPDATE:
            return OPTIMIZERS, one.nearest
        return (COTANGENT if phase == BACKWARD else ACTIVATION), ""

    def _source(self, one: Asked, owner: str) -> str:
        """The person's line that asked for it, or that uses first the weight that it is of."""
        lines, loop = self._lines
        frames = one.part.frames or one.part.collective.frames
        own = line_among(frames)
        if own and not (owner and owner in lines and is_loop(own, loop)):
            return own
        return lines.get(owner) or own or lines.get(one.nearest) or loop


def is_loop(line: str, loop: str) -> bool:
    """Whether a line is only that of the stack of layers, which gathers every weight in it."""
    return line == loop


def line_among(frames: Sequence[Frame]) -> str:
    """The person's line among stack frames, innermost first, as "file:line"; "" for none."""
    frame = frame_among(frames)
    return "" if frame is None else f"{frame.file}:{frame.line}"


def frame_among(frames: Sequence[Frame]) -> Frame | None:
    """The frame of that line; None for none."""
    at = own_file(frame.file for frame in frames)
    return None if at is None else frames[at]


def phase_of(one: Asked) -> tuple[str, bool]:
    """(the phase of a step that a collective belongs to, whether it is computed again there)."""
    if is_to_all(one.name):
        return FORWARD, False
    phase, recomputed = phase_of_name(one.name)
    if phase != UPDATE:
        return phase, recomputed
    frames = one.part.frames or one.part.collective.frames
    if any(f.file in _OPTIMIZERS for f in frames) or any(
        f.file == make_step.__file__ and f.function.endswith("apply") for f in frames
    ):
        return UPDATE, False
    return (BACKWARD if one.is_transposed else FORWARD), False


def phase_of_name(name: str) -> tuple[str, bool]:
    """(the phase that an operation's name tells, whether it is computed again there).

    >>> phase_of_name("jit(update)/transpose(jvp())/rematted_computation/dot_general")
    ('backward', True)
    """
    recomputed = "rematted_computation" in name
    if recomputed or "transpose(" in name:
        return BACKWARD, recomputed
    return (FORWARD if "jvp(" in name else UPDATE), False
