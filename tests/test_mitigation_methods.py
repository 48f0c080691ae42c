"""Each method of mitigation on a tiny Stable Diffusion model, against what it says it does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.detection.statistics import hessian_score_difference
from sharpjax.mitigation import METHODS, Levels, MitigationSettings, Problem, calibrate, treat
from sharpjax.mitigation.baselines import GAMMA, RHO, _chunks
from sharpjax.mitigation.methods import losses_of
from sharpjax.mitigation.perturbation import add_random
from sharpjax.mitigation.run import _of_sampling, _score_differences
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.schedules import Schedule
from sharpjax.score import ScorePair

LEVELS = Levels(
    {name: np.array([1e-9, 1e-9]) for name in ("score_difference", "official", "exact")}
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


@pytest.mark.parametrize("what", ["tokens", "words"])
def test_random_additions(model, what):
    vocabulary = model.tokenizer
    choices = vocabulary.pieces() if what == "tokens" else ["cat", "dog"]
    changed = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        words = _Words(vocabulary) if what == "words" else vocabulary
        text = add_random("x y", 2, rng, words, what=what).split()
        rest = list(text)
        rest.remove("x")
        rest.remove("y")
        assert text.index("x") < len(text) - 1 - text[::-1].index("y")
        assert len(rest) == 2
        assert set(rest) <= set(choices)
        changed.append(" ".join(text))
    assert len(set(changed)) > 5
    assert add_random("x y", 0, rng, words, what=what) == "x y"


class _Words:
    """The tiny vocabulary has no whole word of three letters."""

    def __init__(self, tokenizer):
        self.length, self.num_tokens = tokenizer.length, tokenizer.num_tokens

    def words(self):
        return ["cat", "dog"]


def test_no_room_for_more(model):
    length = model.tokenizer.length
    with pytest.raises(ValueError, match=rf"no room for {length} random tokens: with them it"):
        add_random("cat", length, np.random.default_rng(0), model.tokenizer, what="tokens")
    full = "a " * (length - 2)
    assert model.tokenizer.num_tokens(full) == length
    with pytest.raises(ValueError, match="no room for 1 random tokens"):
        add_random(full, 1, np.random.default_rng(0), model.tokenizer, what="tokens")
    with pytest.raises(ValueError, match="must be at least 0, got -1"):
        add_random("cat", -1, np.random.default_rng(0), model.tokenizer, what="tokens")


def test_the_bundled_vocabulary_has_words():
    from sharpjax import zoo
    from sharpjax.models.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(zoo.find("openmoji"), "tokenizer")
    words = tokenizer.words()
    assert "crutch" in words
    assert all(tokenizer.num_tokens(word) == 3 for word in words[::50])
    assert set(words) <= set(tokenizer.pieces())
    assert tokenizer.num_tokens("crutch " * 40) == 42


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


@pytest.mark.parametrize("name", ["sail", "noise_gradient", "noise_batch", "best_of"])
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
def test_best_of_takes_the_flattest(problem):
    found = treat("best_of", problem, 3)
    x = problem.noise[1]
    fresh = jax.random.normal(jax.random.fold_in(problem.key, 1), (2, *x.shape))
    candidates = jnp.concatenate([x[None], fresh])
    statistic = jax.jit(hessian_score_difference)
    values = [float(statistic(problem.pair, y)) for y in candidates]
    np.testing.assert_allclose(found.noise[1], candidates[int(np.argmin(values))], rtol=1e-6)
    assert found.details[1]["before"] == pytest.approx(values[0], rel=1e-3)
    assert found.evaluations.tolist() == [12, 12]
    with pytest.raises(ValueError, match=r"must be a whole number of at least 1 .*, got 2\.5"):
        treat("best_of", problem, 2.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prompt_embedding", "sail"])
def test_descents_go_down(problem, name):
    levels = Levels({n: np.array([1e-9, 1e-9]) for n in ("score_difference", "official", "exact")})
    found = treat(name, Problem(**(vars(problem) | {"levels": levels})), 1.0)
    for one in found.details:
        assert one["after"] < one["before"]
        assert (one["steps"], one["outcome"]) == (3, "budget")
    assert (found.evaluations > 0).all()
    changed = not np.allclose(found.noise, problem.noise)
    assert changed == (name != "prompt_embedding")


def test_best_of_says_what_it_chose_by(small_problem):
    found = treat("best_of", small_problem, 3)
    statistic = jax.jit(hessian_score_difference)
    for i, x in enumerate(small_problem.noise):
        fresh = jax.random.normal(jax.random.fold_in(small_problem.key, i), (2, *x.shape))
        candidates = jnp.concatenate([x[None], fresh])
        values = [float(statistic(small_problem.pair, y)) for y in candidates]
        np.testing.assert_array_equal(found.noise[i], candidates[int(np.argmin(values))])
        assert found.details[i]["before"] == pytest.approx(values[0], rel=1e-3)
        assert found.details[i]["after"] == pytest.approx(min(values), rel=1e-3)


def test_where_and_what_it_costs(small_problem):
    """At the first timestep; a step of sampling asks both scores, or one where the other has 0."""
    steps = small_problem.model.schedule.timesteps(10)
    assert small_problem.t == steps[0] > steps[1]
    np.testing.assert_allclose(
        small_problem.pair.sigma, small_problem.model.schedule.sigma(steps[0]), rtol=1e-6
    )
    settings = MitigationSettings(num_steps=10)
    for guidance, passes in ((3.0, 20), (1.0, 10), (0.0, 10), (np.r_[[0.0] * 3, [3.0] * 7], 17)):
        assert _of_sampling(guidance, settings) == passes


@pytest.mark.parametrize(("number", "batches"), [(8, 1), (10, 2), (1, 1)])
def test_batches_are_of_one_size(number, batches):
    points = jnp.arange(2.0 * number).reshape(number, 2)
    found = _chunks(points)
    assert [part.shape for part in found] == [(8, 2)] * batches
    whole = np.concatenate(found)
    np.testing.assert_array_equal(whole[:number], points)
    np.testing.assert_array_equal(whole[number:], points[-1:].repeat(len(whole) - number, axis=0))


@pytest.mark.parametrize(
    ("name", "kept"),
    [("sail_official", False), pytest.param("sail_on_sphere", True, marks=pytest.mark.slow)],
)
def test_only_one_of_the_descents_keeps_the_length(small_problem, name, kept):
    """The others are plain Adam, as in the public code."""
    before, after = (
        np.linalg.norm(noise.reshape(2, -1), axis=1)
        for noise in (small_problem.noise, treat(name, small_problem, 1.0).noise)
    )
    change = np.abs(after / before - 1)
    assert (change < 1e-5).all() if kept else (change > 1e-3).all()


def test_the_losses_that_methods_need_values_of():
    assert losses_of(["none", "sail", "best_of", "sail_on_sphere", "noise_gradient"]) == (
        "exact", "score_difference",
    )  # fmt: skip


def test_settings():
    assert MitigationSettings(max_steps=0, num_images=1, num_steps=1).max_steps == 0
    for name, least in (("max_steps", 0), ("num_images", 1), ("num_steps", 1)):
        with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
            MitigationSettings(**{name: least - 1})
    with pytest.raises(ValueError, match="guidance must be a finite number, got inf"):
        MitigationSettings(guidance=float("inf"))


def test_unknown_names_and_strengths(problem):
    with pytest.raises(ValueError, match="unknown method 'prayer'; choose one of none, sail"):
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
    with pytest.raises(ValueError, match="unknown form 'sharp'"):
        calibrate(model, names, key, names=("sharp",))


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
