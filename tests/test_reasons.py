"""Every matrix that stays replicated under tensor has a reason, with a line of the model."""

from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from plain.catalogue import factories

import jaxpar

WIDTH, HIDDEN = 16, 32


class Recurrent(nnx.Module):
    """A recurrent layer between two that make and use up a width."""

    def __init__(self, rngs, cell):
        self.rnn: Any = nnx.RNN(cell(WIDTH, HIDDEN, rngs=rngs))
        self.up, self.down = nnx.Linear(HIDDEN, 64, rngs=rngs), nnx.Linear(64, WIDTH, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(self.rnn(x))))


class LinenRecurrent(linen.Module):
    """The same in Linen, in both directions or convolutional."""

    cell: linen.RNNCellBase
    back: linen.RNNCellBase | None = None

    @linen.compact
    def __call__(self, x):
        one = linen.RNN(self.cell)
        x = one(x) if self.back is None else linen.Bidirectional(one, linen.RNN(self.back))(x)
        return linen.Dense(WIDTH)(linen.relu(linen.Dense(64)(x)))


LSTM, GRU = linen.OptimizedLSTMCell, linen.GRUCell
RECURRENT = {
    "lstm": lambda rngs: Recurrent(rngs, nnx.LSTMCell),
    "lstm, its gates in one matrix": lambda rngs: Recurrent(rngs, nnx.OptimizedLSTMCell),
    "gru, its gates in one matrix": lambda rngs: Recurrent(rngs, nnx.GRUCell),
    "lstm, its gates joined": lambda: LinenRecurrent(LSTM(HIDDEN)),
    "gru in both directions": lambda: LinenRecurrent(GRU(HIDDEN), GRU(HIDDEN)),
    "convolutional": lambda: LinenRecurrent(linen.ConvLSTMCell(HIDDEN, (3,))),
}


def told_of(layout):
    """Of each matrix that no axis shards, the notes that speak of it or of a dim of it."""
    found = {}
    for path, array in layout.parameters.items():
        whole = all(entry is None for entry in array.used)
        if whole and sum(dim not in ("layers", "one") for dim in array.dims) > 1:
            dims = [part for dim in array.dims for part in (dim, *dim.split("*"))]
            names = [path, *(f"'{dim}'" for dim in dims)]
            found[path] = [n for n in layout.notes if any(name in n for name in names)]
    return found


@pytest.mark.parametrize("which", RECURRENT)
def test_a_recurrent_width_is_told_to_be_one_with_its_line(which):
    """Also where the gates are stored in one matrix, which is split for another reason."""
    x = jax.ShapeDtypeStruct((4, 3, WIDTH), "float32")
    if which == "convolutional":
        x = jax.ShapeDtypeStruct((4, 3, 8, WIDTH), "float32")
    model = jaxpar.model(RECURRENT[which], lambda net, b: jnp.mean(net(b["x"]) ** 2), {"x": x})
    layout = jaxpar.lay_out(model, strategy="tensor", mesh="model=2")
    told = told_of(layout)
    assert told
    for notes in told.values():
        (note,) = notes
        assert "one matrix reads and makes the same width" in note and __file__ in note


@pytest.mark.parametrize("name", factories())
def test_whatever_stays_replicated_has_a_reason_and_a_line(name):
    model = factories()[name]()
    try:
        layout = jaxpar.lay_out(model, strategy="tensor", mesh="model=2")
    except jaxpar.LayoutError as refusal:
        assert f"/plain/{name.partition(':')[0]}.py:" in str(refusal)
        return
    for path, notes in told_of(layout).items():
        assert any(f"/plain/{name.partition(':')[0]}.py:" in note for note in notes), path


class Extra(nnx.Module):
    """A pair of matrices, and one that the loss never reads."""

    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(WIDTH, 64, rngs=rngs), nnx.Linear(64, 8, rngs=rngs)
        self.spare = nnx.Linear(WIDTH, 64, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


def test_a_matrix_that_no_product_reads_is_told_to_be_one():
    x = jax.ShapeDtypeStruct((4, WIDTH), "float32")
    model = jaxpar.model(Extra, lambda net, b: jnp.mean(net(b["x"]) ** 2), {"x": x})
    told = told_of(jaxpar.lay_out(model, strategy="tensor", mesh="model=2"))
    (note,) = told.pop("spare/kernel")
    assert "no product or lookup of the loss reads all of it" in note and not told
