"""Factorizations of matrices that a batch of them cannot hang.

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
    L: Array = jnp.linalg.cholesky(matrix)
    return L


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
    values: Array = jnp.linalg.eigvalsh(matrix)
    return values


@_one_at_a_time
def orthonormal_basis(matrix: Array) -> Array:
    """`Q` of `matrix = Q R`."""
    Q: Array = jnp.linalg.qr(matrix)[0]
    return Q


@_one_at_a_time
def inverse_of_lower(factor: Array) -> Array:
    """The inverse of a lower triangular matrix."""
    return solve_triangular(factor, jnp.eye(len(factor), dtype=factor.dtype), lower=True)
