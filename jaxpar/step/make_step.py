"""A training step as a pure function: loss, gradient, update; nothing compiled, no device touched.

`auto` leaves the collectives to XLA's partitioner, which is told where every array lies; `explicit`
lets JAX check where, as a part of types; `manual` writes the collectives out under shard_map. All
compute the same numbers from the same model.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from jaxpar.core.errors import LayoutError, RequestError, unknown
from jaxpar.layout.record import Layout
from jaxpar.layout.stages import runs_in_stages, schedule_for
from jaxpar.models.modules import build, take_apart, values_of
from jaxpar.step.accumulate import _accumulate
from jaxpar.step.averaging import averaged
from jaxpar.step.constraints import landing_as, lying_as
from jaxpar.step.loss_scale import check_scale, means_of
from jaxpar.step.losses import named_loss, placed_loss, staged_loss, typed_loss
from jaxpar.step.modes.explicit import differentiate_explicitly
from jaxpar.step.modes.manual import differentiate_by_hand
from jaxpar.step.pipeline import evaluate_in_stages, staged
from jaxpar.step.record import State, Step

MODES = ("auto", "explicit", "manual")


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
        mode: "auto", "explicit" or "manual".
        microbatches: into how many parts the batch is cut; their gradients are summed (gradient
            accumulation), weighted as the whole batch would be.
        loss_scale: a power of two to differentiate the loss times that, for compute in float16;
            the gradients are those of the loss itself. 0 is none.

    Raises:
        RequestError: an unknown mode, or a scale that is no power of two. LayoutError:
            microbatches that do not divide the batch.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if mode == "explicit":
        _check_typable(layout)
    optimizer = USUAL if optimizer is None else optimizer
    make = partial(
        _make_plain,
        optimizer=optimizer,
        mode=mode,
        microbatches=microbatches,
        factor=check_scale(loss_scale),
    )
    return averaged(layout, make) if layout.strategy.averaging else make(layout)


def _check_typable(layout: Layout) -> None:
    """Refuse in explicit mode what maps devices by hand."""
    strategy = layout.strategy
    by_hand = {
        "exchanges pieces of the sequence in attention": layout.exchange is not None,
        "runs layers in stages": runs_in_stages(strategy, layout.mesh),
        "trains copies apart": strategy.averaging is not None,
    }
    for what, is_so in by_hand.items():
        if is_so:
            raise LayoutError(
                f"strategy '{strategy.name}' {what}, which is a shard_map of its own, and explicit "
                "mode types whole arrays: use --mode auto or --mode manual"
            )


def _make_plain(layout: Layout, *, optimizer, mode, microbatches, factor) -> Step:
    """The step of one network, whatever the strategy says of averaging."""
    _check_microbatches(layout, microbatches)
    batch = {name: jax.ShapeDtypeStruct(f.shape, f.dtype) for name, f in layout.model.batch.items()}

    def init(key) -> State:
        init_key, step_key = jax.random.split(key)
        parts = take_apart(build(layout.model, init_key), layout.model.trainable)
        parameters = {p: _in_order(layout, p, v) for p, v in values_of(parts.parameters).items()}
        return State(
            step=jnp.zeros((), jnp.int32),
            parameters=parameters,
            model_state=values_of(parts.state),
            optimizer=optimizer.init(parameters),
            key=step_key,
        )

    state = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    schedule = None
    if runs_in_stages(layout.strategy, layout.mesh):
        schedule = schedule_for(layout.strategy, layout.mesh, microbatches)
        differentiate = staged(layout, partial(staged_loss, layout), schedule, factor)
    elif mode == "auto":
        differentiate = partial(_differentiate, layout, partial(placed_loss, layout), factor)
    elif mode == "explicit":
        differentiate = differentiate_explicitly(layout, partial(typed_loss, layout), factor)
    else:
        differentiate = differentiate_by_hand(layout, partial(named_loss, layout), factor)

    def means(lands: str, state: State, batch):
        key = jax.random.fold_in(state.key, state.step)
        if microbatches == 1 or schedule is not None:
            arguments = (state.parameters, state.model_state, batch, key)
            totals, new, metrics = differentiate(lands, *arguments)
        else:
            one = partial(differentiate, lands)
            totals, new, metrics = _accumulate(one, microbatches, state, batch, key)
        mean = means_of(totals, metrics["loss"].weight, factor)
        return mean, new, {name: m.value for name, m in metrics.items()}

    def apply(state: State, gradients, model_state) -> State:
        # Each device updates the pieces whose moments it holds; whole weights are then gathered.
        pieces, gradients = (lying_as(layout, "moment", t) for t in (state.parameters, gradients))
        updates, moments = optimizer.update(gradients, state.optimizer, pieces)
        parameters = lying_as(layout, "moment", optax.apply_updates(pieces, updates))
        parameters = lying_as(layout, "stored", parameters)
        return State(state.step + 1, parameters, model_state, moments, state.key)

    def update(state: State, batch):
        # A sum that need not be kept goes at once to where the moments are. Microbatches add up as
        # the layout keeps gradients.
        lands = "moment" if microbatches == 1 else "gradient"
        gradients, model_state, metrics = means(lands, state, batch)
        new = apply(state, gradients, model_state)
        skipped = optax.tree_utils.tree_get(new.optimizer, "total_notfinite")
        return new, metrics if skipped is None else {**metrics, "skipped": skipped}

    def evaluate(state: State, batch):
        if schedule is not None:
            score = partial(staged_loss, layout, train=False)
            return evaluate_in_stages(layout, score, schedule)(state.parameters, batch)
        loss, metrics, _ = placed_loss(
            layout, state.parameters, state.model_state, batch, None, train=False
        )
        return {"loss": loss, **metrics}

    return Step(
        layout=layout,
        optimizer=optimizer,
        mode=mode,
        microbatches=microbatches,
        init=init,
        update=update,
        gradients=partial(means, "gradient"),
        apply=apply,
        evaluate=evaluate,
        state=state,
        state_specs=_state_specs(layout, state),
        gradient_specs={path: a.gradient for path, a in layout.parameters.items()},
        batch=batch,
    )


def _check_microbatches(layout: Layout, microbatches: int) -> None:
    if microbatches < 1:
        raise RequestError(f"microbatches={microbatches}: a batch is cut into at least 1 part")
    rows, shares = layout.model.batch_size, layout.row_shares
    if rows % (microbatches * shares):
        step = microbatches * shares
        near = [n for n in (rows // step * step, (rows // step + 1) * step) if n]
        each = f" for {shares} shares on devices" if shares > 1 else ""
        raise LayoutError(
            f"a batch of {rows} rows cannot be cut into {microbatches} microbatches{each}: {step} "
            f"does not divide {rows}; use a batch of {' or '.join(map(str, near))}"
        )


def _state_specs(layout: Layout, state: State) -> State:
    arrays = layout.parameters

    def moment_specs(node):
        if not _mirrors(node, arrays):
            return PartitionSpec()
        # A moment of the parameter's own shape is cut as the layout says; a factored one is whole.
        return {
            path: jax.tree.map(
                lambda m, a=arrays[path]: a.moment if m.shape == a.shape else PartitionSpec(),
                moment,
            )
            for path, moment in node.items()
        }

    return State(
        step=PartitionSpec(),
        parameters={path: a.stored for path, a in arrays.items()},
        model_state={path: a.stored for path, a in layout.state.items()},
        optimizer=jax.tree.map(
            moment_specs, state.optimizer, is_leaf=lambda node: _mirrors(node, arrays)
        ),
        key=PartitionSpec(),
    )


def _mirrors(node, parameters) -> bool:
    """Whether a piece of optimizer state holds one entry a parameter."""
    return isinstance(node, dict) and node.keys() == parameters.keys()


def _differentiate(layout, loss_of, factor, lands, parameters, model_state, batch, key):
    """Gradients of the loss's total x factor, the new model state, and the metrics as Means."""

    def total(parameters):
        loss, metrics, new = loss_of(parameters, model_state, batch, key)
        return loss.total * factor, ({"loss": loss, **metrics}, new)

    totals, (metrics, new) = jax.grad(total, has_aux=True)(parameters)
    return landing_as(layout, lands, totals), new, metrics


def _in_order(layout, path, value):
    """A stack of layers in the order in which the layout stores them."""
    order = layout.order_of(path)
    return value if order is None else jnp.take(value, jnp.asarray(order), axis=0)
