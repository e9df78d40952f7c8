"""How the tests of manual mode compare with one device: float64, every gradient leaf, by shard_map."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxpar.manual import trace

# Measured worst over all tests below: 3e-15 relative to the leaf's largest gradient.
BOUND = 1e-12

QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

DATA = {"data": 8}
TENSOR = {"model": 2}
BOTH = {"data": 4, "model": 2}


def normal(seed, *shape, scale=0.5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale)


def run_manual(fn, args, *, specs, sizes, use_specs=None, text=False):
    """Loss and gradient of the first argument, by way of shard_map; and the plan."""
    plan = trace(fn, args, specs=specs, axis_sizes=sizes, use_specs=use_specs)
    mesh = jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )
    step = jax.jit(
        jax.shard_map(
            lambda *local: jax.value_and_grad(plan)(*local),
            mesh=mesh,
            in_specs=plan.in_specs,
            out_specs=(plan.out_specs, plan.in_specs[0]),
        )
    )
    compiled = step.lower(*args).compile(compiler_options=QUICKLY)
    assert plan.out_specs == P()
    return (*compiled(*args), plan, compiled.as_text() if text else None)


def one_device(fn, args):
    step = jax.jit(jax.value_and_grad(fn)).lower(*args)
    return step.compile(compiler_options=QUICKLY)(*args)


def assert_equals_one_device(fn, args, *, bound=BOUND, **how):
    loss, grads, plan, text = run_manual(fn, args, **how)
    expected, expected_grads = one_device(fn, args)
    assert abs(loss - expected) <= bound * abs(expected)
    paths = jax.tree_util.tree_leaves_with_path(grads)
    assert len(paths) > 0
    for (path, got), want in zip(paths, jax.tree.leaves(expected_grads), strict=True):
        scale = float(jnp.abs(want).max())
        assert scale > 1e-6, f"{path}: a gradient of zero tests nothing"
        worst = float(jnp.abs(got - want).max())
        assert worst <= bound * scale, f"{jax.tree_util.keystr(path)}: off by {worst / scale:.1e}"
    return plan, text
