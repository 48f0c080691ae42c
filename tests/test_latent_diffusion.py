"""`LatentDiffusion` against PyTorch's `StableDiffusionPipeline`, from directory to pixels."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from sharpjax import LatentDiffusion, cli, load
from sharpjax.checkpoints import from_pretrained, save_pretrained
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.detection.statistics import hessian_score_difference
from sharpjax.models.convert import convert

PROMPTS = ["a cat", "the dog, 1999"]


pair_values = jax.jit(lambda pair, x: (pair.both(x), pair.unconditional(x), pair.conditional(x)))
guided = jax.jit(lambda pair, x, guidance: pair.guided(x, guidance))
statistic = jax.jit(hessian_score_difference)


@pytest.fixture(
    scope="module", params=["epsilon", pytest.param("v_prediction", marks=pytest.mark.slow)]
)
def directory(request, tmp_path_factory, stable_diffusion_directory, write_stable_diffusion):
    """One directory for each kind of prediction."""
    if request.param == "epsilon":
        return stable_diffusion_directory
    folder = tmp_path_factory.mktemp("models") / request.param
    return write_stable_diffusion(folder, prediction_type=request.param)


@pytest.fixture(scope="module")
def model(directory):
    return LatentDiffusion.from_pretrained(directory)


@pytest.fixture(scope="module")
def plain(stable_diffusion_directory):
    return LatentDiffusion.from_pretrained(stable_diffusion_directory)


def pipeline(directory):
    pipe = StableDiffusionPipeline.from_pretrained(directory, safety_checker=None)
    return with_ddim(pipe)


def with_ddim(pipe):
    # without clip_sample, which only the pipeline's own schedulers are spared
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def relative_error(ours, theirs):
    theirs = np.asarray(theirs)
    return np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)


# The first is the whole pipeline as users compile it.
@pytest.mark.slow
@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=pytest.mark.optimized), 7.5])
def test_samples_equal_the_pipeline(directory, model, guidance):
    """50 steps of DDIM from the same noise, latents and pixels."""
    noise, theirs = draw(2, 4, 8, 8), pipeline(directory)
    options = dict(latents=torch.tensor(noise), guidance_scale=guidance, num_inference_steps=50)
    latents = theirs(PROMPTS, output_type="latent", **options).images.numpy()
    images = theirs(PROMPTS, output_type="np", **options).images  # 0 to 1, channels last

    found = model.sample(PROMPTS, noise=noise, guidance=guidance, num_steps=50, decode=False)
    assert relative_error(found, latents) < 1e-3
    pixels = model.sample(PROMPTS, noise=noise, guidance=guidance, num_steps=50)
    ours = np.clip(pixels / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)
    assert relative_error(ours, images) < 1e-3
    assert ours.std() > 0.02  # not one colour: the comparison can fail
    assert relative_error(latents[0], latents[1]) > 0.1


def test_prompts_are_encoded_as_by_the_pipeline(stable_diffusion_directory, plain):
    theirs = pipeline(stable_diffusion_directory)
    expected, empty = theirs.encode_prompt(PROMPTS, "cpu", 1, True)
    assert relative_error(plain.encode(PROMPTS), expected.detach()) < 1e-5
    assert relative_error(plain.empty, empty[0].detach()) < 1e-5
    # the pipeline's own clip_skip looks for a name that transformers 5 has dropped
    ids = theirs.tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    states = theirs.text_encoder(ids, output_hidden_states=True).hidden_states
    skipped = theirs.text_encoder.final_layer_norm(states[-2]).detach()
    assert relative_error(plain.encode(PROMPTS, clip_skip=1), skipped) < 1e-5
    for prompt in ("", "🐈 \x00\t é", "a" * 30):
        with pytest.warns(match="tokens") if len(prompt) == 30 else contextlib.nullcontext():
            ours = plain.encode([prompt])
        expected, _ = theirs.encode_prompt([prompt], "cpu", 1, False)
        assert relative_error(ours, expected.detach()) < 1e-5


def test_images_are_encoded_and_decoded_as_by_the_autoencoder(stable_diffusion_directory, plain):
    vae = pipeline(stable_diffusion_directory).vae
    images = draw(3, 3, 16, 16)
    with torch.no_grad():
        posterior = vae.encode(torch.tensor(images)).latent_dist
        latents = posterior.mean * vae.config.scaling_factor
        decoded = vae.decode(latents / vae.config.scaling_factor).sample
    assert relative_error(plain.encode_image(images), latents) < 1e-5
    assert relative_error(plain.decode(latents.numpy()), decoded) < 1e-5
    sampled = plain.encode_image(images, jax.random.key(0))
    spread = np.asarray(sampled - plain.encode_image(images)) / vae.config.scaling_factor
    z = spread / posterior.std.numpy()
    assert abs(z.mean()) < 4 / z.size**0.5
    assert abs(z.std() - 1) < 4 / (2 * z.size) ** 0.5


@pytest.mark.slow
def test_a_shift_of_the_autoencoder_is_left_out_as_by_the_pipeline(
    stable_diffusion_directory, plain, tmp_path
):
    """The pipelines of Stable Diffusion divide by scaling_factor and know no shift_factor."""
    folder = shutil.copytree(stable_diffusion_directory, tmp_path / "shifted")
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shift_factor": 0.3}))
    (folder / "vae" / "manifest.sha256.json").unlink(missing_ok=True)
    theirs, shifted = pipeline(folder), LatentDiffusion.from_pretrained(folder)
    assert theirs.vae.config.shift_factor == shifted.vae.config["shift_factor"] == 0.3
    options = dict(latents=torch.tensor(draw(1, 4, 8, 8)), num_inference_steps=2)
    latents = theirs(PROMPTS[:1], output_type="latent", **options).images
    images = theirs(PROMPTS[:1], output_type="np", **options).images
    pixels = shifted.decode(latents.numpy())
    ours = np.clip(pixels / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)
    assert relative_error(ours, images) < 1e-5
    images = draw(1, 3, 16, 16)
    np.testing.assert_array_equal(shifted.encode_image(images), plain.encode_image(images))


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "SASolver"])
def test_a_directory_whose_solver_writes_minus_infinity(
    name, stable_diffusion_directory, plain, tmp_path
):
    folder = shutil.copytree(stable_diffusion_directory, tmp_path / name)
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    own = {"lambda_min_clipped": -float("inf")}
    if name == "SASolver":
        own["algorithm_type"] = "data_prediction"
    scheduler = getattr(diffusers, f"{name}Scheduler")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **own)
    pipe.save_pretrained(folder)
    assert "-Infinity" in (folder / "scheduler" / "scheduler_config.json").read_text()
    found = LatentDiffusion.from_pretrained(folder)
    np.testing.assert_array_equal(found.schedule.alphas, plain.schedule.alphas)


def test_scores_are_those_of_the_prediction(directory, model):
    theirs, t = pipeline(directory), 981
    x = draw(4, 8, 8)
    conditional, empty = theirs.encode_prompt(["a cat"], "cpu", 1, True)
    with torch.no_grad():
        output = theirs.unet(
            torch.tensor(np.stack([x, x])), t, torch.cat([empty, conditional])
        ).sample.numpy()
    alpha_bar = theirs.scheduler.alphas_cumprod[t].item()
    alpha, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    expected = {
        "epsilon": -output / sigma,
        "v_prediction": -x - alpha / sigma * output,
    }[model.schedule.prediction_type]
    pair = model.scores("a cat", t)
    encoded = model.scores(model.encode(["a cat"])[0], t)
    both, unconditional, conditional = pair_values(pair, x)
    for found in (both, np.stack([unconditional, conditional]), pair_values(encoded, x)[0]):
        assert relative_error(found, expected) < 1e-4


@pytest.mark.slow
def test_statistic_is_that_of_pytorch(stable_diffusion_directory, plain):
    """`hessian_score_difference` on text: scores, difference and tangent by torch.func.jvp."""
    theirs, t = pipeline(stable_diffusion_directory), 981
    x = draw(4, 8, 8)
    conditional, empty = theirs.encode_prompt(["a cat"], "cpu", 1, True)
    contexts = torch.cat([empty, conditional]).detach()
    sigma = float(plain.schedule.sigma(t))

    def difference(x):
        unconditional, conditional = theirs.unet(x.expand(2, -1, -1, -1), t, contexts).sample
        return -(conditional - unconditional) / sigma

    points = torch.tensor(x)[None]
    direction = difference(points)[None].detach()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, tangent = torch.autograd.functional.jvp(difference, points, direction)
    value = statistic(plain.scores("a cat", t), jnp.asarray(x))
    np.testing.assert_allclose(value, torch.linalg.norm(tangent).item(), rtol=1e-3)


@pytest.mark.slow
def test_another_prompt_does_not_compile_again(plain):
    x = jnp.asarray(draw(4, 8, 8))
    before = statistic._cache_size()
    values = [statistic(plain.scores(prompt, t), x) for prompt in PROMPTS for t in (981, 10)]
    assert statistic._cache_size() - before <= 1
    assert len({float(value) for value in values}) == 4


def test_round_trip_through_our_directory(directory, model, tmp_path):
    """Save from sharpjax, load in PyTorch and here: the same numbers."""
    model.save_pretrained(tmp_path / "ours")
    theirs = pipeline(tmp_path / "ours")
    before = pipeline(directory)
    for part in ("unet", "vae", "text_encoder"):
        old, new = (getattr(p, part).state_dict() for p in (before, theirs))
        assert old.keys() == new.keys()
        for key in old:
            assert torch.equal(old[key], new[key]), (part, key)
    noise = draw(1, 4, 8, 8)
    options = dict(
        latents=torch.tensor(noise), guidance_scale=3.0, num_inference_steps=5, output_type="np"
    )
    np.testing.assert_array_equal(
        theirs(PROMPTS[:1], **options).images, before(PROMPTS[:1], **options).images
    )
    again = load(tmp_path / "ours")
    assert isinstance(again, LatentDiffusion)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_half_precision_files_and_arithmetic(stable_diffusion_directory, plain, tmp_path):
    plain.save_pretrained(tmp_path / "half", dtype=np.float16, variant="fp16")
    names = {p.name for p in (tmp_path / "half" / "unet").iterdir()}
    assert "diffusion_pytorch_model.fp16.safetensors" in names
    pipe = StableDiffusionPipeline.from_pretrained(
        tmp_path / "half", variant="fp16", safety_checker=None, dtype=torch.float32
    )
    read = LatentDiffusion.from_pretrained(tmp_path / "half", variant="fp16")
    noise = draw(1, 4, 8, 8)
    theirs = with_ddim(pipe)(
        PROMPTS[:1], latents=torch.tensor(noise), num_inference_steps=4, output_type="latent"
    ).images
    ours = read.sample(PROMPTS[:1], noise=noise, num_steps=4, decode=False)
    assert relative_error(ours, theirs) < 1e-3

    coarse = LatentDiffusion.from_pretrained(stable_diffusion_directory, dtype=jnp.bfloat16)
    for module in (coarse.unet, coarse.vae, coarse.text_encoder):
        assert {leaf.dtype for leaf in jax.tree.leaves(module)} == {jnp.dtype(jnp.bfloat16)}
    scores = pair_values(coarse.scores("a cat", 981), noise[0])[0]
    assert scores.dtype == jnp.float32
    exact = pair_values(plain.scores("a cat", 981), noise[0])[0]
    # 2^-9 a rounding, some tens of layers
    assert relative_error(scores, exact) < 0.05


@pytest.mark.slow
def test_batches_and_numbers_of_images_do_not_change_samples(plain):
    options = dict(num_steps=3, eta=1.0, guidance=2.0, decode=False)
    together = plain.sample(PROMPTS, jax.random.key(0), num_images=2, batch_size=4, **options)
    apart = plain.sample(PROMPTS, jax.random.key(0), num_images=2, batch_size=3, **options)
    np.testing.assert_allclose(apart, together, atol=2e-4 * np.abs(together).max())
    assert relative_error(together[0], together[1]) > 0.1
    repeated = plain.encode(["a cat", "a cat", "the dog, 1999", "the dog, 1999"])
    again = plain.sample(repeated, jax.random.key(0), batch_size=4, **options)
    np.testing.assert_allclose(again, together, atol=2e-4 * np.abs(together).max())


@pytest.mark.slow
def test_guidance_of_each_step(plain):
    noise, weights = draw(1, 4, 8, 8), [0.0, 1.0, 5.0, -2.0]
    options = dict(noise=noise, num_steps=4, decode=False)
    found = plain.sample(["a cat"], guidance=weights, **options)
    by_step = dict(zip(plain.schedule.timesteps(4).tolist(), weights, strict=True))
    x, (grid, alphas, sigmas) = jnp.asarray(noise[0]), plain.schedule.levels(4)
    for k, t in enumerate(grid.tolist()):
        score = guided(plain.scores("a cat", t), x, by_step[t])
        x0 = (x + sigmas[k] ** 2 * score) / alphas[k]
        x = alphas[k + 1] * x0 - sigmas[k + 1] * sigmas[k] * score
    assert relative_error(found[0], x) < 1e-4
    two = options | {"noise": np.concatenate([noise, noise])}
    each = plain.sample(["a cat"] * 2, guidance=np.array([weights, [3.0] * 4]), **two)
    assert relative_error(each[0], x) < 1e-4
    constant = plain.sample(["a cat"], guidance=[3.0] * 4, **options)
    assert relative_error(each[1:], constant) < 1e-4
    assert relative_error(constant, plain.sample(["a cat"], guidance=3.0, **options)) < 1e-5
    with pytest.raises(
        ValueError, match=r"a finite number, 4 of them or an array of shape \(1, 4\), got"
    ):
        plain.sample(["a cat"], guidance=[3.0, 3.0], **options)


@pytest.mark.slow
def test_negative_prompt_and_size(stable_diffusion_directory, plain):
    theirs = pipeline(stable_diffusion_directory)
    noise = draw(1, 4, 12, 4)
    expected = theirs(
        ["a cat"], negative_prompt=["a dog"], latents=torch.tensor(noise), height=24, width=8,
        num_inference_steps=4, guidance_scale=4.0, output_type="latent",
    ).images  # fmt: skip
    options = dict(negative_prompt="a dog", num_steps=4, guidance=4.0, decode=False)
    found = plain.sample(["a cat"], noise=noise, **options)
    assert relative_error(found, expected) < 1e-3
    drawn = plain.sample(["a cat"], jax.random.key(0), height=24, width=8, **options)
    assert drawn.shape == (1, 4, 12, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode("a cat"), "list of prompts, got the string 'a cat'"),
        (lambda m: m.encode([]), "prompts must be at least one"),
        (lambda m: m.sample("a cat", jax.random.key(0)), "list of prompts, got the string 'a cat'"),
        (lambda m: m.scores(["a cat"], 981), "scores takes one prompt, .* got list"),
        (lambda m: m.sample(["a"], jax.random.key(0), guidance=float("nan")), "finite number"),
        (lambda m: m.sample(["a"], jax.random.key(0), num_steps=2.5), "num_steps must lie in"),
        (
            lambda m: m.scores(jnp.zeros((2, 12, 24)), 1),
            r"one encoded prompt of shape \(tokens, 24",
        ),
        (lambda m: m.scores("a", 1000), r"t must lie in 0\.\.999, got 1000"),
        (lambda m: m.unconditional(1000), r"t must lie in 0\.\.999, got 1000"),
        (lambda m: m.unconditional("10"), "t must be an integer, got '10'"),
        (lambda m: m.unconditional(None), "t must be an integer, got None"),
        (lambda m: m.sample(["a"]), "pass key="),
        (lambda m: m.sample([], jax.random.key(0)), "prompts must be at least one"),
        (
            lambda m: m.sample(["a"], noise=jnp.zeros((2, 4, 8, 8))),
            r"noise must have shape \(1, 4,",
        ),
        (lambda m: m.sample(["a"], jax.random.key(0), num_images=0), "num_images must be at least"),
        (lambda m: m.sample(["a"], jax.random.key(0), batch_size=0), "batch_size must be at least"),
        (lambda m: m.sample(["a"], jax.random.key(0), height=15), "height must be a multiple of 2"),
        (lambda m: m.sample(["a"], jax.random.key(0), num_steps=0), "num_steps must lie in"),
        (lambda m: m.sample(jnp.zeros((1, 3, 24)), jax.random.key(0)), "encoded prompts must have"),
    ],
)
def test_wrong_calls_are_named(call, message, plain):
    with pytest.raises(ValueError, match=message):
        call(plain)


def test_float16_is_for_files_only(stable_diffusion_directory):
    with pytest.raises(ValueError, match="dtype must be float32 or bfloat16, got float16"):
        LatentDiffusion.from_pretrained(stable_diffusion_directory, dtype=jnp.float16)


def edit(path, **changes):
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("model_index.json", dict(unet=["diffusers", "UNet3D"]), "'unet' must be .*, 'UNet2DC"),
        ("model_index.json", dict(_class_name="StableUnCLIPPipeline"), "must be StableDiffusionPi"),
        ("model_index.json", dict(vae=None), "'vae' must be"),
        ("model_index.json", dict(unet=["../unet", "UNet2DModel"]), "'unet' must be"),
        ("model_index.json", dict(prior=["a", "B"]), "unknown part 'prior'"),
        ("model_index.json", dict(text_encoder=5), "'text_encoder' must be"),
        ("unet/config.json", dict(sample_size=None), "sample_size must be given"),
        ("unet/config.json", dict(_class_name="UNet2DModel"), "unet"),
        ("tokenizer/tokenizer_config.json", dict(model_max_length=13), "model_max_length"),
        ("scheduler/scheduler_config.json", dict(beta_schedule="sigmoid"), "beta_schedule must be"),
        (
            "scheduler/scheduler_config.json",
            dict(_class_name="Flow"),
            "_class_name must .* 'Flow'",
        ),
    ],
)
def test_wrong_directory_is_named(part, changes, message, stable_diffusion_directory, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(stable_diffusion_directory, folder)
    edit(folder / part, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        LatentDiffusion.from_pretrained(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "part", ["model_index.json", "scheduler/scheduler_config.json", "vae", "tokenizer", "unet"]
)
def test_missing_part_is_named(part, stable_diffusion_directory, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(stable_diffusion_directory, folder)
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        LatentDiffusion.from_pretrained(folder)


@pytest.mark.slow
def test_works_without_torch(stable_diffusion_directory, tmp_path):
    """Load, encode, sample, decode, statistic and save where torch cannot be imported."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import jax, numpy as np, sharpjax as sj
model = sj.load({str(stable_diffusion_directory)!r})
images = model.sample(["a cat"], jax.random.key(0), num_steps=2)
x = model.encode_image(images)[0]
print(images.shape, float(sj.detection.hessian_score_difference(model.scores("a cat", 981), x)) > 0)
model.save_pretrained({str(tmp_path / "ours")!r})
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(1, 3, 16, 16) True"


# --- directories as users have them ------------------------------------------------------------


@pytest.fixture
def copy(stable_diffusion_directory, tmp_path):
    return shutil.copytree(stable_diffusion_directory, tmp_path / "sd")


def test_concepts_of_several_vectors_are_expanded_as_by_the_pipeline(copy):
    theirs = pipeline(copy)
    torch.manual_seed(3)
    for token, vectors in (("<cat-toy>", 3), ("<one>", 1)):
        theirs.load_textual_inversion({token: torch.randn(vectors, 24)})
    theirs.save_pretrained(copy)
    ours = load(copy)
    for prompt in (
        "a <cat-toy> dog", "<one> <cat-toy>", "a <cat-toy>_1 b", "a <cat-toy><cat-toy>", "a dog",
        "a <cat-toy", "a <CAT-TOY> dog",
    ):  # fmt: skip
        expected, _ = theirs.encode_prompt([prompt], "cpu", 1, False)
        assert relative_error(ours.encode([prompt]), expected.detach()) < 1e-5, prompt
    vocabulary = ours.tokenizer.backend.get_vocab()
    ids = ours.tokenizer(["a <cat-toy> dog"])[0]
    assert ids[2:5].tolist() == [vocabulary["<cat-toy>" + end] for end in ("", "_1", "_2")]
    assert ours.tokenizer.num_tokens("a <cat-toy> dog") == 7  # start, a, three, dog, end
    with pytest.warns(match="too long for 12 tokens: 4 were dropped"):  # counted when expanded
        ours.tokenizer(["<cat-toy> " * 4 + "a dog"])


def learned(folder, variance, channels=8):
    """The directory with a network that gives so many channels, and that network."""
    torch.manual_seed(4)
    config = diffusers.UNet2DConditionModel.load_config(folder / "unet")
    unet = diffusers.UNet2DConditionModel.from_config(config, out_channels=channels).eval()
    unet.save_pretrained(folder / "unet")
    edit(folder / "scheduler/scheduler_config.json", variance_type=variance)
    return unet


@pytest.mark.parametrize(
    ("channels", "variance"), [(8, None), (8, "fixed_small"), (6, "learned_range")]
)
def test_other_channels_than_a_learned_variance_are_refused(channels, variance, copy):
    learned(copy, variance, channels)
    with pytest.raises(ValueError, match=f"to {channels} channels"):
        load(copy)


@pytest.mark.slow
def test_a_learned_variance_is_left_out(copy, tmp_path):
    unet = learned(copy, "learned_range")
    model, x, t = load(copy), draw(4, 8, 8), 500
    pair = model.scores("a cat", t)
    contexts = torch.tensor(np.stack([model.empty, model.encode(["a cat"])[0]]))
    with torch.no_grad():
        eps = unet(torch.tensor(np.stack([x, x])), t, contexts).sample[:, :4].numpy()
    assert relative_error(pair_values(pair, x)[0], -eps / float(pair.sigma)) < 1e-4
    again = load(model.save_pretrained(tmp_path / "ours"))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_learned_variance_is_converted(copy, tmp_path):
    learned(copy, "fixed_small")
    with pytest.raises(ValueError, match="to 8 channels"):
        convert(copy, tmp_path / "converted")
    learned(copy, "learned")
    again, model = load(convert(copy, tmp_path / "converted").directory), load(copy)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_part_without_the_variant_is_read_from_its_plain_files(copy, plain, tmp_path):
    """As by diffusers, which warns too; without --variant there is one clear error."""
    save_pretrained(plain.unet, copy / "unet", dtype=np.float16, variant="fp16")
    (copy / "unet/diffusion_pytorch_model.safetensors").unlink()
    (copy / "unet/manifest.sha256.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"unet; name variant='fp16' \(--variant fp16\)"):
        load(copy)
    with pytest.warns(match=r"no variant 'fp16' of text_encoder, vae: the plain files are read"):
        model = load(copy, variant="fp16")
    theirs = StableDiffusionPipeline.from_pretrained(copy, variant="fp16", safety_checker=None)
    for name, part in (("unet", theirs.unet), ("vae", theirs.vae)):
        part.float().save_pretrained(tmp_path / name)
        found = model.unet if name == "unet" else model.vae
        expected = jax.tree.leaves(from_pretrained(tmp_path / name))
        for a, b in zip(jax.tree.leaves(found), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.warns(match="plain files"):
        fingerprint(copy, variant="fp16")
    with pytest.raises(
        FileNotFoundError,
        match=r"in any part .*; name variant='fp16' .* or variant=None \(no --variant\)",
    ):
        load(copy, variant="bf16")


@pytest.mark.slow
def test_links_out_of_the_directory_are_followed_on_request(copy, plain, tmp_path):
    """A linked folder on another disk, and files linked into the hub's cache."""
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (copy / "vae").rename(elsewhere / "vae")
    (copy / "vae").symlink_to(elsewhere / "vae")
    with pytest.raises(ValueError, match=r"vae is a link that leads outside .*follow_links=True"):
        load(copy)
    linked = [p for p in copy.rglob("*") if p.is_file() and not p.is_symlink()]
    for number, path in enumerate(linked):
        path.rename(elsewhere / str(number))
        path.symlink_to(elsewhere / str(number))
    for read in (load, fingerprint, lambda d: convert(d, tmp_path / "out")):
        with pytest.raises(ValueError, match=r"leads outside .*--follow-links"):
            read(copy)
    model = load(copy, follow_links=True)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(a, b)
    done = convert(copy, tmp_path / "out", follow_links=True)
    assert not done.left_out
    load(done.directory)
    with pytest.raises(ValueError, match="leads outside"):  # said of one call, not for ever
        load(copy)
    (copy / "vae").unlink()
    (copy / "vae").symlink_to(copy / "vae")
    with pytest.raises((ValueError, FileNotFoundError), match="vae"):
        load(copy, follow_links=True)


@pytest.mark.parametrize(
    "command",
    [
        "detect",
        *(pytest.param(c, marks=pytest.mark.slow)
          for c in ("calibrate", "sample", "spectrum", "mitigate")),
    ],
)  # fmt: skip
def test_commands_take_the_variant_and_the_links(command, copy, plain, monkeypatch, capsys):
    """Each comes as far as what is wrong on purpose, which lies behind the reading of the model."""
    save_pretrained(plain.unet, copy / "unet", variant="fp16")
    (copy / "unet/diffusion_pytorch_model.safetensors").unlink()
    (copy / "unet/manifest.sha256.json").unlink()
    (copy / "vae").rename(copy.parent / "vae")
    (copy / "vae").symlink_to(copy.parent / "vae")

    def said(*options):
        monkeypatch.setattr(sys, "argv", ["sharpjax", command, "--model", str(copy), *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 1
        return " ".join(capsys.readouterr().err.split())

    assert "leads outside" in said("--variant", "fp16")
    assert "variant='fp16'" in said("--follow-links")
    assert "prompts" in said("--variant", "fp16", "--follow-links")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            dict(_class_name="StableDiffusionXLPipeline", text_encoder_2=["transformers", "CLIP"]),
            r"'tokenizer_2' must be .*, got None",
        ),
        (dict(_class_name="StableDiffusion3Pipeline", unet=None, transformer=["diffusers", "SD3"]),
         r"'transformer' must be .'diffusers', 'SD3Transformer2DModel'., got .'diffusers', 'SD3'."),
        (dict(_class_name="FluxPipeline", unet=None), "class FluxPipeline is not read"),
        (dict(_class_name="DiTPipeline", unet=None),
         r"'transformer' must be \['diffusers', 'DiTTransformer2DModel'\], got None"),
        (dict(_class_name="PixArtAlphaPipeline", unet=None), "class PixArtAlphaPipeline is not"),
        (
            dict(_class_name="FlaxStableDiffusionPipeline", unet=["diffusers", "FlaxUNet"]),
            r"FlaxStableDiffusionPipeline is not read.* from_flax=True",
        ),
        (dict(vae=["diffusers", "VQModel"]), r"'vae' must be .* What is read: "),
    ],
)  # fmt: skip
def test_other_pipelines_are_named(index, message, copy):
    edit(copy / "model_index.json", **index)
    with pytest.raises(ValueError, match=message) as caught:
        load(copy)
    assert str(copy) in str(caught.value)


def test_what_is_no_directory_of_a_pipeline(copy, tmp_path):
    single = tmp_path / "v1-5-pruned.safetensors"
    shutil.copy(copy / "unet/diffusion_pytorch_model.safetensors", single)
    way = r"StableDiffusionPipeline.from_single_file\('.*'\).save_pretrained\(DIRECTORY\)"
    for suffix in (".safetensors", ".ckpt"):
        with pytest.raises(FileNotFoundError, match=way):
            load(single.rename(single.with_suffix(suffix)))
    (tmp_path / "folder").mkdir()
    single.with_suffix(".ckpt").rename(tmp_path / "folder/model.ckpt")
    with pytest.raises(FileNotFoundError, match=f"no model_index.json in .*model.ckpt.*{way}"):
        load(tmp_path / "folder")
    with pytest.raises(
        FileNotFoundError, match=r"single network, which .*checkpoints.from_pretrained"
    ):
        load(copy / "unet")
    flax = copy / "unet/diffusion_flax_model.msgpack"
    (copy / "unet/diffusion_pytorch_model.safetensors").rename(flax)
    for folder in (copy, copy / "unet"):
        with pytest.raises(FileNotFoundError, match=r"flax_model.msgpack: .*from_flax=True"):
            load(folder)


def test_a_model_says_which_guidance_it_is_meant_for(directory, tmp_path):
    """Kept by writing, converting and reading; PyTorch reads the directory all the same."""
    model = load(directory)
    assert model.default_guidance == 7.5
    assert not (model.save_pretrained(tmp_path / "usual") / "generation_config.json").exists()
    told = dataclasses.replace(model, default_guidance=2.5).save_pretrained(tmp_path / "told")
    convert(told, tmp_path / "converted")
    again = load(tmp_path / "converted")
    assert again.default_guidance == 2.5
    # a file of that name is left by no model that replaces this one
    assert not (model.save_pretrained(told) / "generation_config.json").exists()

    noise, two = jnp.asarray(draw(1, *again.shape)), dict(num_steps=2)
    own = again.sample(PROMPTS[:1], noise=noise, **two)
    np.testing.assert_array_equal(own, again.sample(PROMPTS[:1], noise=noise, guidance=2.5, **two))
    StableDiffusionPipeline.from_pretrained(tmp_path / "converted", safety_checker=None)


@pytest.mark.parametrize("value", ["true", '"3"', "NaN", "1e999", "[3]"])
def test_a_guidance_that_is_no_number(value, plain, tmp_path):
    folder = plain.save_pretrained(tmp_path / "model")
    (folder / "generation_config.json").write_text(f'{{"guidance_scale": {value}}}')
    with pytest.raises(ValueError, match=r"generation_config.json.*(finite number|not JSON|JSON)"):
        load(folder)
