"""The table of factors: dims that are one dim share a factor, and sizes always multiply out."""

import gc
from math import prod

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import Primitive

from jaxpar.attention.fused import FUSED
from jaxpar.jaxprs.rules import TABLE, factors, is_known


def only(fn, *shapes, name=None):
    """Factors of the one equation of this name (or the last one) in `fn`'s jaxpr."""
    args = [jnp.ones(s) if isinstance(s, tuple) else s for s in shapes]
    eqns = [e for e in equations(jax.make_jaxpr(fn)(*args).jaxpr) if e.primitive.name == name]
    assert len(eqns) == 1, name
    return factors(eqns[0])


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(tuple(eqn.params.values())):
            value = getattr(value, "jaxpr", value)
            if hasattr(value, "eqns"):
                yield from equations(value)


def test_product_contracts_one_factor_and_shares_the_batch():
    f = only(
        lambda x, w: jnp.einsum("bsd,bdf->bsf", x, w), (2, 3, 5), (2, 5, 7), name="dot_general"
    )
    (b, s, d), (b2, d2, out) = f.operands
    assert (b, d) == (b2, d2)
    assert f.results == ((b, s, out),)
    assert f.reduced == ((d[0], "sum"),) and not f.whole


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # Result dims as lists of the operand's dims that they are made of, where they are.
        ((2, 3, 5), (6, 5), [[0, 1], [2]]),
        ((2, 3, 5), (2, 15), [[0], [1, 2]]),
        ((2, 1, 3), (2, 3), [[0], [2]]),
        ((4, 6), (4, 1, 6), [[0], [None], [1]]),
    ],
)
def test_merged_dims_keep_their_factors_major_to_minor(before, after, expected):
    f = only(lambda x: x.reshape(after), before, name="reshape")
    owner = {factor: d for d, fs in enumerate(f.operands[0]) for factor in fs}
    assert [[owner.get(factor) for factor in fs] for fs in f.results[0]] == expected
    assert not f.whole


def test_split_dim_has_a_factor_for_each_piece():
    f = only(lambda x: x.reshape(2, 3, 5), (6, 5), name="reshape")
    (two, three), (five,) = f.operands[0]
    assert f.results == (((two,), (three,), (five,)),)
    assert [f.sizes[i] for i in (two, three, five)] == [2, 3, 5]


def test_reshape_without_common_factor_is_whole_but_for_what_pairs_up():
    """[8, 6, 4, 5] to [8, 4, 6, 5]: 6 x 4 is tangled but for the 2 at each end of it."""
    f = only(lambda x: x.reshape(8, 4, 6, 5), (8, 6, 4, 5), name="reshape")
    (first, (outer, three), (two, inner), last), (result,) = f.operands[0], f.results
    assert result[0] == first and result[3] == last
    assert result[1][0] == outer and result[2][-1] == inner
    assert [f.sizes[i] for i in (outer, three, two, inner)] == [2, 3, 2, 2]
    assert {three, two, result[1][1], result[2][0]} == f.whole


def test_broadcast_and_stretched_dims_are_new():
    f = only(lambda b: jnp.broadcast_to(b, (4, 6)), (1, 6), name="broadcast_in_dim")
    assert f.operands[0][1] == f.results[0][1]
    assert f.operands[0][0] != f.results[0][0]
    f = only(lambda x, m: x - m, (4, 6), (4, 1), name="sub")
    assert f.operands[1][0] == f.results[0][0] == f.operands[0][0]
    assert f.operands[1][1] != f.results[0][1] == f.operands[0][1]


def test_embedding_lookup_has_a_whole_vocabulary_and_passes_the_width():
    ids = jnp.zeros((2, 3), int)
    f = only(lambda t: jnp.take(t, ids, axis=0), (8, 4), name="gather")
    table, indices = f.operands
    assert f.results == ((indices[0], indices[1], table[1]),)
    assert table[0][0] in f.whole and table[1][0] not in f.whole


def test_label_lookup_pairs_the_batch():
    labels = jnp.zeros((2, 3, 1), int)
    f = only(lambda x: jnp.take_along_axis(x, labels, axis=-1), (2, 3, 8), name="gather")
    logits, indices = f.operands
    assert logits[:2] == indices[:2] == f.results[0][:2]
    assert logits[2][0] in f.whole


def test_convolution_contracts_channels_and_keeps_space_whole():
    f = only(
        lambda x, k: lax.conv_general_dilated(
            x, k, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        ),
        (2, 8, 3),
        (5, 3, 4),
        name="conv_general_dilated",
    )
    (n, w, c), (kw, i, o) = f.operands
    assert i == c and f.reduced == ((c[0], "sum"),)
    assert (f.results[0][0], f.results[0][2]) == (n, o)
    assert {w[0], kw[0], f.results[0][1][0]} == f.whole


def test_a_decomposition_of_matrices_passes_their_batch():
    f = only(jnp.linalg.cholesky, (5, 3, 3), name="cholesky")
    assert f.operands[0][0] == f.results[0][0]
    assert {i for dims in (*f.operands, *f.results) for fs in dims[1:] for i in fs} == f.whole


def test_unknown_primitive_shares_nothing_and_is_whole():
    nobodys = Primitive("nobodys")
    nobodys.def_abstract_eval(lambda x: x)
    f = only(nobodys.bind, (3, 3), name="nobodys")
    assert not is_known("nobodys")
    assert {i for dims in (*f.operands, *f.results) for fs in dims for i in fs} == f.whole
    assert set(f.operands[0]).isdisjoint(f.results[0])


OF_SOME_VERSIONS = {"call", "closed_call", "log2", "one_minus_square", "polynomial"}
"""Primitives that not every supported JAX has."""


def test_every_name_in_the_tables_is_a_primitives():
    """A name that JAX does not use, or no longer, would be a rule that nobody is held to."""
    gc.unfreeze()  # what was there before the first test is not looked through otherwise
    there = {found.name for found in gc.get_objects() if isinstance(found, Primitive)}
    gc.freeze()
    there |= {FUSED, f"{FUSED}_gradient"}  # our own
    assert len(there) > 200
    assert set(TABLE) - there <= OF_SOME_VERSIONS


def everything(x, w, ids):
    x = jax.nn.softmax(x + jnp.sum(w), axis=-1) @ w
    y = jnp.concatenate([x, jnp.flip(x, 1)], -1)[:, 1:3]
    y = jnp.cumsum(jnp.sort(jnp.pad(y, ((0, 0), (1, 1), (0, 0)))), axis=1)
    z = jnp.take_along_axis(y, ids[:, :, None], axis=1).at[:, 0].add(1.0)
    z = lax.dynamic_slice(z, (0, 0, 2), (4, 2, 4)) * lax.top_k(x, 4)[0][:, :2]
    a, b = jnp.split(jnp.moveaxis(z, 1, 2), 2, axis=1)
    s = lax.reduce_window(a * b, 0.0, lax.add, (1, 2, 1), (1, 1, 1), "SAME")
    s = lax.dynamic_update_slice(s, a[:2], (1, 0, 0))
    q = jax.random.normal(jax.random.key(0), s.shape) * jnp.where(s > 0, s, -1.0)
    return q.reshape(4, -1).astype(jnp.float32).argmax(-1), jnp.clip(q, 0, 1).max((0, 1)), s.prod()


def test_factor_sizes_multiply_out_to_every_dim():
    """Over a function that uses most of the table, and its gradient."""
    args = jnp.ones((4, 2, 8)), jnp.ones((8, 8)), jnp.zeros((4, 2), int)
    both = jax.make_jaxpr(
        lambda *a: (everything(*a), jax.grad(lambda x: everything(x, *a[1:])[2])(a[0]))
    )
    seen = set()
    for eqn in equations(both(*args).jaxpr):
        f = factors(eqn)
        seen.add(eqn.primitive.name)
        atoms = [
            *zip(eqn.invars, f.operands, strict=True),
            *zip(eqn.outvars, f.results, strict=True),
        ]
        for atom, dims in atoms:
            sizes = [prod(f.sizes[i] for i in fs) for fs in dims]
            # A scalar beside arrays relates no dim.
            assert sizes == list(atom.aval.shape), eqn
        kept = {i for dims in f.results for fs in dims for i in fs}
        assert not kept & {i for i, _ in f.reduced}, eqn
    assert len({name for name in seen if is_known(name)}) > 35
