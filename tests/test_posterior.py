"""The posterior covariance, against closed forms and against samples of the posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.curvature import at_points, posterior_covariance
from sharpjax.densities import Empirical, Gaussian, GaussianMixture, LowRankMixture

ALPHA, SIGMA = 0.8, 0.6
KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("x64")


def covariance(d, seed, scale=1.0):
    A = np.random.default_rng(seed).normal(size=(d, d))
    return scale * (A @ A.T / d + 0.1 * np.eye(d))


def of(p, x):
    return posterior_covariance(p.noised(ALPHA, SIGMA).score, x, alpha=ALPHA, sigma=SIGMA)


def dense(C):
    d = C.operator.point.size
    columns = [C.mv(e.reshape(C.operator.point.shape)).ravel() for e in np.eye(d)]
    return np.array(columns).T


def conditioned(mean, S, x):
    """Mean and covariance of x0 ~ N(mean, S) given x."""
    gain = ALPHA * S @ np.linalg.inv(ALPHA**2 * S + SIGMA**2 * np.eye(len(S)))
    return mean + gain @ (x - ALPHA * mean), S - ALPHA * gain @ S


def test_of_a_gaussian():
    mean, S, x = np.arange(5.0), covariance(5, 0), np.random.default_rng(1).normal(size=5)
    C = of(Gaussian(mean, S), x)
    expected, closed = conditioned(mean, S, x)
    np.testing.assert_allclose(C.mean, expected, rtol=1e-10)
    np.testing.assert_allclose(dense(C), closed, atol=1e-10)
    np.testing.assert_allclose(C.symmetric_mv(x), closed @ x, atol=1e-10)


def test_of_a_mixture_and_of_samples_of_its_posterior():
    """200,000 draws: a covariance of n draws is off by about sqrt(2/n) of a variance."""
    weights, means = np.array([0.3, 0.7]), np.random.default_rng(2).normal(size=(2, 4))
    S = np.stack([covariance(4, 3), covariance(4, 4, 0.2)])
    p, x = GaussianMixture(weights, means, S), np.array([0.5, -0.2, 0.1, 0.3])
    C, own = of(p, x), [conditioned(m, s, x) for m, s in zip(means, S, strict=True)]
    log = [
        np.log(w) - 0.5 * np.linalg.slogdet(V := ALPHA**2 * s + SIGMA**2 * np.eye(4))[1]
        - 0.5 * (x - ALPHA * m) @ np.linalg.solve(V, x - ALPHA * m)
        for w, m, s in zip(weights, means, S, strict=True)
    ]  # fmt: skip
    share = np.exp(log - np.max(log))
    share /= share.sum()
    rng, n = np.random.default_rng(5), 200_000
    component = rng.random(n) < share[0]
    draws = np.where(component[:, None], *(rng.multivariate_normal(m, v, n) for m, v in own))
    centre = sum(w * m for w, (m, _) in zip(share, own, strict=True))
    closed = sum(
        w * (v + np.outer(m - centre, m - centre)) for w, (m, v) in zip(share, own, strict=True)
    )
    np.testing.assert_allclose(C.mean, centre, atol=1e-10)
    np.testing.assert_allclose(dense(C), closed, atol=1e-10)
    largest = closed.diagonal().max()
    np.testing.assert_allclose(dense(C), np.cov(draws.T), atol=5 * np.sqrt(2 / n) * largest)


def test_of_a_training_set():
    """What is known of the example is which one it is: the covariance of the weighted points."""
    points = np.random.default_rng(6).normal(size=(7, 3, 2))
    p, x = Empirical(points).noised(ALPHA, SIGMA), np.full((3, 2), 0.1)
    C = posterior_covariance(p.score, x, alpha=ALPHA, sigma=SIGMA)
    w, flat = np.asarray(p.posterior_weights(x)), points.reshape(7, -1)
    np.testing.assert_allclose(C.mean.ravel(), w @ flat, atol=1e-10)
    np.testing.assert_allclose(dense(C), np.cov(flat.T, aweights=w, ddof=0), atol=1e-10)


def low_rank(d=400, rank=5):
    U = np.linalg.qr(np.random.default_rng(7).normal(size=(d, rank)))[0].T
    return LowRankMixture([1.0], np.zeros((1, d)), U[None], np.arange(1.0, 6.0)[None], [1e-4]), U


def test_principal_components_are_those_of_the_data():
    """Of N(0, U' diag(v) U + f I): U and the shrunk variances; descending."""
    p, U = low_rank()
    C = of(p, np.zeros(400))
    found = C.principal_components(5, key=KEY, rtol=1e-8)
    v = np.arange(5.0, 0.0, -1.0) + 1e-4
    shrunk = v * SIGMA**2 / (ALPHA**2 * v + SIGMA**2)
    np.testing.assert_allclose(found.values, shrunk, rtol=1e-6)
    assert np.all(np.asarray(found.residuals) <= 1e-7)
    assert found.complete
    overlap = np.abs(np.einsum("kd,kd->k", found.vectors, U[::-1]))
    np.testing.assert_allclose(overlap, 1, atol=1e-6)
    # the sketch of a low-rank matrix is exact to what lies outside of it
    small = 1e-4 * SIGMA**2 / (ALPHA**2 * 1e-4 + SIGMA**2)
    trace = C.trace(key=KEY, method="xtrace", num_matvecs=24)
    assert float(trace.value) == pytest.approx(shrunk.sum() + 395 * small, abs=1e-3)


def test_standard_errors_hold():
    """z-scores of trace and diagonal; of the deviations' intervals at least as many as they say."""
    S = covariance(24, 8)
    C, (_, closed) = of(Gaussian(np.zeros(24), S), np.zeros(24)), conditioned(0, S, np.zeros(24))
    z, covered = [], []
    for k in range(60):
        key = jax.random.key(100 + k)
        found = C.trace(key=key, num_matvecs=64)
        z.append((found.value - np.trace(closed)) / found.standard_error)
        low, high = C.standard_deviation(key=key, num_matvecs=64).interval()
        root = np.sqrt(np.diag(closed))
        covered.append((low <= root) & (root <= high))
    assert abs(np.mean(z)) < 4 / np.sqrt(60)
    assert np.std(z) == pytest.approx(1, abs=0.35)
    assert np.mean(covered) > 0.93


def test_the_exact_ones_have_no_error():
    S = covariance(6, 9)
    C, (_, closed) = of(Gaussian(np.zeros(6), S), np.zeros(6)), conditioned(0, S, np.zeros(6))
    found = C.standard_deviation(method="exact")
    np.testing.assert_allclose(found.value, np.sqrt(np.diag(closed)), rtol=1e-10)
    assert not np.any(found.standard_error)
    np.testing.assert_allclose(C.trace(method="exact").value, np.trace(closed), rtol=1e-10)


def test_a_variance_below_zero_has_a_deviation_of_zero_and_a_wide_error():
    """Of a score that is no density's: K has the eigenvalue -1."""
    C = posterior_covariance(lambda x: -2.0 * x, np.ones(3), alpha=1.0, sigma=1.0)
    found = C.standard_deviation(key=KEY, num_matvecs=4)
    np.testing.assert_array_equal(found.value, 0)
    np.testing.assert_allclose(C.diagonal(method="exact").value, -1)


def test_asymmetry_is_that_of_what_the_score_says():
    """The identity of pure noise does not dilute it."""
    B = np.array([[0.0, 1.0], [-1.0, 0.0]])
    score = lambda x: -x + (0.5 * np.eye(2) + 0.5 * B) @ x  # K = (I + B)/2
    C = posterior_covariance(score, np.ones(2), alpha=1.0, sigma=1.0)
    assert float(C.asymmetry(key=KEY, num_probes=2000).value) == pytest.approx(1, abs=0.05)


def test_batches_and_jit():
    p = Gaussian(np.zeros(3), covariance(3, 10)).noised(ALPHA, SIGMA)

    def spread(score, x, key):
        return posterior_covariance(score, x, alpha=ALPHA, sigma=SIGMA).trace(key=key)

    points = np.random.default_rng(11).normal(size=(4, 3))
    found = at_points(spread, p.score, points, key=KEY)
    again = [spread(p.score, x, jax.random.fold_in(KEY, i)).value for i, x in enumerate(points)]
    np.testing.assert_allclose(found.value, again, rtol=1e-10)
    operator = jax.jit(lambda x: posterior_covariance(p.score, x, alpha=ALPHA, sigma=SIGMA))
    np.testing.assert_allclose(operator(points[0]).mv(points[1]), of_point(p, points), rtol=1e-10)


def of_point(p, points):
    return posterior_covariance(p.score, points[0], alpha=ALPHA, sigma=SIGMA).mv(points[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, "posterior covariance is undefined or 0 .* at alpha = 0"),
        ({"alpha": -1.0}, "alpha must be finite and >= 0"),
        ({"sigma": 0.0}, "sigma must be finite and > 0"),
        ({"x": np.array([np.nan, 1.0])}, "x is not finite: 1 of 2 entries"),
        ({"x": np.array([1, 2])}, "x must be float32 or float64"),
    ],
)
def test_mistakes(changes, message):
    arguments = {"x": np.ones(2), "alpha": 0.5, "sigma": 0.5} | changes
    with pytest.raises(ValueError, match=message):
        posterior_covariance(lambda x: -x, arguments.pop("x"), **arguments)


def test_single_precision():
    C = posterior_covariance(lambda x: -x, jnp.ones(4, jnp.float32), alpha=0.6, sigma=0.8)
    assert C.mean.dtype == C.mv(jnp.ones(4, jnp.float32)).dtype == jnp.float32
    np.testing.assert_allclose(C.mv(jnp.ones(4, jnp.float32)), 0.64, rtol=1e-5)
