"""The Step and State records: a training step as pure functions, and what it carries."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import optax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import PartitionSpec

from jaxpar.core.errors import one_line
from jaxpar.core.jax_compat import setting
from jaxpar.layout.record import Layout
from jaxpar.step.modes.record import Asked, Differentiated, Island
from jaxpar.step.placement import Unmet


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What a step carries: every field is an array or a tree of arrays.

    Attributes:
        step: updates done, an int32 scalar.
        parameters: path -> array.
        model_state: path -> array, changed by the forward pass (BatchNorm statistics).
        optimizer: optax's own state.
        key: the random key that every step's dropout key is folded from.
        outer: of replicas of local SGD, the parameters at their last synchronisation and the outer
            momentum; else empty.
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
        probe: (State, batch) -> (State, metrics, gradients by path): the update, and the gradients
            that it was made from. Metrics are scalars by name, or one for each replica of local
            SGD; `skipped` counts the updates so far that an `optax.apply_if_finite` left out.
        gradients: (State, batch) -> (gradients by path, new model_state, metrics).
        apply: (State, gradients, model_state, loss) -> State; the loss is for optimizers that ask.
        evaluate: (State, batch) -> {name: Mean} without dropout or running statistics' change.
        state: abstract State, of jax.ShapeDtypeStruct.
        state_specs: State of PartitionSpec, how each array is sharded between steps.
        gradient_specs: path -> PartitionSpec, how summed gradients are sharded.
        probe_specs: the same of the gradients in `probe`.
        batch: field name -> jax.ShapeDtypeStruct.
        asked: the loss that is differentiated, traced when it is first asked for.
        differentiated: what the mode made of it.
        average: State -> State, synchronising replicas of local SGD; else None.
        is_wide: whether it was made where JAX has 64 bits, and is traced so whenever that is.
    """

    layout: Layout
    optimizer: optax.GradientTransformation
    mode: str
    microbatches: int
    init: Callable
    probe: Callable
    gradients: Callable
    apply: Callable
    evaluate: Callable
    state: State
    state_specs: State
    gradient_specs: dict[str, PartitionSpec]
    probe_specs: dict[str, PartitionSpec]
    batch: dict[str, jax.ShapeDtypeStruct]
    asked: Asked
    differentiated: Differentiated
    average: Callable | None = None
    is_wide: bool = field(default_factory=partial(setting, "jax_enable_x64"))

    def __repr__(self) -> str:
        parts = f"{self.microbatches} microbatch{'' if self.microbatches == 1 else 'es'}"
        return one_line(f"<Step {self.layout.title}: mode {self.mode}, {parts}>")

    def _repr_html_(self) -> str:
        return self.layout._repr_html_()

    def update(self, state: State, batch: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        """The state after an update, and the metrics."""
        return self.probe(state, batch)[:2]

    @cached_property
    def traced(self) -> TracedUpdate:
        """The update as a jaxpr, made once: what is compiled, whatever for."""
        started = time.perf_counter()
        with jax.enable_x64(self.is_wide):
            closed, shapes = jax.make_jaxpr(self.update, return_shape=True)(self.state, self.batch)
        seconds = time.perf_counter() - started
        # On one device nothing is constrained.
        placed = self.layout.mesh.devices > 1
        return TracedUpdate(
            closed=closed,
            tree=jax.tree.structure(shapes),
            unmet=self.asked.placement.unmet if placed else (),
            islands=tuple(dict.fromkeys(self.differentiated.islands)),
            seconds=seconds,
        )


@dataclass(frozen=True)
class TracedUpdate:
    """An update as a jaxpr, and what was learned while it was made.

    Attributes:
        closed: from the leaves of (State, batch) to the leaves of (State, metrics).
        tree: of the results.
        unmet: sharding constraints that cannot hold.
        islands: operations that explicit mode left to XLA.
        seconds: wall clock that tracing took.
    """

    closed: ClosedJaxpr
    tree: Any
    unmet: tuple[Unmet, ...]
    islands: tuple[Island, ...]
    seconds: float

    def __call__(self, state: State, batch: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        """(new state, metrics) of one update."""
        results = jaxpr_as_fun(self.closed)(*jax.tree.leaves((state, batch)))
        return jax.tree.unflatten(self.tree, results)
