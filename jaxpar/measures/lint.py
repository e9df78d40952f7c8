"""Lint: does the compiled program do what its layout asked for; if not, a fault and its repair.

JAX and XLA make do in silence: a dim that does not divide is left replicated, an array that cannot
be moved cheaply is replicated on the way, a buffer that was given up is not reused. A layout asked
for none of these, so each is a finding.
"""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxpar.core.source_lines import file_and_line
from jaxpar.layout.record import itemsize
from jaxpar.measures.constraints import replicating
from jaxpar.measures.explain.unsound import unsound
from jaxpar.measures.finding import Finding
from jaxpar.measures.left_replicated import left_replicated
from jaxpar.measures.record import Make, Measure
from jaxpar.measures.replicated import MODEL, OPTIMIZER, notable, path_of, replicated
from jaxpar.models.pieces import weight_named
from jaxpar.program.fit import tree_bytes
from jaxpar.program.record import Program

REUSED = 0.95
"""Share of the state's bytes whose buffers an update has to use again."""
INIT_TEMPORARY = 4.0
"""Times a device's bytes of parameters that creating the state may take beside the state.

XLA for CPUs takes 2.0 for parameters drawn at random where each shard stays, and 3.1 where stages
hold layers that are no neighbours and blocks of them travel (jax 0.10.2, a decoder of 4 layers)."""
SMALL_INIT_BYTES = 16 * 2**20
"""Bytes beside the state that are no matter, however small it is."""


def lint(program: Program) -> tuple[Finding, ...]:
    """Compare a compiled update with what its layout asked for; nothing is run.

    Partial sums are followed where XLA has written down the module right after partitioning, which
    it does for described hardware and with `explains=True`, and where the loss itself is per shard.
    """
    return (
        *unsound(program),
        *replicating(program.step),
        *_shardings(program),
        *_indivisible(program),
        *_replicated(program),
        *_rematerialized(program),
        *_donated(program),
        *_created(program),
        *left_replicated(program.step),
    )


def _shardings(program: Program) -> list[Finding]:
    """Arrays of the state and the batch that are not, before or after, sharded as was asked."""
    step = program.step
    asked = (program.state_shardings, program.batch_shardings)
    shapes = (step.state, dict(step.batch))
    arguments, _ = program.update.input_shardings
    results, _ = program.update.output_shardings
    findings = []
    for when, got, want, like in (
        ("as it is handed in", tuple(arguments), asked, shapes),
        ("as it is handed on", results, asked[0], shapes[0]),
    ):
        leaves = jax.tree_util.tree_leaves_with_path(want)
        # What a step does not read is no argument of the program, and has no sharding.
        held_all = jax.tree.leaves(got, is_leaf=lambda leaf: leaf is None)
        pairs = zip(leaves, held_all, jax.tree.leaves(like), strict=True)
        for (path, wanted), held, leaf in pairs:
            if held is None or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
                continue  # a random key is replicated, and JAX speaks of the words it is made of
            if not held.is_equivalent_to(wanted, len(leaf.shape)):
                findings.append(
                    Finding(
                        "sharding",
                        weight_named(path_of(path), step.layout.model.cuts),
                        f"{when} it should be sharded as {_spec(wanted)}, and is as {_spec(held)}",
                        "this is a fault of jaxpar or of XLA, and the run would be slower or "
                        "larger than its layout says; report it",
                    )
                )
    return findings


def _indivisible(program: Program) -> list[Finding]:
    """A finding for every dim that should be sharded and does not divide."""
    return [
        Finding(
            "indivisible",
            found.source or "an activation",
            f"dim {found.dim} of an array of shape {found.shape} should be sharded over mesh axis "
            f"{' x '.join(found.axes)}, and {_ways(program, found.axes)} does not divide "
            f"{found.shape[found.dim]}, so it stays replicated",
            "change the size, or the axis",
            source=file_and_line(found.source),
        )
        for found in program.step.traced.unmet
    ]


def _replicated(program: Program) -> list[Finding]:
    """A finding for each group of state that is large, and replicated though it was to be sharded.

    What mirrors a parameter that the layout leaves replicated is in the layout's notes.
    """
    layout, findings = program.step.layout, []
    found = [one for one in notable(replicated(program.step), layout) if one.is_unasked]
    for group in (OPTIMIZER, MODEL):
        arrays = [one for one in found if one.group == group]
        if not arrays:
            continue
        most, total = arrays[0], sum(one.bytes for one in arrays)
        shape = " x ".join(map(str, most.shape))
        findings.append(
            Finding(
                "replicated",
                group,
                f"{len(arrays)} of its arrays, {total:,} bytes per device, stay replicated over "
                f"{' x '.join(most.axes)}, although strategy '{layout.strategy.name}' shards "
                f"{_SHARDED[group]} there; the largest is {most.path} of {shape}, "
                f"{most.bytes:,} bytes",
                _REPAIRS[group],
                bytes=total,
            )
        )
    return findings


_SHARDED = {OPTIMIZER: "optimizer state", MODEL: "weights"}
_REPAIRS = {
    OPTIMIZER: "use an optimizer whose state has the shapes of the parameters, or accept the bytes "
    "with --lint warn",
    MODEL: "keep it in variables whose dims are those of a parameter, or accept the bytes with "
    "--lint warn",
}


def _ways(program: Program, axes: tuple[str, ...]) -> int:
    """How many shards these axes make of a dim."""
    return prod(program.step.layout.mesh.size(axis) for axis in axes)


def _rematerialized(program: Program) -> list[Finding]:
    """A finding for every array that XLA's partitioner replicates to reshard it."""
    findings = []
    for warning in program.made.warnings:
        operation = warning.op_name.rpartition("/")[2] or "the step"
        findings.append(
            Finding(
                "rematerialization",
                warning.source or warning.op_name or "somewhere in the step",
                f"XLA knows no way for {warning.array} from {warning.from_sharding} to "
                f"{warning.to_sharding} but to replicate it on every device (in {operation})",
                "let both sides shard the same dim, or go there in two steps, one axis at a time",
                source=file_and_line(warning.source),
            )
        )
    return findings


def _donated(program: Program) -> list[Finding]:
    """Whether the update writes its new state where the old one was."""
    memory = program.update.memory_analysis()
    if memory is None or not memory.argument_size_in_bytes:
        return []
    given = sum(
        _device_bytes(leaf, sharding)
        for leaf, sharding in zip(
            jax.tree.leaves(program.step.state),
            jax.tree.leaves(program.state_shardings),
            strict=True,
        )
    )
    reused = memory.alias_size_in_bytes
    if reused >= REUSED * given:
        return []
    return [
        Finding(
            "donation",
            "the state",
            f"an update gives up {given:,} bytes per device and {reused:,} of them are used "
            "again, so the old and the new state are live at once",
            "keep every array's shape, dtype and sharding from one update to the next",
            bytes=given - reused,
        )
    ]


def _created(program: Program) -> list[Finding]:
    """Whether the state is created sharded, without an array being replicated on the way."""
    if program.hardware.kind == "described":
        return []  # nothing is created there, and compiling what would is slow
    memory = program.init_memory
    if memory is None:
        return []
    step = program.step
    parameters = tree_bytes(step.state.parameters, step.state_specs.parameters, step.layout.mesh)
    if memory.temp_size_in_bytes <= max(INIT_TEMPORARY * parameters, SMALL_INIT_BYTES):
        return []
    state = memory.output_size_in_bytes
    peak = state + memory.temp_size_in_bytes
    return [
        Finding(
            "init",
            "the initial state",
            f"creating it takes {peak:,} bytes per device, for {state:,} that stay",
            "draw each parameter with one jax.random call of its own shape, so that XLA can draw "
            "each shard where it stays",
            bytes=peak - state,
        )
    ]


def _device_bytes(leaf: Any, sharding: NamedSharding) -> int:
    """Bytes of a leaf on each device under a sharding."""
    return prod(sharding.shard_shape(leaf.shape)) * itemsize(leaf.dtype)


def _spec(sharding: Any) -> str:
    """A sharding as its PartitionSpec is written, such as P('data', None)."""
    spec = getattr(sharding, "spec", None)
    if not isinstance(spec, PartitionSpec):
        return str(sharding)
    return f"P({', '.join(map(repr, spec))})"


def _taken(program: Program, make: Make) -> dict[str, Any]:
    """The record of a program's findings."""
    del make
    findings = lint(program)
    ok = not any(finding.is_error for finding in findings)
    return {"ok": ok, "findings": [finding.record() for finding in findings]}


measure = Measure(_taken, runs=False)
