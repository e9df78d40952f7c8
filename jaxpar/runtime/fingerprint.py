"""Whether several processes run the same program on the same data: compared before step 0.

Where they do not, collectives wait for ever or, worse, add up what does not belong together.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import jax
import numpy as np

from jaxpar.core.errors import RequestError
from jaxpar.data.record import Dataset
from jaxpar.optimizers.record import Recipe
from jaxpar.program.record import Program
from jaxpar.runtime.distributed import Joined
from jaxpar.runtime.reading import read_batch

LIBRARIES = ("jaxpar", "jax", "jaxlib", "flax", "optax", "numpy")

SHOWN = 80
"""Characters of a value in a sentence; a digest says no more than that there is a difference."""


def check_same(mine: Joined, program: Program, data: Dataset, training: Recipe) -> None:
    """Refuse to train where processes differ, in every one of them; waits for all.

    Args:
        mine: what this process has joined.
        program: it need not be compiled.
        data: what is trained on; its first row is read.
        training: how, with a `seed`.

    Raises:
        RequestError: it names what differs, and between which processes.
    """
    own = fingerprint(program, data, training)
    said = [json.loads(text) for text in mine.told("fingerprint", json.dumps(own))]
    if found := differences(said):
        raise RequestError(found)


def fingerprint(program: Program, data: Dataset, training: Recipe) -> dict[str, str]:
    """What has to be the same in every process: name -> value, or a digest of it."""
    step, layout = program.step, program.step.layout
    seed = asdict(training).get("seed", 0)
    row = read_batch(data, 0, layout.model, seed=seed, rows=slice(0, 1))
    arrays = {**layout.parameters, **layout.state}
    return {
        "Python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "model": f"{layout.model.name}, {layout.model.batch_size} rows",
        "strategy": layout.strategy.name,
        "mesh": str(layout.mesh),
        "mode": step.mode,
        "shardings": _digest(*(f"{p} {a.shape} {a.specs}" for p, a in sorted(arrays.items()))),
        "data": data.name,
        "fields of the data": str(sorted(data.fields.items())),
        "size of the data": f"{data.train_size} to train on, {data.test_size} to test on",
        "first row of the data": _digest(*(f"{n} {_bytes(x)}" for n, x in sorted(row.items()))),
        **{name: str(value) for name, value in asdict(training).items()},
        "lowered program": _digest(program.lowered.as_text()),
    }


def differences(said: Sequence[Mapping[str, str]]) -> str:
    """A sentence about what differs between processes; "" where nothing does.

    Args:
        said: the fingerprint of each process, in their order.

    >>> differences([{"jax": "1", "seed": "0"}, {"jax": "1", "seed": "7"}]).partition(":")[0]
    "process 1 differs from process 0 in seed ('7', not '0')"
    """
    found: dict[str, list[int]] = {}
    for number, other in enumerate(said):
        names = [name for name in {**said[0], **other} if other.get(name) != said[0].get(name)]
        if names:
            words = ", ".join(_difference(name, said[0], other) for name in names)
            found.setdefault(words, []).append(number)
    each = [
        f"{'process' if len(numbers) == 1 else 'processes'} {', '.join(map(str, numbers))} "
        f"{'differs' if len(numbers) == 1 else 'differ'} from process 0 in {words}"
        for words, numbers in found.items()
    ]
    if not each:
        return ""
    return (
        f"{'; '.join(each)}: all processes run one program on the same data, so start each with "
        "the same words, files and versions"
    )


def _difference(name: str, first: Mapping[str, str], other: Mapping[str, str]) -> str:
    """The name of what differs, and the values where they say something."""
    values = [said.get(name, "") for said in (other, first)]
    if any(value.startswith(_DIGEST) for value in values):
        return name
    return "{} ({!r}, not {!r})".format(name, *(value[:SHOWN] for value in values))


_DIGEST = "sha256 "


def _digest(*texts: str) -> str:
    """A digest of texts."""
    return _DIGEST + hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _bytes(values: Any) -> str:
    """The bytes of an array, to be digested."""
    array = np.asarray(jax.device_get(values))
    return f"{array.dtype} {array.shape} {array.tobytes().hex()}"


def _version(name: str) -> str:
    """The version of a package; "" where none is installed by that name."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
