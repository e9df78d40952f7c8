"""What naming costs: dims of a plain decoder found by tracing, against tracing it alone.

A decoder that nobody annotated, of width 768, 12 heads, hidden width 3072 and 16,000 ids, of 2, 6
and 12 layers written out one after another (110 million parameters in all at 12). Shapes only:
nothing is allocated. `jaxpar.model` traces the module and its loss, walks the jaxpr, and judges and
names the classes; the other side traces the same module and loss with bare JAX.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

import jaxpar
from experiments import any_model

LAYOUTS = (2, 6, 12)
"""Depths: layers written out one after another."""
SIZES = {"WIDTH": 768, "HEADS": 12, "HIDDEN": 3072, "VOCABULARY": 16_000}
IDS = jax.ShapeDtypeStruct((8, 128), "int32")


def benchmark(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row a depth: seconds to trace, to name, and the latter over the former."""
    before = {name: getattr(any_model, name) for name in (*SIZES, "LAYERS")}
    try:
        for name, value in SIZES.items():
            setattr(any_model, name, value)
        for layers in LAYOUTS:
            any_model.LAYERS = layers
            pairs = [(_traced(), _named()) for _ in range(rounds)]
            ratios = [named[0] / traced[0] for traced, named in pairs]
            yield {
                "layers": layers,
                "parameters": pairs[0][1][1],
                "equations": pairs[0][0][1],
                "trace_seconds": statistics.median(t[0] for t, _ in pairs),
                "model_seconds": statistics.median(n[0] for _, n in pairs),
                "ratio": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
    finally:
        for name, value in before.items():
            setattr(any_model, name, value)


def _traced() -> tuple[float, int]:
    """Seconds to trace the module and its loss, and the equations of the outermost jaxpr."""
    started = time.perf_counter()
    graph, state = nnx.split(nnx.eval_shape(lambda: any_model.Decoder(nnx.Rngs(0))))

    def loss(state, batch):
        return any_model.loss(nnx.merge(graph, state), batch)

    closed = jax.make_jaxpr(loss)(state, {"ids": IDS, "next": IDS})
    return time.perf_counter() - started, len(closed.jaxpr.eqns)


def _named() -> tuple[float, int]:
    """Seconds for `jaxpar.model`, and the model's parameters."""
    started = time.perf_counter()
    model = jaxpar.model(any_model.Decoder, any_model.loss, {"ids": IDS, "next": IDS})
    seconds = time.perf_counter() - started
    alone = jaxpar.lay_out(
        model, strategy=jaxpar.STRATEGIES.load("single")(), mesh=jaxpar.MeshShape()
    )
    return seconds, sum(a.size for a in alone.parameters.values())
