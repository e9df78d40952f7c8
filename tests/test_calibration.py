"""Calibration on this machine's CPU: what is measured is a file that predicts."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import compare_prediction
from jaxpar.cli.main import execute
from jaxpar.core.errors import RequestError
from jaxpar.costs.links import collective_seconds
from jaxpar.costs.rates import Device
from jaxpar.hardware.own import hardware_of, is_local
from jaxpar.hlo.collectives import Collective
from jaxpar.hlo.products import Product
from jaxpar.runtime import calibration


@pytest.fixture(scope="module")
def small():
    """Sizes of which a measurement takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "SIZES", {"cpu": (16, 32)})
        patch.setattr(calibration, "MEMORY_BYTES", {"cpu": 1 << 20})
        patch.setattr(calibration, "COLLECTIVE_BYTES", {"cpu": (1 << 12,)})
        patch.setattr(calibration, "SUSTAINED_SECONDS", {"cpu": 0.001})
        patch.setattr(calibration, "LEAST_SECONDS", 0.0005)
        patch.setattr(calibration, "MOST_TURNS", 8)
        yield


@pytest.fixture(scope="module")
def written(small, tmp_path_factory):
    """The file that the command writes, and what it prints."""
    folder = tmp_path_factory.mktemp("calibrate")
    words = ["calibrate", "--hardware", "cpu", "--rounds", "1", "--out", str(folder)]
    assert execute(words, program="jaxpar") == 0
    return folder / "hardware.json"


def test_what_was_measured_is_hardware(written):
    """Its best product takes what was measured; all kinds of collectives are known."""
    record, hardware = json.loads(written.read_text()), hardware_of(str(written))
    assert hardware.name == record["name"] and "jaxpar calibrate" in hardware.source
    device = Device(hardware)
    rows = [row for row in record["measured"]["products"] if row["dtype"] == "bfloat16"]
    best = max(rows, key=lambda row: row["tflops_per_second"])
    one = Product("bf16", 1, best["m"], best["n"], best["k"], 0)
    filled = min(1.0, one.m / 128) * min(1.0, one.n / 128)
    assert hardware.reached is not None
    alone = device.product_seconds(one) - hardware.reached.launch_seconds
    told = one.flops / (1e12 * best["tflops_per_second"]) / filled / hardware.reached.sustained
    assert alone == pytest.approx(told)
    assert {row["kind"] for row in record["measured"]["collectives"]} == {
        "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
    }  # fmt: skip
    assert device.slower_links("all-reduce") == 1.0


def test_work_is_done_as_often_as_it_is_said_to_be(small):
    """A loop of which the compiler had moved the product out would have none in its body."""
    a = jnp.ones((16, 16))
    run = jax.jit(calibration._repeated(jnp.matmul, 8))
    text = run.lower(a, a).compile().as_text() or ""
    assert "dot(" in text[: text.index("ENTRY")]


def test_a_memory_that_is_no_cache_is_no_faster_than_one(written):
    """What was measured of it is a rate that a machine can have."""
    figures = json.loads(written.read_text())["figures"]
    assert 1e8 < figures["memory_bytes_per_second"] * figures["memory"] < 1e13


def test_predictions_are_held_against_steps_on_the_same_devices(written, capsys, monkeypatch):
    """By the other file that is written; without one it is said what to do."""
    small = {"layers": 2, "width": 32, "heads": 2, "kv_heads": 2, "ffn": 64, "sequence": 16}
    cases = {"small": ("transformer", {**small, "batch": 4}), "mlp": ("mlp", {"batch": 8})}
    tiny = compare_prediction.compared(cases, "cpu")
    monkeypatch.setattr(compare_prediction, "experiment", tiny)
    here = written.with_name("here.json")
    assert hardware_of(str(here)).kind == "simulated" and hardware_of(str(here)).rates
    out = ["--json", "--out", str(written.parent)]
    words = ["run", "compare_prediction", *out]
    assert execute([*words, "--hardware", str(here)], program="jaxpar") == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["what"] for row in record["rows"]] == list(cases)
    for row in record["rows"]:
        assert row["steps"]["repeats"] == 15 and row["steps"]["pedigree"] == "measured"
        ratio = row["predict"]["step_seconds"] / row["steps"]["step_seconds"]
        assert row["error"] == pytest.approx(ratio - 1) and row["predict"]["fits"]
    assert "2 programs on 1 x cpu" in record["remarks"][0]
    assert execute(words, program="jaxpar") == 1
    record = json.loads(capsys.readouterr().out)
    assert [claim["holds"] for claim in record["claims"]][0] is False
    assert "calibrate --hardware local writes here.json" in record["remarks"][0]
    local = written.with_name("local.json")
    local.write_text(json.dumps({**json.loads(here.read_text()), "here": "local"}))
    assert is_local("local") and is_local(str(local)) and hardware_of(str(local)).reached
    assert not any(map(is_local, ("cpu", "h100", str(here), str(written), "none.json", "none")))
    with pytest.raises(RequestError, match="unknown here of .* 'there'"):
        bad = written.with_name("bad.json")
        bad.write_text(json.dumps({**json.loads(here.read_text()), "here": "there"}))
        hardware_of(str(bad))


def test_damaged_tables_are_a_sentence(written, tmp_path):
    """Rows that are missing, rows that are none, and numbers that nothing can be."""

    def one(dtype, rate):
        return {"dtype": dtype, "batch": 1, "m": 1, "n": 1, "k": 1, "tflops_per_second": rate}

    for harm in (
        {"products": []}, {"products": [{"dtype": "bfloat16"}]}, {"products": 3}, {"products": [3]},
        {"products": json.loads(written.read_text())["measured"]["products"][1:]}, [], 3, None,
        {"products": [one("bfloat16", 1)]},
        {"products": [one("bfloat16", -1), one("float32", 1)]},
        {"collectives": [
            {"kind": "all-gather", "group_size": 2, "bytes": 8, "microseconds": 0}
        ]},
    ):  # fmt: skip
        record = json.loads(written.read_text())
        record["measured"] = {**record["measured"], **harm} if isinstance(harm, dict) else harm
        file = Path(tmp_path / "ours.json")
        file.write_text(json.dumps(record))
        if harm == {"products": []}:  # those of the device that it is like
            assert hardware_of(str(file)).reached is not None
            continue
        with pytest.raises(RequestError, match="measured tables cannot be read"):
            hardware_of(str(file))


def test_a_kind_of_collective_that_was_not_measured_is_that_of_the_like_device(written, tmp_path):
    """Its bytes take longer by as much as the links are slower; a file may hold few kinds."""
    record, file = json.loads(written.read_text()), tmp_path / "ours.json"
    rows = [row for row in record["measured"]["collectives"] if row["kind"] == "all-reduce"]
    record["measured"]["collectives"] = rows
    file.write_text(json.dumps({**record, "like": "a100"}))
    device = Device(hardware_of(str(file)))
    assert device.slower_links("all-reduce") == 1.0
    assert device.slower_links("collective-permute") == 1.5
    one = Collective(
        name="c", kind="collective-permute", groups=(), pairs=((0, 1), (1, 0)), bytes_each=1 << 30,
        executions=1, exact=True, is_async=True, op_name="", frames=(), borrowed=False, operands=(),
        computation="main",
    )  # fmt: skip
    known = collective_seconds(one, Device(hardware_of("h100")))
    assert collective_seconds(one, device) == pytest.approx(1.5 * known, rel=0.01)


def test_only_what_is_here_can_be_measured(capsys):
    """Described hardware has no devices."""
    assert execute(["calibrate", "--hardware", "h100"], program="jaxpar") == 2
    assert "use local, or cpu" in capsys.readouterr().err
    assert jax.devices()[0].platform == "cpu"
