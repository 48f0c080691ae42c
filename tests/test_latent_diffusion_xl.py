"""A `StableDiffusionXLPipeline` as PyTorch writes it: conditions, scores, images, detection."""

import json
import shutil

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

import sharpjax as sj
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.detection.settings import DetectSettings
from sharpjax.mitigation.methods import check_applies
from sharpjax.models.convert import convert

PROMPTS = ["cat dog", "a dog"]


def make(tokenizer_folder, folder, *, zeros=True):
    """Every part tiny, weights random; the second tokenizer pads with `!`."""
    tokenizers = [
        CLIPTokenizer.from_pretrained(tokenizer_folder),
        CLIPTokenizer.from_pretrained(tokenizer_folder, pad_token="!"),
    ]
    ids = dict(bos_token_id=tokenizers[0].bos_token_id, eos_token_id=tokenizers[0].eos_token_id)
    torch.manual_seed(0)

    def text(kind, width, layers, act):
        return kind(CLIPTextConfig(
            vocab_size=len(tokenizers[0]), hidden_size=width, intermediate_size=2 * width,
            num_hidden_layers=layers, num_attention_heads=2, max_position_embeddings=12,
            projection_dim=10, hidden_act=act, **ids,
        ))  # fmt: skip

    encoders = [text(CLIPTextModel, 12, 3, "quick_gelu"),
                text(CLIPTextModelWithProjection, 20, 2, "gelu")]  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4,
        attention_head_dim=(2, 4), cross_attention_dim=32, use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=10 + 6 * 8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, sample_size=16, scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    with torch.no_grad():
        for module in (unet, vae, *encoders):
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        for encoder in encoders:
            encoder.get_input_embeddings().weight.mul_(50)
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae, text_encoder=encoders[0], text_encoder_2=encoders[1], tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1], unet=unet, force_zeros_for_empty_prompt=zeros,
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
            clip_sample=False, set_alpha_to_one=False,
        ),
        add_watermarker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def tokenizer_folder(stable_diffusion_directory):
    return stable_diffusion_directory / "tokenizer"


@pytest.fixture(scope="module")
def pair(tokenizer_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("xl")
    return make(tokenizer_folder, folder), folder


@pytest.fixture(scope="module", params=[True, False], ids=["zeros", "a text"])
def either(request, pair, tokenizer_folder, tmp_path_factory):
    """What the empty prompt is: zeros, or a text like another."""
    if request.param:
        return pair
    folder = tmp_path_factory.mktemp("text")
    return make(tokenizer_folder, folder, zeros=False), folder


def test_conditions(either):
    theirs, folder = either
    ours = sj.load(folder)
    text, empty, pooled, empty_pooled = theirs.encode_prompt(PROMPTS)
    found = np.asarray(ours.encode(PROMPTS))
    assert found.shape == (2, 13, 32)
    np.testing.assert_allclose(found[:, :-1], text.detach(), atol=1e-4)
    np.testing.assert_allclose(found[:, -1, :10], pooled.detach(), atol=1e-4)
    assert found[:, -1, 10:16].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    assert not found[:, -1, 16:].any()
    np.testing.assert_allclose(ours.empty[:-1], empty[0].detach(), atol=1e-4)
    np.testing.assert_allclose(ours.empty[-1, :10], empty_pooled[0].detach(), atol=1e-4)
    assert ours.empty[-1, 10:16].tolist() == [16, 16, 0, 0, 16, 16]


@pytest.mark.parametrize(("guidance", "size"), [(1.0, 16), (7.0, 16), (7.0, 24)])
def test_images(pair, guidance, size):
    theirs, folder = pair
    ours = sj.load(folder)
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((2, 4, size // 2, size // 2), dtype=np.float32)
    options = dict(guidance_scale=guidance, num_inference_steps=10, height=size, width=size)
    expected = theirs(PROMPTS, latents=torch.tensor(noise), output_type="np", **options).images
    found = ours.sample(
        PROMPTS, noise=noise, num_steps=10, guidance=guidance, height=size, width=size
    )
    found = (np.clip(found, -1, 1).transpose(0, 2, 3, 1) + 1) / 2
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_scores(either):
    theirs, folder = either
    ours = sj.load(folder)
    x = np.random.default_rng(0).standard_normal(ours.shape, dtype=np.float32)
    t, sigma = 681, float(ours.schedule.sigma(681))
    text, empty, pooled, empty_pooled = theirs.encode_prompt(PROMPTS[:1])
    both = ours.scores(PROMPTS[0], t).both(x)
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]])
    for found, context, vector in ((both[0], empty, empty_pooled), (both[1], text, pooled)):
        with torch.no_grad():
            out = theirs.unet(
                torch.tensor(x)[None], t, encoder_hidden_states=context,
                added_cond_kwargs={"text_embeds": vector, "time_ids": sizes},
            ).sample[0]  # fmt: skip
        expected = -out.numpy() / sigma
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_detection_runs(pair, tmp_path):
    model = sj.load(pair[1])
    names = ("score_difference", "hessian_score_difference", "condition_jacobian")
    settings = DetectSettings(statistics=names, num_noises=2, trace_noises=1)
    records = sj.runs.detect(
        model, PROMPTS, tmp_path / "run", settings, fingerprint="f", batch_size=2
    )
    values = [v for record in records for row in record["network"].values() for v in row]
    assert np.isfinite(values).all()


def test_methods_that_reach_into_the_text_are_refused(pair):
    model = sj.load(pair[1])
    for name in ("padding", "prompt_embedding", "cross_attention", "guard"):
        with pytest.raises(ValueError, match=name):
            check_applies(name, model)
    for name in ("sail", "noise_batch", "delayed_guidance", "ranked"):
        check_applies(name, model)


def test_written_again_it_is_the_same(either, tmp_path):
    theirs, folder = either
    conversion = convert(folder, tmp_path / "out")
    names = [part.name for part in conversion.parts]
    assert {"text_encoder_2", "tokenizer_2", "unet", "scheduler"} <= set(names)
    again = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "out")
    assert again.config.force_zeros_for_empty_prompt == theirs.config.force_zeros_for_empty_prompt
    sj.load(folder).save_pretrained(tmp_path / "saved")
    ours = sj.load(folder)
    for other in ("out", "saved"):
        model = sj.load(tmp_path / other)
        np.testing.assert_array_equal(model.empty, ours.empty)
        np.testing.assert_array_equal(model.encode(PROMPTS), ours.encode(PROMPTS))


def test_the_empty_prompt_is_part_of_the_fingerprint(tokenizer_folder, tmp_path):
    for name, zeros in (("a", True), ("b", False)):
        make(tokenizer_folder, tmp_path / name, zeros=zeros)
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_parts_that_do_not_fit(tokenizer_folder, tmp_path):
    make(tokenizer_folder, tmp_path / "a")
    for part, changes, message in (
        ("model_index.json", {"force_zeros_for_empty_prompt": "no"}, "must be true or false"),
        ("model_index.json", {"text_encoder_2": ["transformers", "T5EncoderModel"]},
         r"'text_encoder_2' must be \['transformers', CLIPTextModelWithProjection\]"),
        ("model_index.json", {"tokenizer_2": None}, "'tokenizer_2' must be"),
        ("unet/config.json", {"addition_time_embed_dim": 4}, "with six sizes of 4"),
    ):  # fmt: skip
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        path = tmp_path / "b" / part
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(ValueError, match=message):
            sj.load(tmp_path / "b")
    shutil.rmtree(tmp_path / "a/tokenizer_2")
    with pytest.raises(FileNotFoundError, match="tokenizer_2"):
        sj.load(tmp_path / "a")


def test_encoding_is_checked(pair):
    model = sj.load(pair[1])
    with pytest.raises(ValueError, match="clip_skip must be an integer from 0 to 1, got 2"):
        model.encode(PROMPTS, clip_skip=2)
    with pytest.raises(ValueError, match=r"one encoded prompt of shape \(tokens, 32\)"):
        model.scores(jnp.zeros((13, 8)), 3)


@pytest.mark.slow
def test_commands(pair, tmp_path, sharpjax):
    _, folder = pair
    (tmp_path / "p.txt").write_text("cat\ndog cat\n")
    for command in (
        ["detect", "--prompts", "p.txt", "--statistics", "first", "--noises", 2],
        ["mitigate", "--prompts", "p.txt", "--clean", "p.txt", "--all-prompts", "--method",
         "delayed_guidance", "--images", 1, "--steps", 4],
        ["sample", "--prompts", "p.txt", "--images", 1, "--steps", 4],
    ):  # fmt: skip
        done = sharpjax(*command, "--model", folder, "--output", f"{command[0]}-run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
