"""Thresholds from clean prompts: the quantile, and how often its interval holds the true one."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from sharpjax.detection.calibration import Threshold, _threshold, threshold


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize(("n", "quantile"), [(500, 0.99), (100, 0.9), (60, 0.5)])
def test_interval_covers_the_true_quantile(n, quantile, direction):
    """Of exponential values: whatever the distribution, at least 95% of the time."""
    rng = np.random.default_rng(n)
    truth = stats.expon.ppf(quantile)
    hits, runs = 0, 1000
    for _ in range(runs):
        found = threshold(
            direction * rng.exponential(size=n), direction=direction, quantile=quantile
        )
        assert found.low <= found.value <= found.high
        hits += found.low <= direction * truth <= found.high
    # at least 950 are expected, standard deviation 7; ranks are whole, so somewhat more
    assert 950 - 3 * 7 <= hits <= 990


def test_false_positive_rate_is_what_was_asked():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(200):
        found = threshold(rng.normal(size=400), direction=1, quantile=0.95)
        rates.append(stats.norm.sf(found.value))
    assert np.mean(rates) == pytest.approx(0.05, abs=0.003)


def test_margin_is_positive_where_memorized():
    rng = np.random.default_rng(0)
    values = rng.normal(size=200)
    for direction in (1, -1):
        found = threshold(direction * values, direction=direction)
        assert found.margin(direction * 10.0) > 0 > found.margin(0.0)
        beyond = [found.margin(v) > 0 for v in direction * values]
        assert np.mean(beyond) == pytest.approx(0.05)
        assert found.margin(found.value + 3 * direction) == pytest.approx(3)


def test_too_few_prompts_leave_the_end_open():
    assert threshold(np.arange(72.0), direction=1).high == 71
    assert threshold(np.arange(71.0), direction=1).high == np.inf
    assert threshold(np.arange(368.0), direction=1, quantile=0.99).high == 367
    found = threshold(np.arange(100.0), direction=1, quantile=0.99)
    assert found.high == np.inf
    assert found.low > 90
    mirrored = threshold(-np.arange(100.0), direction=-1, quantile=0.99)
    assert mirrored.low == -np.inf
    assert mirrored.high == -found.low


def test_unsure_within_the_interval_its_ends_too():
    limit = Threshold(4.0, 3.0, 6.0, 1, 0.95, 80)
    said = {2.9: "clean", 3.0: "clean (unsure)", 4.0: "clean (unsure)",
            4.1: "memorized (unsure)", 6.0: "memorized (unsure)", 6.1: "memorized"}  # fmt: skip
    assert {value: limit.verdict(value) for value in said} == said


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0], {}, "at least two clean prompts"),
        ([[1.0, 2.0]], {}, "at least two"),
        ([1.0, np.nan], {}, "NaN"),
        ([1.0, 2.0], {"quantile": 1.0}, r"quantile must lie in \(0, 1\), got 1.0"),
        ([1.0, 2.0], {"quantile": float("nan")}, "quantile must lie"),
        ([1.0, 2.0], {"level": 95}, r"level must lie in \(0, 1\), got 95; for 95% write 0.95"),
        ([1.0, 2.0], {"direction": 0}, "direction must be 1 .* or -1 .*, got 0"),
    ],
)
def test_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        threshold(np.array(values), **{"direction": 1} | options)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "5", np.ones(2)])
def test_nothing_is_said_of_a_value_that_is_none(value):
    for say in (threshold(np.arange(100.0), direction=1).verdict,
                threshold(np.arange(100.0), direction=-1).margin):  # fmt: skip
        with pytest.raises(ValueError, match="must be one finite number to be judged, got"):
            say(value)


@pytest.mark.parametrize("direction", [1, -1])
def test_a_threshold_is_read_as_it_was_written(direction):
    """An open end is null in the file."""
    limit = Threshold(4.0, -math.inf, math.inf, direction, 0.95, 80)
    entry = dataclasses.asdict(limit) | {"low": None, "high": None}
    assert _threshold(entry) == limit
    for bad in ({"direction": 2 * direction}, {"direction": 0}, {"value": math.inf}):
        with pytest.raises(ValueError, match="a threshold of"):
            _threshold(entry | bad)
