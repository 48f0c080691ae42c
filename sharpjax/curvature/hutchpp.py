r"""Traces by a sketch of the range: Hutch++ and XTrace.

A few products `Y = A Omega` with random probes show most of the range of an operator of low
effective rank. With `Q = orth(Y)` the trace splits,

`tr A = tr(Q^T A Q) + tr((I - Q Q^T) A (I - Q Q^T))`,

where the first term is computed exactly and only the second, what the sketch has missed, is left to
random probes. No symmetry of A is needed.
"""

import functools

import jax
import jax.numpy as jnp
from matfree import stochtrace

from sharpjax._types import Array
from sharpjax.curvature.operators import chunked_map
from sharpjax.curvature.probes import Curvature, draw

__all__ = ["hutchpp", "xtrace"]


@functools.partial(jax.jit, static_argnames=("rank", "num_samples", "sampler", "batch_size"))
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

    def sketch(i):
        return A.mv(draw(sampler, A.point, key, i)).ravel()

    Y = chunked_map(sketch, jnp.arange(rank), batch_size).T
    with jax.default_matmul_precision("highest"):
        Q, _ = jnp.linalg.qr(Y)

    def in_range(j):
        q = Q[:, j].reshape(shape)
        return jnp.sum(q * A.mv(q))

    def outside(i):
        v = draw(sampler, A.point, key, i).ravel()
        # Twice, because v is sqrt(d) long: what one projection leaves in the range is eps |v|.
        for _ in range(2):
            v = v - jnp.matmul(Q, jnp.matmul(Q.T, v, precision="highest"), precision="highest")
        g = v.reshape(shape)
        return jnp.sum(g * A.mv(g))

    known = jnp.sum(chunked_map(in_range, jnp.arange(rank), batch_size))
    return known + chunked_map(outside, rank + jnp.arange(num_samples), batch_size)


@functools.partial(jax.jit, static_argnames=("num_samples", "sampler", "batch_size"))
def xtrace(A: Curvature, key: Array, *, num_samples: int, sampler: str, batch_size: int) -> Array:
    r"""XTrace's leave-one-out estimates of `tr A`, shape `(num_samples,)`; `2 num_samples < d`.

    Estimate i sketches with every probe but the i-th, and uses that one outside the sketch; all
    share their products, `2 num_samples` and one to fix the scale. Their mean is unbiased. They are
    exchangeable but not independent, so that the standard error of their mean is an estimate whose
    quality was measured (docs/traces.md).

    `matfree` calls A rank-deficient by an absolute test, entries of R below machine epsilon, so
    here it is given A divided by the largest entry of its product with the first probe.
    Resphering, which scales each probe outside the sketch to its expected length, is right for
    rotationally invariant probes only, so signs do without.

    References:
        E. N. Epperly, J. A. Tropp, R. J. Webber, XTrace: making the most of every sample in
        stochastic trace estimation, SIAM J. Matrix Anal. Appl. 45 (2024), doi:10.1137/23M1548323,
        arXiv:2301.07825.
    """
    probes = jax.vmap(lambda i: draw(sampler, A.point, key, i))(jnp.arange(num_samples))
    scale = jnp.max(jnp.abs(A.mv(probes[0])))
    scale = jnp.where(scale > 0, scale, 1.0)  # A = 0
    integrand = stochtrace.leave_one_out_xtrace(apply_resphering=sampler != "signs")

    # One operator at a time under an outer vmap: on CPU, programs that run a batched QR and a
    # batched triangular solve side by side may never return (jax 0.10.2, two cores).
    @jax.custom_batching.sequential_vmap
    def estimates(probes, A, scale):
        with jax.default_matmul_precision("highest"):
            return scale * integrand(_normalised_mv(batch_size), probes, A, scale)

    return estimates(probes, A, scale)


def _normalised_mv(batch_size: int):
    """`A v / scale`, which under `vmap` runs `batch_size` products at a time and not all."""

    @jax.custom_batching.custom_vmap
    def mv(v, A, scale):
        return A.mv(v) / scale

    @mv.def_vmap
    def batched(axis_size, in_batched, v, A, scale):  # v is the only one that comes as a batch
        one = lambda i: A.mv(v[i]) / scale
        return chunked_map(one, jnp.arange(axis_size), batch_size), True

    return mv
