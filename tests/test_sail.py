"""SAIL's losses against closed forms, the descent's promises, and where it leads."""

import dataclasses
import gc
import itertools
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from scipy import stats

from sharpjax import Gaussian, GaussianMixture, Schedule, ScorePair, sample
from sharpjax.curvature.programs import _KEPT as KEPT
from sharpjax.mitigation import (
    Levels,
    adam,
    descend,
    plausibility,
    sail,
    sharpness,
)
from sharpjax.mitigation.optimizers import adam_on_sphere, keep_length
from sharpjax.mitigation.sharpness import exact, finite_difference

ALPHA, SIGMA = 0.6, 0.8
D = 6


def gaussian_pair(dtype=jnp.float64, seed=0):
    """Two Gaussians, and the matrix and offset of their linear score difference."""
    rng = np.random.default_rng(seed)
    parts = []
    for scale in (1.0, 0.1):
        a = rng.standard_normal((D, D))
        parts.append(
            Gaussian(
                jnp.asarray(rng.standard_normal(D), dtype),
                jnp.asarray(a @ a.T / D + scale * np.eye(D), dtype),
            ).noised(ALPHA, SIGMA)
        )
    u, c = parts
    x = jnp.asarray(rng.standard_normal(D), dtype)
    matrix = np.asarray(c.hessian(x) - u.hessian(x), np.float64)
    difference = np.asarray(c.score(x) - u.score(x), np.float64)
    return ScorePair(u.score, c.score, ALPHA, SIGMA), x, matrix, difference


def mixture_pair():
    u = GaussianMixture([0.3, 0.7], [[0.0, 1.0], [1.0, -1.0]], [np.eye(2), 2 * np.eye(2)])
    c = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.05 * np.eye(2), np.eye(2)])
    u, c = u.noised(ALPHA, SIGMA), c.noised(ALPHA, SIGMA)
    return ScorePair(u.score, c.score, ALPHA, SIGMA)


class TestClosedForms:
    """On a Gaussian pair s_D is linear: L = |H_D s_D|^2, grad L = 2 H_D^3 s_D, H_D symmetric."""

    def test_loss_and_gradient(self, dtype):
        pair, x, matrix, difference = gaussian_pair(dtype)
        value, gradient = jax.value_and_grad(lambda x: exact(pair, x))(x)
        rtol = 1e-10 if dtype == np.float64 else 2e-4
        np.testing.assert_allclose(value, np.sum((matrix @ difference) ** 2), rtol=rtol)
        expected = 2 * matrix @ matrix @ matrix @ difference
        scale = np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=rtol, atol=rtol * scale)

    @pytest.mark.parametrize("delta", [1e-2, 1.0])
    def test_a_finite_difference_of_a_linear_score_is_exact(self, dtype, delta):
        pair, x, *_ = gaussian_pair(dtype)
        of = jax.value_and_grad(lambda x: finite_difference(pair, x, delta=delta))(x)
        expected = jax.value_and_grad(lambda x: exact(pair, x))(x)
        # the subtraction loses digits in proportion to 1/delta
        rtol = (1e-12 if dtype == np.float64 else 1e-5) / delta + 1e-4 * (dtype == np.float32)
        for a, b in zip(of, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=10 * rtol, atol=10 * rtol * np.abs(b).max())

    @pytest.mark.slow
    @pytest.mark.usefixtures("x64")
    def test_the_finite_difference_converges_with_its_step(self):
        pair = mixture_pair()
        x = jnp.array([0.3, -0.4])
        value = exact(pair, x)
        errors = [
            abs(float(finite_difference(pair, x, delta=d) / value) - 1) for d in (0.1, 0.01, 1e-3)
        ]
        assert errors[1] < 0.02
        # first order: ten times smaller with a step ten times smaller
        np.testing.assert_allclose(errors[1] / errors[2], 10, rtol=0.1)

    @pytest.mark.usefixtures("x64")
    def test_scores_that_agree_are_not_sharp(self):
        pair, x, *_ = gaussian_pair()
        same = ScorePair(pair.conditional, pair.conditional, ALPHA, SIGMA)
        for form in ("exact", "finite_difference"):
            value, gradient = jax.value_and_grad(lambda x, f=form: sharpness(f)(same, x))(x)
            assert value == 0
            assert np.isfinite(gradient).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"form": "exakt"}, "unknown form 'exakt'; choose one of exact, fin"),
         ({"form": "finite_difference", "delta": 0.0}, "delta must be a positive number, got 0.0")],
    )  # fmt: skip
    def test_what_it_does_not_take(self, options, message):
        with pytest.raises(ValueError, match=message):
            sharpness(**options)


def bowl(scale, x, start):
    value = scale * jnp.sum(x**2)
    return value, value


def cliff(edge, x, start):
    """A bowl that is NaN left of the edge."""
    value = jnp.where(x[0] < edge, jnp.nan, jnp.sum(x**2))
    return value, value


class TestDescent:
    def test_every_candidate_stops_by_itself(self):
        start = jnp.array([[0.1, 0.0], [3.0, 0.0], [1.0, 1.0]])
        ended = descend(bowl, 1.0, start, threshold=0.25, max_steps=40)
        assert ended.outcome.tolist() == ["met", "budget", "met"]
        assert ended.steps[0] == 0
        assert ended.steps[1] == 40
        assert 0 < ended.steps[2] < 40
        np.testing.assert_array_equal(ended.point[0], start[0])
        np.testing.assert_allclose(ended.before, [0.01, 9, 2], rtol=1e-6)
        np.testing.assert_allclose(ended.after, np.sum(np.asarray(ended.point) ** 2, axis=1))

    def test_it_is_optax_step_by_step(self):
        start = jnp.array([[1.0, -2.0]])
        optimizer = optax.sgd(0.1, momentum=0.5)
        ended = descend(bowl, 1.5, start, threshold=1e-12, max_steps=7, optimizer=optimizer)
        x, memory = start[0], optimizer.init(start[0])
        for _ in range(7):
            updates, memory = optimizer.update(3.0 * x, memory, x)
            x = optax.apply_updates(x, updates)
        np.testing.assert_allclose(ended.point[0], x, rtol=1e-5)

    def test_alone_or_in_company_is_the_same(self):
        start = jax.random.normal(jax.random.key(0), (4, 3))
        together = descend(bowl, 1.0, start, threshold=0.5, max_steps=30)
        for i in range(4):
            alone = descend(bowl, 1.0, start[i : i + 1], threshold=0.5, max_steps=30)
            np.testing.assert_allclose(alone.point[0], together.point[i], rtol=1e-6)
            assert alone.steps[0] == together.steps[i]

    def test_nan_stops_one_and_not_the_others(self):
        start = jnp.array([[0.12, 0.5], [5.0, 0.5], [-1.0, 0.0]])
        ended = descend(cliff, 0.1, start, threshold=1e-6, max_steps=30)
        assert ended.outcome.tolist() == ["not finite", "budget", "not finite"]
        # the first keeps its last point before the edge, the third has never had one
        assert np.isfinite(ended.point).all()
        assert ended.point[0, 0] >= 0.1
        assert np.isfinite(ended.after[0])
        assert np.isnan(ended.before[2])
        assert ended.steps[2] == 0

    def test_another_prompt_does_not_compile_again(self, compilations):
        start = jnp.ones((2, 5))
        for chosen in (adam(), optax.sgd(0.1)):
            descend(bowl, 1.0, start, threshold=0.5, optimizer=chosen)
            with compilations() as count:
                descend(bowl, 2.0, start, threshold=0.1, max_steps=3, optimizer=chosen)
            assert count == [0]

    @pytest.mark.slow
    def test_programs_of_fresh_optimizers_and_losses_do_not_pile_up(self):
        """Programs, and what they hold, are dropped: memory does not grow with the calls."""
        held = []
        for scale in range(KEPT + 2):
            optimizer = optax.sgd(0.1)
            ended = descend(
                lambda fixed, x, start: bowl(fixed, x, start), float(scale + 1), jnp.ones((1, 2)),
                threshold=1e-9, max_steps=1, optimizer=optimizer,
            )  # fmt: skip
            np.testing.assert_allclose(ended.point, 1 - 0.2 * (scale + 1), rtol=1e-5, atol=1e-6)
            held.append(weakref.ref(optimizer.update))
        del optimizer
        gc.collect()
        alive = [ref() is not None for ref in held]
        assert not any(alive[:2])
        assert sum(alive) <= KEPT

    @pytest.mark.parametrize(
        ("start", "options", "message"),
        [(np.zeros((0, 2)), {"threshold": 1.0}, "at least one candidate is needed"),
         (np.ones((1, 2)), {"threshold": 0.0}, "must be a positive finite number, got 0.0"),
         (np.ones((1, 2)), {"threshold": np.nan}, "must be a positive finite number, got nan"),
         (np.ones((1, 2)), {"threshold": 1.0, "max_steps": -1}, "max_steps must be at least 0")],
    )  # fmt: skip
    def test_what_it_does_not_take(self, start, options, message):
        with pytest.raises(ValueError, match=message):
            descend(bowl, 1.0, start, **options)

    def test_a_sphere_is_kept_to(self):
        start = jax.random.normal(jax.random.key(0), (3, 50))
        ended = descend(bowl, 1.0, start, threshold=1e-9, max_steps=20, optimizer=adam_on_sphere())
        length = np.linalg.norm(np.asarray(ended.point), axis=1)
        np.testing.assert_allclose(length, np.linalg.norm(np.asarray(start), axis=1), rtol=1e-5)
        with pytest.raises(ValueError, match="needs the parameters"):
            keep_length().update(start, optax.EmptyState())


class TestSail:
    @pytest.mark.slow
    def test_it_lowers_the_sharpness_to_the_threshold(self):
        pair = mixture_pair()
        key = jax.random.key(1)
        first = sail(pair, key, shape=(2,), num_candidates=20, threshold=1e-6, max_steps=0)
        usual = float(np.median(first.before))
        sailed = sail(pair, key, shape=(2,), num_candidates=20, threshold=0.5 * usual)
        np.testing.assert_allclose(sailed.before, first.before, rtol=1e-5)
        assert (sailed.outcome == "met").mean() > 0.5
        met = sailed.outcome == "met"
        assert (sailed.after[met] <= 0.5 * usual).all()
        recomputed = jax.vmap(lambda x: exact(pair, x))(sailed.noise)
        np.testing.assert_allclose(sailed.after, recomputed, rtol=1e-4)
        assert len(sailed.plausibility) == 20

    def test_scores_may_be_plain_functions(self, compilations):
        """As curvature and detection take them; s_D = -x and H_D = -I."""
        noise = jnp.array([[1.0, 2.0], [0.1, -0.1]])
        options = {"noise": noise, "threshold": 0.1, "max_steps": 60}
        lasting = ScorePair(_minus_once, _minus_twice, ALPHA, SIGMA)
        expected = sail(lasting, **options)
        np.testing.assert_allclose(expected.before, [5, 0.02], rtol=1e-6)
        assert expected.outcome.tolist() == ["met", "met"]
        slope = jnp.array(2.0)
        fresh = ScorePair(lambda x: -x, lambda x: -slope * x, alpha=ALPHA, sigma=SIGMA)
        mixed = ScorePair(Partial(jnp.negative), lambda x: -slope * x, alpha=ALPHA, sigma=SIGMA)
        pairs = [lasting, fresh, mixed, dataclasses.replace(fresh, stacked=lambda x: x * _SLOPES)]
        for pair in pairs:
            found = sail(pair, **options)
            np.testing.assert_allclose(found.noise, expected.noise, rtol=1e-5)
        again = ScorePair(lambda x: -x, lambda x: -slope * x, alpha=ALPHA, sigma=SIGMA)
        with compilations() as count:
            sail(lasting, **options)
            sail(again, **options)  # another pair that computes alike
        assert count == [0]

    def test_pure_noise_is_refused(self):
        pair = ScorePair(Partial(jnp.negative), Partial(jnp.negative), alpha=0.0, sigma=1.0)
        with pytest.raises(ValueError, match=r"0 for every condition at alpha = 0, .*; take a lev"):
            sail(pair, noise=jnp.ones((1, 2)), threshold=1.0)

    def test_the_penalty_shortens(self):
        pair, x, *_ = gaussian_pair(jnp.float32)
        options = {"noise": 3 * x[None], "threshold": 1e-9, "max_steps": 20}
        free, bound = (np.linalg.norm(sail(pair, penalty=a, **options).noise) for a in (0.0, 100.0))
        assert bound < free

    def test_implausible_noises_are_told(self):
        """Of those that end so: 64 entries of 1.6 are far from a draw of N(0, I), 1 is not."""
        pair = ScorePair(_minus_once, _minus_twice, ALPHA, SIGMA)
        noise = jnp.stack([1.6 * jax.random.normal(jax.random.key(k), (64,)) for k in range(2)])
        noise = jnp.concatenate([noise, noise[:1] / 1.6])
        with pytest.warns(UserWarning, match="2 of 3 noises no longer look like draws") as told:
            found = sail(pair, noise=noise, threshold=1e-9, max_steps=0)
        assert [one.is_gaussian for one in found.plausibility] == [False, False, True]
        worst = max(found.plausibility, key=lambda one: one.largest)
        message = str(told[0].message)
        assert f"the z-score {worst.largest:.1f} and {worst.norm:.2f} times" in message
        assert told[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sail(pair, noise=noise[2:], threshold=1e-9, max_steps=0)

    def test_a_candidate_without_a_score_is_kept_apart(self):
        pair = ScorePair(Partial(_half_blind), Partial(jnp.negative), ALPHA, SIGMA)
        noise = jnp.array([[1.0, 2.0], [-1.0, 2.0]])
        sailed = sail(pair, noise=noise, threshold=1e-9, max_steps=3)
        assert sailed.outcome.tolist() == ["budget", "not finite"]
        np.testing.assert_array_equal(sailed.noise[1], noise[1])

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"num_candidates": 0}, "num_candidates must be at least 1, got 0"),
         ({"key": None}, "pass noise, or key="),
         ({"threshold": -1.0}, "threshold must be a positive finite number, got -1.0"),
         ({"penalty": -1.0}, "penalty must be a finite number >= 0"),
         ({"shape": 64}, "shape must be that of one noise"),
         ({"threshold": np.inf}, "threshold must be a positive finite number, got inf"),
         ({"form": "sharp"}, "unknown form 'sharp'")],
    )  # fmt: skip
    def test_what_it_does_not_take(self, options, message):
        pair, *_ = gaussian_pair(jnp.float32)
        given = {"key": jax.random.key(0), "shape": (D,), "threshold": 1.0} | options
        with pytest.raises(ValueError, match=message):
            sail(pair, given.pop("key"), **given)

    @pytest.mark.slow
    def test_it_leads_from_a_rare_point_to_the_broad_mode(self):
        schedule = Schedule.create()
        t, point = 981, jnp.array([-20.0, 0.0])
        eye = jnp.eye(2)
        unconditional = GaussianMixture([1.0], [[20.0, 0.0]], [200 * eye])
        conditional = GaussianMixture(
            [0.02, 0.98], [[-20.0, 0.0], [20.0, 0.0]], [0.01 * eye, 100 * eye]
        )
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        pair = ScorePair(
            unconditional.noised(alpha, sigma).score, conditional.noised(alpha, sigma).score,
            alpha, sigma,
        )  # fmt: skip

        @jax.jit
        def at_the_point(noise):
            def score_at(x, t):
                return conditional.noised(schedule.alpha(t), schedule.sigma(t)).score(x)

            ends = jax.vmap(lambda x: sample(score_at, x, schedule, num_steps=50))(noise)
            return jnp.linalg.norm(ends - point, axis=1) < 1

        noise = jax.random.normal(jax.random.key(0), (200, 2))
        usual = float(np.median(jax.vmap(lambda x: exact(pair, x))(noise)))
        sailed = sail(pair, noise=noise, threshold=0.2 * usual, max_steps=200)
        before, after = np.asarray(at_the_point(noise)), np.asarray(at_the_point(sailed.noise))
        assert before.sum() >= 8
        assert after.sum() <= 0.5 * before.sum()
        assert not (after & ~before).any()  # none comes in from outside


def _minus_once(x):
    return -x


def _minus_twice(x):
    return -2 * x


_SLOPES = np.array([[-1.0], [-2.0]])


def _half_blind(x):
    return jnp.where(x[0] < 0, jnp.nan, -0.5 * x)


class TestPlausibility:
    def test_figures_of_gaussian_draws_are_standard_normal(self):
        rng = np.random.default_rng(0)
        figures = [plausibility(rng.standard_normal((4, 16, 16))) for _ in range(400)]
        for name in ("norm_z", "kurtosis_z", "autocorrelation_z"):
            z = np.array([getattr(one, name) for one in figures])
            assert abs(z.mean()) < 4 / np.sqrt(400), name
            # the standard error of a variance of 400 normal values is sqrt(2/399)
            assert abs(z.var(ddof=1) - 1) < 4 * np.sqrt(2 / 399) + 0.1, name
        assert np.mean([one.is_gaussian for one in figures]) > 0.98

    def test_a_noise_without_neighbours(self):
        found = plausibility(np.random.default_rng(0).standard_normal((8, 1, 1)))
        assert found.autocorrelation_z == 0
        assert found.is_gaussian
        assert plausibility([0.3, -1.2]).kurtosis_z == 0  # of so few every kurtosis is the same

    def test_kurtosis_and_length_are_as_scipy_has_them(self):
        x = np.random.default_rng(2).standard_normal((1, 28, 28))
        found = plausibility(x)
        np.testing.assert_allclose(found.kurtosis_z, stats.kurtosistest(x.ravel()).statistic)
        exact = stats.norm.ppf(stats.chi2.cdf(np.sum(x**2), x.size))
        np.testing.assert_allclose(found.norm_z, exact, atol=2e-3)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("limit", "draws", "expected"), [(3.0, 8_000, 65), (4.0, 60_000, 60_000 / 4_000)]
    )
    def test_gaussian_draws_are_rarely_odd(self, limit, draws, expected):
        """How often one of three z-scores is beyond the limit: nominally 65 of 8,000, and what
        plausibility.py says of 4. Within 5 standard deviations of a Poisson count, which twice as
        many are not at 3, and eight times as many, the untransformed kurtosis's, at 4.
        """
        rng = np.random.default_rng(3)
        odd = 0
        for _ in range(draws):
            found = plausibility(rng.standard_normal((1, 28, 28)))
            scores = (found.norm_z, found.kurtosis_z, found.autocorrelation_z)
            odd += max(map(abs, scores)) > limit
        assert abs(odd - expected) < 5 * np.sqrt(expected)

    @pytest.mark.parametrize(
        ("make", "name"),
        [(lambda x: 1.3 * x, "norm_z"), (lambda x: np.sign(x) * np.abs(x) ** 1.5, "kurtosis_z"),
         (lambda x: x + np.roll(x, 1, axis=-1), "autocorrelation_z")],
    )  # fmt: skip
    def test_what_is_not_gaussian_shows(self, make, name):
        x = np.random.default_rng(1).standard_normal((4, 16, 16))
        found = plausibility(make(x))
        assert abs(getattr(found, name)) > 4
        assert not found.is_gaussian

    def test_neighbours_against_a_naive_twin(self):
        """In rows, and in columns if there are any; each pair once."""
        x = np.random.default_rng(2).standard_normal((2, 3, 4))
        for noise in (x, x.ravel()):
            scaled = (noise - noise.mean()) / noise.std()
            products = [a * b for row in scaled.reshape(-1, noise.shape[-1])
                        for a, b in itertools.pairwise(row)]  # fmt: skip
            for image in scaled if noise.ndim > 1 else ():
                products += [a * b for column in image.T for a, b in itertools.pairwise(column)]
            pairs = len(products)
            expected = (sum(products) + pairs / (noise.size - 1)) / np.sqrt(pairs)
            assert plausibility(noise).autocorrelation_z == pytest.approx(expected)

    def test_what_it_does_not_take(self):
        with pytest.raises(ValueError, match="at least 2 entries"):
            plausibility([1.0])
        with pytest.raises(ValueError, match="NaN or infinite"):
            plausibility([1.0, np.nan])
        assert not plausibility(np.ones(16)).is_gaussian


class TestCalibration:
    def test_a_threshold_is_a_quantile_with_its_interval(self):
        values = np.arange(1.0, 101)
        limit = Levels({"exact": values}).threshold("exact", 0.5)
        assert limit.value == 51  # rank 101/2, rounded up
        # order statistics that bracket the median of 100 values at 95%: ranks 40 and 61
        ranks = stats.binom(100, 0.5).ppf(0.025), stats.binom(100, 0.5).isf(0.025) + 1
        assert (limit.low, limit.high) == ranks
        with pytest.raises(ValueError, match="no values of 'sail_official'; there are exact"):
            Levels({"exact": values}).threshold("sail_official", 0.5)
