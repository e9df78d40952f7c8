"""The measures of the catalogue: each answers in JSON, and says itself whether it runs anything."""

import json

import jax
import pytest

from jaxpar.case import Case
from jaxpar.core.catalogue import MEASURES
from jaxpar.core.errors import RequestError
from jaxpar.experiment import Experiment, walk
from jaxpar.measures.record import Measure
from jaxpar.program.record import Program

TINY = {"width": 32, "hidden": 2, "steps": 2}
CASE = Case("mlp", strategy="data", mesh="data=2", set=TINY)


def test_an_experiment_takes_every_measure_by_name():
    """Each is an entry of the row under its own name, fit for JSON; and it trains when asked."""
    (row,) = walk(Experiment((CASE,), MEASURES.names(), (), trains=True))
    assert {*MEASURES.names(), "train"} <= row.keys()
    assert json.loads(json.dumps(row))["verify"]["ok"]
    assert row["lint"] == {"ok": True, "findings": []}
    assert len(row["train"]["losses"]) == 2
    (row,) = walk(Experiment((CASE,), ("lint",), ()))
    assert "train" not in row and "inspect" not in row


class Ran(Exception):
    """A program was run."""


@pytest.mark.parametrize("name", MEASURES.names())
def test_a_measure_says_whether_it_runs_the_program(name, monkeypatch):
    """Where nothing can be run, those that say they run fail, and the others answer."""
    measure = MEASURES.load(name)
    assert isinstance(measure, Measure)
    resolved = CASE.resolve()
    program = resolved.compile(for_speed=False)

    def forbidden(*args, **more):
        raise Ran

    monkeypatch.setattr(Program, "init", forbidden)
    monkeypatch.setattr(Program, "place", forbidden)
    if measure.runs:
        with pytest.raises(Ran):
            measure.take(program, resolved.make)
    else:
        assert measure.take(program, resolved.make)


def test_hardware_that_is_only_described_is_never_run():
    """Its row has the measures that read, and neither those that run nor training."""
    pytest.importorskip("jax_plugins.xla_cuda13", reason="needs XLA's GPU compiler")
    case = Case("mlp", strategy="data", mesh="data=2", hardware="h100", set=TINY)
    (row,) = walk(Experiment((case,), MEASURES.names(), (), trains=True))
    reads = {name for name in MEASURES.names() if not MEASURES.load(name).runs}
    assert row.keys() & {*MEASURES.names(), "train"} == reads
    assert row["inspect"]["hardware"] == "h100"


def test_a_measure_that_does_not_exist_is_refused_before_anything_is_compiled(monkeypatch):
    """With the nearest name that does."""
    monkeypatch.setattr(jax, "jit", None)
    with pytest.raises(RequestError, match="unknown measure 'inspct': did you mean 'inspect'"):
        next(walk(Experiment((CASE,), ("inspct",), ())))
