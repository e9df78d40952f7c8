"""A training step as a pure function: loss, gradient, update; nothing compiled, no device touched.

How the loss becomes gradients is up to a mode; all modes compute the same numbers from the same
traced loss.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpar.core.catalogue import MODES
from jaxpar.core.errors import LayoutError, expect
from jaxpar.core.kinds import whole
from jaxpar.inference.traced import module_of
from jaxpar.layout.record import Layout
from jaxpar.models.modules import build, take_apart, values_of
from jaxpar.step.accumulate import accumulated
from jaxpar.step.averaging import averaged
from jaxpar.step.constraints import sharded_as
from jaxpar.step.loss_scale import check_scale, means_of
from jaxpar.step.modes.auto import evaluation
from jaxpar.step.modes.record import Asked
from jaxpar.step.optimization import Optimization
from jaxpar.step.record import State, Step
from jaxpar.step.restacked import restacked
from jaxpar.step.state_specs import state_specs
from jaxpar.step.updated import transformation

USUAL = optax.adamw(1e-3)
"""The optimizer of a step that is given none."""


def make_step(
    layout: Layout,
    *,
    optimizer: optax.GradientTransformation | None = None,
    mode: str = "auto",
    microbatches: int = 1,
    loss_scale: float = 0,
) -> Step:
    """Make the training step of `layout`.

    Args:
        layout: from `lay_out`.
        optimizer: any optax transformation; `USUAL` when None.
        mode: "auto", "explicit" or "manual"; layers in stages are differentiated by "pipeline".
        microbatches: into how many parts the batch is split; their gradients are summed (gradient
            accumulation), weighted as the whole batch would be.
        loss_scale: a power of two to differentiate the loss times that, for compute in float16;
            the gradients are those of the loss itself. 0 is none.

    Raises:
        RequestError: an unknown mode, a scale that is no power of two, or an optimizer that a step
            cannot use. LayoutError:
            microbatches that do not divide the batch, or a layout that the mode cannot do.
    """
    expect("make_step's layout", layout, Layout, "jaxpar.lay_out(model, ...) makes one")
    optimizer, kind = transformation(optimizer), optax.GradientTransformation | None
    expect("the optimizer", optimizer, kind, "give what optax makes, such as optax.adamw(1e-3)")
    whole("microbatches", microbatches, least=1)
    expect("loss_scale", loss_scale, int | float, "give 0 for none, or a power of two")
    make = partial(
        _make_plain,
        optimizer=USUAL if optimizer is None else optimizer,
        mode=mode,
        microbatches=microbatches,
        factor=check_scale(loss_scale),
    )
    return averaged(layout, make) if layout.strategy.averaging else make(layout)


def _make_plain(layout: Layout, *, optimizer, mode, microbatches, factor) -> Step:
    """The step of one network, whatever the strategy says of averaging."""
    differentiate = MODES.load(mode)
    check_microbatches(layout, microbatches)
    asked, optimization = Asked(layout, microbatches, factor), Optimization(optimizer, layout)
    differentiated = differentiate(asked)

    def first(drawn, model_state, key) -> State:
        parameters = {path: restacked(layout, path, value) for path, value in drawn.items()}
        optimizer_state = optimization.init(parameters)
        return State(jnp.zeros((), jnp.int32), parameters, model_state, optimizer_state, key)

    def init(key) -> State:
        init_key, step_key = jax.random.split(key)
        parts = take_apart(build(layout.model, init_key), layout.model.trainable)
        return first(values_of(parts.parameters), values_of(parts.state), step_key)

    def means(lands: str, state: State, batch):
        key = jax.random.fold_in(state.key, state.step)
        gradients = partial(differentiated.gradients, lands)
        if microbatches > 1 and not differentiated.takes_all:
            gradients = partial(accumulated, gradients, microbatches)
        totals, new, metrics = gradients(state.parameters, state.model_state, batch, key)
        mean = means_of(totals, metrics["loss"].divisor, factor)
        return mean, new, {name: m.value for name, m in metrics.items()}

    def apply(state: State, gradients, model_state, loss) -> State:
        # Each device updates the shards whose optimizer state it holds; weights are then gathered.
        shards, gradients = (
            sharded_as(layout, "optimizer_state", t) for t in (state.parameters, gradients)
        )
        updates, optimizer_state = optimization.update(gradients, state.optimizer, shards, loss)
        parameters = sharded_as(layout, "optimizer_state", _added(shards, updates))
        parameters = sharded_as(layout, "stored", parameters)
        return State(state.step + 1, parameters, model_state, optimizer_state, state.key)

    # A sum that need not be kept goes at once to where the optimizer state is. What a mode sums
    # once a microbatch adds up as the layout keeps gradients.
    accumulates_sums = microbatches > 1 and not differentiated.takes_all
    lands = "gradient" if accumulates_sums else "optimizer_state"

    def probe(state: State, batch):
        gradients, model_state, metrics = means(lands, state, batch)
        new = apply(state, gradients, model_state, metrics["loss"])
        skipped = optax.tree_utils.tree_get(new.optimizer, "total_notfinite")
        return new, metrics if skipped is None else {**metrics, "skipped": skipped}, gradients

    evaluate = differentiated.evaluate or evaluation(layout)
    # The module is not built for each step: that takes longer than all the rest here.
    parts, key = module_of(layout.model), jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(first, values_of(parts.parameters), values_of(parts.state), key)
    optimization.check(state.parameters, state.optimizer)
    return Step(
        layout=layout,
        optimizer=optimizer,
        mode=mode,
        microbatches=microbatches,
        init=init,
        probe=probe,
        gradients=partial(means, "gradient"),
        apply=apply,
        evaluate=lambda state, batch: evaluate(state.parameters, state.model_state, batch),
        state=state,
        state_specs=state_specs(layout, state),
        gradient_specs={path: a.gradient for path, a in layout.parameters.items()},
        probe_specs={path: getattr(a, lands) for path, a in layout.parameters.items()},
        batch={n: jax.ShapeDtypeStruct(f.shape, f.dtype) for n, f in layout.model.batch.items()},
        asked=asked,
        differentiated=differentiated,
    )


def _added(parameters: Any, updates: Any) -> Any:
    """Parameters moved by an optimizer's updates; optax's own types know of no flat dict."""
    return optax.apply_updates(parameters, updates)


def check_microbatches(layout: Layout, microbatches: int) -> None:
    """Refuse a number of microbatches that the rows do not divide into."""
    rows, shares = layout.model.batch_size, layout.row_shares
    if rows % (microbatches * shares):
        step = microbatches * shares
        near = [n for n in (rows // step * step, (rows // step + 1) * step) if n]
        each = f" for {shares} shares on devices" if shares > 1 else ""
        raise LayoutError(
            f"a batch of {rows} rows cannot be split into {microbatches} microbatches{each}: "
            f"{step} does not divide {rows}; use a batch of {' or '.join(map(str, near))}"
        )
