"""Exact spectra of the symmetric part of a score's Jacobian."""

import jax.numpy as jnp

from sharpjax._types import Array, ArrayLike, Score
from sharpjax.curvature.operators import hessian

__all__ = ["eigenvalues"]


def eigenvalues(
    score: Score,
    x: ArrayLike,
    *,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Array:
    """All eigenvalues of `(J + J^T)/2` at `x`, ascending, shape `(d,)`, units 1/sigma^2.

    Costs d tangents, O(d^2) memory and O(d^3) time. For an exact score at noise level sigma none
    is below `-1/sigma^2`, as `K = I + sigma^2 H` is positive semidefinite.

    Args:
        score: maps one point to its score, same shape out.
        x: the point, any shape; `d = x.size`.
        chunk_size: tangents computed at once; 64 by default.
        memory_budget: bytes that decide it instead, as in `Jacobian.dense`.

    Raises:
        ValueError: as `hessian`.

    >>> import jax.numpy as jnp
    >>> eigenvalues(lambda x: -jnp.array([4.0, 1.0]) * x, jnp.zeros(2))
    Array([-4., -1.], dtype=float32)
    """
    J = hessian(score, x, chunk_size=chunk_size, memory_budget=memory_budget)
    return jnp.linalg.eigvalsh(0.5 * (J + J.T))
