"""What a program's functions are given: refused in a sentence where it is not what they take.

JAX tells of two trees of types, without the name of a field, and may end the process for an array
that a step has used up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxpar.core.errors import RequestError, expect
from jaxpar.hardware.record import Hardware
from jaxpar.models.record import Model
from jaxpar.program.devices import refuse_described
from jaxpar.program.out_of_memory import memory_told
from jaxpar.step.record import State

MADE = "jaxpar.train's outcome has one, and program.init() makes a fresh one"


@dataclass(frozen=True, eq=False)
class Takes:
    """What the functions of a program take.

    Attributes:
        model: whose state and batch they are.
        hardware: that the program is compiled for.
        state, batch: abstract arrays.
        state_shardings, batch_shardings: the same trees of shardings.
        is_wide: whether these are types of a JAX with 64 bits.
    """

    model: Model
    hardware: Hardware
    state: State
    batch: Mapping[str, jax.ShapeDtypeStruct]
    state_shardings: State
    batch_shardings: Mapping[str, Any]
    is_wide: bool

    def check_state(self, state: Any) -> None:
        """Refuse what is no state of the program, or one whose arrays a step has taken over."""
        expect("the state", state, State, MADE)
        said = f"model '{self.model.name}': this state"
        given, wanted = _by_path(state), _by_path(self.state)
        if any(_is_deleted(array) for array in given.values()):
            raise RequestError(
                f"{said} was used up by a step, which returned the next one: go on from that; "
                f"{MADE}"
            )
        for path in dict.fromkeys((*wanted, *given)):
            array = wanted.get(path)
            has = None if array is None else (array.shape, array.dtype)
            met = self._kind(given.get(path))
            if met != has:
                raise RequestError(
                    f"{said} is of another program: its {path} is {_words(met)}, and this "
                    f"program's is {_words(has)}; {MADE}"
                )
        for path, sharding in _by_path(self.state_shardings).items():
            if _is_elsewhere(given[path], sharding):
                raise RequestError(
                    f"{said} is of another layout: its {path} is sharded otherwise than this "
                    "program has it: use jax.device_put(state, program.state_shardings)"
                )

    def check_batch(self, batch: Any) -> None:
        """Refuse what is no batch of the program, or not where it reads it."""
        expect("the batch", batch, dict, "program.place makes one of arrays by name")
        for name in batch:
            if name not in self.batch:
                raise RequestError(
                    f"model '{self.model.name}' reads {', '.join(self.batch)}, and the batch has "
                    f"'{name}' too: leave it out, as program.place does"
                )
        for name, wanted in self.batch.items():
            self.check_field(name, batch.get(name), wanted.shape)
            if _is_deleted(batch[name]):
                raise RequestError(f"'{name}' of the batch was deleted or donated: place it anew")
            if _is_elsewhere(batch[name], self.batch_shardings[name]):
                raise RequestError(
                    f"'{name}' of the batch is sharded otherwise than this program reads it: use "
                    "program.place(batch)"
                )

    def check_field(self, name: str, values: Any, shape: tuple[int, ...]) -> None:
        """Refuse an array that is no field of a batch.

        Args:
            name: of the field.
            values: an array, or None where there is none.
            shape: that it must have; a process hands in only its own rows.
        """
        wanted, below = self.batch[name].dtype, self.model.batch[name].bound
        repair = "give arrays of that shape and type, every field that the model reads"
        if values is None:
            met = "no such field"
        elif not isinstance(values, np.ndarray | np.generic | jax.Array):
            met = f"a value of type {type(values).__name__}"
        elif isinstance(values, np.ma.MaskedArray):
            met, repair = "a masked array", "fill it, and leave rows out by weight 0"
        elif values.shape != shape:
            met = f"shape {values.shape}"
        elif not isinstance(values.dtype, np.dtype) or values.dtype.kind in "OSUMm":
            met = f"{values.dtype}, which is no number"
        elif self._as_jax_has(values.dtype) != wanted:
            met, repair = f"{values.dtype}", f"use values.astype('{wanted}')"
        elif below is not None and isinstance(values, np.ndarray) and values.max() >= below:
            met, repair = f"{values.max()} in it", f"use ids below {below}, or a larger model"
        else:
            return
        raise RequestError(
            f"model '{self.model.name}' reads '{name}' as {wanted} of shape {shape}, and the batch "
            f"has {met}: {repair}"
        )

    def _kind(self, leaf: Any) -> tuple[tuple[int, ...], Any] | None:
        """Shape and type of an array, as JAX has it; None for what is none."""
        if isinstance(leaf, jax.Array):
            return leaf.shape, leaf.dtype
        if not isinstance(leaf, np.ndarray | np.generic | bool | int | float):
            return None
        return np.shape(leaf), self._as_jax_has(np.asarray(leaf).dtype)

    def _as_jax_has(self, dtype: Any) -> Any:
        """The type that JAX makes of a type of numpy's; None where it makes none."""
        with jax.enable_x64(self.is_wide):
            try:
                return jax.dtypes.canonicalize_dtype(dtype)
            except TypeError:
                return None


@dataclass(frozen=True, eq=False)
class Ready:
    """A compiled function of a program: called as it is, and what it is given is refused in words.

    Whatever else is asked of it is the compiled function's own, such as `as_text`.

    Attributes:
        compiled: what JAX made of a function of a State, or of a State and a batch.
        takes: what it takes.
        reads_batch: whether it takes a batch.
    """

    compiled: Any
    takes: Takes
    reads_batch: bool = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compiled, name)

    def __call__(self, *given: Any) -> Any:
        """What the function returns.

        Raises:
            RequestError: for what it does not take.
        """
        if _is_used_up(given[0] if given else None):
            self._check(given)
        try:
            with memory_told(self.takes.model.name, self.takes.hardware):
                return self.compiled(*given)
        except RequestError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            self._check(given, error)
            raise

    def _check(self, given: tuple[Any, ...], error: Exception | None = None) -> None:
        """Refuse what is not what the function takes; `error` is what JAX said of it."""
        refuse_described(self.takes.hardware)
        checks = [self.takes.check_state, self.takes.check_batch][: 1 + self.reads_batch]
        try:
            if len(given) != len(checks):
                wanted = "a state and a batch" if self.reads_batch else "a state"
                raise RequestError(f"this function takes {wanted}: give it {len(checks)}")
            if any(isinstance(array, Tracer) for array in jax.tree.leaves(given)):
                raise RequestError(
                    "a compiled program cannot be traced by jax.jit, jax.grad and their like: call "
                    "it outside, or use the functions of program.step inside"
                )
            for check, what in zip(checks, given, strict=True):
                check(what)
        except RequestError as refusal:
            raise refusal from error


def as_array(values: Any) -> Any:
    """What a person gives for a field as an array of numpy's, or as it is where it is none."""
    if isinstance(values, jax.Array) and jax.numpy.issubdtype(values.dtype, jax.dtypes.extended):
        return values
    if values is None or isinstance(values, jax.ShapeDtypeStruct) or np.ma.is_masked(values):
        return values
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # rows of several lengths
        return values
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree, by their paths as people write them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _words(kind: tuple[tuple[int, ...], Any] | None) -> str:
    """Shape and type, for people."""
    return "not there" if kind is None else f"{kind[1]} of shape {kind[0]}"


def _is_used_up(state: Any) -> bool:
    """Whether a step has taken over arrays of a state, asked of few of them: it is every step's."""
    try:
        arrays = (state.step, state.key, *state.parameters.values())
        return any(array.is_deleted() for array in arrays)
    except (AttributeError, TypeError):  # no state, or not only of JAX's arrays
        return any(_is_deleted(array) for array in jax.tree.leaves(state))


def _is_deleted(array: Any) -> bool:
    """Whether an array of JAX's has been donated or deleted."""
    is_array = isinstance(array, jax.Array) and not isinstance(array, Tracer)
    return is_array and array.is_deleted()


def _is_elsewhere(array: Any, sharding: Any) -> bool:
    """Whether an array was put on devices, and not as a sharding says."""
    placed = isinstance(array, jax.Array) and array.committed
    return placed and not array.sharding.is_equivalent_to(sharding, array.ndim)
