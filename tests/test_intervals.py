"""Intervals of detection figures: how often they hold, their equations, their ends."""

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sharpjax.detection import intervals
from sharpjax.detection.evaluation import evaluate, roc_band

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bench():
    """The simulation whose table is in the documentation."""
    spec = importlib.util.spec_from_file_location(
        "interval_coverage", ROOT / "benchmarks" / "interval_coverage.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def least(share, repeats):
    """Three standard errors of a binomial below."""
    return share - 3 * np.sqrt(share * (1 - share) / repeats)


@pytest.mark.parametrize("shape", ["normal", "wide", "student", "rounded"])
def test_few_repeats_show_intervals_that_are_too_short(bench, shape):
    """Of 30 + 30 percentiles of resamples held the TPR in 21 to 83%."""
    repeats, rng = 150, np.random.default_rng(0)
    for (share, width), most in zip(
        bench.single(shape, (30, 30), 0.95, repeats, rng), (0.2, 0.96), strict=True
    ):
        assert share >= least(0.94, repeats)
        assert width <= most  # from 0 to 1 all hold


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(10, 10), (30, 30), (60, 60), (400, 400), (98, 395)])
@pytest.mark.parametrize("shape", ["normal", "wide", "exponential", "student", "some", "rounded"])
def test_intervals_hold(bench, shape, sizes):
    repeats, rng = 500, np.random.default_rng(1)
    for auc in (0.8, 0.95):
        for share, _ in bench.single(shape, sizes, auc, repeats, rng):
            assert share >= least(0.935, repeats)


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 30, 60])
@pytest.mark.parametrize("aucs", [(0.85, 0.85), (0.95, 0.8), (0.99, 0.95)])
def test_intervals_of_a_difference_hold_and_p_keeps_its_level(bench, n, aucs):
    share, _, below = bench.difference(n, aucs, 500, np.random.default_rng(0))
    assert share >= least(0.94, 500)
    if aucs[0] == aucs[1]:
        assert below == pytest.approx(1 - share)
        assert below <= 1 - least(0.95, 500)


@pytest.mark.slow
def test_intervals_of_prompts_hold(bench):
    """Two-level percentiles held 43% of uneven rates of 0.02, which 12 prompts seldom show."""
    for rates, evenness in itertools.product(((0.1, 0.5), (0.02, 0.02)), (1, 20)):
        found = bench.prompts((12, 5), rates, evenness, 100, np.random.default_rng(0))
        assert min(share for share, _ in found) >= least(0.94, 100)
        assert found[0][1] < 0.4


@pytest.mark.slow
@pytest.mark.fast_cases("19-0.95")
@pytest.mark.parametrize(("count", "quantile"), [(19, 0.95), (60, 0.95), (100, 0.95), (99, 0.99)])
def test_no_more_new_clean_prompts_than_promised_are_beyond(bench, count, quantile):
    """The interpolated quantile let 5.9% of 5% pass of 100, and 9.5% of 19."""
    share = bench.beyond(count, quantile, 4000, np.random.default_rng(0))
    rank = math.ceil((count + 1) * quantile - 1e-9)
    expected = 1 - rank / (count + 1)
    assert expected <= 1 - quantile + 1e-9
    # a beta distribution's standard deviation, of 4,000
    assert share == pytest.approx(expected, abs=4 * np.sqrt(expected / count / 4000))


def classes(scores, memorized):
    wins = np.greater.outer(scores[memorized], scores[~memorized]) * 1.0
    return wins.mean(1), wins.mean(0)


def test_interval_of_an_auc_solves_its_equation():
    rng = np.random.default_rng(0)
    larger = []
    for m, n, spread in ((40, 40, 1.0), (12, 20, 2.5), (30, 12, 1.0)):
        scores = np.concatenate([1 + spread * rng.normal(size=m), rng.normal(size=n)])
        placements = classes(scores, np.arange(m + n) < m)
        auc = placements[0].mean()
        parts = [one.var(ddof=1) / len(one) for one in placements]

        def variance(x, m=m, n=n):
            extra = max(m, n) - 1
            return x * (1 - x) * (1 + extra * (1 - x) / (2 - x) + extra * x / (1 + x)) / (m * n)

        known = [
            min(2 * len(one) / (np.mean((one - auc) ** 4) / one.var() ** 2 - 1), len(one) - 1)
            for one in placements
        ]
        freedom = sum(parts) ** 2 / sum(v**2 / k for v, k in zip(parts, known, strict=True))
        ratio = sum(parts) / variance(auc)
        scale = stats.t.ppf(0.975, freedom + 3) ** 2 * (3 + freedom * ratio) / (3 + freedom)
        if ratio > 1:
            plain = sum(parts) ** 2 / sum(
                v**2 / (k - 1) for v, k in zip(parts, (m, n), strict=True)
            )
            scale = max(scale, stats.t.ppf(0.975, plain) ** 2 * ratio)
        larger.append(ratio > 1)
        for end in intervals.auc(placements)(0.05):
            assert (end - auc) ** 2 == pytest.approx(scale * variance(end), abs=1e-12)
    assert set(larger) == {True, False}


@pytest.mark.parametrize(("m", "n"), [(6, 6), (5, 40), (40, 5)])
def test_a_perfect_auc_has_an_exact_limit(m, n):
    """Reached by scores of which a share of the smaller class is on the wrong side."""
    scores, memorized = np.arange(m + n), np.arange(m + n) >= n
    found = evaluate(scores, memorized).auc
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(0.025 ** (1 / min(m, n)))
    turned = evaluate(-scores, memorized).auc
    assert (turned.value, turned.low) == (0, 0)
    assert turned.high == pytest.approx(1 - found.low)
    # at an AUC of the limit itself all pairs are right in 2.5% of samples, no more
    rng = np.random.default_rng(0)
    right = np.mean((rng.random((40_000, min(m, n))) < found.low).all(axis=1))
    assert right == pytest.approx(0.025, abs=4 * np.sqrt(0.025 / 40_000))


def test_rate_is_a_mixture_over_where_the_threshold_may_lie():
    """By drawing it: how many of the others are beyond, then which of the memorized."""
    rng = np.random.default_rng(0)
    own, others = rng.normal(1.5, 1, 80), rng.normal(size=50)
    ordered = np.sort(others)[::-1]
    drawn = []
    # fewer than three of 50 are as rare as one in ten thousand: as if three
    for beyond in np.maximum(rng.binomial(50, 0.3, 40_000), 3):
        middle = np.mean([np.sum(own > ordered[k]) for k in (beyond - 1, beyond)])
        drawn.append(rng.beta(middle + 0.5, 80 - middle + 0.5))
    found = intervals.rate(own, others, 0.3)
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_a_threshold_that_was_not_seen_leaves_the_rate_open():
    """368 others: the probability that none of them is beyond the true 1% falls below 2.5%."""
    own = np.arange(1000.0, 1030.0)
    for count, is_open in ((367, True), (368, False)):
        low, high = intervals.rate(own, np.arange(float(count)), 0.01)
        assert (low == 0) == is_open
        assert high == 1
    # none of 30 beyond 10: fewer of the others would allow more
    assert intervals.rate(-own, np.arange(400.0), 0.01) == (0, pytest.approx(0.1157, abs=1e-4))
    rates, low, high = roc_band(np.concatenate([own, -own]), np.arange(60) < 30)
    assert (np.diff(low) >= -1e-9).all()
    assert (low[0], high[0], high[-1]) == (0, 1, 1)
    assert low[-1] == pytest.approx(0.05 ** (1 / 30))
    assert rates[-1] == 1


def test_share_is_wilsons():
    for successes, trials in ((0, 12), (5, 12), (12, 12)):
        expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose(
            intervals.share(successes / trials, trials), expected, atol=1e-12
        )


def test_prompts_that_all_agree_leave_doubt():
    for value in (0.0, 1.0):
        low, high = intervals.mean(np.full((12, 5), value))
        assert high - low == pytest.approx(0.2425, abs=1e-3)
    same = np.tile([1.0, 0.0], (10, 2))
    apart = np.repeat([[1.0], [0.0]], 5, axis=0) * np.ones((10, 4))
    # of ten that are alike one trial each, as of ten that are not
    widths = [np.subtract(*intervals.mean(one)[::-1]) for one in (same, apart)]
    assert widths[1] > widths[0] > 0.4
    assert np.isnan(intervals.mean(np.ones((1, 5)))).all()
