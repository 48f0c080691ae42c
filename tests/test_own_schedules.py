"""Schedules other than the training grid: levels of diffusers, and the same Gaussian under all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from jax.tree_util import Partial

import sharpjax as sj
from sharpjax import curvature
from sharpjax.detection.statistics import STATISTICS
from sharpjax.sampling import sample
from sharpjax.schedules import FlowSchedule, KarrasSchedule, OwnSchedule, Schedule
from sharpjax.score import score_from_prediction

D = 6
COSINE = OwnSchedule(
    alpha_of=lambda t: jnp.cos(t * jnp.pi / 2),
    sigma_of=lambda t: jnp.sin(t * jnp.pi / 2),
    times_of=lambda n: np.linspace(0.999, 0.001, n),
)
# each with the time at which sigma/alpha is 0.75
SCHEDULES = {
    "flow": (FlowSchedule(), 1000 * 0.75 / 1.75),
    "karras": (KarrasSchedule(), float(np.log(0.75) / 4)),
    "cosine": (COSINE, float(np.arctan(0.75) * 2 / np.pi)),
}


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_flow_grid_is_that_of_diffusers(shift, steps):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    ours = FlowSchedule.from_config(dict(theirs.config), "here")
    grid, alphas, sigmas = ours.levels(steps)
    np.testing.assert_allclose(grid, theirs.timesteps, rtol=1e-6)
    np.testing.assert_allclose(sigmas, theirs.sigmas, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(alphas + sigmas, 1, atol=1e-6)
    assert ours.is_pure_noise(grid[0])
    if steps > 1:
        assert ours.timesteps_with_signal(steps).tolist() == grid[1:].tolist()
    else:
        with pytest.raises(ValueError, match="alpha = 0 and the score difference is 0"):
            ours.timesteps_with_signal(steps)
    again = FlowMatchEulerDiscreteScheduler.from_config(ours.to_config())
    again.set_timesteps(steps)
    np.testing.assert_array_equal(again.sigmas, theirs.sigmas)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting must be off, got True"),
        ({"shift_terminal": 0.02}, "shift_terminal must be off, got 0.02"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas must be off"),
        ({"shift": 0}, "shift must be positive, got 0"),
        ({"shift": "3"}, "shift must be a number, got '3'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be from 1 to 100000, got 0"),
        ({"num_train_timesteps": 1.5}, "num_train_timesteps must be an integer"),
        ({"beta_start": 0.1}, "unknown key 'beta_start'"),
    ],
)
def test_flow_configurations_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FlowSchedule.from_config(changes, "here")


def test_karras_levels_are_those_of_diffusers():
    theirs = EDMEulerScheduler()
    theirs.set_timesteps(7)
    ours = KarrasSchedule()
    grid, alphas, sigmas = ours.levels(7)
    np.testing.assert_allclose(sigmas, theirs.sigmas, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(grid, theirs.timesteps, rtol=1e-5)
    assert (np.asarray(alphas) == 1).all()
    assert ours.first_sigma == 80
    x = torch.randn((2, 3), generator=torch.Generator().manual_seed(0))
    t = theirs.timesteps[3]
    theirs.is_scale_input_called = True
    scaled = theirs.precondition_inputs(x, theirs.sigmas[3])
    expected = theirs.precondition_outputs(x, torch.tanh(scaled), theirs.sigmas[3])
    found = ours.preconditioned(lambda y, _: jnp.tanh(y), jnp.asarray(x.numpy()), float(t))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_that_are_none(name):
    schedule, _ = SCHEDULES[name]
    for t in (float("nan"), "0.5", -11.0) if name == "karras" else (float("nan"), "0.5", 0.0):
        with pytest.raises((ValueError, TypeError)):
            schedule.alpha(t)
    for steps in (0, 1.5, 10**7):
        with pytest.raises(ValueError, match="num_steps must lie in"):
            schedule.timesteps(steps)


def test_own_schedules_that_are_none():
    with pytest.raises(ValueError, match="alpha_of must be a function"):
        OwnSchedule(alpha_of=0.5, sigma_of=lambda t: t, times_of=lambda n: np.ones(n))
    wrong = OwnSchedule(
        alpha_of=lambda t: 1 - t, sigma_of=lambda t: t, times_of=lambda n: np.ones(n + 1)
    )
    with pytest.raises(ValueError, match=r"times_of\(3\) must be 3 times, got \(4,\)"):
        wrong.timesteps(3)
    silent = OwnSchedule(
        alpha_of=lambda t: 1 - t, sigma_of=lambda t: t, times_of=lambda n: np.linspace(1, 0, n)
    )
    with pytest.raises(ValueError, match="sigma must be finite and > 0, got 0"):
        silent.timesteps(3)
    for first in (0, -1.0, float("inf"), "a"):
        with pytest.raises(ValueError, match="first_sigma must be a finite number > 0"):
            dataclasses.replace(silent, first_sigma=first)


@pytest.mark.parametrize("times", [np.linspace(0.01, 0.99, 3), np.full(3, 0.5), [0.9, 0.1, 0.5]])
def test_times_go_from_noise_to_image(times):
    """Others gave samples of another spread, without a word."""
    other = dataclasses.replace(COSINE, times_of=lambda n: times)
    with pytest.raises(ValueError, match="must go from noise to image: alpha / sigma must grow"):
        other.timesteps(3)


def gaussians():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, D, D))
    means = rng.standard_normal((2, D))
    return [
        sj.Gaussian(jnp.asarray(mean), jnp.asarray(m @ m.T / D + 0.1 * np.eye(D)))
        for mean, m in zip(means, (a, b), strict=True)
    ]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_same_gaussian_under_all(name):
    """At one sigma/alpha, and at the point that is the same clean image blurred, K is the same.

    `x = alpha y`: scores are 1/alpha, Hessians 1/alpha^2 of those at alpha = 1.
    """
    schedule, t = SCHEDULES[name]
    unconditional, conditional = gaussians()
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    assert sigma / alpha == pytest.approx(0.75, rel=1e-6)
    y = jnp.asarray(np.random.default_rng(1).standard_normal(D))
    pairs = []
    for a, s in ((alpha, sigma), (1.0, sigma / alpha)):
        scores = [Partial(p.noised(a, s).score) for p in (unconditional, conditional)]
        pairs.append(sj.ScorePair(*scores, alpha=a, sigma=s))
    here, plain = pairs
    x = alpha * y
    np.testing.assert_allclose(alpha * here.both(x), plain.both(y), rtol=1e-6)
    dimension = [
        curvature.effective_dimension(pair.conditional, at, sigma=pair.sigma, method="exact").value
        for pair, at in ((here, x), (plain, y))
    ]
    np.testing.assert_allclose(*dimension, rtol=1e-6)
    # every statistic of the first step, by its units: powers of 1/sigma
    for statistic, power in (
        ("score_difference", 1), ("hessian_score_difference", 3), ("hessian_score", 3),
    ):  # fmt: skip
        function = STATISTICS[statistic].function
        np.testing.assert_allclose(
            alpha**power * function(here, x), function(plain, y), rtol=1e-5, err_msg=statistic
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SCHEDULES)
def test_sampling_under_all(name):
    """Whatever a network predicts, many steps lead noise to the Gaussian: here to its transport.

    The flow of a Gaussian is affine: along an eigenvector of variance v, a point ends at
    mean + sqrt(v) z for the noise z, if it begins where alpha is nothing beside sigma.
    """
    schedule, _ = SCHEDULES[name]
    p = gaussians()[0]
    values, vectors = np.linalg.eigh(np.asarray(p.covariance))
    z = np.random.default_rng(2).standard_normal(D)
    z = z / max(1, np.linalg.norm(z))

    def predict(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        score = p.noised(alpha, sigma).score(x)
        clean = (x + sigma**2 * score) / alpha
        return clean

    grid = schedule.timesteps(2000)[1:]  # the first may be pure noise
    start = float(schedule.sigma(grid[0])) * jnp.asarray(z) + float(schedule.alpha(grid[0])) * (
        p.mean
    )
    found = sample(predict, start, schedule, timesteps=jnp.asarray(grid), prediction_type="sample")
    expected = np.asarray(p.mean) + vectors @ (np.sqrt(values) * (vectors.T @ z))
    last = float(schedule.alpha(grid[-1]))
    np.testing.assert_allclose(np.asarray(found) / last, expected, atol=2e-2)


def test_a_flow_prediction_is_a_score_under_the_flow():
    schedule, p = FlowSchedule(), gaussians()[0]
    x, t = jnp.ones(D, jnp.float32), 400.0
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    score = p.noised(alpha, sigma).score(x)
    velocity = -(sigma * (alpha + sigma) * score + x) / alpha
    found = score_from_prediction(
        velocity, x, alpha=alpha, sigma=sigma, prediction_type="flow_prediction"
    )
    np.testing.assert_allclose(found, score, rtol=1e-4, atol=1e-5)


def test_schedules_cross_jit():
    """As arguments, without a recompilation for another time."""
    count = []

    @jax.jit
    def level(schedule, t):
        count.append(None)
        return schedule.alpha(t), schedule.sigma(t)

    for schedule, t in [*SCHEDULES.values(), (Schedule.create(), 400)]:
        count.clear()
        for at in (t, 2 * t if isinstance(t, int) else 0.9 * t):
            found = level(schedule, at)
            np.testing.assert_allclose(found, (schedule.alpha(at), schedule.sigma(at)), rtol=1e-6)
        assert len(count) == 1
