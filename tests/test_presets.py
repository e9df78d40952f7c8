"""Options of XLA's that are published for training, by a name."""

import pytest
from small import needs_gpu_compiler, small_layout

import jaxpar
from jaxpar.core.catalogue import HARDWARE
from jaxpar.core.errors import RequestError
from jaxpar.hardware.presets import PIPELINED, PRESETS


@needs_gpu_compiler
@pytest.mark.parametrize("name", PRESETS)
def test_this_xla_takes_every_option_of_a_preset(name):
    """Options come and go with XLA's versions."""
    hardware = HARDWARE.load("h100")().with_options({"xla.preset": name})
    step = jaxpar.make_step(small_layout("mlp", "fsdp", "data=2"))
    assert jaxpar.compile_step(step, hardware=hardware, for_speed=False).text


def test_a_preset_is_told_before_what_else_is():
    """Options by the preset's name, and one of them told otherwise."""
    told = {"xla.gpu_enable_while_loop_double_buffering": False, "xla.preset": "overlap"}
    options = HARDWARE.load("h100")().with_options(told).compiler_options
    assert options["xla_gpu_enable_while_loop_double_buffering"] is False
    assert {name: options[name] for name in PIPELINED if name in options} in ({}, PIPELINED)
    assert "xla_preset" not in options
    assert all(preset.source and preset.does for preset in PRESETS.values())
    with pytest.raises(RequestError, match="unknown preset of XLA's options 'overlpa'.*overlap"):
        HARDWARE.load("h100")().with_options({"xla.preset": "overlpa"})
