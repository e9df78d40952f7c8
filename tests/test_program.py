"""compile_step: the state is created sharded, is donated, and is sharded alike after a step."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import cpu, kinds_of_model, small_layout, suits

from jaxpar.case import Case
from jaxpar.core.catalogue import HARDWARE
from jaxpar.core.errors import RequestError
from jaxpar.inference.probe import probe_batch
from jaxpar.program.devices import device_mesh
from jaxpar.program.record import Program, compile_step
from jaxpar.step.make_step import make_step

BOTH = "data=4,model=2"


@cache
def compiled(strategy, mesh=BOTH):
    model = next(m for m in ("mlp", *kinds_of_model()) if suits(m, strategy))
    layout = small_layout(model, strategy, mesh)
    return compile_step(make_step(layout), hardware=cpu(), for_speed=False)


def first_state(model, strategy, mesh):
    """What init draws, without compiling the step that would use it."""
    layout = small_layout(model, strategy, mesh)
    return Program(make_step(layout), cpu(), device_mesh(layout.mesh, cpu())).init(3)


@pytest.mark.parametrize("model", kinds_of_model())
def test_the_first_state_is_the_same_on_every_layout(model):
    """Bit for bit: what is drawn does not depend on how it is sharded."""
    first, *others = (
        first_state(model, s, m)
        for s, m in (("single", "data=1"), ("fsdp+tensor", BOTH), ("data", "data=8"))
    )
    assert others
    for other in others:
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_seeds_draw_different_parameters():
    """The law above does not hold because everything is zero."""
    program = compiled("hybrid")
    a, b = program.init(0).parameters, program.init(1).parameters
    assert any(not np.array_equal(a[path], b[path]) for path in a)


def test_the_first_state_is_made_sharded():
    """The program that draws it gives each of eight devices a sixth: norms are replicated."""
    program = compiled("fsdp+tensor")
    memory = program._create.memory_analysis()
    state_bytes = sum(a.size * 4 for a in jax.tree.leaves(program.step.state.parameters)) * 3
    assert memory.output_size_in_bytes < state_bytes / 4


@pytest.mark.parametrize("strategy", ["single", "hybrid", "fsdp+tensor"])
def test_a_step_writes_its_state_where_the_old_one_lay(strategy):
    """Donation is used: the aliased bytes are those of the state a device holds."""
    program = compiled(strategy)
    memory = program.update.memory_analysis()
    held = 0
    specs = jax.tree.leaves(program.state_shardings)
    for leaf, sharding in zip(jax.tree.leaves(program.step.state), specs, strict=True):
        size = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        held += int(np.prod(sharding.shard_shape(leaf.shape))) * size
    assert memory.alias_size_in_bytes == held


def test_a_state_that_was_used_up_cannot_be_used_again():
    """Donation is felt: the old arrays are gone."""
    program = compiled("hybrid")
    state, batch = program.init(0), program.place(probe_batch(program.step.layout.model, 0))
    program.update(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.parameters))


def test_rows_of_this_process_are_all_rows_when_it_is_alone():
    """One process holds every device, so it hands in the whole batch."""
    for strategy in ("data", "tensor"):
        program = compiled(strategy)
        rows = program.step.layout.model.batch_size
        assert range(rows)[program.local_rows] == range(rows)


def test_devices_are_outermost_axis_first():
    """Neighbours along the last axis have neighbouring numbers."""
    for mesh, shape in ((BOTH, (4, 2)), ("model=2,data=4", (2, 4))):
        devices = device_mesh(small_layout("mlp", "hybrid", mesh).mesh, cpu()).devices
        assert devices.shape == shape
        assert [d.id for d in devices.flat] == list(range(8))


def test_a_mesh_larger_than_the_machine_is_refused():
    """With both numbers, and what to do, in a notebook too."""
    have = jax.device_count()
    layout = small_layout("mlp", "data", f"data={4 * have}", batch=4 * have)
    said = (
        f"needs {4 * have} devices, but JAX already started with .*notebook the kernel.*at the top"
    )
    with pytest.raises(RequestError, match=said):
        compile_step(make_step(layout), hardware=cpu())


def test_local_hardware_that_is_not_there_is_refused():
    """This process was told to see only the CPU, which is no accelerator."""
    layout = small_layout("mlp", "data", "data=2")
    with pytest.raises(RequestError, match="accelerators, and JAX finds none.*--hardware cpu"):
        compile_step(make_step(layout), hardware=HARDWARE.load("local")())


def test_hardware_whose_compiler_is_missing_says_what_to_install():
    """A described target that XLA does not know is a request, not a crash."""
    unknown = replace(HARDWARE.load("h100")(), target="nonsense {")
    with pytest.raises(RequestError, match="pip install"):
        compile_step(make_step(small_layout("mlp", "data", "data=2")), hardware=unknown)


def test_a_described_program_compiles_twice_in_silence(tmp_path):
    """Where compiled programs are kept, as the runner does, asking again warns of nothing."""
    pytest.importorskip("jax_plugins.xla_cuda13", reason="needs XLA's GPU compiler")
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    kept = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in kept}
    step = make_step(small_layout("mlp", "data", "data=2"))
    try:
        for name, value in kept.items():
            jax.config.update(name, value)
        reset_cache()
        texts = [compile_step(step, hardware=HARDWARE.load("h100")()).text for _ in range(2)]
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()
    assert "all-reduce" in texts[0]
    assert len(texts[0]) == len(texts[1])


def test_options_of_xla_reach_its_compiler():
    """By their names without or with "xla_"; what a version does not know is refused in a line."""
    said = {"xla.cpu_enable_fast_math": True, "xla.xla_llvm_disable_expensive_passes": True}
    hardware = Case("mlp", mesh="data=1", set=said).resolve().hardware
    options = {"xla_cpu_enable_fast_math": True, "xla_llvm_disable_expensive_passes": True}
    assert hardware.compiler_options == options
    for told, why in (({"xla.nosuch": 1}, "No such compile option"), ({"xla.a": [1]}, "a number")):
        with pytest.raises(RequestError, match=why):
            Case("mlp", mesh="data=1", set=told).resolve().compile()
