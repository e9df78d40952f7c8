"""Whether a loss is one function: called again, does it compute the same.

numpy's random numbers, the time or a counter in Python give a trace another constant each time. One
device and a layout would then be compared on different functions.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal, jaxprs_in_params

from jaxpar.core.errors import RequestError
from jaxpar.core.jax_compat import open_jaxpr
from jaxpar.core.source_lines import line_of
from jaxpar.inference.traced import loss_of_rows, once
from jaxpar.measures.verify.plain_loss import traced, traced_again
from jaxpar.measures.verify.reference import as_written
from jaxpar.models.record import Model


def check_pure(model: Model) -> None:
    """Refuse a person's model whose loss, called twice, is traced to two functions.

    Raises:
        RequestError: with the first line at which the two differ.
    """
    if not model.units:  # the catalogue's own, or written for jaxpar
        return
    written = as_written(model)
    differs, line = once(
        written,
        ("pure", *loss_of_rows(written)),
        lambda: _difference(traced(written), traced_again(written)),
    )
    if differs:
        at = f" at {line}" if line else ""
        raise RequestError(
            f"model '{model.name}': its loss is another function each time it is called: {differs} "
            f"differs{at}; numpy's random numbers, the time or a counter in Python are read once, "
            "when it is traced: draw with jax.random, or give the value in the batch"
        )


def _difference(one: Any, other: Any) -> tuple[str, str]:
    """(what differs first between two jaxprs, its line of the person's code), or empty texts."""
    (a, a_consts), (b, b_consts) = open_jaxpr(one), open_jaxpr(other)
    constants = dict(zip(a.constvars, zip(a_consts, b_consts, strict=False), strict=False))
    if len(a.eqns) != len(b.eqns) or len(a_consts) != len(b_consts):
        return "the number of its operations", ""
    for left, right in zip(a.eqns, b.eqns, strict=True):
        line = line_of(left.source_info)
        if left.primitive is not right.primitive:
            return "an operation", line
        for key, value in left.params.items():
            if _is_plain(value) and repr(value) != repr(right.params.get(key)):
                return f"the {key} {value} of {left.primitive.name}", line
        for x, y in zip(left.invars, right.invars, strict=True):
            if isinstance(x, Literal) and not (isinstance(y, Literal) and _alike(x.val, y.val)):
                return f"the number {x.val}", line
            if not isinstance(x, Literal) and x in constants and not _alike(*constants[x]):
                return f"a constant of shape {np.shape(constants[x][0])}", line
        pairs = zip(jaxprs_in_params(left.params), jaxprs_in_params(right.params), strict=False)
        for inner in pairs:
            differs, within = _difference(*inner)
            if differs:
                return differs, within or line
    return "", ""


def _is_plain(value: Any) -> bool:
    """Whether a parameter is numbers, words or tuples of them, which are equal or not."""
    return isinstance(value, int | float | str) or (
        isinstance(value, tuple) and all(map(_is_plain, value))
    )


def _alike(x: Any, y: Any) -> bool:
    """Whether two constants hold the same, NaNs too."""
    if isinstance(x, jax.Array) and jax.numpy.issubdtype(x.dtype, jax.dtypes.extended):
        x, y = jax.random.key_data(x), jax.random.key_data(y)
    x, y = np.asarray(x), np.asarray(y)
    return x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()
