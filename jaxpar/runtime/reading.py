"""What a model reads of a dataset: fields that fit, and batches that hold what the model takes.

A dataset is a person's own code as often as not, so what it raises becomes one sentence too.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxpar.core.errors import OwnCodeError, RequestError, expect
from jaxpar.data.record import Batch, Dataset
from jaxpar.inference.calling import told
from jaxpar.models.record import Model


def check_data(model: Model, data: Dataset) -> None:
    """Refuse data that the model cannot read: missing fields, other shapes, ids past its tables."""
    expect(
        "the data", data, Dataset,
        "jaxpar.DATA.load(name)() makes one, and jaxpar.data.iterable.dataset one of your batches",
    )  # fmt: skip
    for name, field in model.batch.items():
        if name not in data.fields:
            usual = f"; it is usually trained on '{model.data}'" if model.data else ""
            raise RequestError(
                f"model '{model.name}' reads '{name}', and data '{data.name}' holds "
                f"{', '.join(data.fields)}{usual}"
            )
        shape, dtype = data.fields[name]
        if tuple(shape) != field.shape[1:]:
            raise RequestError(
                f"data '{data.name}' gives '{name}' of shape {tuple(shape)} an example, and model "
                f"'{model.name}' reads {field.shape[1:]}: set the model's sizes to match"
            )
        numbers = np.dtype(dtype).kind not in "OSUMm"
        if not numbers or str(jax.dtypes.canonicalize_dtype(dtype)) != field.dtype:
            raise RequestError(
                f"data '{data.name}' gives '{name}' as {dtype}, and model '{model.name}' reads "
                f"{field.dtype}: use values.astype('{field.dtype}')"
            )
        if field.bound is not None and data.vocabulary > field.bound:
            raise RequestError(
                f"data '{data.name}' holds {data.vocabulary} different ids, and '{name}' of model "
                f"'{model.name}' goes up to {field.bound - 1}: use ids below {field.bound}, or "
                f"give the model {data.vocabulary}"
            )


def read_batch(data: Dataset, step: int, model: Model, *, seed: int, rows: slice) -> Batch:
    """The rows of a training batch that this process reads, checked.

    Raises:
        RequestError: for what a dataset raises, and for a batch that the model cannot read.
    """
    size = model.batch_size
    batch = _asked(data, f"step {step}", lambda: data.batch(step, size=size, seed=seed, rows=rows))
    _check_batch(model, data, batch, f"step {step}", rows)
    return batch


def read_test(data: Dataset, model: Model, *, rows: slice) -> Iterator[Batch]:
    """The batches of the test split in order, as `read_batch` gives those to train on."""
    walk = _asked(data, "the test split", lambda: data.evaluation(size=model.batch_size, rows=rows))
    number = 0
    while batch := _asked(data, f"test batch {number}", lambda: next(walk, None)):
        _check_batch(model, data, batch, f"test batch {number}", rows)
        yield batch
        number += 1


def _asked(data: Dataset, where: str, read: Callable[[], Any]) -> Any:
    """What a dataset gives; what it raises is told with where that was."""
    try:
        return read()
    except (RequestError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever it is, exit() too
        raise OwnCodeError(f"data '{data.name}', {where}: it raised {told(error)}") from error


def _check_batch(
    model: Model, data: Dataset, batch: Mapping[str, Any], where: str, rows: slice
) -> None:
    """Refuse a batch without the model's fields in these rows, or with ids past its tables."""
    where = f"data '{data.name}', {where}"
    expect(f"{where}: the batch", batch, Mapping, "give arrays by name")
    count = len(range(model.batch_size)[rows])
    for name, field in model.batch.items():
        values: Any = batch.get(name)
        shape = (count, *field.shape[1:])
        if values is None:
            met = "is not there"
        elif not isinstance(values, np.ndarray | jax.Array):
            met = f"is a {type(values).__name__}"
        elif values.shape != shape:
            met = f"has shape {values.shape}"
        else:
            met = f"holds {values.dtype}" if values.dtype.kind in "OSUMm" else ""
        if met or values is None:
            raise RequestError(
                f"{where}: '{name}' {met}, and model '{model.name}' reads {field.dtype} of shape "
                f"{shape}: give every batch the fields that `fields` promises"
            )
        if field.bound is not None and values.size and (largest := values.max()) >= field.bound:
            raise RequestError(
                f"{where}: '{name}' holds {largest}, and model '{model.name}' goes up to "
                f"{field.bound - 1}: give it more, or map what is beyond to one of them with "
                "weight 0"
            )
