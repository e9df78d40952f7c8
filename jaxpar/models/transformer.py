"""A decoder of equal blocks, from GPT-2's shape to Llama's, scanned over its layers.

Queries and keys are one weight, grouped by key-value head, and so are gate and up: sharded over
heads and inner width, each block then sums once after attention and once after the feed-forward
part.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxpar.core import hooks
from jaxpar.core.errors import RequestError, unknown
from jaxpar.core.jax_compat import setting
from jaxpar.models.classify import scores
from jaxpar.models.head import logits_of
from jaxpar.models.layers import ZEROS, Norm, along, biased, dropped, normal, param, rotate
from jaxpar.models.record import Field, Mean, Model, check_sizes

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}
SAVED_NAMES = ("query", "key", "value", hooks.ATTENDED, "out_proj", "ffn_inner", "mlp_out")
"""Values a remat policy can keep by name, in the order in which a block makes them. `query` and
`key` are those that meet, turned by their positions; `ffn_inner` is gate and up."""

RESIDUAL = ("batch", "sequence", "embed")
"""The dims of what flows from block to block."""

# Shape suffixes: B batch, S sequence, D embed, K key-value heads, G queries a key-value head,
# C = G + 1 (the queries and the key), H head_dim, F ffn, V vocab. JAX sums over dims in the
# order of their letters, so in formulas K is e and G is f: summed in another order than they lie in
# memory, activation and weight would each be transposed first.


@dataclass(frozen=True)
class Transformer:
    """Sizes and choices of the decoder.

    Attributes:
        vocabulary: token ids there are.
        sequence: tokens in a row.
        width: of the residual, the model's own width.
        layers: blocks, all of one shape.
        heads: of queries; attention's width is heads x head_dim.
        kv_heads: heads of keys and values, which divide `heads`; None means as many.
        head_dim: elements of a head; None means width / heads.
        ffn: inner width of the feed-forward part.
        gated: whether the feed-forward part has a gate beside it, as Llama's (SwiGLU) has.
        activation: silu, gelu or relu.
        positions: rope (rotary) or learned.
        rope_base: the base of the rotary angles.
        norm: rms or layer.
        norm_epsilon: added to the mean square before its root is taken.
        bias: whether matrices and norms have biases.
        tied: whether the head is the embedding, transposed.
        dropout: probability that an element of a part's output is left out while training.
        compute_dtype: float32, bfloat16, float16 or float64; None computes in the parameters' own.
        attention: auto, whole (every score is held) or fused (none is); auto fuses where devices,
            types and sizes allow it.
        remat: what backward computes again: none (arithmetic on elements at most), full, dots (all
            but products), minimal (all but what has a name), or all but names joined by commas:
            query, key, value, attended, out_proj, ffn_inner (gate and up), mlp_out.
        unroll: layers compiled as one piece; XLA's CPU code for a few is a quarter faster so, and
            the program that much larger.
        batch: rows in a global batch.
    """

    vocabulary: int = 256
    sequence: int = 128
    width: int = 256
    layers: int = 4
    heads: int = 16
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn: int = 1024
    gated: bool = False
    activation: str = "gelu"
    positions: str = "rope"
    rope_base: float = 10_000.0
    norm: str = "rms"
    norm_epsilon: float = 1e-5
    bias: bool = False
    tied: bool = False
    dropout: float = 0.0
    compute_dtype: str | None = None
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 4
    batch: int = 16

    def __post_init__(self):
        check_sizes("transformer", self)
        if self.heads % self.key_value_heads:
            raise RequestError(
                f"transformer: heads={self.heads} are not shared evenly by kv_heads="
                f"{self.kv_heads}; make kv_heads a divisor of heads"
            )
        if self.head_dim is None and self.width % self.heads:
            raise RequestError(
                f"transformer: width={self.width} is not divided by heads={self.heads}; choose "
                "heads that divide it, or set head_dim"
            )
        if self.positions == "rope" and self.head_width % 2:
            raise RequestError(
                f"transformer: a head of {self.head_width} elements has no two halves that rotary "
                "positions turn against each other; make head_dim even, or use positions=learned"
            )
        if self.rope_base <= 0 or self.norm_epsilon < 0:
            raise RequestError(
                f"transformer: rope_base={self.rope_base}, norm_epsilon={self.norm_epsilon}: use a "
                "base above 0 and an epsilon from 0 up"
            )
        for name, known in (
            ("activation", tuple(ACTIVATIONS)),
            ("positions", ("rope", "learned")),
            ("norm", ("rms", "layer")),
            ("attention", ("auto", "whole", "fused")),
            ("compute_dtype", (None, "float32", "bfloat16", "float16", "float64")),
        ):
            if getattr(self, name) not in known:
                raise unknown(
                    f"{name} of transformer", str(getattr(self, name)), [str(k) for k in known]
                )
        if self.compute_dtype == "float64" and not setting("jax_enable_x64"):
            raise RequestError(
                "transformer: compute_dtype=float64, and JAX computes in 32 bits unless it is told "
                "otherwise: set JAX_ENABLE_X64=1, or use float32"
            )
        hooks.check_remat(self.remat, SAVED_NAMES)

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values; as many as of queries unless said."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_width(self) -> int:
        """Elements of one head."""
        return self.head_dim or self.width // self.heads


class Block(nnx.Module):
    """Attention and a feed-forward part, each added to the residual: (B, S, D) -> (B, S, D)."""

    def __init__(self, config: Transformer, rngs: nnx.Rngs):
        c, group, out = config, config.heads // config.key_value_heads, (2 * config.layers) ** -0.5
        self.config = config
        self.attention_norm = Norm(c, rngs)
        # Queries and keys are both turned, and meet in one array for that. Values are not: within
        # that array they would be copied out of it, and their cotangent into it.
        queries = (c.key_value_heads, group + 1, c.head_width)
        values = (c.key_value_heads, c.head_width)
        self.qk, self.qk_bias = self._projection(queries, ("kv_heads", "q_k", "head_dim"), rngs)
        self.value, self.value_bias = self._projection(values, ("kv_heads", "head_dim"), rngs)
        self.out = param(
            rngs,
            normal(0.02 * out),
            (c.key_value_heads, group, c.head_width, c.width),
            ("kv_heads", "group", "head_dim", "embed"),
        )
        self.out_bias = param(rngs, ZEROS, (c.width,), ("embed",)) if c.bias else None
        self.ffn_norm = Norm(c, rngs)
        self._make_feed_forward(out, rngs)

    def _projection(self, shape, dims, rngs):
        """A weight from the residual to arrays of `shape`, whose dims are named, and its bias."""
        weight = param(rngs, normal(0.02), (self.config.width, *shape), ("embed", *dims))
        return weight, param(rngs, ZEROS, shape, dims) if self.config.bias else None

    def _make_feed_forward(self, out: float, rngs: nnx.Rngs) -> None:
        c = self.config
        # A side alone has no dim: in backward that would be summed over beside ffn, and XLA:CPU
        # copies the weight of a product that sums over two of its dims.
        sides, names = ((2,), ("sides",)) if c.gated else ((), ())
        shape, dims = (c.width, *sides, c.ffn), ("embed", *names, "ffn")
        self.up = param(rngs, normal(0.02), shape, dims)
        self.down = param(rngs, normal(0.02 * out), (c.ffn, c.width), ("ffn", "embed"))
        self.up_bias = param(rngs, ZEROS, shape[1:], dims[1:]) if c.bias else None
        self.down_bias = param(rngs, ZEROS, (c.width,), ("embed",)) if c.bias else None

    def __call__(self, x_BSD, key, *, attend) -> jax.Array:
        """Run one block; `key` draws its dropout masks, None leaves dropout out."""
        keys = (None, None) if key is None else jax.random.split(key)
        x_BSD = self._attended(x_BSD, keys[0], attend)
        y_BSD = self._feed_forward(hooks.entering(self.ffn_norm(x_BSD), RESIDUAL))
        return x_BSD + self._dropped(_left(y_BSD, "mlp_out"), keys[1])

    def _attended(self, x_BSD, key, attend):
        y_BSD = self._attention(hooks.entering(self.attention_norm(x_BSD), RESIDUAL), attend)
        return x_BSD + self._dropped(_left(y_BSD, "out_proj"), key)

    def _attention(self, x_BSD, attend):
        qk_BSKCH = jnp.einsum("bsd,defh->bsefh", x_BSD, self.qk[...].astype(x_BSD.dtype))
        qk_BSKCH = biased(qk_BSKCH, self.qk_bias)
        v_BSKH = jnp.einsum("bsd,deh->bseh", x_BSD, self.value[...].astype(x_BSD.dtype))
        v_BSKH = biased(v_BSKH, self.value_bias)
        q_BSKGH, k_BSK1H = qk_BSKCH[:, :, :, :-1], qk_BSKCH[:, :, :, -1:]
        if self.config.positions == "rope":
            # Each by itself: from one array of both, XLA would make either by reading all of it.
            at_S = hooks.positions(x_BSD.shape[1])
            q_BSKGH, k_BSK1H = (rotate(x, self.config.rope_base, at_S) for x in (q_BSKGH, k_BSK1H))
        k_BSKH = jnp.squeeze(k_BSK1H, 3)
        how = {"causal": True, "implementation": self.config.attention}
        kept = zip((q_BSKGH, k_BSKH, v_BSKH), SAVED_NAMES, strict=False)
        y_BSKGH = attend(*(checkpoint_name(x, name) for x, name in kept), **how)
        y_BSD = jnp.einsum("bsefh,efhd->bsd", y_BSKGH, self.out[...].astype(x_BSD.dtype))
        return biased(y_BSD, self.out_bias)

    def _feed_forward(self, x_BSD):
        c = "c" if self.config.gated else ""
        h = jnp.einsum(f"bsd,d{c}f->bs{c}f", x_BSD, self.up[...].astype(x_BSD.dtype))
        h = checkpoint_name(biased(h, self.up_bias), "ffn_inner")
        activation = ACTIVATIONS[self.config.activation]
        y_BSF = activation(h[:, :, 0]) * h[:, :, 1] if self.config.gated else activation(h)
        y_BSD = jnp.einsum("bsf,fd->bsd", y_BSF, self.down[...].astype(x_BSD.dtype))
        return biased(y_BSD, self.down_bias)

    def _dropped(self, y_BSD, key):
        return dropped(y_BSD, self.config.dropout, key)


def _left(y_BSD: jax.Array, name: str) -> jax.Array:
    """What a part of a block adds to the residual, named as it is there: to be kept whole, it would
    have to be summed whole."""
    return checkpoint_name(hooks.leaving(y_BSD, RESIDUAL), name)


class Decoder(nnx.Module):
    """Token ids (batch, sequence) -> logits (batch, sequence, vocab)."""

    block = Block
    """What is stacked."""

    def __init__(self, config: Transformer, rngs: nnx.Rngs):
        c = self.config = config
        self.embedding = param(rngs, normal(0.02), (c.vocabulary, c.width), ("vocab", "embed"))
        if c.positions == "learned":
            self.positions = param(
                rngs, normal(0.02), (c.sequence, c.width), ("positions", "embed")
            )

        @nnx.split_rngs(splits=c.layers)
        @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
        def stack(rngs):
            return self.block(c, rngs)

        self.blocks = stack(rngs)
        self.norm = Norm(c, rngs)
        if not c.tied:
            self.head = param(rngs, normal(0.02), (c.width, c.vocabulary), ("embed", "vocab"))

    def __call__(self, tokens_BS, key=None, *, through=hooks.in_order, attend=hooks.attention):
        """Score the next token at every position; `key` draws the dropout masks."""
        x_BSD, keys = self._embedded(tokens_BS, key)
        return self._scored(self._through(x_BSD, keys, RESIDUAL, through, attend))

    def _embedded(self, tokens_BS, key):
        """The residual before the first block, and a key for each block's dropout or None."""
        c = self.config
        dtype = c.compute_dtype or self.embedding.dtype
        x_BSD = hooks.leaving(self.embedding[...].astype(dtype)[tokens_BS], RESIDUAL)
        if c.positions == "learned":
            rows_SD = self.positions[...].astype(dtype)[: tokens_BS.shape[1]]
            x_BSD = x_BSD + along(hooks.in_position_order(rows_SD), x_BSD)
        if key is None or c.dropout == 0:
            return x_BSD, None
        key, first = jax.random.split(key)
        return dropped(x_BSD, c.dropout, first), jax.random.split(key, c.layers)

    def _through(self, x, keys, dims, through, attend):
        """What the blocks make of `x`, the residual or a tree with it; `dims` names its dims."""
        graph, weights = nnx.split(self.blocks)

        def block(layer, x):
            return nnx.merge(graph, layer[0])(x, layer[1], attend=attend)

        return through(
            block,
            (weights, keys),
            x,
            dims=dims,
            remat=self.config.remat,
            unroll=min(self.config.unroll, self.config.layers),
        )

    def _scored(self, x_BSD):
        """Logits of the residual after the last block."""
        dtype = x_BSD.dtype
        x_BSD = hooks.entering(self.norm(x_BSD), RESIDUAL)
        head_DV = self.embedding[...].T if self.config.tied else self.head[...]
        return logits_of(x_BSD, head_DV.astype(dtype))


def next_token_loss(module, batch, *, key=None, **chosen) -> tuple[Mean, dict[str, Mean]]:
    """Loss of a decoder: `tokens`, `targets` and `weight`, each (batch, sequence)."""
    logits = module(batch["tokens"], key, **chosen)
    return scores(logits, batch["targets"], batch["weight"])


def model(config: Transformer = Transformer(), *, name="transformer", **fields) -> Model:  # noqa: B008
    """Return the decoder; `fields` replace those of `Transformer`."""
    config = replace(config, **fields)
    dims = ("batch", "sequence")
    shape = (config.batch, config.sequence)
    return Model(
        name=name,
        build=lambda rngs: Decoder(config, rngs),
        loss=next_token_loss,
        batch={
            "tokens": Field(shape, "int32", dims, below=config.vocabulary),
            "targets": Field(shape, "int32", dims, below=config.vocabulary),
            "weight": Field(shape, "float32", dims),
        },
        roles={
            "embed": "residual",
            "ffn": "inner",
            "kv_heads": "heads",
            "vocab": "vocabulary",
        },
        # A mask is drawn row by row in the order that rows come in, which then has to stay.
        hooks=("through", "attend", *(("positions",) if config.dropout == 0 else ())),
        compute_dtype=config.compute_dtype,
        data="text",
        config=config,
        remake=partial(model, name=name),
    )
