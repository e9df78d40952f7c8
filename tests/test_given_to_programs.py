"""What the functions of a program are given, and where they are called: a sentence, or it works."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxpar
from jaxpar.core.errors import RequestError
from jaxpar.data import iterable
from jaxpar.program import out_of_memory

X, Y = np.ones((8, 6), "float32"), np.arange(8, dtype="int32") % 3
GOOD = {"x": X, "y": Y}
DATA = iterable.dataset([GOOD] * 3, test=[GOOD])


class Net(nnx.Module):
    def __init__(self, width, rngs):
        self.up, self.down = nnx.Linear(6, width, rngs=rngs), nnx.Linear(width, 4, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


def loss(net, batch):
    return optax.softmax_cross_entropy_with_integer_labels(net(batch["x"]), batch["y"]).mean()


def program_of(strategy="fsdp", mesh="data=2", width=8, **how):
    net = jaxpar.model(lambda rngs: Net(width, rngs), loss, GOOD)
    step = jaxpar.make_step(jaxpar.lay_out(net, strategy=strategy, mesh=mesh), **how)
    return jaxpar.compile_step(step, hardware="cpu", for_speed=False)


@pytest.fixture(scope="module")
def program():
    return program_of()


BATCHES = {
    "missing": ({"x": X}, "'y' as int32 .* no such field"),
    "too many": (GOOD | {"z": X}, "reads x, y, and the batch has 'z' too"),
    "rows": ({"x": X[:4], "y": Y}, r"'x' as float32 of shape \(8, 6\).* shape \(4, 6\)"),
    "rank": ({"x": X[0], "y": Y}, r"shape \(6,\)"),
    "fractions": ({"x": X, "y": Y.astype(float)}, r"'y'.* float64: use values.astype\('int32'\)"),
    "whole": ({"x": X.astype(int), "y": Y}, r"int64: use values.astype\('float32'\)"),
    "complex": ({"x": X * 1j, "y": Y}, "complex"),
    "objects": ({"x": X.astype(object), "y": Y}, "object, which is no number"),
    "words": ({"x": X, "y": Y.astype(str)}, "'y'.*, which is no number"),
    "keys": ({"x": X, "y": jax.random.split(jax.random.key(0), 8)}, "key<.*, which is no number"),
    "masked": ({"x": np.ma.masked_less(X, 2), "y": Y}, "a masked array"),
    "ragged": ({"x": [[1.0], [1.0, 2.0]], "y": Y}, "a value of type list"),
    "abstract": ({"x": jax.ShapeDtypeStruct((8, 6), "float32"), "y": Y}, "ShapeDtypeStruct"),
    "none": (None, "the batch is of type NoneType"),
    "a list": ([GOOD], "the batch is of type list"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_of_something_else_is_refused_with_the_field(name, program):
    """Placed, and given to what is compiled, which leaves the state as it was."""
    batch, said = BATCHES[name]
    state = program.init()
    if name != "too many":  # what is not read is not placed
        with pytest.raises(RequestError, match=said):
            program.place(batch)
    for function in (program.update, program.evaluate, program.gradients):
        with pytest.raises(RequestError, match=said):
            function(state, batch)
    program.update(state, program.place(GOOD))


def test_a_batch_is_placed_from_whatever_holds_its_numbers(program):
    """Lists, other ends of bytes, masks that hide nothing, arrays that another layout placed."""
    right = jax.device_get(program.place(GOOD))
    longer = np.ma.masked_array(X.astype(">f8"), mask=False)
    for batch in (
        {"x": X.tolist(), "y": Y.tolist(), "z": "not read"},
        {"x": longer, "y": Y.astype("int64")},
        program_of("data", "data=4").place(GOOD),
    ):
        placed = jax.device_get(program.place(batch))
        assert all(
            (placed[n] == right[n]).all() and placed[n].dtype == right[n].dtype for n in right
        )


def test_ids_beyond_a_table_are_refused():
    """A lookup would take the last row for them, in silence."""
    net = jaxpar.MODELS.load("mlp")(width=8, hidden=1)
    step = jaxpar.make_step(jaxpar.lay_out(net, strategy="data", mesh="data=2"))
    program = jaxpar.compile_step(step, hardware="cpu", for_speed=False)
    batch = {name: np.zeros(field.shape, field.dtype) for name, field in net.batch.items()}
    program.place(batch)
    with pytest.raises(RequestError, match="'label'.* the batch has 10 in it: use ids below 10"):
        program.place(batch | {"label": batch["label"] + 10})


STATES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "used up": (lambda p: used(p), "was used up by a step"),
    "one array used up": (
        lambda p: replace(p.init(), parameters=used(p).parameters), "was used up by a step",
    ),
    "another layout": (lambda p: program_of("tensor", "model=2").init(), "its parameters/"),
    "other devices": (lambda p: program_of("data", "data=4").init(), "another layout: its step"),
    "another optimizer": (
        lambda p: program_of(optimizer=optax.sgd(0.1)).init(),
        "another program: its optimizer/.* is not there, and this program's is int32",
    ),
    "another model": (
        lambda p: program_of(width=16).init(),
        r"its parameters/.* is float32 of shape \(16, 4\), and this program's is .* \(8, 4\)",
    ),
    "abstract": (lambda p: p.step.state, "its step is not there"),
    "a fraction": (lambda p: replace(p.init(), step=jnp.zeros(())), "its step is float32"),
    "none": (lambda p: None, "the state is of type NoneType"),
    "a dictionary": (lambda p: p.init().parameters, "the state is of type dict"),
}  # fmt: skip


def used(program):
    """A state that a step has used up."""
    state = program.init()
    program.update(state, program.place(GOOD))
    return state


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_something_else_is_refused_with_the_array(name, program):
    """JAX would end the process for an array that was used up."""
    make, said = STATES[name]
    state, batch = make(program), program.place(GOOD)
    for function in (program.update, program.evaluate, program.gradients):
        with pytest.raises(RequestError, match=said):
            function(state, batch)
    with pytest.raises(RequestError, match=said):
        jaxpar.evaluate(program, state, DATA)
    if state is not None:
        with pytest.raises(RequestError, match=said):
            jaxpar.train(program, DATA, jaxpar.Training(steps=3), state=state)


def test_a_state_of_another_layout_goes_on_once_it_is_put_where_this_one_has_it(program):
    """As the sentence says."""
    other = program_of("data", "data=4")
    state, _ = other.update(other.init(), other.place(GOOD))
    right, _ = other.update(jax.tree.map(jnp.copy, state), other.place(GOOD))
    moved = jax.device_put(state, program.state_shardings)
    got, _ = program.update(moved, program.place(GOOD))
    for path, value in right.parameters.items():
        np.testing.assert_allclose(got.parameters[path], value, rtol=1e-5, atol=1e-6)


def test_a_described_program_runs_nothing(program):
    """Wherever it is asked to."""
    described = replace(program, hardware=jaxpar.HARDWARE.load("h100")())
    for call in (
        lambda: described.place(GOOD),
        lambda: described.init(),
        lambda: replace(program.update, takes=described.takes)(program.init()),
    ):
        with pytest.raises(RequestError, match="described, not present"):
            call()


def test_a_compiled_function_is_called_with_what_it_takes(program):
    """And not traced."""
    state, batch = program.init(), program.place(GOOD)
    with pytest.raises(RequestError, match="takes a state and a batch: give it 2"):
        program.update(state)
    with pytest.raises(RequestError, match="cannot be traced"):
        jax.jit(program.evaluate)(state, batch)
    assert program.with_rows(np.int64(8)) is program
    with pytest.raises(RequestError, match="rows="):
        program.with_rows([8])


def within(transform, call):
    """What a call comes to inside of a function that is transformed."""
    found = []

    def function(x):
        found.append(call())
        return x

    transform(function)
    return found[0]


def test_what_runs_is_refused_where_jax_traces_and_works_where_it_differentiates(program):
    """Inside of jit nothing runs; vmap and grad leave alone what does not read their argument."""
    layout = program.step.layout
    calls = (
        lambda: program.init(),
        lambda: jaxpar.compile_step(program.step, hardware="cpu", for_speed=False),
        lambda: jaxpar.train(program, DATA, jaxpar.Training(steps=1)),
        lambda: jaxpar.verify(layout, hardware="cpu"),
    )
    for call in calls:
        with pytest.raises(RequestError, match="while JAX traces a function"):
            within(lambda f: jax.jit(f)(1.0), call)
        with pytest.raises(RequestError, match="while JAX traces a function"):
            within(lambda f: jax.eval_shape(f, 1.0), call)
    for transform in (lambda f: jax.grad(f)(1.0), lambda f: jax.vmap(f)(jnp.ones(2))):
        assert within(transform, calls[2]).steps == 1
    step = within(lambda f: jax.jit(f)(1.0), lambda: jaxpar.make_step(layout))
    jaxpar.compile_step(step, hardware="cpu", for_speed=False)


def test_a_transfer_guard_is_for_what_is_copied_by_accident(program):
    """What is made and compared here is meant."""
    with jax.transfer_guard("disallow"):
        assert jaxpar.train(program, DATA, jaxpar.Training(steps=1)).steps == 1
        assert jaxpar.verify(program.step.layout, hardware="cpu").ok


def test_nothing_is_made_where_nothing_is_compiled(program):
    """jax.disable_jit."""
    with jax.disable_jit(), pytest.raises(RequestError, match="jax_disable_jit"):
        program.init()


@pytest.fixture
def without_memory(program, monkeypatch):
    """The program, where the second update finds no memory; what is noted then is forgotten."""
    monkeypatch.setattr("jaxpar.program.out_of_memory.ran_out", threading.Event())
    made, calls = program.made.update, []

    def update(state, batch):
        calls.append(1)
        if len(calls) > 1:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."
            )
        return made(state, batch)

    ready = replace(program.update, compiled=update)
    monkeypatch.setitem(vars(program), "update", ready)
    return program


def test_memory_that_runs_out_is_told_and_what_was_trained_is_kept(without_memory):
    """A JAX error that is ours to explain: with what to do, and the state of the step before."""
    with pytest.raises(jaxpar.TrainingStopped, match="after step 1 of 3.*ran out of mem") as caught:
        jaxpar.train(without_memory, DATA, jaxpar.Training(steps=3))
    said = str(caught.value.__cause__)
    assert "'cpu' ran out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.)" in said
    assert out_of_memory.ran_out.is_set() and caught.value.outcome.steps == 1
    assert caught.value.outcome.first == caught.value.outcome.last != {}


def test_other_errors_of_xla_pass(program):
    """They are no one's request."""
    with (
        pytest.raises(jax.errors.JaxRuntimeError),
        out_of_memory.memory_told("m", program.hardware),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")
