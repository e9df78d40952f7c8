"""What the interpreter makes again around the jaxprs that an equation holds."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxpar.jaxprs.interpreter import Interpreter


def test_a_rematerialized_part_hands_its_operands_on_outside():
    """A weight that a part returns as it was given is not among what the part computes."""

    @jax.checkpoint
    def part(weight, x):
        return weight, jnp.sin(x @ weight), 2.0

    weight, x = jnp.eye(3) * 2, jnp.ones((4, 3))
    traced = jax.make_jaxpr(part)(weight, x)
    again = jax.make_jaxpr(lambda *args: Interpreter().run(traced.jaxpr, traced.consts, args))
    (remat,) = [eqn for eqn in again(weight, x).eqns if "remat" in eqn.primitive.name]
    held = remat.params["jaxpr"]
    results = [v for v in held.outvars if not isinstance(v, Literal)]
    assert results and not set(results) & set(held.invars)
    for ours, theirs in zip(
        Interpreter().run(traced.jaxpr, traced.consts, (weight, x)), part(weight, x), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
