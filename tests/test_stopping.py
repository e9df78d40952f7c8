"""Signals and pipes: a command that is stopped, or whose words nobody reads, ends with a line."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import jax
import pytest

import jaxpar
import jaxpar_command
from jaxpar.cli import environment
from jaxpar.cli.main import execute
from jaxpar.cli.streams import prepare_streams
from jaxpar.core.errors import RequestError
from jaxpar.core.jax_compat import READ_XLA_FLAGS
from jaxpar.program.configuration import refuse_settings

pytestmark = pytest.mark.usefixtures("own_folder")
TINY = ["--set", "width=16", "--set", "hidden=1"]
TRAIN = ["train", "mlp", *TINY, "--strategy", "data", "--mesh", "data=2", "--out", "mine"]
ENDS = {signal.SIGINT: (130, "stopped"), signal.SIGTERM: (143, "terminated")}


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_ends_training_with_its_status_and_what_was_kept(number, monkeypatch, capsys):
    """Once it is there twice: the first asks for the step to be finished and saved."""
    from jaxpar.cli.verbs import train

    def signalled(program, data, training, *, metrics_file, asked_to_stop, **rest):
        metrics_file.write_text("{}")
        os.kill(os.getpid(), number)
        assert asked_to_stop(1)
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(train, "train", signalled)
    before = [signal.getsignal(n) for n in ENDS]
    status, word = ENDS[number]
    assert execute(TRAIN, program="jaxpar") == status
    told = capsys.readouterr()
    assert f"{word}: this step is finished and saved; once more ends at once" in told.out
    assert told.err == f"jaxpar: {word}; kept: mine/metrics.jsonl\n"
    assert [signal.getsignal(n) for n in ENDS] == before


# Without JAX, which takes a second to import.
BUSY = f"""
import hashlib, sys, types
package = types.ModuleType("jaxpar")
package.__path__ = [{str(Path(jaxpar.__file__).parent)!r}]
sys.modules["jaxpar"] = package
from jaxpar.cli.stopping import stoppable
with stoppable(lambda word: print(word, file=sys.stderr)):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in C, as a compilation may be
"""


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_ends_what_does_not_return_to_python(number):
    """A compilation hands no signal on before it ends."""
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as busy:
        assert busy.stdout and busy.stdout.readline() == "ready\n"
        time.sleep(0.5)  # Python has gone on to the hash
        busy.send_signal(number)
        _, err = busy.communicate(timeout=60)
    status, word = ENDS[number]
    assert (busy.returncode, err) == (status, f"{word}\n")


@pytest.mark.parametrize("argv", [["--help"], ["list"], ["list", "--json"]], ids=" ".join)
def test_a_full_disk_behind_standard_output_is_told(argv, monkeypatch, capsys):
    """Not by a traceback when Python ends, and not by silence."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert execute(argv, program="jaxpar") == 2
        assert "cannot write to standard output (No space left" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["list"], ["list", "--json"]], ids=" ".join)
def test_a_reader_that_has_gone_ends_a_command_quietly(argv, monkeypatch, capsys):
    """As `| head` does, once it has read enough."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert execute(argv, program="jaxpar") == 141
        assert "--json" in argv or capsys.readouterr().err == ""


def test_a_model_that_closes_standard_output_is_told(monkeypatch, capsys):
    """The words that were to come cannot."""
    with open(os.devnull, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr("jaxpar.cli.main.show_help", lambda *_: out.close() or print("more"))
        assert execute(["--help"], program="jaxpar") == 2
    assert "was closed meanwhile" in capsys.readouterr().err


def test_an_ascii_terminal_gets_every_line(monkeypatch):
    """With ? for what it cannot show."""
    with open("out", "w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        prepare_streams()
        print("4 × 2 ━", file=out)
    assert Path("out").read_text() == "4 ? 2 ?\n"


@pytest.mark.parametrize(
    ("jax", "status", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", 130, "stopped; kept: nothing"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143, "terminated; kept:"),
        ("raise ValueError('JAX_X=y\\nis none')", 2, "cannot be imported (JAX_X=y is none): unset"),
        ("raise ImportError('no jaxlib')", 2, "(no jaxlib): pip install jaxpar brings it"),
        ("raise RuntimeError('jaxlib is too old')", 2, "(jaxlib is too old): pip install"),
    ],
)
def test_what_ends_the_import_of_jax_is_told(jax, status, said):
    """The first second, in which the package is not there yet."""
    Path("jax.py").write_text(jax)
    places = os.pathsep.join((str(Path.cwd()), str(Path(jaxpar_command.__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", "import sys, jaxpar_command as c; sys.exit(c.main())"],
        env=os.environ | {"PYTHONPATH": places},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.count("\n") == 1 and said in done.stderr


def test_a_record_is_printed_where_the_words_beside_it_cannot_be(monkeypatch, capfd):
    """A full disk behind standard error."""
    full = open("/dev/full", "w")
    monkeypatch.setattr(sys, "stderr", full)
    assert execute(["list", "--json"], program="jaxpar") == 0
    with suppress(OSError):
        full.close()
    assert json.loads(capfd.readouterr().out)["models"]


def test_a_process_of_few_addresses_is_told_before_jax_ends_it(monkeypatch, capsys):
    """ulimit -v; a list needs no devices, and is refused alike."""
    most = environment.LEAST_ADDRESSES_BYTES
    for limit, status in ((most - 1, 2), (most, 0), (resource.RLIM_INFINITY, 0)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert execute(["list"], program="jaxpar") == status
        assert ("ulimit -v" in capsys.readouterr().err) is bool(status)


@pytest.mark.parametrize("name", environment._FOLDERS)
def test_a_folder_that_jax_cannot_write_to_is_refused(name, monkeypatch, capsys):
    """It would be met in the middle."""
    monkeypatch.setenv(name, "/dev/null/x")
    assert execute(["inspect", "mlp"], program="jaxpar") == 2
    assert name in capsys.readouterr().err


def test_closed_streams_lead_nowhere_and_a_closed_output_is_refused():
    """In a process without any: the sentence is lost with them, the status is not."""
    line = f"{sys.executable} -c 'import sys; from jaxpar_command import main; sys.exit(main())'"
    done = subprocess.run(
        ["sh", "-c", f"{line} list >&- 2>&- <&-; echo $?; {line} list >&-; echo $?"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "2\n2\n"
    assert done.stderr == (
        "jaxpar: standard output is closed: let it go to a file, or to /dev/null\n"
    )


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--nosuch=1", "Unknown flag in XLA_FLAGS: --nosuch=1"),
        ("nonsense", "Could not open file"),
        ("--xla_cpu_enable_fast_math=maybe", "Couldn't interpret value maybe"),
    ],
)
def test_flags_that_xla_does_not_know_are_refused(flags, why, monkeypatch, capsys):
    """XLA would end the process, whatever Python had to say."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert "xla_client" in READ_XLA_FLAGS
    assert execute(["inspect", "mlp"], program="jaxpar") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and why in err and flags in err


def test_flags_that_xla_knows_are_left_alone(monkeypatch):
    """Such as another count of devices, which JAX's own setting overrules."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    environment.check_environment()


@pytest.mark.parametrize(
    ("home", "cache"),
    [(None, None), ("", None), ("/dev/null", None), ("here", None), ("/proc/nosuch", None),
     (None, "/dev/null/x"), ("/tmp", "relative")],
)  # fmt: skip
def test_without_a_home_nothing_is_kept(home, cache, monkeypatch):
    """And nothing is said: a cache is no more than that. No folder appears where one works."""
    for name, value in (("HOME", home), ("XDG_CACHE_HOME", cache)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert environment.cache_folder() is None
    assert list(Path().iterdir()) == []


def test_a_home_keeps_compiled_programs(monkeypatch, tmp_path):
    """Or another folder for caches."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment.cache_folder() == tmp_path / ".cache" / "jaxpar" / "compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert environment.cache_folder() == tmp_path / "other" / "jaxpar" / "compiled"


def test_a_deleted_folder_is_no_place_and_no_end(monkeypatch, capsys):
    """What writes nothing works there, and what would is refused."""
    Path("gone").mkdir()
    monkeypatch.chdir("gone")
    Path("../gone").resolve().rmdir()
    assert execute(["list"], program="jaxpar") == 0
    capsys.readouterr()
    assert execute(TRAIN, program="jaxpar") == 2
    assert "mine/metrics.jsonl" in capsys.readouterr().err
    assert execute(["inspect", "mine:f"], program="jaxpar") == 2


@pytest.mark.parametrize(
    ("name", "value"), [("jax_disable_jit", True), ("jax_numpy_dtype_promotion", "strict")]
)
def test_settings_of_jax_that_no_step_can_be_made_under_are_refused(name, value):
    """A variable of the environment makes them as well."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        with pytest.raises(RequestError, match=name):
            refuse_settings()
    finally:
        jax.config.update(name, before)
    refuse_settings()
