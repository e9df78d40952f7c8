"""Described programs are compiled without CUDA's tools, and are what they are with them."""

import shutil
from pathlib import Path

import pytest
from small import needs_gpu_compiler, small_layout

from jaxpar.program import assembler, record
from jaxpar.program.record import compile_step
from jaxpar.step.make_step import make_step


@pytest.fixture
def afresh():
    """Stand-ins are made anew, and again after the test."""
    assembler._folder.cache_clear()
    yield
    assembler._folder.cache_clear()


def compiled(**fields):
    layout = small_layout("mlp", "data", "data=2", **fields)
    return compile_step(make_step(layout), hardware="h100", for_speed=False)


@needs_gpu_compiler
def test_the_stand_ins_are_asked(afresh, monkeypatch):
    """Each leaves a mark where it is, and this machine's tools are there too or not."""
    marked = assembler._STAND_IN.replace("#!/bin/sh\n", '#!/bin/sh\necho > "$0.asked"\n')
    monkeypatch.setattr(assembler, "_STAND_IN", marked)
    compiled(width=24).update  # noqa: B018
    (folder,) = assembler.without_machine_code().values()
    assert Path(folder, "bin", "ptxas.asked").exists()


@needs_gpu_compiler
@pytest.mark.skipif(shutil.which("ptxas") is None, reason="needs CUDA's ptxas to compare with")
def test_a_program_is_what_it_is_with_the_real_tools(monkeypatch):
    """Its text and its memory, byte for byte."""
    found = []
    for is_real in (False, True):
        if is_real:
            monkeypatch.setattr(record, "without_machine_code", lambda: {})
        program = compiled(width=40)
        found.append((program.text, program.update.memory_analysis().temp_size_in_bytes))
    assert found[0] == found[1]


def test_where_nothing_can_be_run_from_a_temporary_folder_the_machines_tools_are_asked(
    afresh, monkeypatch
):
    """As on a disk that is full, or one whose files cannot be run."""
    monkeypatch.setattr(assembler.os, "access", lambda *about: False)
    assert assembler.without_machine_code() == {}
