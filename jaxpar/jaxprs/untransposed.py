"""Products computed in the order that needs no transpose, of their operands or of their result.

JAX's gradient of `x @ w` by `w`, (in, out), is `transpose(dot_general(g, x))`: the cotangent `g`,
(rows, out), comes first, and the result, (out, in), is turned around. `dot_general(x, g)` is the
same sum and (in, out) at once. XLA takes the first as it is said. XLA:CPU then copies `g` with its
rows last, and computes in that copy all the elementwise operations that made `g`: behind a wide
activation a strided walk over several arrays, each read of which may miss the cache. And the
gradient does not lie as its weight does, so that the optimizer's update walks it the same way.

And a product that sums over several dims sums in the order that it was told, which einsum takes
from the alphabet. XLA transposes both operands where that is not the order of their memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from operator import is_
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from jaxpar.core.jax_compat import open_jaxpr


def untransposed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, its products of which only a transpose is used turned around.

    Products also sum over dims in the order of memory, where both operands have them in one.

    A product is left as it is where the operand that would come first, which XLA:CPU copies, is the
    larger one, and where its sharding is part of its type.

    >>> import jax.numpy as jnp
    >>> x, w = jnp.ones((8, 2)), jnp.ones((2, 4))
    >>> gradient = jax.grad(lambda w: jnp.sum(jnp.sin(x @ w)))
    >>> [eqn.primitive.name for eqn in jax.make_jaxpr(gradient)(w).eqns[-2:]]
    ['dot_general', 'transpose']
    >>> [eqn.primitive.name for eqn in jax.make_jaxpr(untransposed(gradient))(w).eqns[-2:]]
    ['mul', 'dot_general']
    """

    def computed(*args):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        results = jaxpr_as_fun(_turned(closed))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return computed


def _turned(held: Any) -> Any:
    """A parameter of an equation, products turned in any jaxpr that it is; itself if there is none.

    Jaxprs that equations share stay shared, so that they are lowered once.
    """
    if type(held) is tuple:
        made = tuple(map(_turned, held))
        return held if all(map(is_, made, held)) else made
    if not isinstance(held, Jaxpr | ClosedJaxpr):
        return held
    jaxpr = open_jaxpr(held)[0]
    eqns = _equations(jaxpr)
    if len(eqns) == len(jaxpr.eqns) and all(map(is_, eqns, jaxpr.eqns)):
        return held
    made = jaxpr.replace(eqns=eqns)
    return made if isinstance(held, Jaxpr) else held.replace(jaxpr=made)


def _equations(jaxpr: Any) -> list[Any]:
    """The equations of an open jaxpr, products turned and the transposes after them left out."""
    atoms = [*(atom for eqn in jaxpr.eqns for atom in eqn.invars), *jaxpr.outvars]
    uses = Counter(atom for atom in atoms if not isinstance(atom, Literal))
    transposes = [eqn for eqn in jaxpr.eqns if eqn.primitive is lax.transpose_p]
    # Of two transposes in a row, as a weight that is used turned has, XLA makes one or none.
    read = {id(eqn.invars[0]) for eqn in transposes}
    after = {id(eqn.invars[0]): eqn for eqn in transposes if id(eqn.outvars[0]) not in read}
    turned = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive is not lax.dot_general_p:
            continue
        turned[id(eqn)] = product = _summed_in_order(eqn)
        transpose = after.get(id(eqn.outvars[0]))
        if uses[eqn.outvars[0]] == 1 and transpose and _is_better(eqn, transpose):
            turned |= {id(eqn): _other_way(product, transpose), id(transpose): None}
    made = [turned.get(id(eqn), eqn) for eqn in jaxpr.eqns]
    return [_inside(eqn) for eqn in made if eqn is not None]


def _inside(eqn: Any) -> Any:
    """An equation with the products turned in the jaxprs that it holds; itself if there is none."""
    params = {key: _turned(value) for key, value in eqn.params.items()}
    if all(params[key] is value for key, value in eqn.params.items()):
        return eqn
    return eqn.replace(params=params)


def _summed_in_order(product: Any) -> Any:
    """The product, its sum in the order of its operands' dims where that is one order."""
    (left, right), batch = product.params["dimension_numbers"]
    pairs = sorted(zip(left, right, strict=True))
    in_order = tuple(sorted(left)), tuple(sorted(right))
    if in_order == (tuple(left), tuple(right)) or pairs != list(zip(*in_order, strict=True)):
        return product
    return product.replace(params={**product.params, "dimension_numbers": (in_order, batch)})


def _is_better(product: Any, transpose: Any) -> bool:
    """Whether the other way needs no transpose, and what then comes first is not the larger."""
    (summed, _), (batch, _) = product.params["dimension_numbers"]
    first, second = (atom.aval for atom in product.invars)
    # A product's dims: the batch's, what the first operand keeps, what the second keeps.
    start, middle, end = len(batch), first.ndim - len(summed), len(transpose.outvars[0].aval.shape)
    other_way = (*range(start), *range(middle, end), *range(start, middle))
    return (
        tuple(transpose.params["permutation"]) == other_way
        and prod(second.shape) <= prod(first.shape)
        and product.params.get("out_sharding") is None
    )


def _other_way(product: Any, transpose: Any) -> Any:
    """The product with its second operand first: what the transpose made of it."""
    summed, batch = product.params["dimension_numbers"]
    params = {**product.params, "dimension_numbers": (summed[::-1], batch[::-1])}
    if isinstance(params["precision"], tuple):
        params["precision"] = params["precision"][::-1]
    return product.replace(invars=product.invars[::-1], outvars=transpose.outvars, params=params)
