"""Windows: batches of next-token windows cut from one long row of token ids.

Training draws windows at random places; testing cuts consecutive ones that do not overlap, the
last padded with weight 0, so every token with a token before it is predicted exactly once.
Only the windows asked for are read. Raises DataError for a stream too short and ids too large.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jaxpar.data.record import Batch, DataError, Dataset, generator, in_order, whole_number


class Ids(Protocol):
    """Unsigned ids, read at a slice or at the places that a matrix holds: an array, or a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: Any, /) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Stream:
    """Token ids in a row, and where they are from: `ids[0]` is token `first` of it."""

    where: str
    ids: Ids
    first: int = 0


def refuse_beyond(where: str, *, largest: int, position: int, vocabulary: int) -> None:
    """Raise DataError when the `largest` id, met at token `position`, is not in `vocabulary`."""
    if largest >= vocabulary:
        raise DataError(
            f"{where}: token {position} has id {largest}, but vocabulary={vocabulary} allows ids "
            f"0 to {vocabulary - 1}. Use vocabulary={largest + 1} or more, or tokenize the text "
            f"again with the tokenizer the model is for."
        )


def windows(name: str, *, train: Stream, test: Stream, sequence: int, vocabulary: int) -> Dataset:
    """Return the dataset of windows of `sequence` tokens, each with the token after it as target.

    A split's size is the number of tokens that can be targets: all but its first.
    """
    sequence = whole_number("sequence", sequence, least=1)
    if len(train.ids) < sequence + 1:
        shorter = f"sequence={len(train.ids) - 1} or less, or " if len(train.ids) > 1 else ""
        raise DataError(
            f"{train.where}: {len(train.ids)} tokens to train on, but sequence={sequence} needs "
            f"at least {sequence + 1}, a window and the token after it. Use {shorter}"
            f"a longer text."
        )
    if len(test.ids) < 2:
        raise DataError(
            f"{test.where}: {len(test.ids)} tokens to test on, but a test needs at least 2, one "
            f"to read and one to predict. Hold out at least {2 - len(test.ids)} more."
        )

    def draw(step: int, size: int, seed: int, rows: np.ndarray) -> Batch:
        # All the offsets are drawn (a few bytes a row) so that a row's place in the stream does
        # not depend on which process asks; only the wanted windows are then read.
        offsets = generator(seed, step).integers(len(train.ids) - sequence, size=size)
        return _read(train, offsets[rows], sequence, vocabulary)

    def read_test(window_numbers: np.ndarray) -> Batch:
        return _read(test, window_numbers * sequence, sequence, vocabulary)

    window_count = -(-(len(test.ids) - 1) // sequence)
    return Dataset(
        name=name,
        fields={
            "tokens": ((sequence,), "int32"),
            "targets": ((sequence,), "int32"),
            "weight": ((sequence,), "float32"),
        },
        vocabulary=vocabulary,
        unit="tokens",
        train_size=len(train.ids) - 1,
        test_size=len(test.ids) - 1,
        draw=draw,
        walk=in_order(window_count, read_test),
    )


def _read(stream: Stream, offsets: np.ndarray, sequence: int, vocabulary: int) -> Batch:
    """Cut a window at each offset; places past the end of the stream get id 0 and weight 0."""
    at = offsets[:, None] + np.arange(sequence + 1)
    real = at < len(stream.ids)
    # Past the end a row's own first place stands for what is not there.
    ids = np.where(real, stream.ids[np.where(real, at, at[:, :1])], 0).astype(np.int32)
    if ids.size:
        # Looked at again though the stream was scanned when opened: a file can change since.
        worst = ids.argmax()
        refuse_beyond(
            stream.where,
            largest=int(ids.flat[worst]),
            position=stream.first + int(at.flat[worst]),
            vocabulary=vocabulary,
        )
    return {
        "tokens": ids[:, :-1].copy(),
        "targets": ids[:, 1:].copy(),
        "weight": real[:, 1:].astype(np.float32),
    }
