"""Trace estimators against closed forms, naive twins, and the coverage that they promise."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from matfree import stochtrace

from sharpjax.curvature.batch import at_points
from sharpjax.curvature.methods import _QUADRATIC_FORM, Hutchinson, HutchPP, XTrace
from sharpjax.curvature.norms import _diagonal, diagonal, frobenius_norm
from sharpjax.curvature.operators import jacobian
from sharpjax.curvature.probes import Curvature, monte_carlo
from sharpjax.curvature.traces import (
    effective_dimension,
    trace,
    trace_of_difference,
    trace_of_power,
)
from sharpjax.densities import Empirical, Gaussian, GaussianMixture

STOCHASTIC = ("hutchinson", "hutch++", "xtrace")
SIGMA = 0.5
KEY = jax.random.key(0)


def close(actual, desired, dtype=np.float64):
    tolerance = 1e-11 if dtype == np.float64 else 2e-5
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance)


def linear(matrix, x):
    return (matrix @ x.ravel()).reshape(x.shape)


def network_like(weights, x):
    """A nonlinear score that is no gradient: its Jacobian is not symmetric."""
    return (jnp.tanh(weights @ x.ravel()) * jnp.cos(x.ravel()[::-1])).reshape(x.shape)


def setting(dtype, shape=(4, 6), seed=0):
    """A score, a point, and the dense Jacobian there; entries O(1/sqrt(d))."""
    rng = np.random.default_rng(seed)
    d = math.prod(shape)
    weights = jnp.asarray((rng.normal(size=(d, d)) / math.sqrt(d)).astype(dtype))
    x = jnp.asarray(rng.normal(size=shape).astype(dtype))
    J = jax.jacfwd(lambda y: network_like(weights, y.reshape(shape)).ravel())(x.ravel())
    return Partial(network_like, weights), x, np.asarray(J)


def symmetric(spectrum, seed=0):
    spectrum = np.asarray(spectrum, np.float64)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=2 * spectrum.shape))
    return (basis * spectrum) @ basis.T


def score_with_curvature(K, sigma=SIGMA):
    """The linear score with I + sigma^2 H = K."""
    return Partial(linear, jnp.asarray((K - np.eye(len(K))) / sigma**2))


# --- Naive twins, seed for seed -----------------------------------------------------------------


@functools.lru_cache
def compiled_sampler(sampler, shape, dtype):
    return jax.jit(getattr(stochtrace, f"sampler_{sampler}")(jnp.zeros(shape, dtype), num=1))


METHODS = {kind.name: kind for kind in (Hutchinson, HutchPP, XTrace)}


def probes(sampler, x, key, count):
    draw = compiled_sampler(sampler, x.shape, x.dtype)
    return [np.asarray(draw(jax.random.fold_in(key, i))).ravel() for i in range(count)]


def naive(method, A, sampler, x, key, products):
    """Samples of tr A by the definition of the method, in dense linear algebra."""
    d = len(A)
    if method == "hutchinson":
        return [v @ A @ v for v in probes(sampler, x, key, products)]
    if method == "hutch++":
        k = products // 3
        omega = probes(sampler, x, key, products - k)
        Q, _ = np.linalg.qr(A @ np.transpose(omega[:k]))
        residual = np.eye(d) - Q @ Q.T
        return [np.trace(Q.T @ A @ Q) + v @ residual @ A @ residual @ v for v in omega[k:]]
    k = products // 2
    omega = probes(sampler, x, key, k)

    def leaving_out(i, *more):
        others = [v for j, v in enumerate(omega) if j not in (i, *more)]
        Q, _ = np.linalg.qr(A @ np.transpose(others))
        g = omega[i] - Q @ Q.T @ omega[i]
        scale = 1.0 if sampler == "signs" else (d - len(others)) / (g @ g)
        return np.trace(Q.T @ A @ Q) + scale * g @ A @ g

    t = np.array([leaving_out(i) for i in range(k)])
    covariances = sum(
        (t[i] - leaving_out(i, j)) * (t[j] - leaving_out(j, i))
        for i in range(k)
        for j in range(k)
        if i != j
    )
    deviations = t - t.mean()
    widening = max(covariances, 0.0) / np.sum(deviations**2)
    return t.mean() + deviations * math.sqrt(1 + widening)


def agree(estimate, samples, num_matvecs):
    assert (estimate.num_samples, estimate.num_matvecs) == (len(samples), num_matvecs)
    close(estimate.value, np.mean(samples))
    close(estimate.standard_error, np.std(samples, ddof=1) / math.sqrt(len(samples)))


@pytest.mark.parametrize(
    ("method", "sampler"),
    [
        ("hutchinson", "signs"),
        pytest.param("hutchinson", "normal", marks=pytest.mark.slow),
        pytest.param("hutchinson", "sphere", marks=pytest.mark.slow),
        ("hutch++", "signs"),
        ("xtrace", "signs"),
        ("xtrace", "sphere"),
    ],
)
def test_trace_against_a_naive_twin(method, sampler, x64):
    score, x, J = setting(np.float64)
    d, num, key = x.size, 13, jax.random.key(7)
    K = np.eye(d) + SIGMA**2 * J
    twin = functools.partial(naive, method, sampler=sampler, x=x, key=key, products=num)
    options = {"key": key, "num_matvecs": num, "method": METHODS[method](sampler)}
    options["batch_size"] = 4
    spent = 12 if method == "xtrace" else 13  # two a sample
    if method == "hutchinson":
        agree(trace(score, x, **options), twin(J), spent)
    on_K = np.array(twin(K))
    agree(trace(score, x, sigma=SIGMA, **options), (on_K - d) / SIGMA**2, spent)
    agree(effective_dimension(score, x, sigma=SIGMA, **options), on_K, spent)


@pytest.mark.parametrize("sampler", ["signs", "sphere"])
def test_xtrace_has_the_value_of_matfree(sampler, x64):
    score, x, _ = setting(np.float64)
    options = {"method": XTrace(sampler), "num_matvecs": 13, "batch_size": 4}
    ours = trace(score, x, sigma=SIGMA, key=KEY, **options)
    drawn = jnp.stack([v.reshape(x.shape) for v in probes(sampler, x, KEY, 6)])
    estimates = stochtrace.leave_one_out_xtrace(apply_resphering=sampler != "signs")
    mv = lambda v, J: v + SIGMA**2 * J.mv(v)
    on_K = jax.jit(lambda J: estimates(mv, drawn, J))(jacobian(score, x))
    theirs = (on_K - x.size) / SIGMA**2
    close(ours.value, theirs.mean())
    # Their error estimate is without the covariances.
    assert float(ours.standard_error) >= float(theirs.std(ddof=1)) / math.sqrt(6) - 1e-12


@pytest.mark.parametrize("method", ["hutchinson", pytest.param("xtrace", marks=pytest.mark.slow)])
def test_trace_of_difference_against_a_naive_twin(method, x64):
    score, x, J = setting(np.float64)
    other, _, their_J = setting(np.float64, seed=1)
    their_J = np.asarray(jax.jacfwd(lambda y: other(y.reshape(x.shape)).ravel())(x.ravel()))
    sampler = "sphere" if method == "xtrace" else "signs"  # the defaults
    options = {"key": KEY, "num_matvecs": 27, "method": method, "batch_size": 4}
    samples = naive(method, J - their_J, sampler, x, KEY, 13)
    spent = 24 if method == "xtrace" else 26
    agree(trace_of_difference(score, other, x, **options), samples, spent)


@pytest.mark.parametrize(
    ("k", "method"),
    [(3, "hutchinson")]
    + [
        pytest.param(k, method, marks=pytest.mark.slow)
        for k, method in ((2, "hutchinson"), (4, "hutchinson"), (2, "hutch++"), (3, "xtrace"))
    ],
)
def test_trace_of_power_against_a_naive_twin(k, method, x64):
    score, x, J = setting(np.float64)
    d, sampler = x.size, "normal"
    options = {"power": k, "key": KEY, "num_matvecs": 13 * k + 1, "batch_size": 4}
    options["method"] = METHODS[method](sampler)
    twin = functools.partial(naive, method, sampler=sampler, x=x, key=KEY, products=13)
    power = np.linalg.matrix_power
    spent = (12 if method == "xtrace" else 13) * k
    agree(trace_of_power(score, x, **options), twin(power(J, k)), spent)
    # With sigma the probes meet (K - I)^k - (-I)^k, so (sigma^2 J)^k without its constant part.
    shifted = power(SIGMA**2 * J, k) - (-1) ** k * np.eye(d)
    samples = (np.array(twin(shifted)) + (-1) ** k * d) / SIGMA ** (2 * k)
    agree(trace_of_power(score, x, sigma=SIGMA, **options), samples, spent)


@pytest.mark.parametrize("sampler", ["normal", pytest.param("signs", marks=pytest.mark.slow)])
def test_frobenius_norm_against_a_naive_twin(sampler, x64):
    score, x, J = setting(np.float64)
    options = {"key": KEY, "num_matvecs": 10, "method": Hutchinson(sampler), "batch_size": 4}
    for sigma, A in ((None, J), (SIGMA, np.eye(x.size) + SIGMA**2 * J)):
        squares = [np.sum((A @ v) ** 2) for v in probes(sampler, x, KEY, 10)]
        estimate = frobenius_norm(score, x, sigma=sigma, **options)
        assert (estimate.num_samples, estimate.num_matvecs) == (10, 10)
        close(estimate.value**2, np.mean(squares))
        error_of_square = np.std(squares, ddof=1) / math.sqrt(10)
        close(2 * estimate.value * estimate.standard_error, error_of_square)


@pytest.mark.parametrize(
    "batch_size", [4, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 10, 64))]
)
def test_diagonal_against_a_naive_twin(batch_size, x64):
    score, x, J = setting(np.float64)
    samples = [v * (J @ v) for v in probes("signs", x, KEY, 10)]
    estimate = diagonal(score, x, key=KEY, num_matvecs=10, batch_size=batch_size)
    assert (estimate.num_samples, estimate.num_matvecs) == (10, 10)
    assert estimate.value.shape == estimate.standard_error.shape == x.shape
    close(estimate.value.ravel(), np.mean(samples, axis=0))
    close(estimate.standard_error.ravel(), np.std(samples, axis=0, ddof=1) / math.sqrt(10))


# --- Exact --------------------------------------------------------------------------------------


def test_exact_values(x64):
    score, x, J = setting(np.float64)
    K = np.eye(24) + SIGMA**2 * J
    exact = {"method": "exact", "batch_size": 7}
    other = Partial(linear, jnp.asarray(np.arange(24.0 * 24).reshape(24, 24) / 24, x.dtype))
    cases = [
        (trace(score, x, **exact), np.trace(J), 24),
        (trace(score, x, sigma=SIGMA, **exact), np.trace(J), 24),
        (effective_dimension(score, x, sigma=SIGMA, **exact), np.trace(K), 24),
        (
            trace_of_difference(score, other, x, **exact),
            np.trace(J) - np.trace(np.asarray(other.args[0])),
            48,
        ),
        (frobenius_norm(score, x, **exact), np.linalg.norm(J), 24),
        (frobenius_norm(score, x, sigma=SIGMA, **exact), np.linalg.norm(K), 24),
        (diagonal(score, x, **exact), np.diag(J).reshape(x.shape), 24),
    ]
    for k in (2, 3, 4):
        truth = np.trace(np.linalg.matrix_power(J, k))
        cases.append((trace_of_power(score, x, power=k, **exact), truth, 24))
    for estimate, truth, cost in cases:
        close(estimate.value, truth)
        assert not np.any(estimate.standard_error)
        assert (estimate.num_samples, estimate.num_matvecs, estimate.stopped) == (0, cost, None)
        low, high = estimate.interval()
        assert np.all(low == high)


def test_xtrace_takes_the_exact_trace_where_that_is_no_dearer():
    score, x, J = setting(np.float32)
    options = {"key": KEY, "method": "xtrace"}
    for num_matvecs in (24, 25, 49):
        estimate = trace(score, x, num_matvecs=num_matvecs, **options)
        assert (float(estimate.standard_error), estimate.num_matvecs) == (0.0, 24)
        close(estimate.value, np.trace(J), np.float32)


@pytest.mark.slow
def test_effective_dimension_of_a_data_set():
    p = Empirical(np.random.default_rng(0).normal(size=(20, 2, 4))).noised(0.6, 0.8)
    x = jnp.full((2, 4), 0.3)
    exact = effective_dimension(p.score, x, sigma=p.sigma, method="exact")
    close(exact.value, p.effective_dimension(x), np.float32)
    options = {"key": KEY, "num_matvecs": 200}
    estimate = effective_dimension(p.score, x, sigma=p.sigma, **options)
    assert abs(estimate.value - exact.value) < 4.5 * estimate.standard_error


# --- Densities: within 4 standard errors and rounding of the float64 truth -----------------------


def noised_density(kind, d, condition, dtype):
    """A density at sigma = 0.5 whose covariances have eigenvalues sigma^2 [1, condition]."""
    rng = np.random.default_rng(d)

    def covariance(seed):
        # Householder reflections rather than a random basis: d = 784 costs nothing.
        u = np.random.default_rng(seed).normal(size=d)
        u /= np.linalg.norm(u)
        spectrum = SIGMA**2 * (np.geomspace(1, condition, d) - 1 + 1e-3)
        reflected = np.diag(spectrum) - 2 * np.outer(u, u * spectrum)
        return reflected - 2 * np.outer(reflected @ u, u)

    if kind == "gaussian":
        p = Gaussian(np.zeros(d, dtype), covariance(0).astype(dtype))
    else:
        means = (0.3 * SIGMA * rng.normal(size=(2, d))).astype(dtype)
        covariances = np.stack([covariance(0), covariance(1)]).astype(dtype)
        p = GaussianMixture(np.array([0.3, 0.7], dtype), means, covariances)
    x = jnp.asarray(0.3 * SIGMA * rng.normal(size=d), dtype)
    return p.noised(1.0, SIGMA), x


def float64_hessian(p, x):
    with jax.enable_x64(True):
        p = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), p)
        return np.asarray(p.hessian(np.asarray(x, np.float64)))


DIMENSIONS = (1, 2, 16, 784)
CASES = [
    (kind, d, condition, dtype)
    for kind in ("gaussian", "mixture")
    for d in DIMENSIONS
    for dtype, conditions in ((np.float64, (1.0, 1e3, 1e6)), (np.float32, (1.0, 1e3)))
    for condition in conditions
]


def cases(*fast):
    """The whole grid, slow but for the cases given."""
    return pytest.mark.parametrize(
        ("kind", "d", "condition", "dtype"),
        [pytest.param(*c, marks=[] if c in fast else pytest.mark.slow) for c in CASES],
    )


def within(estimate, truth, scale, dtype):
    """4 standard errors and 100 eps of the scale on which the estimator rounds."""
    rounding = 100 * np.finfo(dtype).eps * np.maximum(scale, np.abs(truth))
    error = np.abs(np.asarray(estimate.value, np.float64) - truth)
    return np.all(error <= 4 * np.asarray(estimate.standard_error) + rounding)


@cases(("mixture", 16, 1e3, np.float32))
def test_every_method_against_the_closed_form(kind, d, condition, dtype):
    with jax.enable_x64(dtype == np.float64):
        p, x = noised_density(kind, d, condition, dtype)
        H = float64_hessian(p, x)
        K = np.eye(d) + SIGMA**2 * H
        num = {1: 4, 2: 6, 16: 48}.get(d, 96)
        for method in ("exact", *STOCHASTIC):
            options = {"key": KEY, "method": method, "num_matvecs": num, "sigma": SIGMA}
            if method == "xtrace":
                options["num_matvecs"] = min(num, 2 * d + 1)
            # K is computed as I - sigma^2 |H|, so it rounds on the scale of tr I = d.
            assert within(effective_dimension(p.score, x, **options), np.trace(K), d, dtype)
            assert within(trace(p.score, x, **options), np.trace(H), d / SIGMA**2, dtype)


@cases()
def test_every_other_estimator_against_the_closed_form(kind, d, condition, dtype):
    with jax.enable_x64(dtype == np.float64):
        p, x = noised_density(kind, d, condition, dtype)
        H = float64_hessian(p, x)
        norm, score = np.linalg.norm(H), p.score
        options = {"key": KEY, "num_matvecs": 64}
        assert within(trace(score, x, **options), np.trace(H), np.abs(H).trace(), dtype)
        assert within(frobenius_norm(score, x, **options), norm, norm, dtype)
        # 784 entries at 64 samples: the largest of that many t-variables may pass 4.
        entries = diagonal(score, x, **options)
        t = np.abs(entries.value - np.diag(H)) / (
            entries.standard_error + 25 * np.finfo(dtype).eps * norm
        )
        assert np.mean(t > 4) < 0.005
        estimate = trace_of_power(score, x, power=3, sigma=SIGMA, **options | {"num_matvecs": 192})
        assert within(estimate, np.trace(H @ H @ H), d / SIGMA**6, dtype)
        noise = Partial(linear, -jnp.eye(d, dtype=dtype) / SIGMA**2)
        estimate = trace_of_difference(score, noise, x, **options)
        assert within(estimate, np.trace(H) + d / SIGMA**2, d / SIGMA**2, dtype)


# --- Hard operators -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "dtype"),
    [(method, np.float32) for method in STOCHASTIC]
    + [pytest.param(method, np.float64, marks=pytest.mark.slow) for method in STOCHASTIC],
)
def test_zero_low_rank_and_extreme_scales(method, dtype):
    """Operators that defeat absolute tolerances: A = 0, of rank 5 exactly, of size 1e-8 and 1e8."""
    d, exact_on_low_rank = 40, method != "hutchinson"
    options = {"key": jax.random.key(3), "method": method, "num_matvecs": 32}
    spectra = np.zeros(d), np.r_[np.full(5, 3.0), np.zeros(d - 5)], np.geomspace(1, 0.01, d)
    with jax.enable_x64(dtype == np.float64):
        for spectrum, scale in itertools.product(spectra, (1.0, 1e-8, 1e8)):
            A = symmetric(scale * spectrum)
            score, x = Partial(linear, jnp.asarray(A, dtype)), jnp.zeros(d, dtype)
            truth = scale * np.sum(spectrum)
            estimate = trace(score, x, **options)
            assert within(estimate, truth, truth, dtype)
            error = float(estimate.standard_error)
            if np.count_nonzero(spectrum) <= 5 and exact_on_low_rank:
                rounding = 100 * np.finfo(dtype).eps * truth
                assert max(abs(float(estimate.value) - truth), error) <= rounding
            elif truth:
                assert error > 1e-4 * truth


@pytest.mark.parametrize("power_of_two", [-75, 75])
@pytest.mark.parametrize("name", ["hutchinson", "hutch++", "xtrace", "power", "norm", "diagonal"])
def test_scale_is_a_matter_of_units(name, power_of_two):
    """What the same probes say of A and of 2^k A, whose squares are out of float32's range."""
    A = jnp.asarray(np.random.default_rng(0).normal(size=(30, 30)), jnp.float32)
    estimator, degree = {
        "power": (functools.partial(trace_of_power, power=2), 2),
        "norm": (frobenius_norm, 1),
        "diagonal": (diagonal, 1),
    }.get(name, (functools.partial(trace, method=name), 1))
    factor = 2.0 ** (power_of_two // degree)
    one, other = (
        estimator(Partial(linear, a), jnp.zeros(30), key=KEY, num_matvecs=24)
        for a in (A, factor * A)
    )
    for ours, theirs in (
        (other.value, one.value),
        (other.standard_error, one.standard_error),
    ):
        assert (np.asarray(theirs) != 0).all()
        np.testing.assert_allclose(ours / factor**degree, theirs, rtol=1e-4)
    if name == "norm":
        exact = frobenius_norm(Partial(linear, factor * A), jnp.zeros(30), method="exact")
        np.testing.assert_allclose(exact.value / factor, np.linalg.norm(A), rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.002, 1348.0])
def test_fourth_power_of_a_data_set_at_the_noise_levels_of_the_field(sigma):
    """In float32 at d = 3,072, against the eigenvalues of K, of rank 63, in float64."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(64, 3072)).astype(np.float32)
    x = (points[0] + sigma * rng.normal(size=3072)).astype(np.float32)
    far = np.sum((np.float64(points) - x) ** 2, axis=1) / (2 * sigma**2)
    weights = np.exp(far.min() - far) / np.sum(np.exp(far.min() - far))
    centred = np.sqrt(weights)[:, None] * (points - weights @ points) / sigma
    K = np.linalg.eigvalsh(centred @ centred.T)
    truth = (np.sum((K - 1) ** 4) + 3072 - 64) / sigma**8
    score = Empirical(points).noised(1.0, sigma).score
    options = {"power": 4, "key": KEY, "num_matvecs": 256, "method": Hutchinson("normal")}
    rough = trace_of_power(score, x, **options)
    low, high = rough.interval(0.999)
    assert 0 < high - low < 0.1 * truth
    assert low < truth < high
    fine = trace_of_power(score, x, sigma=sigma, **options)
    np.testing.assert_allclose(fine.value, truth, rtol=3e-6)
    assert 0 < fine.standard_error < 1e-6 * truth


def test_pure_noise_has_no_error_on_K():
    """H = -I/sigma^2: normal probes err on H, and on K = 0 they cannot."""
    score, x = Partial(linear, -4.0 * jnp.eye(8)), jnp.ones(8)
    options = {"key": KEY, "method": Hutchinson("normal")}
    on_K = trace(score, x, sigma=SIGMA, **options)
    assert (float(on_K.value), float(on_K.standard_error)) == (-32.0, 0.0)
    assert float(trace(score, x, **options).standard_error) > 0.5
    cubes = trace_of_power(score, x, power=3, sigma=SIGMA, **options)
    assert (float(cubes.value), float(cubes.standard_error)) == (-512.0, 0.0)


def test_common_probes_cancel_what_two_scores_share():
    """J - J' = I/100: no error with signs, where each trace alone has a large one."""
    shared = 3.0 * symmetric(np.geomspace(1, 0.01, 40))
    ours, theirs = (Partial(linear, jnp.asarray(shared + c * np.eye(40))) for c in (0.01, 0.0))
    x = jnp.zeros(40)
    estimate = trace_of_difference(ours, theirs, x, key=KEY)
    assert (estimate.num_samples, estimate.num_matvecs) == (32, 64)
    rounding = 100 * np.finfo(np.float32).eps * np.trace(shared)
    assert abs(float(estimate.value) - 0.4) < rounding
    assert float(estimate.standard_error) < rounding
    assert float(trace(ours, x, key=KEY).standard_error) > 0.1


def test_trace_of_power_of_a_rotation_is_not_a_norm():
    """J = [[0, 1], [-1, 0]]: tr J^2 = -2 and ||J||_F^2 = 2."""
    score, x = Partial(linear, jnp.array([[0.0, 1.0], [-1.0, 0.0]])), jnp.zeros(2)
    assert float(trace_of_power(score, x, power=2, key=KEY).value) == -2.0
    close(frobenius_norm(score, x, key=KEY).value, math.sqrt(2), np.float32)


# --- Unbiasedness and coverage --------------------------------------------------------------------


def replicate(estimator, repetitions, seed=11):
    """Independent estimates: an Estimate with a batch axis."""
    keys = jax.random.split(jax.random.key(seed), repetitions)
    return jax.jit(lambda keys: jax.lax.map(estimator, keys, batch_size=100))(keys)


SLOW_DECAY = np.geomspace(3.0, 0.05, 32)


@pytest.mark.parametrize(
    "sampler",
    [
        "signs",
        pytest.param("normal", marks=pytest.mark.slow),
        pytest.param("sphere", marks=pytest.mark.slow),
    ],
)
def test_hutchinson_is_unbiased_and_covers_the_truth(sampler, x64):
    """Nominal 95% intervals from 64 probes cover 93 to 97%: effective rank at least 10, d = 32.

    With 3,000 repetitions the observed coverage has a binomial standard error of 0.4 points, so
    the band is 5 of them wide on each side of 95%.
    """
    K = symmetric(SLOW_DECAY)
    assert np.trace(K) ** 2 / np.sum(K**2) >= 10
    repetitions, truth = 3000, np.trace(K)
    score, x = score_with_curvature(K), jnp.zeros(32)
    options = {"sigma": SIGMA, "num_matvecs": 64, "batch_size": 64}
    options["method"] = Hutchinson(sampler)
    estimates = replicate(lambda k: effective_dimension(score, x, key=k, **options), repetitions)
    low, high = estimates.interval(level=0.95)
    coverage = np.mean((low <= truth) & (truth <= high))
    assert 0.93 < coverage < 0.97
    values = np.asarray(estimates.value)
    spread = values.std(ddof=1)
    assert abs(values.mean() - truth) < 4.5 * spread / math.sqrt(repetitions)
    # The standard error that is reported is the spread that is observed.
    reported = math.sqrt(np.mean(np.asarray(estimates.standard_error) ** 2))
    assert abs(reported / spread - 1) < 5 / math.sqrt(2 * repetitions)
    # And it is the one of theory: 2 |off-diagonal|^2 for signs, 2 |K|^2 for normal probes.
    squares = np.sum(K**2)
    variance = {
        "signs": 2 * (squares - np.sum(np.diag(K) ** 2)),
        "normal": 2 * squares,
        "sphere": 2 * (squares - truth**2 / 32) * 32 / 34,
    }[sampler]
    assert abs(spread / math.sqrt(variance / 64) - 1) < 5 / math.sqrt(2 * repetitions)


def measured_coverage(estimator, truth, repetitions):
    estimates = replicate(estimator, repetitions)
    low, high = estimates.interval(level=0.95)
    values = np.asarray(estimates.value)
    bias = values.mean(axis=0) - truth
    assert np.all(np.abs(bias) < 4.5 * values.std(axis=0, ddof=1) / math.sqrt(repetitions))
    return np.mean((low <= truth) & (truth <= high))


@pytest.mark.parametrize(
    ("method", "num_matvecs"),
    [
        pytest.param("xtrace", 64, marks=pytest.mark.slow),
        pytest.param("xtrace", 128, marks=pytest.mark.slow),
        pytest.param("hutch++", 192, marks=pytest.mark.slow),
    ],
)
def test_sketches_are_unbiased_and_cover_the_truth(method, num_matvecs):
    """As Hutchinson's, from 32 or 64 samples, at d = 200; 1,000 repetitions: 0.7 points binomially.

    That is 2.9 binomial standard errors on each side; benchmarks/coverage.py prints the table.
    """
    K = symmetric(np.geomspace(1.0, 0.02, 200))
    assert np.trace(K) ** 2 / np.sum(K**2) >= 10
    score, x = score_with_curvature(K), jnp.zeros(200)
    options = {"sigma": SIGMA, "method": method, "num_matvecs": num_matvecs, "batch_size": 64}
    coverage = measured_coverage(
        lambda k: effective_dimension(score, x, key=k, **options), np.trace(K), 1000
    )
    assert 0.93 < coverage < 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trace_of_difference", "trace_of_power", "diagonal"])
def test_the_other_estimators_cover_the_truth(name, x64):
    """From 64 probes, at effective rank >= 10, d = 32; 3,000 repetitions."""
    K = symmetric(SLOW_DECAY)
    score, x = score_with_curvature(K), jnp.zeros(32)
    other = score_with_curvature(symmetric(SLOW_DECAY[::-1], seed=5))
    H = np.asarray(score.args[0])
    options = {"batch_size": 64}
    estimator, truth = {
        "trace_of_difference": (
            lambda k: trace_of_difference(score, other, x, key=k, num_matvecs=128, **options),
            np.trace(H - np.asarray(other.args[0])),
        ),
        "trace_of_power": (
            lambda k: trace_of_power(score, x, power=2, key=k, num_matvecs=128, **options),
            np.trace(H @ H),
        ),
        "diagonal": (
            lambda k: diagonal(score, x, key=k, num_matvecs=64, **options),
            np.diag(H),
        ),
    }[name]
    assert 0.93 < measured_coverage(estimator, truth, 3000) < 0.97


@pytest.mark.slow
def test_frobenius_norm_covers_the_truth_and_is_low_by_what_it_says(x64):
    K = symmetric(SLOW_DECAY)
    score, x, truth = score_with_curvature(K), jnp.zeros(32), np.linalg.norm(K)
    options = {"sigma": SIGMA, "num_matvecs": 64, "batch_size": 64}
    options["method"] = Hutchinson("normal")
    estimates = replicate(lambda k: frobenius_norm(score, x, key=k, **options), 3000)
    low, high = estimates.interval(level=0.95)
    assert 0.93 < np.mean((low <= truth) & (truth <= high)) < 0.97
    values, errors = np.asarray(estimates.value), np.asarray(estimates.standard_error)
    unit = values.std(ddof=1) / math.sqrt(3000)
    assert abs(np.mean(values**2) - truth**2) < 4.5 * 2 * truth * unit
    assert abs(values.mean() - truth + np.mean(errors**2) / (2 * truth)) < 4.5 * unit


# --- Batches, transformations, memory -------------------------------------------------------------


def estimators(other):
    """Estimators as `f(score, x, key=..., batch_size=...)`, one for each way through the code."""
    return {
        "hutchinson": functools.partial(trace, sigma=SIGMA, num_matvecs=20),
        "power": functools.partial(trace_of_power, power=2, num_matvecs=40, method="hutch++"),
        "difference": lambda score, x, **options: trace_of_difference(
            score, other, x, num_matvecs=40, method="xtrace", **options
        ),
        "norm": functools.partial(frobenius_norm, num_matvecs=20),
        "diagonal": functools.partial(diagonal, num_matvecs=20),
    }


@pytest.mark.fast_cases("difference", "diagonal")
@pytest.mark.parametrize("name", ["power", "difference", "diagonal", "norm"])
def test_batches_jit_and_vmap_do_not_change_the_numbers(name):
    score, x, _ = setting(np.float32)
    estimator = estimators(setting(np.float32, seed=1)[0])[name]
    whole = estimator(score, x, key=KEY, batch_size=20)
    keys = jnp.stack([KEY, jax.random.key(1)])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    def mapped(score, x, key):
        return estimator(score, x, key=key, batch_size=7)

    both = mapped(score, x, keys)
    close(both.value[0], whole.value, np.float32)
    np.testing.assert_allclose(both.standard_error[0], whole.standard_error, rtol=1e-3, atol=1e-5)
    assert (both.num_samples, both.num_matvecs) == (whole.num_samples, whole.num_matvecs)
    assert np.all(both.value[0] != both.value[1])


@pytest.mark.slow
def test_at_points():
    score, x, _ = setting(np.float32)
    options = {"method": "xtrace", "num_matvecs": 16, "sigma": SIGMA}
    points = jnp.stack([x, 2 * x, 3 * x])
    estimates = at_points(trace, score, points, key=KEY, points_at_once=2, **options)
    for i in range(3):
        one = trace(score, points[i], key=jax.random.fold_in(KEY, i), **options)
        close(estimates.value[i], one.value, np.float32)


def test_a_score_that_is_a_pytree_is_traced_once():
    traces = 0

    def counted(weights, x):
        nonlocal traces
        traces += 1
        return network_like(weights, x)

    for seed in range(3):
        score, x, _ = setting(np.float32, seed=seed)
        trace(Partial(counted, *score.args), x, key=jax.random.key(seed), method="hutch++")
    assert traces == 1


def temporary_bytes(function, *arguments, **static):
    return function.lower(*arguments, **static).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_probes():
    score = Partial(linear, jnp.eye(512))
    A = Curvature((jacobian(score, jnp.ones(512)),), 1.0, power=3)
    options = {"batch_size": 8, "sampler": "signs", "integrand": _QUADRATIC_FORM}
    few, many = (temporary_bytes(monte_carlo, A, KEY, 0, num=n, **options) for n in (64, 4096))
    assert many < 2 * few
    few, many = (temporary_bytes(_diagonal, A, KEY, num=n, batch_size=8) for n in (64, 4096))
    assert many < 2 * few


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_sketches_hold_the_tangents_of_one_batch(method):
    """A score with 4,096 hidden units on 64 coordinates: its tangents dwarf the sketch."""

    def wide(weights, x):
        return weights.T @ jnp.tanh(weights @ x)

    weights = jnp.asarray(np.random.default_rng(0).normal(size=(4096, 64)) / 64, jnp.float32)
    J = jacobian(Partial(wide, weights), jnp.ones(64))

    @functools.partial(jax.jit, static_argnames="batch_size")
    def run(J, *, batch_size):
        score = Partial(lambda J, x: J.tangent_map(x), J)
        options = {"method": method, "num_matvecs": 60, "batch_size": batch_size}
        return trace(score, J.point, key=KEY, **options).value

    one, all_of_them = (temporary_bytes(run, J, batch_size=b) for b in (1, 30))
    tangent = 4 * 4096
    assert all_of_them > 15 * tangent
    assert one < all_of_them - 10 * tangent


def counting_score():
    """A linear score, and a list with an entry for each product with its Jacobian."""
    matrix = symmetric(np.geomspace(1, 1e-3, 24)).astype(np.float32)
    products = []

    def multiply(v):
        products.append(1)
        return matrix @ np.asarray(v)  # numpy: a callback that calls JAX may wait for ever

    @jax.custom_jvp
    def score(x):
        return matrix @ x

    @score.defjvp
    def tangent(primals, tangents):
        shape = jax.ShapeDtypeStruct((24,), np.float32)
        (x,), (v,) = primals, tangents
        return score(x), jax.pure_callback(multiply, shape, v, vmap_method="sequential")

    return score, products


@pytest.mark.parametrize("name", ["power", "difference", "diagonal"])
def test_the_products_reported_are_those_that_were_spent(name):
    (score, ours), (other, theirs) = counting_score(), counting_score()
    estimate = estimators(other)[name](score, jnp.zeros(24), key=KEY, batch_size=1)
    jax.block_until_ready(estimate.value)
    assert estimate.num_matvecs == len(ours) + len(theirs)


# --- Adaptive -------------------------------------------------------------------------------------


def decaying(d=300):
    """A score, its point, and the key for every adaptive test: tr K = 9.2, effective rank 7."""
    K = symmetric(np.r_[np.geomspace(2.0, 0.01, 40), np.full(d - 40, 1e-3)])
    return score_with_curvature(K), jnp.zeros(d), float(np.trace(K))


@pytest.mark.parametrize(
    "method", ["hutchinson", pytest.param("hutch++", marks=pytest.mark.slow), "xtrace"]
)
def test_adaptive_stops_at_the_tolerance(method):
    score, x, truth = decaying()
    options = {"sigma": SIGMA, "key": KEY, "method": method}
    estimate = effective_dimension(score, x, rtol=0.05, max_matvecs=290, **options)
    assert estimate.stopped == "tolerance"
    assert 0 < float(estimate.standard_error) <= 0.05 * abs(float(estimate.value))
    assert abs(float(estimate.value) - truth) < 4 * float(estimate.standard_error)
    assert estimate.num_samples >= 16
    # What it returns is what its last round alone returns.
    last = estimate.num_matvecs
    if method != "hutchinson":  # 32 + 64 + ... + last
        last = (last + 32) // 2
    same = effective_dimension(score, x, num_matvecs=last, **options)
    assert same.num_samples == estimate.num_samples
    close(same.value, estimate.value, np.float32)
    close(same.standard_error, estimate.standard_error, np.float32)


@pytest.mark.parametrize(
    "method", ["hutchinson", pytest.param("hutch++", marks=pytest.mark.slow), "xtrace"]
)
def test_adaptive_stops_at_the_budget(method):
    score, x, _ = decaying()
    options = {"sigma": SIGMA, "key": KEY, "method": method, "rtol": 1e-6}
    for max_matvecs in (33, 100):
        estimate = effective_dimension(score, x, max_matvecs=max_matvecs, **options)
        assert estimate.stopped == "budget"
        assert estimate.num_matvecs <= max_matvecs
        assert float(estimate.standard_error) > 1e-6 * abs(float(estimate.value))
    # With Hutchinson no product is left over, whatever the batches.
    if method == "hutchinson":
        assert estimate.num_matvecs == 100


@pytest.mark.parametrize("method", ["hutchinson", pytest.param("hutch++", marks=pytest.mark.slow)])
def test_adaptive_takes_the_exact_trace_where_it_is_cheaper(method):
    score, x, truth = decaying(d=100)
    options = {"sigma": SIGMA, "key": KEY, "method": method, "rtol": 1e-6}
    estimate = effective_dimension(score, x, **options)
    spent = 32 if method == "hutchinson" else 32 + 64
    assert (estimate.stopped, estimate.num_matvecs) == ("tolerance", spent + 100)
    assert (estimate.num_samples, float(estimate.standard_error)) == (0, 0.0)
    close(estimate.value, truth, np.float32)
    # From the start where the first round costs as much, and there any width is allowed.
    estimate = effective_dimension(score, x, num_matvecs=400, **options)
    assert (estimate.stopped, estimate.num_matvecs) == ("tolerance", 100)


def test_adaptive_wants_sixteen_samples():
    """A diagonal H has no error with signs, so the first look would stop."""
    score, x = Partial(linear, -jnp.eye(40)), jnp.zeros(40)
    options = {"key": KEY, "rtol": 0.1, "batch_size": 6}
    assert trace(score, x, num_matvecs=6, **options).num_samples == 18
    assert trace(score, x, num_matvecs=16, **options).num_samples == 16


def test_adaptive_trace_and_difference():
    score, x, truth = decaying()
    options = {"key": KEY, "rtol": 0.05, "method": "xtrace", "max_matvecs": 290}
    estimate = trace(score, x, sigma=SIGMA, **options | {"rtol": 1e-3})
    assert estimate.stopped == "tolerance"
    assert abs(float(estimate.value) - (truth - 300) / SIGMA**2) < 4 * estimate.standard_error
    noise = Partial(linear, -jnp.eye(300) / SIGMA**2)  # J - J' = K/sigma^2
    estimate = trace_of_difference(score, noise, x, **options | {"max_matvecs": 590})
    assert (estimate.stopped, estimate.num_matvecs % 2) == ("tolerance", 0)
    assert float(estimate.standard_error) <= 0.05 * float(estimate.value)
    assert abs(float(estimate.value) - truth / SIGMA**2) < 4 * estimate.standard_error


def test_adaptive_exact():
    score, x, truth = decaying(d=100)
    options = {"sigma": SIGMA, "method": "exact", "rtol": 0.1}
    estimate = effective_dimension(score, x, **options)
    assert (estimate.stopped, estimate.num_matvecs) == ("tolerance", 100)
    close(estimate.value, truth, np.float32)
    with pytest.raises(ValueError, match=r"max_matvecs must be at least the 100 .* got 99"):
        effective_dimension(score, x, max_matvecs=99, **options)


def test_a_sampler_that_is_none():
    with pytest.raises(ValueError, match=r"sampler must be one of \['signs', .*, got 'cauchy'"):
        Hutchinson("cauchy")


# --- Errors ---------------------------------------------------------------------------------------

TRACES = {
    "trace": trace,
    "effective_dimension": effective_dimension,
    "trace_of_difference": lambda s, x, sigma=None, **more: trace_of_difference(s, s, x, **more),
    "trace_of_power": lambda s, x, **more: trace_of_power(s, x, **{"power": 2} | more),
    "frobenius_norm": frobenius_norm,
    "diagonal": lambda s, x, sigma=None, **more: diagonal(s, x, **more),
}
ADAPTIVE = ("trace", "effective_dimension", "trace_of_difference")


def bad(options, message, names=tuple(TRACES)):
    return [(name, options, message) for name in names]


WITH_SIGMA = ("trace", "effective_dimension", "trace_of_power", "frobenius_norm")
ALL_METHODS = (*ADAPTIVE, "trace_of_power")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *bad({"method": "hutch"}, "method must be one of 'hutchinson', .*'exact', .* got 'hutch'"),
        *bad(
            {"method": "xtrace"},
            "method must be one of .* got 'xtr",
            ("frobenius_norm", "diagonal"),
        ),
        *bad({"method": Hutchinson("normal")}, "must be 'signs'.*, got 'normal'", ("diagonal",)),
        *bad({"key": None}, r"pass key=jax\.random\.key"),
        *bad({"num_matvecs": 0}, "num_matvecs.* must be an integer >= [12], got 0"),
        *bad({"num_matvecs": 2.0}, r"num_matvecs.* must be an integer >= [12], got 2\.0"),
        *bad({"num_matvecs": True}, "num_matvecs.* must be an integer >= [12], got True"),
        *bad({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        *bad({"sigma": 0.0}, r"sigma must be .*finite and > 0, got 0\.0", WITH_SIGMA),
        *bad({"sigma": -1.0}, r"sigma must be .*finite and > 0, got -1\.0", WITH_SIGMA),
        *bad({"sigma": float("nan")}, "sigma must be .*finite", WITH_SIGMA),
        *bad({"sigma": np.ones(2)}, r"sigma must be one number, got shape \(2,\)", WITH_SIGMA),
        *bad({"rtol": 0.0}, r"rtol must be .*finite and > 0, got 0\.0", ADAPTIVE),
        *bad({"rtol": -0.1}, r"rtol must be .*finite and > 0, got -0\.1", ADAPTIVE),
        *bad({"max_matvecs": 99}, "max_matvecs is the budget .* give rtol", ADAPTIVE),
        *bad({"rtol": 0.1, "max_matvecs": 0}, "max_matvecs must be .*got 0", ADAPTIVE),
        *bad(
            {"rtol": 0.1, "max_matvecs": 9, "num_matvecs": 16},
            "max_matvecs must be at least num_matvecs=16.* got 9; raise the one or lower the other",
            ADAPTIVE,
        ),
        *bad(
            {"method": "hutch++", "num_matvecs": 2},
            r"num_matvecs of method='hutch\+\+' must be an integer >= [36], got 2",
            ALL_METHODS,
        ),
        *bad(
            {"method": "xtrace", "num_matvecs": 1},
            "num_matvecs of method='xtrace' must be an integer >= [24], got 1",
            ALL_METHODS,
        ),
        *bad({"power": 1}, "power must be 2, 3 or 4, got 1; .* use trace", ("trace_of_power",)),
        *bad({"power": 5}, "power must be 2, 3 or 4, got 5", ("trace_of_power",)),
        *bad({"power": 2.5}, r"power must be 2, 3 or 4, got 2\.5", ("trace_of_power",)),
        *bad({"power": True}, "power must be 2, 3 or 4, got True", ("trace_of_power",)),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        TRACES[name](lambda x: -x, jnp.ones(3), **{"key": KEY, "sigma": 1.0} | options)


@pytest.mark.parametrize(
    "call",
    [
        lambda run, x: jax.jit(run)(x, 0.1),
        lambda run, x: jax.vmap(run, (0, None))(x[None], 0.1),
        lambda run, x: jax.jit(lambda rtol: run(x, rtol))(0.1),
        lambda run, x: at_points(trace, Partial(linear, -jnp.eye(40)), x[None], key=KEY, rtol=0.1),
    ],
)
def test_adaptive_needs_values(call):
    score, x, _ = decaying(d=40)
    run = lambda x, rtol: trace(score, x, key=KEY, rtol=rtol).value
    with pytest.raises(ValueError, match=r"rtol looks at values.*fixed num_matvecs"):
        call(run, x)


def overflowing(x):
    """J v = 2e38 (v_0 + v_1) (e_0 + e_1): infinite in float32 for signs that agree, else zero."""
    return jnp.zeros_like(x).at[:2].set(2e38 * (x[0] + x[1]))


@pytest.mark.parametrize(
    "name",
    [
        "power",
        "diagonal",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("hutchinson", "difference", "norm")
        ),
    ],
)
def test_a_product_that_is_not_finite_is_named(name):
    x = jnp.zeros(50)
    estimator = estimators(lambda x: -x)[name]
    drawn = probes("signs", x, KEY, 20)
    first = next(i for i, v in enumerate(drawn) if v[0] == v[1])
    with pytest.raises(ValueError, match=rf"The Jacobian times probe {first} is not finite"):
        estimator(overflowing, x, key=KEY)


def test_a_bad_probe_of_a_later_round_is_named():
    x = jnp.zeros(50)
    key = next(
        key
        for key in map(jax.random.key, range(1000))
        if all(v[0] != v[1] for v in probes("signs", x, key, 4))
    )
    first = next(i for i, v in enumerate(probes("signs", x, key, 50)) if v[0] == v[1])
    assert first >= 4
    with pytest.raises(ValueError, match=rf"The Jacobian times probe {first} is not finite"):
        trace(overflowing, x, key=key, num_matvecs=4, batch_size=4, rtol=0.1)


def test_samples_that_overflow_are_not_blamed_on_a_probe():
    with pytest.raises(ValueError, match="The estimate is not finite"):
        trace(lambda x: 2e38 * x, jnp.zeros(3), key=KEY)
    with pytest.raises(ValueError, match=r"The estimate, in units of sigma.*is not finite"):
        trace(lambda x: -1e36 * x, jnp.zeros(500), sigma=1e-18, key=KEY)
