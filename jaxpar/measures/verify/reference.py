"""One device's side of a comparison: training as the model's author would write it.

The person's own loss on the whole batch, and their own optimizer on Flax's own tree of parameters:
no mesh, no microbatches, no weight in pieces. Nothing of `make_step` is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import jaxpr_as_fun
from jax.sharding import NamedSharding, PartitionSpec

from jaxpar.core.jax_compat import setting
from jaxpar.core.mesh import MeshShape
from jaxpar.hardware.record import Hardware
from jaxpar.inference.record import TracedLoss
from jaxpar.inference.traced import module_of, traced_loss
from jaxpar.jaxprs.equations import equations
from jaxpar.measures.verify.plain_loss import plain_loss, traced
from jaxpar.measures.verify.states import put
from jaxpar.models.modules import Parts, build, take_apart, values_of
from jaxpar.models.record import Model
from jaxpar.program.devices import device_mesh
from jaxpar.program.quick import compile_quickly
from jaxpar.step.own_tree import OwnTree
from jaxpar.step.record import State
from jaxpar.step.updated import updated

MOST = 6
"""References kept: layouts of one model are mostly tried one after another."""

_kept: list[tuple[tuple, Reference]] = []


@dataclass(frozen=True)
class Reference:
    """A training step on one device.

    Its State is by the paths of the model's own weights; optimizer state is the optimizer's own.

    Attributes:
        model: as its author wrote it, of the rows that one update takes.
        optimizer: any optax transformation.
        microbatches: 1, or the number in which gradients are taken where the model draws random
            numbers or counts as it goes: these are drawn anew in each.
        hardware: where it is run.
    """

    model: Model
    optimizer: optax.GradientTransformation
    microbatches: int
    hardware: Hardware

    @property
    def algorithm(self) -> str:
        """What one device does, for people."""
        if self.microbatches == 1:
            return "one step for the whole batch"
        return f"one step in {self.microbatches} microbatches, as the model draws or counts in each"

    @cached_property
    def may_reorder(self) -> bool:
        """Whether rows in another order are the same to it: not where it draws for each of them."""
        return not _draws(self.model)

    def init(self, seed: int = 0) -> State:
        """A fresh state."""
        return self._init(jnp.uint32(seed))

    def place(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """A batch on the device."""
        return jax.device_put(dict(batch), self.sharding)

    def placed(self, state: State) -> State:
        """A state in host memory, random keys as their data, on the device in fresh buffers."""
        shardings = jax.tree.map(lambda _: self.sharding, self._state)
        return replace(put(replace(state, outer={}), self._state, shardings), outer=state.outer)

    def probe(self, state: State, batch: Mapping[str, jax.Array]):
        """(state after an update, metrics, gradients by path)."""
        gradients, model_state, metrics = self._gradients(state, batch)
        after = self._apply(state, gradients, model_state, metrics["loss"])
        return after, metrics, gradients

    def apply(self, state: State, gradients, model_state, loss) -> State:
        """The state after an update by these gradients."""
        return self._apply(state, gradients, model_state, loss)

    @property
    def sharding(self) -> NamedSharding:
        """Of every array: the one device."""
        return NamedSharding(device_mesh(MeshShape(), self.hardware), PartitionSpec())

    @cached_property
    def _parts(self) -> Parts:
        """The module taken apart, its arrays as shapes."""
        return module_of(self.model)

    @cached_property
    def _own(self) -> OwnTree:
        """How parameters by path make up Flax's tree."""
        return OwnTree.of_parts(self._parts)

    def _created(self, seed: jax.Array) -> State:
        """A state, drawn from a seed as every step draws it."""
        init_key, step_key = jax.random.split(jax.random.key(seed))
        parts = take_apart(build(self.model, init_key), self.model.trainable)
        parameters = values_of(parts.parameters)
        return State(
            step=jnp.zeros((), jnp.int32),
            parameters=parameters,
            model_state=values_of(parts.state),
            optimizer=self.optimizer.init(self._own.nested(parameters)),
            key=step_key,
        )

    def _moved(self, state: State, gradients, model_state, loss) -> State:
        """The state after an update by these gradients."""
        nested, own = self._own.nested, self._own
        parameters, gradients = nested(state.parameters), nested(gradients)
        updates, optimizer = updated(self.optimizer, gradients, state.optimizer, parameters, loss)
        moved: Any = optax.apply_updates(parameters, updates)
        return State(state.step + 1, own.by_path(moved), model_state, optimizer, state.key)

    def _differentiated(self, state: State, batch: Mapping[str, jax.Array]):
        """(gradients of the loss by path, new model state, {name: mean})."""
        key = jax.random.fold_in(state.key, state.step)
        gradients, model_state, means = {}, state.model_state, {}
        for part in range(self.microbatches):
            rows, own_key = batch, key
            if self.microbatches > 1:
                rows = {name: x[part :: self.microbatches] for name, x in batch.items()}
                own_key = jax.random.fold_in(key, part)
            loss = partial(self._total, model_state, rows, own_key)
            more, (scored, model_state) = jax.grad(loss, has_aux=True)(state.parameters)
            gradients = _added(gradients, more)
            means = _added(means, scored)
        divisor = means["loss"].divisor
        gradients = {path: total / divisor for path, total in gradients.items()}
        return gradients, model_state, {name: mean.value for name, mean in means.items()}

    def _total(self, model_state, rows, key, parameters):
        """The loss's total of these rows; beside it all means and the new model state."""
        if self.microbatches > 1:
            # What a part weighs is in the trace: the function gives the mean alone.
            traced = self._of_a_part
            args = traced.flat(parameters, model_state, rows, key)
            mean, metrics, new = traced.unflat(jaxpr_as_fun(traced.closed)(*args))
        else:
            mean, metrics, new = plain_loss(
                self.model, self._parts, parameters, model_state, rows, key
            )
        return mean.total, ({"loss": mean, **metrics}, new)

    @cached_property
    def _of_a_part(self) -> TracedLoss:
        """The loss of one microbatch, with the weight of its mean."""
        return traced_loss(self.model.with_batch_size(self.model.batch_size // self.microbatches))

    @cached_property
    def _state(self) -> State:
        """The abstract state."""
        return jax.eval_shape(self._created, jax.ShapeDtypeStruct((), jnp.uint32))

    def _quickly(self, function, *arguments) -> Any:
        """A function compiled for the device."""
        there = self.sharding
        jitted = jax.jit(function, in_shardings=there, out_shardings=there)
        return compile_quickly(self.hardware, jitted, *arguments)

    @cached_property
    def _init(self) -> Any:
        """The compiled `init`."""
        return self._quickly(self._created, jax.ShapeDtypeStruct((), jnp.uint32))

    @cached_property
    def _batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The abstract batch."""
        return {n: jax.ShapeDtypeStruct(f.shape, f.dtype) for n, f in self.model.batch.items()}

    @cached_property
    def _gradients(self) -> Any:
        """The compiled (state, batch) -> (gradients by path, new model state, metrics)."""
        return self._quickly(self._differentiated, self._state, self._batch)

    @cached_property
    def _apply(self) -> Any:
        """The compiled `apply`."""
        made = self._gradients.out_info
        (gradients, model_state, metrics), state = jax.tree.map(_shape, made), self._state
        return self._quickly(self._moved, state, gradients, model_state, metrics["loss"])


def reference(model: Model, *, optimizer: Any, microbatches: int, hardware: Hardware) -> Reference:
    """A model's step on one device, made once however many layouts are compared with it.

    Args:
        model: with the rows of one update; widened if it is to be judged so.
        optimizer: that of the step on trial.
        microbatches: of the step on trial, which matter only where the model draws in each.
        hardware: what to run on.
    """
    written = replace(as_written(model), notes=())
    parts = microbatches if microbatches > 1 and _draws_or_counts(written) else 1
    key = (
        (written.build, written.loss, dict(written.batch), written.trainable),
        (written.compute_dtype, optimizer, parts, hardware, setting("jax_enable_x64")),
    )
    for at, (known, made) in enumerate(_kept):
        if known == key:
            _kept.append(_kept.pop(at))
            return made
    made = Reference(written, optimizer, parts, hardware)
    _kept.append((key, made))
    del _kept[:-MOST]
    return made


def as_written(model: Model) -> Model:
    """The model with every weight whole, at the same rows and the same precision."""
    if model.written is None:
        return model
    return replace(model.written, batch=model.batch)


def _draws_or_counts(model: Model) -> bool:
    """Whether a loss draws random numbers, or leaves other state than it found."""
    closed, parts = traced(model), module_of(model)
    first = len(parts.parameters)
    before = closed.jaxpr.invars[first : first + len(parts.state)]
    after = closed.jaxpr.outvars[len(closed.jaxpr.outvars) - len(parts.state) :]
    return _draws(model) or list(before) != list(after)


def _draws(model: Model) -> bool:
    """Whether a loss draws random numbers in training."""
    return any(eqn.primitive.name == "random_bits" for eqn, _ in equations(traced(model)))


def _shape(made: Any) -> jax.ShapeDtypeStruct:
    """What a compiled function gives, as a shape."""
    return jax.ShapeDtypeStruct(made.shape, made.dtype)


def _added(totals: dict, more: Mapping) -> dict:
    """The sums of two trees, of which the first may be empty."""
    return jax.tree.map(jnp.add, totals, dict(more)) if totals else dict(more)
