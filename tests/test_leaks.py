"""No tracer outlives its trace while a step is made, differentiated and traced."""

import subprocess
import sys
from pathlib import Path

CHECKED = """
import jax
from small import small_layout
from jaxpar.step.make_step import make_step

with jax.checking_leaks():
    kept = []
    try:
        jax.make_jaxpr(lambda x: kept.append(x) or x)(1.0)
    except Exception as error:
        print(error)
    kept.clear()
    layout = small_layout("mlp", "hybrid", "data=2,model=2", hidden=1)
    print(len(make_step(layout).traced.closed.jaxpr.eqns), "equations")
"""


def test_a_step_leaks_no_tracer_and_one_that_did_would_be_found():
    """The slow check is made of the perceptron alone, in the mode that keeps no custom derivative.

    A jaxpr that holds one, as manual mode's does, keeps tracers by JAX's own hand, in a thunk. In a
    process of its own: what JAX looks through is all that Python holds.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHECKED],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, *_, last = done.stdout.splitlines()
    assert "Leaked trace" in first
    assert int(last.removesuffix(" equations")) > 0
