"""Thresholds from clean prompts: the quantile, and how often its interval holds the true one."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from sharpjax.detection.calibration import (
    Calibration,
    Threshold,
    _threshold,
    fewest,
    threshold,
)
from sharpjax.detection.settings import DetectSettings, ImageSettings


@pytest.mark.fast_cases("100-0.9-1", "60-0.5--1")
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


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 0.99])
def test_the_rank_is_the_least_that_keeps_the_promise(quantile):
    """Of ranks one more or less new values lie beyond in 1 / (n + 1) less or more."""
    for n in range(max(fewest(quantile), 2), 500):
        found = threshold(np.arange(1.0, n + 1), direction=1, quantile=quantile)
        share = 1 - found.value / (n + 1)
        assert share <= 1 - quantile + 1e-12 < share + 1 / (n + 1)
        assert found.low <= found.value <= found.high


def test_too_few_prompts_promise_nothing():
    for quantile, needed in ((0.95, 19), (0.99, 99), (0.9, 9)):
        assert fewest(quantile) == needed
        threshold(np.arange(float(needed)), direction=1, quantile=quantile)
        with pytest.raises(ValueError, match=f"that needs {needed} different ones, or a quantile"):
            threshold(np.arange(float(needed - 1)), direction=-1, quantile=quantile)


def test_what_differs_by_rounding_lies_on_the_threshold():
    """The prompt whose value it is, computed again beside other prompts, was called memorized."""
    found = Threshold(3.5944212675, 3.0, 4.0, 1, 0.95, 80)
    for value in (3.5944212675, 3.5944213271, 3.5944212079):
        assert found.margin(value) == 0
        assert found.verdict(value) == "clean (unsure)"
    assert found.margin(3.5945) > 0 > found.margin(3.5943)


def test_a_calibration_of_prompts_is_none_of_images():
    of_prompts = Calibration("abc", dataclasses.asdict(DetectSettings()), {}, {})
    with pytest.raises(ValueError, match=r"is of prompts, not of images; make one .* --images"):
        of_prompts.check(ImageSettings(), fingerprint="abc")
    of_images = Calibration("abc", dataclasses.asdict(ImageSettings()), {}, {})
    with pytest.raises(ValueError, match=r"is of images, not of prompts; make one .* --prompts"):
        of_images.check(DetectSettings(), fingerprint="abc")


def test_margin_is_positive_where_memorized():
    rng = np.random.default_rng(0)
    values = rng.normal(size=200)
    for direction in (1, -1):
        found = threshold(direction * values, direction=direction)
        assert found.margin(direction * 10.0) > 0 > found.margin(0.0)
        beyond = [found.margin(v) > 0 for v in direction * values]
        assert np.sum(beyond) == 9  # of 200, the 191st is the threshold
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
        ([1.0], {"quantile": 0.5}, "no threshold of 1 clean prompts .* needs 2 different ones$"),
        ([[1.0, 2.0]], {}, "must be a vector"),
        ([1.0, np.nan], {"quantile": 0.5}, "NaN"),
        ([1.0, 2.0], {"quantile": 1.0}, r"quantile must lie in \(0, 1\), got 1.0"),
        ([1.0, 2.0], {"quantile": float("nan")}, "quantile must lie"),
        ([1.0, 2.0], {"level": 95, "quantile": 0.5}, "level must lie in .*, got 95; for 95% write"),
        ([1.0, 2.0], {"direction": 0, "quantile": 0.5}, "direction must be 1 .* or -1 .*, got 0"),
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


@pytest.mark.quick
def test_prompts_that_set_the_thresholds_are_known_again(tmp_path):
    """Judged by their own threshold at most so many are accused, whatever the model remembers."""
    rng = np.random.default_rng(0)
    prompts = [f"clean {i}" for i in range(30)]
    records = [
        {"condition": prompt, "network": {"score_difference@981": rng.normal(size=4).tolist()}}
        for prompt in prompts
    ]
    settings = DetectSettings(statistics=("score_difference",))
    found = Calibration.fit(records, settings, fingerprint="f")
    again = Calibration.load(found.save(tmp_path / "calibration.json"))
    assert again.prompts == found.prompts
    assert again.set_on(["new", "clean 3 ", "", "clean 29"]) == ["clean 3 ", "clean 29"]
    assert "clean" not in (tmp_path / "calibration.json").read_text()
    of_images = Calibration.fit(records, ImageSettings(), fingerprint="f")
    assert of_images.set_on(prompts) == []  # names of files
