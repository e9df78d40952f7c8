"""Token files: your own text as nanoGPT-style `.bin` files, uint16 ids one after another.

Promises to map the file, never to load it: a batch reads its own windows and nothing else. Every
id is checked against the vocabulary, once at opening and again in each window. Raises DataError
for a file that is missing, cut off, too short, of another kind, or beyond the vocabulary.
"""

import os
from pathlib import Path

import numpy as np

from jaxpar.data.record import DataError, Dataset, whole_number
from jaxpar.data.windows import Stream, refuse_beyond, windows

TOKEN = np.dtype("<u2")
SCAN_TOKENS = 1_000_000
HELD_OUT = 0.1

# llm.c and its descendants also write `.bin`, with 256 int32 before the ids, of which this is the
# first; read as ids the header would be a silent 512 tokens of noise.
OTHER_MAGIC = (20240520).to_bytes(4, "little")
OTHER_HEADER_BYTES = 1024


def dataset(
    path: str | os.PathLike,
    *,
    vocabulary: int | None = None,
    sequence: int = 128,
    held_out: float | None = None,
) -> Dataset:
    """Return windows of `sequence` tokens from one `.bin` file, or a folder's train and val.bin.

    Of one file the last part is for testing: `held_out` of it, a tenth if not said. `vocabulary`
    is the largest id plus one if not said; say it when the model's is larger.
    """
    path = Path(path)
    if path.is_dir():
        train, test = _from_folder(path, held_out)
    else:
        train, test = _from_file(path, HELD_OUT if held_out is None else held_out)

    # Both halves of one file are scanned apart: the position is still counted from its start.
    largest = [_largest(stream) for stream in (train, test)]
    if vocabulary is None:
        vocabulary = 1 + max(id_ for id_, _ in largest)
    vocabulary = whole_number("vocabulary", vocabulary, least=1)
    # The larger of the two is named, so that the repair works the first time.
    (id_, position), where = max(zip(largest, (train.where, test.where), strict=True))
    refuse_beyond(where, largest=id_, position=position, vocabulary=vocabulary)
    return windows(path.stem, train=train, test=test, sequence=sequence, vocabulary=vocabulary)


def _from_folder(folder: Path, held_out: float | None) -> tuple[Stream, Stream]:
    """Return the two splits of a folder, which has them as files of their own."""
    for name in ("train.bin", "val.bin"):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder}: has no {name}, but a folder of tokens must hold train.bin and "
                f"val.bin. {_nearby(folder, 'Or name one file, whose last tenth is held out')}"
            )
    if held_out is not None:
        raise DataError(
            f"{folder}: held_out={held_out} was given, but a folder already holds out its "
            f"val.bin. Leave held_out away, or name {folder / 'train.bin'} alone."
        )
    train, test = folder / "train.bin", folder / "val.bin"
    return Stream(str(train), _open(train)), Stream(str(test), _open(test))


def _from_file(file: Path, held_out: float) -> tuple[Stream, Stream]:
    """Return the first and last part of one file."""
    if not 0 < held_out < 1:
        raise DataError(
            f"{file}: held_out={held_out}, but it is the part of the file to test on and must "
            f"lie between 0 and 1. Use held_out={HELD_OUT} for the last tenth."
        )
    ids = _open(file)
    first = len(ids) - round(len(ids) * held_out)
    return Stream(str(file), ids[:first]), Stream(str(file), ids[first:], first)


def _open(file: Path) -> np.ndarray:
    """Map the file as token ids; DataError when it cannot be a file of uint16 ids."""
    if file.suffix != ".bin":
        wanted = file.with_suffix(".bin").name
        raise DataError(
            f"{file}: is not a .bin file, but tokens are read from .bin files of uint16 ids. "
            f"Write one with: numpy.asarray(ids, 'uint16').tofile({wanted!r})."
        )
    if not file.is_file():
        raise DataError(f"{file}: no such file. {_nearby(file.parent, 'Name a .bin file')}")
    size_bytes = file.stat().st_size
    if size_bytes == 0:
        raise DataError(
            f"{file}: is empty (0 bytes), but at least 2 tokens, 4 bytes, are needed. "
            f"Write it again; the program that made it stopped before the first token."
        )
    if size_bytes % TOKEN.itemsize:
        raise DataError(
            f"{file}: has {size_bytes} bytes, an odd number, but each token takes 2, so the last "
            f"is cut off. Copy the file again, or drop the half token: "
            f"truncate -s {size_bytes - 1} {file.name}."
        )
    with file.open("rb") as opened:
        if opened.read(len(OTHER_MAGIC)) == OTHER_MAGIC:
            raise DataError(
                f"{file}: starts with the {OTHER_HEADER_BYTES}-byte header of llm.c, but tokens "
                f"are read from files of ids alone. Drop it with: "
                f"tail -c +{OTHER_HEADER_BYTES + 1} {file.name} > ids.bin."
            )
    return np.memmap(file, dtype=TOKEN, mode="r")


def _largest(stream: Stream) -> tuple[int, int]:
    """Return the largest id and the token where it is first met, a chunk in memory at a time."""
    largest, position = -1, -1
    for start in range(0, len(stream.ids), SCAN_TOKENS):
        chunk = stream.ids[start : start + SCAN_TOKENS]
        at = int(chunk.argmax())
        if chunk[at] > largest:
            largest, position = int(chunk[at]), stream.first + start + at
    return largest, position


def _nearby(folder: Path, otherwise: str) -> str:
    """Return the repair for a file that is not there: the .bin files that are."""
    found = sorted(file.name for file in folder.glob("*.bin")) if folder.is_dir() else []
    return f"{otherwise}; {folder} has {', '.join(found) if found else 'no .bin files'}."
