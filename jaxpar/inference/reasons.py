"""Why a dim stays replicated that looks like one to shard: a sentence, and the model's line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxpar.core.source_lines import line_of
from jaxpar.jaxprs.record import Trace


def lines_of_weights(trace: Trace) -> dict[str, str]:
    """Path of a weight -> the line that first reads all of it, by a product if one does."""
    found: dict[str, str] = {}
    for use in sorted(trace.uses, key=lambda use: use.kind != "contract"):
        for operand in use.operands:
            if operand.path and operand.path not in found and use.where is not None:
                found[operand.path] = line_of(use.where)
    return found


def twice(path: str, read_at: Mapping[str, str]) -> tuple[str, str]:
    """Why a dim is not sharded that a weight has twice, as a recurrent one has."""
    if path not in read_at:
        return "twice in one array", f"'{path}'"
    reason = "one matrix reads and makes the same width, and would gather it for each product"
    return reason, f"'{path}'"


def located(where: Any, paths: Sequence[str], read_at: Mapping[str, str]) -> Any:
    """Where a reason holds, with a line of the model that reads one of these weights.

    What JAX knows of a line is handed on; of words the weight that they name is looked up first.
    """
    if where is not None and not isinstance(where, str):
        return where
    named = sorted(paths, key=lambda path: f"'{path}'" not in (where or ""))
    lines = [read_at[path] for path in named if read_at.get(path)]
    return ", ".join(filter(None, (where, *lines[:1])))
