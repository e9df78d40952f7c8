"""A layout computes what one device computes: loss, every gradient, update, state, masks.

In float64, where honest layouts and classic mistakes are ten decades apart. Measured worst over all
cases below: 3.1e-15 on a gradient, 5.1e-15 on a state after three steps, against bounds of 1e-9;
and 3.1e-7 against 1e-4 for the one case in float32.
"""

from dataclasses import replace
from functools import partial
from itertools import cycle

import jax.numpy as jnp
import pytest
from small import (
    MODES,
    assert_as_stated,
    assert_sharded_as_asked,
    cpu,
    crossed_fully,
    kinds_of_model,
    mesh_for,
    small_layout,
    small_model,
    small_strategy,
)

from jaxpar.core.catalogue import HARDWARE, MODELS
from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import MeshShape, axes_of
from jaxpar.layout.lay_out import lay_out
from jaxpar.measures.traffic import traffic
from jaxpar.measures.verify.verdict import BOUNDS
from jaxpar.measures.verify.verify import verify
from jaxpar.step.make_step import make_step

pytestmark = pytest.mark.usefixtures("drawn_once")

HEADROOM = 100
"""Honest float64 errors stay this far below the bound, so that the bound is never nearly met."""

BOTH = "data=4,model=2"
MESHES = ("data=8", "data=2,model=4", "model=8", "data=16", "data=8,model=2", "model=2,data=4")


def prove(layout, *, mode: str = "auto", microbatches: int = 1, dtype: str = "float64"):
    """Assert that `layout` computes what one device does, and that enough was compared."""
    make = partial(make_step, mode=mode, microbatches=microbatches)
    verdict = verify(layout, hardware=cpu(), make=make)
    assert verdict.ok, f"{verdict.decisive}: {verdict.likely_mistake}"
    assert verdict.dtype == dtype
    assert verdict.likely_mistake is None
    by_name = {check.name: check for check in verdict.checks}
    assert by_name["gradient"].arrays == len(layout.parameters) > 0
    assert by_name[f"state after {verdict.steps} steps"].arrays > 3 * len(
        layout.parameters
    )  # and two moments
    assert ("model state" in by_name) == bool(layout.state)
    for check in verdict.checks:
        assert check.replicas_agree, check
        if dtype == "float64":
            assert check.error * HEADROOM <= check.bound, check
    assert verdict.program is not None
    return verdict.program


@pytest.mark.parametrize(("model", "strategy", "mode"), crossed_fully())
def test_every_strategy_computes_what_one_device_does(model, strategy, mode):
    """One update under any strategy, on all of its axes at once, equals one device's.

    Every array is sharded as was asked, and collectives are those that the strategy states: see
    `test_traffic` for their bytes.
    """
    program = prove(small_layout(model, strategy, mesh_for(strategy)), mode=mode)
    assert_sharded_as_asked(program)
    layout, sizes = program.step.layout, dict(program.step.layout.mesh.sizes)
    texts = [program.probe.as_text()]
    if program.average is not None:
        texts.append(program.average.as_text())
    assert_as_stated(layout, tuple(row for text in texts for row in traffic(text, sizes)), mode)


@pytest.mark.parametrize(("mesh", "mode"), list(zip(MESHES, cycle(MODES), strict=False)))
def test_every_shape_of_mesh_computes_the_same(mesh, mode):
    """However many devices, and in whichever order the axes stand."""
    layout = small_layout("mlp", "fsdp+tensor", mesh)
    spec = [s for a in layout.parameters.values() for s in a.stored]
    for axis, size in layout.mesh.sizes:
        assert size == 1 or any(axis in axes_of(entry) for entry in spec)
    prove(layout, mode=mode)


# Each choice of the decoder that no sized model below makes; several share a case because a case
# costs seconds, and a failure names the array it is in.
CHOICES = {
    "dots": ("hybrid", {"kv_heads": 4, "tied": True, "dropout": 0.1, "remat": "dots"}),
    # Too few rows for all devices: the residual is sharded along the sequence.
    "minimal": (
        "fsdp+sequence",
        {"kv_heads": 2, "norm": "layer", "remat": "minimal", "gated": True, "batch": 4},
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_the_decoder_computes_the_same(choice, mode):
    """Grouped heads, tied tables, dropout, layer norm, and what is kept for backward."""
    strategy, fields = CHOICES[choice]
    prove(small_layout("transformer", strategy, BOTH, **fields), mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("microbatches", [2])
def test_accumulated_gradients_are_those_of_the_whole_batch(microbatches, mode):
    """Under a layout and in microbatches at once, with rows of uneven weight."""
    prove(small_layout("mlp", "hybrid", BOTH), mode=mode, microbatches=microbatches)


def test_rows_that_travel_instead_of_their_table_compute_the_same():
    """A vocabulary of which a device's rows are fewer bytes, under accumulation and replicas."""
    layout = small_layout("transformer", "replica+fsdp", "replica=2,data=4", vocabulary=1024)
    prove(layout, microbatches=2)


@pytest.mark.parametrize(
    ("mode", "strategy", "mesh"),
    [
        ("auto", "zero1+tensor", BOTH),  # mapped by vmap, as the gradient adds by index
        ("manual", "replica+zero2", "replica=2,data=4"),
    ],
)
def test_what_is_accumulated_apart_and_summed_once_is_the_same(mode, strategy, mesh):
    """Optimizer state sharded finer than gradients, and gradients than weights."""
    prove(small_layout("transformer", strategy, mesh), mode=mode, microbatches=2)


# Sizes that are one model when small, as all Llamas are, are proved once.
SIZED = {small_model(name).config: name for name in MODELS.names() if name not in kinds_of_model()}


@pytest.mark.parametrize(
    ("model", "mode"), list(zip(sorted(SIZED.values()), cycle(MODES), strict=False))
)
def test_sized_models_compute_the_same_when_small(model, mode):
    """A size of another model, with its own choices, computes the same under fsdp+tensor.

    GPT-2 brings learned positions, layer norm, biases and a tied head; Llama gates and full
    rematerialization.
    """
    prove(small_layout(model, "fsdp+tensor", BOTH), mode=mode)


def test_the_data_strategies_really_shard_the_small_models():
    """What the laws above prove is not a replicated model.

    The small models are below fsdp's own threshold; with it nothing would be cut or gathered.
    """
    for model in kinds_of_model():
        arrays = small_layout(model, "fsdp", BOTH).parameters.values()
        cut = sum(a.size for a in arrays if a.stored != a.used)
        assert cut > 0.8 * sum(a.size for a in arrays), model
        assert small_strategy("fsdp").whole_below > 0


def test_a_model_that_computes_in_float32_is_judged_in_float32():
    """A forward pass that rounds to float32 cannot be judged to 1e-9, and verify finds that out."""
    model = small_model("mlp")

    def narrow_loss(module, batch, *, key=None):
        loss, metrics = model.loss(module, batch, key=key)
        total = (loss.total.astype(jnp.float32) * jnp.float32(1.0)).astype(loss.total.dtype)
        return replace(loss, total=total), metrics

    layout = lay_out(
        replace(model, loss=narrow_loss),
        strategy=small_strategy("hybrid"),
        mesh=MeshShape.parse(BOTH),
    )
    prove(layout, dtype="float32")


def test_described_hardware_cannot_verify_and_says_so():
    """Nothing can be run on devices that are not there."""
    with pytest.raises(RequestError, match="described, not present.*use --hardware cpu"):
        verify(small_layout("mlp", "data", "data=8"), hardware=HARDWARE.load("h100")())


def test_bounds_are_between_honest_layouts_and_mistakes():
    """The narrower the arithmetic the wider the bound; float32 stays below the smallest mistake.

    1.8e-3 is what reducing gradients in bfloat16 does, the smallest of the classic mistakes; 1.5e-6
    is the worst honest float32 layout.
    """
    order = [BOUNDS[d]["gradient"] for d in ("float64", "float32", "float16", "bfloat16")]
    assert order == sorted(order)
    assert 10 * 1.5e-6 < BOUNDS["float32"]["gradient"] < 1.8e-3 / 10
