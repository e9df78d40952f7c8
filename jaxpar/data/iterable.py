"""Your own batches: any iterable of dictionaries of numpy arrays, as a dataset like the others.

Promises what its source can keep: steps are read forward, one skipped is read and dropped, and
the order is the source's own whatever the seed. Every process reads whole batches and keeps its
rows. Raises DataError for going back in a source that cannot, for one that runs out, and for
batches that change size, fields, shape or dtype.
"""

from collections.abc import Callable, Iterable, Iterator
from inspect import signature

import numpy as np

from jaxpar.core.errors import expect
from jaxpar.data.record import Batch, DataError, Dataset, Fields, pad

Source = Iterable[Batch] | Callable[[], Iterable[Batch]]


def dataset(
    batches: Source, *, vocabulary: int = 1, test: Source | None = None, unit: str = "examples"
) -> Dataset:
    """Return `batches` as training steps 0, 1, ..., and `test` as the walk of an evaluation.

    A function without arguments that returns a fresh iterator can also go back, and starts over
    when it ends. Without `test` there is no evaluation. A missing `weight` is added: ones, for each
    example, or for each of `tokens`. The first batch is read now, to know the fields; `train_size`
    and `test_size` are None. `vocabulary` is how many ids there are, in data that has ids.
    """
    expect("unit", unit, str, 'use "examples" or "tokens"')
    if test is not None and not callable(test) and not isinstance(test, Iterable):
        raise DataError(f"test is a {type(test).__name__}. Give a list of batches, or a function.")
    if isinstance(test, Iterator):
        raise DataError(
            f"test is a {type(test).__name__}, which can be walked once, but each evaluation "
            f"walks it from the start. Give a list, or a function that returns a fresh iterator."
        )
    source = _Forward(batches)
    fields = _fields(_weighted(source.at(0), unit, "step 0"), "step 0")

    def draw(step: int, size: int, seed: int, rows: np.ndarray) -> Batch:
        batch = _checked(source.at(step), fields, unit, f"step {step}")
        if len(batch["weight"]) != size:
            raise _wrong_size(f"step {step}", batch, size, f"exactly {size}")
        return _take(batch, rows)

    def walk(size: int, rows: np.ndarray) -> Iterator[Batch]:
        assert test is not None  # else nothing walks it
        short, number = None, -1
        for number, raw in enumerate(_iterator(test)):
            if short is not None:
                raise _wrong_size(*short, size, f"exactly {size}, as only the last may be short")
            where = f"test batch {number}"
            batch = _checked(raw, fields, unit, where)
            count = len(batch["weight"])
            if count > size:
                raise _wrong_size(where, batch, size, f"at most {size}")
            if count < size:
                short = (where, batch)
            here = rows < count
            yield pad(_take(batch, rows[here]), here=here)
        if number < 0:
            raise DataError(
                "evaluation: the test batches ended before the first, but at least 1 is needed. "
                "Let the function given as test return a fresh iterator at each call."
            )

    return Dataset(
        name="iterable",
        fields=fields,
        vocabulary=vocabulary,
        unit=unit,
        train_size=None,
        test_size=None,
        draw=draw,
        walk=None if test is None else walk,
    )


class _Forward:
    """The place reached in a source: the one thing here that changes, as an iterator does."""

    def __init__(self, source: Source):
        self.source = source
        self.walk = _iterator(source)
        self.step = -1
        self.held: Batch = {}

    def at(self, step: int) -> Batch:
        """Return the batch of `step`, reading forward to it, or from the start if it is behind."""
        if step < self.step:
            if not callable(self.source):
                raise DataError(
                    f"step {step} was asked for after step {self.step}, but a "
                    f"{type(self.source).__name__} is only read forward. Ask for step "
                    f"{self.step} or later, or give a function that returns a fresh iterator."
                )
            self._start_over()
            self.step = -1
        while self.step < step:
            self.held = self._read(step)
            self.step += 1
        return self.held

    def _read(self, step: int) -> Batch:
        """The next batch, from a fresh iterator when one ends; DataError when there is none."""
        for batch in self.walk:
            return batch
        if callable(self.source):
            self._start_over()
            for batch in self.walk:
                return batch
        if self.step < 0:
            raise DataError("The batches ended before the first, but at least 1 is needed.")
        raise DataError(
            f"step {step} was asked for, but the batches ended after {self.step + 1}. Train for "
            f"{self.step + 1} steps or less, or give a function that returns a fresh iterator, "
            f"which starts over when it ends."
        )

    def _start_over(self) -> None:
        """Take a fresh iterator from the source; DataError if it is the one that has ended."""
        before, self.walk = self.walk, _iterator(self.source)
        if self.walk is before:
            raise DataError(
                f"step {self.step}: the batches were to start over, but their function returned "
                f"the iterator it had returned before. Make a new one in it at each call."
            )


def _iterator(source: Source) -> Iterator[Batch]:
    """Return an iterator over the source; DataError when it is nothing to iterate over."""
    if callable(source) and _needs_arguments(source):
        raise DataError(
            "The function that returns batches takes arguments, but is called without any. Give "
            "them defaults."
        )
    batches = source() if callable(source) else source
    if not isinstance(batches, Iterable):
        raise DataError(
            f"The batches are of type {type(batches).__name__}, but must be an iterable of "
            f"dictionaries of numpy arrays, or a function that returns one."
        )
    return iter(batches)


def _needs_arguments(source: Callable) -> bool:
    """Whether a function cannot be called without arguments, as far as it says."""
    try:
        signature(source).bind()
    except TypeError:
        return True
    except ValueError:  # a function in C that does not say
        return False
    return False


def _weighted(raw: Batch, unit: str, where: str) -> Batch:
    """Return the batch with its weight; DataError when it is no dictionary of numpy arrays."""
    if not isinstance(raw, dict):
        raise DataError(
            f"{where}: the batch is a {type(raw).__name__}, but must be a dictionary from field "
            f'names to numpy arrays, such as {{"image": ..., "label": ...}}.'
        )
    for name, value in raw.items():
        if not isinstance(value, np.ndarray) or value.ndim == 0:
            raise DataError(
                f"{where}: field {name!r} is a {type(value).__name__}, but must be a numpy array "
                f"whose first dim is the batch. Use numpy.asarray on the whole batch."
            )
        if value.dtype.kind in "OSUMm":
            raise DataError(
                f"{where}: field {name!r} holds {value.dtype}, but a model reads numbers. Turn it "
                f"into integers or floats."
            )
        if not isinstance(name, str) or not len(value):
            raise DataError(
                f"{where}: field {name!r} of {len(value)} rows, but a field has a word for a name, "
                f"and a batch at least one row. Leave empty batches out."
            )
    if not raw:
        raise DataError(f"{where}: the batch has no fields, but a model reads at least one.")
    if "weight" in raw:
        if raw["weight"].dtype != np.float32:
            raise DataError(
                f"{where}: field 'weight' is {raw['weight'].dtype}, but must be float32. "
                f"Use weight.astype('float32')."
            )
        return raw
    counted = [name for name in ("targets", "tokens") if name in raw]
    if unit == "tokens":
        if not counted:
            raise DataError(
                f"{where}: the unit is tokens, but there is no field 'targets' or 'tokens' to "
                f"give a weight to; the fields are {', '.join(map(repr, raw))}. Add 'weight', a "
                f'float32 for each token, or use unit="examples".'
            )
        shape = raw[counted[0]].shape
    else:
        shape = next(iter(raw.values())).shape[:1] if raw else (0,)
    return {**raw, "weight": np.ones(shape, np.float32)}


def _fields(batch: Batch, where: str) -> Fields:
    """Return the shape and dtype of one example; DataError when the batch dims disagree."""
    first = next(iter(batch))
    for name, value in batch.items():
        if len(value) != len(batch[first]):
            raise DataError(
                f"{where}: field {name!r} has shape {value.shape} and field {first!r} "
                f"{batch[first].shape}, but the first dim is the batch and must be the same in "
                f"all. Give each {len(batch[first])} rows."
            )
    return {name: (value.shape[1:], value.dtype.name) for name, value in batch.items()}


def _checked(raw: Batch, fields: Fields, unit: str, where: str) -> Batch:
    """Return the batch with its weight; DataError when its fields are not those of step 0."""
    batch = _weighted(raw, unit, where)
    if batch.keys() != fields.keys():
        raise DataError(
            f"{where}: the fields are {', '.join(map(repr, batch))}, but those of step 0 were "
            f"{', '.join(map(repr, fields))}. Give every batch the same fields."
        )
    for name, (shape, dtype) in _fields(batch, where).items():
        if (shape, dtype) != fields[name]:
            wanted_shape, wanted_dtype = fields[name]
            raise DataError(
                f"{where}: an example of field {name!r} is {dtype} of shape {shape}, but at step "
                f"0 it was {wanted_dtype} of shape {wanted_shape}. Make every batch alike, "
                f"by padding with weight 0 where examples differ in length."
            )
    return batch


def _wrong_size(where: str, batch: Batch, size: int, rule: str) -> DataError:
    """Return the error for a batch that has not `size` rows."""
    name, value = next(iter(batch.items()))
    return DataError(
        f"{where}: field {name!r} has shape {value.shape}, not {(size, *value.shape[1:])}: its "
        f"batch has {len(value)} rows and size={size} was asked for, which means {rule}. "
        f"Use size={len(value)}, or make batches of {size} and pad the last with weight 0."
    )


def _take(batch: Batch, rows: np.ndarray) -> Batch:
    """Return copies of some rows: a source may fill the same arrays anew for its next batch."""
    return {name: value[rows] for name, value in batch.items()}
