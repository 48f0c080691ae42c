r"""Traces of the curvature, with their standard errors.

Estimators run on `K = I + sigma^2 H`, which is of low effective rank where `H` is not, and are
rescaled: `tr H = (tr K - d)/sigma^2`. Which of them to use is in docs/traces.md.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from matfree import stochtrace

from sharpjax._types import Array, ArrayLike, Score
from sharpjax.curvature.estimate import Estimate
from sharpjax.curvature.hutchpp import hutchpp, xtrace
from sharpjax.curvature.operators import Jacobian, jacobian
from sharpjax.curvature.probes import (
    Curvature,
    check_samples,
    draw,
    monte_carlo,
    probe_options,
)
from sharpjax.curvature.validation import (
    check_finite,
    noise_level,
    positive_integer,
    positive_number,
)

__all__ = ["effective_dimension", "trace", "trace_of_difference", "trace_of_power"]

_METHODS = ("hutchinson", "hutch++", "xtrace", "exact")
_LEAST_PRODUCTS = {"hutchinson": 1, "hutch++": 3, "xtrace": 2}
_LEAST_SAMPLES = 16  # before an adaptive estimate believes its own standard error
_RESCALED = "The estimate, in units of sigma and in the type of x,"
_QUADRATIC_FORM = stochtrace.monte_carlo_trace()


def trace(
    score: Score,
    x: ArrayLike,
    *,
    sigma: ArrayLike | None = None,
    key: Array | None = None,
    num_matvecs: int = 32,
    method: str = "hutchinson",
    sampler: str | None = None,
    batch_size: int | None = None,
    rtol: float | None = None,
    max_matvecs: int | None = None,
) -> Estimate:
    r"""The trace of the score's Jacobian, `tr H` for an exact score; units 1/sigma^2.

    The methods, on `A = K = I + sigma^2 H` and rescaled, or on `A = H` without a `sigma`:

    - "hutchinson": for probes with `E[v v^T] = I`, `E[v^T A v] = tr A`. For probes of fixed length
      (signs, sphere) K and H give the same to rounding; for normal probes the variance is
      `2 ||A||_F^2`, which for K does not contain the `d/sigma^4` of pure noise.
    - "hutch++": a third of the products sketch the range of A, a third take the trace there
      exactly, and a third are Hutchinson's on the complement. Give it `sigma`: K is what has a low
      effective rank.
    - "xtrace": every probe sketches for all the others, two products each. Give it `sigma`. The
      best where K has a low effective rank.
    - "exact": d products, no error.

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
        method: "hutchinson", "hutch++", "xtrace" or "exact".
        sampler: distribution of the probes. "signs" (entries -1 or 1; no error from the
            diagonal), "normal", or "sphere" (uniform on the sphere of radius sqrt(d)). None is
            "sphere" for XTrace, which can correct the length of such probes, and "signs" for the
            others.
        batch_size: products at once by `vmap`, which bounds the memory; 32 by default. Hutchinson
            keeps nothing else, the sketches keep their d x `num_matvecs`/3 or /2.
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
        ValueError: an unknown method or sampler, no key for a method that draws; `num_matvecs` or
            `batch_size` not a positive integer, or too few for the method; `sigma` not a number
            whose powers are numbers in the type of x; `rtol <= 0`, `rtol` under a transformation,
            `max_matvecs` below `num_matvecs` or without `rtol`; a product that is not finite, whose
            probe is named; and as `jacobian`.

    References:
        M. F. Hutchinson, A stochastic estimator of the trace of the influence matrix for Laplacian
        smoothing splines, Comm. Statist. Simulation Comput. 19 (1990),
        doi:10.1080/03610919008812866. Hutch++ and XTrace: see `sharpjax.curvature.hutchpp`. The
        trace of the Hessian of a diffusion model as a sign of memorization: D. Jeon et al.,
        Understanding and mitigating memorization in generative models via sharpness of probability
        landscapes, ICML 2025.

    >>> import jax, jax.numpy as jnp
    >>> trace(lambda x: -jnp.array([4.0, 1.0]) * x, jnp.zeros(2), key=jax.random.key(0))
    Estimate(-5 ± 0, num_samples=32, num_matvecs=32)
    """
    key, options = _checked(method, key, num_matvecs, sampler, batch_size, rtol, max_matvecs)
    J = jacobian(score, x)
    sigma = None if sigma is None else noise_level(sigma, J.point.dtype)

    def exact() -> Array:
        return jnp.sum(J.diagonal(chunk_size=batch_size))

    return _estimate(Curvature((J,), sigma), key, exact, _of_jacobian(J, sigma), options)


def effective_dimension(
    score: Score,
    x: ArrayLike,
    *,
    sigma: ArrayLike,
    key: Array | None = None,
    num_matvecs: int = 32,
    method: str = "hutchinson",
    sampler: str | None = None,
    batch_size: int | None = None,
    rtol: float | None = None,
    max_matvecs: int | None = None,
) -> Estimate:
    r"""The effective dimension `tr K`, `K = I + sigma^2 H`, at noise level sigma; dimensionless.

    For the exact score `tr K = (alpha^2/sigma^2) tr Cov[x_0 | x_t]`: how many directions of the
    data the noise leaves open. It is 0 for a point mass, that is, for one memorized image.

    Args:
        score: maps one point to its score, same shape out.
        x: the point, any shape.
        sigma: the noise level of the score, > 0.
        key: PRNG key of the probes, as the other options described at `trace`.
        num_matvecs: products with the Jacobian.
        method: "hutchinson", "hutch++", "xtrace" or "exact".
        sampler: "signs", "normal" or "sphere"; None is the method's own.
        batch_size: products at once; 32 by default.
        rtol: go on until the standard error is this fraction of the value.
        max_matvecs: and no further than this.

    Raises:
        ValueError: as `trace`.

    The score of pure noise, `-x/sigma^2`, leaves nothing open:

    >>> import jax, jax.numpy as jnp
    >>> effective_dimension(lambda x: -x / 0.25, jnp.ones(3), sigma=0.5, key=jax.random.key(0))
    Estimate(0 ± 0, num_samples=32, num_matvecs=32)
    """
    key, options = _checked(method, key, num_matvecs, sampler, batch_size, rtol, max_matvecs)
    J = jacobian(score, x)
    sigma = noise_level(sigma, J.point.dtype)

    def exact() -> Array:
        return jnp.sum(1.0 + sigma**2 * J.diagonal(chunk_size=batch_size))

    return _estimate(Curvature((J,), sigma), key, exact, lambda samples: samples, options)


def trace_of_difference(
    score: Score,
    other: Score,
    x: ArrayLike,
    *,
    key: Array | None = None,
    num_matvecs: int = 64,
    method: str = "hutchinson",
    sampler: str | None = None,
    batch_size: int | None = None,
    rtol: float | None = None,
    max_matvecs: int | None = None,
) -> Estimate:
    r"""`tr J - tr J'` of two scores at one point, from common probes; units 1/sigma^2.

    The trace of `J - J'`: every probe meets both Jacobians, so that what they share cancels from
    each sample and the standard error is that of the difference, not of the two traces. The noise
    level is not needed, as `K - K' = sigma^2 (J - J')`.

    Args:
        score: maps one point to its score, same shape out.
        other: the score whose trace is subtracted.
        x: the point, any shape.
        key: PRNG key of the probes, as the other options described at `trace`.
        num_matvecs: products with the two Jacobians together: two a probe.
        method: "hutchinson", "hutch++", "xtrace" (all on `J - J'`) or "exact" (2d products).
        sampler: "signs", "normal" or "sphere"; None is the method's own.
        batch_size: probes at once; 32 by default.
        rtol: go on until the standard error is this fraction of the value.
        max_matvecs: and no further than this, counted as `num_matvecs`.

    Raises:
        ValueError: as `trace`.

    Two scores that differ by a constant force have the same curvature:

    >>> import jax, jax.numpy as jnp
    >>> trace_of_difference(
    ...     lambda x: -(x**3), lambda x: 1 - x**3, jnp.ones(3), key=jax.random.key(0)
    ... )
    Estimate(0 ± 0, num_samples=32, num_matvecs=64)
    """
    key, options = _checked(
        method, key, num_matvecs, sampler, batch_size, rtol, max_matvecs, cost=2
    )
    both = (jacobian(score, x), jacobian(other, x))

    def exact() -> Array:
        ours, theirs = (J.diagonal(chunk_size=batch_size) for J in both)
        return jnp.sum(ours - theirs)

    return _estimate(Curvature(both), key, exact, lambda samples: samples, options)


def trace_of_power(
    score: Score,
    x: ArrayLike,
    *,
    power: int,
    sigma: ArrayLike | None = None,
    key: Array | None = None,
    num_matvecs: int = 96,
    method: str = "hutchinson",
    sampler: str | None = None,
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

    Args:
        score: maps one point to its score, same shape out.
        x: the point, any shape.
        power: k.
        sigma: the noise level of the score, > 0; None runs on `J^k` as it is.
        key: PRNG key of the probes, as the other options described at `trace`.
        num_matvecs: products with the Jacobian: k a probe, or a column of a sketch.
        method: "hutchinson", "hutch++", "xtrace", or "exact" (forms J: d products).
        sampler: "signs", "normal" or "sphere"; None is the method's own.
        batch_size: probes at once; 32 by default.

    Raises:
        ValueError: `power` not 2, 3 or 4; powers of a Jacobian whose trace the type of x does not
            hold; and as `trace`.

    >>> import jax, jax.numpy as jnp
    >>> trace_of_power(lambda x: -2.0 * x, jnp.zeros(4), power=3, key=jax.random.key(0))
    Estimate(-32 ± 0, num_samples=32, num_matvecs=96)
    """
    if isinstance(power, bool) or power not in (2, 3, 4):
        raise ValueError(f"power must be 2, 3 or 4, got {power!r}; for the trace itself use trace.")
    k = int(power)
    key, options = _checked(method, key, num_matvecs, sampler, batch_size, cost=k)
    J = jacobian(score, x)
    sigma = None if sigma is None else noise_level(sigma, J.point.dtype, power=2 * k)

    def exact() -> Array:
        M = J.dense(chunk_size=batch_size)
        square = jnp.matmul(M, M, precision="highest")
        left, right = {2: (M, M), 3: (square, M), 4: (square, square)}[k]
        return jnp.sum(left * right.T)

    A = Curvature((J,), sigma, k)
    estimate = _estimate(A, key, exact, _of_jacobian(J, sigma, k), options)
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
            "(jax.enable_x64)."
        )


def _of_jacobian(J: Jacobian, sigma: ArrayLike | None, k: int = 1) -> Callable[[Array], Array]:
    """From samples of `tr A` to samples of `tr J^k`; see `Curvature`."""
    if sigma is None:
        return lambda samples: samples
    return lambda samples: (samples + (-1) ** k * J.point.size) / sigma ** (2 * k)


@dataclasses.dataclass(frozen=True)
class _Options:
    """The options of an estimate, once they are known to be valid."""

    method: str
    num_matvecs: int
    rtol: ArrayLike | None
    max_matvecs: int | None
    probes: dict[str, Any]  # sampler and batch size


def _checked(
    method: str,
    key: Array | None,
    num_matvecs: int,
    sampler: str | None,
    batch_size: int | None,
    rtol: ArrayLike | None = None,
    max_matvecs: int | None = None,
    *,
    cost: int = 1,
) -> tuple[Array | None, _Options]:
    """The key and the rest; `cost` is the products with a Jacobian in one product with A."""
    key, probes = probe_options(method, _METHODS, key, sampler=sampler, batch_size=batch_size)
    least = cost * _LEAST_PRODUCTS[method] if method != "exact" else 1
    name = "num_matvecs" if least == 1 else f"num_matvecs of method={method!r}"
    num_matvecs = positive_integer(name, num_matvecs, least=least)
    if rtol is not None:
        positive_number("rtol", rtol)
    if max_matvecs is not None:
        max_matvecs = positive_integer("max_matvecs", max_matvecs)
        if rtol is None:
            raise ValueError(
                "max_matvecs is the budget of an adaptive estimate: give rtol too, or say with "
                "num_matvecs how many products to spend."
            )
        if max_matvecs < num_matvecs and method != "exact":
            raise ValueError(
                f"max_matvecs={max_matvecs} is below num_matvecs={num_matvecs}, which are spent "
                "before the first look: raise the one or lower the other."
            )
    return key, _Options(method, num_matvecs, rtol, max_matvecs, probes)


def _estimate(
    A: Curvature,
    key: Array | None,
    exact: Callable[[], Array],
    rescale: Callable[[Array], Array],
    options: _Options,
) -> Estimate:
    """The mean of `rescale(samples of tr A)`; `exact()` is the same without error."""
    method, num_matvecs = options.method, options.num_matvecs
    d, cost_of_exact = A.point.size, A.point.size * len(A.jacobians)

    def without_error(spent: int = 0) -> Estimate:
        value = exact()
        stopped = None if options.rtol is None else "tolerance"
        return Estimate(value, jnp.zeros_like(value), 0, spent + cost_of_exact, stopped)

    if method == "exact":
        if options.max_matvecs is not None and options.max_matvecs < cost_of_exact:
            raise ValueError(
                f"max_matvecs={options.max_matvecs} is below the {cost_of_exact} products of "
                "method='exact': raise it or choose another method."
            )
        return without_error()
    if options.rtol is not None:
        return _adaptive(A, key, rescale, options, without_error, cost_of_exact)
    if method != "hutchinson" and num_matvecs // A.cost >= d:
        return without_error()  # and without a sketch of as many columns as there are dimensions
    samples, spent = _samples(A, key, options, num_matvecs)
    samples = rescale(samples)
    check_finite(_RESCALED, samples)
    return Estimate.from_samples(samples, num_matvecs=spent)


def _samples(
    A: Curvature, key: Array | None, options: _Options, num_matvecs: int, start: int = 0
) -> tuple[Array, int]:
    """Samples of `tr A` from at most `num_matvecs` products, and how many were spent."""
    products, probes = num_matvecs // A.cost, options.probes
    if options.method == "hutchinson":
        num_probes = products
        quadratic = {"integrand": _QUADRATIC_FORM, "num": num_probes}
        samples = monte_carlo(A, key, start, **quadratic, **probes)
    elif options.method == "hutch++":
        rank = products // 3
        num_probes = products - rank
        samples = hutchpp(A, key, rank=rank, num_samples=num_probes - rank, **probes)
    else:
        num_probes = products // 2
        products = 2 * num_probes
        samples = xtrace(A, key, num_samples=num_probes, **probes)
    check_samples(samples, A, key, start, num_probes=num_probes, **probes)
    return samples, products * A.cost


def _adaptive(
    A: Curvature,
    key: Array | None,
    rescale: Callable[[Array], Array],
    options: _Options,
    without_error: Callable[[int], Estimate],
    cost_of_exact: int,
) -> Estimate:
    """Rounds of samples until the standard error is small enough or the budget is spent.

    Hutchinson's samples join those before them. A wider sketch needs its products anew: its samples
    replace the others, and what those have cost stays on the bill.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((A, key, options.rtol))):
        raise ValueError(
            "rtol looks at values while it runs, and under jit, vmap or grad there are none: give "
            "a fixed num_matvecs there."
        )
    budget = 2 * cost_of_exact if options.max_matvecs is None else options.max_matvecs
    joins, batch_size = options.method == "hutchinson", options.probes["batch_size"]
    samples, spent, size = np.empty(0), 0, options.num_matvecs
    exact_is_cheaper = size >= cost_of_exact
    while True:
        if exact_is_cheaper and spent + cost_of_exact <= budget:
            return without_error(spent)
        start = len(samples) if joins else 0
        new, cost = _samples(A, key, options, size, start)
        new = rescale(new)
        check_finite(_RESCALED, new)
        spent += cost
        samples = np.concatenate([samples[:start], new])

        n, goal = len(samples), float(cast(Array, options.rtol)) * abs(float(np.mean(samples)))
        error = float(np.std(samples, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
        enough = n >= _LEAST_SAMPLES
        if joins:  # as the error falls with 1/sqrt(n), it takes spent (error/goal)^2 in all
            exact_is_cheaper = enough and error > goal * math.sqrt(1 + cost_of_exact / spent)
            size = min(batch_size, (budget - spent) // A.cost) * A.cost
        else:  # how it falls depends on the spectrum
            wider = min(2 * size, budget - spent)
            exact_is_cheaper = 2 * size >= cost_of_exact
            size = wider if wider > size else 0
        done = enough and error <= goal
        if done or size == 0:
            estimate = Estimate.from_samples(jnp.asarray(samples, new.dtype), num_matvecs=spent)
            estimate.stopped = "tolerance" if done else "budget"
            return estimate
