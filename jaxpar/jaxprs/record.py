"""What a walk through a model's jaxpr writes down: where every dim is, and what is done with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxpar.jaxprs.classes import Classes, Dim
from jaxpar.jaxprs.rules import is_cast, rule_of

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
class Facts:
    """What an array was made from.

    Attributes:
        weight: something learned went into it.
        other: something of the batch, or something drawn, went into it.
        field: the field of the batch whose integers it holds, or None.
        count: how many numbers it counts, if it is 0, 1, 2, ... along one of its dims.
        path: of the weight that it is, cast perhaps, but neither cut nor reshaped; or None.
    """

    weight: bool = False
    other: bool = False
    field: str | None = None
    count: int | None = None
    path: str | None = None

    @property
    def is_weight(self) -> bool:
        """Whether it is a weight, perhaps reshaped, cast or masked."""
        return self.weight and not self.other

    @property
    def kind(self) -> tuple[bool, bool]:
        """(is a weight, anything learned went in)."""
        return self.is_weight, self.weight

    @classmethod
    def mixed(cls, facts: Sequence[Facts]) -> Facts:
        """The facts of an array that may have been made from all of these."""
        return cls(any(f.weight for f in facts), any(f.other for f in facts))

    @classmethod
    def made_from(cls, facts: Sequence[Facts], eqn: Any) -> Facts:
        """The facts of what an equation makes."""
        made = cls.mixed(facts)
        if eqn.primitive.name == "iota":
            return cls(count=eqn.params["shape"][eqn.params["dimension"]])
        if is_cast(eqn):
            return facts[0]
        if not rule_of(eqn).keeps_ids:
            return made
        fields = {f.field for f in facts if f.field}
        counts = {f.count for f in facts if f.count}
        return replace(
            made,
            field=fields.pop() if len(fields) == 1 else None,
            count=counts.pop() if len(counts) == 1 and not fields else None,
        )


@dataclass(frozen=True)
class Operand:
    """One operand of a use: its dims, its bytes, and what it was made from."""

    dims: tuple[Dim, ...]
    bytes: int
    is_weight: bool
    is_learned: bool


@dataclass(frozen=True)
class Use:
    """One thing that an equation does with classes of dims.

    Attributes:
        kind: "contract", "reduce", "lookup" (by ids of the batch), "place" (by other numbers),
            "whole" or "stretch".
        dims: what it is done with: contracted, reduced, indexed, kept whole or new.
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
        below: integer field of the batch -> how many ids there are.
    """

    classes: Classes
    scope: Scope
    arguments: Mapping[str, tuple[Dim, ...]]
    uses: tuple[Use, ...]
    unknown: Mapping[str, Any]
    stacked: tuple[Dim, ...]
    turned: tuple[Dim, ...]
    below: Mapping[str, int]
