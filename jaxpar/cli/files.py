"""Names of files that a command writes: none that an earlier run has written is emptied."""

import os
from itertools import chain, count
from pathlib import Path


def unused(path: Path) -> Path:
    """`path` where there is no such file, else the first that is free of `name-2`, `name-3`, ..."""
    others = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(one for one in chain([path], others) if not os.path.lexists(one))
