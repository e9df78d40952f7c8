"""What jaxpar costs: its step against the same Flax module under bare jax.jit with NamedShardings.

The workload is a decoder of 4 layers, width 256, 8 heads, MLP 1024, vocabulary 512, sequence 128,
batch 16, AdamW, float32, on 8 simulated CPU devices. Sides alternate, a few steps at a time; the
ratio is taken round by round and its median reported with its spread.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmarks.alternate import alternate
from jaxpar.case import load_strategy
from jaxpar.core.catalogue import HARDWARE, MODELS
from jaxpar.core.mesh import MeshShape
from jaxpar.inference.probe import probe_batch
from jaxpar.layout.lay_out import lay_out
from jaxpar.layout.record import Layout
from jaxpar.models.modules import build
from jaxpar.program.record import Program, compile_step
from jaxpar.step.make_step import make_step

SIZES = {
    "layers": 4,
    "width": 256,
    "heads": 8,
    "kv_heads": 8,
    "ffn": 1024,
    "vocabulary": 512,
    "sequence": 128,
    "batch": 16,
}
LAYOUTS = (
    ("data", "data=8"),
    ("fsdp", "data=8"),
    ("tensor", "model=8"),
    ("hybrid", "data=4,model=2"),
    ("fsdp+tensor", "data=4,model=2"),
)


def benchmark(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row a layout: seconds a step on both sides, and their ratio."""
    model = MODELS.load("transformer")(**SIZES)
    batch = probe_batch(model, seed=0)
    hardware = HARDWARE.load("cpu")()
    for strategy, mesh in LAYOUTS:
        layout = lay_out(model, strategy=load_strategy(strategy), mesh=MeshShape.parse(mesh))
        program = compile_step(make_step(layout, optimizer=optax.adamw(1e-3)), hardware=hardware)
        ours = (program.update, program.init(0))
        times = alternate(ours, _bare(layout, program), program.place(batch), rounds)
        yield {"strategy": strategy, "mesh": mesh, **times}


def _bare(layout: Layout, program: Program) -> tuple[Callable, Any]:
    """The step as one would write it without jaxpar, and a state for it."""
    optimizer = optax.adamw(1e-3)
    mesh, model = program.mesh, layout.model
    specs = {path: array.stored for path, array in layout.parameters.items()}

    def create(seed):
        graph, parameters = nnx.split(build(model, jax.random.key(seed)))
        return parameters, optimizer.init(parameters)

    graph = nnx.split(nnx.eval_shape(lambda: build(model, 0)))[0]

    def sharding(path, _):
        # A moment's path ends with its parameter's.
        keys = [str(getattr(k, "key", getattr(k, "name", ""))) for k in path]
        text = "/".join(k for k in keys if k not in ("value", ""))
        spec = next((s for p, s in specs.items() if text.endswith(p)), PartitionSpec())
        return NamedSharding(mesh, spec)

    abstract = jax.eval_shape(create, np.uint32(0))
    shardings = jax.tree_util.tree_map_with_path(sharding, abstract)
    batches = {name: NamedSharding(mesh, spec) for name, spec in layout.batch.items()}

    def update(state, batch):
        parameters, moments = state

        def loss(parameters):
            return model.loss(nnx.merge(graph, parameters), batch, key=None)[0].value

        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, moments = optimizer.update(gradients, moments, parameters)
        return (optax.apply_updates(parameters, updates), moments), value

    step = jax.jit(
        update, in_shardings=(shardings, batches), out_shardings=(shardings, None), donate_argnums=0
    )
    return step, jax.jit(create, out_shardings=shardings)(np.uint32(0))
