"""The precision in which a model and an optimizer compute, and so in which they can be judged."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxpar.inference.probe import WIDE
from jaxpar.inference.traced import module_of
from jaxpar.measures.verify.plain_loss import traced
from jaxpar.models.record import Model
from jaxpar.step.record import Step


def narrowest(model: Model) -> str:
    """The narrowest float dtype in which the model's forward pass makes anything of its weights."""
    jaxpr = traced(model).jaxpr
    learned = len(module_of(model).parameters)
    moved = [k < learned for k in range(len(jaxpr.invars))]
    found = {np.dtype(WIDE)} | set(_float_dtypes(jaxpr, moved))
    return min(found, key=lambda dtype: jnp.finfo(dtype).bits).name


def update_rounding(step: Step) -> float:
    """The relative rounding of the narrowest floats that an update computes with; 0.0 in WIDE.

    A schedule is a float32 of a count in most optimizers, whatever the weights are.
    """
    state = step.state
    metrics = jax.eval_shape(step.update, state, step.batch)[1]
    gradients, loss = state.parameters, metrics["loss"]
    closed = jax.make_jaxpr(step.apply)(state, gradients, state.model_state, loss)
    flags = [True] * len(closed.jaxpr.invars)
    most = max(float(jnp.finfo(d).eps) for d in (WIDE, *_float_dtypes(closed.jaxpr, flags)))
    return most if most > float(jnp.finfo(WIDE).eps) else 0.0


def _float_dtypes(jaxpr, moved: list[bool]):
    """Dtypes of the floats that are made of what `moved` flags, in inner jaxprs too.

    A mask is exact in any dtype; only what depends on a value that training moves is rounded.
    """
    depends = {var for var, flag in zip(jaxpr.invars, moved, strict=True) if flag}
    for equation in jaxpr.eqns:
        flags = [not isinstance(a, Literal) and a in depends for a in equation.invars]
        if not any(flags):
            continue
        # A comparison is right or wrong, not rounded, and so is all that is made of it.
        depends.update(v for v in equation.outvars if _is_float(v))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            inner = getattr(inner, "jaxpr", inner)
            alike = len(inner.invars) == len(flags) and equation.primitive.name != "scan"
            yield from _float_dtypes(inner, flags if alike else [True] * len(inner.invars))
        yield from (np.dtype(v.aval.dtype) for v in equation.outvars if _is_float(v))


def _is_float(var) -> bool:
    """Whether a jaxpr's variable holds floats."""
    return hasattr(var.aval, "dtype") and jnp.issubdtype(var.aval.dtype, jnp.floating)
