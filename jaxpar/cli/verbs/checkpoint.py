"""Say what a checkpoint holds, and with --verify whether it is whole: checkpoint show runs/mine"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpar.cli.options import Options
from jaxpar.cli.screen import Screen
from jaxpar.core.errors import RequestError, one_line, unknown
from jaxpar.core.figures import bytes_text, metrics_text
from jaxpar.runtime.checkpoint.folder import OnDisk, one_of
from jaxpar.runtime.checkpoint.metadata import DamagedCheckpoint, Metadata, OtherFormat

TAKES = "show PATH"
READS = ("verify",)


def verb(options: Options, screen: Screen) -> int:
    """Show every checkpoint of a run in a line, and the newest whole one, or the only one, in full.

    No device is needed for that. Returns 1 if a checkpoint is damaged, or of another version.
    """
    what, path = options.words
    if what != "show":
        raise unknown("word after 'checkpoint'", what, ["show"])
    rows, shown = [], None
    for one in _found(Path(path)):
        row, metadata = _row(one, is_read=options.verify, screen=screen)
        rows.append(row)
        if metadata and shown is None:
            shown = metadata
    if shown:
        _show(shown, screen)
    screen.finish({"checkpoints": rows, "newest": shown and shown.record()})
    return 1 if any(row["damage"] for row in rows) else 0


def _found(path: Path) -> list[OnDisk]:
    """The checkpoints that a path names: one, a run's, or those in the folder of runs."""
    found = one_of(path)
    if not found:
        raise RequestError(
            f"checkpoint show {path}: there is no checkpoint: name the folder of a run, of its "
            "checkpoints, or of one of them"
        )
    return found


def _row(one: OnDisk, *, is_read: bool, screen: Screen) -> tuple[dict, Metadata | None]:
    """One checkpoint in a line and as a record; its metadata, unless it is damaged."""
    metadata, damage = None, None
    try:
        metadata = one.metadata()
        if is_read:
            from jaxpar.runtime.checkpoint.reading import check_arrays

            with screen.doing(f"reading {one.folder}"):
                check_arrays(one, metadata)
    except (DamagedCheckpoint, OtherFormat) as error:
        metadata, damage = None, str(error)
        word = "damaged" if isinstance(error, DamagedCheckpoint) else "of another version"
        screen.say(f"{word}: {damage}", style="red")
    if metadata:
        told = metrics_text(f"{one.folder}: step {one.step}", metadata.metrics)
        screen.say(one_line(f"{told}{', whole' if is_read else ''}"))
    return {"folder": str(one.folder), "step": one.step, "damage": damage}, metadata


def _show(metadata: Metadata, screen: Screen) -> None:
    """Show what a checkpoint says of itself."""
    screen.say("")
    layout = ", ".join(f"{name} {value}" for name, value in metadata.layout.items())
    screen.say(one_line(f"step {metadata.step} of model {metadata.model}: {layout}"))
    versions = ", ".join(f"{name} {value}" for name, value in metadata.versions.items())
    screen.say(one_line(f"written by {versions}; data {metadata.data.get('name', 'unknown')}"))
    rows, sums = [], {}
    for name, array in metadata.arrays.items():
        part, _, path = name.partition("/")
        sums[part] = sums.get(part, 0) + array["bytes"]
        if part == "params":
            shape = " x ".join(map(str, array["shape"])) or "scalar"
            cells = [path, array["dtype"], _sharded(array), bytes_text(array["bytes"]), shape]
            rows.append([one_line(cell) for cell in cells])
    screen.table(["parameter", "type", "sharding", "bytes", "shape"], rows)
    screen.say(one_line(", ".join(f"{part} {bytes_text(size)}" for part, size in sums.items())))


def _sharded(array: Mapping[str, Any]) -> str:
    """How the run that saved an array had it sharded."""
    entries = enumerate(array["sharded"])
    found = [f"dim {dim} over {' x '.join(axes)}" for dim, axes in entries if axes]
    return ", ".join(found) or "replicated"
