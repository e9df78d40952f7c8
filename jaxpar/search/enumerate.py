"""Every layout that may be the answer: meshes, strategies and their products, microbatches, remat.

A mesh is any factorization of the devices over `replica`, `pipe`, `data` and `model`; `model` stays
inside a node, for its collectives wait in every layer. What a person has set is not varied.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from jaxpar.layout.record import Layout
from jaxpar.models.record import role_of
from jaxpar.search.record import Candidate

DATA = ("data", "zero1", "fsdp")
"""Over `data`: weights replicated; optimizer state sharded; all sharded."""

MODEL = {"tensor": ("heads", "inner"), "sequence": ("heads", "inner"), "expert": ("experts",)}
"""Over `model`, and the roles of which a model needs one to gain from it."""

REMAT = ("none", "minimal", "full")
MOST_MICROBATCHES = 64


def candidates(
    base: Layout, devices: int, node: int, *, chosen: frozenset[str] = frozenset()
) -> Iterator[Candidate]:
    """Yield every candidate.

    Args:
        base: the model on one device, with its batch.
        devices: how many there are.
        node: how many of them share the fast links.
        chosen: fields that a person has set.
    """
    for replicas, stages, data, ways in _factorizations(devices):
        if ways > node:
            continue
        mesh = _mesh(replicas, stages, data, ways)
        for strategy, more in _strategies(base, replicas, stages, data, ways):
            shares = replicas * data
            counts = (None,) if "microbatches" in chosen else _counts(base, shares, stages)
            remats = (
                REMAT if hasattr(base.model.config, "remat") and "remat" not in chosen else (None,)
            )
            for count, remat in product(counts, remats):
                about = {"remat": remat, "microbatches": count, **more}
                yield Candidate(strategy, mesh, {k: v for k, v in about.items() if v is not None})


def _factorizations(devices: int) -> Iterator[tuple[int, int, int, int]]:
    """Every (replicas, stages, data, ways) whose product is the number of devices."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for replicas, stages, data in product(divisors, repeat=3):
        rest, left = divmod(devices, replicas * stages * data)
        if rest and not left and (replicas == 1 or data > 1):
            yield replicas, stages, data, rest


def _mesh(replicas: int, stages: int, data: int, ways: int) -> str:
    """A mesh as typed, without axes of one device but for a mesh of one."""
    sizes = {"replica": replicas, "pipe": stages, "data": data, "model": ways}
    return ",".join(f"{axis}={n}" for axis, n in sizes.items() if n > 1) or "data=1"


def _strategies(
    base: Layout, replicas: int, stages: int, data: int, ways: int
) -> Iterator[tuple[str, dict]]:
    """Every (strategy, its options) for a mesh of these sizes."""
    roles = {role_of(base.model, dim) for a in base.parameters.values() for dim in a.dims}
    outer = ["fsdp"] if replicas > 1 else list(DATA) if data > 1 else [""]
    inner = [""] if ways == 1 else [n for n, needs in MODEL.items() if roles & set(needs)]
    pipes: list[tuple[str, dict]] = [("", {})]
    if stages > 1:
        pipes = [("pipeline", {"schedule": "one_f_one_b"})]
        if layers_of(base) % (2 * stages) == 0:
            pipes.append(("pipeline", {"schedule": "interleaved", "chunks": 2}))
    for way, within, (pipe, options) in product(outer, inner, pipes):
        parts = ["replica"] if replicas > 1 else []
        yield "+".join([*parts, *filter(None, (way, within, pipe))]) or "single", options


def layers_of(base: Layout) -> int:
    """How many equal layers a model stacks; 1 where it stacks none."""
    for array in base.parameters.values():
        if array.dims and role_of(base.model, array.dims[0]) == "layers":
            return array.shape[0]
    return 1


def _counts(base: Layout, shares: int, stages: int) -> list[int]:
    """Numbers of microbatches that divide the rows of each share: powers of two, or of stages."""
    rows, left = divmod(base.model.batch_size, shares)
    if left or not rows:
        return [stages]
    first = 1 if stages == 1 else stages
    found = []
    while first <= min(rows, MOST_MICROBATCHES):
        if rows % first == 0:
            found.append(first)
        first *= 2
    return found or [stages]
