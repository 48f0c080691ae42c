"""``PixelDiffusion``: its scores, samples and directory, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler

from sharpjax.models import from_pretrained
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.schedules import Schedule

NAMES = ("zero", "one", "two")


@pytest.fixture(scope="module")
def model(pytorch_unet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch") / "unet"
    pytorch_unet().save_pretrained(folder)
    return PixelDiffusion(from_pretrained(folder), Schedule.create(), NAMES)


@pytest.fixture
def saved(model, tmp_path):
    return model.save_pretrained(tmp_path / "pixel")


pair_values = jax.jit(
    lambda pair, x: (pair.both(x), pair.unconditional(x), pair.conditional(x), pair.difference(x))
)


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_scores_are_minus_eps_over_sigma(model, pytorch_unet):
    """Both views and the batched form, against the PyTorch network with label and with "none"."""
    theirs = pytorch_unet()
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    x = draw((1, 8, 8))
    before = pair_values._cache_size()
    for condition, label, t in (("two", 2, 981), ("zero", 0, 30), (jnp.int32(1), 1, 0)):
        both, unconditional, conditional, difference = pair_values(model.scores(condition, t), x)
        with torch.no_grad():
            eps = theirs(
                torch.tensor(np.stack([x, x])), t, class_labels=torch.tensor([3, label])
            ).sample.numpy()
        expected = -eps / np.sqrt(1 - scheduler.alphas_cumprod[t].item())
        assert np.abs(expected[0] - expected[1]).max() > 1e-3 * np.abs(expected).max()
        # a UNet of float32: 1e-5 of the largest output, as in test_unet_2d; 1/sigma_0 by PyTorch
        # is a float32 1 - alpha_bar, 4e-5
        scale = np.abs(expected).max()
        np.testing.assert_allclose(both, expected, atol=1e-4 * scale)
        np.testing.assert_allclose(both, [unconditional, conditional], atol=1e-5 * scale)
        np.testing.assert_allclose(difference, both[1] - both[0], atol=1e-5 * scale)
    # conditions and t are arguments, never compile-time constants
    assert pair_values._cache_size() - before == 1


def test_round_trip(model, saved):
    again = PixelDiffusion.from_pretrained(saved)
    assert again.conditions == NAMES
    assert again.shape == (1, 8, 8)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pytorch_loads_what_we_write(saved, pytorch_unet):
    pipeline = DDIMPipeline.from_pretrained(saved)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    for key, tensor in pytorch_unet().state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[key], tensor), key


def test_sample_does_not_depend_on_batch_size(model):
    labels = ["two", "zero", "one", "two", "two"]
    options = dict(num_steps=2, eta=1.0, guidance=2.0)
    together = model.sample(labels, jax.random.key(0), batch_size=5, **options)
    apart = model.sample(labels, jax.random.key(0), batch_size=2, **options)
    assert together.shape == (5, 1, 8, 8)
    # other batch sizes are other matrix products: float32 roundings through two UNet steps, the
    # first of which is divided by alpha = 0.07
    np.testing.assert_allclose(apart, together, atol=2e-4 * np.abs(together).max())
    # the images of one condition differ, so the comparison can fail
    assert np.abs(together[0] - together[3]).max() > 0.05 * np.abs(together).max()
    # another number of conditions does not disturb the first ones
    fewer = model.sample(labels[:2], jax.random.key(0), batch_size=2, **options)
    np.testing.assert_array_equal(fewer, apart[:2])


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.slow), 3.0])
def test_samples_out_of_pure_noise_are_those_of_pytorch(model, pytorch_unet, guidance):
    """Zero terminal SNR, where predictions of v lead on and scores do not."""
    silent = Schedule.create(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    ours, unet = dataclasses.replace(model, schedule=silent), pytorch_unet()
    theirs = DDIMScheduler(**{k: v for k, v in silent.to_config().items() if k[0] != "_"})
    theirs.set_timesteps(2)  # divides T: their steps end on the grid
    noise = draw((1, 1, 8, 8))
    x = torch.tensor(noise)
    for t in theirs.timesteps:
        with torch.no_grad():
            without, led = unet(torch.cat([x, x]), t, class_labels=torch.tensor([3, 1])).sample
        x = theirs.step(without + guidance * (led - without), int(t), x).prev_sample
    found = ours.sample(["one"], noise=noise, num_steps=2, guidance=guidance)
    np.testing.assert_allclose(found, x, atol=1e-3 * float(x.abs().max()))


def test_given_noise_is_used_and_guidance_one_is_conditional(model):
    noise = draw((2, 1, 8, 8))
    options = dict(noise=noise, num_steps=2, batch_size=2)
    plain = model.sample(["one", "two"], **options)
    np.testing.assert_array_equal(model.sample(jnp.array([1, 2]), **options), plain)
    swapped = model.sample(["one", "two"], **(options | dict(noise=noise[::-1])))
    assert np.abs(plain - swapped).max() > 0.1
    # s_u + 1 (s_c - s_u), computed by both networks
    guided = model.sample(["one", "two"], guidance=1.0 + 1e-7, **options)
    np.testing.assert_allclose(guided, plain, atol=2e-4 * np.abs(plain).max())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.scores("three", 10), "unknown condition 'three'; this model knows 3: zero, "),
        (lambda m: m.encode(["one", "three"]), "unknown condition 'three'"),
        (lambda m: m.scores(3, 10), r"integers in 0\.\.2, got 3"),
        (lambda m: m.scores(-1, 10), r"integers in 0\.\.2, got -1"),
        (lambda m: m.scores(1.0, 10), r"integers in 0\.\.2, got 1\.0"),
        (lambda m: m.scores(jnp.array([1]), 10), r"one condition, got labels of shape \(1,\)"),
        (lambda m: m.scores("one", 1000), r"t must lie in 0\.\.999, got 1000"),
        (lambda m: m.scores("one", -1), r"t must lie in 0\.\.999, got -1"),
        (lambda m: m.scores("one", 1.5), "t must be an integer"),
        (lambda m: m.sample(["one"]), r"pass key="),
        (lambda m: m.sample(["one"], noise=jnp.zeros((1, 1, 8, 8)), eta=0.5), "pass key="),
        (
            lambda m: m.sample(["one"], noise=jnp.zeros((1, 8, 8))),
            r"noise must have shape \(1, 1, 8, 8\), got \(1, 8, 8\)",
        ),
        (
            lambda m: m.sample(["one"] * 2, noise=jnp.zeros((1, 1, 8, 8))),
            r"noise must have shape \(2, 1, 8, 8\)",
        ),
        (lambda m: m.sample(["three"], jax.random.key(0)), "unknown condition 'three'"),
        (lambda m: m.sample(np.array([0, 3]), jax.random.key(0)), r"got \[0, 3\]"),
        (lambda m: m.sample([], jax.random.key(0)), "number of conditions must be at least 1"),
        (lambda m: m.sample(["one"], jax.random.key(0), batch_size=0), "batch_size must be at"),
        (lambda m: m.sample(["one"], jax.random.key(0), eta=2.0), r"eta must lie in \[0, 1\]"),
        (lambda m: m.sample(["one"], jax.random.key(0), num_steps=0), "num_steps must lie in"),
    ],
)
def test_wrong_calls_are_named(call, message, model):
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "must be a list of names"),
        ('{"conditions": "zero"}', "must be a list of names"),
        ('{"conditions": [0, 1, 2]}', "must be a list of names"),
        ('{"conditions": ["a", "b", "a"]}', "must be distinct"),
        ('{"conditions": ["a", "b"]}', "2 conditions need 3 class embeddings .* unet has 4"),
        ('["a", "b", "c"]', "JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_wrong_conditions_file(text, message, saved):
    (saved / "conditions.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        PixelDiffusion.from_pretrained(saved)
    assert str(saved / "conditions.json") in str(caught.value)


@pytest.mark.parametrize(
    "part", ["conditions.json", "scheduler/scheduler_config.json", "unet/config.json"]
)
def test_missing_part_is_named(part, saved):
    (saved / part).unlink()
    with pytest.raises(FileNotFoundError, match=part.split("/")[-1]):
        PixelDiffusion.from_pretrained(saved)


def test_damaged_scheduler_is_named(saved):
    path = saved / "scheduler" / "scheduler_config.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"scheduler_config\.json is not valid JSON"):
        PixelDiffusion.from_pretrained(saved)
    (saved / "conditions.json").rename(saved.parent / "away")
    (saved / "conditions.json").symlink_to(saved.parent / "away")
    path.write_text("{}")
    with pytest.raises(ValueError, match="link that leads outside"):
        PixelDiffusion.from_pretrained(saved)
