"""Training: the loss falls, goes on where it stopped, and the test split is counted once."""

import json
import math
from dataclasses import replace
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import by_path, cpu, nested, small_layout

import jaxpar
from jaxpar.core.catalogue import DATA
from jaxpar.core.errors import RequestError
from jaxpar.data import iterable
from jaxpar.data.record import Dataset, in_order
from jaxpar.program.record import compile_step
from jaxpar.runtime.evaluate import bits, evaluate
from jaxpar.runtime.outcome import TrainingStopped
from jaxpar.runtime.reading import check_data
from jaxpar.runtime.train import train
from jaxpar.runtime.training import Training, optimizer_of
from jaxpar.step.make_step import make_step


@pytest.fixture(scope="module")
def digits():
    return DATA.load("digits")()


@pytest.fixture(scope="module")
def program():
    layout = small_layout("mlp", "hybrid", "data=4,model=2", batch=64, width=32)
    training = Training(steps=30, learning_rate=1e-2)
    step = make_step(layout, optimizer=optimizer_of(training, layout))
    return compile_step(step, hardware=cpu(), for_speed=False)


def losses_of(program, data, training, **options):
    seen = []
    outcome = train(
        program, data, training, watch=lambda step, m: seen.append((step, m)), **options
    )
    return [(step, m["loss"]) for step, m in seen if "loss" in m], outcome


def test_the_loss_falls_and_the_test_split_is_learnt(program, digits):
    """Thirty steps of a hybrid layout on real digits: from chance to most of them."""
    losses, outcome = losses_of(program, digits, Training(steps=30))
    assert [step for step, _ in losses] == list(range(1, 31))
    assert losses[-1][1] < losses[0][1] / 2
    assert outcome.test["accuracy"] > 0.7  # chance is 0.1
    assert outcome.first["loss"] == losses[0][1] and outcome.last["loss"] == losses[-1][1]
    assert outcome.steps == 30 and int(outcome.state.step) == 30


def test_going_on_from_a_state_gives_the_same_losses(program, digits):
    """Ten steps and twenty more equal thirty, to the bit: nothing is replayed or forgotten."""
    whole, _ = losses_of(program, digits, Training(steps=30))
    start, stopped = losses_of(program, digits, Training(steps=10))
    rest, outcome = losses_of(program, digits, Training(steps=30), state=stopped.state)
    assert len(start) == 10 and start + rest == whole
    assert outcome.steps == 20


def test_seeds_give_other_batches_and_parameters(program, digits):
    """The law above does not hold because all runs are alike."""
    a, _ = losses_of(program, digits, Training(steps=2))
    b, _ = losses_of(program, digits, Training(steps=2, seed=1))
    again, _ = losses_of(program, digits, Training(steps=2))
    assert a == again != b


def test_metrics_are_a_json_line_a_step(program, digits, tmp_path):
    """Each with its step, tests among them when they were asked for, the last test at the end."""
    path = tmp_path / "deep" / "metrics.jsonl"
    asked = Training(steps=5, evaluate_every=2)
    _, outcome = losses_of(program, digits, asked, metrics_file=path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    told = [row["step"] for row in rows if "loss" in row]
    tested = [row["step"] for row in rows if "test_loss" in row]
    assert told == [1, 2, 3, 4, 5]
    assert tested == [2, 4, 5]
    assert rows[-1]["test_accuracy"] == outcome.test["accuracy"]


def batches(count, **changed):
    """A function that yields so many batches for the perceptron; `changed` are by place."""

    def walk():
        for place in range(count):
            batch = {
                "image": np.ones((64, 8, 8, 1), np.float32),
                "label": np.zeros(64, np.int32),
                "weight": np.ones(64, np.float32),
            }
            yield {**batch, **{name: change(place) for name, change in changed.items()}}

    return walk


def test_data_without_a_test_split_is_trained_on(program, tmp_path):
    """And not tested: the outcome says nothing of a test, and a look at it is refused at once."""
    data = iterable.dataset(batches(9), vocabulary=10)
    path = tmp_path / "metrics.jsonl"
    outcome = train(program, data, Training(steps=3), metrics_file=str(path))
    assert outcome.test == {} and outcome.steps == 3 and outcome.last["loss"] > 0
    assert len(path.read_text().splitlines()) == 3
    assert not any(name.startswith("test") for name in outcome.record())
    with pytest.raises(RequestError, match="evaluate_every=1, .* no test split"):
        train(program, data, Training(steps=3, evaluate_every=1))


def raising(place):
    """A label for each place; at the third, an error of a person's own."""
    return np.zeros(64, np.int32) if place < 3 else {}["why"]


LATE = {
    "labels beyond the classes": (
        {"label": lambda place: np.full(64, 10 if place == 3 else 0, np.int32)},
        {},
        "step 3: 'label' holds 10, and model 'mlp' goes up to 9",
    ),
    "an error of the source": ({"label": raising}, {}, "KeyError .*test_train.py.*: 'why'"),
    "another size": (
        {"image": lambda place: np.ones((64 - (place > 2), 8, 8, 1), np.float32)},
        {},
        "step 3: field 'label' has shape",
    ),
    "a watch that raises": ({}, {"watch": lambda step, metrics: 1 // (3 - step)}, "division"),
}


@pytest.mark.parametrize("name", LATE)
def test_an_error_in_the_middle_keeps_what_was_trained(program, name):
    """The state of the last whole step, from which training goes on."""
    changed, options, sentence = LATE[name]
    data = iterable.dataset(batches(9, **changed), vocabulary=10)
    with pytest.raises(TrainingStopped, match=sentence) as caught:
        train(program, data, Training(steps=6), **options)
    kept = caught.value.outcome
    assert "after step" in str(caught.value) and caught.value.__cause__ is not None
    assert kept.steps == int(kept.state.step) >= 3 and kept.first["loss"] > 0
    rest = train(
        program, iterable.dataset(batches(9), vocabulary=10), Training(steps=6), state=kept.state
    )
    assert rest.steps == 6 - kept.steps


def test_an_error_of_the_last_test_keeps_what_was_trained(program):
    """Weights of a test split that add up to nothing are found when all is trained."""
    empty = {**next(batches(1)()), "weight": np.zeros(64, np.float32)}
    data = iterable.dataset(batches(9), vocabulary=10, test=[empty])
    with pytest.raises(TrainingStopped, match="add up to 0") as caught:
        train(program, data, Training(steps=2))
    assert caught.value.outcome.steps == 2 and caught.value.outcome.last["loss"] > 0


def test_an_error_before_the_first_step_is_itself(program, tmp_path):
    """There is nothing to keep then."""
    data = iterable.dataset(
        batches(9, label=lambda place: np.full(64, 12, np.int32)), vocabulary=10
    )
    with pytest.raises(RequestError, match="step 0: 'label' holds 12") as caught:
        train(program, data, Training(steps=2))
    assert not isinstance(caught.value, TrainingStopped)
    for place in (tmp_path, "/dev/null/x"):
        with pytest.raises(RequestError, match="metrics file .* cannot write"):
            train(program, data, Training(steps=2), metrics_file=place)


@pytest.mark.parametrize(
    "given", [{"data": [{}]}, {"data": "digits"}, {"training": 3}, {"program": None}, {"state": 3}]
)
def test_what_training_does_not_take_is_refused(program, digits, given):
    """With the way to make it."""
    usual = {"program": program, "data": digits, "training": Training(steps=1)} | given
    with pytest.raises(RequestError):
        train(**usual)


@pytest.mark.parametrize("seed", [2**32, -1, 1.5, "x", None, True])
def test_a_seed_is_a_number_of_32_bits(program, seed):
    """The largest works."""
    with pytest.raises(RequestError, match="seed"):
        program.init(seed)
    program.init(2**32 - 1)


def counted(weights):
    """Data whose image holds its own number, with a weight for each example."""
    count = len(weights)

    def read(at):
        image = np.broadcast_to(
            (at % 7).astype(np.float32)[:, None, None, None], (len(at), 8, 8, 1)
        )
        label = (at % 10).astype(np.int32)
        return {"image": image, "label": label, "weight": np.asarray(weights, np.float32)[at]}

    return Dataset(
        name="counted",
        fields={"image": ((8, 8, 1), "float32"), "label": ((), "int32"), "weight": ((), "float32")},
        vocabulary=10,
        unit="examples",
        train_size=count,
        test_size=count,
        draw=lambda step, size, seed, rows: read(rows % count),
        walk=in_order(count, read),
    )


@pytest.mark.parametrize("count", [1, 63, 64, 65, 150])
def test_an_evaluation_counts_every_example_once(program, count):
    """Against the mean over all examples in one batch on one device, for splits of any size."""
    weights = np.random.default_rng(0).uniform(0.5, 1.5, count)
    data = counted(weights)
    got = evaluate(program, program.init(0), data)

    alone = small_layout("mlp", "single", "data=1", batch=count, width=32)
    single = compile_step(make_step(alone), hardware=cpu(), for_speed=False)
    (batch,) = data.evaluation(size=count)
    whole = single.evaluate(single.init(0), single.place(batch))
    assert float(whole["loss"].weight) == pytest.approx(weights.sum(), rel=1e-5)
    for name, mean in whole.items():
        # Float32 sums in another order; 3e-7 was the largest seen.
        assert got[name] == pytest.approx(float(mean.value), rel=1e-5), name


@pytest.mark.parametrize("size", [17, 19, 20, 3])
def test_a_loss_without_weights_counts_the_last_smaller_batch(size):
    """Each example once, and no row of padding for one: here zeros, which it finds perfect."""

    def loss(net, batch):
        return jnp.mean(batch["x"] ** 2) + 0 * jnp.sum(net(batch["x"]))

    x = jax.ShapeDtypeStruct((8, 4), "float32")
    model = jaxpar.model(lambda rngs: nnx.Linear(4, 1, rngs=rngs), loss, {"x": x})
    layout = jaxpar.lay_out(
        model, strategy=jaxpar.STRATEGIES.load("data")(), mesh=jaxpar.MeshShape(data=4)
    )
    program = compile_step(make_step(layout), hardware=cpu(), for_speed=False)

    def read(at):
        x = np.repeat(1 + np.asarray(at, np.float32)[:, None], 4, axis=1)
        return {"x": x, "weight": np.ones(len(at), np.float32)}

    data = Dataset(
        name="numbers",
        fields={"x": ((4,), "float32"), "weight": ((), "float32")},
        vocabulary=1,
        unit="examples",
        train_size=size,
        test_size=size,
        draw=lambda step, size, seed, rows: read(rows),
        walk=in_order(size, read),
    )
    expected = np.mean(np.arange(1, size + 1) ** 2)
    assert evaluate(program, program.init(0), data)["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_test_in_batches_of_a_loss_that_is_no_mean_is_told_so():
    """As are random draws in evaluation; a mean over rows is told nothing."""
    rows = {"x": np.random.default_rng(0).standard_normal((8, 4)).astype("float32")}
    data = iterable.dataset(lambda: iter([rows]), vocabulary=1, test=[rows, rows])
    losses = {
        "mean": lambda net, b: jnp.mean(net(b["x"]) ** 2),
        "root": lambda net, b: jnp.sqrt(jnp.mean(net(b["x"]) ** 2)),
    }
    notes = {}
    for name, loss in losses.items():
        model = jaxpar.model(lambda rngs: nnx.Linear(4, 1, rngs=rngs), loss, rows)
        layout = jaxpar.lay_out(model, strategy="data", mesh="data=2")
        program = compile_step(make_step(layout), hardware=cpu(), for_speed=False)
        notes[name] = train(program, data, Training(steps=1)).notes
    assert notes["mean"] == ()
    assert len(notes["root"]) == 1 and "the mean over its batches of 8 rows" in notes["root"][0]


def test_bits_per_byte_are_nats_over_the_log_of_two():
    """Only where a token is a byte; per token elsewhere; never for examples."""
    text = DATA.load("text")(sequence=16)
    assert bits(math.log(256), text) == {"bits_per_byte": pytest.approx(8.0)}
    assert bits(math.log(2), replace(text, vocabulary=100)) == {
        "bits_per_token": pytest.approx(1.0)
    }
    assert bits(1.0, DATA.load("digits")()) == {}


def test_a_fresh_decoder_needs_about_eight_bits_a_byte():
    """Before it has learnt anything every byte is as likely: log2(256)."""
    layout = small_layout("transformer", "fsdp", "data=8", vocabulary=256)
    program = compile_step(make_step(layout), hardware=cpu(), for_speed=False)
    text = DATA.load("text")(sequence=16)
    short = replace(text, walk=lambda size, rows: islice(text.walk(size, rows), 4))
    assert 7.8 < evaluate(program, program.init(0), short)["bits_per_byte"] < 8.3


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_the_rate_rises_to_its_peak_and_ends_as_stated(decay, warmup):
    """Warm-up from a part of the peak to the peak, then down to a tenth, or not at all.

    Read from the size of the updates: with a gradient of ones Adam moves by the rate.
    """
    layout = small_layout("mlp", "single", "data=1")
    training = Training(
        steps=40, learning_rate=1e-2, decay=decay, warmup=warmup, weight_decay=0.0, clip=0.0
    )
    optimizer = optimizer_of(training, layout)
    ones = nested(layout, {p: np.ones(a.shape, np.float32) for p, a in layout.parameters.items()})
    update = jax.jit(optimizer.update)
    state, rates = optimizer.init(ones), []
    for _ in range(40):
        moved, state = update(ones, state, ones)
        rates.append(-float(np.ravel(moved["layers"][0]["bias"])[0]))
    assert max(rates) == pytest.approx(1e-2, rel=1e-3)
    assert rates[: max(1, warmup)] == sorted(rates[: max(1, warmup)])
    assert rates[max(0, warmup - 1)] == pytest.approx(1e-2, rel=1e-3)
    after = rates[warmup:]
    assert after == sorted(after, reverse=True) or decay == "constant"
    last = 1e-2 if decay == "constant" else 1e-3
    assert rates[-1] == pytest.approx(last, rel=0.35)


def test_matrices_decay_and_vectors_do_not():
    """With no gradient the decay is all there is; a stack of norm scales is no matrix."""
    layout = small_layout("transformer", "single", "data=1", bias=True)
    training = Training(decay="constant", warmup=0, weight_decay=0.1, clip=0.0)
    optimizer = optimizer_of(training, layout)
    ones = nested(layout, {p: np.ones(a.shape, np.float32) for p, a in layout.parameters.items()})
    zeros = jax.tree.map(np.zeros_like, ones)
    moved = by_path(layout, optimizer.update(zeros, optimizer.init(ones), ones)[0])
    decayed = {path for path, update in moved.items() if np.any(np.asarray(update))}
    matrices = {
        "embedding",
        "head",
        "blocks/qk",
        "blocks/value",
        "blocks/out",
        "blocks/up",
        "blocks/down",
    }
    assert matrices <= decayed
    assert not {path for path in decayed if "norm" in path}
    assert not {p for p in decayed if p in ("blocks/out_bias", "blocks/down_bias")}


@pytest.mark.parametrize(("clip", "norm"), [(1.0, 1.0), (0.0, 30.0)])
def test_clipping_bounds_the_norm_of_the_whole_gradient(clip, norm):
    """Adam's first mean is a tenth of what it was given: norm 1, or the whole 30 at clip 0."""
    layout = small_layout("mlp", "single", "data=1")
    optimizer = optimizer_of(Training(clip=clip), layout)
    count = sum(a.size for a in layout.parameters.values())
    each = 30 / count**0.5
    even = {path: np.full(a.shape, each, np.float32) for path, a in layout.parameters.items()}
    even = nested(layout, even)
    _, state = optimizer.update(even, optimizer.init(even), even)
    (adam,) = [
        s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")
    ]
    given = np.concatenate([np.ravel(mean) for mean in jax.tree.leaves(adam.mu)]) / 0.1
    assert np.linalg.norm(given) == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"steps": 0}, "steps=0: use 1 or more"),
        ({"steps": -1}, "steps=-1"),
        ({"microbatches": 0}, "microbatches=0"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0: use a number from 0 up"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"clip": math.inf}, "clip=inf"),
        ({"decay": "cosin"}, "unknown decay 'cosin': did you mean 'cosine'"),
    ],
)
def test_training_that_makes_no_sense_is_refused(fields, sentence):
    """Before anything is laid out."""
    with pytest.raises(RequestError, match=sentence):
        Training(**fields)


def test_data_that_a_model_cannot_read_is_refused(digits):
    """Missing fields, other shapes and ids beyond a table, each with both sides."""
    text = DATA.load("text")(sequence=16)
    decoder = small_layout("transformer", "single", "data=1").model
    with pytest.raises(RequestError, match="reads 'tokens', and data 'digits' holds image"):
        check_data(decoder, digits)
    with pytest.raises(RequestError, match="holds 256 different ids, and 'tokens'.* up to 31"):
        check_data(decoder, text)
    with pytest.raises(RequestError, match=r"shape \(8,\) an example, .* reads \(16,\)"):
        check_data(decoder, DATA.load("text")(sequence=8))
    check_data(small_layout("transformer", "single", "data=1", vocabulary=256).model, text)
