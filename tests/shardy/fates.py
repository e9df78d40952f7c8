"""What becomes of every dim of an equation: by our rule, and by Shardy's own.

Shardy prints a rule for each StableHLO operation. An equation may be lowered to several of them, to
calls and to loops; its rule by Shardy is what theirs come to when they are done one after another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import jax

from jaxpar.core.jax_compat import with_shardy_rules
from jaxpar.jaxprs.classes import Classes
from jaxpar.jaxprs.rules import Dims, factors

PASSES, REDUCED, WHOLE, ALONE = "passes", "reduced", "whole", "alone"
"""The fates of a factor: several arrays share it; it is summed, or the like, and in no result; it
cannot be computed a piece at a time; or only one array has it."""

_MARKS = {"reduction": REDUCED, "need_replication": WHOLE, "permutation": WHOLE}
"""A permutation may stay sharded at the price of exchanges that are no part of the operation."""


@dataclass(frozen=True)
class ShardyRule:
    """One operation's rule as Shardy prints it, its factors numbered in the order of their names.

    Attributes:
        operands: of each operand, the factors of each dim, major to minor.
        results: of each result, likewise.
        sizes: of each factor.
        marks: kind of mark ("reduction", "need_replication", "permutation", ...) -> its factors.
    """

    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    sizes: tuple[int, ...]
    marks: dict[str, frozenset[int]]


_NAME = r"[a-z](?:_\d+)?"
_RULE = re.compile(
    r"#sdy\.op_sharding_rule<\((?P<operands>[^()]*)\)->\((?P<results>[^()]*)\)"
    r"(?: \{(?P<sizes>[^{}]*)\})?"
    rf"(?P<marks>(?: \w+=\{{{_NAME}(?:, {_NAME})*\}})*)(?:, custom)?>"
)


def parse(text: str) -> ShardyRule:
    """Read what Shardy prints."""
    found = _RULE.fullmatch(text)
    assert found, f"Shardy prints a rule in a way that this parser does not know: {text}"
    sizes = dict(re.findall(rf"({_NAME})=(\d+)", found["sizes"] or ""))
    number = {name: i for i, name in enumerate(sizes)}

    def numbers(names: str) -> tuple[int, ...]:
        return tuple(number[name] for name in re.findall(_NAME, names))

    def arrays(part: str) -> tuple[Dims, ...]:
        dims = [array.split(", ") if array else [] for array in re.findall(r"\[(.*?)\]", part)]
        return tuple(tuple(map(numbers, array)) for array in dims)

    return ShardyRule(
        operands=arrays(found["operands"]),
        results=arrays(found["results"]),
        sizes=tuple(map(int, sizes.values())),
        marks={
            kind: frozenset(numbers(names))
            for kind, names in re.findall(r"(\w+)=\{(.*?)\}", found["marks"])
        },
    )


@dataclass(frozen=True, order=True)
class Place:
    """Where a factor stands: in which array ("operand 0") and dim, and how far from its minor end.

    `minor` is the product of the sizes of the factors to its right.
    """

    array: str
    dim: int
    minor: int
    size: int

    def __str__(self):
        """Say it for people."""
        return f"{self.array}, dim {self.dim} (factor of {self.size} over {self.minor})"


@dataclass(frozen=True)
class Fate:
    """What becomes of a factor, and every place where it stands."""

    kind: str
    places: frozenset[Place]


class Relation:
    """Dims written as classes that may be marked; related step by step, then read off by place."""

    def __init__(self):
        """Start with nothing related."""
        self.classes = Classes()
        self.marks: list[tuple[int, str]] = []

    def add(self, rule, marks, arrays) -> None:
        """Relate arrays, given as their dims.

        Args:
            rule: a record with `operands`, `results` and `sizes`.
            marks: factor -> REDUCED or WHOLE.
            arrays: the dims of each operand, then of each result.
        """
        node = [self.classes.new(size) for size in rule.sizes]
        self.marks += [(node[f], kind) for f, kind in marks.items()]
        resized: dict[tuple[int, int], Any] = {}
        for factors_of_dims, dims in zip((*rule.operands, *rule.results), arrays, strict=True):
            for fs, dim in zip(factors_of_dims, dims, strict=True):
                fs = [f for f in fs if rule.sizes[f] != 1]
                written = [node[f] for f in fs]
                size, said = self.size(dim), prod(rule.sizes[f] for f in fs)
                if size != said and fs:
                    # The innermost factor has another size here: a slice is cut from it, or a
                    # window slides over it. It is another dim, that is marked as the factor is.
                    own = size * rule.sizes[fs[-1]] // said
                    dim_of_own = resized.setdefault((fs[-1], own), self.classes.dim(own))
                    self.marks += [(n, marks[fs[-1]]) for n in dim_of_own if fs[-1] in marks]
                    written[-1:] = dim_of_own
                if written:
                    assert self.classes.unify(written, dim), f"{rule}: dims of sizes {arrays}"

    def size(self, dim) -> int:
        """The size of a dim."""
        return prod(map(self.classes.size, dim))

    def join(self, one, other) -> None:
        """Arrays in one list are those in the other, dim by dim."""
        for a, b in zip(one, other, strict=True):
            for dim, same in zip(a, b, strict=True):
                assert self.classes.unify(dim, same)

    def fates(self, operands, results) -> dict[Place, Fate]:
        """The fate of each factor above 1 of these arrays, by where it stands."""
        kinds: dict[int, set[str]] = {}
        for node, kind in self.marks:
            for leaf in self.classes.resolve([node]):
                kinds.setdefault(leaf, set()).add(kind)
        places: dict[int, set[Place]] = {}
        for side, arrays in (("operand", operands), ("result", results)):
            for index, dims in enumerate(arrays):
                for d, dim in enumerate(dims):
                    minor = self.size(dim)
                    for leaf in self.classes.resolve(dim):
                        size = self.classes.size(leaf)
                        minor //= size
                        found = Place(f"{side} {index}", d, minor, size)
                        places.setdefault(leaf, set()).add(found)
        return {
            place: Fate(_kind(kinds.get(leaf, set()), found), frozenset(found))
            for leaf, found in places.items()
            for place in found
        }


def _kind(marks: set[str], places: set[Place]) -> str:
    in_result = any(place.array.startswith("result") for place in places)
    # What is summed over and is in a result all the same came together on the way.
    if WHOLE in marks or (REDUCED in marks and in_result):
        return WHOLE
    return REDUCED if REDUCED in marks else PASSES if len(places) > 1 else ALONE


def our_fates(eqn) -> dict[Place, Fate]:
    """The fates by the tables of `jaxpar.jaxprs.rules`."""
    rule, relation = factors(eqn), Relation()
    shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
    # Of a scalar beside arrays a rule names no dims.
    arrays = [
        relation.classes.dims(shape) if dims else []
        for shape, dims in zip(shapes, (*rule.operands, *rule.results), strict=True)
    ]
    marks = {f: REDUCED for f, _ in rule.reduced} | dict.fromkeys(rule.whole, WHOLE)
    relation.add(rule, marks, arrays)
    return relation.fates(arrays[: len(eqn.invars)], arrays[len(eqn.invars) :])


class Silent(Exception):
    """Shardy has no rule for an operation, the name of which is the message."""


def shardys_fates(eqn) -> dict[Place, Fate]:
    """The fates by Shardy's rules for the operations that the equation alone is lowered to.

    Raises:
        Silent: it has none for one of them.
    """

    def alone(*operands):
        return eqn.primitive.bind(*operands, **eqn.params)

    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    lowered = jax.jit(alone, keep_unused=True).lower(*avals)
    try:
        return _Walk(with_shardy_rules(lowered)).main(avals)
    except Silent as silent:
        if not str(silent).startswith("chlo."):
            raise
        return _Walk(with_shardy_rules(lowered, expanded=True)).main(avals)


class _Walk(Relation):
    """The operations of a module, one after another, each by its rule."""

    def __init__(self, module):
        super().__init__()
        self.module = module  # its blocks live as long as it does
        self.functions = dict(self._functions())

    def _functions(self) -> Iterator:
        for op in self.module.body:
            if op.operation.name == "func.func":
                yield op.attributes["sym_name"].value, op.regions[0].blocks[0]

    def main(self, avals) -> dict[Place, Fate]:
        """The fates in the module's main function."""
        operands = [self.classes.dims(aval.shape) for aval in avals]
        return self.fates(operands, self.block(self.functions["main"], operands, {}))

    def block(self, block, operands, outer):
        """The dims of what a block returns, given those of its arguments and of what is around."""
        known = {**outer, **dict(zip(block.arguments, operands, strict=True))}
        for op in block.operations:
            reads = [known[value] for value in op.operands]
            if op.operation.name.endswith(".return"):
                return reads
            known |= zip(op.results, self.operation(op, reads, known), strict=True)
        raise AssertionError("a block that does not return")

    def operation(self, op, reads, known):
        """The dims of an operation's results, given those of its operands."""
        name, attributes = op.operation.name, op.attributes
        if name == "func.call":
            return self.block(self.functions[attributes["callee"].value], reads, {})
        makes = [self.classes.dims(value.type.shape) for value in op.results]
        if "sdy.sharding_rule" in attributes:
            rule = parse(str(attributes["sdy.sharding_rule"]))
            marks = {
                f: _MARKS[kind] for kind, fs in rule.marks.items() for f in fs if kind in _MARKS
            }
            self.add(rule, marks, [*reads, *makes])
        elif name == "stablehlo.while":
            condition, body = (region.blocks[0] for region in op.regions)
            marks = len(self.marks)
            self.block(condition, reads, known)
            del self.marks[marks:]  # how long a loop runs moves none of its arrays
            self.join(self.block(body, reads, known), reads)
            self.join(reads, makes)
        elif name in ("stablehlo.case", "stablehlo.if"):
            for region in op.regions:
                self.join(self.block(region.blocks[0], [], known), makes)
        elif name == "stablehlo.optimization_barrier":
            self.join(reads, makes)
        elif any(reads):
            raise Silent(name)
        return makes
