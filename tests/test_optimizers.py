"""Every optimizer of the catalogue: the recipe holds for it, and a layout computes its update."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pytest
from small import nested, small_layout

from jaxpar.case import Case
from jaxpar.core.catalogue import OPTIMIZERS
from jaxpar.core.errors import RequestError
from jaxpar.measures.memory import memory
from jaxpar.measures.verify.reference import reference
from jaxpar.measures.verify.verify import verify
from jaxpar.optimizers.record import SKIPS_IN_A_ROW, Recipe, make_optimizer, matrices
from jaxpar.runtime.training import Training, optimizer_of

pytestmark = pytest.mark.usefixtures("drawn_once")

DIMS = {"up": ("layers", "embed", "ffn"), "bias": ("layers", "ffn"), "scale": ("embed",)}
SIZES = {"layers": 2, "embed": 4, "ffn": 3}


def arrays(value: float) -> dict[str, np.ndarray]:
    return {p: np.full([SIZES[d] for d in own], value, np.float32) for p, own in DIMS.items()}


def moved(optimizer, gradients, parameters) -> tuple[dict[str, np.ndarray], Any]:
    update, state = optimizer.update(gradients, optimizer.init(parameters), parameters)
    return {p: np.asarray(u) for p, u in update.items()}, state


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_matrices_decay_and_vectors_do_not(name):
    """With no gradient decay is all there is: the rate times the weight decay, of each weight."""
    recipe = Recipe(optimizer=name, learning_rate=0.5, decay="constant", warmup=0, weight_decay=0.1)
    update, _ = moved(make_optimizer(recipe, DIMS), arrays(0.0), arrays(1.0))
    assert matrices(DIMS) == {"up": True, "bias": False, "scale": False}
    np.testing.assert_allclose(update["up"], -0.05, rtol=1e-6)
    assert not update["bias"].any() and not update["scale"].any()


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_the_gradient_is_clipped_before_the_rule_sees_it(name):
    """A gradient ten times too large moves as one of norm 1 does; with clip 0 it need not."""
    recipe = Recipe(optimizer=name, decay="constant", warmup=0)
    count = sum(a.size for a in arrays(0.0).values())
    of_norm_1, of_norm_10 = arrays(count**-0.5), arrays(10 * count**-0.5)
    clipped = make_optimizer(recipe, DIMS)
    for path, update in moved(clipped, of_norm_10, arrays(1.0))[0].items():
        np.testing.assert_allclose(update, moved(clipped, of_norm_1, arrays(1.0))[0][path], 1e-5)
    free = make_optimizer(replace(recipe, clip=0.0), DIMS)
    states = [moved(free, g, arrays(1.0))[1] for g in (of_norm_1, of_norm_10)]
    one, ten = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(s)]) for s in states)
    assert not np.allclose(one, ten)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_an_update_that_is_not_finite_is_skipped_when_asked(name):
    """Nothing moves, and not for ever: the state counts how often in a row."""
    optimizer = make_optimizer(Recipe(optimizer=name), DIMS, skips=True)
    update, state = moved(optimizer, arrays(np.inf), arrays(1.0))
    assert not any(u.any() for u in update.values())
    assert int(state.notfinite_count) == 1 < SKIPS_IN_A_ROW


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_a_layout_computes_the_update_of_one_device(name):
    """Three updates with weights and optimizer state sharded, in float64."""
    tiny = {"width": 32, "hidden": 2, "whole_below": 64, "optimizer": name}
    case = Case("mlp", strategy="fsdp+tensor", mesh="data=2,model=2", set=tiny).resolve()
    verdict = verify(case.layout, hardware=case.hardware, make=case.make)
    assert verdict.ok and verdict.dtype == "float64", verdict
    found, whole = memory(case.compile(for_speed=False)), case.layout.parameter_bytes
    copies = found.optimizer_state_bytes / found.parameter_bytes
    assert 0 <= copies <= 2 and found.parameter_bytes < whole


def test_adamw_is_optaxs():
    """The very updates of the chain that one would write by hand, for some steps."""
    recipe = Recipe(steps=10, learning_rate=1e-2, warmup=3, weight_decay=0.2, clip=0.5)
    rise = optax.linear_schedule(1e-2 / 3, 1e-2, 2)
    fall = optax.cosine_decay_schedule(1e-2, 7, alpha=0.1)
    by_hand = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(optax.join_schedules([rise, fall], [3]), weight_decay=0.2, mask=matrices(DIMS)),
    )
    ours, rng = make_optimizer(recipe, DIMS), np.random.default_rng(0)
    states = [o.init(arrays(1.0)) for o in (ours, by_hand)]
    for _ in range(6):
        gradients = {p: rng.standard_normal(a.shape, "f4") for p, a in arrays(0.0).items()}
        results = [
            o.update(gradients, s, arrays(1.0))
            for o, s in zip((ours, by_hand), states, strict=True)
        ]
        states = [state for _, state in results]
        assert jax.tree.all(jax.tree.map(np.array_equal, results[0][0], results[1][0]))


def test_an_optimizers_own_options_reach_it():
    """Said with the model's fields, they are its alone; another rule's are unknown."""
    case = Case("mlp", strategy="single", mesh="data=1", set={"optimizer": "sgd", "momentum": 0.0})
    resolved = case.resolve()
    assert resolved.optimizer_options == {"momentum": 0.0}
    step = resolved.make(resolved.layout)
    assert not [leaf for leaf in jax.tree.leaves(step.state.optimizer) if leaf.ndim]
    asked = make_optimizer(Recipe(clip=0.0), DIMS, b1=0.5, b2=0.75)
    adam, *_ = moved(asked, arrays(2.0), arrays(1.0))[1]
    np.testing.assert_allclose(adam.mu["up"], (1 - 0.5) * 2.0)
    np.testing.assert_allclose(adam.nu["up"], (1 - 0.75) * 2.0**2)


def test_options_that_make_no_sense_are_refused():
    """Before anything is compiled, with the nearest name or the rule."""
    with pytest.raises(RequestError, match="unknown field of 'mlp'.*: did you mean 'momentum'"):
        Case("mlp", set={"optimizer": "sgd", "momentun": 0.5}).resolve()
    with pytest.raises(RequestError, match="unknown field of 'mlp', of training, its optimizer"):
        Case("mlp", set={"momentum": 0.5}).resolve()
    with pytest.raises(RequestError, match="b2=1.5: use a number from 0 up to, not including, 1"):
        Case("mlp", set={"b2": 1.5}).resolve()
    with pytest.raises(RequestError, match="nesterov is true or false"):
        Case("mlp", set={"optimizer": "sgd", "nesterov": 3}).resolve()
    with pytest.raises(RequestError, match="unknown optimizer 'adamv': did you mean 'adamw'"):
        Training(optimizer="adamv")


def test_momentum_looks_ahead_where_nesterov_asks():
    """Two updates of a constant gradient: 1 and 1.9 times it, or 1.9 and 2.71 times."""
    layout = small_layout("mlp", "single", "data=1")
    ones = nested(layout, {p: np.ones(a.shape, np.float32) for p, a in layout.parameters.items()})
    plain = {"decay": "constant", "warmup": 0, "weight_decay": 0.0, "clip": 0.0}
    training = Training(optimizer="sgd", learning_rate=1.0, **plain)
    for nesterov, expected in ((False, (1.0, 1.9)), (True, (1.9, 2.71))):
        optimizer = optimizer_of(training, layout, momentum=0.9, nesterov=nesterov)
        state = optimizer.init(ones)
        for times in expected:
            update: Any
            update, state = optimizer.update(ones, state, ones)
            assert np.allclose(update["layers"][0]["kernel"], -times)


def test_cases_of_one_model_share_one_devices_side():
    """Model and optimizer are the same objects for equal words, and others for other words."""

    def side(mesh, **words):
        case = Case("mlp", strategy="data", mesh=mesh, set=words).resolve()
        made = case.make(case.layout)
        return reference(
            case.layout.model, optimizer=made.optimizer, microbatches=1, hardware=case.hardware
        )

    first = side("data=2", width=32)
    assert side("data=4", width=32) is first
    assert side("data=2", width=16) is not first
    assert side("data=2", width=32, learning_rate=1e-2) is not first
