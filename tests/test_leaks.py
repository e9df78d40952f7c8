"""No tracer outlives its trace while a step is made, differentiated and traced."""

import jax
import pytest
from small import small_layout

from jaxpar.step.make_step import make_step


def test_a_step_leaks_no_tracer(leaks_checked):
    """The slow check is made of the perceptron alone, in the mode that keeps no custom derivative.

    A jaxpr that holds one, as manual mode's does, keeps tracers by JAX's own hand, in a thunk.
    """
    layout = small_layout("mlp", "hybrid", "data=2,model=2", hidden=1)
    assert make_step(layout).traced.closed.jaxpr.eqns


def test_a_leak_is_found(leaks_checked):
    """The fixture can fail a test."""
    kept = []
    with pytest.raises(Exception, match="Leaked trace"):
        jax.make_jaxpr(lambda x: kept.append(x) or x)(1.0)
