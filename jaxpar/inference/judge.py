"""The judge: which role each class of dims has, from how the loss uses it.

Tensor parallelism pairs matrices: a width that one matrix makes and another contracts away may
be sharded, for the price of one sum of what the second makes and, backward, one of what the first
read (Shoeybi et al. 2019). For each class that price is added up from the trace, against the
multiply-adds that it divides; the best bargains are taken first, and a class that shares an array
with one that was taken stays replicated. So residual widths do where inner ones are wider, with
no word about what a block is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jaxpar.inference.account import Account
from jaxpar.inference.reasons import lines_of_weights, located, twice
from jaxpar.jaxprs.record import Trace, Use

SMALL = 0.25
"""Share of the textbook's sums that a split may add, such as a softmax's statistics."""

_COMPANIONS = ("heads", "experts", "inner")
"""Roles of split classes, in the order in which a width beside several is called by one."""


@dataclass(frozen=True)
class Judgement:
    """Accounts and roles by class, and why a class that looked shardable stays replicated.

    A reason is a primitive and what JAX knows of its line, or a sentence and where, in words.
    `read_at` is the line that first reads each weight, by path.
    """

    accounts: Mapping[int, Account]
    roles: Mapping[int, str]
    kept: Mapping[int, tuple[str, Any]]
    read_at: Mapping[str, str]


def judge(
    trace: Trace,
    weights: Mapping[str, Any],
    fields: Mapping[str, Any],
    why: Mapping[tuple[str, int], tuple[str, Any]] = MappingProxyType({}),
) -> Judgement:
    """Give every class of dims a role.

    Args:
        trace: from `relate`.
        weights: path -> abstract array of everything learned or frozen.
        fields: name -> abstract array of the batch; the first dim of each is the batch.
        why: (path, dim) -> a better reason for a class that looks shardable and stays replicated.
    """
    resolve = trace.classes.resolve
    accounts: dict[int, Account] = {}
    read_at = lines_of_weights(trace)

    def account(node: int) -> Account:
        return accounts.setdefault(node, Account(trace.classes.size(node)))

    for path, dims in trace.arguments.items():
        for at, dim in enumerate(dims):
            for place, node in enumerate(resolve(dim)):
                found = account(node)
                if path in weights:
                    if (path, at) in found.weights or any(p == path for p, _ in found.weights):
                        found.obstacle = twice(path, read_at)
                    found.weights.append((path, at))
                    if place:
                        found.obstacle = found.obstacle or (
                            "inside another factor of a dim, where a piece of it is no one piece "
                            "of the array",
                            f"dim {at} of '{path}'",
                        )
    read: set = set()
    for use in trace.uses:
        _reckon(use, resolve, account, read)
    batch = _firsts(trace, fields, resolve)
    layers = {n for dim in trace.stacked for n in resolve(dim)}
    # What the batch brings is on every device that has the row.
    brought = {n for name in fields for dim in trace.arguments[name] for n in resolve(dim)}
    roles, kept = _split(accounts, batch | layers | brought, trace, resolve)
    for node, found in accounts.items():
        if node in batch:
            roles[node] = "batch"
        elif node in layers and found.weights:
            roles[node] = "layers"
        elif node in roles:
            continue
        elif found.stands and not (found.made or found.spent):
            roles[node] = "sequence"
        elif found.spent and (found.made or found.carried):
            roles[node] = "residual"
        else:
            roles[node] = "feature"
    _tell_widths_apart(accounts, roles, trace, resolve)
    for node, (what, where) in kept.items():
        paths = [path for path, _ in accounts[node].weights]
        kept[node] = what, located(where, paths, read_at)
    for (path, at), reason in why.items():
        for node in resolve(trace.arguments[path][at]) if path in trace.arguments else ():
            if node in kept:
                kept[node] = reason
    return Judgement(accounts, roles, kept, read_at)


def _firsts(trace: Trace, fields: Mapping[str, Any], resolve) -> set[int]:
    """The batch's classes; where it was found to be a product, the outermost factor."""
    return {node for name in fields for node in resolve(trace.arguments[name][0])[:1]}


def _reckon(use: Use, resolve, account, read: set) -> None:
    """Add what one equation says to the accounts of the classes in it."""
    about = {n for dim in use.dims for n in resolve(dim)}
    inside = [{n for dim in o.dims for n in resolve(dim)} for o in use.operands]
    result = {n for dim in use.result.dims for n in resolve(dim)}
    if use.kind == "contract":
        _contraction(use, about, inside[:2], result, account, read)
    elif use.kind == "reduce":
        for node in about:
            account(node).other_bytes += use.result.bytes * use.times
    elif use.kind == "lookup":
        for node in about:
            found = account(node)
            if use.operands[0].is_weight:
                found.looked_up = True
                found.summed_bytes += use.result.bytes * use.times
                for other in inside[0] & result:
                    account(other).carried = True
            else:
                found.picked = True
                found.other_bytes += use.result.bytes * use.times
    elif use.kind == "match":
        for node in about:
            account(node).matched = True
    elif use.kind in ("whole", "place"):
        for node in about:
            found = account(node)
            found.windowed |= use.primitive.startswith(("conv", "reduce_window"))
            found.placed |= use.kind == "place"
            found.obstacle = found.obstacle or (use.primitive, use.where)
    elif use.kind == "stretch":
        operand = use.operands[0]
        for node in about:
            if operand.is_learned and not operand.is_weight:
                account(node).other_bytes += operand.bytes * use.times


def _contraction(use, about, inside, result, account, read) -> None:
    """Add one contraction to the accounts of the classes that it keeps and sums."""
    weights = [o.is_weight for o in use.operands[:2]]
    convolved = use.primitive.startswith("conv")
    if not any(weights):
        shared = inside[0] & inside[1] & result
        apart = (inside[0] ^ inside[1]) & result
        if shared and about:  # a scale that is written as a product pairs nothing
            for node in shared:
                account(node).paired = True
            for node in apart:
                account(node).pairings += 1
        for node in about | apart:
            account(node).routed = True
        for node in about:
            account(node).other_bytes += use.result.bytes * use.times
        return
    for k, is_weight in enumerate(weights):
        other = use.operands[1 - k]
        if not is_weight:
            for node in inside[k] & result - inside[1 - k]:
                account(node).stands = True
            continue
        for node in inside[k]:
            found = account(node)
            found.convolved |= convolved
            if node in about:
                found.spent = True
                found.flops += use.flops * use.times
                found.summed_bytes += use.result.bytes * use.times
            elif node in inside[1 - k]:
                # A matrix for each, unless nothing is summed, as by a scale or a depthwise filter.
                found.chosen_by |= bool(about)
                found.flops += use.flops * use.times
            elif node in result:
                found.made = True
                found.routed |= inside[k] & result == {node}
                found.flops += use.flops * use.times
                # Two matrices that read one activation sum its gradient once.
                reading = (node, use.key[1 - k], use.times)
                if other.is_learned and not other.is_weight and reading not in read:
                    read.add(reading)
                    found.summed_bytes += other.bytes * use.times


def _split(accounts, never, trace, resolve) -> tuple[dict[int, str], dict[int, tuple[str, Any]]]:
    """Take the best bargains that do not meet in one array."""
    together: dict[int, set[int]] = {}
    arrays = [o.dims for use in trace.uses for o in (*use.operands, use.result)]
    for dims in (*trace.arguments.values(), *arrays):
        nodes = {n for dim in dims for n in resolve(dim)}
        for node in nodes:
            together.setdefault(node, set()).update(nodes - {node})
    # Blocks of a width, each with a matrix of its own, are no alternatives to one another.
    inside_others = {
        node
        for dims in trace.arguments.values()
        for nodes in map(resolve, dims)
        for node in nodes * (len(nodes) > 1)
    }
    roles: dict[int, str] = {}
    kept: dict[int, tuple[str, Any]] = {}
    offered = [
        node
        for node, found in accounts.items()
        if node not in never and (found.looked_up or found.is_used_up) and found.weights
    ]
    first = _order(trace, resolve)
    # Equal bargains are told apart by the loss alone, and not by how its weights are called.
    offered.sort(
        key=lambda n: (
            -accounts[n].bargain,
            not accounts[n].paired,
            -accounts[n].flops,
            -accounts[n].size,
            first[n],
        )
    )
    for node in offered:
        found = accounts[node]
        if found.obstacle:
            kept[node] = found.obstacle
        elif together[node] & roles.keys():
            continue  # the residual's side of a pair
        elif found.other_bytes > SMALL * found.summed_bytes:
            kept[node] = ("it would be summed more often than a pair of matrices needs", None)
        elif found.paired:
            roles[node] = "heads"
        elif found.looked_up or found.matched or (found.picked and not found.spent):
            roles[node] = "vocabulary"
        else:
            roles[node] = "inner"
    for node, found in accounts.items():
        if found.paired and found.spent and not found.made and node not in never:
            kept[node] = found.obstacle or (
                "no matrix makes it by itself, it is cut out of what a wider one makes",
                None,
            )
        elif found.made and not found.is_used_up and found.obstacle and node not in never:
            kept.setdefault(node, found.obstacle)
        if found.is_choice and node not in never and node not in inside_others:
            roles[node] = "experts"
    for node in list(kept):
        outer = {resolve(trace.arguments[path][at])[0] for path, at in accounts[node].weights}
        if outer <= roles.keys():  # inside a dim that is split, as a head's width is
            del kept[node]
    return roles, kept


def _order(trace: Trace, resolve) -> dict[int, int]:
    """Class -> its place in the order in which the loss first uses each."""
    arrays = (o.dims for use in trace.uses for o in (*use.operands, use.result))
    nodes = dict.fromkeys(n for dims in arrays for dim in dims for n in resolve(dim))
    return {node: place for place, node in enumerate(nodes)}


def _tell_widths_apart(accounts, roles, trace, resolve) -> None:
    """A width that activations have only beside a split one, such as a head's, is no residual."""
    taken = {n: role for n, role in roles.items() if role in ("inner", "heads", "experts")}
    split = taken | {
        n: "heads"
        for n, a in accounts.items()
        if a.paired and a.weights and roles[n] in ("residual", "feature")
    }
    beside: dict[int, set[int]] = {}
    for use in trace.uses:
        for operand in use.operands:
            if operand.is_weight or not operand.is_learned:
                continue  # a table of angles or a mask is no activation
            nodes = {n for dim in operand.dims for n in resolve(dim)}
            for node in nodes:
                near = nodes & split.keys()
                beside[node] = beside.get(node, near) & near
    for node, near in beside.items():
        others = near - {node}
        if node not in accounts or node in taken or not others:
            continue
        if node not in split or others & taken.keys():
            found = {split[other] for other in others}
            accounts[node].companion = next(r for r in _COMPANIONS if r in found)
            if roles[node] == "residual":
                roles[node] = "feature"
