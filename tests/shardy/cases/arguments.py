"""What the arguments of cases are, and what else several files of them use."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, np.int32)


def bools(*shape):
    return jax.ShapeDtypeStruct(shape, np.bool_)


def complexes(*shape):
    return jax.ShapeDtypeStruct(shape, np.complex64)


def arguments_of(case):
    """The abstract arguments of a case."""
    _, *arguments = case
    return [jax.ShapeDtypeStruct(a, np.float32) if isinstance(a, tuple) else a for a in arguments]


def gradients(case):
    function, *arguments = case

    def loss(*xs):
        return sum(jnp.sin(y).sum() for y in jax.tree.leaves(function(*xs)))

    return (jax.grad(loss, range(len(arguments))), *arguments)
