"""Dataset: what any source of batches promises, and the sentence it refuses with.

Pure numpy: batches are made on the host, before any device is chosen. A batch is a function of
(seed, step) alone, so a run resumes at any step without replaying the ones before, and several
processes each read only their own rows of it. Raises DataError for what a caller can get wrong.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from jaxpar.core.errors import RequestError

Batch = dict[str, np.ndarray]
Fields = Mapping[str, tuple[tuple[int, ...], str]]

UNITS = ("examples", "tokens")
MOST = 2**32 - 1
"""The largest whole number that is asked of a dataset, a seed's."""


class DataError(RequestError):
    """A dataset, or a request to one, that makes no sense; says where, what was met, the repair."""


# Compared by identity: two datasets are the same when they read the same source, which their
# fields cannot tell, and a record that holds a mapping could not be hashed by value.
@dataclass(frozen=True, eq=False)
class Dataset:
    """A source of batches: random access for training, one walk in order for testing.

    `fields` gives the shape and dtype name of one example, without the batch dim. Every batch
    has a float32 `weight`: 1 for what counts, 0 for padding. The weights of one whole evaluation
    add up to `test_size`, counted in `unit`; sizes are None where the source does not tell.
    `fingerprint` tells one source from another where they are alike otherwise, "" where none is.

    >>> ones = Dataset(
    ...     name="ones", fields={"weight": ((), "float32")}, vocabulary=1, unit="examples",
    ...     train_size=4, test_size=2,
    ...     draw=lambda step, size, seed, rows: {"weight": np.ones(len(rows), np.float32)},
    ...     walk=in_order(2, lambda at: {"weight": np.ones(len(at), np.float32)}))
    >>> ones.batch(0, size=4, rows=slice(1, 3))
    {'weight': array([1., 1.], dtype=float32)}
    >>> list(ones.evaluation(size=3))
    [{'weight': array([1., 1., 0.], dtype=float32)}]
    """

    name: str
    fields: Fields
    vocabulary: int
    unit: str
    train_size: int | None
    test_size: int | None
    # (step, size, seed, rows) -> those rows of the training batch
    draw: Callable[[int, int, int, np.ndarray], Batch] = field(repr=False)
    # (size, rows) -> those rows of each test batch, in order; None where there is no test split
    walk: Callable[[int, np.ndarray], Iterator[Batch]] | None = field(repr=False)
    fingerprint: str = ""

    def __post_init__(self):
        """Refuse a unit nobody counts in, and a vocabulary of nothing."""
        whole_number("vocabulary", self.vocabulary, least=1)
        named = isinstance(self.fields, Mapping) and len(self.fields) > 0
        if not named or not all(map(_is_field, self.fields.items())):
            raise DataError(
                f"Dataset {self.name!r} has fields={self.fields!r}, but fields give the shape and "
                'the dtype of one example by name. Use for example {"x": ((8,), "float32")}.'
            )
        if not isinstance(self.unit, str) or self.unit not in UNITS:
            raise DataError(
                f"Dataset {self.name!r} counts in unit={self.unit!r}, but throughput is counted "
                f'in one of two units. Use unit="examples" or unit="tokens".'
            )

    def batch(
        self, step: int, *, size: int, seed: int = 0, rows: slice = slice(None)
    ) -> dict[str, np.ndarray]:
        """Return rows `rows` of the training batch of `size` rows at `step`, and read no others.

        The same (seed, step, size) always gives the same rows, in whatever order steps are asked.
        """
        step = whole_number("step", step, least=0)
        size = whole_number("size", size, least=1)
        seed = whole_number("seed", seed, least=0)
        return self.draw(step, size, seed, _row_numbers(rows, size))

    def evaluation(
        self, *, size: int, rows: slice = slice(None), limit: int | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Walk the test split once, in order, in batches of `size`; the last is padded.

        Gives rows `rows` of each, and at most `limit` batches. Padding rows have weight 0.
        """
        size = whole_number("size", size, least=1)
        if self.walk is None:
            raise DataError(
                "evaluation: no test batches were given, but an evaluation walks them. "
                "Give them as dataset(batches, test=...)."
            )
        if limit is not None:
            limit = whole_number("limit", limit, least=1)
        return islice(self.walk(size, _row_numbers(rows, size)), limit)


def _is_field(entry: tuple[Any, Any]) -> bool:
    """Whether it is a name and what one example of that field is: (shape, name of a dtype)."""
    name, told = entry
    if not (isinstance(name, str) and isinstance(told, tuple) and len(told) == 2):
        return False
    shape, dtype = told
    try:
        np.dtype(dtype)
    except TypeError:
        return False
    return isinstance(shape, tuple) and all(isinstance(n, int) for n in shape) and bool(dtype)


def whole_number(name: str, value: int, *, least: int) -> int:
    """Return `value` as an int; DataError when it is no whole number, or below `least`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise DataError(
            f"{name}={value!r} is a {type(value).__name__}, but {name} must be a whole number "
            f"from {least} up. Use {name}={least} or more."
        ) from None
    if number < least:
        raise DataError(f"{name}={number} is too small: {name} must be {least} or more.")
    if number > MOST:
        raise DataError(f"{name}={number} is too large: {name} can be {MOST:,} at most.")
    return number


def generator(seed: int, at: int) -> np.random.Generator:
    """Return the random generator that belongs to (seed, at), and to no other pair."""
    # spawn_key, not entropy=(seed, at): the two are then kept apart whatever their width.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(at,))))


def pad(batch: Batch, *, here: np.ndarray) -> Batch:
    """Spread the rows of `batch` over the places where `here` is true; the rest are all zeros.

    The padding rows thus have weight 0, and ids of 0, which every vocabulary has.
    """
    padded = {}
    for name, value in batch.items():
        padded[name] = np.zeros((len(here), *value.shape[1:]), value.dtype)
        padded[name][here] = value
    return padded


def in_order(
    count: int, read: Callable[[np.ndarray], Batch]
) -> Callable[[int, np.ndarray], Iterator[Batch]]:
    """Return the walk over items 0 to `count`, where `read(positions)` gives some as a batch."""

    def walk(size: int, rows: np.ndarray) -> Iterator[Batch]:
        for first in range(0, count, size):
            here = first + rows < count
            yield pad(read((first + rows)[here]), here=here)

    return walk


def _row_numbers(rows: slice, size: int) -> np.ndarray:
    """Return which of the rows 0 to `size` are meant; DataError when `rows` reaches beyond."""
    # A slice clips silently; a process that asks for rows which are not there is miscounting.
    furthest = max((abs(end) for end in (rows.start, rows.stop) if end is not None), default=0)
    if furthest > size:
        raise DataError(
            f"rows={rows} reaches row {furthest} of a batch of size={size}, but only rows 0 to "
            f"{size} are there. Use size={furthest} or more, or rows that end by {size}."
        )
    return np.arange(size)[rows]
