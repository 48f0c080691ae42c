"""Local dimension: closed forms, naive twins, and standard errors that hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax import Schedule
from sharpjax.curvature import at_points
from sharpjax.densities import Gaussian, GaussianMixture, LowRankMixture
from sharpjax.dimension import (
    denoising_loss,
    dimension_curve,
    flipd,
    lhsd,
    normal_bundle,
    transition_mass,
)

KEY = jax.random.key(0)
LEVEL = {"alpha": 0.9, "sigma": 0.3}
pytestmark = pytest.mark.usefixtures("x64")


def mixture(d=6):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(2, d, d))
    S = A @ A.transpose(0, 2, 1) / d + 0.02 * np.eye(d)
    return GaussianMixture([0.4, 0.6], rng.normal(size=(2, d)), S).noised(*LEVEL.values())


def plane(d, n, floor=0.0):
    """n directions of variance 1 in d coordinates, without noise across."""
    U = np.linalg.qr(np.random.default_rng(1).normal(size=(d, n)))[0].T
    return LowRankMixture([1.0], np.zeros((1, d)), U[None], np.ones((1, n)), [floor])


def hessian(p, x):
    return np.asarray(jax.jacfwd(p.score)(x))


X0 = np.linspace(-0.5, 0.5, 6)


class TestClosedForms:
    def test_flipd(self):
        p, x = mixture(), 0.9 * X0
        expected = 6 + 0.09 * (np.trace(hessian(p, x)) + np.sum(np.asarray(p.score(x)) ** 2))
        found = flipd(p.score, X0, **LEVEL, method="exact")
        np.testing.assert_allclose(found.value, expected, rtol=1e-10)
        assert (found.standard_error, found.num_matvecs) == (0, 6)

    @pytest.mark.parametrize("cutoff", [0.03, 0.1, 0.5])
    @pytest.mark.parametrize("power", [2.0, 4.0])
    def test_lhsd_against_all_eigenvalues(self, cutoff, power):
        """As many products as coordinates, where the quadrature of each probe is exact."""
        p, x = mixture(), 0.9 * X0
        values = np.linalg.eigvalsh(hessian(p, x))
        f = 1 / (1 + (0.09 * np.abs(values) / cutoff) ** power)
        across = cutoff**power / (1 + cutoff**power)
        options = {"cutoff": cutoff, "power": power, "num_matvecs": 6, "num_probes": 4000}
        found = lhsd(p.score, X0, **LEVEL, key=KEY, **options)
        expected = (f.sum() - 6 * across) / (1 - across)
        assert abs(found.value - expected) < 4 * found.standard_error + 1e-12
        exact = lhsd(p.score, X0, **LEVEL, cutoff=cutoff, power=power, method="exact")
        np.testing.assert_allclose(exact.value, expected, rtol=1e-8)
        assert (exact.standard_error, exact.num_matvecs) == (0, 6)
        mass = transition_mass(p.score, X0, **LEVEL, key=KEY, **options)
        expected = np.mean(4 * f * (1 - f)) - 4 * across * (1 - across)
        assert abs(mass.value - expected) < 4 * mass.standard_error + 1e-12

    def test_what_the_filter_leaves_across_is_removed(self):
        """Of 7 directions in 60 the uncorrected count is 7.43 at c = .3 and 33.5 at c = 1."""
        p = plane(60, 7).noised(1.0, 0.01)
        options = {"alpha": 1.0, "sigma": 0.01, "key": KEY, "num_probes": 400, "symmetric": True}
        for cutoff, uncorrected in ((0.3, 7.43), (0.5, 10.1), (1.0, 33.5)):
            found = lhsd(p.score, np.zeros(60), cutoff=cutoff, **options)
            share = cutoff**4 / (1 + cutoff**4)
            again = found.value * (1 - share) + 60 * share
            error = 4 * float(found.standard_error)
            assert float(again) == pytest.approx(uncorrected, abs=error + 0.05)
            assert float(found.value) == pytest.approx(7, abs=error + 1e-3)

    def test_denoising_loss_at_one_point_of_a_gaussian(self):
        """tr K^2 + sigma^2 |s|^2, and not tr K."""
        A = np.random.default_rng(2).normal(size=(6, 6))
        p = Gaussian(np.ones(6), A @ A.T / 6 + 0.02 * np.eye(6)).noised(*LEVEL.values())
        x = 0.9 * X0
        K = np.eye(6) + 0.09 * np.asarray(p.hessian(x))
        expected = np.trace(K @ K) + 0.09 * np.sum(np.asarray(p.score(x)) ** 2)
        found = denoising_loss(p.score, X0, **LEVEL, key=KEY, num_samples=20_000)
        assert abs(found.value - expected) < 4 * found.standard_error
        assert abs(np.trace(K) - expected) > 20 * found.standard_error
        assert found.num_matvecs == 0

    def test_denoising_loss_against_a_loop(self):
        p = mixture()
        found = denoising_loss(p.score, X0, **LEVEL, key=KEY, num_samples=5, batch_size=2)
        noises = [jax.random.normal(jax.random.fold_in(KEY, i), (6,)) for i in range(5)]
        losses = [np.sum((e + 0.3 * p.score(0.9 * X0 + 0.3 * e)) ** 2) for e in noises]
        np.testing.assert_allclose(found.value, np.mean(losses), rtol=1e-10)
        np.testing.assert_allclose(found.standard_error, np.std(losses, ddof=1) / np.sqrt(5))

    def test_normal_bundle_against_a_loop(self):
        p = plane(8, 3).noised(1.0, 0.01)
        found = normal_bundle(p.score, np.zeros(8), alpha=1.0, sigma=0.01, key=KEY)
        noises = [jax.random.normal(jax.random.fold_in(KEY, i), (8,)) for i in range(32)]
        values = np.linalg.svd(np.array([p.score(0.01 * e) for e in noises]), compute_uv=False)
        np.testing.assert_allclose(found.singular_values, values, rtol=1e-8)
        assert int(found.dimension) == 8 - (np.argmax(values[:-1] - values[1:]) + 1) == 3
        assert float(found.gap) == pytest.approx(np.max(values[:-1] - values[1:]) / values[0])
        assert found.gap > 0.3


def test_all_four_on_a_plane():
    """At the size of a colour image of 32 x 32: what a little noise leaves open."""
    d, n, sigma = 3072, 40, 0.01
    p = plane(d, n).noised(1.0, sigma)
    x0 = np.asarray(plane(d, n).sample(jax.random.key(3), 1)[0])
    options = {"alpha": 1.0, "sigma": sigma, "key": KEY}
    for found in (
        flipd(p.score, x0, **options, method="xtrace", num_matvecs=100),
        lhsd(p.score, x0, **options, num_probes=128, symmetric=True),
        denoising_loss(p.score, x0, **options, num_samples=256),
    ):
        assert abs(float(found.value) - n) < 4 * float(found.standard_error) + 0.1
        assert float(found.standard_error) < 0.1 * n


@pytest.mark.slow
def test_standard_errors_hold():
    """z-scores over 60 keys: mean 0, and a standard deviation of 1 within four of its errors."""
    rng = np.random.default_rng(4)
    A = rng.normal(size=(32, 32))
    p = Gaussian(np.zeros(32), A @ A.T / 32 + 0.02 * np.eye(32)).noised(*LEVEL.values())
    x0 = 0.1 * rng.normal(size=32)
    values = np.linalg.eigvalsh(hessian(p, 0.9 * x0))
    f = 1 / (1 + (0.09 * np.abs(values) / 0.1) ** 4)
    across = 1e-4 / (1 + 1e-4)
    K = np.eye(32) + 0.09 * hessian(p, 0.9 * x0)
    length = 0.09 * np.sum(np.asarray(p.score(0.9 * x0)) ** 2)
    truths = {
        flipd: (np.trace(K) + length, {"num_matvecs": 64}),
        lhsd: (
            (f.sum() - 32 * across) / (1 - across),
            {"num_probes": 64, "num_matvecs": 32, "symmetric": True},
        ),
        denoising_loss: (np.trace(K @ K) + length, {"num_samples": 128}),
    }
    for estimator, (truth, options) in truths.items():
        found = [
            estimator(p.score, x0, **LEVEL, key=jax.random.key(k), **options) for k in range(60)
        ]
        z = np.array([(e.value - truth) / e.standard_error for e in found])
        assert abs(z.mean()) < 4 / np.sqrt(60), estimator.__name__
        assert z.std() == pytest.approx(1, abs=4 / np.sqrt(120)), estimator.__name__


class TestCurve:
    def test_a_thin_direction_closes_as_the_noise_grows(self):
        """Of variances 1, 1 and .2^2: three directions from near, two from further away."""
        schedule = Schedule.create()
        p = Gaussian(np.zeros(3), np.diag([1.0, 1.0, 0.2**2]))
        curve = dimension_curve(
            lambda t: p.noised(schedule.alpha(t), schedule.sigma(t)).score,
            np.zeros(3), schedule=schedule, times=[300, 0, 40, 5], key=KEY, num_probes=200,
        )  # fmt: skip
        assert curve.times.tolist() == [0, 5, 40, 300]
        assert np.all(np.diff(np.asarray(curve.sigma)) > 0)
        for k, t in enumerate(curve.times.tolist()):
            alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
            v = alpha**2 * np.array([1.0, 1.0, 0.2**2])
            expected = np.sum(v / (v + sigma**2))  # s = 0 there
            assert float(curve.flipd.value[k]) == pytest.approx(expected, abs=1e-6)
        assert float(curve.lhsd.value[0]) > 2.5
        assert abs(float(curve.lhsd.value[2]) - 2) < 0.3
        assert curve.chosen == int(np.argmin(curve.transition_mass.value))

    def test_mistakes(self):
        schedule = Schedule.create()
        options = {"schedule": schedule, "key": KEY}
        for times, message in (
            ([], "at least one timestep"),
            ([5, 5], "all different"),
            ([1000], "1000"),
        ):
            with pytest.raises(ValueError, match=message):
                dimension_curve(lambda t: lambda x: -x, np.zeros(2), times=times, **options)


ESTIMATORS = (flipd, lhsd, denoising_loss)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, normal_bundle])
def test_batches_and_single_precision(estimator):
    p = plane(5, 2, 1e-4).noised(*LEVEL.values())
    points = jnp.asarray(np.random.default_rng(5).normal(size=(3, 5)), jnp.float32)
    found = at_points(estimator, p.score, points, key=KEY, **LEVEL)
    for i, x in enumerate(points):
        one = estimator(p.score, x, key=jax.random.fold_in(KEY, i), **LEVEL)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one), strict=True):
            assert a.dtype in (jnp.float32, jnp.int32, jnp.int64)
            np.testing.assert_allclose(a[i], b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, normal_bundle])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, "dimension is undefined or 0 .* at alpha = 0"),
        ({"sigma": 0.0}, "sigma must be finite and > 0"),
        ({"sigma": np.nan}, "sigma must be finite and > 0"),
        ({"key": None}, r"pass key=jax\.random\.key\(seed\)"),
        ({"x0": np.array([1.0, np.inf])}, "x is not finite"),
        ({"score": lambda x: x[:1]}, "shape"),
    ],
)
def test_mistakes(estimator, changes, message):
    given = {"score": lambda x: -x, "x0": np.ones(2), "key": KEY} | LEVEL | changes
    with pytest.raises(ValueError, match=message):
        estimator(given.pop("score"), given.pop("x0"), **given)


def test_a_curve_needs_a_schedule():
    with pytest.raises(ValueError, match="schedule must be a noise schedule, such as"):
        dimension_curve(lambda t: jnp.negative, jnp.ones(2), schedule=None, times=[1], key=KEY)


def test_counts_that_are_too_small_are_refused():
    score, x0 = lambda x: -x, np.ones(3)
    with pytest.raises(ValueError, match="num_samples must be an integer >= 3"):
        normal_bundle(score, x0, **LEVEL, key=KEY, num_samples=2)
    with pytest.raises(ValueError, match="at least 2 coordinates"):
        normal_bundle(score, np.ones(1), **LEVEL, key=KEY)
    with pytest.raises(ValueError, match="method must be 'slq' or 'exact', got 'lanczos'"):
        lhsd(score, x0, **LEVEL, key=KEY, method="lanczos")
    with pytest.raises(ValueError, match="cutoff must be finite and > 0"):
        lhsd(score, x0, **LEVEL, key=KEY, cutoff=0.0)
    with pytest.raises(ValueError, match="num_samples must be an integer >= 2, got 1"):
        denoising_loss(score, x0, **LEVEL, key=KEY, num_samples=1)
    with pytest.raises(ValueError, match="num_matvecs must be an integer >= 2, got 1"):
        flipd(score, x0, **LEVEL, key=KEY, num_matvecs=1)
    with pytest.raises(ValueError, match="num_probes must be an integer >= 2, got 1"):
        lhsd(score, x0, **LEVEL, key=KEY, num_probes=1)
    # fewer products would be wrong by more than the error says: .007 ± .002 for 7, of one
    for size, least in ((3, 3), (20, 8)):
        with pytest.raises(ValueError, match=f"num_matvecs must be an integer >= {least}"):
            lhsd(score, np.ones(size), **LEVEL, key=KEY, num_matvecs=least - 1)


def test_a_score_that_is_not_finite_somewhere_is_named():
    def score(x):
        return jnp.where(x[0] > 0.45, jnp.nan, -x)

    with pytest.raises(ValueError, match=r"not finite at noise \d+ of 64"):
        denoising_loss(score, np.zeros(2), **LEVEL, key=KEY, num_samples=64)
