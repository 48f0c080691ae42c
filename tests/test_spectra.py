"""Extreme eigenpairs, spectral densities, inertia and asymmetry against dense matrices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.stats import norm

from sharpjax.curvature import asymmetry, jacobian
from sharpjax.curvature.density import spectral_density
from sharpjax.curvature.eigenpairs import _restarted, extreme_eigenpairs
from sharpjax.curvature.spectra import inertia, stochastic_asymmetry

KEY = jax.random.key(0)


def linear(matrix, x):
    return (matrix @ x.ravel()).reshape(x.shape)


def symmetric(spectrum, seed=0):
    spectrum = np.asarray(spectrum, np.float64)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=2 * spectrum.shape))
    return (basis * spectrum) @ basis.T


def nonsymmetric(d=6, seed=0):
    return np.random.default_rng(seed).normal(size=(d, d))


def rounding(A, dtype):
    return 10 * math.sqrt(len(A)) * np.finfo(dtype).eps * np.linalg.norm(A, 2)


# --- Extreme eigenpairs -------------------------------------------------------------------------

N, K = 60, 4
RNG = np.random.default_rng(0)
SPECTRA = {
    "simple": RNG.uniform(-1, 1, N),
    "multiple at both ends": np.concatenate(
        [[5, 5, 5, 4, -3, -3], RNG.uniform(-1, 1, N - 6)],
    ),
    "clustered": np.concatenate(
        [1 + 1e-6 * RNG.normal(size=4), -1 - 1e-6 * RNG.normal(size=4), RNG.uniform(-0.5, 0.5, 52)]
    ),
    "isotropic": np.full(N, -4.0),
    "zero": np.zeros(N),
    "low rank - identity": np.append([-0.2, -0.5, -0.5], np.full(N - 3, -1.0)),
    "two-valued": np.repeat([-1.0, 1.0], N // 2),
}
ENDS = {"largest": slice(N - K, N), "smallest": slice(0, K), "both": np.r_[0:2, N - 2 : N]}


@pytest.mark.parametrize(
    ("which", "dtype"),
    [
        ("both", "float64"),
        ("largest", "float32"),
        pytest.param("largest", "float64", marks=pytest.mark.slow),
        pytest.param("smallest", "float32", marks=pytest.mark.slow),
    ],
)
def test_extreme_eigenpairs_with_their_multiplicities(which, dtype):
    with jax.enable_x64(dtype == "float64"):
        stack = jnp.asarray(np.stack([symmetric(s) for s in SPECTRA.values()]).astype(dtype))
        pairs = jax.jit(
            jax.vmap(
                lambda A: extreme_eigenpairs(
                    Partial(linear, A), jnp.zeros((N // 2, 2), dtype), key=KEY, k=K, which=which
                )
            )
        )(stack)
    assert pairs.vectors.shape == (len(SPECTRA), K, N // 2, 2)
    for i, name in enumerate(SPECTRA):
        A = np.asarray(stack[i], np.float64)
        exact = np.linalg.eigvalsh(A)
        tol = rounding(A, dtype)
        values, residuals = (np.asarray(a[i], float) for a in (pairs.values, pairs.residuals))
        vectors = np.asarray(pairs.vectors[i], float).reshape(K, N)
        assert pairs.converged[i].all(), name
        assert bool(pairs.complete[i]), name
        assert (residuals <= 1e-4 * np.abs(exact).max() + tol).all(), name
        distance = np.abs(values[:, None] - exact).min(axis=1)
        assert (distance <= residuals + tol).all(), name
        # In order, each as often as it occurs: more than the residual alone would promise.
        error = np.abs(values - exact[ENDS[which]])
        assert (error <= 1e-4 * np.abs(exact).max() + tol).all(), name
        actual = np.linalg.norm(vectors @ A - values[:, None] * vectors, axis=1)
        np.testing.assert_allclose(residuals, actual, atol=tol, err_msg=name)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(K), atol=rounding(np.eye(N), dtype))
    assert pairs.num_matvecs.max() < 200


def test_eigenpairs_of_a_nonsymmetric_jacobian_and_of_a_small_one(x64):
    J = nonsymmetric()
    score, x = Partial(linear, jnp.asarray(J)), jnp.zeros((2, 3))
    pairs = extreme_eigenpairs(score, x, key=KEY, k=6)
    np.testing.assert_allclose(pairs.values, np.linalg.eigvalsh(0.5 * (J + J.T)), atol=1e-13)
    assert (bool(pairs.complete), int(pairs.num_matvecs)) == (True, 6)


def test_too_few_products_are_data_and_not_an_error(x64):
    A = symmetric(np.linspace(0, 1, N))
    score, x = Partial(linear, jnp.asarray(A)), jnp.zeros(N)
    pairs = extreme_eigenpairs(score, x, key=KEY, k=K, max_matvecs=25)
    assert int(pairs.num_matvecs) == 20  # 8 more would be too many
    assert not pairs.converged.all()
    assert not pairs.complete
    distance = np.abs(np.asarray(pairs.values)[:, None] - np.linalg.eigvalsh(A)).min(axis=1)
    assert (distance <= pairs.residuals).all()
    more = extreme_eigenpairs(score, x, key=KEY, k=K, max_matvecs=200)
    assert more.converged.all()
    assert bool(more.complete)
    assert 25 < int(more.num_matvecs) <= 200


@pytest.mark.slow
def test_memory_of_eigenpairs():
    score, x = Partial(jnp.multiply, jnp.ones(4096)), jnp.zeros(4096)
    options = {"low": 0, "high": K, "size": 20, "symmetric": True}
    program = _restarted.lower(jacobian(score, x), KEY, 1e-4, 400, **options).compile()
    assert program.memory_analysis().temp_size_in_bytes < 80 * x.nbytes


# --- Spectral density ---------------------------------------------------------------------------

DENSITIES = {
    "uniform": np.linspace(-1, 1, 32),
    "two bumps": np.concatenate([RNG.normal(-1, 0.1, 20), RNG.normal(1, 0.2, 12)]),
    "geometric": -np.geomspace(4.0, 0.01, 32),
    "low rank": np.append(np.full(30, -4.0), [1.0, 2.0]),
}


@pytest.mark.slow
def test_the_band_of_a_density_covers_the_smoothed_spectrum():
    """Pointwise 95% t-intervals of 32 probes of 16 products, 50 runs on each of 4 spectra.

    Grid points with at least 1% of the peak for the density, and strictly inside the spectrum for
    the cumulative form; `pytest -s` prints the rates. Neighbouring points depend on each other:
    with 5 independent ones a run the standard error of a rate is 1.4 points. A t-interval on
    skewed samples covers less than it says, and the weight of 2 eigenvalues is very skewed.
    """
    with jax.enable_x64(True):
        stack = jnp.asarray(np.stack([symmetric(s) for s in DENSITIES.values()]))

        @jax.jit
        @jax.vmap
        def run(i):
            score, x = Partial(linear, stack[i % 4]), jnp.zeros((4, 8))
            options = {"num_probes": 32, "num_matvecs": 16, "batch_size": 32, "symmetric": True}
            return spectral_density(score, x, key=jax.random.fold_in(KEY, i), **options)

        results = jax.device_get(run(jnp.arange(200)))
    rates = {}
    density, cumulative = results.density.interval(), results.cumulative.interval()
    for j, (name, spectrum) in enumerate(DENSITIES.items()):
        grid, h = results.grid[j::4], results.bandwidth[j::4, None]
        z = (grid[..., None] - spectrum) / h[..., None]
        exact = norm.pdf(z).sum(axis=-1) / h
        low, high = (bound[j::4] for bound in density)
        inside = exact > 0.01 * exact.max(axis=1, keepdims=True)
        rates[name] = [np.mean(((low <= exact) & (exact <= high))[inside])]
        exact = norm.cdf(z).sum(axis=-1)
        low, high = (bound[j::4] for bound in cumulative)
        inside = (exact > 0.5) & (exact < 31.5)
        rates[name].append(np.mean(((low <= exact) & (exact <= high))[inside]))
    # Weights sum to 1 for every probe: the integral has no error but the grid's ends.
    integrals = np.trapezoid(results.density.value, results.grid, axis=1)
    np.testing.assert_allclose(integrals, 32, rtol=1e-5)
    np.testing.assert_allclose(results.cumulative.value[:, 0], 0, atol=1e-4)
    np.testing.assert_allclose(results.cumulative.value[:, -1], 32, atol=1e-4)
    for name, (density, cumulative) in rates.items():
        print(f"{name:10} density {density:.3f}  cumulative {cumulative:.3f}")
    low_rank = rates.pop("low rank")
    # 4 standard errors below and 3 above, and a point for the skewness; a spectrum and in all.
    assert all(0.88 < rate < 0.99 for pair in rates.values() for rate in pair), rates
    assert all(0.91 < rate < 0.98 for rate in np.mean(list(rates.values()), axis=0)), rates
    assert 0.75 < min(low_rank) < 0.93, low_rank


def test_density_of_one_eigenvalue():
    score, x = Partial(jnp.multiply, jnp.full(8, -4.0)), jnp.zeros(8)
    grid = jnp.array([-4.5, -4.0, -3.5])
    result = spectral_density(
        score, x, key=KEY, num_probes=2, num_matvecs=3, grid=grid, bandwidth=0.25
    )
    np.testing.assert_allclose(result.density.value, 8 * norm.pdf(grid, -4, 0.25), rtol=1e-5)
    np.testing.assert_allclose(result.cumulative.value, 8 * norm.cdf(grid, -4, 0.25), rtol=1e-5)
    np.testing.assert_allclose(result.density.standard_error, 0, atol=1e-5)
    assert (result.density.num_samples, result.density.num_matvecs) == (2, 12)


# --- Inertia ------------------------------------------------------------------------------------


def test_exact_inertia(x64):
    spectrum = np.array([-4.0, -1.0, -1e-3, 0.0, 1e-17, 2e-3, 0.5, 3.0])
    score, x = Partial(linear, jnp.asarray(symmetric(spectrum))), jnp.zeros((2, 4))

    def parts(**options):
        counts = inertia(score, x, **options)
        return [int(e.value) for e in (counts.negative, counts.zero, counts.positive)]

    assert parts() == [3, 2, 3]
    assert parts(tolerance=1.5e-3) == [2, 3, 3]
    assert parts(tolerance=1.0e1) == [0, 8, 0]
    counts = inertia(score, x)
    np.testing.assert_allclose(counts.tolerance, 8 * np.finfo(float).eps * 4, rtol=1e-12)
    assert counts.negative.interval() == (3.0, 3.0)
    assert counts.negative.num_matvecs == 8
    assert counts.quadrature_error.tolist() == [0, 0, 0]


@pytest.mark.slow
def test_stochastic_inertia_covers_the_exact_counts():
    """95% intervals, widened by the quadrature's bound, 32 probes of 16 products.

    The standard error alone does for "two bumps", with a gap at 0. It does not for "geometric",
    where nearly every probe places the one eigenvalue within the tolerance below it. (Of "low
    rank" only the bound is looked at: its positive count is that of a projection of rank 2.)
    """
    tolerance = 0.011
    with jax.enable_x64(True):
        stack = jnp.asarray(np.stack([symmetric(s) for s in DENSITIES.values()]))

        @jax.jit
        @jax.vmap
        def run(i):
            score, x = Partial(linear, stack[i % 4]), jnp.zeros(32)
            options = {"num_probes": 32, "num_matvecs": 16, "batch_size": 32, "symmetric": True}
            key = jax.random.fold_in(KEY, i)
            return inertia(score, x, method="slq", tolerance=tolerance, key=key, **options)

        found = jax.device_get(run(jnp.arange(400)))
    estimates = (found.negative, found.zero, found.positive)
    np.testing.assert_allclose(sum(e.value for e in estimates), 32, rtol=1e-12)
    plain, widened = np.zeros((2, 4, 3))
    for j, spectrum in enumerate(DENSITIES.values()):
        below, above = np.sum(spectrum < -tolerance), np.sum(spectrum > tolerance)
        for k, truth in enumerate((below, 32 - below - above, above)):
            low, high = (bound[j::4] for bound in estimates[k].interval())
            extra = found.quadrature_error[j::4, k] + 1e-9
            plain[j, k] = np.mean((low <= truth) & (truth <= high))
            widened[j, k] = np.mean((low - extra <= truth) & (truth <= high + extra))
    # 100 runs each; 0.95 less 3 binomial standard errors.
    assert (widened[:3] > 0.88).all(), widened
    assert (plain[1] > 0.88).all(), plain
    assert plain[2, 0] < 0.5, plain
    # What is within the tolerance is misplaced where either of the others is.
    outer = found.quadrature_error[:, ::2].sum(axis=1)
    np.testing.assert_allclose(found.quadrature_error[:, 1], outer, rtol=1e-10, atol=1e-12)
    # The bound is worth something: of 32, where there is a gap. And it is not where there is none.
    error = np.mean(found.quadrature_error.reshape(-1, 4, 3), axis=0)
    assert error[1, 0] < 2.0 < error[0, 0], error
    # A space that is exhausted after 3 products leaves nothing to misplace.
    assert error[3].max() < 1e-10, error


# --- Asymmetry ----------------------------------------------------------------------------------


def test_stochastic_asymmetry_against_its_twin_and_the_exact_one(x64):
    J = nonsymmetric(12) + 0.3 * symmetric(np.arange(12.0))
    score, x = Partial(linear, jnp.asarray(J)), jnp.zeros((3, 4))
    run = jax.jit(jax.vmap(lambda key: stochastic_asymmetry(score, x, key=key, num_probes=64)))
    keys = jax.random.split(KEY, 500)
    many = run(keys)
    assert (many.num_samples, many.num_matvecs) == (64, 128)
    signs = jax.vmap(
        lambda i: jax.random.rademacher(jax.random.fold_in(keys[0], i), (3, 4), np.float64)
    )
    V = np.asarray(signs(jnp.arange(64))).reshape(64, 12)
    odd, even = (np.sum((V @ (J + sign * J.T)) ** 2, axis=1) for sign in (-1, 1))
    ratio = math.sqrt(odd.mean() / even.mean())
    spread = np.std(odd / odd.mean() - even / even.mean(), ddof=1)
    np.testing.assert_allclose(many.value[0], ratio, rtol=1e-12)
    np.testing.assert_allclose(many.standard_error[0], ratio * spread / 2 / math.sqrt(64))

    low, high = many.interval()
    exact = float(asymmetry(J))
    # 500 runs: a binomial standard error of 1 point.
    assert 0.92 < np.mean((low <= exact) & (exact <= high)) < 0.98
    reported = np.sqrt(np.mean(np.square(many.standard_error)))
    assert abs(reported / np.std(many.value) - 1) < 0.1


def test_stochastic_asymmetry_at_the_extremes():
    x, options = jnp.zeros(2), {"key": KEY, "num_probes": 3}
    rotation = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    symmetric_ = stochastic_asymmetry(Partial(linear, jnp.eye(2)), x, **options)
    assert (float(symmetric_.value), float(symmetric_.standard_error)) == (0.0, 0.0)
    nothing = stochastic_asymmetry(Partial(linear, 0 * rotation), x, **options)
    assert (float(nothing.value), float(nothing.standard_error)) == (0.0, 0.0)
    assert math.isinf(stochastic_asymmetry(Partial(linear, rotation), x, **options).value)
    large = stochastic_asymmetry(Partial(linear, 1e25 * (jnp.eye(2) + rotation)), x, **options)
    np.testing.assert_allclose(large.value, 1.0, rtol=1e-6)  # in float32, where squares overflow
    blocks = jnp.eye(3).at[1:, 1:].set(1e-22 * rotation)
    small = stochastic_asymmetry(Partial(linear, blocks), jnp.zeros(3), **options)
    np.testing.assert_allclose(small.value, math.sqrt(2) * 1e-22, rtol=1e-6)  # and underflow
    single = stochastic_asymmetry(Partial(linear, rotation), x, key=KEY, num_probes=1)
    with pytest.raises(ValueError, match="one sample has no standard error"):
        _ = single.standard_error


# --- What is not finite or wrongly asked --------------------------------------------------------


def overflowing(scales, x):
    """Finite at 0, and its tangents overflow."""
    return x * scales[0] * scales[1]


def test_a_product_that_is_not_finite():
    score, x = Partial(overflowing, jnp.array([1e30, 1e30])), jnp.zeros(3)
    with pytest.raises(ValueError, match="products with the Jacobian is not finite"):
        extreme_eigenpairs(score, x, key=KEY, k=1)
    options = {"key": KEY, "num_probes": 2, "num_matvecs": 2}
    for call in (
        lambda: spectral_density(score, x, **options),
        lambda: inertia(score, x, method="slq", **options),
        lambda: inertia(score, x),
        lambda: stochastic_asymmetry(score, x, key=KEY, num_probes=2),
    ):
        with pytest.raises(ValueError, match=r"Jacobian.* is not finite"):
            call()


def minus(x):
    return -x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: extreme_eigenpairs(minus, x, key=KEY, which="LA"),
            r"which must be one of \['l.*, got 'LA'",
        ),
        (lambda x: extreme_eigenpairs(minus, x, key=KEY, k=0), "k must be an integer >= 1, got 0"),
        (
            lambda x: extreme_eigenpairs(minus, x, key=KEY, k=41),
            "k must be at most the dimension 40, got 41",
        ),
        (lambda x: extreme_eigenpairs(minus, x, key=KEY, rtol=0.0), "rtol must be finite and > 0"),
        (lambda x: extreme_eigenpairs(minus, x, key=KEY, basis_size=8), "basis_size.*>= 9, got 8"),
        (
            lambda x: extreme_eigenpairs(minus, x, key=KEY, max_matvecs=19),
            "must be at least 20, .* got 19",
        ),
        (lambda x: spectral_density(minus, x, key=None), r"pass key=jax\.random\.key"),
        (lambda x: spectral_density(minus, x, key=KEY, num_probes=0), "num_probes.*got 0"),
        (lambda x: spectral_density(minus, x, key=KEY, num_matvecs=1.5), "num_matvecs.*got 1.5"),
        (lambda x: spectral_density(minus, x, key=KEY, batch_size=0), "batch_size.*got 0"),
        (lambda x: spectral_density(minus, x, key=KEY, bandwidth=-1.0), "bandwidth must be finite"),
        (lambda x: spectral_density(minus, x, key=KEY, grid=1.0), r"shape \(g,\).*got \(\)"),
        (lambda x: spectral_density(minus, x, key=KEY, grid=[0, np.inf]), "grid is not finite: 1"),
        (lambda x: inertia(minus, x, method="lanczos"), r"must be 'exact' or 'slq', got 'lan"),
        (lambda x: inertia(minus, x, method="slq"), r"pass key=jax\.random\.key"),
        (lambda x: inertia(minus, x, tolerance=0.0), "tolerance must be finite and > 0"),
        (lambda x: stochastic_asymmetry(minus, x, key=KEY, num_probes=0), "num_probes.*got 0"),
        (lambda x: stochastic_asymmetry(minus, x, key=KEY, batch_size=0), "batch_size.*got 0"),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones(40))
