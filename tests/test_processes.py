"""Several processes: one program, the numbers of one process, and an end with a sentence."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import several
from quick_xla import QUICKLY

from jaxpar.cli import options as command_line
from jaxpar.cli import processes as command
from jaxpar.cli.main import execute
from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import MeshShape
from jaxpar.core.progress import Position, Progress
from jaxpar.program.shares import device_share, shared_out
from jaxpar.runtime import distributed, supervise
from jaxpar.runtime.checkpoint.restoring import restore
from jaxpar.runtime.fingerprint import differences
from jaxpar.runtime.star import Hub, Spoke
from jaxpar.runtime.training import Training
from jaxpar.runtime.verdict import Seen, behind, silent

pytest_plugins = ["jaxpar.testing.multiprocess"]

CASES = [
    ("mlp", "fsdp", "data=4"),
    ("mlp", "hybrid", "data=2,model=2"),
    ("mlp", "local_sgd", "replica=2,data=2"),
    ("transformer", "pipeline", "pipe=2,data=2"),
]


ROWS = {
    ("data", "data=4"): [(0, 4), (4, 8)],
    ("replica", "replica=2,data=2"): [(0, 4), (4, 8)],
    ("replica+data", "data=2,replica=2"): [(0, 6), (2, 8)],
    ("tensor", "model=4"): [(0, 8), (0, 8)],
    ("hybrid", "model=2,data=2"): [(0, 8), (0, 8)],
}
"""Of meshes, the rows that each of two processes reads of eight."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of what two processes have saved."""
    return tmp_path_factory.mktemp("saved") / "run"


@pytest.fixture(scope="module")
def two(run, tmp_path_factory):
    """All that two processes, and one, are asked in the tests below: started once."""
    from jaxpar.testing.multiprocess import Multiprocess  # pytest has to load the plugin first

    start = Multiprocess(tmp_path_factory.mktemp("two"))
    meshes = list(ROWS)
    how = {"environment": QUICKLY, "most_seconds": 600}  # others may use the machine too
    return start(several.everything, CASES, 4, meshes, str(run), **how)


def test_two_processes_train_as_one_does(two):
    """Bit for bit where no sum is over more than two devices, for gloo adds in a ring, and one
    process in the devices' order; else to rounding. Each process is told the same losses."""
    assert len(two.control["losses"]) == len(CASES)
    for value in two.values:
        for named, losses in two.control["losses"].items():
            same = losses if "=4" not in named else pytest.approx(losses, rel=1e-6)
            assert value["losses"][named] == same, named
            assert len(set(losses)) > 3, named


def test_a_process_reads_the_rows_that_its_devices_hold(two):
    """Sharded over several axes, replicated over processes, and where an order splits them up.

    Keys with values are shared, a name that all of them use, and a step before which all stop.
    """
    for number, value in enumerate(two.values):
        assert value["stopped"] == two.values[0]["stopped"] > 5
        assert value["shared"] == [number, 2, True, ["said by 0", "said by 1"], "file-0", 2]
        for (strategy, mesh), rows in ROWS.items():
            assert value["rows"][f"{strategy} {mesh}"] == [*rows[number], True], (number, mesh)


def test_processes_save_and_restore_together(two, run):
    """The newest checkpoint, or the one before if it is damaged; the losses are the same again."""
    first, other = (value["saved"] for value in two.values)
    assert first == other and first["restored"] == [6, 4] and first["again"] == [True, True]
    # One process reads what two have written.
    training = Training(steps=6, save_every=2, learning_rate=1e-2)
    found = restore(several.program_of("mlp", "data", "data=2", training), run)
    assert found.metadata.step == 4
    assert found.metadata.metrics["loss"] == pytest.approx(first["losses"][3])


def test_processes_that_differ_refuse_to_train(two):
    """All of them, with the same sentence, and before anything is compiled."""
    says = "process 1 differs from process 0 in first row of the data, seed ('1', not '0')"
    for value in two.values:
        sentence, is_compiled = value["differ"]
        assert says in sentence and not is_compiled


@pytest.mark.parametrize(
    ("number", "what", "says"),
    [
        (1, "SIGKILL", r"process 1 has ended without a word"),
        (0, "SIGKILL", r"process 0 has ended without a word"),
        (1, "SIGSTOP", r"process 1 has not answered for \d+ s"),
        pytest.param(
            1,
            "hang",
            r"process 1 has not moved on for \d+ s \(reading the batch of step 5\)",
            marks=pytest.mark.claims,
        ),
    ],
)
def test_a_process_that_is_lost_ends_the_others_with_a_sentence(
    number, what, says, multiprocess, monkeypatch
):
    """However it is lost, and whether it is the first one or another."""
    monkeypatch.setattr(supervise, "SPEAK_SECONDS", 1.0)
    monkeypatch.setattr(supervise, "TERM_SECONDS", 0.5)
    how = {"control": False, "check": False, "patience_seconds": 5, "environment": QUICKLY}
    result = multiprocess(several.harmed, number, what, **how)
    other = 1 - number
    assert result.ended[other].status == 1 and not result.ended[other].by_us
    assert re.search(rf"^test: process {other} of 2: {says}", result.logs[other], re.M)


def test_the_command_starts_processes_and_one_of_them_speaks(tmp_path, monkeypatch, capfd):
    """The page's, smaller: one record on standard output, and one file of metrics, with the losses
    of one process."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XLA_FLAGS", QUICKLY["XLA_FLAGS"])
    monkeypatch.chdir(tmp_path)
    assert STARTS
    words = f"{re.sub(r'--steps .*', '', STARTS[1])} --steps 2 --set width=16 --set hidden=1 --json"
    assert execute([*words.split(), "--out", "o"], program="jaxpar") == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["steps"] == 2 and "collective" in err
    assert [path.name for path in (tmp_path / "o").iterdir()] in FILES


PAGE = (Path(__file__).parents[1] / "docs/several_processes.md").read_text(encoding="utf-8")
STARTS = re.search(r"^jaxpar (train .* --processes 2 .*)$", PAGE, re.M)
FILES = (["metrics.jsonl", "checkpoints"], ["checkpoints", "metrics.jsonl"])
BY_HAND = "--coordinator localhost:1234 --process-id 0 --process-count 2"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--processes 0", "use from 1 to 64"),
        ("--processes 65", "use from 1 to 64"),
        ("--processes 3", "3 processes cannot have equally many"),
        ("--processes 4 --mesh data=3,model=4", "let one of 3 and 4 divide the other"),
        ("--processes 2 --hardware h100", "is described, not present"),
        ("--processes 2 --hardware local", "need a mesh"),
        ("--processes 2 --verify", "verify the layout in one process first"),
        (f"--processes 2 {BY_HAND}", "leave one out"),
        ("--coordinator localhost:1234", "without --process-id and --process-count"),
        ("--process-id 1 --process-count 2", "without --coordinator"),
        (BY_HAND.replace("id 0", "id 2"), "numbered from 0 to one less"),
        (BY_HAND.replace("id 0", "id -1"), "numbered from 0 to one less"),
        (BY_HAND.replace("count 2", "count 0"), "numbered from 0 to one less"),
        (BY_HAND.replace("count 2", "count 3"), "3 processes cannot have equally many"),
        (BY_HAND.replace(":1234", ""), "write host:port"),
        (BY_HAND.replace("1234", "99999"), "write host:port"),
        (BY_HAND.replace("localhost", "http://a"), "write host:port"),
        ("--processes 2 --patience 1", "needs 5 seconds"),
        ("--processes 2 --mesh auto", "say --resume, or a mesh"),
        ("--processes two", "a whole number"),
    ],
)
def test_what_makes_no_sense_of_several_processes_is_refused(words, says, capsys, monkeypatch):
    """In one sentence, before any process is started or joined."""
    monkeypatch.setattr(command, "run_here", None)
    assert execute(["train", "mlp", *words.split()], program="jaxpar") == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_a_task_whose_place_is_not_known_does_not_train_alone(monkeypatch, capsys):
    """Each would write the same files; unless that is asked for, or it is the only one."""
    monkeypatch.setattr("jaxpar.cli.verbs.train.verb", lambda options, screen: 0)
    for count, status in (("2", 2), ("1", 0)):
        monkeypatch.setenv("PMI_SIZE", count)
        assert execute(["train", "mlp"], program="jaxpar") == status
        assert ("--process-id $PMI_RANK" in capsys.readouterr().err) is bool(status)
    monkeypatch.setenv("PMI_SIZE", "2")
    assert execute(["train", "mlp", "--processes", "1"], program="jaxpar") == 0


def test_words_of_the_children_are_those_of_the_parent():
    """Without the number of processes, however it is written, and nothing behind --."""
    given = ["train", "--processes", "2", "-processes=2", "--processes=2", "--", "--processes", "3"]
    assert command._without_count(given) == ["train", "--", "--processes", "3"]


def test_devices_are_shared_out_evenly_and_in_order():
    """As many of each process, the first process's first: `model`, innermost, stays within one."""
    devices = [SimpleNamespace(process_index=n % 2, id=n) for n in range(8)]
    chosen = shared_out(devices, MeshShape(data=2, model=2))
    assert [(d.process_index, d.id) for d in chosen] == [(0, 0), (0, 2), (1, 1), (1, 3)]
    assert device_share(MeshShape(model=8), 2) == 4
    with pytest.raises(RequestError, match="process 0 has 4"):
        shared_out(devices, MeshShape(data=16))


def test_what_differs_is_named_with_the_processes():
    """Values where they say something, and processes that differ alike together."""
    first = {"jax": "1", "lowered program": "sha256 a"}
    other = {"jax": "2", "lowered program": "sha256 b"}
    assert differences([first, first]) == ""
    assert differences([first, other, first, other]).startswith(
        "processes 1, 3 differ from process 0 in jax ('2', not '1'), lowered program: "
    )


def seen(count: int, *, heard=100.0, moved=100.0, may_last=False, longest=0.0) -> Seen:
    return Seen(Position(count, f"in step {count}", may_last), heard, moved, longest)


@pytest.mark.parametrize(
    ("processes", "says"),
    [
        ([seen(9), seen(9)], ""),
        (
            [seen(9), seen(9, heard=60)],
            "process 1 has not answered for 40 s (then it was in step 9)",
        ),
        ([seen(9), seen(9, heard=84)], "process 1 has not answered for 16 s"),
        ([seen(9), seen(9, heard=84, may_last=True)], ""),
        ([seen(9), *2 * [seen(9, heard=60)]], "processes 1, 2 have not answered"),
        ([seen(9), seen(8, moved=60)], "process 1 has not moved on for 40 s (in step 8)"),
        ([seen(9), seen(8, moved=80)], ""),
        ([seen(9), seen(8, moved=60, may_last=True)], ""),
        ([seen(9, moved=60), seen(9, moved=60)], "no process has moved on for 40 s (in step 9)"),
        ([seen(9, moved=60, longest=5), seen(9, moved=60)], ""),
        ([seen(2, moved=60), seen(2, moved=60)], ""),
    ],
)
def test_the_one_that_keeps_the_others_waiting_is_found(processes, says):
    """And nobody is blamed for work that may last, or for a first step."""
    known = dict(enumerate(processes))
    found = silent(known, 100.0, 30.0) or behind(known, 100.0, 30.0)
    assert found.startswith(says) and bool(found) is bool(says)


def test_what_one_move_takes_is_learnt():
    """Not from those that may last, as compiling does, nor from the first."""
    now = seen(2)
    for count, time, may_last in (
        (3, 150, False),
        (4, 153, True),
        (5, 190, False),
        (6, 192, False),
    ):
        now = now.told(Position(count, "", may_last), time)
    assert now.longest_seconds == 3 and now.moved == 192


def test_long_work_is_told_and_ended_together():
    """The others are met once it has succeeded, and only by the outermost."""
    progress, met = Progress(), []
    progress.meet = lambda: met.append(progress.position)
    progress.at("in step 1")
    with progress.long_work("compiling", together=True):
        with progress.long_work("looking", together=True):
            assert progress.position == Position(1, "compiling", True)
        assert not met
    assert len(met) == 1 and progress.position == Position(1, "in step 1", False)
    with pytest.raises(ValueError), progress.long_work("compiling", together=True):
        raise ValueError
    assert len(met) == 1


def test_a_stranger_is_not_listened_to():
    """Who does not know the token; a process that does is heard, and missed when it goes."""
    hub = Hub("127.0.0.1", "right")
    stranger, other = (Spoke("127.0.0.1", hub.port, t, 1) for t in ("wrong", "right"))
    stranger.send({"verdict": "end"})
    other.send({"at": 1})
    came = []
    while len(came) < 1:
        came += hub.poll(5)
    assert came == [(1, {"at": 1})]
    hub.send({"beat": 1})
    assert other.poll(5) == [(0, {"beat": 1})] and stranger.poll(5) == [(0, None)]
    other.close()
    assert hub.poll(5) == [(1, None)]
    stranger.close()
    hub.close()


SLEEP = "import time; time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); {SLEEP}"


def test_one_that_fails_ends_the_others(monkeypatch):
    """By SIGTERM, and by SIGKILL where that does nothing; each one's words are passed on."""
    monkeypatch.setattr(supervise, "SPEAK_SECONDS", 1.0)
    monkeypatch.setattr(supervise, "TERM_SECONDS", 0.5)
    said = []
    scripts = (SLEEP, "print('a'); import sys; sys.exit(3)", DEAF)
    children = supervise.Children(
        [(sys.executable, "-S", "-u", "-c", script) for script in scripts],
        lambda number, line: said.append((number, line)),
    )
    children.wait()
    ended = [children.ended[n] for n in range(3)]
    assert [end.status for end in ended] == [-signal.SIGTERM, 3, -signal.SIGKILL]
    assert [end.by_us for end in ended] == [True, False, True]
    assert sorted(said) == [(1, "a"), (2, "deaf")]


def test_one_that_is_stopped_is_killed(monkeypatch):
    """Before the processes have found each other nobody else would miss it."""
    for name in ("STOPPED_SECONDS", "SPEAK_SECONDS", "TERM_SECONDS"):
        monkeypatch.setattr(supervise, name, 0.3)
    scripts = (SLEEP, f"import os; os.kill(os.getpid(), {signal.SIGSTOP.value}); {SLEEP}")
    children = supervise.Children(
        [(sys.executable, "-S", "-c", script) for script in scripts], print, all_heard=True
    )
    children.wait()
    assert children.ended[1].stopped and children.ended[1].status == -signal.SIGKILL
    assert children.ended[0].by_us and not children.ended[0].stopped


def test_a_signal_is_handed_on_and_waited_for():
    """Whoever is asked to end may save first, and its status counts."""
    saves = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0));"
        f"print('ready'); {SLEEP[13:]}"
    )
    ready = threading.Event()
    children = supervise.Children(
        [(sys.executable, "-S", "-u", "-c", saves)] * 2,
        lambda number, line: ready.set(),
        all_heard=True,
    )
    with supervise.handing_on(children) as came:
        assert ready.wait(60)
        signal.raise_signal(signal.SIGINT)
        children.wait()
    assert came == [signal.SIGINT]
    assert [end.status for end in children.ended.values()] in ([0, 0], [0, -15], [-15, 0])


TERMINALS = re.findall(r"^jaxpar (train .*--process-id \d)$", PAGE, re.M)
IN_SLURM = re.search(r"^srun jaxpar (train .*)$", PAGE, re.M)
IN_A_POD = re.search(r"jaxpar (train [^`]*?)\n          resources", PAGE)
SMALLER = "--steps 1 --set width=16 --set hidden=1 --data digits --hardware cpu --strategy data"


def started(lines: list[str], variables: list[dict[str, str]], tmp_path: Path) -> dict[int, str]:
    """What processes say that are started each with its words and variables, and end well."""
    said: dict[int, list[str]] = {number: [] for number in range(len(lines))}
    start = "import sys; from jaxpar_command import main; sys.exit(main())"
    children = supervise.Children(
        [
            ("env", *(f"{n}={x}" for n, x in each.items()), sys.executable, "-c", start)
            + (*shlex.split(line), "--out", str(tmp_path / "out"))
            for line, each in zip(lines, variables, strict=True)
        ],
        lambda number, line: said[number].append(line),
        environment={"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path)},
        all_heard=True,
    )
    children.wait(120)
    assert [end.status for end in children.ended.values()] == [0] * len(lines), said
    return {number: "\n".join(each) for number, each in said.items()}


@pytest.mark.claims
def test_two_terminals_train_together(tmp_path):
    """As the page has it, on a port that is free; the second says nothing of its own."""
    port = supervise.free_port()
    lines = [re.sub(r"localhost:\d+", f"localhost:{port}", line) for line in TERMINALS]
    lines = [re.sub(r"--steps \d+", "--steps 2", line) for line in lines]
    said = started(lines, [{}, {}], tmp_path)
    assert len(said) == 2 and "2 steps in" in said[0]
    assert "step" not in said[1] and [p.name for p in (tmp_path / "out").iterdir()] in FILES


@pytest.mark.claims
def test_tasks_of_slurm_find_their_places(tmp_path):
    """The line of the page's script, smaller, in two tasks: their variables are set by hand."""
    assert IN_SLURM
    options = command_line.parse(shlex.split(IN_SLURM[1]), "jaxpar")
    assert options.hardware == "local" and options.mesh == "data=4,model=4"
    shared = {"SLURM_JOB_ID": str(supervise.free_port()), "SLURM_STEP_NODELIST": "localhost"}
    tasks = [
        {**shared, "SLURM_NTASKS": "2", "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)}
        for n in range(2)
    ]
    said = started([f"train mlp {SMALLER} --mesh data=4"] * 2, tasks, tmp_path)
    assert "1 steps in" in said[0] and "step" not in said[1]


def test_a_pod_is_told_its_place(monkeypatch):
    """The words in the page's Job, once a shell has put in the number of the pod."""
    assert IN_A_POD
    words = shlex.split(IN_A_POD[1].replace("$JOB_COMPLETION_INDEX", "3"))
    options = command_line.parse(words, "jaxpar")
    assert not command.starts_several(options)
    assert options.values["process-id"] == 3 and options.values["process-count"] == 4
    assert f"completions: {options.values['process-count']}" in PAGE


ABORTS = """
import os, threading
from jaxpar.runtime.abort import before_abort, exit_with
before_abort(lambda: exit_with("said", 1))
threading.Thread(target=os.abort).start()
threading.Event().wait(60)
"""


def test_an_abort_in_any_thread_says_a_sentence_first():
    """As JAX's coordination aborts a process, from a thread of C++, once process 0 is gone."""
    done = subprocess.run(
        [sys.executable, "-c", ABORTS], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, "said\n")


def test_a_process_that_fails_tells_the_others_what_it_said(monkeypatch, capsys):
    """Its screen shows nothing; what was in red is said, here and by those that it ends."""
    told = []

    @contextmanager
    def join(place, **options):
        try:
            yield
        except RequestError as error:
            told.append(str(error))
            raise

    def verb(options, screen):
        screen.say("all is well")
        screen.say("the data ended", style="red")
        screen.finish({"ok": False})
        return 1

    monkeypatch.setattr(distributed, "detected", lambda: distributed.Place(1, 2, found_by="x"))
    monkeypatch.setattr(distributed, "join", join)
    monkeypatch.setattr("jaxpar.cli.verbs.train.verb", verb)
    assert execute(["train", "mlp", "--json"], program="jaxpar") == 1
    assert capsys.readouterr() == ("", "jaxpar: process 1 of 2: the data ended\n")
    assert told == ["the data ended"]
