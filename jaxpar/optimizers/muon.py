"""Muon: the momentum of each matrix orthogonalised, and Adam for all else (Jordan et al. 2024).

It needs whole matrices: a sharded one is gathered for it, every step.
"""

from typing import Any

import jax
from optax import contrib

from jaxpar.optimizers.record import Dims, Optimizer, Recipe, check_fraction, decayed_and_scaled


def optimizer(
    recipe: Recipe, dims: Dims, *, beta: float = 0.95, nesterov: bool = True
) -> Optimizer:
    """Return Muon; embeddings and what has no two dims in a layer are left to Adam.

    Args:
        recipe: rate and weight decay.
        dims: of every parameter.
        beta: decay rate of the momentum.
        nesterov: whether the gradient counts a step ahead.
    """
    check_fraction(beta=beta)
    rule = contrib.muon(
        1.0,
        beta=beta,
        nesterov=nesterov,
        muon_weight_dimension_numbers=jax.tree.map(
            as_matrix, dims, is_leaf=lambda node: isinstance(node, tuple)
        ),
    )
    return decayed_and_scaled(rule, recipe, dims)


def as_matrix(dims: tuple[str, ...]) -> Any:
    """Which dims of a weight are a matrix's inputs and which its outputs; None for no matrix.

    Layers and experts are stacks of matrices. A weight of several dims that starts from the
    residual width has it as inputs, any other has its last dim as outputs.

    >>> as_matrix(("layers", "embed", "kv_heads", "head_dim"))
    MuonDimensionNumbers(reduction_axis=(1,), output_axis=(2, 3))
    >>> as_matrix(("vocab", "embed"))
    """
    own = [k for k, dim in enumerate(dims) if dim not in ("layers", "experts")]
    if len(own) < 2 or "vocab" in dims:
        return None
    inputs = 1 if dims[own[0]] == "embed" else len(own) - 1
    return contrib.MuonDimensionNumbers(tuple(own[:inputs]), tuple(own[inputs:]))
