"""Partial sums of a partitioned program, followed from where they arise to where they are reduced.

What a device holds is followed through the whole module, per mesh axis: the same on all devices,
sharded along a dim, or a partial sum. Told is what is certain: a partial sum that is used by an
operation that is not linear, added to what is whole, or handed out of the program; and a sum over
devices of what is already summed, or of what all of them have alike while another axis's partial
sum is left.

Out of reach, and so never told: what comes through an operation without a rule (sorts, triangular
solves, custom calls but products, windows), of a halo or a ragged exchange, of collectives over
parts of an axis, of devices that take different branches, and whether what is summed is weighted
as it should be. The module right after partitioning is best read: fusions and library calls hide
more of a finished one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from jaxpar.hlo.collectives import Collective, axes_of, collectives, spans_whole_axes
from jaxpar.hlo.contractions import numbers, resized, shape_of
from jaxpar.hlo.device_numbers import number_on_each, own_shard
from jaxpar.hlo.fault import Fault
from jaxpar.hlo.flow import hands_on_each, index_of
from jaxpar.hlo.held import Held, differing, either, gathered_over, not_followed, vague
from jaxpar.hlo.misuse import Misuses
from jaxpar.hlo.parse import Computation, Instruction, Module
from jaxpar.hlo.shardings import sharded_over, varying_over
from jaxpar.hlo.transfer import rule_of
from jaxpar.hlo.values import Factor, Value, axes_of_dim, carried, plain, unknown

Named = Callable[[Instruction], tuple[Factor, ...] | None]
"""An argument of the program -> its dims, where they are known otherwise than by the text."""

_EXCHANGES = ("collective-permute", "all-to-all", "ragged-all-to-all")
"""Collectives by which devices hand arrays on to each other."""

_ZERO = re.compile(r"-?0(?:\.0*)?")
_MOST_PASSES = 200
"""So often an instruction is followed, on the average, before the rest is let go."""

_MOST_TURNS = 8
"""After so many turns a loop's carry that still changes is not followed."""


class Sums:
    """What is known of every value of a module.

    Attributes:
        held: (computation, instruction) -> what is known of its result.
        faults: what is certainly wrong.
    """

    def __init__(self, module: Module, axis_sizes: Mapping[str, int], named: Named | None = None):
        """Follow every value from the program's arguments.

        Args:
            module: right after partitioning.
            axis_sizes: the mesh, outermost axis first.
            named: tells the dims of an argument, their names and how they are sharded; modules of
                JAX 0.11 and 0.12 say nothing of it themselves.
        """
        self.module, self.axis_sizes = module, dict(axis_sizes)
        self.named: Named = named or (lambda _: None)
        self.collectives = {(c.computation, c.name): c for c in collectives(module)}
        self.held: dict[tuple[str, str], Held] = {}
        self._numbers: dict[tuple[str, str], np.ndarray] = {}
        exchanges = [c for c in self.collectives.values() if c.kind in _EXCHANGES]
        exchanged = frozenset(a for c in exchanges for a in axes_of(c, self.axis_sizes))
        self._misuses = Misuses(module, exchanged)
        count = sum(len(c.instructions) for c in module.computations.values())
        self._left = _MOST_PASSES * count  # instructions that may still be followed
        self._anything = plain((), differs=frozenset(self.axis_sizes))
        entry = module.computations[module.entry]
        result = self._computation(entry, None)
        if isinstance(result, tuple):
            for number, value in enumerate(result):
                if isinstance(value, Value):
                    self._misuses.of_result(entry, number, value)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is certainly wrong, in the order in which it is met."""
        return tuple(self._misuses.found.values())

    def operand(self, one: Collective, number: int = 0) -> Value | None:
        """What is known of an operand of a collective."""
        value = self.held.get((one.computation, one.operands[number]))
        return value if isinstance(value, Value) else None

    def _computation(self, where: Computation, given: Sequence[Held] | None) -> Held:
        """What a computation returns, given its arguments; None where it is the program's own."""
        self._left -= len(where.instructions)
        if self._left < 0:
            return not_followed(where.root, [self._anything])
        for i in where.instructions:
            self.held[where.name, i.name] = self._result(where, i, given)
        return self.held[where.name, where.root.name]

    def _result(self, where: Computation, i: Instruction, given: Sequence[Held] | None) -> Held:
        """What is known of an instruction's result."""
        if i.opcode == "parameter":
            number = int(i.arguments)
            if given is None:
                return self._argument(i)
            inside = number < len(given)
            return given[number] if inside else not_followed(i, [self._anything])
        operands = [self.held[where.name, name] for name in i.operands]
        if i.opcode == "tuple":
            # Of a tuple within a tuple nothing is claimed.
            return tuple(o if isinstance(o, Value) else self._anything for o in operands)
        if i.opcode == "get-tuple-element":
            source, at = operands[0], index_of(i)
            inside = isinstance(source, tuple) and at < len(source)
            return source[at] if inside and isinstance(source, tuple) else not_followed(i, operands)
        if i.opcode in ("while", "conditional", "call", "fusion") and i.calls:
            return self._control(i, operands)
        if one := self.collectives.get((where.name, i.name)):
            return self._collective(where, i, one, operands)
        if (axes := self._differs(where, i)) is not None:
            # A number may be the same on all devices though its operands are not, as n - n is.
            return plain(shape_of(i), differs=axes, own=axes, is_zero=self._is_zero(where, i))
        if i.opcode in ("constant", "iota", "partition-id"):
            return self._made(i)
        values = [v for v in operands if isinstance(v, Value)]
        if len(values) < len(operands):
            return operands[0] if i.opcode in ("opt-barrier", "copy") else not_followed(i, operands)
        return self._computed(where, i, values)

    def _argument(self, i: Instruction) -> Value:
        """What is known of an argument of the program."""
        shape = shape_of(i)
        if (dims := self.named(i)) is not None:
            return Value(tuple((factor,) for factor in dims))
        over = sharded_over(i.attributes, len(shape), self.axis_sizes)
        if over is None:
            return plain(shape, differs=frozenset(self.axis_sizes))
        return Value(tuple((Factor("", n, axes),) for n, axes in zip(shape, over, strict=True)))

    def _made(self, i: Instruction) -> Value:
        """What is known of a constant, a count, or a device's own number."""
        if i.opcode == "partition-id":
            return self._anything
        return plain(shape_of(i), is_zero=bool(_ZERO.fullmatch(i.arguments)))

    def _control(self, i: Instruction, operands: Sequence[Held]) -> Held:
        """What is known of the result of a loop, a branch or a call."""
        called = {role: self.module.computations[name] for role, name in i.calls}
        if i.opcode == "while":
            return self._loop(called, operands[0])
        if i.opcode == "conditional":
            branches = [
                self._computation(self.module.computations[name], [given])
                for (_, name), given in zip(i.calls, operands[1:], strict=True)
            ]
            result = branches[0]
            for other in branches[1:]:
                result = either(result, other)
            chosen = operands[0]
            return differing(result, chosen.varies if isinstance(chosen, Value) else frozenset())
        return self._computation(next(iter(called.values())), operands)

    def _loop(self, called: Mapping[str, Computation], carry: Held) -> Held:
        """What is known of a loop's carry in every turn."""
        for _ in range(_MOST_TURNS):
            before = dict(self._misuses.found)
            after = either(carry, self._computation(called["body"], [carry]), carried)
            if after == carry:
                break
            self._misuses.found = before  # of a carry that holds less than was thought
            carry = after
        else:
            carry = vague(carry, self.axis_sizes)
            self._computation(called["body"], [carry])
        self._computation(called["condition"], [carry])
        return carry

    def _computed(self, where: Computation, i: Instruction, values: list[Value]) -> Held:
        """What is known of the result of an operation of arrays."""
        at, reducer = (where.name, i.name), self._reducer(i)
        rule = rule_of(i)
        single = len(i.shapes) == 1
        if rule is None or not single:
            return not_followed(i, values)
        try:
            result = rule(i, values, at, reducer)
        except (IndexError, ValueError):  # of dims that its operands do not have
            return not_followed(i, values)
        self._misuses.of_operation(i, values)
        return self._sharded_by(where, i, result) if i.opcode == "dynamic-slice" else result

    def _differs(self, where: Computation, i: Instruction) -> frozenset[str] | None:
        """The axes along which an integer differs; None where it is not known on each device."""
        devices = self.module.partitions
        given = [self._numbers.get((where.name, name)) for name in i.operands]
        row = number_on_each(i, given, devices)
        if row is None:
            return None
        self._numbers[where.name, i.name] = row
        is_table = prod(shape_of(i)) != 1
        if is_table or len(row) != prod(self.axis_sizes.values()) or devices != len(row):
            return None
        return varying_over(row, self.axis_sizes)

    def _is_zero(self, where: Computation, i: Instruction) -> bool:
        """Whether an integer that is known on each device is 0 on all of them."""
        return not self._numbers[where.name, i.name].any()

    def _sharded_by(self, where: Computation, i: Instruction, value: Value) -> Value:
        """A slice, its dims sharded where each device takes its own shard of them."""
        dims = list(value.dims)
        whole = where.by_name[i.operands[0]].shapes[0][1]
        for n, name in enumerate(i.operands[1:]):
            starts, size = self._numbers.get((where.name, name)), shape_of(i)[n]
            if starts is None or len(starts) != self.module.partitions:
                continue
            if axes := own_shard(starts, size, whole[n], self.axis_sizes):
                before = self.held[where.name, i.operands[0]]
                was = axes_of_dim(before.dims[n]) if isinstance(before, Value) else axes
                sure = not was and len(dims[n]) == 1
                dims[n] = (replace(dims[n][0], axes=was | axes, is_sure=sure), *dims[n][1:])
        return replace(value, dims=tuple(dims))

    def _reducer(self, i: Instruction) -> str:
        """What the computation does that an operation applies; "" for none."""
        name = next((name for role, name in i.calls if role == "to_apply"), "")
        return self.module.computations[name].root.opcode if name else ""

    def _collective(
        self, where: Computation, i: Instruction, one: Collective, operands: Sequence[Held]
    ) -> Held:
        """What is known of the result of a collective."""
        values = [v for v in operands if isinstance(v, Value)]
        if not spans_whole_axes(one, self.axis_sizes) or len(values) < len(operands):
            return not_followed(i, operands)
        axes = frozenset(axes_of(one, self.axis_sizes))
        by = self._reducer(i)
        made = []
        for value, shape in zip(values, i.shapes, strict=False):
            if one.kind in ("all-reduce", "reduce-scatter"):
                made.append(self._reduced(where, i, value, axes, by, shape[1]))
            elif one.kind == "all-gather":
                made.append(gathered_over(value, axes, shape[1]))
            elif one.kind == "collective-permute":
                made.append(value)
            else:
                made.append(unknown(shape[1], [value]))
        combined = hands_on_each(i) and len(i.operands) > 1
        return tuple(made) if combined else made[0] if made else not_followed(i, operands)

    def _reduced(self, where, i: Instruction, value: Value, axes, by: str, shape) -> Value:
        """What is known of a value reduced over devices."""
        if by == "add":
            self._misuses.of_reduction(i, value, axes)
        partial = frozenset(p for p in value.partial if p.axis not in axes)
        mixed = frozenset() if by == "add" else frozenset(p.axis for p in partial)
        kept = tuple(tuple(replace(f, axes=f.axes - axes) for f in dim) for dim in value.dims)
        over = numbers(i, "dimensions") if i.opcode.startswith("reduce-scatter") else ()
        dims = tuple(
            (replace(resized(d, n)[0], axes=axes_of_dim(d) | axes),) if k in over else d
            for k, (d, n) in enumerate(zip(kept, shape, strict=True))
        )
        # A reduce-scatter leaves it sharded, and a sum over devices all the same.
        done = frozenset(p.axis for p in value.partial if p.is_sum) & axes
        return Value(
            dims,
            partial - frozenset(p for p in partial if p.axis in mixed),
            (value.differs - axes) | mixed,
            (value.reduced | done) if by == "add" and not over else frozenset(),
        )
