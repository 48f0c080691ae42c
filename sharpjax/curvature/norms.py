r"""The Frobenius norm and the diagonal of the curvature, with their standard errors."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax._checks import positive_number
from sharpjax._linalg import safe_norm, scale_of
from sharpjax._types import Array, ArrayLike, Key, Matvec, Score
from sharpjax.curvature.estimate import Estimate
from sharpjax.curvature.methods import Exact, Hutchinson, Method
from sharpjax.curvature.operators import jacobian
from sharpjax.curvature.probes import Curvature, check_samples, draw, monte_carlo
from sharpjax.curvature.programs import compiled
from sharpjax.curvature.spending import Spending
from sharpjax.mesh.loops import chunked_map, num_shares, varying_as

_METHODS = (Hutchinson, Exact)
_Moments = tuple[Array, Array, Array]  # number of samples, mean, norm of the deviations


def frobenius_norm(
    score: Score,
    x: ArrayLike,
    *,
    sigma: ArrayLike | None = None,
    key: Key | None = None,
    num_matvecs: int = 32,
    method: Method | str = "hutchinson",
    batch_size: int | None = None,
) -> Estimate:
    r"""`||J||_F` (units 1/sigma^2), or with a noise level `||K||_F`, `K = I + sigma^2 J` (none).

    `E||A v||^2 = ||A||_F^2` for probes with `E[v v^T] = I`. The estimate is the root of the mean of
    the samples, `n = sqrt(mean)`, and its standard error, by the delta method, that of the mean
    over `2n`. So the square is unbiased and the norm is low by about `standard_error^2/(2n)`.

    Together with `effective_dimension` this gives the effective rank `(tr K)^2/||K||_F^2`.

    Args:
        score: maps one point to its score, same shape out.
        x: the point, any shape.
        sigma: None for J; the noise level of the score, > 0, for K. Unlike in `trace`, it changes
            what is estimated.
        key: PRNG key of the probes; "exact" needs none.
        num_matvecs: probes, one product with the Jacobian each.
        method: `Hutchinson` or `Exact` (forms the matrix: d products), or its name.
        batch_size: probes at once, which bounds the memory; 32 by default, for `Exact` as
            `Jacobian.dense`.

    Raises:
        ValueError: an unknown method, no key for a method that draws, `num_matvecs` or
            `batch_size` not a positive integer, `sigma <= 0`, a product that is not finite, whose
            probe is named; and as `jacobian`.

    >>> import jax, jax.numpy as jnp
    >>> frobenius_norm(lambda x: -3.0 * x, jnp.zeros(4), key=jax.random.key(0))
    Estimate(6 ± 0, num_samples=32, num_matvecs=32)
    """
    spending = Spending(method, key, num_matvecs, batch_size, methods=_METHODS)
    J = jacobian(score, x)
    sigma = None if sigma is None else positive_number("sigma", sigma, J.point.dtype, power=2)
    d = J.point.size
    if not isinstance(spending.method, Hutchinson):
        matrix = J.dense(chunk_size=batch_size)
        if sigma is not None:
            matrix = jnp.eye(d, dtype=matrix.dtype) + sigma**2 * matrix
        norm = safe_norm(matrix)
        return Estimate(norm, jnp.zeros_like(norm), num_samples=0, num_matvecs=d)
    A, num_matvecs = Curvature((J,), sigma), spending.num_matvecs
    probes: Any = {"sampler": spending.method.sampler, "batch_size": spending.batch_size}
    lengths = monte_carlo(A, spending.key, integrand=_length, num=num_matvecs, **probes)
    check_samples(lengths, A, spending.key, num_probes=num_matvecs, **probes)
    scale = scale_of(lengths)
    square = Estimate.from_samples((lengths / scale) ** 2, num_matvecs=num_matvecs)
    is_zero = square.value == 0
    root = jnp.sqrt(jnp.where(is_zero, 1.0, square.value))
    norm = jnp.where(is_zero, 0.0, scale * root)
    if num_matvecs == 1:
        return Estimate(norm, None, 1, 1)
    return Estimate(norm, scale * (square.standard_error / (2 * root)), num_matvecs, num_matvecs)


def diagonal(
    score: Score,
    x: ArrayLike,
    *,
    key: Key | None = None,
    num_matvecs: int = 32,
    method: Method | str = "hutchinson",
    batch_size: int | None = None,
) -> Estimate:
    r"""The diagonal of the score's Jacobian, shaped as x: `d s_i / d x_i`; units 1/sigma^2.

    The estimator of Bekas, Kokiopoulou & Saad, `sum_k v_k * (J v_k) / sum_k v_k * v_k` entry by
    entry. The probes are signs, for which the denominator is their number and the error of entry i
    comes from its row off the diagonal only: variance `sum_{j != i} J_ij^2` a sample. (Other
    independent probes have no smaller one.) The identity in `K = I + sigma^2 J` adds nothing to
    it, so the noise level is not needed.

    The options are those of `frobenius_norm`; `Hutchinson` draws signs, `Exact` takes d products.

    Returns:
        An `Estimate` whose value and standard error have the shape of x, an entry each. Entries
        share their probes, so their errors are correlated.

    Raises:
        ValueError: as `frobenius_norm`.

    References:
        C. Bekas, E. Kokiopoulou, Y. Saad, An estimator for the diagonal of a matrix, Appl. Numer.
        Math. 57 (2007), doi:10.1016/j.apnum.2007.01.003.

    >>> import jax, jax.numpy as jnp
    >>> diagonal(lambda x: -x * x, jnp.array([1.0, 3.0]), key=jax.random.key(0)).value
    Array([-2., -6.], dtype=float32)
    """
    spending = Spending(method, key, num_matvecs, batch_size, methods=_METHODS)
    method, key, num_matvecs = spending.method, spending.key, spending.num_matvecs
    if isinstance(method, Hutchinson) and method.sampler != "signs":
        raise ValueError(f"sampler must be 'signs' of a diagonal, got {method.sampler!r}")
    J = jacobian(score, x)
    if isinstance(method, Exact):
        entries = J.diagonal(chunk_size=batch_size).reshape(J.point.shape)
        return Estimate(entries, jnp.zeros_like(entries), 0, J.point.size)
    A, batch_size = Curvature((J,)), spending.batch_size
    mean, spread = _diagonal(A, spending.key, num=num_matvecs, batch_size=batch_size)
    options: Any = {"sampler": "signs", "batch_size": batch_size}
    check_samples(mean, A, spending.key, num_probes=num_matvecs, **options)
    error = None
    if num_matvecs > 1:
        error = spread / math.sqrt(num_matvecs * (num_matvecs - 1))
    return Estimate(mean, error, num_matvecs, num_matvecs)


def _length(mv: Matvec, v: Array) -> Array:
    """`||A v||`: not its square, which may be out of range where the norm is not."""
    return safe_norm(mv(v))


@compiled(static_argnames=("num", "batch_size"))
def _diagonal(A: Curvature, key: Array, *, num: int, batch_size: int) -> tuple[Array, Array]:
    """Mean of the samples `v * (A v)` and norm of their deviations, one batch held at a time.

    Two sets of samples are merged as in T. F. Chan, G. H. Golub, R. J. LeVeque, The American
    Statistician 37 (1983): sums of squares would cancel where the deviations are small. Of those
    sums the roots are kept, which stay in range.
    """
    num_batches = -(-num // batch_size)
    batch_size = -(-num // num_batches)
    num_parts = num_shares()
    batches = -(-num_batches // num_parts)

    def add(state: _Moments, batch: Array) -> tuple[_Moments, None]:
        index = batch * batch_size + jnp.arange(batch_size)
        v = jax.vmap(lambda i: draw("signs", A.point, key, i))(index)
        samples = v * jax.vmap(A.mv)(v)
        here = (index < num).reshape(-1, *[1] * A.point.ndim)  # the last batches may be padded
        fresh = jnp.sum(here).astype(A.point.dtype)
        their_mean = jnp.sum(jnp.where(here, samples, 0), axis=0) / jnp.maximum(fresh, 1)
        theirs = safe_norm(jnp.where(here, samples - their_mean, 0), axis=0)
        return _merged(state, (fresh, their_mean, theirs)), None

    zeros = varying_as(jnp.zeros_like(A.point), A)
    nothing = varying_as((jnp.zeros((), zeros.dtype), zeros, zeros), A)

    def moments(part: Array) -> _Moments:
        return jax.lax.scan(add, nothing, part * batches + jnp.arange(batches))[0]

    parts = chunked_map(moments, jnp.arange(num_parts), 1)
    (_, mean, spread), _ = jax.lax.scan(lambda a, b: (_merged(a, b), None), nothing, parts)
    return mean, spread


def _merged(a: _Moments, b: _Moments) -> _Moments:
    """Number, mean and norm of the deviations of two sets of samples together."""
    (n_a, mean_a, spread_a), (n_b, mean_b, spread_b) = a, b
    shift, share = mean_b - mean_a, n_b / jnp.maximum(n_a + n_b, 1)
    spreads = jnp.stack([spread_a, spread_b, jnp.sqrt(n_a * share) * shift])
    return n_a + n_b, mean_a + share * shift, safe_norm(spreads, axis=0)
