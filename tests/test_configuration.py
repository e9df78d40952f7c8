"""What a program needs otherwise of JAX's configuration is put back; nothing is said meanwhile."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from small import has_gpu_compiler

import jaxpar
from jaxpar.core.catalogue import HARDWARE
from jaxpar.core.errors import RequestError
from jaxpar.core.jax_compat import setting
from jaxpar.core.mesh import MeshShape
from jaxpar.program import configuration, devices
from jaxpar.program.configuration import quiet_start, simulate_devices, uncached
from jaxpar.program.devices import device_mesh

THRESHOLD = "jax_persistent_cache_min_compile_time_secs"
UNCHECKED = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"
LOCAL = HARDWARE.load("local")()


def test_a_setting_is_put_back_also_after_an_error():
    """And is otherwise meanwhile."""
    before = getattr(jax.config, THRESHOLD)
    with pytest.raises(ZeroDivisionError), uncached():
        assert getattr(jax.config, THRESHOLD) == float("inf") != before
        raise ZeroDivisionError
    assert getattr(jax.config, THRESHOLD) == before


def test_a_setting_is_put_back_by_the_last_of_two_threads():
    """The first to end neither takes it from the other nor leaves the other's value behind."""
    before = getattr(jax.config, THRESHOLD)
    entered, may_end = threading.Event(), threading.Event()

    def other():
        with uncached():
            entered.set()
            may_end.wait(10)

    thread = threading.Thread(target=other)
    with uncached():
        thread.start()
        assert entered.wait(10)
    assert getattr(jax.config, THRESHOLD) == float("inf")
    may_end.set()
    thread.join()
    assert getattr(jax.config, THRESHOLD) == before


def test_a_cuda_plugin_is_let_look_for_its_libraries_only_where_it_could_use_them(monkeypatch):
    """The environment is as it was afterwards, and what a person says there is left alone."""
    monkeypatch.delenv(UNCHECKED, raising=False)
    monkeypatch.setattr(configuration, "has_nvidia_gpu", lambda: False)
    with pytest.raises(ZeroDivisionError), quiet_start():
        assert os.environ[UNCHECKED] == "1"
        raise ZeroDivisionError
    assert UNCHECKED not in os.environ
    monkeypatch.setattr(configuration, "has_nvidia_gpu", lambda: True)
    with quiet_start():
        assert UNCHECKED not in os.environ
    monkeypatch.setattr(configuration, "has_nvidia_gpu", lambda: False)
    monkeypatch.setenv(UNCHECKED, "a person's")
    with quiet_start():
        assert os.environ[UNCHECKED] == "a person's"
    assert os.environ[UNCHECKED] == "a person's"


def test_devices_are_not_asked_for_once_jax_has_started():
    """Nothing is raised and nothing changes; whoever needs them counts."""
    have = len(jax.devices("cpu"))
    simulate_devices(4 * have)
    assert setting("jax_num_cpu_devices") == len(jax.devices("cpu")) == have


def machine_with(monkeypatch, *platforms, count=4):
    """JAX finds these platforms, the one that it prefers first, of so many devices each."""
    found = {
        name: [
            SimpleNamespace(id=i, platform=name, device_kind=f"{name} 9000") for i in range(count)
        ]
        for name in platforms
    }
    monkeypatch.setattr(devices, "backends", lambda: found)
    monkeypatch.setattr(jax, "devices", lambda name=None: found[name or platforms[0]])
    monkeypatch.setattr(
        devices,
        "Mesh",
        lambda array, axes, axis_types: SimpleNamespace(devices=array, axis_names=axes),
    )


@pytest.mark.parametrize(
    "platforms", [("tpu", "cpu"), ("rocm", "cpu"), ("cuda", "cpu"), ("npu",), ("cpu", "rocm")]
)
def test_local_hardware_is_whatever_accelerator_jax_finds(monkeypatch, platforms):
    """Of any platform, also where a person has JAX prefer the CPU."""
    machine_with(monkeypatch, *platforms)
    mesh = device_mesh(MeshShape(data=2, model=2), LOCAL)
    (platform,) = set(platforms) - {"cpu"}
    assert {d.platform for d in mesh.devices.flat} == {platform}
    assert [d.id for d in mesh.devices.flat] == list(range(4))
    assert mesh.devices.shape == (2, 2)


def test_more_accelerators_than_there_are_is_refused(monkeypatch):
    """With both numbers and the kind that is here."""
    machine_with(monkeypatch, "tpu", "cpu")
    with pytest.raises(RequestError, match=r"needs 8 devices, but this machine has 4 \(tpu 9000\)"):
        device_mesh(MeshShape(data=8), LOCAL)


def test_a_machine_of_a_cpu_alone_has_no_local_hardware(monkeypatch):
    """What JAX finds is asked, and nothing in /dev."""
    machine_with(monkeypatch, "cpu")
    monkeypatch.setattr(configuration, "has_nvidia_gpu", lambda: True)
    with pytest.raises(RequestError, match="accelerators, and JAX finds none.*--hardware cpu"):
        device_mesh(MeshShape(data=2), LOCAL)


def alone(text: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python on `text` in a process where nobody has said which platforms JAX starts."""
    inherited = {n: v for n, v in os.environ.items() if n not in ("JAX_PLATFORMS", UNCHECKED)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


EACH_HARDWARE = """
import os
import jax
import jaxpar
from jaxpar.core.catalogue import HARDWARE
from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import MeshShape

layout = jaxpar.lay_out(
    jaxpar.MODELS.load("mlp")().with_fields(width=8, hidden=1),
    strategy=jaxpar.STRATEGIES.load("data")(),
    mesh=MeshShape(data=2),
)
step = jaxpar.make_step(layout)
settings, environment = dict(jax.config.values), dict(os.environ)
for name in {order}:
    try:
        print(name, jaxpar.compile_step(step, hardware=HARDWARE.load(name)()).mesh.devices.shape)
    except RequestError as error:
        print(name, error)
assert dict(os.environ) == environment
now = dict(jax.config.values)
print([name for name in now if now[name] != settings[name]])
"""


@pytest.mark.parametrize("order", [("cpu", "local", "h100"), ("h100", "cpu"), ("local", "cpu")])
def test_compiling_says_nothing_and_changes_only_the_number_of_devices(order):
    """Also with a GPU's compiler alone; and in any order, since JAX cannot add devices later."""
    done = alone(EACH_HARDWARE.format(order=order))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *found, changed = done.stdout.splitlines()
    assert [line.split()[0] for line in found] == list(order)
    assert changed == "['jax_num_cpu_devices']"
    assert "cpu (2, 1)" in found
    assert "h100" not in order or not has_gpu_compiler() or "h100 (2, 1)" in found


def test_a_platform_that_is_not_here_is_refused_in_a_sentence():
    """What JAX raises where JAX_PLATFORMS names none that starts."""
    done = alone(EACH_HARDWARE.format(order=("cpu", "local")), JAX_PLATFORMS="nosuch")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unset JAX_PLATFORMS") == 2


FACTORY = """
import jax.numpy as jnp
from flax import nnx

import jaxpar


def net():
    rows = jnp.ones((16, 8))  # starts JAX
    return jaxpar.model(lambda rngs: nnx.Linear(8, 4, rngs=rngs), None, {"inputs": rows})
"""


def test_a_factory_that_starts_jax_says_nothing_and_leaves_enough_devices(tmp_path):
    """Whichever hardware the first of two cases is for."""
    (tmp_path / "of_a_person.py").write_text(FACTORY)
    done = alone(
        """
from jaxpar.case import Case
for name in ("local", "cpu"):
    case = Case("of_a_person:net", hardware=name, strategy="data", mesh="data=8")
    case.resolve()
import jax
print(len(jax.devices("cpu")))
""",
        PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "8\n"
    assert done.stderr == ""


LAW = """
import importlib, logging, os, pkgutil, signal, sys, threading, warnings

# What is imported beside jaxpar may change things as it likes.
import absl.flags, absl.logging, flax, jax, numpy, optax, rich.console, sklearn.datasets
import flax.linen, flax.nnx, jax.experimental.topologies, jax.experimental.pallas
from jax._src import source_info_util, traceback_util


def state():
    loggers = [logging.root, *map(logging.getLogger, sorted(logging.root.manager.loggerDict))]
    return {
        "configuration": dict(jax.config.values),
        "frames": (
            list(source_info_util._exclude_paths),
            list(source_info_util._include_paths),
            list(traceback_util._exclude_paths),
        ),
        "warnings": list(warnings.filters),
        "path": list(sys.path),
        "environment": dict(os.environ),
        "handlers": {n.name: (list(n.handlers), n.level) for n in loggers if n.handlers},
        "streams": (sys.stdout, sys.stderr, sys.excepthook, threading.excepthook),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "threads": threading.active_count(),
        "numbers": numpy.random.get_state()[1].tolist(),
        "folder": os.getcwd(),
    }


before = state()
import jaxpar
names = [m.name for m in pkgutil.walk_packages(jaxpar.__path__, "jaxpar.")]
modules = [importlib.import_module(n) for n in names if not n.endswith("__main__")]
after = state()
changed = [what for what in before if before[what] != after[what]]
print(len(modules), changed, [
    n for n, v in before["configuration"].items() if after["configuration"][n] != v
])
"""


def test_importing_jaxpar_changes_nothing_in_the_process():
    """Every module of it: no setting of JAX, no filter, handler, path, variable or thread."""
    done = alone(LAW)
    assert done.returncode == 0, done.stderr
    count, _, changed = done.stdout.partition(" ")
    assert int(count) > 100
    assert changed.split() == ["[]", "[]"], changed
    assert done.stderr == ""


def test_the_process_is_changed_in_one_file():
    """JAX's settings and the environment; the command may, whose process is its own."""
    said = r"^ *(jax\.)?config\.update\(|environ\[[^]]*\] = |environ\.(pop|update|setdefault)\("
    changes = re.compile(said, re.MULTILINE)
    room = Path(jaxpar.__file__).parent
    files = [p for p in room.rglob("*.py") if changes.search(p.read_text(encoding="utf-8"))]
    outside = [p for p in files if not p.is_relative_to(room / "cli")]
    assert outside == [room / "program/configuration.py"]


def test_what_xla_writes_of_a_program_is_had_also_where_a_cache_has_the_program(tmp_path):
    """It would be taken from there, nothing would be compiled, and XLA would write nothing."""
    before = {name: setting(name) for name in ("jax_compilation_cache_dir", THRESHOLD)}
    reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    jax.config.update(THRESHOLD, 0.0)
    try:
        layout = jaxpar.lay_out(jaxpar.MODELS.load("mlp")(), strategy="data", mesh="data=2")
        for explains in (False, True, False):
            step = jaxpar.make_step(layout)
            program = jaxpar.compile_step(step, hardware="cpu", explains=explains)
            assert bool(program.made.dumps.partitioned) == explains
            kept = {file.name for file in tmp_path.iterdir() if "jit_update" in file.name}
            assert len({name for name in kept if name.endswith("-cache")}) == 1
        assert jaxpar.step_memory(program) is not None
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()
