"""DDIM and ancestral sampling: against PyTorch's loops, and against exact Gaussian moments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from sharpjax.sampling import sample
from sharpjax.schedules import Schedule
from sharpjax.score import score_from_prediction

STABLE_DIFFUSION = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
SHAPE = (3, 4)


def prediction(numpy, x, t):
    """An analytic, nonlinear prediction written once for both libraries."""
    return 0.9 * numpy.tanh(1.3 * x) + 0.3 * numpy.sin(x + 0.002 * t)


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize(
    ("eta", "spacing", "kind"),
    [
        (0.0, "leading", "epsilon"),
        (1.0, "leading", "epsilon"),
        (0.3, "leading", "epsilon"),
        (0.0, "trailing", "epsilon"),
        (0.0, "leading", "v_prediction"),
        (1.0, "trailing", "sample"),
    ],
)
def test_matches_diffusers(eta, spacing, kind, to_one):
    settings = STABLE_DIFFUSION | dict(
        set_alpha_to_one=to_one, steps_offset=1, timestep_spacing=spacing, prediction_type=kind
    )
    num_steps, key = 25, jax.random.key(3)
    theirs = DDIMScheduler(**settings, clip_sample=False)
    ours = Schedule.from_config(theirs.config)
    x_T = draw(SHAPE)

    theirs.set_timesteps(num_steps)
    x, states = torch.tensor(x_T), [x_T]
    for t, step_key in zip(theirs.timesteps, jax.random.split(key, num_steps), strict=True):
        noise = torch.tensor(np.asarray(jax.random.normal(step_key, SHAPE)))
        options = dict(eta=eta, variance_noise=noise) if eta else {}
        x = theirs.step(prediction(torch, x, t), int(t), x, **options).prev_sample
        states.append(x.numpy())

    def score_at(x, t):
        return score_from_prediction(
            prediction(jnp, x, t), x, alpha=ours.alpha(t), sigma=ours.sigma(t), prediction_type=kind
        )

    run = functools.partial(
        sample, x_T=jnp.asarray(x_T), schedule=ours, num_steps=num_steps, eta=eta, key=key,
        trajectory=True,
    )  # fmt: skip
    found = run(score_at)
    direct = run(functools.partial(prediction, jnp), prediction_type=kind)
    # Their alpha_bar is a float32 product of up to 1,000 factors (relative 1e-5), and both divide
    # by alpha >= 0.07 on the first steps: 1e-5 / 0.07 on numbers of order one.
    np.testing.assert_allclose(found, states, atol=2e-4, rtol=2e-4)
    np.testing.assert_allclose(direct, states, atol=2e-4, rtol=2e-4)
    assert np.abs(states[-1] - x_T).max() > 0.1  # the comparison is of something that moved


@pytest.mark.parametrize("level", [(0.5, 0.5), (0.6, 0.8)])
def test_ancestral_noise_is_what_the_clean_example_leaves_open(level):
    """`Var(x' | x, x0)` by Gaussian conditioning, with and without preserved variance.

    `x = r x' + ...` with `r = alpha/alpha'`, so `Cov(x', x) = r sigma'^2`.
    """
    (alpha, sigma), (a, s) = level, (0.8, 0.2 if level == (0.5, 0.5) else 0.6)
    schedule = Schedule(alphas=[a, alpha], sigmas=[s, sigma])
    expected = s**2 - (alpha / a * s**2) ** 2 / sigma**2
    n = 20_000
    ends = sample(
        lambda x, t: jnp.ones_like(x), jnp.ones(n), schedule, timesteps=np.array([1, 0]), eta=1.0,
        key=jax.random.key(0), prediction_type="epsilon",
    )  # fmt: skip
    # the variance of n draws has the relative standard error sqrt(2/n)
    assert np.var(np.asarray(ends, np.float64)) == pytest.approx(expected, rel=4 * (2 / n) ** 0.5)
    mean = a * (1 - sigma) / alpha + np.sqrt(s**2 - expected)
    assert np.mean(ends) == pytest.approx(mean, abs=4 * np.sqrt(expected / n))


@pytest.mark.parametrize("kind", ["score", "epsilon"])
@pytest.mark.parametrize("options", [{"num_steps": 2}, {"timesteps": np.array([1, 0])}])
def test_a_score_does_not_lead_out_of_pure_noise(kind, options):
    flow = Schedule(alphas=[0.5, 0.0], sigmas=[0.5, 1.0], steps_offset=0)
    with pytest.raises(ValueError, match=f"by {kind} cannot start at t=1: alpha = 0 there"):
        jax.jit(
            lambda flow: sample(lambda x, t: x, jnp.ones(3), flow, prediction_type=kind, **options)
        )(flow)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_starts_from_pure_noise(kind):
    """Zero terminal signal-to-noise ratio, where a score would say nothing."""
    theirs = DDIMScheduler(
        **STABLE_DIFFUSION, rescale_betas_zero_snr=True, timestep_spacing="trailing",
        prediction_type=kind, clip_sample=False,
    )  # fmt: skip
    ours = Schedule.from_config(theirs.config)
    x_T = draw(SHAPE)
    theirs.set_timesteps(10)
    x = torch.tensor(x_T)
    for t in theirs.timesteps:
        x = theirs.step(prediction(torch, x, t), int(t), x).prev_sample
    found = sample(
        functools.partial(prediction, jnp), jnp.asarray(x_T), ours, num_steps=10,
        prediction_type=kind,
    )  # fmt: skip
    np.testing.assert_allclose(found, x, atol=2e-4, rtol=2e-4)


def test_flow_matching_is_the_euler_scheduler_of_diffusers():
    """On alpha = 1 - sigma a step of DDIM is Euler's: x moves by (sigma' - sigma) u."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(10)
    sigmas = theirs.sigmas.numpy()  # from 1, pure noise, to 0
    ours = Schedule(
        alphas=1 - sigmas[:-1][::-1], sigmas=sigmas[:-1][::-1].copy(), steps_offset=0,
        prediction_type="flow_prediction", set_alpha_to_one=True,
    )  # fmt: skip
    x_T = draw(SHAPE)
    x = torch.tensor(x_T)
    for i, t in enumerate(theirs.timesteps):
        x = theirs.step(prediction(torch, x, 9 - i), t, x).prev_sample
    found = sample(
        functools.partial(prediction, jnp), jnp.asarray(x_T), ours, num_steps=10,
        prediction_type="flow_prediction",
    )  # fmt: skip
    np.testing.assert_allclose(found, x, atol=2e-5, rtol=2e-5)


MEAN, SCALE = np.array([0.5, -1.0, 0.0]), np.array([0.1, 0.5, 2.0])


def gaussian_score_at(schedule):
    """Exact score of the noised data `N(MEAN, SCALE^2)`."""

    def score_at(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return -(x - alpha * MEAN) / (alpha**2 * SCALE**2 + sigma**2)

    return score_at


def chain_moments(schedule, num_steps, eta):
    """Exact mean and variance of the sampler's output: it is affine in x and in the noise.

    The step in the form of the DDIM paper, with `Var = SCALE^2` known: a naive twin in float64.
    """
    _, alphas, sigmas = (np.asarray(a, np.float64) for a in schedule.levels(num_steps))
    mean, variance = alphas[0] * MEAN, alphas[0] ** 2 * SCALE**2 + sigmas[0] ** 2
    for a, s, a1, s1 in zip(alphas[:-1], sigmas[:-1], alphas[1:], sigmas[1:], strict=True):
        noise = eta * np.sqrt((s1 / s) ** 2 * (1 - (a / a1) ** 2))
        total = a**2 * SCALE**2 + s**2
        # x0_hat = MEAN + (a SCALE^2 / total)(x - a MEAN),  eps_hat = (s / total)(x - a MEAN)
        factor = a1 * a * SCALE**2 / total + np.sqrt(s1**2 - noise**2) * s / total
        mean = a1 * MEAN + factor * (mean - a * MEAN)
        variance = factor**2 * variance + noise**2
    return mean, variance


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("to_one", [True, False])
def test_exact_score_samples_have_the_exact_moments(eta, to_one):
    n, num_steps = 20_000, 100
    schedule = Schedule.create(set_alpha_to_one=to_one)
    t = schedule.timesteps(num_steps)[0]
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    start = draw((n, 3), seed=1) * np.sqrt(alpha**2 * SCALE**2 + sigma**2) + alpha * MEAN
    x = sample(
        gaussian_score_at(schedule), jnp.asarray(start, jnp.float32), schedule,
        num_steps=num_steps, eta=eta, key=jax.random.key(0),
    )  # fmt: skip
    x = np.asarray(x, np.float64)
    mean, variance = chain_moments(schedule, num_steps, eta)
    z_mean = (x.mean(0) - mean) / np.sqrt(variance / n)
    z_variance = (x.var(0, ddof=1) / variance - 1) / np.sqrt(2 / (n - 1))
    # 6 z-scores of each run: P(any > 4) = 4e-4, and the seed is fixed
    assert np.abs(z_mean).max() < 4
    assert np.abs(z_variance).max() < 4


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_chain_converges_to_the_data(eta):
    """With more steps the moments approach the data's, at first order.

    Only for scales well above the first sigma of the training grid, 0.03: the last steps of a
    scale of 0.1 cannot be refined below the grid.
    """
    schedule = Schedule.create(set_alpha_to_one=True, steps_offset=0)
    errors = {}
    for num_steps in (50, 100, 1000):
        mean, variance = chain_moments(schedule, num_steps, eta)
        np.testing.assert_allclose(mean, MEAN, atol=1e-12)  # exact for any number of steps
        errors[num_steps] = np.abs(np.sqrt(variance) / SCALE - 1)[1:]
    ratio = errors[100] / errors[50]
    assert ratio.min() > 0.4, "faster than first order: the twin is not DDIM"
    assert ratio.max() < 0.65
    assert errors[1000].max() < 0.01


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_trajectory(eta):
    schedule, key = Schedule.create(), jax.random.key(5)
    x_T = jnp.asarray(draw(SHAPE))
    run = lambda **options: sample(
        gaussian_score_at(schedule), x_T[:, :3], schedule, num_steps=7, eta=eta, key=key, **options
    )
    states = run(trajectory=True)
    assert states.shape == (8, 3, 3)
    np.testing.assert_array_equal(states[0], x_T[:, :3])
    np.testing.assert_array_equal(states[-1], run())


def test_key_matters_only_with_noise():
    schedule = Schedule.create()
    x_T = jnp.asarray(draw(3))
    run = lambda eta, seed: sample(
        gaussian_score_at(schedule), x_T, schedule, num_steps=5, eta=eta, key=jax.random.key(seed)
    )
    np.testing.assert_array_equal(run(0.0, 0), run(0.0, 1))
    np.testing.assert_array_equal(run(1.0, 0), run(1.0, 0))
    assert np.abs(run(1.0, 0) - run(1.0, 1)).min() > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(eta=-0.1), r"eta must lie in \[0, 1\], got -0\.1"),
        (dict(eta=1.5), r"eta must lie in \[0, 1\], got 1\.5"),
        (dict(eta=float("nan")), r"eta must lie in \[0, 1\], got nan"),
        (dict(eta=1.0), "pass key="),
        (dict(num_steps=0), "num_steps must lie in"),
        (dict(num_steps=1001), "num_steps must lie in"),
    ],
)
def test_wrong_options(options, message):
    schedule = Schedule.create()
    with pytest.raises(ValueError, match=message):
        sample(gaussian_score_at(schedule), jnp.zeros(3), schedule, **options)


@pytest.mark.parametrize(
    ("score", "x", "given", "message"),
    [
        (lambda x, t: -x[:1], [0.0, 0.0], "schedule", r"shape of x, \(2,\), got \(1,\)"),
        (lambda x, t: -x, [0.0, np.nan], "schedule", "x_T is not finite: 1 of 2"),
        (lambda x, t: -x, [0, 0], "schedule", "x_T must be real noise, got dtype int"),
        (lambda x, t: -x, [0.0, 0.0], None, "schedule must be a noise schedule"),
    ],
)
def test_what_cannot_be_sampled(score, x, given, message):
    """A score of another shape was repeated, without a word."""
    with pytest.raises(ValueError, match=message):
        sample(score, jnp.array(x), given and Schedule.create(), num_steps=3)


def test_an_example_that_is_not_finite_is_told():
    """It came out as NaN, without a word; one of a batch must not cost the others."""
    x = jnp.array([[0.5, 0.5], [-0.5, -0.5]])
    with pytest.warns(UserWarning, match="predict_at gave NaN or infinity"):
        found = sample(
            lambda x, t: jnp.where(x > 0, -x, jnp.nan), x, Schedule.create(), num_steps=3
        )
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


def test_zero_terminal_snr_is_refused_not_nan():
    schedule = Schedule.create(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="cannot start at t=999: alpha = 0 there"):
        sample(gaussian_score_at(schedule), jnp.zeros(3), schedule, num_steps=10)
