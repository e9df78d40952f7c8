"""Fused attention is attention: its numbers, its call, and what it makes of a program.

Numbers in float64 on simulated devices, where blocks of keys stand for cuDNN; cuDNN's own on a real
GPU, where there is one.
"""

import json
import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import cpu, needs_cudnn, needs_gpu_compiler, small_layout
from test_traffic import BOTH

from jaxpar.attention import blocks, fused, record, ulysses
from jaxpar.core import hooks, nvidia
from jaxpar.core.errors import LayoutError
from jaxpar.measures.inspect import inspect
from jaxpar.measures.verify.verify import verify
from jaxpar.program.record import compile_step
from jaxpar.step.make_step import make_step

GROUPED = (2, 12, 2, 3, 8)
"""Rows, positions, key-value heads, queries a head, elements of a head."""

SCALE = GROUPED[-1] ** -0.5


def operands(shape=GROUPED, dtype="float64", count=4):
    """Queries, keys, values and a gradient of the result, drawn."""
    rows, length, heads, _, width = shape
    keys = (rows, length, heads, width)
    draws = np.random.default_rng(0)
    drawn = [draws.standard_normal(s) for s in (shape, keys, keys, shape)]
    return [jnp.asarray(x, dtype) for x in drawn[:count]]


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_are_attention_and_so_are_their_gradients(causal, wide, monkeypatch):
    """Three keys at a time; the derivative that JAX makes of attention is the reference."""
    monkeypatch.setattr(blocks, "KEYS", 3)
    q, k, v, dy = operands()
    whole, back = jax.vjp(lambda *x: hooks.attention(*x, causal=causal), q, k, v)
    made, back_of_blocks = jax.vjp(partial(fused.attend, causal, SCALE), q, k, v)
    np.testing.assert_allclose(made, whole, rtol=1e-12)
    for ours, theirs in zip(back_of_blocks(dy), back(dy), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_log_sums_join_two_sets_of_keys_into_one(wide):
    """What a ring rests on: results and gradients over all keys from those over halves of them."""
    q, k, v, dy = operands()
    y, log = fused.forward(q, k, v, causal=False, scale=SCALE)
    how = {"causal": False, "scale": SCALE}
    halves = [fused.forward(q, k[:, s], v[:, s], **how) for s in (slice(6), slice(6, None))]
    np.testing.assert_allclose(jnp.logaddexp(halves[0][1], halves[1][1]), log, rtol=1e-12)
    dq, dk, dv = fused.backward(q, k, v, y, log, dy, causal=False, scale=SCALE)
    parts = [
        fused.backward(q, k[:, s], v[:, s], y, log, dy, causal=False, scale=SCALE)
        for s in (slice(6), slice(6, None))
    ]
    np.testing.assert_allclose(parts[0][0] + parts[1][0], dq, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(jnp.concatenate([p[1] for p in parts], 1), dk, rtol=1e-10)
    np.testing.assert_allclose(jnp.concatenate([p[2] for p in parts], 1), dv, rtol=1e-10)


def test_it_is_mapped_and_differentiated_twice_as_any_function_of_jax(wide):
    """Under vmap what is mapped becomes rows, be it in all operands or in some."""
    q, k, v = operands(count=3)
    mapped = jax.vmap(lambda q: fused.attend(True, SCALE, q, k, v))(jnp.stack([q, 2 * q]))
    np.testing.assert_allclose(mapped[1], hooks.attention(2 * q, k, v), rtol=1e-12)

    def slope(attend):
        return jax.grad(lambda q: jnp.sum(attend(q) ** 2))

    def bent(attend):
        return jax.grad(lambda q: jnp.sum(slope(attend)(q) ** 2))(q)

    ours, theirs = (
        bent(lambda q: fused.attend(True, SCALE, q, k, v)),
        bent(lambda q: hooks.attention(q, k, v)),
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)


CASES = [
    ("hybrid", "data=2,model=2", "auto", 1),
    ("hybrid", "data=2,model=2", "manual", 1),
    ("hybrid", "data=2,model=2", "explicit", 1),
    ("data+pipeline", "pipe=2,data=2", "auto", 2),
    ("context", "data=2,model=2", "auto", 1),
]


def fuse_always(monkeypatch):
    """Let attention be fused in float64 too, where a proof can tell right from wrong."""
    for module in (record, fused, ulysses):
        monkeypatch.setattr(module, "suits", lambda q, v, implementation: True)


@pytest.mark.parametrize(("strategy", "mesh", "mode", "microbatches"), CASES)
def test_a_layout_with_fused_attention_is_what_it_is_on_one_device(
    strategy, mesh, mode, microbatches, monkeypatch
):
    fuse_always(monkeypatch)
    layout = small_layout("transformer", strategy, mesh, batch=8, kv_heads=4)
    make = partial(make_step, mode=mode, microbatches=microbatches)
    verdict = verify(layout, hardware=cpu(), make=make)
    assert verdict.ok and verdict.dtype == "float64", verdict.likely_mistake


def test_a_wrong_backward_is_a_mismatch(monkeypatch):
    """With the gradient of keys doubled."""
    fuse_always(monkeypatch)
    right = fused.backward

    def wrong(*operands, **how):
        dq, dk, dv = right(*operands, **how)
        return dq, 2 * dk, dv

    monkeypatch.setattr(fused, "backward", wrong)
    layout = small_layout("transformer", "data", "data=2", batch=8, kv_heads=4)
    assert not verify(layout, hardware=cpu()).ok


def calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls of cuDNN in a lowered program, each with what XLA is told of it."""
    pattern = r'custom_call @(__cudnn\$\w+)\(.*?backend_config = "((?:[^"\\]|\\.)*)"'

    def told(config):
        plain = re.sub(r"\\([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), config)
        return json.loads(plain)["cudnn_fmha_backend_config"]

    return [(name, told(config)) for name, config in re.findall(pattern, text)]


@pytest.mark.parametrize("causal", [True, False])
def test_the_call_says_what_is_asked_for(causal, monkeypatch):
    """Mask, scale and shapes of both calls, lowered for CUDA without any of it here."""
    monkeypatch.setattr(fused, "fuses", lambda head_dim: True)
    q, k, v, dy = operands(dtype="bfloat16")

    def both(q, k, v, dy):
        return jax.vjp(lambda *x: fused.attend(causal, SCALE, *x), q, k, v)[1](dy)

    lowered = jax.jit(both).trace(q, k, v, dy).lower(lowering_platforms=("cuda",))
    found = dict(calls(lowered.as_text()))
    assert set(found) == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    rows, length, heads, group, _ = GROUPED
    for config in found.values():
        assert config["mask_type"] == ("CAUSAL" if causal else "NO_MASK")
        assert config["fmha_scale"] == pytest.approx(SCALE)
        scores = config["intermediate_tensor_shape"]
        assert scores["dimensions"] == [str(n) for n in (rows, heads * group, length, length)]
        assert scores["element_type"] == "BF16"


def test_without_cudnn_no_call_is_made(monkeypatch):
    """Then XLA compiles blocks of keys, on GPUs too."""
    monkeypatch.setattr(fused, "fuses", lambda head_dim: False)
    q, k, v = operands(dtype="bfloat16", count=3)
    traced = jax.jit(lambda *x: fused.attend(True, SCALE, *x)).trace(q, k, v)
    assert not calls(traced.lower(lowering_platforms=("cuda",)).as_text())


@pytest.mark.parametrize(
    ("here", "fused_heads"), [((), (128, 256)), (("8.0", "9.0"), (128,)), (("7.5",), ())]
)
def test_gpus_that_are_too_old_are_not_asked(here, fused_heads, monkeypatch):
    """The oldest of this machine's decides; without one the described ones do, which are new."""
    monkeypatch.setattr(nvidia, "has_cudnn", lambda: True)
    monkeypatch.setattr(nvidia, "has_nvidia_gpu", lambda: bool(here))
    gpus = [SimpleNamespace(compute_capability=capability) for capability in here]
    monkeypatch.setattr(jax, "devices", lambda platform: gpus)
    assert [head for head in (128, 256) if nvidia.fuses(head)] == list(fused_heads)


def test_attention_that_cudnn_cannot_fuse_is_whole_or_refused():
    """By its type or by its heads; asked for so, it is refused in a sentence."""
    step = make_step(small_layout("transformer", "data", "data=2"))
    assert "fused_attention" not in str(step.traced.closed)
    for fields, why in (
        ({}, "queries are float32"),
        (
            {"compute_dtype": "bfloat16", "head_dim": 12},
            "a head of 12 elements is no multiple of 8",
        ),
    ):
        layout = small_layout("transformer", "data", "data=2", attention="fused", **fields)
        with pytest.raises(LayoutError, match=why):
            make_step(layout).traced  # noqa: B018


@needs_gpu_compiler
@needs_cudnn
def test_on_described_gpus_no_score_is_held():
    """The same collectives as with whole attention, and no array of as many queries as keys."""
    length = 272
    fields = {"compute_dtype": "bfloat16", "width": 64, "sequence": length, "remat": "full"}
    programs = {
        how: compile_step(
            make_step(small_layout("transformer", "hybrid", BOTH, attention=how, **fields)),
            hardware="h100",
            for_speed=False,
        )
        for how in ("whole", "fused")
    }
    found = {how: inspect(program) for how, program in programs.items()}
    assert found["fused"].collectives == found["whole"].collectives and found["fused"].ok
    scores = f",{length},{length}]"
    assert scores in programs["whole"].text and scores not in programs["fused"].text
    assert "fused by cuDNN" in found["fused"].attention
    assert "asked for so" in found["whole"].attention


def has_gpu() -> bool:
    """Whether JAX runs on an NVIDIA GPU here."""
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False


@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", [(2, 512, 4, 1, 64), (2, 1024, 2, 4, 128), (1, 256, 1, 8, 256)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fused_and_whole_attention_are_one_function_on_a_gpu(shape, causal, dtype):
    """Each against float64: the fused one is no further off than twice the whole one."""
    with jax.enable_x64(True):
        exact = operands(shape)
        operands_ = [x.astype(dtype) for x in exact]
        exact = [x.astype("float64") for x in operands_]

        def results(attend, q, k, v, dy):
            y, back = jax.vjp(attend, q, k, v)
            return y, *back(dy)

        def whole(q, k, v):
            return hooks.attention(q, k, v, causal=causal)

        def quick(q, k, v):
            return fused.attend(causal, shape[-1] ** -0.5, q, k, v)

        right = jax.jit(results, static_argnums=0)(whole, *exact)
        errors = [
            [
                float(jnp.linalg.norm(a.astype("float64") - b) / jnp.linalg.norm(b))
                for a, b in zip(
                    jax.jit(results, static_argnums=0)(f, *operands_), right, strict=True
                )
            ]
            for f in (whole, quick)
        ]
    for theirs, ours in zip(*errors, strict=True):
        assert ours <= 2 * theirs + 1e-3, errors
