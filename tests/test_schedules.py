"""`Schedule` against diffusers' PyTorch schedulers, closed forms, files and wrong input."""

import copy
import dataclasses
import inspect
import json
import math
import pickle
import warnings

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler

from sharpjax.checkpoints.directory import read_json
from sharpjax.checkpoints.scheduler import SCHEDULER_DEFAULTS
from sharpjax.schedules import Schedule, betas

pytestmark = pytest.mark.quick

CLASSES = {c.__name__: c for c in (DDIMScheduler, DDPMScheduler, PNDMScheduler)}
STABLE_DIFFUSION = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
TRAINED = np.linspace(0.001, 0.2, 30).tolist()
BETAS = {
    "linear": dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
    "scaled_linear": STABLE_DIFFUSION,
    "squaredcos": dict(beta_schedule="squaredcos_cap_v2"),
    "trained": dict(trained_betas=TRAINED, num_train_timesteps=30),
    "few_steps": dict(beta_schedule="linear", num_train_timesteps=7, beta_start=0.1, beta_end=0.4),
}
ZERO_SNR = {f"{name}_zero_snr": c | dict(rescale_betas_zero_snr=True) for name, c in BETAS.items()}


def schedule(config=None, **changes):
    return Schedule.from_config({"_class_name": "DDIMScheduler", **(config or {}), **changes})


def leaves_and_settings_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        *((kind, config) for kind in CLASSES for config in BETAS.values()),
        *((kind, c) for kind in ("DDIMScheduler", "DDPMScheduler") for c in ZERO_SNR.values()),
    ],
)
def test_betas_and_alpha_bar_are_diffusers(kind, config):
    theirs = CLASSES[kind](**config)
    ours = Schedule.from_config(theirs.config)
    beta = theirs.betas.double().numpy()
    # Their betas are float32 (relative 6e-8 each); from there on float64, so the product of up to
    # 1,000 factors 1 - beta is off by at most the sum of 6e-8 beta / (1 - beta): below 1e-5.
    np.testing.assert_allclose(ours.alphas**2, np.cumprod(1 - beta), rtol=1e-5, atol=1e-6)
    # Their own product runs in float32: 1,000 roundings of 6e-8.
    np.testing.assert_allclose(ours.alphas**2, theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
    if config.get("rescale_betas_zero_snr"):
        assert ours.alphas[-1] == 0
        assert ours.sigmas[-1] == 1
    elif "beta_schedule" in config:
        own = betas(
            config["beta_schedule"],
            len(beta),
            start=config.get("beta_start", 0.0001),
            end=config.get("beta_end", 0.02),
        )
        np.testing.assert_allclose(own, beta, rtol=1e-6)


@pytest.mark.parametrize("config", [*BETAS.values(), *ZERO_SNR.values()])
def test_variance_is_preserved(config):
    ours = schedule(config)
    # two float32 values, squared and added: three roundings
    np.testing.assert_allclose(ours.alphas**2 + ours.sigmas**2, 1, atol=3e-7)


def test_sigma_keeps_its_digits_near_zero():
    """`sigma_0^2 = beta_0`; computed as `1 - alpha_bar` in float32 it is off by 1e-3."""
    one_ulp = 2.0**-23
    ddpm = schedule(BETAS["linear"])
    assert abs(float(ddpm.sigma(0)) / 0.01 - 1) < one_ulp
    # product of the first two factors by hand: 1 - (1 - a)(1 - b) = a + b - a b
    a, b = 0.0001, 0.0001 + (0.02 - 0.0001) / 999
    assert abs(float(ddpm.sigma(1)) / math.sqrt(a + b - a * b) - 1) < one_ulp
    # cos^2 p - cos^2 q = sin(q - p) sin(q + p): no cancellation
    p, q = (0.008 / 1.008 * math.pi / 2, (0.001 + 0.008) / 1.008 * math.pi / 2)
    expected = math.sqrt(math.sin(q - p) * math.sin(q + p)) / math.cos(p)
    assert abs(float(schedule(BETAS["squaredcos"]).sigma(0)) / expected - 1) < one_ulp


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("total", "offset"), [(1000, 0), (1000, 1), (97, 0), (97, 3), (1, 0)])
def test_timesteps_are_diffusers(spacing, total, offset):
    settings = dict(num_train_timesteps=total, timestep_spacing=spacing, steps_offset=offset)
    ours, theirs = schedule(settings), DDIMScheduler(**settings)
    refused = 0
    for num_steps in range(1, total + 1):
        theirs.set_timesteps(num_steps)
        # Rounding gives them num_steps + 1 trailing steps, the last at t = -1, for an eighth of
        # all num_steps (62 of 61, ...); the surplus one is no step.
        expected = theirs.timesteps.numpy()[:num_steps]
        if expected[0] >= total:
            refused += 1
            with pytest.raises(ValueError, match=f"reach t={expected[0]}, past the last"):
                ours.timesteps(num_steps)
        else:
            np.testing.assert_array_equal(ours.timesteps(num_steps), expected)
    assert (refused > 0) == (spacing == "leading" and offset > 0)


def test_first_step_of_stable_diffusion():
    ours = Schedule.create()
    assert ours.timesteps(50)[[0, -1]].tolist() == [981, 1]
    assert ours.num_train_timesteps == 1000


@pytest.mark.parametrize("to_one", [True, False])
def test_last_level(to_one):
    grid, alphas, sigmas = schedule(STABLE_DIFFUSION, set_alpha_to_one=to_one).levels(20)
    theirs = DDIMScheduler(**STABLE_DIFFUSION, set_alpha_to_one=to_one)
    assert grid.shape == (20,)
    assert alphas.shape == sigmas.shape == (21,)
    np.testing.assert_allclose(alphas[-1] ** 2, theirs.final_alpha_cumprod, rtol=3e-7)
    np.testing.assert_allclose(sigmas[-1], 0 if to_one else math.sqrt(0.00085), rtol=2e-7)
    np.testing.assert_allclose(alphas[:-1] ** 2, theirs.alphas_cumprod[grid], rtol=1e-4)


def test_add_noise_is_diffusers():
    import torch

    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 4, 3), dtype=np.float32)
    t = np.array([0, 1, 500, 999])
    theirs = DDIMScheduler(**STABLE_DIFFUSION).add_noise(
        torch.tensor(x), torch.tensor(noise), torch.tensor(t)
    )
    ours = jax.vmap(Schedule.create().add_noise)(x, noise, t)
    # their sigma_0 is a float32 1 - alpha_bar: 6e-8 / (2 sigma) = 1e-6
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {},
        *BETAS.values(),
        dict(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        dict(timestep_spacing="linspace", steps_offset=2, set_alpha_to_one=False),
    ],
)
def test_round_trip(config, tmp_path):
    ours = schedule(config)
    written = json.loads(json.dumps(ours.to_config()))
    leaves_and_settings_equal(Schedule.from_config(written), ours)
    # PyTorch reads it too, and means the same by it
    theirs = DDIMScheduler.from_config(written)
    np.testing.assert_allclose(ours.alphas**2, theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert theirs.config.prediction_type == ours.prediction_type


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "config",
    [
        {},
        STABLE_DIFFUSION | dict(steps_offset=1, set_alpha_to_one=False),
        dict(prediction_type="v_prediction", timestep_spacing="trailing"),
    ],
)
def test_reads_what_pytorch_writes(kind, config, tmp_path):
    if kind == "DDPMScheduler":  # it has no such setting: its last step lands on alpha = 1
        config = {k: v for k, v in config.items() if k != "set_alpha_to_one"}
    theirs = CLASSES[kind](**config)
    theirs.save_pretrained(tmp_path)
    for source in (tmp_path, str(tmp_path / "scheduler_config.json"), theirs.config):
        ours = Schedule.from_config(source)
        np.testing.assert_allclose(ours.alphas**2, theirs.alphas_cumprod, rtol=1e-4)
        assert ours.prediction_type == theirs.config.prediction_type
        assert ours.timestep_spacing == theirs.config.timestep_spacing
        assert ours.steps_offset == theirs.config.steps_offset
        assert ours.set_alpha_to_one == theirs.config.get("set_alpha_to_one", True)
    # absent keys mean what this class means by them
    leaves_and_settings_equal(
        Schedule.from_config({"_class_name": kind, **config}), Schedule.from_config(theirs.config)
    )


def test_null_in_a_configuration_means_the_default_of_the_class():
    leaves_and_settings_equal(schedule(beta_start=None, beta_schedule=None), schedule())


def test_crosses_jit_without_recompiling():
    @jax.jit
    def f(schedule, x, t):
        return schedule.add_noise(x, x, t)

    x = np.ones(3, np.float32)
    first, again = schedule(trained_betas=TRAINED), schedule(trained_betas=TRAINED)
    np.testing.assert_allclose(f(first, x, 3), first.alpha(3) + first.sigma(3), rtol=1e-6)
    np.testing.assert_allclose(f(again, x, 4), first.alpha(4) + first.sigma(4), rtol=1e-6)
    assert f._cache_size() == 1


@pytest.mark.parametrize("t", [-1, 1000, np.array([0, 1000]), 2**40])
def test_t_out_of_range(t):
    with pytest.raises(ValueError, match=r"must lie in 0\.\.999, got"):
        Schedule.create().alpha(t)


@pytest.mark.parametrize("t", [0.5, 3.0, np.float32(1), True, "3", None, np.array([1.0])])
def test_t_not_an_integer(t):
    with pytest.raises(ValueError, match="t must be an integer"):
        Schedule.create().sigma(t)


def test_a_timestep_of_pytorch_is_one_that_jax_takes():
    """`unconditional(t)` binds it into a pytree that crosses `jax.jit`."""
    t = Schedule.create().checked_timestep(torch.tensor(10))
    assert jax.jit(lambda t: t)(t) == 10


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_num_steps_out_of_range(num_steps):
    with pytest.raises(ValueError, match=rf"num_steps must lie in 1\.\.1000, got {num_steps}"):
        Schedule.create().timesteps(num_steps)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            dict(_class_name="FlowMatchEulerDiscreteScheduler"),
            "must be one of .* 'FlowMatch",
        ),
        (
            dict(_class_name="EDMEulerScheduler"),
            r"got 'EDMEulerScheduler': .*x0 \+ sigma eps \(alpha = 1\)",
        ),
        (
            dict(use_flow_sigmas=True),
            r"use_flow_sigmas must be false, got True: its networks see \(1 - t\)",
        ),
        (dict(_class_name=["DDIMScheduler"]), "_class_name must be"),
        (dict(beta_schedule="sigmoid"), "beta_schedule must be one of .*, got 'sigmoid'"),
        (dict(beta_schedule=["linear"]), "beta_schedule must be of type"),
        (dict(prediction_type="flow"), "prediction_type must .*, got 'flow'"),
        (dict(timestep_spacing="karras"), "timestep_spacing must .*, got 'karras'"),
        (dict(num_train_timesteps="1000"), "num_train_timesteps must be of type int, got '1000'"),
        (dict(num_train_timesteps=0), "num_train_timesteps must be at least 1, got 0"),
        (dict(beta_start=0.1, beta_end=0.01), "0 < start <= end < 1"),
        (dict(beta_start=float("nan")), "beta_start must be a finite number, got nan"),
        (dict(beta_end=math.inf, beta_schedule="squaredcos_cap_v2"), "beta_end must be a finite"),
        (dict(num_train_timesteps=math.inf), "num_train_timesteps must be of type int, got inf"),
        (dict(beta_end=1.0), "0 < start <= end < 1"),
        (dict(steps_offset=-1), "steps_offset must be an integer of at least 0, got -1"),
        (dict(steps_offset=0.5), "steps_offset must be of type"),
        (dict(set_alpha_to_one="no"), "set_alpha_to_one must be of type"),
        (dict(trained_betas=[0.1, float("nan")]), "trained_betas must be"),
        (dict(trained_betas=[0.1, 1.0]), "trained_betas must be"),
        (dict(trained_betas=[0.0, 0.1]), "trained_betas must be"),
        (dict(trained_betas=[]), "trained_betas must be"),
        (dict(trained_betas=[[0.1]]), "trained_betas must be"),
        (dict(trained_betas="0.1"), "trained_betas must be of type"),
    ],
)
def test_wrong_configuration_names_file_and_key(config, message, tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDIMScheduler"} | config))
    with pytest.raises(ValueError, match=message) as caught:
        Schedule.from_config(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[1, 2]", "null", "\udcff"])
def test_wrong_file(text, tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="JSON") as caught:
        Schedule.from_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy 2, inside diffusers
@pytest.mark.parametrize("name", sorted(SCHEDULER_DEFAULTS))
def test_a_scheduler_made_from_another_and_saved_is_read(name, tmp_path):
    """`X.from_config(pipe.scheduler.config)`: by way of DPMSolver, -Infinity and all."""
    told = diffusers.PNDMScheduler(**STABLE_DIFFUSION, steps_offset=1).config
    diffusers.DPMSolverMultistepScheduler.from_config(told).save_pretrained(tmp_path)
    own = {"algorithm_type": "data_prediction"} if name == "SASolverScheduler" else {}
    theirs = getattr(diffusers, name).from_pretrained(tmp_path, **own)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    assert "-Infinity" in path.read_text()
    expected = np.cumprod(1 - theirs.betas.double().numpy())
    for read in (tmp_path, read_json(path, constants=True)):
        np.testing.assert_allclose(Schedule.from_config(read).alphas ** 2, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="-Infinity is not a JSON number"):
        read_json(path)


def test_a_byte_order_mark_is_no_harm(tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDIMScheduler"}), encoding="utf-8-sig")
    leaves_and_settings_equal(Schedule.from_config(path), schedule())


def test_thresholding_is_not_ignored_in_silence():
    with pytest.warns(UserWarning, match="thresholding is not applied here: samples differ"):
        schedule(thresholding=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule(thresholding=False, dynamic_thresholding_ratio=0.9)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scheduler_config\.json"):
        Schedule.from_config(tmp_path)


FLOW = np.linspace(0, 1, 11)[1:]  # sigma = t of a rectified flow, without its clean end


def test_a_level_without_a_signal_is_known_by_its_alpha():
    """However the schedule came by it, and under a trace too."""
    flow = Schedule(alphas=1 - FLOW, sigmas=FLOW, timestep_spacing="trailing", steps_offset=0)
    assert [t for t in range(10) if flow.is_pure_noise(t)] == [9]
    np.testing.assert_array_equal(flow.timesteps(5), [9, 7, 5, 3, 1])
    np.testing.assert_array_equal(flow.timesteps_with_signal(5), [7, 5, 3, 1])
    assert jax.jit(lambda s: jnp.array(s.timesteps_with_signal(5)))(flow).tolist() == [7, 5, 3, 1]
    assert jax.tree.map(jnp.asarray, flow).is_pure_noise(9)
    # a flag says nothing of levels that were given otherwise
    flagged = dataclasses.replace(
        schedule(rescale_betas_zero_snr=True), alphas=flow.sigmas, sigmas=flow.sigmas
    )
    assert not any(flagged.is_pure_noise(t) for t in range(10))
    with pytest.raises(ValueError, match=r"1 step\(s\) visit t=\[9\] only, where alpha = 0"):
        flow.timesteps_with_signal(1)
    # what underflows in the type that computes is no signal either
    tiny = Schedule(alphas=[0.5, 1e-60], sigmas=[0.5, 1.0])
    assert tiny.is_pure_noise(1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prediction_type": "flow"}, "prediction_type must be one of epsilon, .* 'flow'"),
        ({"timestep_spacing": "karras"}, "timestep_spacing must .*, got 'karras'"),
        ({"steps_offset": 0.5}, "steps_offset must be an integer of at least 0, got 0.5"),
        ({"steps_offset": -1}, "steps_offset must be an integer of at least 0, got -1"),
        ({"alphas": FLOW[1:]}, r"two lists of one length, .* got shapes \(9,\) and \(10,\)"),
        ({"alphas": 0.5, "sigmas": 0.5}, r"two lists of one length, .* got shapes \(\) and \(\)"),
        ({"alphas": [], "sigmas": []}, "two lists of one length"),
        ({"alphas": -FLOW}, "alpha must be finite and >= 0 everywhere, got -0.1 at t=0"),
        ({"sigmas": 1 - FLOW}, "sigma must be finite and > 0 everywhere, got 0 at t=9; a score"),
        ({"sigmas": FLOW * np.inf}, "sigma must be finite and > 0 everywhere, got inf at t=0"),
        ({"alphas": np.where(FLOW > 0.5, np.nan, 1)}, "alpha must be .*, got nan at t=5"),
        ({"alphas": list("abc")}, "alpha must be real numbers"),
        ({"sigmas": FLOW * 1j}, "sigma must be real numbers"),
        ({"sigmas": FLOW * 1e-60}, "sigma must be from .* everywhere, got .*e-6. at t=0"),
    ],
)
def test_levels_are_checked_once_at_the_edge(changed, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**{"alphas": 1 - FLOW, "sigmas": FLOW} | changed)


def test_trees_of_its_shape_may_hold_anything():
    """What JAX puts in place of levels is not a level: gradients, axes, shapes, markers."""
    ours = Schedule(alphas=1 - FLOW, sigmas=torch.tensor(FLOW), prediction_type="v_prediction")
    assert isinstance(ours.sigmas, jax.Array)
    for leaf in (None, 0, -1.0, "x", object(), jax.sharding.PartitionSpec()):
        marked = jax.tree.map(lambda _, leaf=leaf: leaf, ours)
        assert marked.alphas is leaf
        assert marked.prediction_type == "v_prediction"
    shapes = jax.eval_shape(lambda s: s, ours)
    assert shapes.sigmas.shape == (10,)
    slope = jax.grad(lambda s: -jnp.sum(s.sigmas))(ours)
    np.testing.assert_array_equal(slope.sigmas, -np.ones(10))
    axes = jax.tree.map(lambda _: None, ours)
    assert jax.vmap(lambda s, t: s.alpha(t), (axes, 0))(ours, jnp.arange(3)).shape == (3,)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(ours)]
    assert paths == [".alphas", ".sigmas"]
    copied = pickle.loads(pickle.dumps(copy.deepcopy(ours)))
    leaves_and_settings_equal(copied, ours)


def test_zero_signal_is_known():
    ours = schedule(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    assert ours.levels(10)[1][0] == 0
    assert ours.is_pure_noise(999)
    assert not ours.is_pure_noise(998)
    assert not schedule(timestep_spacing="trailing").is_pure_noise(999)
    leading = schedule(rescale_betas_zero_snr=True, timestep_spacing="leading")
    assert leading.levels(10)[1].min() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy 2, inside diffusers
@pytest.mark.parametrize("name", sorted(SCHEDULER_DEFAULTS))
def test_defaults_are_those_of_diffusers(name):
    """A configuration that says nothing means what the class in diffusers means by it."""
    theirs = inspect.signature(getattr(diffusers, name).__init__).parameters
    for key, value in SCHEDULER_DEFAULTS[name].items():
        if key in theirs:  # the solvers have no choice of some
            assert value == theirs[key].default, key
    ours, scheduler = Schedule.from_config({"_class_name": name}), getattr(diffusers, name)()
    np.testing.assert_allclose(ours.alphas**2, scheduler.alphas_cumprod, rtol=2e-4)


@pytest.mark.parametrize(
    "prediction_type", ["epsilon", "v_prediction", "sample", "flow_prediction"]
)
def test_the_target_is_the_prediction_of_the_true_score(prediction_type):
    """A network that hits its target has the score -noise/sigma of the one example."""
    from sharpjax.score import score_from_prediction

    schedule = Schedule.create(prediction_type=prediction_type)
    rng = np.random.default_rng(0)
    x0, noise = jnp.asarray(rng.standard_normal((2, 3, 5)), jnp.float32)
    for t in (300, 981):
        x, alpha, sigma = schedule.add_noise(x0, noise, t), schedule.alpha(t), schedule.sigma(t)
        score = score_from_prediction(
            schedule.target(x0, noise, t), x, alpha=alpha, sigma=sigma,
            prediction_type=prediction_type,
        )  # fmt: skip
        # a few float32 roundings of numbers of order one, divided by sigma (0.53 at t = 300)
        np.testing.assert_allclose(score, -noise / sigma, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 1.0),
        ({"_class_name": "DDPMScheduler"}, 1.0),
        ({"clip_sample": True, "clip_sample_range": 0.5}, 0.5),
        ({"clip_sample": False, "clip_sample_range": 0.5}, None),
        ({"clip_sample": None}, None),
        ({"_class_name": "PNDMScheduler"}, None),
        ({"_class_name": "DPMSolverMultistepScheduler", "clip_sample": True}, None),
    ],
)
def test_clipping_is_that_of_the_class(config, expected):
    ours = Schedule.from_config({"_class_name": "DDIMScheduler"} | config)
    assert ours.clip_sample_range == expected
    assert Schedule.from_config(ours.to_config()).clip_sample_range == expected
    with pytest.raises(ValueError, match="clip_sample_range must be positive, got -1"):
        Schedule.from_config({"_class_name": "DDIMScheduler", "clip_sample_range": -1})
