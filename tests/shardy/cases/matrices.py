"""Cases of decompositions of matrices, of solutions, and of Fourier transforms."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.lax import linalg

from shardy.cases.arguments import complexes, ints

_MATRIX = (5, 4, 4)
CASES = {
    "cholesky": (linalg.cholesky, _MATRIX),
    "triangular solve": (partial(linalg.triangular_solve, left_side=True), _MATRIX, (5, 4, 3)),
    "triangular solve from the right": (linalg.triangular_solve, _MATRIX, (5, 3, 4)),
    "lu": (linalg.lu, (5, 4, 3)),
    "qr": (lambda a: linalg.qr(a, full_matrices=False), (5, 4, 3)),
    "svd": (lambda a: linalg.svd(a, full_matrices=False), (5, 4, 3)),
    "singular values": (lambda a: linalg.svd(a, compute_uv=False), (2, 5, 4, 3)),
    "eigh": (linalg.eigh, _MATRIX),
    "eig": (linalg.eig, _MATRIX),
    "householder product": (linalg.householder_product, (5, 4, 3), (5, 3)),
    "ormqr": (lambda a, t, c: linalg.ormqr(a, t, c), (5, 4, 3), (5, 3), (5, 4, 2)),
    "q times": (lambda a, c: jax.scipy.linalg.qr_multiply(a, c, mode="left"), (4, 3), (3, 3)),
    "q times, with pivots": (
        lambda a, c: jax.scipy.linalg.qr_multiply(a, c, mode="left", pivoting=True),
        (4, 3),
        (3, 3),
    ),
    "hessenberg": (linalg.hessenberg, _MATRIX),
    "schur": (linalg.schur, _MATRIX),
    "cholesky update": (linalg.cholesky_update, (4, 4), (4,)),
    "tridiagonal": (linalg.tridiagonal, _MATRIX),
    "tridiagonal solve": (linalg.tridiagonal_solve, (5, 4), (5, 4), (5, 4), (5, 4, 2)),
    "pivots": (lambda p: linalg.lu_pivots_to_permutation(p, 6), ints(5, 4)),
    "fft": (lambda x: jnp.fft.fft(x), complexes(3, 4)),
    "fft of two dims": (lambda x: jnp.fft.ifft2(x), complexes(3, 4, 6)),
    "rfft": (lambda x: jnp.fft.rfft(x), (3, 8)),
    "irfft": (lambda x: jnp.fft.irfft(x), complexes(3, 5)),
}
