"""`--mesh auto`: the run that is resumed, on the devices that there are now."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from jaxpar.case import Case, Resolved
from jaxpar.cli.options import Options, check_auto
from jaxpar.cli.run_files import RunFiles
from jaxpar.cli.screen import Screen
from jaxpar.core.errors import RequestError
from jaxpar.core.figures import bytes_text
from jaxpar.core.jax_compat import process_and_count
from jaxpar.core.kinds import whole
from jaxpar.program.devices import local_devices
from jaxpar.program.fit import least_bytes, memory_share, refuse_too_large, taken_bytes
from jaxpar.program.record import Program
from jaxpar.runtime.checkpoint.folder import checkpoints_in
from jaxpar.runtime.checkpoint.metadata import DamagedCheckpoint, Metadata
from jaxpar.runtime.elastic import nearest


def resumed_case(options: Options, screen: Screen) -> tuple[Case, Path]:
    """The case of the run that is resumed, its mesh the nearest that these devices allow.

    Beside it is the run's folder. What changes for a device is said.

    Raises:
        RequestError: when there is no run to resume, or no legal mesh.
    """
    check_auto(options)
    if options.device_count is not None:
        whole("--devices", options.device_count, least=1)
    folder = Path(options.out) if options.out else _last_run(options)
    saved = _metadata(folder)
    was = replace(options.case, mesh=str(saved.layout["mesh"]), set=_kept(options.case, saved))
    before = was.resolve()
    devices = options.device_count or _devices(before)
    found = nearest(
        before.layout.model,
        before.layout.strategy,
        before.layout.mesh,
        before.training.microbatches,
        devices,
        process_and_count()[1],
    )
    told = {**was.set, "microbatches": found.microbatches}
    now = replace(was, mesh=str(found.layout.mesh), set=told)
    _say(screen, before, now.resolve(), devices)
    return now, folder


def _kept(case: Case, saved: Metadata) -> dict:
    """What is set, with the run's batch and microbatches where nothing else was said."""
    usual = {name: saved.layout[name] for name in ("batch", "microbatches")}
    return {**usual, **case.set}


def _devices(before: Resolved) -> int:
    """How many devices there are for a case."""
    if before.hardware.kind == "local":
        return len(local_devices(before.hardware))
    return before.layout.mesh.devices


def _last_run(options: Options) -> Path:
    """The folder of the last run of a model and strategy, whatever its mesh was."""
    name = re.sub(r"[^\w.+-]", "_", f"{options.words[0].rpartition(':')[2]}-{options.strategy}-")
    found = [p for p in Path("runs").glob(f"{name}*") if RunFiles.newest(p)]
    if not found:
        raise RequestError(
            f"there is no run in runs/{name}... to resume: name its folder with --out"
        )
    return max(found, key=lambda folder: folder.stat().st_mtime)


def _metadata(folder: Path) -> Metadata:
    """What the newest checkpoint of a run's folder that can be read says of itself."""
    newest = RunFiles.newest(folder)
    for one in checkpoints_in(newest.checkpoints) if newest else ():
        try:
            return one.metadata()
        except DamagedCheckpoint:
            continue
    raise RequestError(f"--mesh auto: there is no checkpoint in {folder} to resume: say a mesh")


def _say(screen: Screen, before: Resolved, after: Resolved, devices: int) -> None:
    """Say what another mesh changes for a device, and what it takes of its memory at least.

    Raises:
        RequestError: when it is not.
    """
    mesh, parts = after.layout.mesh, after.training.microbatches
    rows = after.layout.model.batch_size
    held = [bytes_text(one.layout.parameter_device_bytes) for one in (before, after)]
    each = [rows // (one.training.microbatches * one.layout.row_shares) for one in (before, after)]
    step = after.make(after.layout)
    refuse_too_large(step, after.hardware)
    has = memory_share(after.hardware, mesh.devices)
    there = "" if has is None else f" of the {bytes_text(has)} that it has"
    screen.say(
        f"mesh {before.layout.mesh} -> {mesh}, of {devices} devices; per device {each[0]} -> "
        f"{each[1]} rows at a time, the batch of {rows} in {parts} microbatches, {held[0]} -> "
        f"{held[1]} of parameters, and {bytes_text(least_bytes(step))} at least{there}"
    )


def say_fit(screen: Screen, program: Program) -> None:
    """Say what the compiled step of a run that goes on takes of a device's memory; it has more."""
    program.check_runs()
    taken = program.update.memory_analysis()
    has = memory_share(program.hardware, program.step.layout.mesh.devices)
    if taken is not None and has is not None:
        screen.say(
            f"memory per device: {bytes_text(taken_bytes(taken))} of {bytes_text(has)}: it fits"
        )
