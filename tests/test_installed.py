"""The command as it is installed: a wheel in an empty environment, used from another folder.

What jaxpar depends on is lent to that environment from this one, so that no network is needed; that
all of it is declared is held by the imports. Nothing else of this environment is seen: neither its
own jaxpar nor the repository.
"""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from quick_xla import QUICKLY

ROOT = Path(__file__).parent.parent
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
MODEL = """
import numpy as np
from flax import nnx

import jaxpar


def factory():
    print("a word of the model's own")
    batch = {"x": np.zeros((8, 4), "float32")}
    return jaxpar.model(
        lambda rngs: nnx.Linear(4, 6, rngs=rngs), lambda net, batch: net(batch["x"]).mean(), batch
    )
"""


def outside() -> dict[str, str]:
    """An environment that knows nothing of this repository."""
    hidden = ("PYTHONPATH", "XLA_FLAGS", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of an environment into which the wheel alone was installed."""
    folder = tmp_path_factory.mktemp("installed")
    wheels, home = folder / "wheels", folder / "venv"
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT))
    subprocess.run([*PIP, *build], check=True, timeout=120)
    (wheel,) = wheels.glob("*.whl")
    venv.create(home, with_pip=False, symlinks=True)
    install = ("--python", str(home / "bin/python"), "install", "--no-deps", "--no-index")
    subprocess.run([*PIP, *install, str(wheel)], check=True, timeout=120, env=outside())
    # After the installation, or pip would take this environment's own jaxpar for it.
    (packages_of(home) / "lent.pth").write_text(sysconfig.get_path("purelib"))
    return home


def packages_of(home: Path) -> Path:
    (folder,) = home.glob("lib/python*/site-packages")
    return folder


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A person's folder: a model, and a package that has the name of one of the repository's."""
    (tmp_path / "my").mkdir()
    (tmp_path / "my/module.py").write_text(MODEL)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/__init__.py").write_text("raise SystemExit('not yours to import')")
    return tmp_path


@pytest.fixture
def jaxpar(installed, elsewhere):
    """Types a command in a folder, the person's if none is given."""

    def typed(*words: str, folder: Path = elsewhere) -> subprocess.CompletedProcess:
        cache = {"JAX_COMPILATION_CACHE_DIR": str(installed.parent / "cache")}
        return subprocess.run(
            [str(installed / "bin/jaxpar"), *words],
            cwd=folder,
            env=outside() | QUICKLY | cache,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return typed


def record_of(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_wheel_installs_one_package(installed):
    """And what starts it; not `experiments`, which a person may have of their own, nor tests."""
    names = {path.name for path in packages_of(installed).iterdir()} - {"lent.pth"}
    own = {"jaxpar", "jaxpar_command.py"}
    assert {name for name in names if not name.endswith((".dist-info", "__pycache__"))} == own


def test_list_shows_the_catalogues_and_no_experiments(jaxpar):
    """Elsewhere there are none, and a package of that name is left alone."""
    record = record_of(jaxpar("list", "--json"))
    assert "mlp" in record["models"] and "adamw" in record["optimizers"]
    assert "experiments" not in record


def test_train_trains(jaxpar, elsewhere):
    """Two steps on simulated devices; the hints are of this command and of what is there."""
    argv = ("train", "mlp", "--steps", "2", "--set", "width=32", "--set", "hidden=2", "--json")
    done = jaxpar(*argv)
    record = record_of(done)
    assert record["devices"] == 8 and record["steps"] == 2
    assert (elsewhere / record["metrics"]).is_file()
    assert "\n  jaxpar train mlp " in done.stderr
    assert "jaxpar run" not in done.stderr and "python -m" not in done.stderr


def test_doctor_understands_a_model_of_this_folder(jaxpar):
    """Its factory is imported from where the command is typed; what it prints is not the record."""
    done = jaxpar("doctor", "my.module:factory", "--json")
    assert record_of(done)["parameters"] == 4 * 6 + 6
    assert "a word of the model's own" in done.stderr


@pytest.mark.parametrize("words", ["run data_parallel", "bench overhead"])
def test_what_is_of_the_repository_is_refused_elsewhere(words, jaxpar):
    """In one sentence that says how to get it."""
    done = jaxpar(*words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"jaxpar: .* is a file of jaxpar's repository.*clone.*\n", done.stderr), (
        done.stderr
    )


def test_in_the_repository_its_experiments_are_there(jaxpar):
    """The installed command walks the files of the folder that it is started in."""
    assert "data_parallel" in record_of(jaxpar("list", "--json", folder=ROOT))["experiments"]


def test_everything_that_is_imported_is_declared():
    """What was lent above is what pip would have installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        found[0] for line in project["dependencies"] if (found := re.match(r"[\w-]+", line))
    }
    roots = set()
    for path in (ROOT / "jaxpar").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                roots.add(node.module.partition(".")[0])
    foreign = roots - set(sys.stdlib_module_names) - {"jaxpar"}
    assert {"jax", "flax", "optax", "absl", "rich"} <= foreign
    homes = packages_distributions()
    missing = {root for root in foreign if not declared & set(homes.get(root, ()))}
    # jaxlib comes with jax, of the same version; whoever uses a plugin of pytest has pytest; charts
    # are an extra, without which they are refused in a sentence.
    assert missing - {"jaxlib", "pytest", "vl_convert"} == set()
