"""Norms that keep a type's whole range, and factorizations that a batch of them cannot hang.

Curvature has the units 1/sigma^2, its powers 1/sigma^8: at the noise levels of the field their
squares leave the range of float32. What is squared is therefore scaled first, by a power of two,
which rounds nothing.

jaxlib's CPU kernels (0.10.2; `ParallelBatchMap`) give the matrices of a batch to XLA's pool of
threads and wait for them on a thread of that same pool. As many batches at once as the pool has
threads wait for ever: on two cores, Lanczos and Arnoldi in one program, or Lanczos on two devices.
On CPU the matrices of a batch are therefore factorized one after another; elsewhere in one call.

Derivatives, forward and reverse, are those of `jax.numpy.linalg`, and batches of them as before.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import sequential_vmap
from jax.scipy.linalg import solve_triangular

Factorize = TypeVar("Factorize", bound=Callable[[Array], Any])


def scale_of(v: Array, axis: int | None = None) -> Array:
    """A power of two within a factor of 4 of the largest |entry|, along an axis that is kept.

    1 where all are 0 or one is not finite. It is no part of a derivative.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(v), axis=axis, keepdims=axis is not None))
    half = 0.5 * largest  # rounded up to a power of two, the largest number would overflow
    exponent_bits = jnp.finfo(half.dtype).nexp
    power: Array = jax.lax.reduce_precision(half, exponent_bits, mantissa_bits=0)
    return jnp.where((power > 0) & jnp.isfinite(power), power, 1.0)


def safe_norm(v: Array, axis: int | None = None) -> Array:
    """`||v||`, of all entries or along an axis; its derivative where it is 0 is taken to be 0.

    Scaled first: in float32 squares of 1e-23 are 0, of 1e23 infinite.
    """
    scale = scale_of(v, axis)
    square = jnp.sum((v / scale) ** 2, axis=axis, keepdims=axis is not None)
    is_zero = square == 0
    length = jnp.where(is_zero, 0.0, scale * jnp.sqrt(jnp.where(is_zero, 1.0, square)))
    return length if axis is None else jnp.squeeze(length, axis)


def _one_at_a_time(factorize: Factorize) -> Factorize:
    """The function of a matrix or a stack of them, from that of one matrix."""
    in_turn = sequential_vmap(factorize)

    @jax.custom_jvp
    def of_one(matrix: Array) -> Any:
        return jax.lax.platform_dependent(matrix, cpu=in_turn, default=factorize)

    @of_one.defjvp
    def derivative(primals: tuple[Array], tangents: tuple[Array]) -> Any:
        return jax.jvp(factorize, primals, tangents)

    @functools.wraps(factorize)
    def of_any(matrix: Array) -> Any:
        call = of_one
        for _ in range(matrix.ndim - 2):
            call = jax.vmap(call)
        return call(matrix)

    return cast(Factorize, of_any)


@_one_at_a_time
def cholesky(matrix: Array) -> Array:
    """`L` of `matrix = L L^T`."""
    return jnp.linalg.cholesky(matrix)


@_one_at_a_time
def eig(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, complex and in no order, and eigenvectors in columns."""
    values, vectors = jnp.linalg.eig(matrix)
    return values, vectors


@_one_at_a_time
def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues of a symmetric matrix, ascending, and eigenvectors in columns."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@_one_at_a_time
def eigvalsh(matrix: Array) -> Array:
    """Eigenvalues of a symmetric matrix, ascending."""
    return jnp.linalg.eigvalsh(matrix)


@_one_at_a_time
def orthonormal_basis(matrix: Array) -> Array:
    """`Q` of `matrix = Q R`."""
    return jnp.linalg.qr(matrix)[0]


@_one_at_a_time
def inverse_of_lower(factor: Array) -> Array:
    """The inverse of a lower triangular matrix."""
    return solve_triangular(factor, jnp.eye(len(factor), dtype=factor.dtype), lower=True)
