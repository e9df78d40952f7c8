"""The Step and State records: a training step as pure functions, and what it carries."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec

from jaxpar.layout.record import Layout


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What a step carries: every field is an array or a tree of arrays.

    Attributes:
        step: updates done, an int32 scalar.
        parameters: path -> array.
        model_state: path -> array, changed by the forward pass (BatchNorm statistics).
        optimizer: optax's own state, moments and counts.
        key: the random key that every step's dropout key is folded from.
        outer: where copies that train apart last met and their momentum; else empty.
    """

    step: Any
    parameters: dict[str, Any]
    model_state: dict[str, Any]
    optimizer: Any
    key: Any
    outer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A layout's training step, as pure functions of abstract or real arrays.

    Attributes:
        layout, optimizer, mode, microbatches: what it was made from.
        init: key -> State.
        update: (State, batch) -> (State, metrics), metrics being scalars by name, or one a copy
            where copies train apart; `skipped` counts the updates so far that an
            `optax.apply_if_finite` left out.
        gradients: (State, batch) -> (gradients by path, new model_state, metrics).
        apply: (State, gradients, model_state) -> State.
        evaluate: (State, batch) -> {name: Mean} without dropout or running statistics' change.
        state: abstract State, of jax.ShapeDtypeStruct.
        state_specs: State of PartitionSpec, how each array lies between steps.
        gradient_specs: path -> PartitionSpec, how summed gradients lie.
        batch: field name -> jax.ShapeDtypeStruct.
        average: State -> State, bringing together copies that train apart; else None.
    """

    layout: Layout
    optimizer: optax.GradientTransformation
    mode: str
    microbatches: int
    init: Callable
    update: Callable
    gradients: Callable
    apply: Callable
    evaluate: Callable
    state: State
    state_specs: State
    gradient_specs: dict[str, PartitionSpec]
    batch: dict[str, jax.ShapeDtypeStruct]
    average: Callable | None = None
