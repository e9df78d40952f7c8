"""What the processes of `test_processes` do: each function runs in every one of them."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from small import small_layout

from jaxpar.core.errors import RequestError
from jaxpar.core.jax_compat import coordination, process_and_count
from jaxpar.core.progress import here
from jaxpar.data.iterable import dataset
from jaxpar.hardware.cpu import hardware
from jaxpar.program.devices import device_mesh
from jaxpar.program.record import Program, compile_step
from jaxpar.runtime.checkpoint.restoring import restore
from jaxpar.runtime.several import agreed, ask_to_stop, is_to_stop, meet, on_the_same
from jaxpar.runtime.train import train
from jaxpar.runtime.training import Training, optimizer_of
from jaxpar.step.make_step import make_step


def program_of(model: str, strategy: str, mesh: str, training: Training, **sizes) -> Program:
    layout = small_layout(model, strategy, mesh, **sizes)
    microbatches = 2 if "pipeline" in strategy else 1
    optimizer = optimizer_of(training, layout)
    step = make_step(layout, optimizer=optimizer, microbatches=microbatches)
    return compile_step(step, hardware=hardware(), for_speed=False)


def data_for(program: Program, seed: int = 0):
    """One batch of numbers, on which an mlp is tested too.

    No digits: scikit-learn, which has them, takes each process a second to import.
    """
    fields = program.step.layout.model.batch
    draw = np.random.default_rng(seed)
    rows = {n: draw.integers(0, f.bound or 2, f.shape).astype(f.dtype) for n, f in fields.items()}
    if "tokens" in rows:
        return dataset(lambda: iter([rows]), vocabulary=16, unit="tokens")
    return dataset(lambda: iter([rows]), vocabulary=10, test=[rows])


def losses(cases, steps):
    """Of each case: the losses of the steps and of the test, as this process is told of them."""
    found = {}
    training = Training(steps=steps, learning_rate=1e-2)
    for model, strategy, mesh in cases:
        program = program_of(model, strategy, mesh, training)
        seen = []
        data = on_the_same(program, data_for(program), training)
        outcome = train(program, data, training, watch=lambda _, m, seen=seen: seen.append(m))
        named = f"{strategy} {mesh}"
        found[named] = [m["loss"] for m in seen if "loss" in m] + [outcome.test.get("loss", 0.0)]
    return found


def everything(cases, steps, meshes, folder):
    """The losses of each case; of several processes also what they share, read, save and refuse.

    In one start of the processes, which takes longer than most of it. To stop comes last.
    """
    found: dict[str, Any] = {"losses": losses(cases, steps)}
    if process_and_count()[1] > 1:
        found |= {"saved": saved(folder), "differ": differ(), "rows": rows_read(meshes)}
        found |= {"shared": shared(), "stopped": stopped()}
    return found


def stopped():
    """The step before which this process stops: process 1 is asked, and process 0 is faster."""
    number, _ = process_and_count()
    for step in range(10**6):
        if is_to_stop(step):
            return step
        if number == 1 and step == 5:
            ask_to_stop()
        time.sleep(0.01 * (number + 1))


def rows_read(meshes):
    """Of each mesh: the rows that this process reads, and whether its devices hold the right ones.

    Rows are numbered, and so is every element of a row.
    """
    found = {}
    for strategy, mesh in meshes:
        step = make_step(small_layout("mlp", strategy, mesh, batch=8))
        program = Program(step, hardware(), device_mesh(step.layout.mesh, hardware()))
        rows = program.local_rows
        whole = {
            n: np.arange(np.prod(a.shape)).reshape(a.shape).astype(a.dtype)
            for n, a in step.batch.items()
        }
        placed = program.place({n: x[rows] for n, x in whole.items()})
        right = all(
            np.array_equal(shard.data, whole[n][shard.index])
            for n, array in placed.items()
            for shard in array.addressable_shards
        )
        found[f"{strategy} {mesh}"] = [rows.start, rows.stop, right]
    return found


def shared():
    """This process's number, what it has in common with the others, and a name they agree on.

    Two processes of one machine share its memory.
    """
    number, count = process_and_count()
    client, address = coordination()
    client.key_value_set(f"test/{number}", f"said by {number}")
    heard = [client.blocking_key_value_get(f"test/{n}", 60_000) for n in range(count)]
    return [number, count, bool(address), heard, str(agreed(Path(f"file-{number}"))), here.sharing]


def differ():
    """What is said of programs that differ: process 1 has another seed. They are not compiled."""
    training = Training(steps=1, seed=jax.process_index())
    step = make_step(small_layout("mlp", "data", "data=4"))
    program = Program(step, hardware(), device_mesh(step.layout.mesh, hardware()))
    try:
        on_the_same(program, data_for(program, training.seed), training)
    except RequestError as error:
        return [str(error), "made" in vars(program)]


def harmed(number: int, what: str):
    """Train, until at step 4 a process does something to itself."""
    training = Training(steps=10**6)
    program = program_of("mlp", "data", "data=4", training)
    data = data_for(program)

    def draw(step, size, seed, rows):
        if step == 4 and jax.process_index() == number:
            if what == "hang":
                time.sleep(3600)
            os.kill(os.getpid(), getattr(signal, what))
        return data.draw(step, size, seed, rows)

    train(program, on_the_same(program, replace(data, draw=draw), training), training)


def saved(folder: str):
    """Train, save, restore, damage, restore, train on: the losses, steps restored, what came again.

    The damage is done to the newest checkpoint, by the last process.
    """
    training = Training(steps=6, save_every=2, learning_rate=1e-2)
    program = program_of("mlp", "fsdp", "data=4", training)
    data = replace(data_for(program), walk=None)
    seen: list[dict[int, float]] = []

    def trained(**how):
        seen.append({})
        tell = seen[-1]
        train(program, data, training, watch=lambda s, m: tell.update({s: m["loss"]}), **how)

    trained(checkpoints=folder)
    steps = [restore(program, folder).metadata.step]
    if jax.process_index() == jax.process_count() - 1:
        for file in (Path(folder) / "6" / "params").rglob("manifest.ocdbt"):
            file.unlink()
    meet()
    start = restore(program, folder)
    trained(state=start)
    first, again = seen
    return {
        "restored": [*steps, start.metadata.step],
        "losses": [first[step] for step in range(1, 7)],
        "again": [again[step] == first[step] for step in again],
    }
