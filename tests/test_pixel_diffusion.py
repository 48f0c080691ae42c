"""`PixelDiffusion`: its scores, samples and directory, and what it refuses."""

import dataclasses
import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler
from flax import nnx
from PIL import Image

import sharpjax
from sharpjax import cli
from sharpjax.checkpoints import from_pretrained
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.models.convert import convert
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.networks import UNet2DModel
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


@pytest.mark.slow
def test_sample_does_not_depend_on_batch_size(model):
    labels = ["two", "zero", "one", "two", "two"]
    options = dict(num_steps=2, eta=1.0, guidance=2.0)
    together = model.sample(labels, 0, batch_size=5, **options)  # a seed is a key
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
        (lambda m: m.scores("three", 10), "got 'three'; it knows zero, "),
        (lambda m: m.encode(["one", "three"]), "got 'three'"),
        (lambda m: m.scores(3, 10), r"integers in 0\.\.2, got 3"),
        (lambda m: m.scores(-1, 10), r"integers in 0\.\.2, got -1"),
        (lambda m: m.scores(1.0, 10), r"integers in 0\.\.2, got 1\.0"),
        (lambda m: m.scores(jnp.array([1]), 10), r"one condition, got labels of shape \(1,\)"),
        (lambda m: m.scores("one", 1000), r"t must lie in 0\.\.999, got 1000"),
        (lambda m: m.scores("one", -1), r"t must lie in 0\.\.999, got -1"),
        (lambda m: m.scores("one", 1.5), "t must be an integer"),
        (lambda m: m.unconditional("10"), "t must be an integer, got '10'"),
        (lambda m: m.unconditional(None), "t must be an integer, got None"),
        (lambda m: m.sample(["one"]), r"pass key="),
        (lambda m: m.sample(["one"], noise=jnp.zeros((1, 1, 8, 8)), eta=0.5), "pass key="),
        (
            lambda m: m.sample(["one"], noise=jnp.zeros((1, 8, 8))),
            r"shape \(1, 1, 8, 8\), a state for each image, got \(1, 8, 8\); such as jax.rand",
        ),
        (
            lambda m: m.sample(["one"] * 2, noise=jnp.zeros((1, 1, 8, 8))),
            r"noise must have shape \(2, 1, 8, 8\)",
        ),
        (lambda m: m.sample(["three"], jax.random.key(0)), "got 'three'"),
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


# --- unconditional pipelines of diffusers ------------------------------------------------------


def pixel_pipeline(
    folder, *, kind="DDPMPipeline", out_channels=1, classes=None, scheduler=None, **parts
):
    """A pipeline of pixels as diffusers saves it, with the settings of google/ddpm-cifar10-32."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=out_channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=classes,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    ).eval()
    with torch.no_grad():  # a network that predicts little leaves little to clip
        unet.conv_out.weight.mul_(3)
    scheduler = scheduler or DDPMScheduler(variance_type="fixed_large", clip_sample=True)
    pipeline = getattr(diffusers, kind)(unet=unet, scheduler=scheduler, **parts)
    pipeline.save_pretrained(folder)
    return folder


def flattened(folder):
    """All files in one folder, configurations of the year 2022: as google/ddpm-cifar10-32 is."""
    for part in ("unet", "scheduler"):
        for path in (folder / part).iterdir():
            path.rename(folder / path.name)
        (folder / part).rmdir()
    config = json.loads((folder / "config.json").read_text())
    new = ("class_embed_type", "num_class_embeds", "add_attention", "attn_norm_num_groups",
           "downsample_type", "upsample_type", "dropout", "num_train_timesteps",
           "resnet_time_scale_shift", "time_embedding_dim")  # fmt: skip
    config = {k: v for k, v in config.items() if k not in new}
    (folder / "config.json").write_text(json.dumps(config | {"_diffusers_version": "0.0.4"}))
    old = {
        "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02,
        "beta_schedule": "linear", "beta_start": 0.0001, "clip_sample": True,
        "num_train_timesteps": 1000, "trained_betas": None, "variance_type": "fixed_large",
    }  # fmt: skip
    (folder / "scheduler_config.json").write_text(json.dumps(old))
    return folder


@pytest.fixture(scope="module")
def free_directory(tmp_path_factory):
    return pixel_pipeline(tmp_path_factory.mktemp("models") / "ddpm")


@pytest.fixture(scope="module")
def free(free_directory):
    return sharpjax.load(free_directory)


def theirs_sampled(folder, noise, num_steps, **options):
    """By DDIMPipeline, whose scheduler takes over what the saved one says, clipping too."""
    pipe = DDIMPipeline.from_pretrained(folder)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **options)
    pipe.scheduler.set_timesteps(num_steps)
    x = torch.tensor(noise)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
    return x.numpy()


@pytest.mark.fast_cases("DDIMPipeline")
@pytest.mark.parametrize(
    "case", ["DDPMPipeline", "DDIMPipeline", "in one folder", "not clipped", "to 0.5"]
)
def test_samples_equal_pytorchs_ddim_pipeline(case, tmp_path):
    clip = {"not clipped": {"clip_sample": False}, "to 0.5": {"clip_sample_range": 0.5}}
    folder = pixel_pipeline(
        tmp_path / "m",
        kind="DDIMPipeline" if case == "DDIMPipeline" else "DDPMPipeline",
        scheduler=DDPMScheduler(variance_type="fixed_large", **clip.get(case, {})),
    )
    noise = draw((3, 1, 8, 8))
    if case == "in one folder":
        flattened(folder)
    expected = theirs_sampled(folder, noise, 10)
    clipped = theirs_sampled(folder, noise, 10, clip_sample=True, clip_sample_range=1.0)
    assert (np.abs(expected - clipped).max() > 0.1) == (case in clip)  # clipping matters here
    model = sharpjax.load(folder)
    found = model.sample(noise=noise, num_steps=10, batch_size=2)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    assert expected.std() > 0.1
    again = PixelDiffusion.from_pretrained(model.save_pretrained(tmp_path / "ours"))
    assert not (tmp_path / "ours/conditions.json").exists()
    np.testing.assert_array_equal(again.sample(noise=noise, num_steps=10, batch_size=2), found)
    assert fingerprint(folder) != fingerprint(tmp_path / "ours")
    if case == "in one folder":
        done = convert(folder, tmp_path / "converted")
        assert not done.left_out
        again = sharpjax.load(done.directory)
        np.testing.assert_array_equal(again.sample(noise=noise, num_steps=10, batch_size=2), found)
        DDIMPipeline.from_pretrained(done.directory)


@pytest.mark.slow
def test_unconditional_score_and_estimators(free, free_directory):
    theirs = diffusers.UNet2DModel.from_pretrained(free_directory, subfolder="unet")
    x, t = draw((1, 8, 8)), 500
    sigma = (1 - DDPMScheduler().alphas_cumprod[t].item()) ** 0.5

    def by_torch(x):
        return -theirs(x[None], t).sample[0] / sigma

    score = free.unconditional(t)
    np.testing.assert_allclose(
        score(x), by_torch(torch.tensor(x)).detach(), atol=1e-4 * np.abs(score(x)).max()
    )
    jacobian = torch.autograd.functional.jacobian(by_torch, torch.tensor(x)).reshape(64, 64)
    found = sharpjax.curvature.trace(score, jnp.asarray(x), method="exact")
    np.testing.assert_allclose(found.value, jacobian.trace(), rtol=1e-3)
    assert not free.has_conditions
    assert free.has_unconditional


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.scores("cat", 10),
        lambda m: m.scores(0, 10),
        lambda m: m.encode(["cat"]),
        lambda m: m.check([]),
        lambda m: m.sample(["cat"], jax.random.key(0)),
        lambda m: m.sample(np.array([0]), jax.random.key(0)),
    ],
)
def test_what_needs_a_condition_says_so(call, free):
    with pytest.raises(ValueError, match="unconditional: it has no conditions or prompts"):
        call(free)


@pytest.mark.slow
def test_number_of_unconditional_images(free, model):
    key = jax.random.key(0)
    three = free.sample(key=key, num_images=3, num_steps=2)
    assert three.shape == (3, 1, 8, 8)
    np.testing.assert_allclose(
        free.sample(key=key, num_steps=2), three[:1], atol=1e-4 * np.abs(three).max()
    )
    with pytest.raises(ValueError, match="guidance must be 1, got 2"):
        free.sample(key=key, guidance=2.0)
    with pytest.raises(ValueError, match=r"noise must have shape \(2, 1, 8, 8\), .* got \(1, 1"):
        free.sample(noise=draw((1, 1, 8, 8)), num_images=2)
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        free.sample(key=key, num_images=0)
    with pytest.raises(ValueError, match="num_images is for models without conditions"):
        model.sample(["one"], key, num_images=2)


def run_command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["sharpjax", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    return end.value.code, " ".join((said.out + said.err).split())


@pytest.mark.slow
def test_commands_on_an_unconditional_model(free, free_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    of = ("--model", free_directory)
    code, _ = run_command(monkeypatch, capsys, "sample", *of, "--images", 2, "--steps", 2)
    assert code == 0
    pixels = np.asarray(Image.open("runs/sample-ddpm/images/00000-1.png"), np.float32)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 1)
    noise = jax.random.normal(jax.random.fold_in(key, 0), free.shape)
    expected = free.sample(noise=noise[None], num_steps=2)[0, 0]
    np.testing.assert_allclose(pixels / 127.5 - 1, np.clip(expected, -1, 1), atol=0.02)

    code, _ = run_command(
        monkeypatch, capsys, "images", *of, "runs/sample-ddpm/images",
        "--directions", 8, "--no-report",
    )  # fmt: skip
    assert code == 0
    lines = (tmp_path / "runs/images-ddpm/results.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert all("network" in json.loads(line) for line in lines)

    code, said = run_command(monkeypatch, capsys, "spectrum", *of, "--steps", 2, "--stages", 1)
    assert code == 0
    (line,) = (tmp_path / "runs/spectrum-ddpm/results.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["condition"] == "unconditional"
    x = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), free.shape)
    hessian = np.asarray(sharpjax.curvature.hessian(free.unconditional(record["t"]), x))
    values = record["sigma"] ** 2 * np.linalg.eigvalsh((hessian + hessian.T) / 2)
    np.testing.assert_allclose(record["exact"], values, atol=1e-4 * np.abs(values).max())

    (tmp_path / "prompts.txt").write_text("a cat\n")
    clear = "unconditional: it has no conditions or prompts"
    for arguments, message in (
        (("detect", *of), clear),
        (("detect", *of, "--prompts", "prompts.txt"), clear),
        (("calibrate", *of), clear),
        (("calibrate", *of, "--prompts", "prompts.txt"), clear),
        (("ground-truth", *of), clear),
        (("sample", *of, "--prompt", "a cat"), clear),
        (("sample", *of, "--guidance", 2), "guidance must be 1, got 2.0"),
        (("spectrum", *of, "--condition", "a cat"), clear),
        (("spectrum", *of, "--score", "difference"), "its score is 'unconditional'"),
        (("mitigate", *of, "--prompts", "prompts.txt"), "is a pixel model"),
    ):
        code, said = run_command(monkeypatch, capsys, *arguments)
        assert code == 1, arguments
        assert message in said, (arguments, said)


@pytest.mark.slow
def test_latent_pipeline_with_an_autoencoder(tmp_path):
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=1,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()
    folder = pixel_pipeline(
        tmp_path / "ldm", kind="LDMPipeline", scheduler=DDIMScheduler(clip_sample=False), vqvae=vae
    )
    model = sharpjax.load(folder)
    assert (model.shape, model.image_shape) == ((1, 8, 8), (3, 16, 16))
    images = torch.tensor(draw((2, 3, 16, 16)))
    noise = draw((2, 1, 8, 8))
    scale = vae.config.scaling_factor
    with torch.no_grad():
        encoded = vae.encode(images).latent_dist.mean * scale
        latents = torch.tensor(theirs_sampled(folder, noise, 5))
        expected = vae.decode(latents / scale).sample.numpy()
    np.testing.assert_allclose(
        model.encode_image(images.numpy()), encoded, atol=1e-4 * encoded.abs().max().item()
    )
    found = model.sample(noise=noise, num_steps=5)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    again = PixelDiffusion.from_pretrained(model.save_pretrained(tmp_path / "ours"))
    np.testing.assert_array_equal(again.sample(noise=noise, num_steps=5), found)
    diffusers.LDMPipeline.from_pretrained(tmp_path / "ours")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps(index | {"vqvae": ["diffusers", "VQModel"]})
    )
    with pytest.raises(ValueError, match=r"'vqvae' must be .*VQModel.*whose vqvae is an"):
        sharpjax.load(folder)


# --- learned variances -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_half_of_the_channels_is_the_noise(tmp_path):
    folder = pixel_pipeline(
        tmp_path / "m",
        out_channels=2,
        classes=4,
        scheduler=DDPMScheduler(variance_type="learned_range", clip_sample=False),
    )
    (folder / "conditions.json").write_text(json.dumps({"conditions": list(NAMES)}))
    model, unet = sharpjax.load(folder), diffusers.UNet2DModel.from_pretrained(folder / "unet")
    x, t = draw((1, 8, 8)), 500
    with torch.no_grad():
        eps = unet(torch.tensor(np.stack([x, x])), t, torch.tensor([3, 1])).sample.numpy()
    pair = model.scores("one", t)
    expected = (
        np.linalg.norm(eps[1, :1] - eps[0, :1])
        / (1 - DDPMScheduler().alphas_cumprod[t].item()) ** 0.5
    )
    both = np.linalg.norm(eps[1] - eps[0]) / float(pair.sigma)
    assert abs(both - expected) > 0.1 * expected  # the variance would show
    np.testing.assert_allclose(np.linalg.norm(pair.difference(x)), expected, rtol=1e-3)
    noise, scheduler = draw((1, 1, 8, 8)), DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(5)
    state = torch.tensor(noise)
    with torch.no_grad():
        for step in scheduler.timesteps:
            output = unet(state, step, torch.tensor([1])).sample[:, :1]
            state = scheduler.step(output, step, state).prev_sample
    images = model.sample(["one"], noise=noise, num_steps=5)
    np.testing.assert_allclose(images, state, atol=1e-3 * state.abs().max().item())
    again = PixelDiffusion.from_pretrained(model.save_pretrained(tmp_path / "ours"))
    np.testing.assert_array_equal(again.scores("one", t).both(x), pair.both(x))


@pytest.mark.parametrize(
    ("channels", "variance"),
    [(2, "fixed_small"), (3, "learned_range"), (6, "learned"), (4, "fixed_large")],
)
def test_other_numbers_of_channels_are_refused(channels, variance, tmp_path):
    folder = pixel_pipeline(
        tmp_path / "m", out_channels=channels, scheduler=DDPMScheduler(variance_type=variance)
    )
    with pytest.raises(ValueError, match=rf"maps 1 \(in.* to {channels} .* got '{variance}'"):
        sharpjax.load(folder)


def test_channels_of_a_network_that_was_not_loaded():
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=3, block_out_channels=(8,), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    model = PixelDiffusion(unet, Schedule.create(), ())
    with pytest.raises(ValueError, match="gives 3 channels for 1"):
        model.unconditional(10)(jnp.zeros((1, 8, 8)))


def test_names_without_classes(tmp_path):
    folder = pixel_pipeline(tmp_path / "m")
    (folder / "conditions.json").write_text('{"conditions": ["cat"]}')
    with pytest.raises(ValueError, match="1 conditions, but the unet has no classes"):
        sharpjax.load(folder)


def test_classes_without_names(tmp_path):
    folder = pixel_pipeline(tmp_path / "m", classes=4)
    with pytest.raises(FileNotFoundError, match=r"no conditions\.json .* the 4 classes .* 'none'"):
        sharpjax.load(folder)
