"""Which classic mistake would give just these wrong gradients: each is acted out on one device.

The candidates are the mistakes that people make (a mean of means, a sum left out or done twice, own
share only); the one whose numbers match is named. Sizes of each are in BUILD_NOTES.
"""

from collections.abc import Callable, Mapping

import numpy as np

from jaxpar.core.mesh import MeshShape
from jaxpar.measures.verify.compare import Check

Arrays = Mapping[str, np.ndarray]


def likely_mistake(
    got: Arrays,
    right: Arrays,
    *,
    mesh: MeshShape,
    microbatches: int,
    gradient_of_rows: Callable[[slice], Arrays],
    rows: int,
    replicas_agree: bool,
    loss_agrees: bool,
    tolerance: float,
) -> str:
    """A sentence naming the mistake that these gradients look like.

    Args:
        got, right: path -> gradient under the layout, and on one device.
        mesh, microbatches: how the batch was split.
        gradient_of_rows: the one-device gradient of a part of the batch, as a mean of its own.
        rows: rows in the batch.
        replicas_agree: whether devices that should hold the same shard do.
        loss_agrees: whether the loss itself was right.
        tolerance: relative error below which two gradients count as the same.
    """
    factors = {p: _factor(got[p], right[p], tolerance) for p in right if np.any(right[p])}
    scaled = {p: f for p, f in factors.items() if f is not None and abs(f - 1) > tolerance}
    if factors and len(scaled) == len(factors) and len({round(f, 6) for f in scaled.values()}) == 1:
        return _one_factor(next(iter(scaled.values())), mesh, microbatches)
    shares = {f"device along '{axis}'": mesh.size(axis) for axis in ("replica", "data")}
    for name, parts in {**shares, "microbatch": microbatches}.items():
        if parts > 1 and rows % parts == 0:
            verdict = _acted_out(
                got, name, parts, rows, gradient_of_rows, tolerance, contiguous=name in shares
            )
            if verdict:
                return verdict
    if not replicas_agree:
        return (
            "devices that should hold the same values do not: a sum over one mesh axis was left "
            "out, so each kept its own share"
        )
    if scaled and len(scaled) < len(factors):
        path, factor = next(iter(scaled.items()))
        return (
            f"{path} alone is {factor:.6g} times what it should be: its gradient was summed "
            "over a mesh axis whose devices already held the whole of it, or a bias was added "
            "before a sum"
        )
    if not loss_agrees:
        return (
            "the loss itself differs, so the forward pass does: a partial product not summed, a "
            "bias added before the sum, or dropout masks drawn a device at a time"
        )
    return (
        "the loss is right and the gradient is not: a sum left out or done twice in backward for "
        "the arrays named"
    )


def later_mistake(check: Check) -> str:
    """What most likely went wrong where the gradient is right and this check is not."""
    if check.name == "initial state":
        return (
            "parameters are drawn differently: a random key was split or folded a device at a time"
        )
    if check.name == "update" and not check.replicas_agree:
        return (
            "the gradient is right, and after the update devices that should hold the same weights "
            "do not: each updated its own shard and the new shards were not gathered, or clipping "
            "by the norm of one device's share"
        )
    if check.name == "update":
        return (
            "the gradient is right and the update from it is not: clipping by the norm of one "
            "device's share, weight decay left out or given to other arrays, or optimizer state "
            "sharded otherwise than its parameters"
        )
    if check.name == "loss":
        return "the gradient is right and the loss is not: it was summed or averaged over too much"
    return (
        "one step is right and several are not: state that a step should carry is lost or doubled"
    )


def _one_factor(factor: float, mesh: MeshShape, microbatches: int) -> str:
    """What makes every gradient this many times too large."""
    sizes = {f"the {n} devices along '{axis}'": n for axis, n in mesh.sizes if n > 1}
    sizes |= {f"the {microbatches} microbatches": microbatches} if microbatches > 1 else {}
    for what, n in sizes.items():
        if abs(factor - n) < 1e-3 * n:
            return (
                f"every gradient is {n} times too large: it was summed over {what} where a mean "
                "was due"
            )
        if abs(factor * n - 1) < 1e-3:
            return (
                f"every gradient is {n} times too small: it was averaged over {what} once too often"
            )
    return (
        f"every gradient is {factor:.6g} times what it should be: the loss is divided by a wrong "
        "count"
    )


def _acted_out(got, name, parts, rows, gradient_of_rows, tolerance, *, contiguous) -> str | None:
    """The mistake that gives `got` when tried on one device with the batch in parts; else None."""
    share = rows // parts
    slices = [
        slice(i * share, (i + 1) * share) if contiguous else slice(i, None, parts)
        for i in range(parts)
    ]
    gradients = [gradient_of_rows(s) for s in slices]
    mean = {p: sum(g[p] for g in gradients) / parts for p in got}
    if _same(got, mean, tolerance):
        return (
            f"these are a mean of means: each {name} divided by its own weight, and the {parts} "
            "results were averaged; sum first, then divide by the weight of the whole batch"
        )
    if any(_same(got, g, tolerance) for g in gradients):
        return f"these are the gradients of one {name} alone: the sum over all {parts} was left out"
    total = {p: np.sum([g[p] for g in gradients], axis=0) for p in got}
    if _same(got, total, tolerance):
        return f"these are the sum of the means of every {name}: sum, then divide once"
    return None


def _factor(got: np.ndarray, right: np.ndarray, tolerance: float) -> float | None:
    """The number c for which `got` = c x `right`, or None when there is none."""
    c = float(np.vdot(right, got) / np.vdot(right, right))
    return c if np.linalg.norm(got - c * right) <= 10 * tolerance * np.linalg.norm(right) else None


def _same(a: Arrays, b: Arrays, tolerance: float) -> bool:
    """Whether two sets of arrays differ by less than ten tolerances of their norm."""
    size = np.sqrt(sum(np.vdot(x, x) for x in b.values()))
    gap = np.sqrt(sum(np.vdot(a[p] - b[p], a[p] - b[p]) for p in b))
    return bool(gap <= 10 * tolerance * size)
