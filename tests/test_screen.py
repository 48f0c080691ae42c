"""Screened sampling in a world of closed forms, and the bound on copies that it lets through."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

import sharpjax as sj
from sharpjax.densities import LowRankMixture
from sharpjax.detection.trajectory import follow
from sharpjax.mitigation import Look, ranked, screened
from sharpjax.mitigation.copies_bound import copies_bound, miss_rate, pass_rate
from sharpjax.networks.mixture_denoiser import MixtureDenoiser

D, RANK, STEPS = 24, 6, 10
SHARES = (0.6, 0.0, 0.0, 0.0)  # of a fixed point, of each thing
NAMES = ("copied", "a", "b", "c")
KEY = jax.random.key(0)
GIVEN = {"guidance": 5.0, "num_steps": STEPS, "batch_size": 6}


@pytest.fixture(scope="module")
def world():
    """Four things, low-rank Gaussians, one of which is a fixed point six times in ten."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(4, D))
    directions = np.stack([np.linalg.qr(rng.normal(size=(D, RANK)))[0].T for _ in range(4)])
    point = means[0] + 1.2 * rng.normal(size=RANK) @ directions[0]
    mixture = LowRankMixture(
        np.full(5, 0.2),
        np.concatenate([means, point[None]]).reshape(5, D, 1, 1),
        np.concatenate([directions, np.zeros((1, RANK, D))]).reshape(5, RANK, D, 1, 1),
        np.concatenate([np.full((4, RANK), 1.44), np.zeros((1, RANK))]),
        np.full(5, 1e-4),
    )
    weights = np.pad(np.diag([1 - q for q in SHARES]), ((0, 1), (0, 1)))
    weights[0, 4] = SHARES[0]
    weights[-1] = weights[:-1].mean(axis=0)
    schedule = sj.Schedule.create(beta_schedule="scaled_linear", beta_start=85e-5, beta_end=0.012)
    unet = MixtureDenoiser(mixture, jnp.asarray(weights, jnp.float32), schedule)
    return sj.PixelDiffusion(unet, schedule, NAMES), point


def copies(found, point):
    """Which images of the first condition are copies."""
    flat = found.examples[0].reshape(-1, D)
    return np.linalg.norm(flat - point, axis=1) < 0.5


def look(**changes):
    return Look(**{"quantity": "effective_dimension", "step": 5, "num_probes": 4} | changes)


@pytest.mark.slow
def test_a_path_in_parts_is_a_path(world):
    """Looked at and free of nothing it is DDIM; its value is that of the state there."""
    model, _ = world
    condition = model.encode(["a"])
    found = ranked(model, ["a"], KEY, look=look(), num_tries=1, num_images=3, free=0.0, **GIVEN)
    for image in range(3):
        key = jax.random.fold_in(KEY, 0)
        for place in (0, image, 0):
            key = jax.random.fold_in(key, place)
        noise = jax.random.normal(key, model.shape)
        path = jax.jit(follow, static_argnames=("num_steps", "guidance"))(
            model, condition[0], noise, num_steps=STEPS, guidance=5.0
        )
        np.testing.assert_allclose(found.examples[0, image], path.states[-1], atol=1e-3)
        t = int(path.timesteps[5])
        probes = jax.random.fold_in(KEY, 1)
        for place in (0, image, 0):
            probes = jax.random.fold_in(probes, place)
        expected = sj.curvature.effective_dimension(
            model.scores(condition[0], t).conditional, path.states[5],
            sigma=model.schedule.sigma(t), key=probes, num_matvecs=4,
        )  # fmt: skip
        np.testing.assert_allclose(found.values[0][image][0][0], expected.value, rtol=0.02)


@pytest.mark.slow
def test_free_steps_follow_the_unconditional_score(world):
    model, _ = world
    condition = model.encode(["a"])[0]
    found = ranked(model, ["a"], KEY, look=look(), num_tries=1, free=1.0, **GIVEN)
    key = KEY
    for place in (0, 0, 0, 0):
        key = jax.random.fold_in(key, place)
    noise = jax.random.normal(key, model.shape)
    path = follow(model, condition, noise, num_steps=STEPS, guidance=0)
    np.testing.assert_allclose(found.examples[0, 0], path.states[-1], atol=1e-3)
    np.testing.assert_allclose(found.noise[0, 0], noise, atol=1e-6)
    assert found.evaluations[0, 0] == STEPS + 5  # and the look: one forward, four tangents


@pytest.mark.slow
def test_accepted_images_follow_the_law_of_those_that_pass(world):
    """Tries are i.i.d.: an accepted one is distributed as an unscreened one that passes."""
    model, point = world
    plain = ranked(model, ["copied"], KEY, look=look(), num_tries=1, num_images=300, **GIVEN)
    values = np.array([image[0][0] for image in plain.values[0]])
    threshold = float(np.quantile(values, 0.7))
    passes = look(threshold=threshold)
    rate, also = np.mean(values >= threshold), copies(plain, point)
    assert 0.3 < also.mean() < 0.98  # it copies, and not always
    found = screened(
        model, ["copied"], jax.random.key(1), looks=[passes], num_images=300, max_tries=6, **GIVEN
    )
    # the number of tries is geometric, cut at six
    expected = (1 - (1 - rate) ** 6) / rate
    assert found.tries.mean() == pytest.approx(expected, abs=4 * found.tries.std() / np.sqrt(300))
    assert found.accepted.mean() == pytest.approx(1 - (1 - rate) ** 6, abs=4 * 0.4 / np.sqrt(300))
    # copies among the accepted
    known = also[values >= threshold].mean()
    drawn = copies(found, point)[found.accepted[0]].mean()
    assert drawn == pytest.approx(known, abs=4 * np.sqrt(max(known, 0.02) / 90 + 0.02 / 250))
    assert drawn < also.mean() / 3
    assert np.isnan(found.examples[~found.accepted]).all()
    # one try is what passes among the same noises
    one = screened(model, ["copied"], KEY, looks=[passes], num_images=300, max_tries=1, **GIVEN)
    np.testing.assert_array_equal(one.accepted[0], values >= threshold)
    np.testing.assert_allclose(
        one.examples[0][one.accepted[0]], plain.examples[0][one.accepted[0]], atol=1e-3
    )
    np.testing.assert_allclose(one.pass_rate, [rate])


@pytest.mark.slow
def test_tries_do_not_depend_on_the_batch(world):
    model, _ = world
    given = {"looks": [look(step=3, threshold=0.5), look(threshold=2.0)], "num_images": 5}
    given |= GIVEN | {"max_tries": 3, "free": 0.3}
    one = screened(model, NAMES, KEY, **given | {"batch_size": 1})
    other = screened(model, NAMES, KEY, **given | {"batch_size": 7})
    np.testing.assert_array_equal(one.tries, other.tries)
    np.testing.assert_array_equal(one.accepted, other.accepted)
    np.testing.assert_array_equal(one.evaluations, other.evaluations)
    np.testing.assert_allclose(one.examples, other.examples, atol=1e-3)
    # of every try: what it cost, by hand (3 free steps; a look is 1 + 4)
    for row, images in enumerate(one.values):
        for image, tries in enumerate(images):
            cost = sum(3 + 5 + (2 * 2 + 5 if len(v) > 1 else 0) for v in tries)
            cost += 2 * 5 * one.accepted[row, image]
            assert one.evaluations[row, image] == cost
            assert len(tries) == one.tries[row, image]
    assert (one.tries > 1).any()
    # first tries at noises that are given
    again = screened(model, NAMES, KEY, **given, noise=np.nan_to_num(one.noise))
    assert again.accepted[one.accepted].all()
    assert (again.tries[one.accepted] == 1).all()
    np.testing.assert_allclose(again.examples[one.accepted], one.examples[one.accepted], atol=1e-3)
    # added conditions leave the others as they are
    fewer = screened(model, NAMES[:2], KEY, **given)
    np.testing.assert_array_equal(fewer.tries, one.tries[:2])


@pytest.mark.slow
def test_the_best_of_some_is_the_best_of_some(world):
    model, point = world
    given = {"look": look(), "num_images": 8, **GIVEN}
    found = ranked(model, ["copied"], KEY, num_tries=4, **given)
    single = ranked(model, ["copied"], KEY, num_tries=1, **given)
    for image, tries in enumerate(found.values[0]):
        assert len(tries) == 4
        assert tries[0] == pytest.approx(single.values[0][image][0], rel=1e-3)  # in their order
    assert found.accepted.all()
    assert copies(found, point).mean() <= copies(single, point).mean()
    assert (found.evaluations == 4 * (2 + 3 * 2 + 5) + 2 * 5).all()  # 2 free steps


def test_mistakes(world):
    model, _ = world

    def call(**changes):
        given = {"conditions": ["a"], "key": KEY, "looks": [look(threshold=1.0)]} | GIVEN | changes
        screened(model, given.pop("conditions"), given.pop("key"), **given)

    for message, changes in {
        "threshold, Look": {"looks": [look()]},
        "looks must be at least one": {"looks": []},
        "ascending order, got": {"looks": [look(threshold=1.0), look(step=3, threshold=1.0)]},
        "from 1 to 9": {"looks": [look(step=10, threshold=1.0)]},
        "max_tries must be an integer >= 1": {"max_tries": 0},
        "num_images must be an integer >= 1": {"num_images": 0},
        "free must be a share": {"free": 1.5},
        "guidance must be a finite": {"guidance": float("nan")},
        "no conditions": {"conditions": model.encode(["a"])[:0]},
        "conditions must be a list": {"conditions": "a"},
        "Noises are random": {"key": None},
        "noise must have shape": {"noise": np.zeros((2, *model.shape))},
    }.items():
        with pytest.raises(ValueError, match=message):
            call(**changes)
    with pytest.raises(ValueError, match="quantity must be one of"):
        look(quantity="sharpness")
    with pytest.raises(ValueError, match="threshold must be a finite"):
        look(threshold=float("inf"))
    assert not look(threshold=1.0).passes(float("nan"))
    assert look(quantity="score_difference", threshold=1.0).passes(0.5)
    assert dataclasses.replace(look(), threshold=1.0).evaluations == 5


# --- the bound -----------------------------------------------------------------------------------


def test_a_miss_rate_of_none_is_known_as_well_as_its_prompts():
    """Nothing missed of N prompts: m is refuted where (1 - m)^N is below alpha, but for a mixture.

    The limit lies between that and what half of the capital refutes alone.
    """
    for count in (5, 30, 200):
        found = miss_rate(np.zeros(count), np.full(count, 8))
        assert found.value == 0
        least, most = 1 - 0.025 ** (1 / count), 1 - 0.0125 ** (1 / count)
        assert least < found.upper <= most + 1e-9
    # prompts without copies say nothing
    assert miss_rate(np.array([0, 0, 0]), np.array([4, 4, 0])).prompts == 2
    assert miss_rate(np.array([4, 4]), np.array([4, 4])).upper == 1.0


def test_limits_hold_for_prompts_whose_images_are_alike():
    """Five hundred draws of thirty prompts with miss rates of their own, 5% on average."""
    rng = np.random.default_rng(0)
    below = 0
    for _ in range(500):
        passed = rng.binomial(8, rng.beta(0.05, 0.95, 30))
        below += miss_rate(passed, np.full(30, 8)).upper < 0.05
    assert below <= binom.ppf(0.999, 500, 0.025)


def test_pass_rates_are_exact():
    found = pass_rate(3, 10)
    assert binom.sf(2, 10, found.low) == pytest.approx(0.025)
    assert binom.cdf(3, 10, found.high) == pytest.approx(0.025)
    assert (pass_rate(0, 4).low, pass_rate(4, 4).high) == (0, 1)
    # tries until a pass: the lower limit holds there too
    rng, above = np.random.default_rng(0), 0
    for _ in range(4000):
        tries = rng.geometric(0.3, 4)
        above += pass_rate(4, int(tries.sum())).low > 0.3
    assert above <= binom.ppf(0.999, 4000, 0.025)


def test_a_bound_is_never_more_than_one():
    missed = miss_rate(np.zeros(30), np.full(30, 8))
    assert copies_bound(missed, pass_rate(0, 16)) == 1
    assert copies_bound(missed, pass_rate(1, 16)) == 1
    rates = pass_rate(14, 16)
    assert copies_bound(missed, rates) == pytest.approx(missed.upper / rates.low)
    for call, message in (
        (lambda: miss_rate(np.zeros(3), np.array([4, 0, 0])), "at least 2 prompts with copies"),
        (lambda: miss_rate(np.ones(2) * 5, np.ones(2)), "between 0 and the number"),
        (lambda: miss_rate(np.zeros(2), np.zeros(3)), "equally long vectors"),
        (lambda: miss_rate(np.array([0.5, 1]), np.full(2, 8)), "must be whole numbers"),
        (lambda: miss_rate(np.array([np.nan, 1]), np.full(2, 8)), "must be whole numbers"),
        (lambda: miss_rate(np.zeros(2), np.full(2, 8), alpha=2), "alpha must lie between 0 and 1"),
        (lambda: pass_rate(1.5, 4), "must be a whole number"),
        (lambda: pass_rate(1, 4, alpha=0), "alpha must lie between 0 and 1"),
        (lambda: pass_rate(3, 2), "between 0 and tries"),
        (lambda: pass_rate(0, 0), "tries >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
