"""A person's own code, called: what it raises becomes one sentence with the line that raised it."""

import re
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxpr_as_fun

from jaxpar.core.errors import OwnCodeError, RequestError, words_of
from jaxpar.core.source_lines import line_of, line_of_error
from jaxpar.inference.traced import TracedLoss
from jaxpar.jaxprs.equations import equations
from jaxpar.jaxprs.rules import is_known

_MAPPED = re.compile(r"unbound axis name: (\w+)", re.I)
_NO_MESH = re.compile(
    r"non-empty mesh in context|not under a mesh context|context mesh cannot be empty|"
    r"set_mesh` can only be used outside|not found in mesh|axis names that are of type Auto"
)
"""What JAX says of a sharding that it cannot place on any mesh."""


def trying(called: str, doing: str, function: Callable[[], Any]) -> Any:
    """Call `function`; a RequestError passes, anything else is made an OwnCodeError.

    Args:
        called: the model's name.
        doing: what is being done, as the subject of "raised".
        function: a person's code.
    """
    try:
        return function()
    except (RequestError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever it is, exit() too
        raise OwnCodeError(f"model '{called}': {doing} raised {told(error)}") from error


def told(error: BaseException) -> str:
    """An exception in words: its type, the line of a person's code that raised it, what it says.

    Where JAX's own advice is of no use here, what to do instead.
    """
    at = f" ({line})" if (line := line_of_error(error)) else ""
    words = words_of(error)
    return f"{type(error).__name__}{at}: {_repair(words) or words}"


def _repair(said: str) -> str:
    """What to do about an error of JAX whose own advice is of no use here; "" for any other."""
    if mapped := _MAPPED.search(said):
        return (
            f"it names the mapped axis '{mapped[1]}', as code for jax.pmap does; here a loss is of "
            "the whole batch, whose sums and statistics jaxpar takes over all devices: leave out "
            "axis_name=, or the pmean or psum over it"
        )
    if _NO_MESH.search(said):
        return (
            "it places an array by the axes of a mesh that is not there: leave out the sharding "
            "constraint, out_sharding= or shard_map, since the layout says how arrays are sharded"
        )
    return ""


def check_placed(called: str, traced: TracedLoss) -> None:
    """Refuse a loss that computes over a mesh of its own, which no layout's devices are.

    Args:
        called: the model's name.
        traced: its loss.
    """
    for eqn, _ in equations(traced.closed):
        if eqn.primitive.name == "shard_map":
            axes = ", ".join(f"{name}={size}" for name, size in eqn.params["mesh"].shape.items())
            at = f" ({line})" if (line := line_of(eqn.source_info)) else ""
            raise RequestError(
                f"model '{called}': its loss uses shard_map{at} over a mesh of its own ({axes}), "
                "and the mesh is the layout's: leave out shard_map and its collectives, since the "
                "layout says how arrays are sharded"
            )


_ONE_WAY = ("while", "io_callback", "pure_callback")
"""Primitives that JAX may refuse to differentiate."""


def check_differentiable(called: str, traced: TracedLoss) -> None:
    """Refuse a loss that JAX cannot differentiate, with the lines that may be why.

    Args:
        called: the model's name.
        traced: its loss; only one that holds a primitive that may have no gradient is tried.
    """
    found = [
        (eqn.primitive.name, line_of(eqn.source_info))
        for eqn, _ in equations(traced.closed)
        if eqn.primitive.name in _ONE_WAY or not is_known(eqn.primitive.name)
    ]
    if not found:
        return
    flat = list(traced.arguments.values())
    learned = [k for k, path in enumerate(traced.arguments) if path in traced.weights]
    evaluate = jaxpr_as_fun(traced.closed)

    def loss(weights):
        args = list(flat)
        for k, value in zip(learned, weights, strict=True):
            args[k] = value
        return evaluate(*args)[0]

    def gradient(weights, others):
        flat[:] = others
        return jax.grad(loss, allow_int=True)(weights)

    try:
        jax.eval_shape(gradient, [flat[k] for k in learned], list(flat))
    except Exception as error:
        first = words_of(error)
        lines = "; ".join(dict.fromkeys(f"{name} {line}".strip() for name, line in found))
        repair = (
            "write the loop with a fixed number of turns (lax.scan, or lax.fori_loop with numbers "
            "for its ends)"
            if any(name == "while" for name, _ in found)
            else "give it what jax.lax.stop_gradient makes, or a derivative (jax.custom_vjp)"
        )
        raise RequestError(
            f"model '{called}': its loss has no gradient ({lines}): {first.rstrip('.')}; {repair}"
        ) from error
