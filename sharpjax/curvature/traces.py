r"""Traces of the curvature, with their standard errors.

Estimators run on `K = I + sigma^2 H`, which is of low effective rank where `H` is not, and are
rescaled: `tr H = (tr K - d)/sigma^2`. Which of them to use is in docs/traces.md.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sharpjax._checks import positive_number
from sharpjax._types import Array, ArrayLike, Key, Score
from sharpjax.curvature.estimate import Estimate
from sharpjax.curvature.methods import Method
from sharpjax.curvature.operators import Jacobian, jacobian
from sharpjax.curvature.probes import Curvature, draw
from sharpjax.curvature.spending import Spending


def trace(
    score: Score,
    x: ArrayLike,
    *,
    sigma: ArrayLike | None = None,
    key: Key | None = None,
    num_matvecs: int = 32,
    method: Method | str = "hutchinson",
    batch_size: int | None = None,
    rtol: float | None = None,
    max_matvecs: int | None = None,
) -> Estimate:
    r"""The trace of the score's Jacobian, `tr H` for an exact score; units 1/sigma^2.

    The methods run on `A = K = I + sigma^2 H` and are rescaled, or on `A = H` without a `sigma`:
    `Hutchinson`, a sample a probe; `HutchPP` and `XTrace`, which sketch the range of A first;
    `Exact`, d products without an error.

    All are unbiased, for a Jacobian that is not symmetric too.

    Args:
        score: maps one point to its score, same shape out.
        x: the point, any shape; `d = x.size`.
        sigma: the noise level of the score, > 0; None runs on H as it is.
        key: PRNG key of the probes; "exact" needs none. Probe i depends on `(key, i)` only:
            neither the number of probes nor `batch_size` changes it.
        num_matvecs: products with the Jacobian that may be spent. A single Hutchinson sample is
            allowed, and then the estimate has no standard error. The sketches take the d products
            of the exact trace instead of d or more.
        method: one of these, or its name: "hutchinson", "hutch++", "xtrace" or "exact".
        batch_size: products at once by `vmap`, which bounds the memory; 32 by default, for
            "exact" 64, on a CPU 8. Hutchinson keeps nothing else, the sketches keep their
            d x `num_matvecs`/3 or /2.
        rtol: go on until `standard_error <= rtol |value|`. A loop on the host over compiled
            batches, so not under `jit` or `vmap`. After `num_matvecs` products, and at least 16
            samples, the standard error is looked at; Hutchinson then appends `batch_size` probes at
            a time, and the others start anew with twice the products. Stopping at the first small
            standard error favours those that are small by chance: the intervals cover the truth
            slightly less often than they say. If the exact trace costs no more than what is
            expected to be missing, and fits the budget, it is taken.
        max_matvecs: the budget of an adaptive estimate, all products counted; by default twice
            what the exact trace costs.

    Returns:
        An `Estimate`. Its 95% t-interval covers the truth 93 to 97% of the time with at least 64
        samples and an effective rank `(tr A)^2/||A||_F^2` of 10 or more (measured:
        docs/traces.md). With `rtol`, `stopped` is "tolerance" or "budget".

    Raises:
        ValueError: an unknown method, no key for a method that draws; `num_matvecs` or
            `batch_size` not a positive integer, or too few for the method; `sigma` not a number
            whose powers are numbers in the type of x; `rtol <= 0`, `rtol` under a transformation,
            `max_matvecs` below `num_matvecs` or without `rtol`; a product that is not finite, whose
            probe is named; and as `jacobian`.

    References:
        Of the methods: theirs. The trace of the Hessian of a diffusion model as a sign of
        memorization: D. Jeon et al., Understanding and mitigating memorization in generative models
        via sharpness of probability landscapes, ICML 2025.

    >>> import jax, jax.numpy as jnp
    >>> trace(lambda x: -jnp.array([4.0, 1.0]) * x, jnp.zeros(2), key=jax.random.key(0))
    Estimate(-5 ± 0, num_samples=32, num_matvecs=32)
    """
    spending = Spending(method, key, num_matvecs, batch_size, rtol, max_matvecs)
    J = jacobian(score, x)
    sigma = None if sigma is None else positive_number("sigma", sigma, J.point.dtype, power=2)

    def exact() -> Array:
        return jnp.sum(J.diagonal(chunk_size=batch_size))

    return spending.estimate(Curvature((J,), sigma), exact, _of_jacobian(J, sigma))


def effective_dimension(
    score: Score,
    x: ArrayLike,
    *,
    sigma: ArrayLike,
    key: Key | None = None,
    num_matvecs: int = 32,
    method: Method | str = "hutchinson",
    batch_size: int | None = None,
    rtol: float | None = None,
    max_matvecs: int | None = None,
) -> Estimate:
    r"""The effective dimension `tr K`, `K = I + sigma^2 H`, at noise level sigma; dimensionless.

    For the exact score `tr K = (alpha^2/sigma^2) tr Cov[x_0 | x_t]`: how many directions of the
    data the noise leaves open. It is 0 for a point mass, that is, for one memorized image.

    `sigma` is the noise level of the score, > 0; the options are those of `trace`.

    Raises:
        ValueError: as `trace`.

    The score of pure noise, `-x/sigma^2`, leaves nothing open:

    >>> import jax, jax.numpy as jnp
    >>> effective_dimension(lambda x: -x / 0.25, jnp.ones(3), sigma=0.5, key=jax.random.key(0))
    Estimate(0 ± 0, num_samples=32, num_matvecs=32)
    """
    spending = Spending(method, key, num_matvecs, batch_size, rtol, max_matvecs)
    J = jacobian(score, x)
    sigma = positive_number("sigma", sigma, J.point.dtype, power=2)

    def exact() -> Array:
        return jnp.sum(1.0 + sigma**2 * J.diagonal(chunk_size=batch_size))

    return spending.estimate(Curvature((J,), sigma), exact)


def trace_of_difference(
    score: Score,
    other: Score,
    x: ArrayLike,
    *,
    key: Key | None = None,
    num_matvecs: int = 64,
    method: Method | str = "hutchinson",
    batch_size: int | None = None,
    rtol: float | None = None,
    max_matvecs: int | None = None,
) -> Estimate:
    r"""`tr J - tr J'` of two scores at one point, from common probes; units 1/sigma^2.

    The trace of `J - J'`: every probe meets both Jacobians, so that what they share cancels from
    each sample and the standard error is that of the difference, not of the two traces. The noise
    level is not needed, as `K - K' = sigma^2 (J - J')`.

    The options are those of `trace`; `num_matvecs` and `max_matvecs` count the products with both
    Jacobians, two a probe, and `Exact` takes 2d.

    Raises:
        ValueError: as `trace`.

    Two scores that differ by a constant force have the same curvature:

    >>> import jax, jax.numpy as jnp
    >>> trace_of_difference(
    ...     lambda x: -(x**3), lambda x: 1 - x**3, jnp.ones(3), key=jax.random.key(0)
    ... )
    Estimate(0 ± 0, num_samples=32, num_matvecs=64)
    """
    spending = Spending(method, key, num_matvecs, batch_size, rtol, max_matvecs, cost=2)
    both = (jacobian(score, x), jacobian(other, x))

    def exact() -> Array:
        ours, theirs = (J.diagonal(chunk_size=batch_size) for J in both)
        return jnp.sum(ours - theirs)

    return spending.estimate(Curvature(both), exact)


def trace_of_power(
    score: Score,
    x: ArrayLike,
    *,
    power: int,
    sigma: ArrayLike | None = None,
    key: Key | None = None,
    num_matvecs: int = 96,
    method: Method | str = "hutchinson",
    batch_size: int | None = None,
) -> Estimate:
    r"""`tr J^k` for k = 2, 3, 4: `tr H^k` for an exact score; units 1/sigma^{2k}.

    From `v^T J^k v`, by k products in a row. For an exact score this is the sum of the k-th powers
    of the eigenvalues, and for k = 2 the squared Frobenius norm. A learned score's J is not
    symmetric: then `tr J^2 = ||S||_F^2 - ||R||_F^2` with S its symmetric and R its antisymmetric
    part, and differs from `tr S^2`.

    With `sigma` the probes multiply `A = (K - I)^k - (-I)^k`, from the powers of `K = I + sigma^2
    H`, and `tr J^k = (tr A + (-1)^k d)/sigma^{2k}`. That takes the `d/sigma^{2k}` of pure noise out
    of every sample, which normal probes would turn into error, and is of as low a rank as K, which
    is what "hutch++" and "xtrace" need.

    `power` is k, and the other options are those of `trace`; `num_matvecs` counts the products with
    the Jacobian: k a probe, or a column of a sketch. `Exact` forms J: d products.

    Raises:
        ValueError: `power` not 2, 3 or 4; powers of a Jacobian whose trace the type of x does not
            hold; and as `trace`.

    >>> import jax, jax.numpy as jnp
    >>> trace_of_power(lambda x: -2.0 * x, jnp.zeros(4), power=3, key=jax.random.key(0))
    Estimate(-32 ± 0, num_samples=32, num_matvecs=96)
    """
    if isinstance(power, bool) or power not in (2, 3, 4):
        raise ValueError(f"power must be 2, 3 or 4, got {power!r}; for the trace itself use trace")
    k = int(power)
    spending = Spending(method, key, num_matvecs, batch_size, cost=k)
    J = jacobian(score, x)
    sigma = None if sigma is None else positive_number("sigma", sigma, J.point.dtype, power=2 * k)

    def exact() -> Array:
        M = J.dense(chunk_size=batch_size)
        square = jnp.matmul(M, M, precision="highest")
        left, right = {2: (M, M), 3: (square, M), 4: (square, square)}[k]
        return jnp.sum(left * right.T)

    estimate = spending.estimate(Curvature((J,), sigma, k), exact, _of_jacobian(J, sigma, k))
    if sigma is None:
        _check_powers(J, k, estimate.value)
    return estimate


def _check_powers(J: Jacobian, k: int, value: Array) -> None:
    """A ValueError where powers of J are so small that parts of the trace count as zero."""
    numbers = jnp.finfo(value.dtype)
    least = J.point.size * float(numbers.tiny) / float(numbers.eps)
    if isinstance(value, jax.core.Tracer) or abs(float(value)) >= least:
        return
    # It may be small because J is nilpotent: then J itself is not.
    size = float(jnp.max(jnp.abs(J.mv(draw("signs", J.point, jax.random.key(0), 0)))))
    if 0 < J.point.size * size**k < least:
        raise ValueError(
            f"Powers of the Jacobian are of the size of {size**k:.1e}, where {value.dtype} drops "
            "parts of their trace: give the noise level sigma, or compute in float64 "
            "(jax.enable_x64)"
        )


def _of_jacobian(J: Jacobian, sigma: ArrayLike | None, k: int = 1) -> Callable[[Array], Array]:
    """From samples of `tr A` to samples of `tr J^k`; see `Curvature`."""
    if sigma is None:
        return lambda samples: samples
    return lambda samples: (samples + (-1) ** k * J.point.size) / sigma ** (2 * k)
