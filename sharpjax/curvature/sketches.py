r"""Traces by a sketch of the range: Hutch++ and XTrace.

A few products `Y = A Omega` with random probes show most of the range of an operator of low
effective rank. With `Q = orth(Y)` the trace splits,

`tr A = tr(Q^T A Q) + tr((I - Q Q^T) A (I - Q Q^T))`,

where the first term is computed exactly and only the second, what the sketch has missed, is left to
random probes. No symmetry of A is needed.
"""

import math

import jax
import jax.numpy as jnp

from sharpjax._linalg import inverse_of_lower, orthonormal_basis, safe_norm, scale_of
from sharpjax._types import Array
from sharpjax.curvature.probes import Curvature, draw
from sharpjax.curvature.programs import compiled
from sharpjax.mesh.loops import chunked_map


@compiled(static_argnames=("rank", "num_samples", "sampler", "batch_size"))
def hutchpp(
    A: Curvature, key: Array, *, rank: int, num_samples: int, sampler: str, batch_size: int
) -> Array:
    r"""Independent samples of `tr A` given the sketch, shape `(num_samples,)`; unbiased.

    `tr(Q^T A Q) + g_i^T A g_i` with `Q = orth(A [v_1 ... v_rank])` and `g_i = (I - Q Q^T) v_i` for
    the probes v_i that follow. Costs `2 rank + num_samples` products with A, and memory for two
    `d x rank` matrices.

    If A has rank `rank` or less, the error is rounding's. The sketch is then rank-deficient, which
    does no harm: the Q of Householder's factorization is orthonormal whatever its argument is, and
    columns that only fill it up are as good as any other direction.

    References:
        R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff, Hutch++: optimal stochastic trace
        estimation, SOSA 2021, arXiv:2010.09649, Algorithm 1.
    """
    shape = A.point.shape

    def sketch(i: Array) -> Array:
        return A.mv(draw(sampler, A.point, key, i)).ravel()

    Y = chunked_map(sketch, jnp.arange(rank), batch_size).T
    with jax.default_matmul_precision("highest"):
        Q = orthonormal_basis(Y)

    def in_range(j: Array) -> Array:
        q = Q[:, j].reshape(shape)
        return jnp.sum(q * A.mv(q))

    def outside(i: Array) -> Array:
        v = draw(sampler, A.point, key, i).ravel()
        # Twice, because v is sqrt(d) long: what one projection leaves in the range is eps |v|.
        for _ in range(2):
            v = v - jnp.matmul(Q, jnp.matmul(Q.T, v, precision="highest"), precision="highest")
        g = v.reshape(shape)
        return jnp.sum(g * A.mv(g))

    known = jnp.sum(chunked_map(in_range, jnp.arange(rank), batch_size))
    return known + chunked_map(outside, rank + jnp.arange(num_samples), batch_size)


@compiled(static_argnames=("num_samples", "sampler", "batch_size"))
def xtrace(A: Curvature, key: Array, *, num_samples: int, sampler: str, batch_size: int) -> Array:
    r"""XTrace: samples of `tr A`, shape `(num_samples,)`, whose mean is unbiased; 2 products each.

    With k probes and `Q_i = orth(A [v_1 ... v_k without v_i])`, estimate i is

    `t_i = tr(Q_i^T A Q_i) + c_i g_i^T A g_i`, `g_i = (I - Q_i Q_i^T) v_i`.

    The Q of all the probes gives every Q_i, as `Q_i Q_i^T = Q (I - s_i s_i^T) Q^T`. For
    rotationally invariant probes `c_i = (d - k + 1)/||g_i||^2` takes out what the length of g_i
    contributes ("resphering"); for signs it is 1.

    The t_i share their probes, so `std(t)/sqrt(k)`, the usual error estimate, is too small: by
    sqrt(2) where what is missed is quadratic in the sketch, and by more at a cliff of the spectrum.
    Here the deviations of the t_i from their mean are widened by the factor that gives them the
    standard error with the covariances in it. Take t_ij, which leaves out v_j as well. As
    `E[t_i | all but v_i] = tr A`, and t_ij does not know v_j,

    `Cov(t_i, t_j) = E[(t_i - t_ij) (t_j - t_ji)]`,

    which is unbiased, costs no product with A, and O(k^3) operations.

    A rank below k does no harm: directions of Q that A's range does not fill weigh nothing.

    References:
        E. N. Epperly, J. A. Tropp, R. J. Webber, XTrace: making the most of every sample in
        stochastic trace estimation, SIAM J. Matrix Anal. Appl. 45 (2024), doi:10.1137/23M1548323,
        arXiv:2301.07825. Resphering: E. N. Epperly, arXiv:2512.15929. The covariances are ours.
    """
    shape, d, k = A.point.shape, A.point.size, num_samples

    def products(V: Array) -> Array:
        return chunked_map(
            lambda i: A.mv(V[:, i].reshape(shape)).ravel(), jnp.arange(k), batch_size
        ).T

    V = jax.vmap(lambda i: draw(sampler, A.point, key, i).ravel())(jnp.arange(k)).T
    Y = products(V)
    unit = scale_of(Y)  # all that follows is linear in A, but for the squares of the standard error
    Y = Y / unit
    with jax.default_matmul_precision("highest"):
        Q = orthonormal_basis(Y)
    Z = products(Q) / unit
    with jax.default_matmul_precision("highest"):
        # In the coordinates of Q everything is k x k.
        R = jnp.triu(Q.T @ Y)
        H, W, T = Q.T @ Z, Q.T @ V, Z.T @ V
        # s_i is orthogonal to every column of R but the i-th: R^T S is diagonal. Diagonal entries
        # within rounding of zero are lifted to it, so that S exists at any rank.
        floor = jnp.finfo(R.dtype).eps * math.sqrt(d) * jnp.max(jnp.abs(R))
        floor = jnp.where(floor > 0, floor, 1.0)
        r = jnp.diagonal(R)
        lifted = R + jnp.diag(jnp.where(jnp.abs(r) < floor, floor - r, 0.0))
        S = inverse_of_lower(lifted.T)
        S = S / safe_norm(S, axis=0)
        HS, HW, lengths = H @ S, H @ W, jnp.sum(V**2, axis=0)

        def leave_out(i: Array, U: Array, HU: Array) -> Array:
            """`t - tr H` from probe i and the part of Q orthogonal to the columns of U."""
            a = U.T @ W[:, i]
            m, Hm = W[:, i] - U @ a, HW[:, i] - HU @ a  # what of v_i is in the sketch
            gAg = jnp.dot(U @ a, R[:, i]) - jnp.dot(m, T[:, i] - Hm)
            if sampler != "signs":
                gAg = gAg * (d - k + U.shape[1]) / (lengths[i] - jnp.dot(m, m))
            return gAg - jnp.sum(U * HU)

        def estimates(i: Array) -> tuple[Array, Array]:
            """`t_i - tr H`, and `t_i - t_ij` for all j."""
            s, Hs = S[:, i], HS[:, i]
            t = leave_out(i, s[:, None], Hs[:, None])

            def also(j: Array) -> Array:
                # s_i and s_j span what both leave out; Gram and Schmidt make it orthonormal.
                c = jnp.dot(s, S[:, j])
                norm = jnp.sqrt(jnp.maximum(1 - c**2, jnp.finfo(c.dtype).eps))
                U = jnp.stack([s, (S[:, j] - c * s) / norm], axis=1)
                HU = jnp.stack([Hs, (HS[:, j] - c * Hs) / norm], axis=1)
                return jnp.where(j == i, 0.0, t - leave_out(i, U, HU))

            return t, jax.vmap(also)(jnp.arange(k))

        t, changes = chunked_map(estimates, jnp.arange(k), batch_size)
        # Var(mean t) = (sum_i (t_i - mean t)^2 + sum_{i != j} Cov(t_i, t_j))/(k (k - 1)), unbiased.
        mean = jnp.mean(t)
        squares, covariances = jnp.sum((t - mean) ** 2), jnp.sum(changes * changes.T)
        widening = jnp.maximum(covariances, 0.0) / jnp.where(squares > 0, squares, 1.0)
        return unit * (jnp.trace(H) + mean + (t - mean) * jnp.sqrt(1 + widening))
