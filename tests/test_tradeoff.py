"""Trade-off curves: areas, bands, choices and tests, each against a naive twin."""

import dataclasses
import itertools

import numpy as np
import pytest

from sharpjax.mitigation.comparison import compare, kinds_of
from sharpjax.mitigation.tradeoff import (
    Outcomes,
    best,
    curves,
    faithful,
    few,
    hypervolume,
    paired,
)
from sharpjax.report import comparison
from sharpjax.report.blocks import Text
from sharpjax.report.comparison import standing_rows, verdict_lines

pytestmark = pytest.mark.quick


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


def test_interval_of_a_hypervolume_is_the_jackknifes():
    """Of one strength that shows all it is that of the copy rate, whose jackknife is exact."""
    one = outcome(copied=0.3, shown=1.0)
    found = curves([one])["m"]
    copies = found.points[0].copy_rate
    assert found.hypervolume.value == pytest.approx(1 - copies.value)
    assert found.hypervolume.low == pytest.approx(1 - copies.high)
    assert found.hypervolume.high == pytest.approx(1 - copies.low)
    alone = curves([outcome(shape=(1, 5))])["m"]
    assert np.isnan([alone.hypervolume.low, alone.points[0].fidelity.high]).all()


def test_no_interval_is_empty():
    """All prompts agree: nothing copied, all shown, or two methods that do the same."""
    none, shown = np.zeros((12, 5), bool), np.ones((12, 5))
    good, bad = (Outcomes(n, 1, c, none, shown, 1, 1) for n, c in (("a", none), ("b", ~none)))
    point = curves([good])["a"].points[0]
    for one in (point.copy_rate, point.fidelity, point.success, curves([good])["a"].hypervolume):
        assert one.high - one.low == pytest.approx(0.2425, abs=1e-3)
    for ours, theirs in ((good, good), (good, bad), (outcome(), outcome())):
        found = paired(ours, theirs).difference
        assert -1 <= found.low <= found.value <= found.high <= 1
        assert found.high - found.low > 0.1


def test_curves_of_several_methods():
    cells = [outcome("a", s, copied=1 - s / 2, seed=s) for s in (1, 2)]
    cells += [outcome("b", 1, copied=0.2, shown=0.5, seed=9)]
    found = curves(cells)
    assert list(found) == ["a", "b"]
    assert [p.outcomes.strength for p in found["a"].points] == [1, 2]
    points = [(p.copy_rate.value, p.fidelity.value) for p in found["a"].points]
    volume = found["a"].hypervolume
    assert volume.value == hypervolume(points)
    assert volume.low <= volume.value <= volume.high
    with pytest.raises(ValueError, match="the same prompts and seeds"):
        curves([outcome(), outcome(shape=(3, 5))])


def test_success_counts_what_is_shown_and_not_copied():
    one = Outcomes(
        "m", 1, np.array([[True, False, False]]), np.zeros((1, 3), bool),
        np.array([[1.0, 1.0, 0.25]]), 1, 1,
    )  # fmt: skip
    np.testing.assert_array_equal(one.success, [[0, 1, 0.25]])


def test_chosen_strengths():
    weak, middle, strong = (
        Outcomes("m", s, np.full((4, 5), c) > np.linspace(0, 0.99, 20).reshape(4, 5),
                 np.zeros((4, 5), bool), np.full((4, 5), f), 1, 1)
        for s, c, f in ((1, 0.9, 0.8), (2, 0.5, 0.75), (3, 0.04, 0.2))
    )  # fmt: skip
    rising = [weak, middle, strong]
    assert best(rising) is max(rising, key=lambda one: one.success.mean()) is middle
    assert few(rising) is strong
    assert few([weak, middle]) is None
    assert faithful(rising, reference=0.8) is middle
    assert faithful(rising, reference=1.0) is None
    barely = Outcomes("m", 1, np.zeros((4, 5), bool), np.zeros((4, 5), bool),
                      np.full((4, 5), 0.9), 1, 1)  # fmt: skip
    assert faithful([barely], reference=1.0) is barely
    assert faithful([barely], reference=1.001) is None


def row(method, index, image, *, copied, fidelity, strength=1.0, file="x.png", maker=None):
    return {
        "method": method, "strength": strength, "index": index, "image": image, "file": file,
        "copied": copied, "turned": False, "fidelity": fidelity, "maker": maker,
        "diversity": 0.5, "evaluations": 50.0, "seconds": 0.1,
    }  # fmt: skip


def world(judge=True):
    """Two kinds: method `a` cures the first and refuses the second, `b` changes nothing."""
    names = ["broad"] * 9 + ["verbatim"] * 9 + ["clean"] * 4
    rows = []
    for i, name in enumerate(names):
        for j in range(4):
            told = 1.0 if judge else None
            rows.append(row("none", i, j, copied=name != "clean", fidelity=told, strength=0.0))
            if name == "clean":
                continue
            for strength in (1.0, 2.0):
                cured, refused = name == "broad" and strength == 2.0, name == "verbatim"
                rows.append(
                    row("a", i, j, copied=not (cured or refused), strength=strength,
                        fidelity=(0.0 if refused else 1.0) if judge else None,
                        file=None if refused else "x.png")
                )  # fmt: skip
                rows.append(row("b", i, j, copied=True, fidelity=told, strength=strength))
    kinds = kinds_of(names, [""] * len(names), list(range(18)))
    return rows, kinds, list(range(18, 22))


def test_kinds_are_apart_and_tuning_prompts_judge_nothing():
    rows, kinds, clean = world()
    assert list(kinds) == ["all", "broad", "verbatim"]
    for kind in kinds.values():
        assert not set(kind.tuning) & set(kind.judged)
    assert (len(kinds["broad"].tuning), len(kinds["broad"].judged)) == (3, 6)
    assert sorted([*kinds["all"].tuning, *kinds["all"].judged]) == list(range(18))
    found = compare(rows, kinds=kinds, clean=clean)
    assert found.reference == 1.0
    assert found.diversity == 0.5
    assert found.judges_fidelity
    broad = found.kinds["broad"]
    assert broad.rival == "a"
    assert list(broad.standings) == ["a", "b"]
    a, b = broad.standings.values()
    assert (a.best.outcomes.strength, a.best.success.value) == (2.0, 1.0)
    assert a.few is a.best
    assert a.faithful is a.best
    assert (b.few, b.faithful.copy_rate.value) == (None, 1.0)
    assert a.against is None
    assert b.against.difference.value == -1
    assert b.p_value == pytest.approx(min(1, 3 * b.against.p_value))  # of three comparisons
    verbatim = found.kinds["verbatim"].standings["a"]
    assert verbatim.best.outcomes.refused.all()
    assert (verbatim.best.copy_rate.value, verbatim.best.fidelity.value) == (0.0, 0.0)
    assert verbatim.faithful is None
    lines = verdict_lines(standing_rows(found), found.reference)
    assert [line.split(":")[0] for line in lines] == ["all", "broad", "verbatim"]
    assert lines[1].endswith("and 90% of the fidelity: a at 2.")
    assert lines[2] == "verbatim: no method shows what was asked for without a copy."


def test_the_most_successful_strength_may_reach_the_aim():
    """Where no strength had few copies on the tuning prompts, but the best has on those judged."""
    row = {"kind": "broad", "method": "a", "few": None, "best": 0.8, "best_success": 0.4}
    row |= {"best_copy_rate": 0.0, "best_fidelity": 0.4}
    (line,) = verdict_lines([row], 0.4)
    assert line == "broad: copies in 5% of the images at most, and 90% of the fidelity: a at 0.8."
    (line,) = verdict_lines([row | {"best_copy_rate": 0.2}], 0.4)
    assert "no method has copies in 5%" in line
    assert line.endswith("a at 0.8: copies in 20%, fidelity 0.40.")


@pytest.mark.parametrize("harmless", [True, False])
def test_what_copies_nothing_needs_no_method(harmless):
    """References that hold none of what is repeated made any method the one to take."""
    rows, kinds, clean = world()
    for row in rows:
        row["copied"] = row["copied"] and not harmless
    found = compare(rows, kinds=kinds, clean=clean)
    counts = {name: {"judged": len(k.judged), "tuning": len(k.tuning)} for name, k in kinds.items()}
    known = {"kinds": counts, "judges_fidelity": True, "reference": 1.0, "diversity": None}
    shown = comparison.blocks(comparison.curve_rows(found), standing_rows(found), known)
    told = " ".join(one.text for one in shown if isinstance(one, Text))
    assert ("nothing is to be cured here" in told) == harmless
    assert ("of the fidelity" in told) != harmless


def test_what_a_bench_has_prompts_for_decides():
    names, parts = ["x"] * 6 + ["y"] * 3, ["test"] * 4 + ["tuning"] * 2 + ["tuning"] * 3
    kinds = kinds_of(names, parts, list(range(9)))
    assert (kinds["x"].tuning, kinds["x"].judged) == ([4, 5], [0, 1, 2, 3])
    assert "y" not in kinds  # nothing to judge it by
    assert kinds["all"].tuning == [4, 5, 6, 7, 8]


def test_without_a_judge_of_fidelity_every_drawn_image_counts():
    rows, kinds, clean = world(judge=False)
    found = compare(rows, kinds=kinds, clean=clean)
    assert not found.judges_fidelity
    assert found.reference == 1.0
    verbatim = found.kinds["verbatim"].standings["a"]
    assert verbatim.best.fidelity.value == 0.0  # refused
    assert found.kinds["broad"].standings["a"].best.success.value == 1.0


def test_a_prompt_in_two_parts_is_refused():
    rows, kinds, clean = world()
    twice = {"all": dataclasses.replace(kinds["all"], judged=kinds["all"].tuning)}
    with pytest.raises(ValueError, match="needs prompts to tune on, others to judge by"):
        compare(rows, kinds=twice, clean=clean)
    with pytest.raises(ValueError, match="and clean ones; got 6, 12 and 0"):
        compare(rows, kinds={"all": kinds["all"]}, clean=[])


def test_paired_test():
    ours, theirs = outcome(copied=0.1, seed=1), outcome(copied=0.9, seed=1)
    found = paired(ours, theirs)
    assert found.difference.value == pytest.approx((ours.success - theirs.success).mean())
    # 12 prompts, hardly one of the other sign: a few of 2^12 sign flips are as extreme
    assert found.p_value <= 0.01
    assert found.difference.low > 0
    same = paired(ours, ours)
    assert same.p_value == 1
    assert same.difference.low < same.difference.value == 0 < same.difference.high


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
    ones, zeros = np.ones((2, 3)), np.zeros((2, 3), bool)
    with pytest.raises(ValueError, match="must be of one shape"):
        Outcomes("m", 1, zeros[:1], zeros, ones, 1, 1)
    with pytest.raises(ValueError, match="outcomes of m contain NaN"):
        Outcomes("m", 1, zeros, zeros, ones * np.nan, 1, 1)


def test_paired_test_keeps_its_level():
    below = [paired(outcome(seed=2 * i), outcome(seed=2 * i + 1)).p_value < 0.1 for i in range(60)]
    # binomial(60, 0.1): 6 expected, more than 15 once in 10,000
    assert sum(below) <= 15
