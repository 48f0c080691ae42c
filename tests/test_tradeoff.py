"""Trade-off curves: areas, bands, choices and tests, each against a naive twin."""

import itertools

import numpy as np
import pytest

from sharpjax.mitigation.tradeoff import (
    Outcomes,
    _interval,
    choose,
    curves,
    hypervolume,
    paired,
    relative_reduction,
)
from sharpjax.report.comparison import verdict_line


def outcome(method="m", strength=1.0, copied=0.5, shown=0.8, shape=(12, 5), seed=0):
    rng = np.random.default_rng(seed)
    is_copy = rng.random(shape) < copied
    return Outcomes(
        method, strength, is_copy, is_copy & (rng.random(shape) < 0.3),
        (rng.random(shape) < shown).astype(float), 100.0, 0.5,
    )  # fmt: skip


def test_hypervolume_is_the_dominated_area():
    rng = np.random.default_rng(0)
    u, v = np.meshgrid((np.arange(400) + 0.5) / 400, (np.arange(400) + 0.5) / 400)
    for _ in range(5):
        points = [tuple(p) for p in rng.random((6, 2))]
        naive = np.zeros(u.shape, bool)
        for copy_rate, fidelity in points:
            naive |= (u <= 1 - copy_rate) & (v <= fidelity)
        # a staircase of 6 steps on a grid of 400 x 400
        assert hypervolume(points) == pytest.approx(naive.mean(), abs=12 / 400)
    assert hypervolume([(0.5, 0.5)] * 3) == 0.25


def test_bands_are_a_two_level_bootstrap():
    one = outcome()
    found = curves([one], num_bootstrap=400, seed=3)["m"].points[0]
    rng = np.random.default_rng(7)  # another stream: the same distribution
    means = []
    for _ in range(400):
        rows = [one.copied[i] for i in rng.integers(12, size=12)]
        means.append(np.mean([rng.choice(row, size=5) for row in rows]))
    assert found.copy_rate.value == one.copied.mean()
    width = found.copy_rate.high - found.copy_rate.low
    # the ends of 400 draws are known to about a tenth of the width
    assert width == pytest.approx(np.quantile(means, 0.975) - np.quantile(means, 0.025), rel=0.25)
    assert found.copy_rate.low < found.copy_rate.value < found.copy_rate.high


def test_prompts_that_all_agree_vary_less_than_prompts_that_differ():
    same = np.tile([True, False, True, False], (10, 1))
    apart = np.repeat([[True], [False]], 5, axis=0) & np.ones((10, 4), bool)
    widths = []
    for copied in (same, apart):
        shown = np.ones(copied.shape)
        one = Outcomes("m", 1, copied, copied & False, shown, 1, 1)
        interval = curves([one], num_bootstrap=500)["m"].points[0].copy_rate
        widths.append(interval.high - interval.low)
    assert widths[1] > 1.3 * widths[0]


def test_curves_of_several_methods():
    cells = [outcome("a", s, copied=1 - s / 2, seed=s) for s in (1, 2)]
    cells += [outcome("b", 1, copied=0.2, shown=0.5, seed=9)]
    found = curves(cells, num_bootstrap=200)
    assert list(found) == ["a", "b"]
    assert [p.outcomes.strength for p in found["a"].points] == [1, 2]
    points = [(p.copy_rate.value, p.fidelity.value) for p in found["a"].points]
    volume = found["a"].hypervolume
    assert volume.value == hypervolume(points)
    assert volume.low <= volume.value <= volume.high
    baseline = found["a"].points[0]
    expected = 1 - found["b"].points[0].copy_rate.value / baseline.copy_rate.value
    assert relative_reduction(found["b"].points[0], baseline) == pytest.approx(expected)
    with pytest.raises(ValueError, match="the same prompts and seeds"):
        curves([outcome(), outcome(shape=(3, 5))])


def test_success_counts_what_is_shown_and_not_copied():
    one = Outcomes(
        "m", 1, np.array([[True, False, False]]), np.zeros((1, 3), bool),
        np.array([[1.0, 1.0, 0.25]]), 1, 1,
    )  # fmt: skip
    np.testing.assert_array_equal(one.success, [[0, 1, 0.25]])


def test_the_chosen_strength_keeps_fidelity_and_copies_least():
    weak, middle, strong = (
        Outcomes("m", s, np.full((4, 5), c) > np.linspace(0, 0.99, 20).reshape(4, 5),
                 np.zeros((4, 5), bool), np.full((4, 5), f), 1, 1)
        for s, c, f in ((1, 0.9, 0.8), (2, 0.5, 0.75), (3, 0.1, 0.2))
    )  # fmt: skip
    assert choose([weak, middle, strong], reference=0.8) is middle
    # none keeps 90% of 1.0: the one with the most successes
    best = max([weak, middle, strong], key=lambda one: one.success.mean())
    assert choose([weak, middle, strong], reference=1.0) is best


@pytest.mark.parametrize(("kept", "chosen"), [(0.91, "strong"), (0.89, "weak"), (0.5, "weak")])
def test_fidelity_is_kept_at_nine_tenths_of_the_reference(kept, chosen):
    """The strong one copies nothing; that it may be chosen is a matter of its fidelity alone."""
    none, all_copied = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    weak = Outcomes("m", 1, all_copied, none, np.full((4, 5), 0.8), 1, 1)
    strong = Outcomes("m", 2, none, none, np.full((4, 5), kept * 0.8), 1, 1)
    assert choose([weak, strong], reference=0.8) is {"weak": weak, "strong": strong}[chosen]
    row = {"method": "sail", "reduction": 1.0, "kept": kept, "success": 1.0}
    reached = "is reached by sail" in verdict_line([row])
    assert reached == (chosen == "strong")


def test_paired_test():
    ours, theirs = outcome(copied=0.1, seed=1), outcome(copied=0.9, seed=1)
    found = paired(ours, theirs)
    assert found.difference.value == pytest.approx((ours.success - theirs.success).mean())
    # 12 prompts, hardly one of the other sign: a few of 2^12 sign flips are as extreme
    assert found.p_value <= 0.01
    assert found.difference.low > 0
    same = paired(ours, ours)
    assert same.p_value == 1
    assert same.difference.value == same.difference.low == same.difference.high == 0


def test_paired_test_is_two_sided():
    """Against all sign flips of few prompts, counted one by one."""
    ours, theirs = outcome(copied=0.3, shape=(7, 4)), outcome(copied=0.7, shape=(7, 4), seed=5)
    each = (ours.success - theirs.success).mean(axis=1)
    means = [np.mean(signs * each) for signs in itertools.product([-1, 1], repeat=7)]
    expected = np.mean(np.abs(means) >= abs(each.mean()) - 1e-12)
    assert 0.01 < expected < 0.5  # where one side would be another number
    assert paired(ours, theirs).p_value == pytest.approx(expected)
    assert paired(theirs, ours).p_value == pytest.approx(expected)


def test_no_p_value_is_0():
    for prompts in (12, 40):  # all sign flips, and 9,999 of them
        best = outcome(copied=0.0, shown=1.0, shape=(prompts, 3))
        worst = outcome(copied=1.0, shape=(prompts, 3))
        least = 2 * max(2.0**-prompts, 1 / 10_000)
        assert paired(best, worst).p_value == pytest.approx(least)


def test_what_is_not_paired_is_refused():
    for shape in ((1, 2), (3, 1), (4, 2)):
        with pytest.raises(ValueError, match=r"the same prompts and seeds, got shapes \(3, 2\)"):
            paired(outcome(shape=(3, 2)), outcome(shape=shape))
    with pytest.raises(ValueError, match="num_bootstrap must be an integer >= 100, got 1"):
        paired(outcome(), outcome(seed=1), num_bootstrap=1)
    ones, zeros = np.ones((2, 3)), np.zeros((2, 3), bool)
    with pytest.raises(ValueError, match="must be of one shape"):
        Outcomes("m", 1, zeros[:1], zeros, ones, 1, 1)
    with pytest.raises(ValueError, match="outcomes of m contain NaN"):
        Outcomes("m", 1, zeros, zeros, ones * np.nan, 1, 1)


def test_paired_test_keeps_its_level():
    below = [
        paired(outcome(seed=2 * i), outcome(seed=2 * i + 1), num_bootstrap=100).p_value < 0.1
        for i in range(60)
    ]
    # binomial(60, 0.1): 6 expected, more than 15 once in 10,000
    assert sum(below) <= 15


def test_intervals_are_of_the_middle_95_percent():
    """Of resamples 0 to 1000 they are all between 25 and 975."""
    found = _interval(0.5, np.random.default_rng(0).permutation(np.arange(1001.0)))
    assert (found.value, found.low, found.high) == (0.5, 25.0, 975.0)
