"""Every optimizer of optax and optax.contrib computes under a layout what it does on one device.

On each kind of layout, with a matrix that is stored in pieces: ten at a time, and by `make claims`
each by itself.
"""

import itertools
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util
from optax import contrib
from small import cpu

import jaxpar
from jaxpar.case import load_strategy
from jaxpar.step.optimization import Optimization
from jaxpar.step.own_tree import OwnTree

pytestmark = pytest.mark.usefixtures("drawn_once")

LAYOUTS = (("fsdp", "data=4"), ("zero1", "data=4"), ("tensor", "model=2"))

DRAWN = (*LAYOUTS[:2], pytest.param(*LAYOUTS[2], marks=pytest.mark.draws_sharded))
"""The same; a first state is drawn sharded where weights are in pieces."""

OPTIMIZERS = {
    "adabelief": optax.adabelief(1e-3),
    "adadelta": optax.adadelta(1e-3),
    "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=8),
    "adagrad": optax.adagrad(1e-3),
    "adam": optax.adam(1e-3),
    "adamax": optax.adamax(1e-3),
    "adamaxw": optax.adamaxw(1e-3),
    "adamw": optax.adamw(1e-3),
    "adan": optax.adan(1e-3),
    "amsgrad": optax.amsgrad(1e-3),
    "fromage": optax.fromage(1e-3),
    "lamb": optax.lamb(1e-3),
    "lars": optax.lars(1e-3),
    "lbfgs": optax.lbfgs(1e-3, linesearch=None),
    "lion": optax.lion(1e-3),
    "nadam": optax.nadam(1e-3),
    "nadamw": optax.nadamw(1e-3),
    "noisy_sgd": optax.noisy_sgd(1e-3, key=0),
    "novograd": optax.novograd(1e-3),
    "optimistic_adam_v2": optax.optimistic_adam_v2(1e-3),
    "optimistic_gradient_descent": optax.optimistic_gradient_descent(1e-3),
    "polyak_sgd": optax.polyak_sgd(),
    "radam": optax.radam(1e-3),
    "rmsprop": optax.rmsprop(1e-3),
    "rprop": optax.rprop(1e-3),
    "sgd": optax.sgd(1e-3, momentum=0.9, nesterov=True),
    "sign_sgd": optax.sign_sgd(1e-3),
    "signum": optax.signum(1e-3),
    "sm3": optax.sm3(1e-3),
    "yogi": optax.yogi(1e-3),
    "acprop": contrib.acprop(1e-3),
    "ademamix": contrib.ademamix(1e-3),
    "adopt": contrib.adopt(1e-3),
    "cocob": contrib.cocob(),
    "dadapt_adamw": contrib.dadapt_adamw(),
    "dog": contrib.dog(),
    "dowg": contrib.dowg(),
    "madgrad": contrib.madgrad(1e-3),
    "mechanize": contrib.mechanize(optax.adam(1e-3)),
    "momo": contrib.momo(),
    "momo_adam": contrib.momo_adam(),
    "muon": contrib.muon(1e-3),
    "prodigy": contrib.prodigy(),
    "reduce_on_plateau": optax.chain(optax.adam(1e-3), contrib.reduce_on_plateau()),
    "schedule_free_adamw": contrib.schedule_free_adamw(1e-3),
    "simplified_ademamix": contrib.simplified_ademamix(1e-3),
    "by_block": optax.chain(optax.clip_by_block_rms(0.1), optax.adam(1e-3)),
    "by_norm": optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(1e-2)),
    "centred": optax.chain(optax.centralize(), optax.sgd(1e-2)),
}
GROUPS = [dict(list(OPTIMIZERS.items())[at : at + 10]) for at in range(0, len(OPTIMIZERS), 10)]
"""Those that are proved together: a case costs seconds, and each has a state of its own in it."""


def together(group):
    """The mean of the updates that optimizers make side by side, by name."""
    group = {name: optax.with_extra_args_support(optimizer) for name, optimizer in group.items()}

    def init(params):
        return {name: optimizer.init(params) for name, optimizer in group.items()}

    def update(updates, state, params=None, **extra):
        made = {n: o.update(updates, state[n], params, **extra) for n, o in group.items()}
        mean = jax.tree.map(lambda *moves: sum(moves) / len(moves), *(m for m, _ in made.values()))
        return mean, {name: after for name, (_, after) in made.items()}

    return optax.GradientTransformationExtraArgs(init, update)


@cache
def group(at):
    """A group together, the same for each layout, so that one device's side is too."""
    return together(GROUPS[at])


class Attend(nnx.Module):
    """One matrix for queries, keys and values, which tensor parallelism stores in three pieces."""

    def __init__(self, rngs):
        self.qkv, self.out = nnx.Linear(16, 48, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x):
        q, k, v = (a.reshape(*x.shape[:2], 2, 8) for a in jnp.split(self.qkv(x), 3, axis=-1))
        return self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


@cache
def attention():
    x = np.random.default_rng(0).standard_normal((8, 3, 16)).astype("float32")
    return jaxpar.model(Attend, lambda net, b: ((net(b["x"]) - 0.3) ** 2).mean(), {"x": x})


def laid_out(strategy, mesh):
    options = {} if strategy == "tensor" else {"whole_below": 64}
    chosen = load_strategy(strategy, **options)
    return jaxpar.lay_out(attention(), strategy=chosen, mesh=jaxpar.MeshShape.parse(mesh))


def prove(optimizer, strategy, mesh):
    layout = laid_out(strategy, mesh)
    assert layout.parameters["qkv/kernel/0"].optimizer_state != jax.P(None, None)
    make = partial(jaxpar.make_step, optimizer=optimizer)
    verdict = jaxpar.verify(layout, hardware=cpu(), make=make, steps=2)
    assert verdict.ok, verdict.decisive
    assert verdict.dtype == "float64"
    return verdict


@pytest.mark.parametrize(("strategy", "mesh"), DRAWN)
@pytest.mark.parametrize("at", range(len(GROUPS)), ids=lambda at: "-".join(GROUPS[at])[:20])
def test_optimizers_compute_what_they_do_on_one_device(at, strategy, mesh):
    """Two updates, weights and optimizer state sharded, a fused matrix in pieces."""
    prove(group(at), strategy, mesh)


@pytest.mark.parametrize(("of_state", "check"), [(True, "state after 1 steps"), (False, "update")])
def test_one_wrong_optimizer_among_ten_is_found(of_state, check):
    """The law above can fail: one is off by a thousandth, in what it keeps or in what it moves."""
    traces = itertools.count()

    def wrong(updates, state, params=None):
        off = 1 + 1e-3 * next(traces)  # is traced more than once, and otherwise each time
        kept, moved = (off, 1.0) if of_state else (1.0, off)
        return jax.tree.map(lambda x: moved * x, updates), kept * jnp.ones_like(state)

    odd = optax.GradientTransformation(lambda params: jnp.ones(8), wrong)
    layout = laid_out(*LAYOUTS[0])
    make = partial(jaxpar.make_step, optimizer=together({**GROUPS[0], "odd": odd}))
    verdict = jaxpar.verify(layout, hardware=cpu(), make=make, steps=1)
    failed = [one for one in verdict.checks if not one.ok]
    assert check in {one.name for one in failed}, verdict.checks
    if of_state:
        assert {one.worst for one in failed} == {"optimizer/odd"}


@pytest.mark.claims
@pytest.mark.parametrize(("strategy", "mesh"), LAYOUTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_by_itself(name, strategy, mesh):
    """The same, one at a time."""
    prove(OPTIMIZERS[name], strategy, mesh)


OTHERS = {
    "multi_steps": optax.MultiSteps(optax.adam(1e-3), 2),
    "sam": contrib.sam(optax.sgd(1e-2), optax.sgd(0.1), sync_period=2),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(optax.linear_schedule(1e-3, 0, 9)),
    "masked": optax.masked(
        optax.adamw(1e-3), lambda p: jax.tree.map(lambda x: len(x.shape) > 1, p)
    ),
    "flatten": optax.flatten(optax.adam(1e-3)),
    "conditionally": optax.conditionally_transform(
        optax.adam(1e-3), lambda step, **_: jnp.greater(step, 1)
    ),
}
"""What makes an optimizer of another; two of them are not called as the rest of optax is."""


@pytest.mark.parametrize("name", OTHERS)
def test_an_optimizer_around_another_computes_what_it_does_on_one_device(name):
    prove(OTHERS[name], *LAYOUTS[0])


def test_pieces_are_storage_and_the_optimizer_sees_the_model():
    """The tree that it is given is Flax's, each weight whole in meaning."""
    seen = {}

    def spy(updates, state, params=None):
        seen.update(traverse_util.flatten_dict(jax.tree.map(jnp.shape, params), sep="/"))
        return updates, state

    optimizer = optax.GradientTransformation(lambda params: (), spy)
    layout = laid_out("tensor", "model=2")
    optimization = Optimization(optimizer, layout)
    zeros = {p: jnp.zeros(a.shape, a.dtype) for p, a in layout.parameters.items()}
    optimization.update(zeros, optimization.init(zeros), zeros, jnp.float32(0))
    assert seen == {
        "qkv/kernel": (16, 48),
        "qkv/bias": (48,),
        "out/kernel": (16, 16),
        "out/bias": (16,),
    }


def test_moments_of_a_fused_matrix_are_sharded_as_its_pieces_are():
    """What has a weight's shape is in pieces too; and no collective moves them."""
    layout = laid_out("tensor", "model=2")
    step = jaxpar.make_step(layout, optimizer=optax.adamw(1e-3))
    specs = jax.tree_util.tree_leaves_with_path(
        step.state_specs.optimizer, is_leaf=lambda x: isinstance(x, jax.P)
    )
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): s for path, s in specs}
    for k in range(3):
        assert found[f"0/mu/qkv/kernel/parts/{k}"] == layout.parameters[f"qkv/kernel/{k}"].stored
    program = jaxpar.compile_step(step, hardware=cpu(), for_speed=False)
    kinds = {row.kind for row in jaxpar.inspect(program).collectives}
    assert kinds == {"all-reduce"}


LABELS = {
    "a_tree": {
        "qkv": {"kernel": "fast", "bias": "slow"},
        "out": {"kernel": "slow", "bias": "slow"},
    },
    "path_aware_map": lambda params: traverse_util.path_aware_map(
        lambda path, _: "fast" if path == ("qkv", "kernel") else "slow", params
    ),
    "tree_map_with_path": lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: "fast" if jax.tree_util.keystr(path) == "['qkv']['kernel']" else "slow",
        params,
    ),
    "by_shape": lambda params: jax.tree.map(
        lambda x: "fast" if x.shape == (16, 48) else "slow", params
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_those_of_the_model(name):
    """Two optimizers, told apart by the tree, by path or by shape."""
    layout = laid_out("tensor", "model=2")
    rules: Any = {"slow": optax.set_to_zero(), "fast": optax.sgd(0.1, momentum=0.9)}
    optimizer = optax.multi_transform(rules, LABELS[name])
    step = jaxpar.make_step(layout, optimizer=optimizer)
    program = jaxpar.compile_step(step, hardware=cpu(), for_speed=False)
    start = program.init(0)
    before = jax.device_get(start.parameters)
    example = attention().example
    assert example is not None
    after, _ = program.update(start, program.place(example))
    moved = {p for p, v in before.items() if not np.array_equal(v, after.parameters[p])}
    assert moved == {"qkv/kernel/0", "qkv/kernel/1", "qkv/kernel/2"}


@pytest.mark.parametrize(
    ("optimizer", "asks"),
    [
        (optax.lbfgs(), "value_fn"),
        (optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(5)), "value_fn"),
    ],
    ids=["lbfgs", "zoom"],
)
def test_an_optimizer_that_calls_the_loss_again_is_refused(optimizer, asks):
    """In one sentence, when the step is made."""
    with pytest.raises(jaxpar.RequestError, match=f"its optimizer asks for {asks}, and a step"):
        jaxpar.make_step(laid_out("fsdp", "data=4"), optimizer=optimizer)


def test_an_optimizer_that_fails_is_told_in_a_sentence():
    """Whatever it raises: it is a person's code."""

    def broken(updates, state, params=None):
        raise KeyError("embedding")

    optimizer = optax.GradientTransformation(lambda params: (), broken)
    with pytest.raises(jaxpar.RequestError, match="its optimizer raised KeyError.*embedding"):
        jaxpar.make_step(laid_out("fsdp", "data=4"), optimizer=optimizer)


def test_a_weight_is_found_by_the_longest_end_of_a_path():
    """`kernel` alone at the root is not the `kernel` of a layer."""
    own = OwnTree(
        keys={"kernel": ("kernel",), "head/kernel": ("head", "kernel")}, shapes={}, cuts={}
    )
    keys = tuple(map(jax.tree_util.DictKey, ("mu", "head", "kernel")))
    assert own.path_at(keys) == "head/kernel"
    assert own.path_at((jax.tree_util.DictKey("mu"), jax.tree_util.DictKey("kernel"))) == "kernel"
    assert own.path_at((jax.tree_util.DictKey("mu"),)) is None


def test_a_person_is_told_of_weights_and_not_of_storage():
    """In the table of a layout and in a verdict."""
    layout = laid_out("tensor", "model=2")
    told = [layout.called(path) for path in layout.parameters]
    assert "qkv/kernel (2 of 3)" in told and "out/kernel" in told
    verdict = jaxpar.verify(layout, hardware=cpu(), steps=1)
    names = {check.worst.rpartition("kernel")[2] for check in verdict.checks}
    assert not any(name.strip("/").isdigit() for name in names)


@pytest.mark.parametrize("after", [False, True], ids=["alone", "after clipping"])
def test_an_optimizer_of_two_copies_of_the_parameters_is_refused_with_one_that_is_not(after):
    """optax's lookahead wants parameters that are a pair."""
    optimizer = optax.lookahead(optax.adam(1e-3), 5, 0.5)
    if after:
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optimizer)
    with pytest.raises(jaxpar.RequestError, match="is optax.lookahead.*schedule_free_adamw"):
        jaxpar.make_step(laid_out("fsdp", "data=4"), optimizer=optimizer)
