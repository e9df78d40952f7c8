"""Token files: your own text as nanoGPT-style `.bin` files, uint16 ids one after another.

Promises never to load the file: a batch reads its own windows and nothing else. Every
id is checked against the vocabulary in its window, and at opening as well, where that takes no more
than seconds. Raises DataError
for a file that is missing, cut off, too short, of another kind, or beyond the vocabulary.
"""

import hashlib
import os
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxpar.data.record import DataError, Dataset, whole_number
from jaxpar.data.windows import Stream, refuse_beyond, windows

TOKEN = np.dtype("<u2")
SCAN_TOKENS = 250_000
SCANNED_TOKENS = 2**30
"""How many ids of a file are looked at when it is opened, two seconds' worth: of more, some places
all over it. Windows are looked at again when they are read.
"""
PRINTED_PLACES, PRINTED_TOKENS = 64, 256
"""Where, and how many, ids of a file are looked at to know it again."""

PROBED_TOKENS = 512
"""How many of a file's first ids are looked at for ids that are wider than two bytes."""

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
    is the largest id plus one if not said; say it when the model's is larger, or when the file is
    too long to be looked at whole.
    """
    if not isinstance(path, str | os.PathLike):
        raise DataError(f"The path is a {type(path).__name__}. Name a .bin file, or a folder.")
    path = Path(path)
    if os.path.isdir(path):
        train, test = _from_folder(path, held_out)
    else:
        train, test = _from_file(path, HELD_OUT if held_out is None else held_out)

    longest = max((train, test), key=lambda stream: len(stream.ids))
    if vocabulary is None and len(longest.ids) > SCANNED_TOKENS:
        raise DataError(
            f"{longest.where}: has {len(longest.ids):,} tokens, too many to look for the largest. "
            f"Say vocabulary=, the number of ids of the tokenizer that it is from."
        )
    # Both halves of one file are scanned apart: the position is still counted from its start.
    largest = [_largest(stream) for stream in (train, test)]
    if vocabulary is None:
        vocabulary = 1 + max(id_ for id_, _ in largest)
    vocabulary = whole_number("vocabulary", vocabulary, least=1)
    # The larger of the two is named, so that the repair works the first time.
    (id_, position), where = max(zip(largest, (train.where, test.where), strict=True))
    refuse_beyond(where, largest=id_, position=position, vocabulary=vocabulary)
    made = windows(path.stem, train=train, test=test, sequence=sequence, vocabulary=vocabulary)
    return replace(made, fingerprint=_fingerprint(train, test))


def _fingerprint(*streams: Stream) -> str:
    """The lengths of the streams, and a digest of some of their ids all over them."""
    digest = hashlib.sha256()
    for stream in streams:
        places = range(0, len(stream.ids), max(1, len(stream.ids) // PRINTED_PLACES))
        for start in places:
            digest.update(stream.ids[start : start + PRINTED_TOKENS].tobytes())
    return f"{sum(len(stream.ids) for stream in streams)} tokens, {digest.hexdigest()[:16]}"


def _from_folder(folder: Path, held_out: float | None) -> tuple[Stream, Stream]:
    """Return the two splits of a folder, which has them as files of their own."""
    for name in ("train.bin", "val.bin"):
        _refuse_locked(folder / name)
        if not os.path.lexists(folder / name):
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


def _refuse_locked(file: Path) -> None:
    """Refuse a file that this process may not even look at."""
    try:
        os.stat(file)
    except PermissionError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Name another file.") from error
    except (OSError, ValueError):  # which others have sentences for
        return


def _from_file(file: Path, held_out: float) -> tuple[Stream, Stream]:
    """Return the first and last part of one file."""
    if not 0 < held_out < 1:
        raise DataError(
            f"{file}: held_out={held_out}, but it is the part of the file to test on and must "
            f"lie between 0 and 1. Use held_out={HELD_OUT} for the last tenth."
        )
    ids = _open(file)
    first = len(ids) - round(len(ids) * held_out)
    rest = ids.part(first, len(ids))
    return Stream(str(file), ids.part(0, first)), Stream(str(file), rest, first)


def _open(file: Path) -> "TokenFile":
    """Open the file as token ids; DataError when it cannot be a file of uint16 ids."""
    if file.suffix != ".bin":
        wanted = file.with_suffix(".bin").name
        raise DataError(
            f"{file}: is not a .bin file, but tokens are read from .bin files of uint16 ids. "
            f"Write one with: numpy.asarray(ids, 'uint16').tofile({wanted!r})."
        )
    _refuse_locked(file)
    if os.path.exists(file) and not os.path.isfile(file):
        raise DataError(
            f"{file}: is a folder, a pipe or a device, but tokens are read at any place of a "
            f"regular file. Write them to one first: cat {file.name} > ids.bin."
        )
    if os.path.islink(file) and not os.path.exists(file):
        raise DataError(f"{file}: is a link that leads nowhere. Name the file itself.")
    if not os.path.isfile(file):
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
    try:
        ids = TokenFile(file, _Opened(file), size_bytes // TOKEN.itemsize)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Name another file.") from error
    if width := _wider(ids):
        raise DataError(
            f"{file}: of its first {PROBED_TOKENS:,} ids only one in {width // 2} is not 0, as if "
            f"each took {width} bytes, but a token takes 2. Write them again: "
            f"numpy.fromfile({file.name!r}, 'int{8 * width}').astype('uint16').tofile('ids.bin')."
        )
    if ids[:2].tobytes() == OTHER_MAGIC:
        raise DataError(
            f"{file}: starts with the {OTHER_HEADER_BYTES}-byte header of llm.c, but tokens "
            f"are read from files of ids alone. Drop it with: "
            f"tail -c +{OTHER_HEADER_BYTES + 1} {file.name} > ids.bin."
        )
    return ids


def _wider(ids: "TokenFile") -> int:
    """The bytes that each id seems to take: 4 or 8, where only zeros are between them, else 0."""
    first = ids[:PROBED_TOKENS]
    for width in (8, 4) if len(first) == PROBED_TOKENS else ():
        apart = first.reshape(-1, width // 2)
        often = 4 * np.count_nonzero(apart[:, 0]) > len(apart)
        if not apart[:, 1:].any() and often and len(np.unique(apart[:, 0])) > 2:
            return width
    return 0


class _Opened:
    """A file that is open for as long as somebody has this."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number)
        self.written = self._written()

    def _written(self) -> tuple[int, int]:
        """When the file was last written, in nanoseconds, and how long it is in bytes."""
        now = os.fstat(self.number)
        return now.st_mtime_ns, now.st_size

    def has_changed(self) -> bool:
        """Whether it was written since it was opened."""
        return self._written() != self.written


@dataclass(frozen=True, eq=False)
class TokenFile:
    """The ids in a file, or a part of them, read when they are asked for: `ids[3:9]`, `ids[rows]`.

    Not mapped into memory: where a mapped file has become shorter, the system ends the process.

    Attributes:
        path, opened: the file.
        count: ids in this part.
        first: place in the file of the first of them.
    """

    path: Path
    opened: _Opened
    count: int
    first: int = 0

    def __len__(self) -> int:
        return self.count

    def part(self, start: int, end: int) -> "TokenFile":
        """The ids from `start` up to, not including, `end`."""
        return replace(self, count=end - start, first=self.first + start)

    def __getitem__(self, where: slice | np.ndarray) -> np.ndarray:
        """Read ids at a slice, or at the places that rows of a matrix hold, a row at once.

        DataError when the file has become shorter, or was written, since it was opened.
        """
        if isinstance(where, slice):
            start, end, _ = where.indices(self.count)
            return self._read(start, end)
        ids = np.zeros(where.shape, TOKEN)
        for row, at in enumerate(where):
            ids[row] = self._read(at.min(), at.max() + 1)[at - at.min()]
        return ids

    def _read(self, start: int, end: int) -> np.ndarray:
        """The ids from `start` up to, not including, `end`."""
        wanted, at = max(0, end - start) * TOKEN.itemsize, (self.first + start) * TOKEN.itemsize
        read = os.pread(self.opened.number, wanted, at)
        if len(read) < wanted:
            raise DataError(
                f"{self.path}: ends at byte {at + len(read)} now, and was longer when it was "
                f"opened. Leave it alone while it is read."
            )
        if self.opened.has_changed():
            raise DataError(
                f"{self.path}: was written since it was opened, so that token "
                f"{self.first + start}, at byte {at}, may be another than a run like this one "
                f"would read. Leave it alone while it is read, or train on a copy."
            )
        return np.frombuffer(read, TOKEN)


def _largest(stream: Stream) -> tuple[int, int]:
    """Return the largest id and the token where it is first met, a chunk in memory at a time."""
    largest, position = -1, -1
    starts = range(0, len(stream.ids), SCAN_TOKENS)
    for start in starts[:: max(1, -(-len(stream.ids) // SCANNED_TOKENS))]:
        chunk = stream.ids[start : start + SCAN_TOKENS]
        at = int(chunk.argmax())
        if chunk[at] > largest:
            largest, position = int(chunk[at]), stream.first + start + at
    return largest, position


def _nearby(folder: Path, otherwise: str) -> str:
    """Return the repair for a file that is not there: the .bin files that are."""
    found = sorted(file.name for file in folder.glob("*.bin")) if os.path.isdir(folder) else []
    return f"{otherwise}; {folder} has {', '.join(found) if found else 'no .bin files'}."
