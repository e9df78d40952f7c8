"""Communication that no work hides, read from schedules written by hand."""

import pytest
from small import needs_gpu_compiler, small_layout

import jaxpar
from jaxpar.core.catalogue import HARDWARE
from jaxpar.core.errors import RequestError
from jaxpar.hardware.presets import PIPELINED, PRESETS
from jaxpar.hlo.exposed import Exposed, Speeds, exposed
from jaxpar.hlo.parse import parse

SPEEDS = Speeds(
    flops_per_second=lambda dtype: 2.0 * 64**3,
    memory_bytes_per_second=4.0 * 64**2,
    link_bytes_per_second=lambda one: 4.0 * 64**2,
)
"""Of a 64 x 64 float32 matrix: in a second one product, one read or write, one sent."""

MODULE = """HloModule m, is_scheduled=true, num_partitions=2

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}}

ENTRY %main (x: f32[64,64]) -> f32[64,64] {{
  %x = f32[64,64]{{1,0}} parameter(0)
{body}
}}
"""
START = (
    "  %s = (f32[32,64]{1,0}, f32[64,64]{1,0}) all-gather-start(%h), channel_id=1, "
    "replica_groups={{0,1}}, dimensions={0}, use_global_device_ids=true"
)
HALF = "  %h = f32[32,64]{1,0} bitcast(%x)"
DONE = "  %g = f32[64,64]{1,0} all-gather-done(%s)"


def product(name: str, left: str = "x", root: str = "") -> str:
    dims = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    return f"  {root}%{name} = f32[64,64]{{1,0}} dot(%{left}, %x), {dims}"


def of(*lines: str) -> Exposed:
    return exposed(parse(MODULE.format(body="\n".join(lines))), SPEEDS)


@pytest.mark.parametrize(("products", "waited"), [(0, 0.5), (1, 0.0)])
def test_a_gather_is_exposed_for_as_long_as_nothing_runs_beside_it(products, waited):
    """Half a second of gather (each device sends half a matrix), hidden by a second of product."""
    between = [product(f"p{n}") for n in range(products)]
    found = of(HALF, START, *between, DONE, product("last", "g", root="ROOT "))
    assert found == Exposed(products + 1.0, 0.5, waited)


def test_what_is_synchronous_is_exposed_whole_and_collectives_take_turns():
    """An all-reduce sends its operand once and gets it once: a second, by a ring of two."""
    reduce = (
        "  %r = f32[64,64]{1,0} all-reduce(%x), channel_id=2, replica_groups={{0,1}}, "
        "use_global_device_ids=true, to_apply=%add"
    )
    found = of(HALF, START, reduce, DONE, product("last", "g", root="ROOT "))
    assert found == Exposed(1.0, 1.5, 1.5)


def test_memory_takes_its_time():
    """A sum of two matrices reads two and writes one."""
    assert of("  ROOT %y = f32[64,64]{1,0} add(%x, %x)") == Exposed(3.0, 0.0, 0.0)


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
