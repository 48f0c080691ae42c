"""Noises that stop where the verdict is sure: the rule's promise, and runs that keep it."""

import json

import jax
import numpy as np
import pytest
import scipy.stats

import sharpjax as sj
from sharpjax.detection.calibration import Calibration
from sharpjax.detection.sequential import UntilSure
from sharpjax.detection.settings import DetectSettings
from sharpjax.rundir.run import Run
from sharpjax.runs.detect import detect
from sharpjax.runs.until_sure import until_sure

COLUMN = "score_difference@981"
RULE = UntilSure(column=COLUMN, threshold=1.0, noise=0.2, most=4)
SETTINGS = DetectSettings(statistics=("score_difference",), num_noises=4)
NAMES = ["7 x1a", "7 x4", "7 x16", "7 x256", "3 x1a", "3 x64"]


def stopped(rule, values):
    """After how many of a prompt's values the rule stops."""
    return next(n for n in range(1, len(values) + 1) if rule.sure(values[:n]))


@pytest.mark.quick
@pytest.mark.parametrize("most", [2, 4, 16])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.5, 3.0])
def test_another_verdict_is_as_rare_as_promised(most, at):
    """Prompts whose mean is `at` standard deviations of a noise from the threshold."""
    rule = UntilSure(column=COLUMN, threshold=1.0, noise=0.2, most=most)
    rng, count = np.random.default_rng(most), 4_000
    values = 1.0 + 0.2 * (at + rng.standard_normal((count, most)))
    counts = np.array([stopped(rule, one) for one in values])
    early = np.array([one[:n].mean() > 1 for one, n in zip(values, counts, strict=True)])
    differ = int(np.sum(early != (values.mean(axis=1) > 1)))
    # not more than the promise, as far as so many prompts can tell
    assert scipy.stats.binomtest(differ, count, 0.01, alternative="greater").pvalue > 1e-3
    if at == 3:
        assert counts.mean() < 0.8 * most  # and noises are saved where the margin is wide


@pytest.mark.quick
def test_looks_are_exact_for_two_noises():
    """One look: |y_1 - tau| > z sigma / sqrt(2), so the chance at the threshold is known."""
    rule = UntilSure(column=COLUMN, threshold=0.0, noise=1.0, most=2)
    reach = -scipy.stats.norm.ppf(0.01) / np.sqrt(2)
    assert rule.sure([reach + 1e-9])
    assert rule.sure([-reach - 1e-9])
    assert not rule.sure([reach - 1e-9])


@pytest.mark.quick
def test_calibration_knows_how_much_noises_differ():
    """Values of a prompt: its mean and noise of a deviation that grows with it."""
    rng, prompts, noises = np.random.default_rng(0), 400, 4
    means = rng.uniform(1, 2, prompts)
    values = means[:, None] + 0.1 * means[:, None] * rng.standard_normal((prompts, noises))
    records = [{"condition": str(i), "network": {COLUMN: v.tolist()}} for i, v in enumerate(values)]
    fitted = Calibration.fit(records, SETTINGS, fingerprint="a")
    noise = fitted.thresholds[COLUMN].noise
    upper = means[means > np.median(means)]
    # a variance of 600 degrees of freedom: 3% of the deviation, and who is upper is noisy
    assert noise == pytest.approx(0.1 * np.sqrt(np.mean(upper**2)), rel=0.1)
    for r in records:
        r["network"][COLUMN] = r["network"][COLUMN][:1]
    one = Calibration.fit(records, SETTINGS, fingerprint="a").thresholds[COLUMN]
    assert one.noise is None
    with pytest.raises(ValueError, match="does not say how much score_difference@981 differs"):
        UntilSure.of(COLUMN, one, most=4)


def test_a_threshold_keeps_its_noise_on_disk(tmp_path):
    records = [{"condition": str(i), "network": {COLUMN: [i, i + 1.0, i + 2.0]}} for i in range(30)]
    fitted = Calibration.fit(records, SETTINGS, fingerprint="a")
    assert fitted.thresholds[COLUMN].noise == pytest.approx(1.0)
    path = fitted.save(tmp_path / "c.json")
    assert Calibration.load(path).thresholds == fitted.thresholds
    document = json.loads(path.read_text())
    for noise in (-1, "x", True):
        document["thresholds"][COLUMN]["noise"] = noise
        path.write_text(json.dumps(document))
        with pytest.raises(ValueError, match=r"c.json is not a calibration"):
            Calibration.load(path)
    del document["thresholds"][COLUMN]["noise"]  # as written before noises were measured
    path.write_text(json.dumps(document))
    assert Calibration.load(path).thresholds[COLUMN].noise is None


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """All four noises of digits, and a threshold that lies between them."""
    folder = tmp_path_factory.mktemp("fixed")
    records = detect(sj.load("mnist"), NAMES, folder / "run", SETTINGS, fingerprint="a")
    values = np.array([r["network"][COLUMN] for r in records])
    means = np.sort(values.mean(axis=1))
    noise = float(np.sqrt(values.var(axis=1, ddof=1).mean()))
    middle = float(means[2:4].mean())
    return values, UntilSure(column=COLUMN, threshold=middle, noise=noise, most=4)


def test_values_are_the_first_of_the_fixed_run(fixed, tmp_path):
    values, rule = fixed
    folder = tmp_path / "run"
    model = sj.load("mnist")
    records = until_sure(model, NAMES, folder, SETTINGS, rule, fingerprint="a")
    for i, record in enumerate(records):
        n = stopped(rule, values[i])
        assert (record["index"], record["condition"]) == (i, NAMES[i])
        # other batches, so other programs: rounding of float32
        np.testing.assert_allclose(record["network"][COLUMN], values[i, :n], rtol=1e-4)
    counts = [len(r["network"][COLUMN]) for r in records]
    assert min(counts) == 1 < max(counts)  # who is far from the threshold takes one
    # a run that was killed before its end goes on from the noises that are there
    (folder / "results.jsonl").write_text("")
    first = (folder / "noise-1" / "results.jsonl").read_bytes()
    assert until_sure(model, NAMES, folder, SETTINGS, rule, fingerprint="a") == records
    assert (folder / "noise-1" / "results.jsonl").read_bytes() == first
    assert Run.open(folder).records() == records
    with pytest.raises(ValueError, match="other settings"):
        until_sure(
            model, NAMES, folder, SETTINGS,
            UntilSure(column=COLUMN, threshold=1.0, noise=1.0, most=4), fingerprint="a",
        )  # fmt: skip


def test_refusals(tmp_path):
    model = sj.load("mnist")
    several = DetectSettings(statistics=("score_difference", "effective_dimension"))
    with pytest.raises(ValueError, match=r"takes statistics of single noises .* effective_dim"):
        until_sure(model, NAMES, tmp_path / "a", several, RULE, fingerprint="a")
    two = DetectSettings(statistics=("score_difference",), num_noises=2)
    with pytest.raises(ValueError, match="the rule is for 4 noises, got 2"):
        until_sure(model, NAMES, tmp_path / "a", two, RULE, fingerprint="a")
    assert not (tmp_path / "a").exists()
    for wrong in ({"most": 1}, {"noise": 0.0}, {"noise": float("nan")}, {"error": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            UntilSure(**{"column": COLUMN, "threshold": 1.0, "noise": 1.0, "most": 4} | wrong)


def test_a_later_noise_is_the_same_by_itself():
    """A noise depends on its number and the seed alone."""
    from sharpjax.detection.compute import Columns

    model = sj.load("mnist")
    alone = DetectSettings(statistics=("score_difference",), num_noises=1, first_noise=3)
    np.testing.assert_array_equal(
        Columns(model, alone).noises[0], Columns(model, SETTINGS).noises[3]
    )
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 3)
    np.testing.assert_array_equal(
        Columns(model, alone).noises[0], jax.random.normal(key, model.shape)
    )
