"""What survives: runs under random faults, and whether each keeps what was promised.

A small decoder trains in a process of its own, on simulated devices, and is killed, stopped,
terminated, its newest checkpoint damaged, its disk filled, its layout changed, at random moments,
and each time resumed. Some of its updates are not finite, and are skipped. At its end it has to be
the run that nobody touched, by the digest of every array; where the layout changed, it has to have
come to its end. No time is measured.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax.numpy as jnp

from jaxpar.core.catalogue import MODELS
from jaxpar.models.record import Model
from jaxpar.runtime.checkpoint.folder import OnDisk, checkpoints_in
from jaxpar.runtime.checkpoint.metadata import DamagedCheckpoint
from jaxpar.runtime.checkpoint.reading import check_arrays

STEPS, EVERY = 60, 4
MINUTES = 10.0
LAYOUTS = (("fsdp", "data=4"), ("hybrid", "data=2,model=2"), ("data", "data=2"))
PROCESSES = (1, 2)
PATIENCE_SECONDS = 180


def model() -> Model:
    """A small decoder whose loss is no number for some batches."""
    plain = MODELS.load("transformer")(layers=2, width=64, heads=4, ffn=256, sequence=64, batch=16)

    def loss(module, batch, **options):
        mean, metrics = plain.loss(module, batch, **options)
        is_bad = jnp.sum(batch["tokens"][:, 0]) % 16 == 0
        return replace(mean, total=jnp.where(is_bad, jnp.nan, mean.total)), metrics

    return replace(plain, name="sometimes_nan", loss=loss)


@dataclass
class Run:
    """A run as it is, and what was promised of it and not kept.

    Attributes:
        folder: of its files.
        seed, strategy, mesh, processes: as it was started.
        moved: whether its layout was changed meanwhile.
        broken: promises that were not kept, a sentence each.
        faults: how often each fault was done to it.
    """

    folder: Path
    seed: int
    strategy: str
    mesh: str
    processes: int = 1
    moved: bool = False
    broken: list[str] = field(default_factory=list)
    faults: Counter = field(default_factory=Counter)

    @property
    def checkpoints(self) -> list[OnDisk]:
        """Those that are there, newest first."""
        return checkpoints_in(self.folder / "checkpoints")

    def command(self) -> list[str]:
        """What starts it, and what resumes it."""
        options = {"save_every": EVERY, "keep": 3, "on_nan": "skip", "seed": self.seed}
        sets = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
        layout = ["--strategy", self.strategy, "--mesh", self.mesh, "--steps", str(STEPS)]
        several = ["--processes", str(self.processes)] if self.processes > 1 else []
        own = ["train", "experiments.benchmarks.soak:model", "--data", "text", *layout, *several]
        own += sets
        return [sys.executable, "-m", "experiments", *own, "--out", str(self.folder), "--resume"]

    def start(self, **how: Any) -> subprocess.Popen:
        """A process that goes on with it."""
        return subprocess.Popen(
            self.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
        )

    def newest_whole(self) -> int:
        """The step of the newest checkpoint that is whole, 0 if none is."""
        for one in self.checkpoints:
            with suppress(DamagedCheckpoint):
                check_arrays(one, one.metadata())
                return one.step
        return 0

    def promise(self, holds: bool, what: str, *of: Any) -> None:
        """Note what does not hold."""
        if not holds:
            self.broken.append(" ".join(map(str, (what, *of))))


def killed(run: Run, draw: random.Random) -> None:
    """SIGKILL at any moment, in a save too."""
    busy = _until_it_saves(run, draw)
    busy.kill()
    busy.communicate()


def stopped(run: Run, draw: random.Random) -> None:
    """SIGSTOP for a while, after which it goes on."""
    busy = _until_it_saves(run, draw)
    busy.send_signal(signal.SIGSTOP)
    time.sleep(draw.uniform(0.5, 3))
    busy.send_signal(signal.SIGCONT)
    busy.kill() if draw.random() < 0.5 else busy.send_signal(signal.SIGTERM)
    busy.communicate(timeout=PATIENCE_SECONDS)


def terminated(run: Run, draw: random.Random) -> None:
    """SIGTERM, which saves."""
    before = run.newest_whole()
    busy = _until_it_saves(run, draw)
    busy.send_signal(signal.SIGTERM)
    out, err = busy.communicate(timeout=PATIENCE_SECONDS)
    was_asked = "once more ends at once" in out
    # Some batches of the test have no number either, which a run that came to its end tells by 1.
    usual = (0, 1) if run.newest_whole() == STEPS else (0,)
    run.promise(
        not was_asked or busy.returncode in usual,
        "SIGTERM ended with",
        busy.returncode,
        out[-700:],
        err[-1500:],
    )
    run.promise(not was_asked or run.newest_whole() >= before, "SIGTERM lost steps")
    run.promise("Traceback" not in err, "a traceback:", err[-300:])


def damaged(run: Run, draw: random.Random) -> None:
    """The newest checkpoint with a wrong bit, a file cut short, or a file gone, after a kill."""
    killed(run, draw)
    whole = [one for one in run.checkpoints if _is_whole(one)]
    if len(whole) < 2:
        return
    files = [file for file in whole[0].folder.rglob("*") if file.is_file() and file.stat().st_size]
    file = draw.choice(files)
    held = bytearray(file.read_bytes())
    match draw.choice(("bit", "half", "gone")):
        case "bit":
            held[draw.randrange(len(held))] ^= 1 << draw.randrange(8)
            file.write_bytes(bytes(held))
        case "half":
            file.write_bytes(bytes(held[: len(held) // 2]))
        case _:
            file.unlink()
    run.promise(run.newest_whole() >= whole[1].step, "damage to the newest lost the one before")


def without_room(run: Run, draw: random.Random) -> None:
    """Files that cannot grow, as on a full disk: it is told, and what was whole stays whole."""
    before, kilobytes = run.newest_whole(), draw.choice((0, 1, 20, 200))
    limited = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "limited", *run.command()]
    quiet = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    busy = subprocess.Popen(
        limited, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=quiet, text=True
    )
    # A process that cannot write gives up at once, and another waits for it half a minute a save.
    _, err = busy.communicate(timeout=3 * PATIENCE_SECONDS)
    run.promise(run.newest_whole() >= before, "a full disk lost a checkpoint")
    run.promise("Traceback" not in err, "a traceback on a full disk:", err[-300:])


def moved(run: Run, draw: random.Random) -> None:
    """Another layout, on another number of devices."""
    killed(run, draw)
    run.strategy, run.mesh = draw.choice(LAYOUTS)
    run.processes = draw.choice(PROCESSES)
    run.moved = True


def bereft(run: Run, draw: random.Random) -> None:
    """One of several processes killed: the others end too, with 1 and a sentence."""
    busy = _until_it_saves(run, draw)
    children = _children(busy.pid) if run.processes > 1 else []
    if children:
        os.kill(draw.choice(children), signal.SIGKILL)
        began = time.monotonic()
        _, err = busy.communicate(timeout=PATIENCE_SECONDS)
        run.promise(
            busy.returncode in (0, 1), "a lost process ended the others with", busy.returncode
        )
        run.promise(time.monotonic() - began < 60, "a lost process was noticed late")
        run.promise(busy.returncode == 0 or "process" in err, "no sentence of a lost process:", err)
    busy.kill()
    busy.communicate()


def _children(parent: int) -> list[int]:
    """The processes that a process has started."""
    listed = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout
    return [int(number) for number in listed.split()]


FAULTS: tuple[Callable[[Run, random.Random], None], ...] = (
    killed,
    stopped,
    terminated,
    damaged,
    without_room,
    moved,
    bereft,
)


def benchmark(rounds: int, minutes: float = MINUTES) -> Iterator[dict[str, Any]]:
    """Yield a row a run: the faults that it met, and the promises that were broken, if any."""
    del rounds
    until, number = time.monotonic() + 60 * minutes, 0
    with TemporaryDirectory() as folder:
        while time.monotonic() < until:
            draw = random.Random(number)
            run = _faulted(Path(folder) / str(number), number, draw, until)
            yield {
                "run": number,
                "layout": f"{run.strategy} {run.mesh}, {run.processes} processes",
                **{name: run.faults[name] for name in sorted(run.faults)},
                "broken": "; ".join(run.broken) or "none",
                "ok": not run.broken,
            }
            number += 1


def _faulted(folder: Path, seed: int, draw: random.Random, until: float) -> Run:
    """A run that meets faults until it has come to its end, compared with one that met none."""
    layout = (*draw.choice(LAYOUTS), draw.choice(PROCESSES))
    run, alone = (Run(folder / name, seed, *layout) for name in ("harmed", "alone"))
    while run.newest_whole() < STEPS and time.monotonic() < until:
        fault = draw.choice(FAULTS)
        before = run.newest_whole()
        fault(run, draw)
        run.faults[fault.__name__] += 1
        lost = before - run.newest_whole()
        run.promise(lost <= 0 or fault is damaged, fault.__name__, "lost", lost, "steps")
    for one in (run, alone):
        out, err = one.start().communicate(timeout=PATIENCE_SECONDS)
        run.promise("Traceback" not in err, "a traceback:", err[-300:])
        run.promise(one.newest_whole() == STEPS, "no end:", err[-2500:] or out[-300:])
    if not run.moved and not run.broken:
        digests = [
            {name: array["digest"] for name, array in one.checkpoints[0].metadata().arrays.items()}
            for one in (run, alone)
        ]
        run.promise(digests[0] == digests[1], "other arrays than those of the run left alone")
    rows = [json.loads(line)["step"] for line in _metrics(run) if '"loss"' in line]
    run.promise(rows == list(range(1, STEPS + 1)), "metrics tell of other steps:", len(rows))
    shutil.rmtree(folder, ignore_errors=True)
    return run


def _metrics(run: Run) -> list[str]:
    """The rows of a run's metrics."""
    return (run.folder / "metrics.jsonl").read_text().splitlines()


def _is_whole(one: OnDisk) -> bool:
    """Whether a checkpoint is what was written."""
    try:
        check_arrays(one, one.metadata())
    except DamagedCheckpoint:
        return False
    return True


def _until_it_saves(run: Run, draw: random.Random) -> subprocess.Popen:
    """A process that goes on with a run, at a random moment, mostly after it has saved."""
    before = {one.step for one in run.checkpoints}
    busy, until = run.start(), time.monotonic() + draw.uniform(5, 30)
    while busy.poll() is None and time.monotonic() < until:
        if {one.step for one in run.checkpoints} - before:
            break
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.5))
    return busy
