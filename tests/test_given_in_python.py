"""What a person gives in Python, of another kind than is wanted: a sentence, and no process ends.

Strategies, meshes, hardware and examples are in `test_bad_inputs`, states and batches in
`test_given_to_programs`.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxpar
from jaxpar.core.errors import RequestError
from jaxpar.data import digits, iterable
from jaxpar.program.configuration import refuse_settings

X = np.ones((8, 8), "float32")
NONE_OF_THESE: tuple[Any, ...] = (3, None, "x", [], {}, object(), np.ones(3), lambda: 3)
OWN = iterable.dataset([{"x": X}] * 3, test=[{"x": X}])


def loss(net, batch):
    return (net(batch["x"]) ** 2).mean()


def model(of=lambda rngs: nnx.Linear(8, 4, rngs=rngs), loss=loss, **example):
    return jaxpar.model(of, loss, example or {"x": X})


@pytest.fixture(scope="module")
def program():
    """Compiled when it is first used."""
    layout = jaxpar.lay_out(model(), strategy="data", mesh="data=2")
    return jaxpar.compile_step(jaxpar.make_step(layout), hardware="cpu", for_speed=False)


def trained(program, data: Any = OWN, **more):
    return jaxpar.train(program, data, jaxpar.Training(steps=2), **more)


JUNK: list[Any] = [
    lambda: jaxpar.weighted_mean(cast(Any, "x"), jnp.ones(1)),
    lambda: jaxpar.weighted_mean(cast(Any, None), jnp.ones(1)),
    lambda: jaxpar.hooks.named(jnp.ones((2, 2)), cast(Any, "ab")),
    lambda: jaxpar.hooks.named(jnp.ones((2, 2)), cast(Any, None)),
    lambda: jaxpar.hooks.named(jnp.ones((2, 2)), cast(Any, ("a", 3))),
    lambda: jaxpar.Hardware("mine", "described", memory_bytes=cast(Any, "80 GB")),
    lambda: jaxpar.Hardware("mine", "described", devices_per_node=0),
    lambda: jaxpar.Hardware("mine", "described", target=cast(Any, 3)),
    lambda: jaxpar.Hardware("mine", "described", compiler_options=cast(Any, [3])),
    lambda: jaxpar.Hardware("mine", "described", rates=cast(Any, 3)),
]


@pytest.mark.parametrize("call", JUNK)
def test_what_a_record_or_a_hook_does_not_take_is_refused_at_once(call):
    """Rather than met where it is used."""
    with pytest.raises(RequestError):
        call()


@pytest.mark.parametrize("given", NONE_OF_THESE, ids=lambda given: type(given).__name__)
def test_what_is_of_another_kind_is_refused(given, program):
    """One sentence each, of whatever function it is given to."""
    step, wrong = program.step, cast(Any, given)
    calls = [
        lambda: jaxpar.evaluate(wrong, program.step.state, OWN),
        lambda: jaxpar.evaluate(program, wrong, OWN),
        lambda: jaxpar.evaluate(program, step.state, wrong),
        lambda: program.place(wrong),
        lambda: jaxpar.combine(wrong, step.layout.strategy),
        lambda: list(jaxpar.walk(wrong)),
        lambda: jaxpar.Experiment(wrong, (), ()),
        lambda: jaxpar.Experiment((wrong,), (), ()),
        lambda: jaxpar.Field(wrong, "float32", ("batch",)),
        lambda: jaxpar.Field((3,), wrong, ("batch",)),
        lambda: jaxpar.Field((3,), "float32", wrong),
        lambda: jaxpar.Hardware("mine", wrong),
        lambda: jaxpar.Dataset("d", wrong, 1, "examples", None, None, OWN.draw, None),
        lambda: iterable.dataset([{"x": X}], unit=wrong),
        lambda: jaxpar.MODELS.load(wrong),
    ]
    if given is not None:
        calls += [lambda: trained(program, state=wrong)]
    if not callable(given):
        calls += [
            lambda: trained(program, watch=wrong),
            lambda: jaxpar.verify(step.layout, hardware="cpu", make=wrong),
        ]
    if type(given) is not int:
        calls += [
            lambda: jaxpar.Field(
                (3,), "int32", ("batch",), cast(Any, "x" if given is None else given)
            ),
            lambda: jaxpar.STRATEGIES.load("fsdp")(wrong),
            lambda: digits.dataset(wrong),
        ]
    if not isinstance(given, str):
        calls += [lambda: jaxpar.MeshShape.parse(wrong), lambda: jaxpar.Hardware(wrong, "local")]
    for call in calls:
        with pytest.raises(RequestError):
            call()


DRAWN = {
    "None": None,
    "no field": {},
    "a number": {"x": 3},
    "lists": {"x": X.tolist()},
    "other rows": {"x": X[:4]},
    "other dims": {"x": X[:, :4]},
    "words": {"x": X.astype(str)},
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_batch_that_is_none_of_the_models_is_refused(name, program):
    """Drawn by a dataset, or placed by hand."""
    drawn: Any = DRAWN[name]
    fields = {"x": ((8,), "float32")}
    data = jaxpar.Dataset("d", fields, 1, "examples", None, None, lambda *_: drawn, None)
    with pytest.raises(RequestError, match="data 'd', step 0"):
        trained(program, data)
    if name != "lists":
        with pytest.raises(RequestError):
            program.place(drawn)


def test_data_that_exits_is_told(program):
    """As of a factory."""
    data = jaxpar.Dataset("d", OWN.fields, 1, "examples", None, None, lambda *_: exit(3), None)
    with pytest.raises(RequestError, match="SystemExit"):
        trained(program, data)


@pytest.mark.parametrize("file", ["a\0b", 3, b"a", []], ids=repr)
def test_metrics_that_go_nowhere_are_refused(file, program):
    """Before the first step."""
    with pytest.raises(RequestError, match="metrics.file"):
        trained(program, metrics_file=file)


RULES = {
    "gives nothing": (lambda p: (), lambda g, s, p: (None, s), "updates are no tree"),
    "gives no tree": (lambda p: (), lambda g, s, p: ({}, s), "updates are no tree"),
    "gives a row of each": (
        lambda p: (), lambda g, s, p: (jax.tree.map(lambda x: x[:1], g), s), "each of its param",
    ),
    "keeps words": (lambda p: "a", lambda g, s, p: (g, s), "state holds a str"),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_an_optimizer_that_is_none_is_refused(name, program):
    """Before anything is compiled; numbers would be broadcast in silence."""
    init, update, said = RULES[name]
    rule = optax.GradientTransformation(init, update)
    with pytest.raises(RequestError, match=said):
        jaxpar.make_step(program.step.layout, optimizer=rule)


class Whole(nnx.Module):
    """Learns integers."""

    def __init__(self, rngs):
        self.table = nnx.Param(jnp.ones((8, 4), "int32"))

    def __call__(self, x):
        return x @ self.table[...]


MODELS = {
    "a tuple of three": (lambda: model(loss=lambda net, b: (loss(net, b), {}, 3)), "tuple of 3"),
    "integers learned": (lambda: model(Whole), "'table' holds int32"),
    "random keys": (lambda: model(x=jax.random.split(jax.random.key(0), 8)), "holds key<"),
    "long floats": (lambda: model(x=X.astype(np.longdouble)), "holds float128"),
    "many rows": (lambda: model(x=jax.ShapeDtypeStruct((2**40, 8), "float32")), "at most"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_nothing_can_be_made_of_is_refused(name):
    """At the door."""
    make, said = MODELS[name]
    if said == "holds float128" and np.longdouble(0).itemsize <= 8:
        pytest.skip("no longer floats on this machine")
    with pytest.raises(RequestError, match=said):
        make()


def test_weights_are_those_of_the_values():
    """Of another shape they would be broadcast, and the mean be another one."""
    with pytest.raises(RequestError, match=r"shape \(4, 4\) and their weight \(4,\)"):
        jaxpar.weighted_mean(jnp.ones((4, 4)), jnp.ones(4))


def test_a_mesh_that_is_set_around_is_refused(program):
    """What is traced would be typed by it."""
    with jax.set_mesh(jax.make_mesh((2,), ("data",))):
        for call in (refuse_settings, lambda: trained(program)):
            with pytest.raises(RequestError, match="jax.set_mesh has set mesh {'data': 2}"):
                call()
