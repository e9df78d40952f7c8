"""How our decoder is written: its step against a straightforward one in plain JAX.

The same sizes, optimizer and devices as `overhead`. The other side is a decoder as one writes it
first: layers one by one, queries, keys and values apart, softmax, a variance, labels looked up.
Both are right; what differs is the code that XLA makes of the spelling.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.benchmarks.alternate import alternate
from experiments.benchmarks.overhead import SIZES
from jaxpar.case import load_strategy
from jaxpar.core.catalogue import HARDWARE, MODELS
from jaxpar.core.mesh import MeshShape
from jaxpar.layout.lay_out import lay_out
from jaxpar.measures.verify.probe import probe_batch
from jaxpar.program.record import compile_step
from jaxpar.step.make_step import make_step

LAYOUTS = (("data", "data=8"), ("hybrid", "data=4,model=2"))
CUT = {
    "embedding": P("model"),
    "head": P(None, "model"),
    "q": P(None, "model"),
    "k": P(None, "model"),
    "v": P(None, "model"),
    "out": P("model"),
    "up": P(None, "model"),
    "down": P("model"),
}
"""Where each weight lies under tensor parallelism; all else is whole."""


def benchmark(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row a layout: seconds a step on both sides, and their ratio."""
    model = MODELS.load("transformer")(**SIZES)
    batch = probe_batch(model, seed=0)
    for strategy, mesh in LAYOUTS:
        layout = lay_out(model, strategy=load_strategy(strategy), mesh=MeshShape.parse(mesh))
        step = make_step(layout, optimizer=optax.adamw(1e-3))
        program = compile_step(step, hardware=HARDWARE.load("cpu")())
        ours = (program.update, program.init(0))
        theirs = _plain(program.mesh, program.batch_shardings)
        times = alternate(ours, theirs, program.place(batch), rounds)
        yield {"strategy": strategy, "mesh": mesh, **times}


def _plain(mesh, batch_shardings):
    optimizer = optax.adamw(1e-3)

    def create():
        parameters = _parameters(jax.random.key(0))
        return parameters, optimizer.init(parameters)

    def update(state, batch):
        parameters, moments = state
        loss, gradients = jax.value_and_grad(_loss)(parameters, batch)
        updates, moments = optimizer.update(gradients, moments, parameters)
        return (optax.apply_updates(parameters, updates), moments), loss

    def sharding(path, _):
        name = str(getattr(path[-1], "key", None))
        split = mesh.shape["model"] > 1 and name in CUT
        return NamedSharding(mesh, CUT[name] if split else P())

    shardings = jax.tree_util.tree_map_with_path(sharding, jax.eval_shape(create))
    step = jax.jit(
        update,
        in_shardings=(shardings, batch_shardings),
        out_shardings=(shardings, None),
        donate_argnums=0,
    )
    return step, jax.jit(create, out_shardings=shardings)()


def _parameters(key):
    width, heads, ffn = SIZES["width"], SIZES["heads"], SIZES["ffn"]
    head = width // heads
    shapes = {
        "q": (width, heads, head),
        "k": (width, heads, head),
        "v": (width, heads, head),
        "out": (heads, head, width),
        "up": (width, ffn),
        "down": (ffn, width),
    }
    keys = iter(jax.random.split(key, 3 + SIZES["layers"] * len(shapes)))

    def normal(*shape):
        return 0.02 * jax.random.normal(next(keys), shape)

    return {
        "embedding": normal(SIZES["vocabulary"], width),
        "positions": normal(SIZES["sequence"], width),
        "head": normal(width, SIZES["vocabulary"]),
        "scale": jnp.ones(width),
        "layers": [
            {name: normal(*shape) for name, shape in shapes.items()}
            | {"scale_1": jnp.ones(width), "scale_2": jnp.ones(width)}
            for _ in range(SIZES["layers"])
        ],
    }


def _norm(x, scale):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * scale


def _loss(parameters, batch):
    x = parameters["embedding"][batch["tokens"]] + parameters["positions"]
    mask = jnp.tril(jnp.ones((SIZES["sequence"],) * 2, bool))
    for layer in parameters["layers"]:
        y = _norm(x, layer["scale_1"])
        q, k, v = (jnp.einsum("bsd,dnh->bsnh", y, layer[name]) for name in "qkv")
        scores = jnp.einsum("bqnh,bknh->bnqk", q, k) / q.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
        y = jnp.einsum("bnqk,bknh->bqnh", weights, v)
        x = x + jnp.einsum("bqnh,nhd->bqd", y, layer["out"])
        x = x + jax.nn.gelu(_norm(x, layer["scale_2"]) @ layer["up"]) @ layer["down"]
    logits = _norm(x, parameters["scale"]) @ parameters["head"]
    likelihood = jnp.take_along_axis(
        jax.nn.log_softmax(logits), batch["targets"][..., None], axis=-1
    )[..., 0]
    return -(likelihood * batch["weight"]).sum() / batch["weight"].sum()
