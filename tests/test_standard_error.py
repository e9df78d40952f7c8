"""Standard error while XLA compiles: it arrives, in order, but for what is told otherwise."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import jaxpar
from jaxpar.core.errors import RequestError
from jaxpar.program import forward_stderr
from jaxpar.program.standard_error import warnings_kept

# `warnings_kept` without JAX, which takes a second to import, and the names that scripts below use.
START = f"""
import ctypes, os, resource, signal, subprocess, sys, threading, time, types
package = types.ModuleType("jaxpar")
package.__path__ = [{str(Path(jaxpar.__file__).parent)!r}]
sys.modules["jaxpar"] = package
from jaxpar.program.standard_error import warnings_kept
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
"""


def warning(name: str, thread: int | None = None) -> str:
    """What XLA writes of an array of this name, from a thread of its own unless one is given."""
    return (
        f"W1125 21:01:24.844557   {thread or 999999999} spmd_partitioner.cc:656] [SPMD] "
        f"Involuntary full rematerialization. The compiler cannot go from sharding "
        f"{{devices=[2,1]<=[2]}} to {{devices=[1,2]<=[2]}} efficiently for HLO operation "
        f"%{name} = f32[8,4]{{1,0}} copy(%a)."
    )


def say(text: str) -> None:
    """Write to file descriptor 2 as C++ does, at once and past Python's sys.stderr."""
    os.write(2, text.encode())


def script(text: str, **how) -> subprocess.CompletedProcess:
    """Run a script that has `warnings_kept`."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60, **how}
    return subprocess.run([sys.executable, "-c", START + text], text=True, **how)


def test_a_warning_is_kept_and_the_rest_arrives_in_order(capfd):
    """Also what begins on the line of another, and a last line that has no end."""
    with warnings_kept() as lines:
        say("first\n")
        say(warning("one") + "\n")
        say("second\nthird, begun " + warning("two") + "\n" + warning("three") + "\n")
        say("and ended\rby half")
    assert lines == [warning("one"), warning("two"), warning("three")]
    assert capfd.readouterr().err == "first\nsecond\nthird, begun and ended\rby half"


def test_a_warning_that_is_written_in_parts_is_one(capfd):
    """More than a pipe takes at once may arrive in parts, and others may write between them."""
    long = warning("one") + "x" * 5000
    with warnings_kept() as lines:
        say(long[:4500])
        time.sleep(0.05)
        say(long[4500:] + "\n")
        say(warning("unended"))
    assert lines == [long, warning("unended")]
    assert capfd.readouterr().err == ""


def test_lines_are_passed_on_whole(monkeypatch):
    """In as few parts as a pipe takes at once, so that what others write comes between lines."""
    parts = []
    spied = SimpleNamespace(write=lambda to, text: parts.append(text) or len(text))
    monkeypatch.setattr(forward_stderr, "os", spied)
    text = b"".join(b"%d " % n * 30 + b"\n" for n in range(200))
    forward_stderr.write(text + b"x" * 10000, to=2)
    assert b"".join(parts) == text + b"x" * 10000
    assert max(map(len, parts)) == 4096
    whole = parts[: len(parts) - 3]
    assert all(part.endswith(b"\n") and len(part) > 3900 for part in whole[:-1]), whole


def test_what_is_written_arrives_at_once():
    """Not when the compilation is done: also half a line, as of a progress bar."""
    done = script(
        """
read, write = os.pipe()
os.dup2(write, 2)
with warnings_kept():
    for text in (b"a whole line\\n", b"50 %", b"W112"):
        os.write(2, text)
        print(os.read(read, 100) == text)
"""
    )
    assert done.stdout.split() == ["True"] * 3


def test_what_only_speaks_of_it_is_not_taken_for_a_warning(capfd):
    """Python's own words, another file's, another level's, a thread's that compiles for itself."""
    other = threading.Event()
    thread = threading.Thread(target=other.wait)
    thread.start()
    texts = [
        "[SPMD] Involuntary full rematerialization. The compiler cannot go",
        "log: ] [SPMD] Involuntary full rematerialization.",
        warning("quoted").replace("spmd_partitioner.cc", "train.cc"),
        warning("quoted").replace("W1125", "note:"),
        warning("another's", thread.native_id),
    ]
    try:
        with warnings_kept() as lines:
            say(warning("mine", threading.get_native_id()) + "\n")
            for text in texts:
                say(text + "\n")
    finally:
        other.set()
        thread.join()
    assert lines == [warning("mine", threading.get_native_id())]
    assert capfd.readouterr().err.splitlines() == texts


TALKING = """
def talk(name):
    for n in range(3000):
        sys.stderr.write(f"{name} {n} [SPMD] Involuntary full rematerialization.\\n")
talkers = [threading.Thread(target=talk, args=(name,)) for name in "abc"]
"""


def numbers(told: str) -> dict[str, list[str]]:
    """What each of those three said, in the order in which it arrived."""
    words = [line.split(" ", 2) for line in told.splitlines()]
    assert {rest for _, _, rest in words} == {"[SPMD] Involuntary full rematerialization."}
    return {name: [number for who, number, _ in words if who == name] for name in "abc"}


def test_what_other_threads_print_meanwhile_arrives_complete_and_in_order():
    """Through Python's sys.stderr, and none of it is taken for XLA's."""
    text = """
with warnings_kept() as lines:
    for talker in talkers:
        talker.start()
    for n in range(50):
        os.write(2, WARNING)
        time.sleep(0.001)
    for talker in talkers:
        talker.join()
print(len(lines))
"""
    done = script(TALKING + text.replace("WARNING", repr((warning("one") + "\n").encode())))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "50\n"
    assert numbers(done.stderr) == dict.fromkeys("abc", [*map(str, range(3000))])


def test_no_line_is_lost_or_torn_where_a_compilation_begins_and_ends():
    """Threads print through many of them."""
    text = """
for talker in talkers:
    talker.start()
while any(talker.is_alive() for talker in talkers):
    with warnings_kept() as lines:
        os.write(2, WARNING)
    assert len(lines) == 1, lines
"""
    done = script(TALKING + text.replace("WARNING", repr((warning("one") + "\n").encode())))
    assert done.returncode == 0, done.stderr[-2000:]
    for said in numbers(done.stderr).values():
        assert sorted(said, key=int) == [*map(str, range(3000))]


def test_two_threads_take_turns_and_each_has_its_own(capfd):
    """A warning of XLA's own threads does not say whose it is."""
    found = {}
    together = threading.Barrier(4)

    def compile_one(name):
        together.wait()
        for n in range(3):
            with warnings_kept() as lines:
                for _ in range(5):
                    say(warning(f"{name}{n}") + "\n")
                    time.sleep(0.005)
                say(f"{name}\n")
            found[name, n] = lines

    threads = [threading.Thread(target=compile_one, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {(name, n): [warning(f"{name}{n}")] * 5 for name in "abcd" for n in range(3)}
    assert sorted(capfd.readouterr().err.split()) == sorted("abcd" * 3)


def test_one_inside_another_has_its_own(capfd):
    """And what is passed on passes both."""
    with warnings_kept() as outer:
        say("a\n" + warning("before") + "\n")
        with warnings_kept() as inner:
            say("b\n" + warning("inside") + "\n")
        say("c\n" + warning("after") + "\n")
    assert inner == [warning("inside")]
    assert outer == [warning("before"), warning("after")]
    assert capfd.readouterr().err == "a\nb\nc\n"


BESIDE = (
    "E1126 09:37:20.253225   999999999 gpu_hlo_schedule.cc:968] The byte size of input/output "
    "arguments (846646051108) exceeds the base limit (67954383257).\n"
    "W1126 09:37:20.312839   999999999 hlo_rematerialization.cc:3231] Can't reduce memory use "
    "below 788.50GiB (846644478244 bytes) by rematerialization\n",
    "E1126 09:57:01.330249   999999999 status_macros.cc:58] INTERNAL: RET_CHECK failure (a.cc:1)\n"
    "*** Begin stack trace ***\n\t\n\tXlaFunction\n*** End stack trace ***\n\n",
)
"""What XLA logs of a program that does not fit, and of one that it refuses."""


@pytest.mark.parametrize("logged", BESIDE)
def test_what_a_sentence_is_about_is_not_there_twice(logged, capfd):
    """Neither where the program is told of, nor where it is refused; all else arrives."""
    with warnings_kept() as lines:
        say("first\n" + logged + "second\n\tindented\n\n")
    assert "\n".join(lines) + "\n" == logged
    assert capfd.readouterr().err == "first\nsecond\n\tindented\n\n"
    with pytest.raises(RequestError), warnings_kept() as lines:
        for part in ("more\n" + logged[:-5], logged[-5:]):
            say(part)
            time.sleep(0.05)
        raise RequestError("XLA cannot compile it")
    assert capfd.readouterr().err == "more\n"


@pytest.mark.parametrize("logged", BESIDE)
def test_what_the_log_says_arrives_where_no_sentence_does(logged, capfd):
    """Of another file, of another error, of a message that only looks like it."""
    other = logged.replace(".cc:", ".cpp:")
    with warnings_kept() as lines:
        say(other)
    assert lines == [] and capfd.readouterr().err == other
    with pytest.raises(ValueError), warnings_kept():
        say(logged)
        raise ValueError
    assert capfd.readouterr().err == logged


def test_after_an_error_all_that_was_written_is_there(capfd):
    """What was to be told otherwise will not be, so it is passed on; the descriptor is put back."""
    before = os.fstat(2)
    for kind in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), warnings_kept() as lines:
            say("a\n" + warning("one") + "\n")
            say("b\n")
            raise kind
        assert lines == []
        assert capfd.readouterr().err == "a\nb\n" + warning("one") + "\n"
        assert os.path.samestat(before, os.fstat(2))


def test_an_abort_loses_nothing():
    """XLA's last words are written and the process ends in the same moment. Many times."""
    text = """
os.write(2, b"early\\n" + WARNING)
with warnings_kept():
    os.write(2, WARNING)
    for n in range(200):
        os.write(2, b"line %d\\n" % n)
    os.write(2, b"F1125 Check failed: the reason")
    ctypes.CDLL(None).abort()
""".replace("WARNING", repr((warning("one") + "\n").encode()))
    words = "".join(f"line {n}\n" for n in range(200)) + "F1125 Check failed: the reason"
    wanted = f"early\n{warning('one')}\n{words}{warning('one')}\n"
    for _ in range(20):
        done = script(text)
        assert done.returncode == -signal.SIGABRT
        assert done.stderr == wanted


def test_a_process_that_is_killed_loses_nothing():
    """As one is when memory runs out: no handler runs."""
    done = script(
        """
with warnings_kept():
    os.write(2, b"last words")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "last words")


def test_ctrl_c_ends_the_program_and_not_what_passes_its_words_on():
    """A terminal sends the signal to every process of the command."""
    done = script(
        """
try:
    with warnings_kept():
        os.write(2, b"before\\n")
        os.killpg(0, signal.SIGINT)
        time.sleep(10)
except KeyboardInterrupt:
    print("stopped")
os.write(2, b"after\\n")
""",
        start_new_session=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "before\nafter\n")


@pytest.mark.parametrize("close", ["os.close(2)", "os.closerange(0, 3)"])
def test_without_a_standard_error_nothing_is_kept(close, tmp_path):
    """A service may have none; a file that gets its number is not written to."""
    done = script(
        f"""
out = os.dup(1)
{close}
with warnings_kept() as lines:
    pass
os.write(out, b"%r" % lines)
"""
    )
    assert (done.returncode, done.stdout) == (0, "[]")


@pytest.mark.parametrize("program", ["", "/no/such/python", "/bin/false"])
def test_where_no_process_can_be_started_all_is_passed_on(program, capfd, monkeypatch):
    """A Python inside another program may not know its own path."""
    monkeypatch.setattr(sys, "executable", program)
    with warnings_kept() as lines:
        say(warning("one") + "\n")
    assert lines == []
    assert capfd.readouterr().err == warning("one") + "\n"


def test_a_process_that_somebody_ends_is_no_error(capfd, monkeypatch):
    """What was written since is lost with it; what comes after is not."""
    started = []
    popen = subprocess.Popen

    def keep(*arguments, **how):
        started.append(popen(*arguments, **how))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", keep)
    with warnings_kept() as lines:
        started[0].kill()
        started[0].wait()
    say("after\n")
    assert lines == []
    assert capfd.readouterr().err == "after\n"


def test_much_output_and_a_slow_reader_do_not_stand_still():
    """Many times what a pipe holds, warnings too."""
    line = "x" * 99 + "\n"
    done = script(
        f"""
with warnings_kept() as lines:
    for n in range(300):
        os.write(2, {line!r}.encode() * 1000)
        os.write(2, {(warning("one") + chr(10)).encode()!r} * 10)
print(len(lines), set(map(len, lines)))
"""
    )
    assert done.returncode == 0
    assert done.stdout == f"3000 {{{len(warning('one'))}}}\n"
    assert len(done.stderr) == 300 * 1000 * 100
    assert set(done.stderr.splitlines()) == {line[:-1]}


def test_a_process_that_is_started_meanwhile_keeps_its_standard_error():
    """It may outlive the compilation, which does not wait for it."""
    done = script(
        """
before = time.monotonic()
with warnings_kept() as lines:
    later = "import sys, time; sys.stdin.read(); print('late', file=sys.stderr)"
    child = subprocess.Popen([sys.executable, "-c", later], stdin=subprocess.PIPE)
    os.write(2, b"early\\n")
print(child.poll(), flush=True)
child.communicate()
"""
    )
    assert (done.returncode, done.stdout) == (0, "None\n")
    assert done.stderr == "early\nlate\n"


def test_nothing_is_left_behind(capfd):
    """No descriptor, no process, no thread; also where the block ended with an error."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to count with")

    def left():
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
        return len(os.listdir("/proc/self/fd")), children, threading.active_count()

    before = left()
    for _ in range(5):
        with warnings_kept():
            pass
        with pytest.raises(ZeroDivisionError), warnings_kept():
            raise ZeroDivisionError
    assert left() == before


def test_the_process_imports_next_to_nothing():
    """It is started for each compilation, so it may not take long: no more than os and sys."""
    program = forward_stderr.__file__
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-S", "-P", program, "end", ""],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "os" in imported
    assert not imported & {"re", "select", "subprocess", "typing", "site", "jax"}
