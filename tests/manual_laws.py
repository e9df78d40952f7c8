"""How the tests of manual mode compare with one device: in float64, every gradient leaf."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxpar.program.quick import QUICK
from jaxpar.spmd import trace

# Measured worst over all float64 tests: 3e-15 relative to the leaf's largest gradient.
BOUND = 1e-12

DATA = {"data": 8}
TENSOR = {"model": 2}
BOTH = {"data": 4, "model": 2}


def normal(seed, *shape, scale=0.5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale)


def manual_step(fn, args, *, specs, sizes, use_specs=None):
    """Loss and gradient of the first argument on whole arrays, by way of shard_map; and the plan.

    No collective of ours follows the gradient: with shard_map's type check on it is complete.
    """
    plan = trace(fn, args, specs=specs, axis_sizes=sizes, use_specs=use_specs)
    mesh = jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )
    assert plan.out_specs == P()
    step = jax.shard_map(
        lambda *local: jax.value_and_grad(plan)(*local),
        mesh=mesh,
        in_specs=plan.in_specs,
        out_specs=(plan.out_specs, plan.in_specs[0]),
    )
    return step, plan


def compiled(step, args):
    return jax.jit(step).lower(*args).compile(compiler_options=QUICK)(*args)


def assert_equals_one_device(fn, args, *, bound=BOUND, **how):
    """Loss and every gradient leaf, as distance over the leaf's largest gradient."""
    step, plan = manual_step(fn, args, **how)
    loss, grads = compiled(step, args)
    expected, expected_grads = compiled(jax.value_and_grad(fn), args)
    assert abs(float(loss) - float(expected)) <= bound * abs(float(expected))
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(grads))
    assert len(leaves) > 0
    expected_leaves = jax.tree.leaves(jax.device_get(expected_grads))
    for (path, got), want in zip(leaves, expected_leaves, strict=True):
        name, scale = jax.tree_util.keystr(path), float(np.abs(want).max())
        assert scale > 1e-6, f"{name}: a gradient of zero tests nothing"
        worst = float(np.abs(got - want).max())
        assert worst <= bound * scale, f"{name}: off by {worst / scale:.1e}"
    return plan


def count_collectives(step, args):
    """Collectives by (where, kind, axes), read from the jaxpr; and the shapes loops hand on."""
    counts, stacked = Counter(), []

    def visit(jaxpr, where):
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name.removesuffix("_invariant")
            if name in ("psum", "pmax", "all_gather", "reduce_scatter"):
                axes = eqn.params.get("axes") or eqn.params.get("axis_name")
                counts[where, name, axes if isinstance(axes, tuple) else (axes,)] += 1
            inner = where
            if name == "scan":
                inner = "backward loop" if eqn.params["reverse"] else "forward loop"
                stacked.extend(v.aval.shape for v in eqn.outvars)
            for value in jax.tree.leaves(tuple(eqn.params.values())):
                value = getattr(value, "jaxpr", value)
                if hasattr(value, "eqns"):
                    visit(value, inner)

    visit(jax.make_jaxpr(step)(*args).jaxpr, "outside")
    return counts, stacked
