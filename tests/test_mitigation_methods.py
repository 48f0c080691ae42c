"""Each method of mitigation on a tiny Stable Diffusion model, against what it says it does."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.mitigation import METHODS, Levels, Problem, calibrate, treat
from sharpjax.mitigation.baselines import GAMMA, RHO
from sharpjax.mitigation.methods import losses_of
from sharpjax.mitigation.sail_official import official_loss
from sharpjax.mitigation.sharpness import exact
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.runs.mitigate import MitigationSettings, _of_sampling, _score_differences
from sharpjax.schedules import Schedule
from sharpjax.score import ScorePair

pytestmark = pytest.mark.quick

LEVELS = Levels(
    {name: np.array([1e-9, 1e-9]) for name in ("score_difference", "sail_official", "exact")}
)


@pytest.fixture(scope="module")
def model(stable_diffusion_directory):
    return LatentDiffusion.from_pretrained(stable_diffusion_directory)


@pytest.fixture(scope="module")
def problem(model):
    noise = jax.random.normal(jax.random.key(1), (2, *model.shape))
    return Problem(
        model, "cat dog", noise, jax.random.key(2), 3.0, 10, LEVELS, model.tokenizer, 3
    )  # fmt: skip


@pytest.fixture(scope="module")
def small_problem(tiny_model):
    """Of a network that compiles in seconds."""
    noise = jax.random.normal(jax.random.key(1), (2, *tiny_model.shape))
    return Problem(tiny_model, "1 x3", noise, jax.random.key(2), 3.0, 10, LEVELS, None, 3)


def test_none_changes_nothing(problem, model):
    found = treat("none", problem, 0.0)
    np.testing.assert_array_equal(found.noise, problem.noise)
    np.testing.assert_array_equal(found.context[1], model.encode(["cat dog"])[0])
    assert found.guidance == 3.0
    assert found.evaluations.tolist() == [0, 0]


def with_usual(problem, value):
    """Clean prompts of this effective dimension."""
    levels = Levels(LEVELS.values | {"effective_dimension": np.full(40, value)})
    return dataclasses.replace(problem, levels=levels)


@pytest.mark.slow
def test_a_screen_that_all_pass_changes_only_the_guidance(problem):
    found = treat("screened", with_usual(problem, -1e9), 0.1)
    np.testing.assert_array_equal(found.noise, problem.noise)
    assert found.guidance.tolist() == [0.0] * 2 + [3.0] * 8
    assert found.refused.tolist() == [False, False]
    assert [(d["tries"], d["passed"]) for d in found.details] == [(1, True)] * 2
    assert found.evaluations.tolist() == [2 + 3 * 2 + 9] * 2  # and the look of 1 + 8


@pytest.mark.slow
def test_a_screen_that_none_passes_refuses(problem):
    found = treat("screened", with_usual(problem, 1e9), 0.1)
    assert found.refused.tolist() == [True, True]
    assert [(d["tries"], d["passed"]) for d in found.details] == [(16, False)] * 2
    assert np.isfinite(found.noise).all()


@pytest.mark.slow
def test_the_best_of_several_noises(problem):
    found = treat("ranked", problem, 3)
    assert not found.refused.any()
    assert [d["tries"] for d in found.details] == [3, 3]
    assert found.evaluations.tolist() == [3 * (2 + 3 * 2 + 9)] * 2
    again = treat("ranked", problem, 1)
    np.testing.assert_array_equal(again.noise, problem.noise)


def test_part_of_the_padding_is_blank(problem, model):
    found = treat("padding", problem, 0.7)
    taken, length = model.tokenizer.num_tokens("cat dog"), model.tokenizer.length
    blank = round(0.7 * (length - taken))
    plain = np.asarray(problem.context)
    assert 0 < blank < length - taken
    assert (plain != 0).any(axis=1).all()
    for context in np.asarray(found.context):
        assert (context[taken : taken + blank] == 0).all()
        np.testing.assert_array_equal(context[:taken], plain[:taken])
        np.testing.assert_array_equal(context[taken + blank :], plain[taken + blank :])
    assert found.details == [{"zeroed": blank}] * 2
    assert found.evaluations.tolist() == [0, 0]
    full = dataclasses.replace(problem, prompt="a " * (length + 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert treat("padding", full, 0.7).details == [{"zeroed": 0}] * 2


def test_what_the_attention_becomes(problem, model):
    taken, length = model.tokenizer.num_tokens("cat dog"), model.tokenizer.length
    found = treat("cross_attention", problem, 1.25)
    np.testing.assert_array_equal(found.attention.seen[1], np.arange(length) < taken)
    np.testing.assert_array_equal(found.attention.scale[1], [1.25] + [1.0] * (length - 1))
    assert np.isinf(found.attention.spike_threshold).all()
    assert found.repulsion == 0.0
    found = treat("guard", problem, 2.0)
    assert found.attention.seen.all()
    assert (found.attention.scale == 1).all()
    np.testing.assert_allclose(found.attention.spike_scale, 0.3)
    np.testing.assert_allclose(found.attention.spike_threshold, 0.1)
    np.testing.assert_allclose(found.repulsion, 2 * np.cos(np.pi * np.arange(10) / 20))
    settings = MitigationSettings(num_steps=10)
    assert _of_sampling(found, settings).tolist() == [30, 30]


def test_methods_for_other_models_are_refused_by_name(small_problem):
    for name in ("guard", "cross_attention", "padding", "prompt_embedding"):
        with pytest.raises(ValueError, match=f"{name} is for .*PixelDiffusion; choose of screened"):
            treat(name, small_problem, METHODS[name].default)


def test_guidance(problem):
    assert treat("lower_guidance", problem, 2.0).guidance == 1.5
    late = treat("delayed_guidance", problem, 0.3).guidance
    np.testing.assert_array_equal(late, [0, 0, 0] + 7 * [3.0])
    with pytest.raises(ValueError, match="must be a number between 0 and 1"):
        treat("delayed_guidance", problem, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lines:
    """A model whose scores are plain functions: -x, and of a prompt of k letters -(1 + k) x."""

    schedule: Schedule

    def encode(self, prompts):
        return jnp.array([[float(len(prompt))] for prompt in prompts])

    def scores(self, context, t):
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return ScorePair(lambda x: -x, lambda x: -(1 + context[0]) * x, alpha, sigma)


@pytest.mark.parametrize("name", ["sail", "noise_batch"])
def test_scores_may_be_plain_functions(name):
    """And the level is the first with a signal: at alpha = 0 nothing would be left to lower."""
    schedule = Schedule.create(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    noise = jax.random.normal(jax.random.key(1), (2, 6))
    levels = Levels({n: np.array([1e-9, 1e-9]) for n in ("score_difference", "exact")})
    problem = Problem(Lines(schedule), "cat", noise, jax.random.key(2), 3.0, 50, levels, None, 5)
    assert problem.t == 979
    found = treat(name, problem, 0.3 if name == "noise_batch" else 4)
    length = jax.vmap(lambda x: jnp.linalg.norm(problem.pair.difference(x)))
    assert np.mean(length(found.noise)) < 0.97 * np.mean(length(noise))


@pytest.mark.slow
def test_noise_batch_is_two_steps_against_the_growth(small_problem):
    found = treat("noise_batch", small_problem, 0.2)
    pair, x = small_problem.pair, small_problem.noise[0]
    noise_difference = jax.jit(lambda pair, x: -pair.sigma * pair.difference(x))
    for _ in range(2):
        here = noise_difference(pair, x)
        rho = RHO * np.sqrt(x.size)
        there = noise_difference(pair, x + rho * here / jnp.linalg.norm(here))
        x = x - GAMMA * (there - here)
    np.testing.assert_allclose(found.noise[0], x, rtol=1e-3, atol=1e-5)
    assert np.abs(x - small_problem.noise[0]).max() > 1e-3
    assert found.evaluations.tolist() == [8, 8]
    np.testing.assert_array_equal(found.guidance, [0, 0] + 8 * [3.0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prompt_embedding", "sail"])
def test_descents_go_down(problem, name):
    found = treat(name, problem, 1.0)
    for one in found.details:
        assert one["after"] < one["before"]
        assert (one["steps"], one["outcome"]) == (3, "budget")
    assert (found.evaluations > 0).all()
    changed = not np.allclose(found.noise, problem.noise)
    assert changed == (name != "prompt_embedding")


def test_where_and_what_it_costs(small_problem):
    """At the first timestep; a step of sampling asks both scores, or one where the other has 0."""
    steps = small_problem.model.schedule.timesteps(10)
    assert small_problem.t == steps[0] > steps[1]
    np.testing.assert_allclose(
        small_problem.pair.sigma, small_problem.model.schedule.sigma(steps[0]), rtol=1e-6
    )
    settings = MitigationSettings(num_steps=10)
    of = treat("none", small_problem, 0.0)
    for guidance, passes in (
        (3.0, [20, 20]), (1.0, [10, 10]), (0.0, [10, 10]), (np.r_[[0.0] * 3, [3.0] * 7], [17, 17]),
        (np.array([[0.0] * 9 + [3.0], [-1.0] * 10]), [11, 20]),
    ):  # fmt: skip
        changed = dataclasses.replace(of, guidance=guidance)
        assert _of_sampling(changed, settings).tolist() == passes


def test_the_losses_that_methods_need_values_of():
    assert losses_of(["none", "sail", "padding", "prompt_embedding"]) == (
        "exact", "score_difference",
    )  # fmt: skip


def test_settings():
    assert MitigationSettings(max_steps=0, num_images=1, num_steps=1).max_steps == 0
    for name, least in (("max_steps", 0), ("num_images", 1), ("num_steps", 1)):
        with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
            MitigationSettings(**{name: least - 1})
    with pytest.raises(ValueError, match="guidance must be a finite number, got inf"):
        MitigationSettings(guidance=float("inf"))


@pytest.mark.slow
def test_the_penalty_keeps_the_noise_short(small_problem):
    """A share of what is usual: at the start, of a usual length, it adds so much to the loss."""
    values = jax.vmap(lambda x: exact(small_problem.pair, x))(small_problem.noise)
    usual = Levels({"exact": np.full(2, float(np.median(values)))})
    lengths = {}
    for penalty in (0.0, 10.0):
        problem = dataclasses.replace(
            small_problem, levels=usual, max_steps=20, penalty=penalty, num_steps=10
        )
        found = treat("sail", problem, 1e-6)
        lengths[penalty] = np.linalg.norm(np.asarray(found.noise).reshape(2, -1), axis=1)
    assert (lengths[10.0] < 0.98 * lengths[0.0]).all()


@pytest.mark.slow
def test_the_public_sail_of_a_problem(small_problem):
    """The problem's noises are the first candidates, and it is their number that is drawn."""
    losses = jax.vmap(lambda x: official_loss("epsilon", 0.05)(small_problem.pair, x, x)[0])
    start = np.asarray(losses(small_problem.noise))
    levels = Levels({"sail_official": np.full(2, 2 * start.max())})
    found = treat("sail_official", dataclasses.replace(small_problem, levels=levels), 1.0)
    np.testing.assert_array_equal(found.noise, small_problem.noise)  # low enough as they are
    assert [d["steps"] for d in found.details] == [0, 0]
    np.testing.assert_allclose([d["before"] for d in found.details], start, rtol=1e-4)
    assert found.evaluations.tolist() == [48.0, 48.0]  # eight candidates once, for two images
    assert len(METHODS) <= 12


def test_unknown_names_and_strengths(problem):
    with pytest.raises(ValueError, match=r"of dynamic_guidance must be a number >= 0 .*-1\.0"):
        treat("dynamic_guidance", problem, -1.0)
    with pytest.raises(ValueError, match="unknown method 'prayer'; choose one of none, screened"):
        treat("prayer", problem, 1.0)
    with pytest.raises(
        ValueError, match=r"strength of sail must be a positive number .*, got -1\.0"
    ):
        treat("sail", problem, -1.0)
    for method in METHODS.values():  # from the weakest: a threshold falls, all else grows
        falls = method.meaning.startswith("threshold")
        assert list(method.strengths) == sorted(method.strengths, reverse=falls)


@pytest.mark.slow
def test_calibration_of_a_model(model):
    key, names = jax.random.key(0), ["cat", "dog", " ", "a cat", "", "cat"]
    levels = calibrate(model, names, key, names=("score_difference",))
    found = levels.values["score_difference"]
    assert found.shape == (3,)  # repeated prompts count once, blank ones not
    x = jax.random.normal(jax.random.fold_in(key, 2), model.shape)
    length = jax.jit(lambda pair, x: jnp.linalg.norm(pair.difference(x)))
    np.testing.assert_allclose(found[2], length(model.scores("a cat", 981), x), rtol=1e-4)
    with pytest.raises(ValueError, match="calibrate takes a list of prompts"):
        calibrate(model, "cat", key)
    with pytest.raises(ValueError, match="at least two clean prompts, got 1"):
        calibrate(model, names[:1], key)
    with pytest.raises(ValueError, match="unknown loss 'sharp'; choose of exact, finite"):
        calibrate(model, names, key, names=("sharp",))


@pytest.mark.slow
def test_lengths_before_and_after_are_of_each_noise_under_its_own_condition(small_problem):
    other = dataclasses.replace(small_problem, prompt="0 x1", noise=-small_problem.noise)
    treatments = [treat("none", one, 0.0) for one in (small_problem, other)]
    settings = MitigationSettings(num_steps=small_problem.num_steps)
    found = _score_differences(small_problem.model, treatments, settings, None)
    pairs = [one.pair for one in (small_problem, other)]
    length = jax.jit(lambda pair, x: jnp.linalg.norm(pair.difference(x)))
    expected = [length(pair, x) for pair, one in zip(pairs, treatments, strict=True)
                for x in one.noise]  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-4)
