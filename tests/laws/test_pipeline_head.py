"""What comes after the layers, computed by all stages of a pipeline: as on one device."""

from functools import partial

import jax.numpy as jnp
import pytest
from small import cpu
from test_pipeline import FLOAT, bytes_in, in_stages, prove

from jaxpar.core.errors import LayoutError, RequestError
from jaxpar.measures.explain.explain import explain
from jaxpar.measures.traffic import traffic
from jaxpar.measures.verify.verify import verify
from jaxpar.step.make_step import make_step
from jaxpar.step.modes.record import Asked
from jaxpar.step.pipeline import Gathering, gradient, take_apart, work
from jaxpar.step.pipeline.head import LEAST, cuts_of

pytestmark = pytest.mark.usefixtures("drawn_once")

WAYS = {
    "pipeline": ("pipe=4", {}),
    "zero1+sequence+pipeline": ("pipe=2,data=2,model=2", {"schedule": "gpipe"}),
    "fsdp+pipeline": ("pipe=2,data=2", {"gather": "microbatch"}),
}


@pytest.mark.parametrize("strategy", WAYS)
def test_all_stages_compute_the_loss_as_one_device_does(strategy):
    """For each microbatch the activation goes to all, and what it gets of a gradient comes back."""
    mesh, options = WAYS[strategy]
    program = prove(in_stages(strategy, mesh, head="all", **options), 4)
    layout = program.step.layout
    rows = traffic(program.probe.as_text(), dict(layout.mesh.sizes))
    positions = layout.model.batch_size // layout.row_shares * layout.model.config.sequence
    activations = positions * layout.model.config.width * 2 * FLOAT
    # Both are sharded as between the parts of a block.
    sent = 2 * activations // (2 if "sequence" in strategy else 1)
    outside = sum(a.size * 2 * FLOAT for p, a in layout.parameters.items() if "blocks" not in p)
    statistics = 16 * positions * 2 * FLOAT
    assert sent < bytes_in(rows, "all-reduce", "pipe") <= sent + statistics + outside
    handed = [row for row in explain(program).rows if "from the last stage to all" in row.reason]
    assert sum(row.bytes for row in handed) == sent // 2
    assert {(row.kind, row.axes, row.phase, row.what) for row in handed} == {
        ("all-reduce", ("pipe",), "forward", "activation")
    }


def first_share(whole, more, dim):
    """Every stage adds to the first words."""
    begin = [0] * whole.ndim
    return whole.at[tuple(slice(b, b + n) for b, n in zip(begin, more.shape, strict=True))].add(
        more
    )


@pytest.mark.parametrize(
    ("room", "name", "broken"),
    [
        (work, "add_share", first_share),
        (gradient, "share", lambda weight, dim, stages: jnp.split(weight, stages, dim)[0]),
    ],
)
def test_a_share_of_the_wrong_words_is_caught(monkeypatch, room, name, broken):
    monkeypatch.setattr(room, name, broken)
    layout = in_stages("pipeline", "pipe=2", head="all")
    verdict = verify(layout, hardware=cpu(), make=partial(make_step, microbatches=4))
    assert not verdict.ok and verdict.decisive.name in ("gradient", "loss")


def cuts(strategy: str, mesh: str, head: str = "auto", **fields):
    layout = in_stages(strategy, mesh, head=head, fields=fields.items())
    asked = Asked(layout, 4, 1.0)
    gathering = Gathering.of(layout, asked.loss)
    return cuts_of(asked.microbatch, take_apart(asked.microbatch, asked.loss), gathering)


def test_a_large_vocabulary_is_shared_and_a_small_one_not():
    """By words a device; where rows are sharded over `model` as well, by all words."""
    assert cuts("pipeline", "pipe=4", vocabulary=LEAST) == {"head": 1}
    assert not cuts("pipeline", "pipe=4", vocabulary=LEAST - 4)
    assert not cuts("pipeline", "pipe=4", "last", vocabulary=LEAST)
    assert not cuts("tensor+pipeline", "pipe=2,model=2", vocabulary=LEAST)
    assert cuts("tensor+pipeline", "pipe=2,model=2", vocabulary=2 * LEAST)
    assert cuts("sequence+pipeline", "pipe=2,model=2", vocabulary=LEAST)


def test_what_cannot_be_shared_is_refused_where_it_was_asked_for():
    """And is the last stage's where it was not."""
    assert not cuts("pipeline", "pipe=4", tied=True, vocabulary=LEAST)
    with pytest.raises(LayoutError, match="head=all: 'embedding' is used before the layers"):
        cuts("pipeline", "pipe=4", "all", tied=True)
    with pytest.raises(LayoutError, match="the 30 words of 'head' do not divide by its 4 stages"):
        cuts("pipeline", "pipe=4", "all", vocabulary=30)
    with pytest.raises(RequestError, match="unknown head 'some'"):
        in_stages("pipeline", "pipe=4", head="some")
