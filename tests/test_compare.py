"""compare: several layouts in one table, every figure whole; and what a screen owes its reader."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from small import cpu, needs_gpu_compiler, small_layout
from test_tables import Page

from jaxpar.cli.files import unused
from jaxpar.cli.main import execute
from jaxpar.cli.screen import Screen
from jaxpar.cli.show.comparison import Compared, show_comparison
from jaxpar.cli.show.inspection import show_memory
from jaxpar.cli.show.work import show_bytes_by_axes, show_work
from jaxpar.core.figures import bytes_text, flops_text
from jaxpar.hardware.h100 import hardware as h100
from jaxpar.measures.inspect import inspect
from jaxpar.program.record import compile_step
from jaxpar.step.make_step import make_step

pytestmark = pytest.mark.usefixtures("drawn_once")


@cache
def inspection(strategy="hybrid", mesh="data=4,model=2"):
    layout = small_layout("transformer", strategy, mesh)
    return inspect(compile_step(make_step(layout), hardware=cpu(), for_speed=False))


def on_h100s(found):
    """An inspection as if it were of described devices, in nodes of four."""
    rows = tuple(
        replace(row, between_nodes="data" in row.axes, link_bytes=1e6, node_bytes=4e9)
        for row in found.collectives
    )
    memory = replace(memory_of(found), device_bytes=h100().memory_bytes)
    return replace(found, collectives=rows, target=h100(), device_memory=memory)


def memory_of(found):
    """What an inspection says of memory, which simulated devices give an account of."""
    assert found.device_memory is not None
    return found.device_memory


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_work_and_memory_are_shown_whole_at_any_width(width):
    """FLOPs, tokens, bytes by axis and place, bounds, and the share of a device's memory."""
    found, page = on_h100s(inspection()), Page(width)
    show_bytes_by_axes(page, found)
    show_work(page, found)
    show_memory(page, found)
    words = " ".join(page.text.split())
    work, memory = found.work, memory_of(found)
    for figure in (
        f"{work.rows:,} rows",
        f"{work.tokens:,} tokens",
        flops_text(work.device_flops),
        bytes_text(memory.total_bytes),
        bytes_text(memory.optimizer_state_bytes),
        *(bytes_text(n) for sums in found.bytes_by_axes().values() for n in sums.values()),
    ):
        assert figure in words, (figure, page.text)
    for said in ("per device", "step", "inside nodes", "between nodes", "at least", "fits: 0.0%"):
        assert set(said.split()) <= set(words.split()), page.text


def test_what_does_not_fit_is_said():
    """And what fits only in more than JAX takes unless it is told to."""
    found = on_h100s(inspection())
    total = memory_of(found).total_bytes
    for room, said in ((total - 1, "does not fit: 100"), (total + 1, "MEM_FRACTION"), (None, "")):
        page = Page(100)
        memory = replace(memory_of(found), device_bytes=room)
        show_memory(page, replace(found, device_memory=memory))
        assert said in page.text and ("fit" in page.text) == (room is not None)
        assert memory.fits is (None if room is None else room >= total)


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("described", [False, True])
def test_a_comparison_has_every_figure_of_every_layout(width, described):
    """A row a layout, a column a layout or a block each; what is refused has its sentence."""
    found = {
        "hybrid@data=4,model=2": inspection(),
        "fsdp@data=8": inspection("fsdp", "data=8"),
    }
    found = {name: on_h100s(one) if described else one for name, one in found.items()}
    compared = [Compared(name, one) for name, one in found.items()]
    page = Page(width)
    show_comparison(page, "transformer", [*compared, Compared("data@data=3", None, "it is odd")])
    words = " ".join(page.text.split())
    for name, one in found.items():
        assert name in "".join(page.text.split())
        assert bytes_text(memory_of(one).total_bytes) in words
        assert flops_text(one.work.device_flops) in words
    assert "data@data=3: it is odd" in words
    assert ("least bound" in words) is described


@needs_gpu_compiler
def test_for_described_hardware_each_step_is_predicted(capsys):
    """In the record as `predict` has it; on the screen the fastest is named."""
    line = "compare mlp data@data=8 fsdp@data=8 --hardware h100 --set width=256 --set batch=64"
    assert execute([*line.split(), "--json"], program="jaxpar") == 0
    told = capsys.readouterr()
    layouts = json.loads(told.out)["layouts"]
    times = {one["layout"]: one["step_seconds"] for one in layouts}
    for one in layouts:
        assert one["low_seconds"] < one["step_seconds"] < one["high_seconds"]
        assert one["step_seconds"] >= one["bounds"]["step_seconds"] and 0 < one["mfu"] < 1
    assert f"fastest, as predicted: {min(times, key=lambda layout: times[layout])}" in told.err


def test_layouts_are_compared_by_what_is_typed(capsys):
    """With fields of one layout behind it; one that cannot be laid out is no end of the others."""
    line = "compare mlp data@data=4 fsdp@data=2@width=512 data@data=3 --set width=256 --json"
    assert execute([*line.split()], program="jaxpar") == 0
    record = json.loads(capsys.readouterr().out)
    first, second, third = record["layouts"]
    assert first["layout"] == "data@data=4" and first["ok"] and first["devices"] == 4
    assert second["strategy"] == "fsdp" and second["parameters"] > 2 * first["parameters"]
    assert "does not divide" in third["refusal"]
    assert execute(["compare", "mlp", "data@data=3", "--json"], program="jaxpar") == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("layouts", "says"),
    [
        ("", "'compare' needs a MODEL LAYOUT ..."),
        ("fsdp", "layout 'fsdp': write STRATEGY@MESH"),
        ("@data=2", "layout '@data=2': write STRATEGY@MESH"),
        ("fsdp@", "layout 'fsdp@': write STRATEGY@MESH"),
        ("fsdp@data", "'data' is not axis=size"),
        ("fsdp@data=2@width", "fields that differ behind it"),
        ("fsdp@data=2@widht=3", "did you mean 'width'"),
        ("fspd@data=2", "did you mean 'fsdp'"),
        ("fsdp@data=2 --strategy data", "'compare' does not read --strategy"),
    ],
)
def test_a_layout_that_makes_no_sense_gets_one_sentence(layouts, says, capsys):
    """Exit status 2, nothing on standard output."""
    assert execute(["compare", "mlp", *layouts.split()], program="jaxpar") == 2
    out, err = capsys.readouterr()
    assert says in err and err.count("\n") == 1 and out == ""


def test_no_file_of_an_earlier_run_is_named_again(tmp_path):
    """metrics.jsonl, then metrics-2.jsonl, and so on."""
    path, names = tmp_path / "metrics.jsonl", []
    for _ in range(3):
        free = unused(path)
        free.write_text("kept")
        names.append(free.name)
    assert names == ["metrics.jsonl", "metrics-2.jsonl", "metrics-3.jsonl"]


LOUD = """
import atexit, os, subprocess, sys
import numpy as np
from flax import nnx
import jaxpar

out = sys.stdout
print("imported")
os.write(1, b"to the descriptor\\n")
atexit.register(print, "at the end")


class Loud(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        print("traced", file=out)
        subprocess.run(["echo", "another process"])
        return self.layer(x)


def factory():
    print("made", flush=True)
    return jaxpar.model(Loud, lambda net, b: (net(b["x"]) ** 2).mean(), {"x": np.ones((8, 4))})
"""


def test_json_is_one_record_whatever_a_model_prints(tmp_path):
    """By Python, to a stream that it kept, to the descriptor, by a process, and at the end."""
    (tmp_path / "loud.py").write_text(LOUD)
    words = "inspect loud:factory --strategy data --mesh data=2 --json".split()
    program = [
        sys.executable,
        "-c",
        "import sys; from jaxpar.cli.main import main; sys.exit(main())",
    ]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [*program, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and json.loads(done.stdout)["model"] == "loud"
    for said in (
        "imported",
        "to the descriptor",
        "traced",
        "another process",
        "made",
        "at the end",
    ):
        assert said in done.stderr, said


def test_a_picture_has_every_word_of_a_long_line(tmp_path):
    """It is as wide as a page, and what is longer goes on in the next line."""
    screen = Screen(as_json=False, pictured=True)
    screen.console.file = io.StringIO()
    screen.say(" ".join(f"word{number}" for number in range(60)))
    screen.picture(tmp_path / "shown.svg", "a title")
    drawn = (tmp_path / "shown.svg").read_text().replace("&#160;", " ")
    assert all(f"word{number}" in drawn for number in range(60))


def test_work_that_takes_long_is_said_in_a_line_in_a_pipe(monkeypatch):
    """Not at once: what is refused at once has its sentence and no other."""
    monkeypatch.setattr("jaxpar.cli.screen.SECONDS_UNSAID", 0.01)
    page = Page(80)
    with page.doing("compiling"):
        while "compiling ..." not in page.text:
            pass
    monkeypatch.setattr("jaxpar.cli.screen.SECONDS_UNSAID", 1000)
    page = Page(80)
    with page.doing("compiling"):
        pass
    assert page.text == ""
