"""Statistics against closed forms, figures against naive twins, and the oracle."""

import dataclasses
import functools
import itertools
import json
import math

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from sharpjax import Gaussian, GaussianMixture, PixelDiffusion, Schedule, ScorePair, detection
from sharpjax.detection import intervals, statistics
from sharpjax.detection.compute import Columns, _alignment, _first_step, _unconditional
from sharpjax.detection.evaluation import (
    _Curve,
    compare,
    evaluate,
    roc,
    roc_band,
    spearman,
)
from sharpjax.detection.settings import DetectSettings, ImageSettings
from sharpjax.detection.statistics import STATISTICS
from sharpjax.detection.summary import Judged, mean_and_error, summarize
from sharpjax.detection.trajectory import follow
from sharpjax.prompts import Case
from sharpjax.rundir.files import read_lines
from sharpjax.rundir.run import Run
from sharpjax.runs.detect import SECONDS_NAME, detect
from sharpjax.runs.images import detect_images, find_images
from sharpjax.runs.truth_of_conditions import (
    LEVEL,
    Truth,
    copy_threshold,
    judge,
    load_strip,
    read_truths,
    save_strip,
    thresholds,
    verdict,
    write_truths,
)
from sharpjax.similarity import pixel_correlation

ALPHA, SIGMA, DIM = 0.6, 0.8, 6


def gaussian_pair(dtype):
    """Two noised Gaussians whose covariances do not commute and whose means differ."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, DIM, DIM))
    mean_u, mean_c, x = rng.standard_normal((3, DIM))
    u = Gaussian(jnp.asarray(mean_u, dtype), jnp.asarray(a @ a.T + np.eye(DIM), dtype))
    c = Gaussian(jnp.asarray(mean_c, dtype), jnp.asarray(0.1 * b @ b.T + 0.05 * np.eye(DIM), dtype))
    u, c = u.noised(ALPHA, SIGMA), c.noised(ALPHA, SIGMA)
    return u, c, ScorePair(u.score, c.score, ALPHA, SIGMA), jnp.asarray(x, dtype)


def closed_forms(u, c, x):
    s_u, s_c = np.asarray(u.score(x), np.float64), np.asarray(c.score(x), np.float64)
    h_u, h_c = np.asarray(u.hessian(x), np.float64), np.asarray(c.hessian(x), np.float64)
    return {
        "score_difference": np.linalg.norm(s_c - s_u),
        "hessian_score_difference": np.linalg.norm((h_c - h_u) @ (s_c - s_u)),
        "hessian_score": np.linalg.norm(h_c @ s_c - h_u @ s_u),
        "trace_difference": np.trace(h_c) - np.trace(h_u),
        "effective_dimension": np.trace(np.eye(DIM) + SIGMA**2 * h_c),
    }


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", ["score_difference", "hessian_score_difference", "hessian_score"])
def test_first_step_statistics_equal_their_closed_forms(name, x64):
    with jax.enable_x64(x64):
        u, c, pair, x = gaussian_pair(jnp.float64 if x64 else jnp.float32)
        value = jax.jit(STATISTICS[name].function)(pair, x)
        # a few matrix products and solves with matrices of condition number below 100
        np.testing.assert_allclose(value, closed_forms(u, c, x)[name], rtol=1e-12 if x64 else 5e-5)


def test_the_paper_squares():
    _, _, pair, x = gaussian_pair(jnp.float32)
    plain = detection.hessian_score_difference(pair, x)
    squared = detection.hessian_score_difference(pair, x, squared=True)
    np.testing.assert_allclose(squared, plain**2, rtol=1e-6)


@pytest.mark.parametrize("name", ["trace_difference", "effective_dimension"])
def test_trace_statistics_are_unbiased(name):
    u, c, pair, x = gaussian_pair(jnp.float32)
    truth = closed_forms(u, c, x)[name]
    keys = jax.random.split(jax.random.key(0), 4000)
    function = STATISTICS[name].function
    values = jax.jit(jax.vmap(lambda k: function(pair, x, key=k, num_probes=2)))(keys)
    error = np.std(values) / np.sqrt(len(keys))
    assert abs(np.mean(values) - truth) < 4 * error + 1e-4 * abs(truth)


def test_common_probes_cancel_what_the_two_traces_share():
    """The same Hessian on both sides: the difference of the traces is zero for every probe."""
    u, _, _, x = gaussian_pair(jnp.float32)
    pair = ScorePair(u.score, u.score, ALPHA, SIGMA)
    value = detection.trace_difference(pair, x, key=jax.random.key(0), num_probes=3)
    assert abs(float(value)) < 1e-4


@pytest.mark.slow
def test_a_single_image_leaves_nothing_open(tiny_training_set):
    x = jax.random.normal(jax.random.key(0), (1, 8, 8))
    pair = tiny_training_set.scores(0, alpha=ALPHA, sigma=SIGMA)
    dimension = detection.effective_dimension(pair, x, key=jax.random.key(1))
    assert abs(float(dimension)) < 1e-4  # d float32 roundings
    _, own = tiny_training_set.densities(2, alpha=ALPHA, sigma=SIGMA)
    assert float(own.effective_dimension(x)) > 0.1


def test_oracle_is_the_score_of_the_noised_training_set(tiny_training_set):
    images = np.asarray(tiny_training_set.images, np.float64).reshape(-1, 64)
    owners = np.asarray(tiny_training_set.conditions)
    sizes = np.bincount(owners)
    x = jax.random.normal(jax.random.key(0), (1, 8, 8))
    pair = tiny_training_set.scores(4, alpha=ALPHA, sigma=SIGMA)

    def mixture(weights, points):
        covariances = np.broadcast_to(SIGMA**2 * np.eye(64), (len(points), 64, 64))
        return GaussianMixture(weights, ALPHA * points, covariances)

    everything = mixture(1 / (6 * sizes[owners]), images)
    own = mixture(np.full(sizes[4], 1 / sizes[4]), images[owners == 4])
    for ours, theirs in ((pair.unconditional, everything), (pair.conditional, own)):
        expected = np.asarray(theirs.score(x.ravel()))
        np.testing.assert_allclose(ours(x).ravel(), expected, atol=2e-5 * np.abs(expected).max())


def test_training_set_round_trip_and_damage(tiny_training_set, tmp_path):
    from safetensors.numpy import save_file

    tiny_training_set.save(tmp_path)
    again = detection.TrainingSet.load(tmp_path)
    np.testing.assert_array_equal(again.conditions, tiny_training_set.conditions)
    # stored as uint8: half a grey level
    np.testing.assert_allclose(again.images, tiny_training_set.images, atol=0.5 / 127.5 + 1e-6)
    with pytest.raises(FileNotFoundError, match="training_set"):
        detection.TrainingSet.load(tmp_path / "nowhere")
    path = tmp_path / "training_set.safetensors"
    for tensors, message in (
        ({"images": np.zeros((2, 1, 8, 8), np.uint8)}, "must hold"),
        ({"images": np.zeros((2, 1, 8, 8)), "conditions": np.zeros(2, np.int32)}, "uint8"),
        (
            {"images": np.zeros((2, 1, 8, 8), np.uint8), "conditions": np.array([0, 2], np.int32)},
            "every condition",
        ),
    ):
        save_file(tensors, path)
        with pytest.raises(ValueError, match=message):
            detection.TrainingSet.load(tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="not a readable"):
        detection.TrainingSet.load(tmp_path)


def test_figures_against_naive_twins():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1.0, 1.0, 40), rng.normal(0.0, 1.0, 90)
    positive[:5] = negative[:5]  # ties count half
    scores = np.concatenate([positive, negative])
    memorized = np.arange(130) < 40
    pairs = [(p > n) + 0.5 * (p == n) for p, n in itertools.product(positive, negative)]
    figures = evaluate(scores, memorized)
    assert figures.auc.value == pytest.approx(np.mean(pairs), abs=1e-12)
    fpr, tpr = roc(scores, memorized)
    assert figures.tpr.value == pytest.approx(tpr[fpr <= 0.01].max())
    # a point for every threshold, also within a straight piece of the curve
    steps = [(0, 0)] + [
        (np.mean(negative >= t), np.mean(positive >= t)) for t in np.unique(scores)[::-1]
    ]
    np.testing.assert_allclose(np.stack([fpr, tpr], axis=1), steps)
    assert figures.auc.low < figures.auc.value < figures.auc.high
    assert (figures.num_positive, figures.num_negative) == (40, 90)
    assert evaluate(scores, memorized) == figures
    assert roc_auc_score(memorized, -scores) == pytest.approx(1 - figures.auc.value)


@pytest.mark.parametrize("num_negative", [50, 99, 100, 250])
def test_tpr_never_lets_more_than_one_percent_pass(num_negative):
    rng = np.random.default_rng(num_negative)
    positive, negative = rng.normal(1.5, 1.0, 300), rng.normal(0.0, 1.0, num_negative)
    thresholds_ = np.concatenate([positive, negative])
    rates = [
        np.mean(positive >= t) for t in thresholds_ if np.sum(negative >= t) <= 0.01 * num_negative
    ]
    scores, memorized = np.concatenate([positive, negative]), np.arange(300 + num_negative) < 300
    assert evaluate(scores, memorized).tpr.value == pytest.approx(max(rates))


def test_average_precision_and_auc_are_sklearns():
    rng = np.random.default_rng(3)
    memorized = rng.random(80) < 0.3
    for scores in (rng.normal(memorized, 1.0), rng.integers(0, 4, 80) + memorized):  # with ties
        figures = evaluate(scores, memorized)
        expected = average_precision_score(memorized, scores)
        assert figures.average_precision == pytest.approx(expected)
        assert figures.auc.value == pytest.approx(roc_auc_score(memorized, scores))


def test_paired_comparison():
    """Of a statistic and its noisy copy, a pair differs surely that two intervals leave open."""
    rng = np.random.default_rng(0)
    memorized = np.arange(300) < 150
    good = rng.normal(1.6 * memorized, 1.0)
    worse = good + rng.normal(0, 0.9, 300)
    result = compare(good, worse, memorized)
    aucs = [evaluate(scores, memorized).auc for scores in (good, worse)]
    assert result.auc.value == pytest.approx(aucs[0].value - aucs[1].value)
    assert result.auc.low > 0
    assert result.p_value < 0.05
    assert aucs[0].low < aucs[1].high  # apart, nothing could be said
    back = compare(worse, good, memorized)
    assert back.auc.low == pytest.approx(-result.auc.high)
    same = compare(good, good, memorized)
    assert (same.auc.value, same.auc.low, same.auc.high, same.p_value) == (0, 0, 0, 1)


def test_p_is_the_level_at_which_the_interval_ends_at_0():
    rng = np.random.default_rng(2)
    memorized = np.arange(60) < 25
    for shift in (0.0, 0.3, 1.0):
        first = rng.normal(size=60) + 1.2 * memorized
        second = first + rng.normal(size=60) + shift * ~memorized
        found = compare(first, second, memorized)
        places = [_Curve(scores, memorized).placements() for scores in (first, second)]
        low, high = intervals.auc_difference(*places)(found.p_value)
        assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-6)
        assert (found.p_value < 0.05) == (not found.auc.low <= 0 <= found.auc.high)
        back = compare(second, first, memorized)
        assert back.p_value == pytest.approx(found.p_value)


def test_no_p_value_is_0():
    for n in (10, 100, 2000):
        scores, memorized = np.arange(float(n)), np.arange(n) >= n // 2
        p = compare(scores, -scores, memorized).p_value
        assert max(2.0 ** (1 - n), np.finfo(float).tiny) <= p < 0.05
    # too few to tell, as evaluate has it
    found = compare(np.arange(2.0), -np.arange(2.0), np.array([False, True]))
    assert found.auc.value == 1
    assert np.isnan([found.auc.low, found.auc.high, found.p_value]).all()
    for n, p in ((4, 2 / 24), (7, 2 / 5040), (8, 2 / 10_000), (10, 2 / math.factorial(10))):
        assert spearman(np.arange(n), np.arange(n) ** 2)[1] == pytest.approx(p)
    assert spearman(np.arange(1000.0), np.arange(1000))[1] > 0


def test_both_perfect_is_no_proof_that_they_are_equal():
    """In another order of the conditions; in the same they are one statistic."""
    memorized = np.arange(20) >= 10
    first = np.arange(20.0)
    found = compare(first, np.where(memorized, 30 - first, -first), memorized)
    assert found.auc.value == 0
    assert found.auc.low == pytest.approx(-found.auc.high)
    assert found.auc.high == pytest.approx(1 - 0.025 ** (1 / 10))
    assert found.p_value == 1
    one = compare(first, first**3, memorized)
    assert (one.auc.low, one.auc.high, one.p_value) == (0, 0, 1)


def test_small_spearman_is_the_permutation_test():
    """Of all orders, counted one by one; ties too."""
    values, sizes = np.array([3.0, 1.0, 4.0, 1.5, 2.0, 0.5]), np.array([1, 1, 4, 4, 16, 2])
    ranks, others = rankdata(values), rankdata(sizes)
    seen = np.array([np.sum(ranks * others[list(o)]) for o in itertools.permutations(range(6))])
    own = np.sum(ranks * others)
    rho, p = spearman(values, sizes)
    assert rho == pytest.approx(np.corrcoef(ranks, others)[0, 1])
    assert p == pytest.approx(
        min(1, 2 * min(np.mean(seen >= own - 1e-9), np.mean(seen <= own + 1e-9)))
    )


def test_bad_scores_are_named():
    with pytest.raises(ValueError, match="both classes"):
        evaluate(np.ones(3), np.ones(3, bool))
    with pytest.raises(ValueError, match="NaN"):
        evaluate(np.array([1.0, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="equally long"):
        evaluate(np.ones(3), np.ones(2, bool))
    with pytest.raises(ValueError, match="NaN"):
        spearman(np.array([1.0, np.nan, 2.0]), np.arange(3))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([np.nan] + [0] * 9, "booleans, or 1 and 0, got nan;"),
        ([0.5] + [1] * 4 + [0] * 5, r"got 0\.5;"),
        ([2] * 5 + [0] * 5, "got 2 and 4 others"),
        (["memorized"] * 5 + ["clean"] * 5, "got 'memorized' and 9 others"),
        ([None] * 5 + [True] * 5, "got None and 4 others"),
    ],
)
def test_labels_that_are_none_are_named(labels, message):
    scores = np.arange(10.0)
    for figure in (evaluate, roc, roc_band, lambda a, b: compare(a, -a, b)):
        with pytest.raises(ValueError, match=message):
            figure(scores, labels)
    expected = evaluate(scores, scores >= 5)
    for good in ((scores >= 5).astype(float), (scores >= 5).astype(object), [0] * 5 + [1] * 5):
        assert evaluate(scores, good) == expected


def test_small_statistics():
    rho, p = spearman(np.array([4.0, 3.0, 2.0, 1.0]), np.array([1, 4, 16, 64]))
    assert rho == pytest.approx(-1.0)
    assert p == pytest.approx(2 / 24)  # of 24 orders, this one and its reverse
    assert mean_and_error([1.0, 3.0]) == pytest.approx((2.0, 1.0))
    assert np.isnan(mean_and_error([1.0])[1])


def test_similarity_ignores_brightness_and_contrast_but_not_shape():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((5, 1, 8, 8))
    np.testing.assert_allclose(np.diag(pixel_correlation(images, 0.3 * images - 0.5)), 1.0)
    expected = np.corrcoef(images.reshape(5, -1))
    np.testing.assert_allclose(pixel_correlation(images, images), expected, atol=1e-12)


def test_copies_are_counted(tiny_training_set):
    references = tiny_training_set.of(2)
    limit = copy_threshold(references)
    between = np.corrcoef(references.reshape(12, -1))
    np.fill_diagonal(between, -1)
    assert limit == pytest.approx(np.quantile(between.max(1), 0.99))
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((30, 1, 8, 8))
    copies = np.concatenate([references, references, references[:6]]) + 1e-3 * noise
    truth = judge(np.concatenate([copies, noise]), "0 x12", references, limit)
    assert (truth.num_samples, truth.num_copies, truth.set_size) == (60, 30, 12)
    assert truth.verdict == "memorized"
    clean = judge(noise, "0 x12", references, limit)
    assert clean.verdict == "clean"
    with pytest.raises(ValueError, match="at least two"):
        copy_threshold(references[:1])


def test_samples_that_are_no_images_are_no_verdict(tiny_training_set):
    samples = np.array(tiny_training_set.of(0)[:1].repeat(3, axis=0))
    samples[1, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="samples of '0 x1' are NaN or infinite"):
        judge(samples, "0 x1", tiny_training_set.of(0), 0.9)
    for counts in ((9, 8), (-1, 8), (0, 0)):
        with pytest.raises(ValueError, match="copies must be at least 0"):
            verdict(*counts)


@pytest.mark.parametrize("count", [2, 4, 8, 16, 32, 64])
def test_what_copies_nothing_is_clean_but_for_the_stated_level(count):
    """Simulated: the judge is wrong once in a hundred samples."""
    rng = np.random.default_rng(count)
    kinds, times = np.unique(rng.binomial(count, 0.01, 20_000), return_counts=True)
    left_out = sum(
        n for k, n in zip(kinds.tolist(), times, strict=True) if verdict(k, count) != "clean"
    )
    assert left_out <= scipy.stats.binom.ppf(0.999, 20_000, LEVEL)
    assert verdict(count, count) == "memorized"  # and what copies each time is not chance


def test_thresholds_come_from_the_largest_sets(tiny_training_set):
    names = ("0 x1", "0 x3", "0 x12", "1 x1", "1 x3", "1 x12")
    found = thresholds(tiny_training_set, names)
    assert found == {
        "0": copy_threshold(tiny_training_set.of(2)),
        "1": copy_threshold(tiny_training_set.of(5)),
    }


def test_truth_files_round_trip(tmp_path):
    truths = [
        Truth("0 x1", 1, 0.9, 32, 30, 0.8, 0.99, 0.97),
        Truth("0 x3", 3, 0.9, 32, 8, 0.13, 0.42, 0.5),
        Truth("0 x12", 12, 0.9, 32, 2, 0.01, 0.2, 0.5),
    ]
    assert [t.verdict for t in truths] == ["memorized", "between", "clean"]
    counts = {100: "memorized", 99: "between", 21: "between", 20: "clean"}  # of 200
    assert {count: verdict(count, 200) for count in counts} == counts
    path = write_truths(tmp_path, truths)
    assert read_truths(tmp_path) == truths
    path.write_text(path.read_text().replace("0.97", "much"))
    with pytest.raises(ValueError, match="damaged"):
        read_truths(tmp_path)
    with pytest.raises(FileNotFoundError, match="ground_truth"):
        read_truths(tmp_path / "nowhere")


def test_strips_round_trip(tiny_training_set, tmp_path):
    images = np.asarray(tiny_training_set.images)
    save_strip(tmp_path / "strip.png", images)
    np.testing.assert_allclose(load_strip(tmp_path / "strip.png"), images, atol=0.5 / 127.5 + 1e-6)


SETTINGS = DetectSettings(trace_timesteps=(981, 800), path_steps=2, num_probes=2)


def run(model, training_set, directory, names=None, **options):
    names = model.conditions if names is None else names
    return detect(
        model,
        names,
        directory,
        options.pop("settings", SETTINGS),
        fingerprint=options.pop("fingerprint", "abc"),
        training_set=training_set,
        labels=np.asarray(model.encode(names)),
        **options,
    )


def values(records):
    return {
        (r["condition"], who, name): r[who][name]
        for r in records
        for who in ("network", "oracle")
        for name in r[who]
    }


@pytest.mark.slow
def test_batch_size_and_company_do_not_change_a_condition(tiny_model, tiny_training_set, tmp_path):
    whole = values(run(tiny_model, tiny_training_set, tmp_path / "a", batch_size=4))
    some = ("1 x3", "0 x1", "1 x12")
    other = values(run(tiny_model, tiny_training_set, tmp_path / "b", some, batch_size=1))
    assert {key[0] for key in other} == set(some)
    for key, value in other.items():
        # float32 rounding of sums whose terms are of order 1/sigma^3 times sqrt(d)
        np.testing.assert_allclose(value, whole[key], rtol=2e-3, atol=2e-3, err_msg=str(key))


@pytest.mark.slow
def test_run_equals_the_statistics_one_by_one(tiny_model, tiny_training_set, tmp_path):
    records = run(tiny_model, tiny_training_set, tmp_path / "a", batch_size=4)
    key = jax.random.fold_in(jax.random.key(0), 0)
    x = jax.random.normal(jax.random.fold_in(key, 2), (1, 8, 8))
    pair = tiny_model.scores("1 x3", 981)
    exact = tiny_training_set.scores(4, alpha=pair.alpha, sigma=pair.sigma)
    for name in ("score_difference", "hessian_score_difference", "hessian_score"):
        for who, scores in (("network", pair), ("oracle", exact)):
            expected = STATISTICS[name].function(scores, x)
            value = records[4][who][f"{name}@981"][2]
            np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4)
    _, own = tiny_training_set.densities(4, alpha=pair.alpha, sigma=pair.sigma)
    x = jax.random.normal(jax.random.fold_in(key, 1), (1, 8, 8))
    dimension = records[4]["oracle"]["effective_dimension@981"][1]
    np.testing.assert_allclose(dimension, own.effective_dimension(x), rtol=1e-3)


def walk(score, x, schedule, timesteps):
    """DDIM from the first to the last timestep, as it is written down: clean image and noise."""
    for t, after in itertools.pairwise(timesteps):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        s = np.asarray(score(jnp.asarray(x, jnp.float32), t), np.float64)
        clean, noise = (x + sigma**2 * s) / alpha, -sigma * s
        x = float(schedule.alpha(after)) * clean + float(schedule.sigma(after)) * noise
    return x


@pytest.mark.slow
def test_traces_are_taken_along_the_path_of_the_condition(tiny_model):
    """Not the unconditional path, nor a guided one; each level goes on from the one before."""
    stops = {981: [981], 800: [981, 890, 800], 600: [800, 700, 600]}
    settings = DetectSettings(
        statistics=("trace_difference", "effective_dimension"), trace_timesteps=tuple(stops),
        trace_noises=2, num_noises=3, num_probes=2, path_steps=2,
    )  # fmt: skip
    columns = Columns(tiny_model, settings)
    labels, noises = tiny_model.encode(["0 x1", "1 x12"]), columns.noises
    found, states = columns(labels)
    assert states.shape == (2, 2, 3, 1, 8, 8)

    @jax.jit
    def both_scores(label, x, t):
        return tiny_model.scores(label, t).both(x)

    @jax.jit
    def statistics(label, x, t, key):
        pair = tiny_model.scores(label, t)
        return {
            n: STATISTICS[n].function(pair, x, key=key, num_probes=2) for n in settings.statistics
        }

    key = jax.random.fold_in(jax.random.key(settings.seed), 1)
    for (i, label), j in itertools.product(enumerate(labels), range(2)):
        ours = theirs = np.asarray(noises[j], np.float64)
        for k, (t, timesteps) in enumerate(stops.items()):
            scores = functools.partial(both_scores, label)
            ours = walk(lambda *at, s=scores: s(*at)[1], ours, tiny_model.schedule, timesteps)
            theirs = walk(lambda *at, s=scores: s(*at)[0], theirs, tiny_model.schedule, timesteps)
            close = 1e-4 * np.abs(ours).max()  # float32 scores
            np.testing.assert_allclose(states[i, j, k], ours, atol=close)
            assert k == 0 or np.abs(ours - theirs).max() > 30 * close
            probes = jax.random.fold_in(jax.random.fold_in(key, j), t)
            expected = statistics(label, jnp.asarray(ours, jnp.float32), t, probes)
            for name, value in expected.items():
                value_there = found[f"{name}@{t}"][i, j]
                np.testing.assert_allclose(value_there, value, rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_columns_are_the_statistics_of_each_condition_and_noise(tiny_model):
    settings = DetectSettings(
        statistics=(
            "guidance_alignment", "standardised_alignment", "path_score_difference",
            "last_step_difference", "step_displacement", "tiled_l2",
        ),
        num_noises=2, num_steps=4, guidance=3.0, alignment_weights=(1.0, 0.1),
    )  # fmt: skip
    columns = Columns(tiny_model, settings)
    labels, noises = tiny_model.encode(["0 x1", "1 x12"]), columns.noises
    found, states = columns(labels)
    assert states is None
    first, later, _ = settings.timesteps(tiny_model.schedule)

    @jax.jit
    def alone(label, x):
        path = follow(tiny_model, label, x, num_steps=4, guidance=3.0)
        pairs = tiny_model.scores(label, first), tiny_model.scores(label, later)
        values = {
            f"guidance_alignment@{later}": STATISTICS["guidance_alignment"].function(
                *pairs, x, alignment_weights=(1.0, 0.1)
            ),
            f"standardised_alignment@{later}": STATISTICS["standardised_alignment"].function(
                *pairs, x
            ),
            "path_score_difference": STATISTICS["path_score_difference"].function(path),
            "last_step_difference": STATISTICS["last_step_difference"].function(path),
            "step_displacement": path.displacements,
        }
        return values, path.states[-1]

    images = np.empty((2, 2, *tiny_model.shape))
    for i, j in itertools.product(range(2), range(2)):
        values, images[i, j] = alone(labels[i], noises[j])
        assert found.keys() == values.keys() | {"tiled_l2"}
        for name, value in values.items():
            np.testing.assert_allclose(found[name][i, j], value, rtol=2e-3, err_msg=name)
    tiled = [STATISTICS["tiled_l2"].function(jnp.clip(of_one, -1, 1)) for of_one in images]
    np.testing.assert_allclose(found["tiled_l2"][:, 0], tiled, rtol=2e-3)


@pytest.mark.slow
def test_images_have_the_p_laplacian_about_each(tiny_model, tmp_path):
    """Four values of the flux, of a quarter of the directions each; and the exact one."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    for name, levels in (("a.png", pixels), ("b.png", 255 - pixels)):
        Image.fromarray(levels).save(tmp_path / name)
    settings = ImageSettings(num_directions=8, exact=True, timestep=20, seed=3)
    records = detect_images(
        tiny_model, tmp_path, find_images(tmp_path), tmp_path / "run", settings, fingerprint="abc"
    )
    assert [r["condition"] for r in records] == ["a.png", "b.png"]
    pair = tiny_model.scores("0 x1", 20)  # of which the unconditional score is asked
    p_laplacian = STATISTICS["p_laplacian"].function
    flux = jax.jit(lambda z, key: p_laplacian(pair, z, key=key, num_directions=2))
    exact = jax.jit(lambda z: p_laplacian(pair, z, key=None, method="exact"))
    for record, levels in zip(records, (pixels, 255 - pixels), strict=True):
        z = jnp.asarray(levels[None] / 127.5 - 1, jnp.float32)
        keys = [jax.random.fold_in(jax.random.key(3), i) for i in range(4)]
        found = record["network"]
        assert list(found) == ["p_laplacian@20", "p_laplacian@20, exact"]
        np.testing.assert_allclose(
            found["p_laplacian@20"], [flux(z, key) for key in keys], rtol=1e-3, atol=1e-3
        )
        np.testing.assert_allclose(found["p_laplacian@20, exact"], [exact(z)], rtol=1e-3)


@pytest.mark.quick
def test_a_finished_run_is_not_computed_again(tiny_model, tiny_training_set, tmp_path):
    first = run(tiny_model, tiny_training_set, tmp_path / "a")
    path = tmp_path / "a" / "results.jsonl"
    stamp = path.stat().st_mtime_ns
    (line,) = map(json.loads, (tmp_path / "a" / SECONDS_NAME).read_text().splitlines())
    assert line["batch_size"] == 4
    assert {part: len(taken) for part, taken in line["seconds"].items()} == {
        "first": 2, "traces": 2,
    }  # fmt: skip
    assert run(tiny_model, tiny_training_set, tmp_path / "a") == first
    assert path.stat().st_mtime_ns == stamp
    # a torn last line is dropped and its condition computed again
    path.write_bytes(path.read_bytes()[:-100])
    again = run(tiny_model, tiny_training_set, tmp_path / "a")
    assert [r["condition"] for r in again] == list(tiny_model.conditions)
    assert len(path.read_text().splitlines()) == 6


@pytest.mark.slow
def test_the_first_step_is_the_first_with_a_signal(tiny_model, tmp_path):
    """t = 999 of a zero terminal SNR is pure noise, where s_D is 0; against PyTorch at t = 979."""
    schedule = Schedule.create(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    model = dataclasses.replace(tiny_model, schedule=schedule)
    assert schedule.timesteps(50)[0] == 999
    assert DetectSettings().timesteps(schedule) == (979, 59, 19)
    assert DetectSettings().names(schedule)[0] == "score_difference@979"
    settings = DetectSettings(statistics=("standardised_alignment",), num_noises=1)  # asks at both
    name = model.conditions[1]
    (record,) = detect(model, [name], tmp_path / "run", settings, fingerprint="abc")
    folder = model.save_pretrained(tmp_path / "model")
    unet = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    levels = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod.double()
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    x = torch.tensor(np.asarray(jax.random.normal(key, model.shape)))
    differences, scores = {}, {}
    for t in (979, 59):
        with torch.no_grad():
            v = unet(torch.stack([x, x]), t, torch.tensor([6, 1])).sample.double()
        sigma = (1 - levels[t]).sqrt()
        scores[t] = -x - levels[t].sqrt() / sigma * v
        differences[t] = (scores[t][1] - scores[t][0]).flatten()
    expected = float(differences[979].norm())
    assert expected > 1e-3  # and not the zero of t = 999
    # their alpha is .04 by float32 products of 1,000 factors: 1e-4
    cosine = torch.sign(differences[59] * scores[59][0].flatten()).mean()  # of one channel
    ((alignment, length),) = record["network"]["standardised_alignment@59"]
    assert alignment == pytest.approx(float(cosine), abs=2.1 / 64)  # two pixels near 0
    assert length == pytest.approx(expected, rel=1e-3)
    for bad, message in (
        ({"num_steps": 1}, r"1 step\(s\) visit t=\[999\] only, where alpha = 0"),
        (
            {"statistics": ("trace_difference",), "trace_timesteps": (999, 500)},
            r"trace_timesteps: alpha = 0 at t=999, .* take timesteps up to 979",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            detect(model, [name], tmp_path / "bad", DetectSettings(**bad), fingerprint="abc")
        assert not (tmp_path / "bad").exists()


@pytest.mark.slow
def test_a_model_without_an_unconditional_score(tiny_model, tmp_path):
    """Only what asks the conditional score alone is computed; the rest is refused beforehand."""
    alone = dataclasses.replace(tiny_model, conditions=(*tiny_model.conditions, "2 x1"))
    assert not alone.has_unconditional
    folder = alone.save_pretrained(tmp_path / "model")
    alone = PixelDiffusion.from_pretrained(folder)
    names = list(alone.conditions)
    with pytest.raises(ValueError, match=r"score_difference, .*cannot be computed.*effective_dim"):
        detect(alone, names, tmp_path / "run", DetectSettings(), fingerprint="abc")
    assert not (tmp_path / "run").exists()
    settings = DetectSettings(
        statistics=("effective_dimension",), num_noises=1, trace_timesteps=(981,), num_probes=1
    )
    records = detect(alone, names, tmp_path / "run", settings, fingerprint="abc")
    (value,) = records[0]["network"]["effective_dimension@981"]
    pair = alone.scores(names[0], 981)
    with pytest.raises(ValueError, match="no unconditional score"):
        pair.difference(jnp.zeros(alone.shape))
    assert np.isfinite(value)
    with pytest.raises(ValueError, match="guidance must be 1, got 2"):
        alone.sample(names[:1], jax.random.key(0), guidance=2.0)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"fingerprint": "xyz"}, ValueError, "model: abc there, xyz now"),
        ({"settings": DetectSettings(seed=1)}, ValueError, "seed: 0 there, 1 now"),
        ({"names": ("0 x1",)}, ValueError, "num_conditions"),
        ({"names": ()}, ValueError, "no conditions"),
        ({"names": ("2 x1",)}, ValueError, "got '2 x1'"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"settings": DetectSettings(trace_timesteps=(1000,))}, ValueError, "0..999"),
    ],
)
def test_wrong_runs_are_named(changed, error, message, tiny_model, tiny_training_set, tmp_path):
    run(tiny_model, tiny_training_set, tmp_path / "a")
    with pytest.raises(error, match=message):
        run(tiny_model, tiny_training_set, tmp_path / "a", **changed)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        Run.claim(tmp_path / "b", "detect", {})
    with pytest.raises(FileExistsError, match="is a file"):
        Run.claim(tmp_path / "b" / "precious.txt", "detect", {})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_noises": 0}, "num_noises must be an integer >= 1, got 0"),
        ({"num_noises": 2.5}, "num_noises must be an integer >= 1, got 2.5"),
        ({"trace_noises": 0}, "trace_noises"),
        ({"statistics": ()}, "at least one"),
        (
            {"statistics": ("score_difference", "trace")},
            r"a statistic must be one of sco.*, got 'trace'",
        ),
        ({"statistics": ("score_difference",) * 2}, "distinct"),
        ({"statistics": ("tiled_l2",), "num_noises": 1}, "at least 2"),
        ({"guidance": float("nan")}, "guidance"),
        ({"alignment_weights": (1, 2, 3)}, "must be two finite numbers, .* not both 0, got"),
        ({"alignment_weights": (0, 0)}, "must be two finite numbers, .* not both 0, got"),
        ({"alignment_weights": (1, float("inf"))}, "must be two finite numbers"),
        ({"num_probes": 0}, "num_probes"),
        ({"path_steps": 0}, "path_steps"),
        ({"trace_timesteps": (600, 800)}, "descend"),
        ({"trace_timesteps": (800.5,)}, "trace_timesteps must be an integer >= 0, got 800.5"),
        ({"seed": float("nan")}, "seed must be an integer >= 0, got nan"),
    ],
)
def test_wrong_settings_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        DetectSettings(**bad)


def test_settings_of_numpy_are_python_s(tmp_path):
    given = DetectSettings(
        num_noises=np.int64(2), guidance=np.float32(7.5), seed=np.int32(3), squared=np.bool_(1),
        trace_timesteps=np.array([800, 600]), statistics=["score_difference"],
        alignment_weights=[np.float32(1), np.float32(0.5)],
    )  # fmt: skip
    same = DetectSettings(
        num_noises=2, guidance=7.5, seed=3, squared=True, trace_timesteps=(800, 600),
        statistics=("score_difference",), alignment_weights=(1, 0.5),
    )  # fmt: skip
    assert given == same
    assert hash(given) == hash(same)
    for settings in (given, same):  # goes on
        Run.claim(tmp_path, "x", dataclasses.asdict(settings))
    Run.claim(tmp_path / "b", "x", {"seed": np.int64(3)})
    Run.claim(tmp_path / "b", "x", {"seed": 3})
    for value in (float("nan"), np.float32("inf")):
        with pytest.raises(ValueError, match="scale must be finite to define a run"):
            Run.claim(tmp_path / "c", "x", {"scale": value})
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["settings.json", "results.jsonl", "ground_truth.csv"])
def test_run_files_that_are_not_utf_8_are_named(name, tmp_path):
    Run.claim(tmp_path, "x", {})
    (tmp_path / name).write_bytes('{"condition": "grün"}\n'.encode("latin-1"))
    read = {
        "settings.json": lambda: Run.claim(tmp_path, "x", {}),
        "results.jsonl": lambda: read_lines(tmp_path / name),
        "ground_truth.csv": lambda: read_truths(tmp_path),
    }
    with pytest.raises(ValueError, match=r"(?i)utf-8") as caught:
        read[name]()
    assert str(tmp_path / name) in str(caught.value)
    assert not isinstance(caught.value, UnicodeDecodeError)


def test_repeated_and_blank_conditions_do_not_count():
    """The figures of a list are those of its different prompts."""
    rng = np.random.default_rng(0)
    once = [
        {
            "condition": f"c{i}",
            "network": {"score_difference@981": rng.normal(i < 10, 1, 2).tolist()},
        }
        for i in range(20)
    ]
    cases = [Case(r["condition"], "memorized" if i < 10 else "clean") for i, r in enumerate(once)]
    blank = {"condition": " ", "network": {"score_difference@981": [0.0, 0.0]}}
    (expected,) = summarize(Judged.of(once, cases))
    judged = Judged.of([blank, *once, *once, blank], [Case(" ", "clean"), *cases, *cases, Case("")])
    assert len(judged.cases) == 20
    assert summarize(judged) == [expected]


def test_summary_ranks_by_direction(tiny_model):
    records = [
        {
            "condition": n,
            "network": {"score_difference@981": [v, v], "trace_difference@981": [-v] * 2},
        }
        for n, v in zip(tiny_model.conditions, (5.0, 1.0, 0.5, 6.0, 2.0, 0.1), strict=True)
    ]
    verdicts = ["memorized", "clean", "clean", "memorized", "between", "clean"]
    sizes = [1, 3, 12] * 2
    cases = [
        Case(r["condition"], verdict, "", size)
        for r, verdict, size in zip(records, verdicts, sizes, strict=True)
    ]
    summaries = summarize(Judged.of(records, cases))
    for summary in summaries:
        assert summary.network.auc.value == 1.0
        assert (summary.network.num_positive, summary.network.num_negative) == (2, 3)
        assert summary.oracle is None
    assert summaries[0].rank_correlation[0] < -0.8
    assert summaries[1].rank_correlation[0] > 0.8
    unknown = [Case(r["condition"]) for r in records]
    assert summarize(Judged.of(records, unknown))[0].network is None


def test_a_run_killed_while_claiming_its_directory_can_start_again(tmp_path):
    (tmp_path / "settings.json.part").write_text('{"run"')
    assert Run.claim(tmp_path, "x", {}).folder == tmp_path
    (tmp_path / "settings.json").write_text("[1]")
    with pytest.raises(ValueError, match="is not what a run of sharpjax writes"):
        Run.claim(tmp_path, "x", {})


def test_conditions_at_one_noise_share_the_unconditional_linearization(tiny_model):
    """Operations in units of one evaluation of the network: F + 2T a condition, not 2F + 2T."""
    labels = tiny_model.encode(tiny_model.conditions)
    noises = np.random.default_rng(0).normal(size=(len(labels), *tiny_model.shape)).astype("f")

    def operations(function, *arguments):
        return jax.jit(function).lower(tiny_model, *arguments).cost_analysis()["flops"]

    def statistic(model, label, x):
        return STATISTICS["hessian_score_difference"].function(model.scores(label, 981), x)

    def each(model, labels, noises):
        return jax.vmap(lambda label, x: statistic(model, label, x))(labels, noises)

    def shared(model, labels, x):
        return jax.vmap(lambda label: statistic(model, label, x))(labels)

    chosen = DetectSettings(
        statistics=("score_difference", "hessian_score_difference", "hessian_score")
    ).chosen("first")

    def first_step(model, labels, noises):
        kept = _unconditional(model, noises, 981, mesh=None)
        how = {"statistics": chosen, "with_scores": False, "mesh": None}
        return _first_step(model, labels, noises, 981, kept, **how)[0]

    def evaluation(model, label, x):
        return model.scores(label, 981).conditional(x)

    one, n = operations(evaluation, labels[0], noises[0]), len(labels)
    # A tangent has the forward's products, but norms and activations weigh more in it.
    assert operations(each, labels, noises) / (n * one) == pytest.approx(4, rel=0.1)
    assert operations(shared, labels, noises[0]) / (n * one) == pytest.approx(3 + 1 / n, rel=0.1)
    # The three statistics of the first step: s_u, H_u s_u once a noise; s_c, H_u s_D, H_c s_D and
    # H_c s_c for every condition.
    assert operations(first_step, labels, noises[:2]) / (2 * n * one) == pytest.approx(
        4 + 2 / n, rel=0.1
    )


def test_alignments_evaluate_the_later_conditional_score_alone(tiny_model):
    """1F a condition and noise beside the first step, which gives three of their four scores."""
    labels = tiny_model.encode(tiny_model.conditions)
    noises = np.random.default_rng(0).normal(size=(2, *tiny_model.shape)).astype("f")
    names = "score_difference", "guidance_alignment", "standardised_alignment"
    settings = DetectSettings(statistics=names, num_noises=2)
    columns = Columns(tiny_model, settings)
    (first, later, _), noises = settings.timesteps(tiny_model.schedule), columns.noises
    chosen = settings.chosen("noise")
    scores = np.zeros((2, len(labels), *noises.shape), "f")

    def operations(function, *arguments, **static):
        return function.lower(tiny_model, *arguments, **static).cost_analysis()["flops"]

    def evaluation(model, label, x):
        return model.scores(label, 981).conditional(x)

    one = operations(jax.jit(evaluation), labels[0], noises[0]) * 2 * len(labels)
    at = labels, noises, first, later
    how = {"statistics": chosen, "mesh": None}
    known = operations(_alignment, *at, tuple(scores), noises, **how)
    assert known / one == pytest.approx(1, rel=0.1)
    assert operations(_alignment, *at, None, None, **how) / one == pytest.approx(4, rel=0.1)
    # and what they give is what each pair gives by itself
    found, _ = columns(labels)
    pairs = lambda label: [tiny_model.scores(label, t) for t in (first, later)]
    column = next(name for name in found if name.startswith("guidance_alignment"))
    for row, label in zip(np.asarray(found[column]), labels, strict=True):
        alone = [statistics.guidance_alignment(*pairs(label), x) for x in noises]
        np.testing.assert_allclose(row, alone, rtol=1e-4, atol=1e-5)


def test_what_is_kept_holds_the_weights_once(tiny_model):
    """A tangent map holds the weights: they were kept once for each of the noises."""
    noises = np.random.default_rng(0).normal(size=(5, *tiny_model.shape)).astype("f")
    kept = jax.tree.leaves(_unconditional(tiny_model, noises, 981, mesh=None))
    kernels = {leaf.shape for leaf in jax.tree.leaves(tiny_model.unet) if leaf.ndim == 4}
    shapes = [leaf.shape for leaf in kept]
    assert kernels & set(shapes)
    assert not {(5, *kernel) for kernel in kernels} & set(shapes)


@pytest.mark.parametrize("values", [[1.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
def test_two_sizes_or_values_can_be_ranked(values):
    sizes = np.array([1, 3, 1])
    expected = scipy.stats.pearsonr(*map(scipy.stats.rankdata, (values, sizes))).statistic
    assert spearman(np.array(values), sizes)[0] == pytest.approx(expected, abs=1e-12)
    assert spearman(sizes, np.array(values))[0] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(spearman(np.array(values), np.ones(3))[0])
    assert np.isnan(spearman(np.ones(3), sizes)[0])
    assert np.isnan(spearman(np.array(values[:2]), sizes[:2])[0])


def test_covariance_of_two_areas_against_a_naive_twin():
    """DeLong's: over the conditions of a class, of one statistic's placement and another's."""
    rng = np.random.default_rng(0)
    one, other = ((rng.uniform(size=5), rng.uniform(size=7)) for _ in range(2))
    for found, a, b in zip(intervals.covariance(one, other), one, other, strict=True):
        products = [(x - a.mean()) * (y - b.mean()) for x, y in zip(a, b, strict=True)]
        assert found == pytest.approx(sum(products) / (len(a) - 1) / len(a))
