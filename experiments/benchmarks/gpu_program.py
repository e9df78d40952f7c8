"""The program that GPUs would run, read as XLA compiles it: Llama 2 on described H100s.

Nothing runs. Beside ours stand the figures of MaxText 0.2.5's own training step, compiled for
described H100s by the same XLA (quoted; jax 0.12.0.1, sequence 4,096, bfloat16 compute, float32
AdamW, full remat, cuDNN attention, 2 rows a device). Plain decoders in Flax Linen and NNX, at the
sizes of the small Llama beside them, go through `jaxpar.model` as they are.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import jaxpar
from experiments.benchmarks.plain_decoders import PLAIN, plain_model
from jaxpar.core.catalogue import HARDWARE, MODELS
from jaxpar.hardware.presets import PRESETS
from jaxpar.hlo.collectives import axes_of, collectives
from jaxpar.hlo.parse import parse
from jaxpar.hlo.touched import touched
from jaxpar.program.record import Program

RECIPE = {"sequence": 4096, "compute_dtype": "bfloat16", "remat": "full"}
GIGA = 1e9

QUOTED: dict[tuple[str, str], dict[str, float]] = {
    ("llama2_7b", "fsdp"): {"peak": 20.94, "touched": 204},
    ("llama2_70b", "fsdp"): {"peak": 37.80, "touched": 918},
    ("llama2_70b", "fsdp+sequence"): {"peak": 40.84, "touched": 1155},
    ("llama2_70b", "fsdp+tensor"): {"peak": 40.84, "touched": 1155},
}
"""MaxText's peak memory, and bytes touched outside of matrix products, in GB."""

LAYOUTS = (
    ("llama2_7b", "fsdp", "data=8"),
    ("llama2_70b", "fsdp", "data=64"),
    ("llama2_70b", "fsdp+sequence", "data=8,model=8"),
    ("llama2_70b", "fsdp+tensor", "data=8,model=8"),
    ("small", "fsdp", "data=8"),
    ("linen", "fsdp", "data=8"),
    ("nnx", "fsdp", "data=8"),
)
SMALL = {"width": 2048, "layers": 8, "heads": 16, "kv_heads": 16, "ffn": 5504}
"""The sizes at which unannotated decoders are compared with the catalogue's."""


def benchmark(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row a layout, and one for each kind of its collectives; `rounds` changes nothing."""
    del rounds
    for name, strategy, mesh in LAYOUTS:
        devices = jaxpar.MeshShape.parse(mesh).devices
        program = compiled(name, strategy, mesh, rows=2 * devices)
        quoted = {f"maxtext_{k}_gb": v for k, v in QUOTED.get((name, strategy), {}).items()}
        about = {"model": name, "strategy": strategy, "mesh": mesh}
        yield {**about, **figures(program), **quoted}
        for preset in PRESETS:
            other = compiled(name, strategy, mesh, rows=2 * devices, preset=preset)
            yield {**about, "preset": preset, **figures(other)}
        for (kind, axes, dtype, way), size in sorted(payloads(program).items()):
            yield {"kind": kind, "axes": axes, "dtype": dtype, "way": way, "gb": size / GIGA}


def compiled(
    name: str, strategy: str, mesh: str, *, rows: int, preset: str = "", **changes: Any
) -> Program:
    """A model's step on described H100s; "small" is Llama's shape at `SMALL`, as are plain ones."""
    hardware = HARDWARE.load("h100")().with_options({"xla.preset": preset} if preset else {})
    recipe = {**RECIPE, **changes}
    if name in PLAIN:
        model = plain_model(name, rows, recipe["sequence"], SMALL)
    else:
        sizes = SMALL if name == "small" else {}
        called = "llama2_7b" if name == "small" else name
        model = MODELS.load(called)().with_fields(**sizes, **recipe).with_batch_size(rows)
    layout = jaxpar.lay_out(model, strategy=strategy, mesh=mesh)
    return jaxpar.compile_step(jaxpar.make_step(layout), hardware=hardware, for_speed=False)


def figures(program: Program) -> dict[str, float]:
    """Peak memory, FLOPs and bytes touched outside of products, of one device and step."""
    inspection = jaxpar.inspect(program)
    memory = inspection.device_memory
    assert memory is not None
    seen = touched(parse(program.text))
    work, predicted = inspection.work, jaxpar.predict(program)
    return {
        "peak_gb": program.update.memory_analysis().peak_memory_in_bytes / GIGA,
        "tflop": (work.device_flops + work.device_recomputed_flops) / 1e12,
        "touched_gb": float(seen.bytes) / GIGA,
        "copied_gb": float(seen.copied_bytes) / GIGA,
        "predicted_s": predicted.step_seconds,
        "communication_s": predicted.communication_seconds,
        "exposed_s": predicted.exposed_seconds,
    }


def payloads(program: Program) -> Counter[tuple[str, str, str, str]]:
    """(kind, mesh axes, dtype, "async" or "sync") -> bytes of collectives per device per step."""
    sizes = dict(program.step.layout.mesh.sizes)
    found: Counter[tuple[str, str, str, str]] = Counter()
    for one in collectives(parse(program.text)):
        way = "async" if one.is_async else "sync"
        about = (one.kind, " x ".join(axes_of(one, sizes)), "/".join(one.dtypes), way)
        found[about] += int(one.bytes_each * one.executions)
    return found
