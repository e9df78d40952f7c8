"""English text: half a million bytes of Python's own manual, one token a byte, no download.

Promises the `pydoc` topics of the running Python, sorted by name; about a tenth of the bytes is
held out as whole topics that share no paragraph with those trained on. The manual differs a
little between Python versions, so compare losses within one. Raises DataError without it.
"""

from functools import lru_cache

import numpy as np

from jaxpar.data.record import DataError, Dataset
from jaxpar.data.windows import Stream, windows

# Long enough to be prose: "Changed in version 3.8: ..." and the like are shared by accident.
PARAGRAPH_CHARACTERS = 80


def dataset(sequence: int = 128) -> Dataset:
    """Return the text as `tokens` (sequence,) and `targets`, the byte that follows each."""
    train, test = (np.frombuffer(part, np.uint8) for part in _split())
    return windows(
        "text",
        train=Stream("the pydoc topics to train on", train),
        test=Stream("the pydoc topics held out", test),
        sequence=sequence,
        vocabulary=256,
    )


@lru_cache(maxsize=1)
def _split() -> tuple[bytes, bytes]:
    """Return the text to train on and the text held out."""
    topics = _topics()
    held = _held_out(topics)
    train = (body for name, body in topics.items() if name not in held)
    test = (body for name, body in topics.items() if name in held)
    return b"".join(train), b"".join(test)


def _topics() -> dict[str, bytes]:
    """Return each topic, headed by its name, sorted by name."""
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as missing:
        raise DataError(
            "The text is the standard library's pydoc_data.topics, which this Python was "
            "installed without. Install the full standard library, or give your own text as a "
            ".bin file of token ids."
        ) from missing
    return {name: f"{name}\n\n{topics[name].strip()}\n\n".encode() for name in sorted(topics)}


def _held_out(topics: dict[str, bytes]) -> set[str]:
    """Return the topics to test on: about a tenth of the bytes, spread over the alphabet."""
    groups = _related(topics)
    size_bytes = [sum(len(topics[name]) for name in group) for group in groups]
    total_bytes = sum(size_bytes)
    # A group too large to be taken without overshooting is trained on, and its share falls to
    # the others evenly; otherwise its neighbours in the alphabet would all be held out to pay.
    small = [size <= total_bytes // 20 for size in size_bytes]
    small_bytes = sum(size for size, is_small in zip(size_bytes, small, strict=True) if is_small)
    held, owed_bytes = set(), 0.0
    for group, size, is_small in zip(groups, size_bytes, small, strict=True):
        if is_small:
            owed_bytes += size * (total_bytes / 10) / small_bytes
            if owed_bytes >= size / 2:
                held.update(group)
                owed_bytes -= size
    return held


def _related(topics: dict[str, bytes]) -> list[list[str]]:
    """Group the topics that share a paragraph, also by way of others.

    The manual prints some text under several names ("if" is also part of "compound"); holding
    out one of them alone would test on what was trained on.
    """
    group_of = {name: [name] for name in topics}
    first_with: dict[bytes, str] = {}
    for name, body in topics.items():
        for paragraph in body.split(b"\n\n"):
            words = b" ".join(paragraph.split())  # the same text is indented and wrapped anew
            if len(words) < PARAGRAPH_CHARACTERS:
                continue
            ours, theirs = group_of[name], group_of[first_with.setdefault(words, name)]
            if ours is not theirs:
                theirs.extend(ours)
                for member in ours:
                    group_of[member] = theirs
    return [group for name, group in group_of.items() if group[0] == name]
