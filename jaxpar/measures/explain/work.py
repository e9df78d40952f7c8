"""Work by module: whose products a step computes, loops counted, recomputation apart.

Counted in the jaxpr of the loss and its gradients, as `jaxpar.measures.work` counts all of them. A
product is of the module of the weight that it multiplies with; one of two activations, of the
weight that they were made with last. A product of backward is of the same line, called from the
same lines, as the forward one that it is the derivative of.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from jax.extend.core import Literal, jaxprs_in_params

from jaxpar.core.jax_compat import open_jaxpr, traced_at
from jaxpar.core.source_lines import is_own
from jaxpar.jaxprs.rules import rule_of
from jaxpar.measures.explain.places import Places
from jaxpar.measures.work import gradients_of, products
from jaxpar.step.record import Step

_OTHER = ""
"""What products that no line of the loss is known for are counted under."""


@dataclass(frozen=True)
class ModuleWork:
    """The work of one module in a step, of the whole batch.

    Attributes:
        module: layers of a stack as `*`; "" for products of no module.
        flops: multiply-adds times two, each product counted once.
        recomputed_flops: of those that rematerialization computes again.
    """

    module: str
    flops: int
    recomputed_flops: int


def work_by_module(step: Step) -> tuple[ModuleWork, ...]:
    """The work of each module of a step, most first; traced, nothing compiled."""
    part, traced = step.asked.microbatch, step.asked.loss
    parts = step.layout.model.batch_size // part.model.batch_size
    modules = _modules_of_lines(step)

    def module_of(eqn: Any) -> str:
        return modules.get(_lines(eqn), _OTHER)

    once, full = (products(jaxpr, by=module_of)[0] for jaxpr in gradients_of(part, traced))
    again: Counter[str] = Counter(full)
    again.subtract(once)
    rows = [
        ModuleWork(module, once[module] * parts, again[module] * parts)
        for module in dict.fromkeys((*once, *again))
    ]
    return tuple(sorted(rows, key=lambda row: (-row.flops, row.module)))


def as_record(rows: tuple[ModuleWork, ...]) -> dict[str, Any]:
    """The work by module as one JSON-ready dict."""
    return {
        "by_module": [asdict(row) for row in rows],
        "per_step": sum(row.flops for row in rows),
        "recomputed_per_step": sum(row.recomputed_flops for row in rows),
    }


def _lines(eqn: Any) -> tuple[tuple[str, int], ...]:
    """Where in a person's code an equation was traced: (code, offset in it), innermost first."""
    return tuple(
        (f"{code.co_filename}:{code.co_firstlineno}", offset)
        for code, offset in traced_at(eqn.source_info.traceback)
        if is_own(code.co_filename)
    )


def _modules_of_lines(step: Step) -> dict[tuple[tuple[str, int], ...], str]:
    """The lines of each product of the loss -> the module that it is of."""
    places, traced = Places(step), step.asked.loss
    jaxpr, _ = open_jaxpr(traced.closed)
    weights = step.layout.parameters
    labels = {
        var: (path in weights, places.module_of(path) if path in weights else "")
        for var, path in zip(jaxpr.invars, traced.arguments, strict=True)
    }
    found: dict[tuple[tuple[str, int], ...], str] = {}
    others: dict[tuple[tuple[str, int], ...], str] = {}
    _walk(jaxpr, labels, found, others)
    return {**others, **found}


def _walk(jaxpr: Any, labels: dict[Any, tuple[bool, str]], found: dict, others: dict) -> None:
    """Note the module of every product, in this jaxpr and those within.

    Args:
        jaxpr: an open one.
        labels: variable -> (whether it is a weight, its module or that it was made with last).
        found: the lines of a product -> its module.
        others: the same of other operations, such as attention, whose products come later.
    """
    for eqn in jaxpr.eqns:
        given = [None if isinstance(v, Literal) else labels.get(v) for v in eqn.invars]
        known = [label for label in given if label is not None and label[1]]
        of_weights = [label for label in known if label[0]]
        module = next((label[1] for label in (*of_weights, *known)), "")
        inner = [open_jaxpr(held)[0] for held in jaxprs_in_params(eqn.params)]
        results: list[tuple[bool, str]] = []
        for held in inner:
            shift = max(0, len(given) - len(held.invars))
            inside = {
                var: label
                for var, label in zip(held.invars, given[shift:], strict=False)
                if label is not None
            }
            _walk(held, inside, found, others)
            results = [inside.get(v, (False, module)) if not isinstance(v, Literal)
                       else (False, module) for v in held.outvars]  # fmt: skip
        (found if rule_of(eqn).flops else others).setdefault(_lines(eqn), module)
        moves = len(known) == len(of_weights) == 1 and not rule_of(eqn).flops
        label = (moves and len(eqn.invars) == 1, module)
        for n, var in enumerate(eqn.outvars):
            labels[var] = (False, results[n][1]) if n < len(results) else label
