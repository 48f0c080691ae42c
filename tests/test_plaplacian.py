"""p-Laplacians against closed forms, quadrature, naive twins, Monte Carlo; and their bounds."""

import doctest
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from sharpjax.curvature.batch import at_points
from sharpjax.curvature.plaplacian import _basis, _direction, _samples, p_laplacian
from sharpjax.curvature.plaplacian_bounds import (
    radius_bias_bound,
    sampling_bound,
    score_error_bound,
)
from sharpjax.densities import Empirical, Gaussian, GaussianMixture

KEY = jax.random.key(0)
POWERS = (1.0, 1.5, 2.0, 3.0)
# Options that tests share, so that they share compiled programs too.
FLUX = {"method": "flux", "radius": 0.5, "key": KEY, "num_directions": 16}


def point(dim, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(10 + dim).normal(size=dim).astype(dtype))


def isotropic(precision, x):
    """The score of a Gaussian about 0."""
    return -precision * x


def linear(matrix, x):
    return jnp.sum(matrix * x, axis=1)  # no matrix unit: exact products on every machine


def stiff(u, x):
    """Curvature -1e6 along u, and -1 across."""
    return -1e6 * u * jnp.sum(u * x) - x


def blobs(means, tilt, x):
    """The score of equal Gaussians of variance 1, quick to compile, and a linear error."""
    squares = jnp.sum((x - means) ** 2, axis=tuple(range(1, means.ndim)))
    mean = jnp.tensordot(jax.nn.softmax(-0.5 * squares), means, 1)
    return mean - x + tilt * jnp.roll(x, 1)


def blobs_score(*shape, dtype=np.float64, tilt=0.0):
    means = np.random.default_rng(1).normal(scale=0.7, size=(5, *shape)).astype(dtype)
    return Partial(blobs, jnp.asarray(means), tilt)


def field(score, x, p):
    s = score(x)
    return jnp.linalg.norm(s) ** (p - 2) * s


@jax.jit
def directions(indices, x):
    """What p_laplacian draws: direction i depends on the key and i only."""

    def one(i):
        n = jax.random.normal(jax.random.fold_in(KEY, i), x.shape, x.dtype)
        return n / jnp.linalg.norm(n)

    return jax.vmap(one)(indices)


# --- Exact ------------------------------------------------------------------------------------


def density(kind, dim, dtype):
    rng = np.random.default_rng(dim)
    means = rng.normal(size=(3, dim)).astype(dtype)
    A = rng.normal(size=(3, dim, dim)) / math.sqrt(dim)
    covariances = (A @ A.transpose(0, 2, 1) + 0.5 * np.eye(dim)).astype(dtype)
    if kind == "gaussian":
        return Gaussian(means[0], covariances[0])
    if kind == "mixture":
        return GaussianMixture(np.array([0.5, 0.25, 0.25], dtype), means, covariances)
    return Empirical(rng.normal(size=(9, dim)).astype(dtype)).noised(0.8, 0.6)


@pytest.mark.parametrize(
    ("kind", "dim", "dtype"),
    [
        ("gaussian", 16, np.float32),
        ("mixture", 2, np.float64),
        ("mixture", 16, np.float32),
        ("empirical", 16, np.float64),
        pytest.param("gaussian", 16, np.float64, marks=pytest.mark.slow),
        pytest.param("mixture", 1, np.float64, marks=pytest.mark.slow),
        pytest.param("mixture", 16, np.float64, marks=pytest.mark.slow),
        pytest.param("empirical", 16, np.float32, marks=pytest.mark.slow),
    ],
)
def test_exact_is_the_closed_form_and_a_divergence(kind, dim, dtype):
    with jax.enable_x64(dtype == np.float64):
        density_, x = density(kind, dim, dtype), point(dim, dtype)

        @jax.jit
        def everything(powers):
            def three(p):
                ours = p_laplacian(density_.score, x, p=p, batch_size=5).value
                twin = jnp.trace(jax.jacfwd(lambda y: field(density_.score, y, p))(x))
                return ours, density_.p_laplacian(x, p), twin

            return *jax.vmap(three)(powers), density_.score(x), density_.hessian(x)

        ours, closed, twin, s, H = everything(jnp.asarray(POWERS, dtype))
        # The rounding of a value spreads over the sums behind it: |s|^{p-2} sum |H_ij|.
        scale = np.linalg.norm(s) ** (np.array(POWERS) - 2) * np.abs(H).sum()
        eps = np.finfo(dtype).eps
        assert ours.dtype == dtype
        assert (np.abs(ours - closed) <= 10 * eps * scale).all()
        assert (np.abs(ours - twin) <= 10 * eps * scale).all()
        assert (np.abs(ours[0 if dim > 1 else 1 :]) > 1e-2 * scale[0 if dim > 1 else 1 :]).all()


@pytest.mark.parametrize("dim", [1, 2, 16, 784])
def test_one_laplacian_of_an_isotropic_gaussian_in_float32(dim):
    """P3: -(d-1)/r at distance r from the mode, relative to 1e-5; 0 for d = 1."""
    x = point(dim, np.float32)
    exact = -(dim - 1) / np.linalg.norm(np.asarray(x, np.float64))
    estimate = p_laplacian(Partial(isotropic, 3.0), x)
    assert abs(estimate.value - exact) <= 1e-5 * abs(exact)
    assert (float(estimate.standard_error), estimate.num_samples) == (0.0, 0)
    assert estimate.num_matvecs == dim


@pytest.mark.parametrize(("products", "each"), [(None, 6), (1, 2), (3, 4)])
def test_products_in_the_ball_are_counted(products, each):
    """d at a point; or one along the score and the probes."""
    options = FLUX | {"method": "ball", "num_matvecs": products}
    estimate = p_laplacian(Partial(isotropic, 3.0), point(6, np.float32), **options)
    assert estimate.num_matvecs == 16 * each


def test_steep_curvature_along_the_score_does_not_drown_the_one_laplacian():
    """H = -1e6 u u^T - I: tr H - u^T H u loses what tr PHP keeps. Across u there is -(d-1)/|s|."""
    u = point(16, np.float32)
    u = u / jnp.linalg.norm(u)

    @jax.jit
    def difference(u):
        H = jax.jacfwd(lambda y: stiff(u, y))(u)
        return (jnp.trace(H) - jnp.sum(u * (H @ u))) / jnp.linalg.norm(stiff(u, u))

    exact = -15 / np.linalg.norm(np.asarray(stiff(u, u), np.float64))
    assert abs(p_laplacian(Partial(stiff, u), u).value / exact - 1) < 1e-5
    assert abs(difference(u) / exact - 1) > 1e-3


def test_the_basis_is_orthonormal_and_starts_with_the_direction():
    u = np.array([[0.6, 0, 0.8], [-0.6, 0.8, 0], [0, 0, 1], [1, 0, 0], [-1, 0, 0]], np.float32)
    bases = jax.jit(jax.vmap(jax.vmap(_basis, (None, 0)), (0, None)))(u, jnp.arange(3))
    np.testing.assert_array_equal(bases[:, 0], u)
    products = bases @ np.swapaxes(bases, 1, 2)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), (5, 3, 3)), atol=4e-7)


def test_probes_are_unbiased_and_their_intervals_cover():
    """Nominal 95% from 64 probes; 1,000 repetitions have a binomial standard error of 0.7%."""
    repetitions, x = 1000, point(32, np.float32)
    score = blobs_score(32, dtype=np.float32)

    @jax.jit
    @jax.vmap
    def run(key):
        return p_laplacian(score, x, p=1.5, num_matvecs=64, key=key, batch_size=64)

    estimates = run(jax.random.split(KEY, repetitions))
    exact = p_laplacian(score, x, p=1.5)
    values = np.asarray(estimates.value, np.float64)
    spread = values.std(ddof=1)
    assert spread > 1e-4 * abs(exact.value)  # there is something to cover
    assert abs(values.mean() - exact.value) < 4.5 * spread / math.sqrt(repetitions)
    low, high = estimates.interval()
    assert 0.93 < np.mean((low <= exact.value) & (exact.value <= high)) < 0.97
    assert (estimates.num_samples, estimates.num_matvecs) == (64, 65)


@pytest.mark.parametrize("dim", [1, 3])
def test_pure_noise_has_no_error_from_probes(dim):
    """H = -I/sigma^2 adds no variance: the probes' length is fixed, as if they ran on K = 0."""
    x = point(dim, np.float32)
    estimate = p_laplacian(Partial(isotropic, 4.0), x, p=1.5, num_matvecs=2, key=KEY)
    exact = p_laplacian(Partial(isotropic, 4.0), x, p=1.5).value
    rounding = 20 * np.finfo(np.float32).eps * abs(exact)
    assert abs(estimate.value - exact) < rounding
    assert estimate.standard_error < rounding


def test_where_the_score_vanishes():
    score, x = Partial(isotropic, 1.0), jnp.zeros(3)
    values = jax.jit(jax.vmap(lambda p: p_laplacian(score, x, p=p).value))(jnp.array([1, 1.9, 2]))
    np.testing.assert_array_equal(values, [math.nan, math.nan, -3.0])
    assert float(p_laplacian(score, x, p=2).value) == -3.0
    assert float(p_laplacian(score, x, p=3).value) == 0.0
    for p in (1.0, 1.9):
        with pytest.raises(ValueError, match=rf"p={p:g} < 2 is undefined at x.*method='flux'"):
            p_laplacian(score, x, p=p)


# --- Flux and ball ------------------------------------------------------------------------------


def test_flux_against_a_naive_twin_direction_for_direction(x64):
    score, x, radius, p = blobs_score(4), point(4), 0.7, 1.5
    options = {"radius": radius, "p": p, "key": KEY, "num_directions": 10, "batch_size": 3}
    n = np.asarray(directions(jnp.arange(10), x))
    s = np.asarray(jax.jit(jax.vmap(score))(x + radius * np.concatenate([n, -n])))
    ahead, behind = np.split(np.linalg.norm(s, axis=1, keepdims=True) ** (p - 2) * s, 2)
    plain = 4 / radius * np.sum(ahead * n, axis=1)
    pairs = 4 / radius * np.sum(0.5 * (ahead - behind) * n, axis=1)[:5]
    for antithetic, samples in ((False, plain), (True, pairs)):
        estimate = p_laplacian(score, x, method="flux", antithetic=antithetic, **options)
        np.testing.assert_allclose(estimate.value, np.mean(samples), rtol=1e-11)
        error = np.std(samples, ddof=1) / math.sqrt(len(samples))
        np.testing.assert_allclose(estimate.standard_error, error, rtol=1e-11)
        assert (estimate.num_samples, estimate.num_matvecs) == (len(samples), 0)


@jax.jit
def circle_mean(score, x, radius, p):
    """`(d/R) E_n[F . n]` for d = 2 by the trapezoidal rule, whose error is exponentially small."""
    angles = 2 * jnp.pi * jnp.arange(256) / 256
    n = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    F = jax.vmap(lambda n: field(score, x + radius * n, p))(n)
    return 2 / radius * jnp.mean(jnp.sum(F * n, axis=1))


@pytest.mark.parametrize(
    "estimator",
    [
        {"method": "flux", "antithetic": True},
        {"method": "ball"},
        pytest.param({"method": "ball", "num_matvecs": 1}, marks=pytest.mark.slow),
    ],
)
def test_flux_and_ball_are_the_mean_over_the_ball(estimator, x64):
    """P2 at a finite radius, where that mean is not the value at the centre."""
    score, x, radius = blobs_score(2), jnp.array([1.2, -0.9]), 0.8
    options = {"radius": radius, "key": KEY, "num_directions": 4000, "batch_size": 1000}
    for p in POWERS:
        truth = circle_mean(score, x, radius, p)
        estimate = p_laplacian(score, x, p=p, **estimator, **options)
        assert abs(estimate.value - truth) < 4 * estimate.standard_error
        assert estimate.standard_error < 0.02 * abs(truth)
        if p == 1:
            centre = p_laplacian(score, x, p=p).value
            assert abs(centre - truth) > 4 * estimate.standard_error
    counts = {"flux": (2000, 0), "ball": (4000, 8000)}
    assert (estimate.num_samples, estimate.num_matvecs) == counts[estimator["method"]]


@pytest.mark.parametrize(("dim", "dtype"), [(3, np.float64), (1, np.float32), (784, np.float32)])
def test_flux_at_a_mode_is_minus_d_over_R(dim, dtype):
    """P3: F . n = -1 at every direction, to rounding. The factor d/R is in it."""
    with jax.enable_x64(dtype == np.float64):
        estimate = p_laplacian(Partial(isotropic, 2.0), jnp.zeros(dim, dtype), **FLUX)
        rounding = 20 * np.finfo(dtype).eps * dim / 0.5
        assert abs(estimate.value + dim / 0.5) < rounding
        assert estimate.standard_error < rounding


@pytest.mark.parametrize("dim", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_ball_over_an_isolated_zero_of_the_score(dim):
    """d = 3: div F = -2/r has a mean, -3/R, although it has no value at the mode.

    In d = 1 the flux counts the jump of s/|s| from 1 to -1 (the test above), the ball cannot.
    """
    options = FLUX | {"method": "ball", "num_directions": 2000}
    ball = p_laplacian(Partial(isotropic, 2.0), jnp.zeros(dim), **options)
    if dim == 1:
        assert float(ball.value) == 0.0
    else:
        assert abs(ball.value + dim / 0.5) < 4 * ball.standard_error


@pytest.mark.parametrize("dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)])
def test_flux_tends_to_the_exact_form(dtype):
    """Within 4 standard errors and 100 eps of the rounded terms, down to R = 1e-3."""
    with jax.enable_x64(dtype == np.float64):
        score, x = blobs_score(16, dtype=dtype), point(16, dtype)
        size = float(jnp.linalg.norm(score(x)))
        options = {"method": "flux", "key": KEY, "num_directions": 512, "antithetic": True}
        for p in (1.0, 3.0):
            exact = p_laplacian(score, x, p=p).value
            for radius in (1e-2, 1e-3):
                flux = p_laplacian(score, x, p=p, radius=radius, **options)
                rounding = 100 * np.finfo(dtype).eps * size ** (p - 1) * math.sqrt(16) / radius
                assert abs(flux.value - exact) < 4 * flux.standard_error + rounding
                assert flux.standard_error < 0.05 * abs(exact)


def test_where_float32_cancels_in_antithetic_pairs():
    """A linear field (p = 2) has no bias: a change with the radius is rounding alone.

    Each entry of F is off by eps |F_i|, and x +- R n by eps |x_i|: summed over the directions of
    n and divided by R, some eps |s| sqrt(d)/R per pair, where the digits are those of tr H.
    """
    d = 64
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(d, d)) - 3 * d * np.eye(d))
    score, x = Partial(linear, matrix.astype(jnp.float32)), point(d, np.float32)
    size = float(jnp.linalg.norm(score(x)))
    options = {"method": "flux", "p": 2.0, "key": KEY, "antithetic": True}
    truth = p_laplacian(score, x, radius=10.0, **options).value
    eps, errors = np.finfo(np.float32).eps, {}
    for radius in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        error = abs(p_laplacian(score, x, radius=radius, **options).value - truth)
        errors[radius] = float(error)
        assert error < 10 * eps * (size * math.sqrt(d) / radius - truth)
    assert errors[1e-1] < 1e-5 * abs(truth)  # no loss yet
    assert errors[1e-6] > 1e-3 * abs(truth)  # and here three digits are left at most


def test_plain_directions_cover_the_truth_and_pairs_have_less_variance():
    """Nominal 95% from 64 directions, 1,000 repetitions: a binomial standard error of 0.7%.

    Where the score is smooth on the sphere F(x) . n dominates a plain sample: its variance is
    (d/R)^2/d, which a pair is rid of.
    """
    dim, radius, repetitions = 16, 0.5, 1000
    score, x = blobs_score(dim, dtype=np.float32), 2 * point(dim, np.float32)
    options = {"method": "flux", "radius": radius, "num_directions": 64, "batch_size": 64}

    def run(antithetic, key):
        return p_laplacian(score, x, key=key, antithetic=antithetic, **options)

    keys = jax.random.split(KEY, repetitions)
    plain, pairs = (jax.jit(jax.vmap(Partial(run, a)))(keys) for a in (False, True))
    values, paired = np.asarray(plain.value), np.asarray(pairs.value)
    truth, spread = paired.mean(), values.std(ddof=1)
    own_error = paired.std(ddof=1) / math.sqrt(repetitions)
    assert own_error < 0.01 * spread  # the truth is known well enough
    assert abs(values.mean() - truth) < 4.5 * spread / math.sqrt(repetitions)
    low, high = plain.interval()
    assert 0.93 < np.mean((low <= truth) & (truth <= high)) < 0.97
    assert abs(spread / (math.sqrt(dim / 64) / radius) - 1) < 0.1
    assert paired.var(ddof=1) < spread**2 / 100  # from as many evaluations


@pytest.mark.slow
def test_pairs_are_worth_one_direction_where_the_flux_is_even():
    """A mode with F . n even in n: both ends of a pair say the same."""
    score, options = Partial(isotropic, jnp.arange(1.0, 9.0)), FLUX | {"num_directions": 512}
    plain, pairs = (
        p_laplacian(score, jnp.zeros(8), antithetic=a, **options) for a in (False, True)
    )
    assert 1.2 < pairs.standard_error / plain.standard_error < 1.7  # sqrt(2) to sampling


@pytest.mark.parametrize("precision", [1e-25, 1e25])
def test_scores_of_every_size_in_float32(precision):
    """|s|^2 would be inf or 0. Where |s|^{p-1} itself leaves the range, that is said."""
    score, x = Partial(isotropic, precision), jnp.array([0.6, 0.0, 0.8])
    assert abs(p_laplacian(score, x).value + 2.0) < 1e-5
    assert abs(p_laplacian(score, x, key=KEY, num_matvecs=2).value + 2.0) < 1e-5
    assert abs(p_laplacian(score, x, p=2).value / (-3 * precision) - 1) < 1e-5
    for antithetic in (False, True):
        mode = p_laplacian(score, jnp.zeros(3), antithetic=antithetic, **FLUX)
        assert abs(mode.value + 6.0) < 1e-5
    half = p_laplacian(score, jnp.zeros(3), p=1.5, **FLUX).value
    assert abs(half / (-6 * math.sqrt(0.5 * precision)) - 1) < 1e-5
    if precision > 1:
        with pytest.raises(ValueError, match=r"power of \|s\|, out of the range of float32"):
            p_laplacian(score, jnp.zeros(3), p=3.0, **FLUX)


# --- Transformations and memory -------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"method": "exact"},
        pytest.param({"method": "flux", "antithetic": True}, marks=pytest.mark.slow),
        pytest.param({"method": "ball", "num_matvecs": 2}, marks=pytest.mark.slow),
        pytest.param({"method": "exact", "num_matvecs": 7}, marks=pytest.mark.slow),
        pytest.param({"method": "flux"}, marks=pytest.mark.slow),
        pytest.param({"method": "ball"}, marks=pytest.mark.slow),
    ],
)
def test_batches_and_transformations_do_not_change_the_numbers(options):
    """A closure at once, and a pytree under jit and vmap in batches that do not divide the count;
    a point with more than one axis.
    """
    score, x = blobs_score(2, 3, dtype=np.float32), jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
    exact = options["method"] == "exact"
    options = FLUX | {"num_directions": 10} | options
    options |= {"radius": None} if exact else {}
    whole = p_laplacian(lambda y: score(y), x, **options)

    @jax.jit
    def run(score, points, size):
        parts = options | {"batch_size": 4} | ({} if exact else {"radius": size})
        return at_points(p_laplacian, score, points, common_probes=True, **parts)

    points = run(score, jnp.stack([x, 2 * x]), FLUX["radius"])
    np.testing.assert_allclose(points.value[0], whole.value, rtol=2e-5)
    np.testing.assert_allclose(points.standard_error[0], whole.standard_error, rtol=1e-3)
    assert (points.num_samples, points.num_matvecs) == (whole.num_samples, whole.num_matvecs)


def test_a_score_that_is_a_pytree_is_traced_once():
    """Other weights, point, p and radius are answered by the same program."""
    traces = 0

    def counted(scale, x):
        nonlocal traces
        traces += 1
        return scale * x

    for method in ("exact", "flux"):
        traces = 0
        for scale in (-1.0, -2.0):
            radius = None if method == "exact" else -scale
            options = FLUX | {"method": method, "radius": radius, "p": 1.0 - scale}
            p_laplacian(Partial(counted, jnp.array(scale)), scale * jnp.ones(3), **options)
        assert traces == 1


@pytest.mark.slow
def test_a_closure_that_changes_is_not_answered_from_a_stale_program():
    box = {}
    for scale in (-1.0, 1.0):
        box["scale"] = scale
        value = p_laplacian(lambda y: box["scale"] * y, jnp.zeros(3), **FLUX).value
        np.testing.assert_allclose(value, 6 * scale, rtol=1e-5)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_directions():
    def temporary_bytes(count):
        arguments = (Partial(isotropic, 1.0), jnp.ones(4096), 1.0, 0.5, KEY)
        options = {"num_matvecs": None, "batch_size": 8}
        program = _samples.lower(_direction, count, *arguments, **options).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4096) < 2 * temporary_bytes(64)


def test_a_score_of_more_precision_than_the_point(x64):
    score, x = blobs_score(2), point(2, np.float32)
    exact = p_laplacian(score, x.astype(np.float64)).value
    np.testing.assert_allclose(p_laplacian(score, x).value, exact, rtol=1e-6)


# --- Bounds ---------------------------------------------------------------------------------------


def test_radius_bias_attains_its_bound_for_a_quadratic_divergence():
    """F = |y|^2 y/(d+2) has div F = |y|^2, with the constant laplacian 2d; F . n is constant."""
    d, options = 5, FLUX | {"p": 2.0}
    bias = p_laplacian(lambda y: jnp.sum(y**2) * y / (d + 2), jnp.zeros(d), **options).value
    bound = radius_bias_bound(2.0 * d, radius=options["radius"], dim=d)
    np.testing.assert_allclose(bias, bound, rtol=1e-6)


@pytest.mark.slow
def test_radius_bias_on_a_mixture(x64):
    """Below the bound at every radius, and near it at small ones: half the constant would fail."""
    score, x = blobs_score(2), jnp.array([1.2, -0.9])

    @jax.jit
    @jax.vmap
    def laplacian(y, p):
        divergence = lambda y: jnp.trace(jax.jacfwd(lambda z: field(score, z, p))(y))
        return jnp.trace(jax.hessian(divergence)(y))

    angles = 2 * np.pi * np.arange(24) / 24
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    disc = (np.linspace(0, 1, 9)[:, None, None] * circle).reshape(-1, 2)
    for p in (1.0, 3.0):
        exact = p_laplacian(score, x, p=p).value
        for radius, least in ((0.4, 0.05), (0.05, 0.8)):
            largest = jnp.abs(laplacian(x + radius * disc, jnp.full(len(disc), p))).max()
            bias = abs(circle_mean(score, x, radius, p) - exact)
            bound = radius_bias_bound(largest, radius=radius, dim=2)
            assert least * bound < bias <= bound


@pytest.mark.slow
def test_score_error_bound():
    """At the same directions it is certain; it is attained where the learned score is opposite."""
    d = 3
    x = point(d, np.float32)

    @jax.jit
    def bound(score, learned, centre):
        points = centre + FLUX["radius"] * directions(jnp.arange(16), centre)
        s, t = jax.vmap(score)(points), jax.vmap(learned)(points)
        norms = (jnp.linalg.norm(v, axis=1) for v in (s, t, t - s))
        return score_error_bound(*norms, radius=FLUX["radius"], dim=d)

    score, learned = (blobs_score(d, dtype=np.float32, tilt=tilt) for tilt in (0.0, 0.5))
    fluxes = [p_laplacian(s, x, **FLUX).value for s in (score, learned)]
    assert 1e-3 < abs(fluxes[0] - fluxes[1]) <= bound(score, learned, x)
    assert bound(score, learned, x) < 0.5 * 2 * d / FLUX["radius"]  # not the trivial one

    down, up = Partial(isotropic, 1.0), Partial(isotropic, -3.0)
    fluxes = [p_laplacian(s, jnp.zeros(d), **FLUX).value for s in (down, up)]
    difference = abs(fluxes[0] - fluxes[1])
    np.testing.assert_allclose(difference, bound(down, up, jnp.zeros(d)), rtol=1e-5)
    assert float(score_error_bound([0.0, 0.0], [0.0, 2.0], [0.0, 2.0], radius=1.0, dim=1)) == 1.0


def test_unit_vectors_differ_by_at_most_the_dunkl_williams_bound():
    """The step that carries the constant 2, over scores of very different lengths."""
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(2, 20000, 3)) * np.exp(rng.normal(size=(2, 20000, 1)))
    a, b = np.linalg.norm(s, axis=1), np.linalg.norm(t, axis=1)
    angle = np.linalg.norm(s / a[:, None] - t / b[:, None], axis=1)
    ratio = angle * (a + b) / (2 * np.linalg.norm(s - t, axis=1))
    assert 0.99 < ratio.max() <= 1 + 1e-12


def test_sampling_bound():
    """It fails less often than q = 5%, and half of it would fail more often.

    F . n = 1 on one half of the sphere about 0 and -1 on the other: as spread as can be.
    """
    d, num = 3, 64
    options = FLUX | {"num_directions": num, "batch_size": num}

    @jax.jit
    @jax.vmap
    def run(key):
        flipping = lambda y: jnp.where(y[0] > 0, 1.0, -1.0) * y
        return p_laplacian(flipping, jnp.zeros(d), **options | {"key": key}).value

    errors = np.abs(run(jax.random.split(KEY, 4000)))  # the mean is 0
    bound = sampling_bound(dim=d, radius=0.5, num_directions=num, probability=0.05)
    assert 0 < np.mean(errors > bound) < 0.05
    assert np.mean(errors > 0.5 * bound) > 0.1


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sphere"}, r"method must be one of \['exact', 'flux', 'ball'\], got 'sph"),
        ({"p": 0.5}, r"p must be one finite number >= 1, got 0\.5"),
        ({"p": math.nan}, "p must be one finite number >= 1, got nan"),
        ({"p": math.inf}, "p must be one finite number >= 1, got inf"),
        ({"p": np.ones(2)}, r"p must be one finite number >= 1.*jax\.vmap"),
        ({"method": "exact"}, "radius belongs to method='flux' or 'ball'"),
        ({"num_matvecs": 3}, "method='flux' takes no products"),
        ({"radius": "1"}, "radius must be .*finite and > 0, got '1'"),
        ({"p": "1"}, "p must be one finite number >= 1, got '1'"),
        ({"radius": None}, r"method='flux' is a mean over a ball: pass its radius=, > 0"),
        ({"radius": None, "method": "ball"}, "method='ball' is a mean over a ball"),
        ({"radius": 0.0}, r"radius must be .*finite and > 0, got 0\.0"),
        ({"radius": -1.0, "method": "ball"}, r"radius must be .*finite and > 0, got -1\.0"),
        ({"radius": np.ones(2)}, r"radius must be one number, got shape \(2,\)"),
        ({"key": None}, r"method='flux' draws random directions: pass key=jax\.random\.key"),
        ({"key": None, "method": "ball"}, "draws random points: pass key"),
        ({"key": None, "method": "exact", "num_matvecs": 2}, "random probes with num_matvecs"),
        ({"num_directions": 0}, "num_directions must be an integer >= 1, got 0"),
        ({"num_directions": 8.0}, r"num_directions must be an integer >= 1, got 8\.0"),
        ({"num_directions": 7, "antithetic": True}, r"must be even, got 7; 8 would do"),
        ({"antithetic": True, "method": "ball"}, r"antithetic.*belong to method='flux'.*'ball'"),
        ({"antithetic": True, "method": "exact"}, r"antithetic.*belong to method='flux'"),
        ({"num_matvecs": 0, "method": "ball"}, "num_matvecs must be an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        p_laplacian(lambda x: -x, jnp.ones(3), **FLUX | options)


@pytest.mark.parametrize("method", ["exact", "flux", "ball"])
def test_bad_points_and_scores(method):
    options = {"method": method} if method == "exact" else FLUX | {"method": method}
    with pytest.raises(ValueError, match=r"float32 or float64.*int32"):
        p_laplacian(lambda x: -x, jnp.arange(3), **options)
    with pytest.raises(ValueError, match=r"x is not finite: 1 of 2 entries"):
        p_laplacian(lambda x: -x, jnp.array([1.0, math.nan]), **options)
    with pytest.raises(ValueError, match=r"shape of x, \(3,\), got \(2,\)"):
        p_laplacian(lambda x: x[:2], jnp.ones(3), **options)


def breaking(plane, x):
    """The score of a Gaussian up to a plane, and NaN beyond."""
    return jnp.where(x[0] > plane, math.nan, -x)


def test_a_direction_without_a_finite_score_is_named():
    x, plane = jnp.zeros(3), 0.75
    crossed = np.asarray(directions(jnp.arange(16), x))[:, 0] > plane
    first = int(np.argmax(crossed))
    assert first > 0  # or a default would pass
    assert 1 < crossed.sum() < 16
    options = FLUX | {"radius": 1.0}
    said = f"The score is not finite at direction {first} of 16; {crossed.sum()} of them fail"
    with pytest.raises(ValueError, match=re.escape(said)):
        p_laplacian(Partial(breaking, plane), x, **options)


@pytest.mark.slow
def test_of_a_pair_either_end_may_break_and_of_points_any():
    """The plane is crossed by -n for one pair alone."""
    x, options = jnp.zeros(3), FLUX | {"radius": 1.0, "antithetic": True}
    n = np.asarray(directions(jnp.arange(8), x))[:, 0]
    i, plane = int(np.argmin(n)), float(np.sort(np.abs(n))[-2:].mean())
    assert i == np.argmax(np.abs(n)), "the largest |n_0| must be a negative one: take another key"
    said = f"The score is not finite at direction {i} of 8; 1 of them fail"
    score = Partial(breaking, plane)
    with pytest.raises(ValueError, match=re.escape(said)):
        p_laplacian(score, x, **options)
    points = jnp.stack([x.at[0].set(-9.0), x])  # far behind the plane no direction crosses it
    with pytest.raises(ValueError, match=re.escape(f"Point 1 of 2 (1 fail): {said}")):
        at_points(p_laplacian, score, points, common_probes=True, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: radius_bias_bound(-1.0, radius=1.0, dim=2), r"max_laplacian must be .*>= 0"),
        (lambda: radius_bias_bound(1.0, radius=0.0, dim=2), "radius must be .*finite and > 0"),
        (lambda: radius_bias_bound(1.0, radius=1.0, dim=0), "dim must be an integer >= 1"),
        (lambda: score_error_bound([1.0], [1.0], [-1.0], radius=1.0, dim=2), "error_norms must"),
        (lambda: score_error_bound([], [], [], radius=1.0, dim=2), "at one point at least"),
        (
            lambda: score_error_bound([1.0], [1.0, 2.0], [0.1], radius=1.0, dim=2),
            r"same points.*'learned_norms': \(2,\)",
        ),
        (
            lambda: sampling_bound(dim=2, radius=1.0, num_directions=8, probability=5),
            r"probability .* between 0 and 1, got 5",
        ),
        (
            lambda: sampling_bound(dim=2, radius=1.0, num_directions=0, probability=0.05),
            "num_directions must be an integer >= 1, got 0",
        ),
    ],
)
def test_bad_bounds(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- The page -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_examples_of_the_documentation_print_what_it_says():
    page = Path(__file__).parent.parent / "docs" / "p_laplacian.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 5
    assert result.failed == 0
