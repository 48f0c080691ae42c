"""Closed forms against automatic differentiation, SciPy, finite differences and Monte Carlo."""

import functools
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpjax.curvature import hessian, p_laplacian
from sharpjax.densities import Empirical, Gaussian, GaussianMixture

DIM = 4
KINDS = ("gaussian", "mixture", "empirical")


def close(actual, desired, dtype=np.float64, scale=1.0):
    tolerance = scale * (1e-10 if dtype == np.float64 else 1e-4)
    desired = np.asarray(desired, np.float64)
    np.testing.assert_allclose(
        actual, desired, rtol=tolerance, atol=tolerance * max(1.0, np.abs(desired).max())
    )


def covariance(rng, dim=DIM):
    factor = rng.normal(size=(dim, dim))
    return factor @ factor.T / dim + 0.3 * np.eye(dim)


@jax.jit
def closed_forms(p, x, v):
    """Every closed form of a density at one point, in one program."""
    out = {"log_prob": p.log_prob(x), "score": p.score(x), "hessian": p.hessian(x)}
    out |= {"one_laplacian": p.p_laplacian(x, 1.0)}
    if isinstance(p, Empirical):
        out |= {"hvp": p.hvp(x, v), "trace_hessian": p.trace_hessian(x)}
        out |= {"effective_dimension": p.effective_dimension(x)}
        out |= {"posterior_weights": p.posterior_weights(x)}
    return out


def density(kind, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "gaussian":
        return Gaussian(rng.normal(size=DIM).astype(dtype), covariance(rng).astype(dtype))
    if kind == "empirical":
        points = rng.normal(size=(6, DIM)).astype(dtype)
        return Empirical(points, weights=rng.dirichlet(np.ones(6)).astype(dtype)).noised(0.8, 0.6)
    return GaussianMixture(
        weights=np.array([0.25, 0.25, 0.0, 0.5], dtype),  # a component may be switched off
        means=rng.normal(size=(4, DIM)).astype(dtype),
        covariances=np.stack([covariance(rng) for _ in range(4)]).astype(dtype),
    )


def point(dtype, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=DIM).astype(dtype))


# --- Closed forms -----------------------------------------------------------------------------


@pytest.mark.quick
@pytest.mark.parametrize("kind", KINDS)
def test_score_and_hessian_are_the_derivatives_of_log_prob(kind, dtype):
    @jax.jit
    def compute(p, x):
        closed = p.log_prob(x), p.score(x), p.hessian(x)
        return closed, jax.grad(p.log_prob)(x), jax.hessian(p.log_prob)(x)

    p, x = density(kind, dtype), point(dtype)
    (log_prob, score, H), gradient, second = compute(p, x)
    assert log_prob.dtype == score.dtype == H.dtype == dtype
    close(score, gradient, dtype)
    close(H, second, dtype)
    close(H, hessian(p.score, x), dtype)
    np.testing.assert_allclose(H, H.T, rtol=1e-6, atol=1e-6)


def test_log_prob_against_scipy(dtype):
    x = point(dtype)
    p = density("gaussian", dtype)
    exact = scipy.stats.multivariate_normal.logpdf(x, p.mean, p.covariance)
    close(closed_forms(p, x, x)["log_prob"], exact, dtype)
    p = density("mixture", dtype)
    parts = [
        w * scipy.stats.multivariate_normal.pdf(x, m, S)
        for w, m, S in zip(*map(np.asarray, jax.tree.leaves(p)), strict=True)
    ]
    close(closed_forms(p, x, x)["log_prob"], math.log(sum(parts)), dtype)


def test_log_prob_far_out_stays_finite():
    x = jnp.full(DIM, 1e4)
    for kind in KINDS:
        for value in closed_forms(density(kind, np.float32), x, x).values():
            assert np.isfinite(value).all()


@pytest.mark.parametrize("equal", [True, False])
def test_noised_empirical_is_the_mixture_at_its_points(equal, dtype):
    rng = np.random.default_rng(3)
    points = rng.normal(size=(7, DIM)).astype(dtype)
    weights = np.full(7, 1 / 7, dtype) if equal else rng.dirichlet(np.ones(7)).astype(dtype)
    alpha, sigma = 0.8, 0.6
    p = Empirical(points, weights=None if equal else weights).noised(alpha, sigma)
    eye = np.broadcast_to(sigma**2 * np.eye(DIM), (7, DIM, DIM)).astype(dtype)
    q = GaussianMixture(weights, (alpha * points).astype(dtype), eye)
    x, v = point(dtype), point(dtype, seed=9)
    ours, theirs = closed_forms(p, x, v), closed_forms(q, x, v)
    for name in ("log_prob", "score", "hessian"):
        close(ours[name], theirs[name], dtype)
    close(ours["one_laplacian"], theirs["one_laplacian"], dtype, scale=10)
    close(ours["hvp"], theirs["hessian"] @ v, dtype)
    close(ours["trace_hessian"], np.trace(theirs["hessian"]), dtype)


def test_curvature_of_empirical_is_the_posterior_covariance(x64):
    """K = I + sigma^2 H = (alpha^2/sigma^2) Cov[x_0|x_t]: positive semidefinite, trace known."""
    alpha, sigma = 0.8, 0.6
    rng = np.random.default_rng(4)
    points = rng.normal(size=(9, DIM))
    p = Empirical(points).noised(alpha, sigma)
    for x in rng.normal(size=(5, DIM)):
        logits = -0.5 * np.sum((x - alpha * points) ** 2, axis=1) / sigma**2
        posterior = np.exp(logits - logits.max())
        posterior /= posterior.sum()
        cov = np.cov(points.T, aweights=posterior, ddof=0)
        forms = closed_forms(p, x, x)
        K = np.eye(DIM) + sigma**2 * np.asarray(forms["hessian"])
        close(forms["posterior_weights"], posterior)
        close(K, (alpha / sigma) ** 2 * cov)
        assert np.linalg.eigvalsh(K)[0] > -1e-12
        close(forms["effective_dimension"], np.trace(K))
        close(forms["trace_hessian"], np.trace(forms["hessian"]))


def test_empirical_on_images(x64):
    points = np.random.default_rng(5).normal(size=(6, 1, 2, 3))
    p = Empirical(points).noised(0.8, 0.6)
    flat = Empirical(points.reshape(6, 6)).noised(0.8, 0.6)
    x, v = points[0] + 0.3, points[1]
    image, vector = closed_forms(p, x, v), closed_forms(flat, x.ravel(), v.ravel())
    assert p.shape == image["score"].shape == image["hvp"].shape == (1, 2, 3)
    for name in ("score", "hvp"):
        close(image[name].ravel(), vector[name])
    for name in ("log_prob", "hessian", "one_laplacian", "trace_hessian"):
        close(image[name], vector[name])
    close(image["hvp"].ravel(), image["hessian"] @ v.ravel())
    close(hessian(p.score, x), image["hessian"])
    assert p.sample(jax.random.key(0), 3).shape == (3, 1, 2, 3)


@pytest.mark.parametrize("sigma", [1e-2, 0.1, 0.5, 0.99998])
def test_empirical_in_float32_at_784_dimensions(sigma):
    """Against float64 on the same float32 numbers, where two points nearly coincide.

    At sigma = 0.01 the squared distances over 2 sigma^2 reach millions, so that their plain
    difference has lost the unit place in float32.
    """
    rng = np.random.default_rng(6)
    points = rng.uniform(-1, 1, (50, 784)).astype(np.float32)
    points[1] = points[0] + np.float32(0.1 * sigma) * rng.normal(size=784).astype(np.float32)
    alpha, sigma = np.float32(math.sqrt(1 - sigma**2)), np.float32(sigma)
    x = (alpha * points[0] + sigma * rng.normal(size=784)).astype(np.float32)
    v = rng.normal(size=784).astype(np.float32)

    def quantities(dtype):
        p = Empirical(points.astype(dtype)).noised(alpha.astype(dtype), sigma.astype(dtype))
        out = closed_forms(p, x.astype(dtype), v.astype(dtype))
        del out["hessian"]
        return {name: np.asarray(value, np.float64) for name, value in out.items()}

    low = quantities(np.float32)
    with jax.enable_x64(True):
        high = quantities(np.float64)
    for name, exact in high.items():
        assert np.linalg.norm(low[name] - exact) <= 1e-4 * np.linalg.norm(exact), name


def test_duplicated_points_share_their_weight_exactly():
    point_ = np.random.default_rng(7).uniform(-1, 1, (1, 784)).astype(np.float32)
    p = Empirical(np.concatenate([point_, point_])).noised(1.0, 1e-3)
    forms = closed_forms(p, point_[0] + 1e-3, point_[0])
    assert forms["posterior_weights"].tolist() == [0.5, 0.5]
    assert float(forms["effective_dimension"]) == 0.0


# --- Noising and sampling ---------------------------------------------------------------------


def leaves_close(p, q, scale=1.0):
    assert jax.tree.structure(p) == jax.tree.structure(q)
    for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True):
        close(a, b, scale=scale)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(*[st.floats(0.0, 1.5)] * 2, *[st.floats(0.05, 2.0)] * 2, st.sampled_from(KINDS))
def test_noise_levels_compose(a1, a2, s1, s2, kind):
    with jax.enable_x64(True):
        p = density(kind)
        twice = p.noised(a1, s1).noised(a2, s2)
        leaves_close(twice, p.noised(a1 * a2, math.hypot(a2 * s1, s2)))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.floats(0.0, 2.0), st.floats(0.05, 3.0), st.integers(0, 10**6))
def test_dimensionless_curvature_is_positive_semidefinite(alpha, sigma, seed):
    with jax.enable_x64(True):
        x = point(np.float64, seed)
        for kind in KINDS:
            p = density(kind, seed=seed).noised(alpha, sigma)
            level = p.sigma if kind == "empirical" else sigma
            K = np.eye(DIM) + level**2 * np.asarray(closed_forms(p, x, x)["hessian"])
            assert np.linalg.eigvalsh(K)[0] > -1e-9


@pytest.mark.fast_cases(*(f"float32-{kind}-1e-30" for kind in KINDS))
@pytest.mark.parametrize("alpha", [1e-15, 1e-30, 1e-44, 1e-225])
@pytest.mark.parametrize("kind", KINDS)
def test_an_alpha_that_leaves_nothing_is_pure_noise(kind, alpha, dtype):
    """However small: to rounding the density is N(0, sigma^2 I)."""
    p, x = density(kind).noised(alpha, 0.5), point(dtype, 0)
    np.testing.assert_allclose(p.score(x), -x / 0.25, rtol=1e-5)
    np.testing.assert_allclose(p.hessian(x), -np.eye(DIM) / 0.25, rtol=1e-5, atol=1e-5)


def z_scores(samples, exact):
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    return np.abs(samples.mean(axis=0) - np.asarray(exact)) / error


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_noised_samples_have_the_moments_of_the_closed_form(kind, x64):
    alpha, sigma, n = 0.6, 0.8, 40_000
    p = density(kind)
    q = p.noised(alpha, sigma)
    if kind == "gaussian":
        mean, second = q.mean, q.covariance + jnp.outer(q.mean, q.mean)
    else:
        mean = q.weights @ q.means
        outer = jax.vmap(jnp.outer)(q.means, q.means)
        second = jnp.tensordot(q.weights, q.covariances + outer, 1)
    k1, k2, k3 = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def draw(p, q):
        forward = alpha * p.sample(k1, n) + sigma * jax.random.normal(k2, (n, DIM))
        return forward, q.sample(k3, n)

    for x in draw(p, q):
        # 40 or so comparisons: 5 standard errors are passed by chance once in 40,000 runs.
        assert z_scores(x, mean).max() < 5
        assert z_scores(jax.vmap(jnp.outer)(x, x), second).max() < 5


@pytest.mark.parametrize("kind", KINDS)
def test_expected_squared_score_is_minus_the_expected_trace(kind, x64):
    """E|s|^2 = -E[tr H] under the density's own samples: L1 of the design."""

    @jax.jit
    def differences(p):
        x = p.sample(jax.random.key(1), 20_000)
        return jax.vmap(lambda x: jnp.sum(p.score(x) ** 2) + jnp.trace(p.hessian(x)))(x)

    assert z_scores(differences(density(kind)), 0.0) < 4.5


def test_samples_of_a_data_set():
    data = Empirical(np.arange(6.0).reshape(3, 2), weights=[0.5, 0.0, 0.5])
    x = np.asarray(data.sample(jax.random.key(0), 200))
    assert {tuple(row) for row in x.tolist()} == {(0.0, 1.0), (4.0, 5.0)}
    noisy = data.noised(2.0, 0.1).sample(jax.random.key(0), 2000)
    near = np.abs(np.asarray(noisy)[:, None, :] - 2 * np.asarray(data.points)[[0, 2]]).max(2).min(1)
    assert near.max() < 0.1 * 6


# --- The p-Laplacian --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_p_laplacian_is_a_divergence(kind, dtype):
    density_, x = density(kind, dtype), point(dtype)

    @jax.jit
    @jax.vmap
    def both(p):
        def field(x):
            s = density_.score(x)
            return jnp.linalg.norm(s) ** (p - 2) * s

        return density_.p_laplacian(x, p), jnp.trace(jax.jacfwd(field)(x))

    close(*both(jnp.array([1.0, 1.5, 2.0, 3.0], dtype)), dtype, scale=10)


def test_p_laplacian_by_finite_differences(x64):
    p, x, h = density("mixture"), point(np.float64), 1e-5
    total = 0.0
    for e in np.eye(DIM):
        ends = [np.asarray(closed_forms(p, x + sign * h * e, x)["score"]) for sign in (1, -1)]
        up, down = (e @ s / np.linalg.norm(s) for s in ends)
        total += (up - down) / (2 * h)
    np.testing.assert_allclose(closed_forms(p, x, x)["one_laplacian"], total, rtol=1e-7)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.sampled_from([1, 3]), st.floats(0.1, 10.0), st.floats(0.1, 10.0))
def test_one_laplacian_of_an_isotropic_gaussian(dim, radius, scale):
    """P3: -(d-1)/r, whatever the variance."""
    p = Gaussian(np.zeros(dim), scale * np.eye(dim))
    direction = np.random.default_rng(dim).normal(size=dim)
    x = radius * direction / np.linalg.norm(direction)
    value = closed_forms(p, x, x)["one_laplacian"]
    np.testing.assert_allclose(value, -(dim - 1) / radius, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variance", [1e-24, 1e24])
def test_p_laplacian_keeps_its_range_in_float32(variance):
    """|s|^2 would be inf or 0: |s| is 1e24 or 1e-24."""
    p = Gaussian(np.zeros(3, np.float32), np.float32(variance) * np.eye(3, dtype=np.float32))
    x = np.array([0.6, 0.0, 0.8])
    np.testing.assert_allclose(closed_forms(p, x, x)["one_laplacian"], -2.0, rtol=1e-5)


def test_p_laplacian_where_a_power_of_the_score_is_out_of_range():
    """`|s|^2` is 1e-42 in float32, `|s|^2 (tr H + 2 u^T H u)` is not: by both exact forms."""
    p, x = Gaussian(np.zeros(3), 1e-15 * np.eye(3)), jnp.array([1e-36, 0.0, 0.0])
    np.testing.assert_allclose(p.p_laplacian(x, 4.0), -5e-27, rtol=1e-5)
    np.testing.assert_allclose(p_laplacian(p.score, x, p=4.0).value, -5e-27, rtol=1e-5)


def test_p_laplacian_where_the_score_vanishes():
    p, x = Gaussian(np.zeros(3), np.eye(3)), jnp.zeros(3)
    values = jax.jit(jax.vmap(lambda q: p.p_laplacian(x, q)))(jnp.array([1.0, 1.9, 2.0, 3.0]))
    np.testing.assert_array_equal(values, [math.nan, math.nan, -3.0, 0.0])
    gradient = jax.jit(jax.grad(lambda x: p.p_laplacian(x, 2)))(x)
    assert np.isfinite(gradient).all()


# --- Pytrees ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_densities_and_their_scores_cross_jit_as_arguments(kind):
    traces = 0

    @jax.jit
    def apply(score, p, x):
        nonlocal traces
        traces += 1
        return score(x), p.score(x)

    x = point(np.float32)
    for seed in (0, 1):
        p = density(kind, np.float32, seed)
        first, second = apply(p.score, p, x)
        exact = closed_forms(p, x, x)["score"]
        close(first, exact, np.float32)
        close(second, exact, np.float32)
    assert traces == 1


@pytest.mark.parametrize("kind", KINDS)
def test_densities_under_transformations(kind, x64):
    p, x = density(kind), point(np.float64)
    many = jax.jit(jax.vmap(lambda s: p.noised(0.7, s)))(jnp.array([0.5, 2.0]))
    scores = jax.jit(jax.vmap(lambda q: q.score(x)))(many)
    for s, score in zip((0.5, 2.0), scores, strict=True):
        close(score, closed_forms(p.noised(0.7, s), x, x)["score"])
    built = jax.jit(lambda leaves: type(p)(*leaves).log_prob(x))(jax.tree.leaves(p))
    close(built, closed_forms(p, x, x)["log_prob"])

    @jax.jit
    def log_prob(s):
        return p.noised(0.7, s).log_prob(x)

    slope = (log_prob(0.5 + 1e-6) - log_prob(0.5 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jit(jax.grad(log_prob))(0.5), slope, rtol=1e-6)
    blank = jax.tree.map(lambda _: None, p)  # rebuilt from anything, without validation
    assert type(blank) is type(p)


# --- Derivatives of the closed forms --------------------------------------------------------------


def far_apart(kind, dtype):
    """A density of two coordinates, and points where posterior weights are 0 or scores vanish."""
    if kind == "gaussian":
        p = Gaussian(np.array([1.0, 2.0], dtype), np.array([[2.0, 0.3], [0.3, 0.5]], dtype))
        points = [[1.0, 2.0], [3.0, -1.0]]
    elif kind == "mixture":
        means = np.array([[-20.0, 0.0], [20.0, 0.0], [19.0, 0.0]], dtype)
        p = GaussianMixture(np.array([0.5, 0.5, 0.0], dtype), means, np.stack([np.eye(2)] * 3))
        points = [[19.0, 0.3], [20.0, 0.0], [0.02, 0.1]]
    else:  # a duplicated point, one of weight 0, and a noise that is small beside the distances
        data = np.array([[-1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.5, 0.2]], dtype)
        p = Empirical(data, np.array([0.5, 0.25, 0.25, 0.0], dtype)).noised(0.8, 0.02)
        points = [[0.8, 0.0], [0.79, 0.01], [0.001, 0.002]]
    return p, np.array(points, dtype)


def all_values(p, x):
    """Every closed form at one point, as one vector."""
    values = [p.log_prob(x), p.score(x), p.hessian(x)]
    values += [p.p_laplacian(x, q) for q in (1.0, 1.5, 2.0, 4.0)]
    if isinstance(p, Empirical):
        values += [p.hvp(x, jnp.array([0.3, -0.7])), p.trace_hessian(x), p.effective_dimension(x)]
        values += [p.posterior_weights(x)]
    return jnp.concatenate([jnp.ravel(value) for value in values])


@jax.jit
def with_derivatives(p, points):
    def of_one(x):
        function = functools.partial(all_values, p)
        reverse = jax.jacrev(function)
        return function(x), reverse(x), jax.jacfwd(function)(x), jax.jacfwd(reverse)(x)

    return jax.vmap(of_one)(points)


def differences(function, points, step):
    """Central differences of fourth order along each coordinate, as a last axis."""
    columns = []
    for shift in step * np.eye(2):
        ahead, behind, ahead2, behind2 = (function(points + k * shift) for k in (1, -1, 2, -2))
        columns.append((8 * (ahead - behind) - (ahead2 - behind2)) / (12 * step))
    return np.stack(columns, axis=-1)


@pytest.mark.fast_cases("gaussian")
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_every_closed_form(kind, x64):
    """First and second, by finite differences: also where a posterior weight is exactly 0."""
    p, points = far_apart(kind, np.float64)
    values, first, forward, second = map(np.asarray, with_derivatives(p, points))
    known = np.isfinite(values)  # p < 2 is undefined where the score vanishes
    assert known.mean() > 0.8
    step = 1e-5 if kind == "empirical" else 1e-3
    for derivative, lower in ((first, 0), (second, 1)):

        def function(x, lower=lower):
            return np.asarray(with_derivatives(p, x)[lower])

        expected = differences(function, points, step)
        scale = np.nanmax(np.abs(expected), axis=tuple(range(2, expected.ndim)), keepdims=True)
        # What differences lose: eps of the function over a step, of all that it may cancel from.
        error = np.abs(derivative - expected) / (scale + 1e-6 * np.nanmax(scale))
        assert (error[known] < 1e-4).all()
    tolerance = 1e-9 * np.abs(first[known]).max()
    np.testing.assert_allclose(forward[known], first[known], rtol=1e-9, atol=tolerance)


@pytest.mark.fast_cases("gaussian")
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_every_closed_form_in_float32(kind):
    p, points = far_apart(kind, np.float32)
    values, *derivatives = map(np.asarray, with_derivatives(p, points))
    for derivative in derivatives:
        assert np.isfinite(derivative[np.isfinite(values)]).all()


@pytest.mark.slow
def test_gradients_where_a_posterior_weight_is_zero():
    p, (x, *_) = far_apart("mixture", np.float32)
    gradient = jax.grad(lambda y: p.p_laplacian(y, 1.0))(x)
    np.testing.assert_allclose(gradient, [-0.87874, 0.26362], rtol=1e-4)
    np.testing.assert_array_equal(jax.grad(lambda y: jnp.trace(p.hessian(y)))(x), 0.0)
    p, (x, *_) = far_apart("empirical", np.float32)
    np.testing.assert_array_equal(jax.grad(lambda y: jnp.trace(p.hessian(y)))(x), 0.0)


@pytest.mark.slow
def test_fourth_laplacian_has_a_second_derivative_at_a_mode(x64):
    """`div(|s|^2 s) = |s|^2 tr H + 2 s^T H s`, of a Gaussian: `2 tr H H^2 + 4 H^3`."""
    p, (mode, *_) = far_apart("gaussian", np.float64)
    H = np.asarray(p.hessian(mode))
    second = jax.hessian(lambda y: p.p_laplacian(y, 4.0))(mode)
    close(second, 2 * np.trace(H) * H @ H + 4 * H @ H @ H)


def test_repr_is_short():
    text = repr(density("mixture", np.float32))
    assert text == (
        "GaussianMixture(weights=float32[4], means=float32[4,4], covariances=float32[4,4,4])"
    )
    assert "sigma" not in repr(Empirical(np.ones((2, 3))))


def test_precision_follows_the_inputs():
    assert Gaussian([0, 0], np.eye(2, dtype=int)).score([1, 1]).dtype == jnp.float32
    half = Empirical(jnp.ones((2, 3), jnp.bfloat16)).noised(1, 1)
    assert half.points.dtype == half.score(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32


def test_x64_did_not_leak():
    assert jnp.ones(()).dtype == jnp.float32


# --- Errors -----------------------------------------------------------------------------------

EYE, ZERO = np.eye(2), np.zeros(2)
DATA = np.ones((3, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(ZERO, np.ones((2, 3))), r"covariance has shape \(2, 3\).*square"),
        (lambda: Gaussian(ZERO, np.eye(3)), r"covariance has shape \(3, 3\).*mean of shape \(2,\)"),
        (lambda: Gaussian(np.zeros((1, 2)), EYE), r"mean must have shape \(d,\)"),
        (lambda: Gaussian(np.zeros(0), np.zeros((0, 0))), "d >= 1"),
        (lambda: Gaussian(ZERO, [[1, 0.5], [0.25, 1]]), r"not symmetric.*\[0, 1\].* 0\.25"),
        (lambda: Gaussian(ZERO, [[1, 2], [2, 1]]), "smallest eigenvalue is -1"),
        (lambda: Gaussian(ZERO, [[1, 1], [1, 1]]), "not positive definite"),
        (lambda: Gaussian(ZERO, np.zeros((2, 2))), "not positive definite"),
        (lambda: Gaussian([0, np.nan], EYE), "mean holds NaN"),
        (lambda: Gaussian(ZERO, EYE * 1j), "real numbers"),
        (lambda: GaussianMixture([0.5, 0.6], [ZERO] * 2, [EYE] * 2), r"they sum to 1\.1"),
        (lambda: GaussianMixture([1.5, -0.5], [ZERO] * 2, [EYE] * 2), r"smallest is -0\.5"),
        (lambda: GaussianMixture([1.0], [ZERO] * 2, [EYE] * 2), r"weights have shape \(1,\)"),
        (lambda: GaussianMixture([1.0], ZERO, [EYE]), r"means must have shape \(k, d\)"),
        (lambda: GaussianMixture([1.0], [ZERO], EYE), r"covariances have shape \(2, 2\)"),
        (
            lambda: GaussianMixture([0.5, 0.5], [ZERO] * 2, [EYE, -EYE]),
            r"covariances\[1\] is not positive definite.*-1",
        ),
        (lambda: Empirical(np.ones(3)), r"points must have shape \(n, \*shape\)"),
        (lambda: Empirical(np.ones((0, 3))), "n >= 1"),
        (lambda: Empirical(DATA * np.inf), "points holds NaN or infinite"),
        (lambda: Empirical(DATA, weights=[1.0]), r"weights have shape \(1,\).*3 points"),
        (lambda: Empirical(DATA, weights=[0.5, 0.5, 0.5]), r"they sum to 1\.5"),
        (lambda: Empirical(DATA, weights=[2, -1, 0]), "smallest is -1"),
        (lambda: Empirical(DATA, alpha=-1.0), "alpha must be finite and >= 0, got -1"),
        (lambda: Empirical(DATA, sigma=0.0), "sigma must be finite and > 0, got 0"),
        (lambda: Gaussian(ZERO, EYE * 1e-50), r"variances from 1e-50 to 1e-50.* float32.*x64"),
        (lambda: Gaussian(ZERO, EYE * 1e38), r"variances from 1e\+38 .*inverses"),
        (lambda: Gaussian(ZERO, np.diag([1.0, 1e-40])), "variances from 1e-40 to 1"),
        (lambda: Gaussian([0.0, 1e39], EYE), r"mean holds numbers as large as 1e\+39.* float32"),
        (lambda: Gaussian([0.0, 1e38], EYE).noised(10.0, 1.0), "noised: mean holds .*infinite"),
        (lambda: GaussianMixture([1.0], [[1e39] * 2], [EYE]), r"means holds .* 1e\+39"),
        (lambda: GaussianMixture([1.0], [ZERO], [EYE * 1e39]), r"covariances holds .* 1e\+39"),
        (lambda: GaussianMixture([1.0], [ZERO], [EYE * 1e-40]), r"covariances\[0\] has variances"),
        (
            lambda: GaussianMixture([1, 1e-50], [ZERO] * 2, [EYE] * 2),
            "weight must be .*got 1e-50, .* float32",
        ),
        (lambda: Empirical(DATA * 1e39), r"points holds numbers as large as 1e\+39"),
        (lambda: Empirical(DATA, [1, 1e-40, 0]), "got 1e-40, .* no number in float32"),
        (
            lambda: Empirical(DATA, sigma=1e-25),
            r"sigma must be from 1\.08e-19 to .*float32, got 1e-25",
        ),
        (lambda: Empirical(DATA).noised(1.0, 1e25), "sigma must be from .*, got 1e\\+25"),
        (lambda: Empirical(DATA).noised(1.0, 1e200), "sigma must be from .*, got 1e\\+200"),
        (lambda: Gaussian(ZERO, EYE).noised(1.0, 1e-25), "sigma must be from .*, got 1e-25"),
        (
            lambda: GaussianMixture([1.0], [ZERO], [EYE]).noised(1.0, 1e-25),
            "sigma must be from .*, got 1e-25",
        ),
        (lambda: Empirical(DATA).score(ZERO), r"no density; call \.noised"),
        (lambda: Empirical(DATA).log_prob(ZERO), r"no density; call \.noised"),
        (lambda: jax.jit(lambda p: p.score(ZERO))(Empirical(DATA)), r"no density"),
        (lambda: Empirical(DATA).noised(1, 1).hvp(ZERO, np.ones(3)), r"v has shape \(3,\)"),
    ],
)
def test_bad_densities(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", KINDS)
def test_bad_arguments(kind):
    p = density(kind, np.float32)
    x = point(np.float32)
    for method in (p.log_prob, p.score, p.hessian):
        with pytest.raises(ValueError, match=r"x has shape \(2, 4\).*vmap"):
            method(jnp.ones((2, DIM)))
    with pytest.raises(ValueError, match=r"p must be one number >= 1, got 0\.5"):
        p.p_laplacian(x, 0.5)
    for alpha, sigma, message in (
        (1.0, 0.0, "sigma must be finite and > 0, got 0"),
        (1.0, -1.0, "sigma must be finite and > 0, got -1"),
        (1.0, np.nan, "sigma must be finite"),
        (-0.1, 1.0, "alpha must be finite and >= 0, got -0.1"),
        (np.ones(2), 1.0, r"alpha must be one number, got shape \(2,\).*vmap"),
    ):
        with pytest.raises(ValueError, match=message):
            p.noised(alpha, sigma)
    for n in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="n must be an integer >= 1"):
            p.sample(jax.random.key(0), n)


def test_what_float64_holds_is_taken_there(x64):
    for p in (
        Gaussian(ZERO, EYE * 1e-50),
        Empirical(ZERO[None], sigma=1e-25),
        Gaussian(ZERO, EYE).noised(0.0, 1e-25),
    ):
        close(p.hessian(ZERO) * 1e-50, -EYE)
    assert Gaussian([0.0, 1e39], EYE).score(ZERO)[1] == 1e39


def test_valid_inputs_near_the_limits_are_accepted():
    for scale in (2e-19, 9e18):  # standard deviations
        np.testing.assert_allclose(Gaussian(ZERO, EYE * scale**2).hessian(ZERO) * scale**2, -EYE)
        np.testing.assert_allclose(Empirical(DATA).noised(0, scale).score(ZERO), 0.0)
    Gaussian(ZERO, np.diag([1.0, 1e-12]))  # badly scaled, not degenerate
    weights = np.random.default_rng(0).uniform(size=10_000).astype(np.float32)
    Empirical(np.ones((10_000, 1)), weights=weights / weights.sum())
    noisy = np.eye(2, dtype=np.float32) + np.array([[0, 1e-7], [0, 0]], np.float32)
    Gaussian(ZERO, noisy)  # rounding is not asymmetry
    correlated = 0.99 + 0.01 * np.eye(300, dtype=np.float32)
    score = Gaussian(np.zeros(300, np.float32), correlated).score(np.ones(300, np.float32))
    np.testing.assert_allclose(score, -1 / (0.01 + 300 * 0.99), rtol=0.05)


@pytest.mark.parametrize("dtype_", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [5, 99])
def test_a_singular_covariance_is_refused_in_spite_of_rounding(rank, dtype_):
    factor = np.random.default_rng(0).normal(size=(100, rank)).astype(dtype_)
    with pytest.raises(ValueError, match="not positive definite in float32"):
        Gaussian(np.zeros(100), factor @ factor.T)


def test_a_large_batch_returns():
    """Two batched triangular solves in one program can wait for each other for ever on CPU."""
    code = """
import jax, numpy as np
from sharpjax import GaussianMixture
p = GaussianMixture(np.full(3, 1 / 3), np.eye(3, 5), np.stack([np.eye(5)] * 3))
both = jax.jit(jax.vmap(lambda p, x: (p.score(x), p.score(x + 1)), (None, 0)))
for _ in range(5):
    jax.block_until_ready(both(p, np.ones((20_000, 5))))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
