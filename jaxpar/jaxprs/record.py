"""What a walk through a model's jaxpr writes down: where every dim is, and what is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxpar.jaxprs.classes import Classes, Dim

FIELD = "batch/"
"""What stands before a field's name where it is named beside variables."""


@dataclass
class Scope:
    """The dims of the variables of one jaxpr, as it was reached.

    Attributes:
        dims: variable -> one `Dim` for each of its dims.
        inner: index of an equation -> the scopes of the jaxprs in it, in their order.
        weights: the variables that are weights, perhaps reshaped or cast -> the weight's path if
            it is the whole weight as it is stored, perhaps cast; else None.
    """

    dims: dict[Any, list[Dim]] = field(default_factory=dict)
    inner: dict[int, list[Scope]] = field(default_factory=dict)
    weights: dict[Any, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Operand:
    """One operand of a use: its dims, its bytes, what it was made from, and its path if it is a
    whole weight."""

    dims: tuple[Dim, ...]
    bytes: int
    is_weight: bool
    is_learned: bool
    path: str | None = None


@dataclass(frozen=True)
class Use:
    """One thing that an equation does with classes of dims.

    Attributes:
        kind: "contract", "reduce", "lookup" (by ids), "match" (ids with all there are), "place" (by
            other numbers), "whole" or "stretch".
        dims: what it is done with: contracted, reduced, indexed, matched, kept whole or new.
        operands, result: what goes in and comes out.
        flops: multiply-adds times two, of a contraction.
        times: how often it runs in one forward pass.
        primitive, where: what it is, and what JAX knows of the line that asked for it.
        key: the variables that it reads.
    """

    kind: str
    dims: tuple[Dim, ...]
    operands: tuple[Operand, ...]
    result: Operand
    flops: int
    times: int
    primitive: str
    where: Any
    key: Any = None


@dataclass(frozen=True)
class Trace:
    """What a walk through a loss has found.

    Attributes:
        classes: the union-find that every `Dim` here is written in.
        scope: of the outermost jaxpr.
        arguments: path -> one `Dim` a dim, of every array the loss was given.
        uses: what was done, in order.
        unknown: primitives without a rule, whose dims were left unrelated, and where they stand.
        stacked, turned: the dims along which a loop takes weights, or activations, apart.
        below: field of ids of the batch -> how many there are in the smallest and the largest of
            what they pick from.
    """

    classes: Classes
    scope: Scope
    arguments: Mapping[str, tuple[Dim, ...]]
    uses: tuple[Use, ...]
    unknown: Mapping[str, Any]
    stacked: tuple[Dim, ...]
    turned: tuple[Dim, ...]
    below: Mapping[str, tuple[int, int]]
