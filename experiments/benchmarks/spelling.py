"""What our decoder's spelling costs: its step against a plain Flax Linen decoder's under bare JAX.

The sizes, optimizer and devices are those of `overhead`. The other side is the module that anyone
would write, under jax.jit with NamedShardings: layers one by one, queries, keys and values apart,
the table of ids replicated. Against it stand the catalogue's decoder, with learned positions and
layer norm as there, and that very module through `jaxpar.model`. The catalogue's has no biases
where that has two in a layer, and computes an accuracy beside the loss.
"""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxpar
from experiments.benchmarks.alternate import alternate
from experiments.benchmarks.overhead import SIZES
from jaxpar.case import load_strategy
from jaxpar.core.catalogue import HARDWARE, MODELS
from jaxpar.core.mesh import MeshShape
from jaxpar.layout.lay_out import lay_out
from jaxpar.program.record import Program, compile_step
from jaxpar.step.make_step import make_step

LAYOUTS = (("data", "data=8"), ("hybrid", "data=4,model=2"))
BY_COLUMNS, BY_ROWS = ("query", "key", "value", "up", "head"), ("out", "down")
"""Which weights tensor parallelism shards by what they make, and by what they read."""


class Block(nn.Module):
    """Attention and a feed-forward part, each added to the residual."""

    heads: int
    ffn: int

    @nn.compact
    def __call__(self, x):
        """Run one block: (batch, sequence, width) to the same."""
        length, width = x.shape[1:]
        shape = (self.heads, width // self.heads)
        y = nn.LayerNorm(use_bias=False)(x)
        q, k, v = (
            nn.DenseGeneral(shape, use_bias=False, name=name)(y)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqnh,bknh->bnqk", q, k) / shape[1] ** 0.5
        causal = np.tril(np.ones((length, length), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), axis=-1)
        y = jnp.einsum("bnqk,bknh->bqnh", weights, v)
        x = x + nn.DenseGeneral(width, axis=(-2, -1), use_bias=False, name="out")(y)
        y = nn.gelu(nn.Dense(self.ffn, name="up")(nn.LayerNorm(use_bias=False)(x)))
        return x + nn.Dense(width, name="down")(y)


class Decoder(nn.Module):
    """Token ids (batch, sequence) to logits (batch, sequence, vocabulary)."""

    layers: int
    width: int
    heads: int
    ffn: int
    vocabulary: int

    @nn.compact
    def __call__(self, tokens):
        """Score the next token at every position."""
        start = nn.initializers.normal(0.02)
        x = nn.Embed(self.vocabulary, self.width, embedding_init=start)(tokens)
        x = x + self.param("positions", start, (tokens.shape[1], self.width))[None]
        for _ in range(self.layers):
            x = Block(self.heads, self.ffn)(x)
        x = nn.LayerNorm(use_bias=False)(x)
        return nn.Dense(self.vocabulary, use_bias=False, name="head")(x)


def cross_entropy(logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """The mean of the negative log likelihood, as one writes it first."""
    own = jnp.take_along_axis(logits, batch["targets"][..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - own)


def benchmark(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row a layout and decoder: seconds a step on both sides, and their ratio."""
    sizes: dict[str, Any] = {n: SIZES[n] for n in Decoder.__annotations__ if n in SIZES}
    plain = Decoder(**sizes)
    random, shape = np.random.default_rng(0), (SIZES["batch"], SIZES["sequence"])
    ids = random.integers(SIZES["vocabulary"], size=(2, *shape), dtype="int32")
    batch = {"tokens": ids[0], "targets": ids[1]}
    decoders = {
        "catalogue": MODELS.load("transformer")(**SIZES, positions="learned", norm="layer"),
        "plain": jaxpar.model(plain, lambda net, b: cross_entropy(net(b["tokens"]), b), batch),
    }
    batch["weight"] = np.ones(shape, "float32")
    for strategy, mesh in LAYOUTS:
        for name, model in decoders.items():
            layout = lay_out(model, strategy=load_strategy(strategy), mesh=MeshShape.parse(mesh))
            step = make_step(layout, optimizer=optax.adamw(1e-3))
            program = compile_step(step, hardware=HARDWARE.load("cpu")())
            given = program.place({field: batch[field] for field in model.batch})
            ours = (program.update, program.init(0))
            times = alternate(ours, _bare(plain, program, given), given, rounds)
            yield {"decoder": name, "strategy": strategy, "mesh": mesh, **times}


def _bare(plain: Decoder, program: Program, batch: dict[str, jax.Array]) -> tuple[Any, Any]:
    """The plain decoder's step as one would write it without jaxpar, and a state for it."""
    optimizer, mesh = optax.adamw(1e-3), program.mesh

    def create(key):
        parameters = plain.init(key, batch["tokens"])
        return parameters, optimizer.init(parameters)

    def update(state, batch):
        def loss(parameters):
            logits: Any = plain.apply(parameters, batch["tokens"])
            return cross_entropy(logits, batch)

        parameters, moments = state
        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, moments = optimizer.update(gradients, moments, parameters)
        return (optax.apply_updates(parameters, updates), moments), value

    def sharding(path, array):
        names = {getattr(key, "key", None) for key in path}
        spec = P()
        if names & set(BY_ROWS) and "kernel" in names or names >= {"up", "bias"}:
            spec = P("model")
        elif names & set(BY_COLUMNS):
            spec = P(None, "model")
        return NamedSharding(mesh, spec)

    key = jax.random.key(0)
    shardings = jax.tree_util.tree_map_with_path(sharding, jax.eval_shape(create, key))
    rows = {name: array.sharding for name, array in batch.items()}
    step = jax.jit(
        update, in_shardings=(shardings, rows), out_shardings=(shardings, None), donate_argnums=0
    )
    return step, jax.jit(create, out_shardings=shardings)(key)
