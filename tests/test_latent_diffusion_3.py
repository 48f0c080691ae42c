"""A `StableDiffusion3Pipeline` as PyTorch writes it: conditions, scores, images, detection."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

import sharpjax as sj
from sharpjax.checkpoints.directory import Directory
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.checkpoints.t5_tokenizer import T5Tokenizer
from sharpjax.detection.settings import DetectSettings
from sharpjax.models.convert import convert

PROMPTS = ["cat dog", "a dog"]
PIECES = [
    ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("▁cat", -2.0), ("▁dog", -2.0),
    *((letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"),
]  # fmt: skip


def make(tokenizer_folder, folder, *, t5=True):
    """Every part tiny, weights random."""
    tokenizers = [
        CLIPTokenizer.from_pretrained(tokenizer_folder),
        CLIPTokenizer.from_pretrained(tokenizer_folder, pad_token="!"),
    ]
    ids = dict(bos_token_id=tokenizers[0].bos_token_id, eos_token_id=tokenizers[0].eos_token_id)
    torch.manual_seed(0)

    def text(width, layers, act):
        return CLIPTextModelWithProjection(CLIPTextConfig(
            vocab_size=len(tokenizers[0]), hidden_size=width, intermediate_size=2 * width,
            num_hidden_layers=layers, num_attention_heads=2, max_position_embeddings=12,
            projection_dim=width - 2, hidden_act=act, **ids,
        ))  # fmt: skip

    encoders = [text(12, 3, "quick_gelu"), text(10, 2, "gelu")]
    third = T5EncoderModel(T5Config(
        vocab_size=len(PIECES), d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    ))  # fmt: skip
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16,
        pooled_projection_dim=18, pos_embed_max_size=12, qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, sample_size=16, scaling_factor=1.5305,
        shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    with torch.no_grad():
        for module in (transformer, vae, *encoders):
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        for parameter in transformer.parameters():  # what gates the blocks starts at zero
            parameter.add_(0.05 * torch.randn_like(parameter))
        for encoder in encoders:
            encoder.get_input_embeddings().weight.mul_(50)
    for module in (third, transformer, vae, *encoders):
        module.eval()  # T5 drops some of its states otherwise
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=vae, text_encoder=encoders[0], text_encoder_2=encoders[1],
        tokenizer=tokenizers[0], tokenizer_2=tokenizers[1],
        text_encoder_3=third if t5 else None,
        tokenizer_3=T5TokenizerFast(vocab=PIECES, extra_ids=0) if t5 else None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def tokenizer_folder(stable_diffusion_directory):
    return stable_diffusion_directory / "tokenizer"


@pytest.fixture(scope="module")
def pair(tokenizer_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    return make(tokenizer_folder, folder), folder


@pytest.fixture(scope="module", params=[True, False], ids=["T5", "no T5"])
def either(request, pair, tokenizer_folder, tmp_path_factory):
    """With the third encoder and without it."""
    if request.param:
        return pair
    folder = tmp_path_factory.mktemp("two")
    return make(tokenizer_folder, folder, t5=False), folder


def encoded(pipe, prompts):
    return [one.detach() for one in pipe.encode_prompt(prompts, None, None)]


def test_conditions(either):
    theirs, folder = either
    ours = sj.load(folder)
    text, empty, pooled, empty_pooled = encoded(theirs, PROMPTS)
    found = np.asarray(ours.encode(PROMPTS))
    assert found.shape == (2, 12 + 256 + 1, 32)
    np.testing.assert_allclose(found[:, :-1], text, atol=1e-4)
    np.testing.assert_allclose(found[:, -1, :18], pooled, atol=1e-4)
    assert not found[:, -1, 18:].any()
    np.testing.assert_allclose(ours.empty[:-1], empty[0], atol=1e-4)
    np.testing.assert_allclose(ours.empty[-1, :18], empty_pooled[0], atol=1e-4)


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
    """s = -(x + alpha v)/(sigma (alpha + sigma)) = -(x + (1 - t) v)/t."""
    theirs, folder = either
    ours = sj.load(folder)
    x = np.random.default_rng(0).standard_normal(ours.shape, dtype=np.float32)
    t = 700.0
    text, empty, pooled, empty_pooled = encoded(theirs, PROMPTS[:1])
    both = ours.scores(PROMPTS[0], t).both(x)
    for found, context, vector in ((both[0], empty, empty_pooled), (both[1], text, pooled)):
        with torch.no_grad():
            v = theirs.transformer(
                torch.tensor(x)[None], encoder_hidden_states=context, pooled_projections=vector,
                timestep=torch.tensor([t]),
            ).sample[0].numpy()  # fmt: skip
        expected = -(x + 0.3 * v) / 0.7
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_images_are_shifted_and_scaled(pair):
    theirs, folder = pair
    ours = sj.load(folder)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        mean = theirs.vae.encode(torch.tensor(images)).latent_dist.mean
    z = np.asarray(ours.encode_image(images))
    np.testing.assert_allclose(z, (mean - 0.0609) * 1.5305, atol=1e-4)
    with torch.no_grad():
        expected = theirs.vae.decode(torch.tensor(z) / 1.5305 + 0.0609).sample
    np.testing.assert_allclose(ours.decode(z), expected, atol=1e-4)


def test_detection_begins_at_the_first_level_with_a_signal(pair, tmp_path):
    model = sj.load(pair[1])
    names = ("score_difference", "hessian_score_difference", "guidance_alignment",
             "effective_dimension", "path_score_difference", "gap_divergence",
             "condition_jacobian", "p_laplacian")  # fmt: skip
    settings = DetectSettings(
        statistics=names, num_noises=2, trace_noises=1, num_steps=6, trace_timesteps=(800, 600),
        num_directions=16,
    )  # fmt: skip
    records = sj.runs.detect(
        model, PROMPTS, tmp_path / "run", settings, fingerprint="f", batch_size=2
    )
    first = model.schedule.timesteps(6)[1]
    assert f"score_difference@{first:.6g}" in records[0]["network"]
    values = [v for record in records for row in record["network"].values() for v in row]
    assert np.isfinite(np.concatenate([np.ravel(v) for v in values])).all()
    length = records[0]["network"][f"score_difference@{first:.6g}"]
    assert min(length) > 1e-6
    # where the image is gone the two scores are one, and the velocities are not
    x = np.random.default_rng(0).standard_normal(model.shape, dtype=np.float32)
    context = model.encode(PROMPTS[:1])[0]
    assert float(model.schedule.alpha(1000.0)) == 0
    away, towards = model.predictions(context, 1000.0)(x)
    assert np.abs(away - towards).max() > 1e-4


def test_written_again_it_is_the_same(either, tmp_path):
    theirs, folder = either
    has_t5 = theirs.text_encoder_3 is not None
    conversion = convert(folder, tmp_path / "out")
    names = {part.name for part in conversion.parts}
    assert {"text_encoder_2", "tokenizer_2", "transformer", "scheduler"} <= names
    assert ("tokenizer_3" in names) == has_t5
    none = {} if has_t5 else {"text_encoder_3": None, "tokenizer_3": None}  # not optional there
    again = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path / "out", **none)
    assert again.scheduler.config.shift == 3.0
    for mine, other in zip(encoded(again, PROMPTS), encoded(theirs, PROMPTS), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)
    ours = sj.load(folder)
    ours.save_pretrained(tmp_path / "saved")
    for other in ("out", "saved"):
        model = sj.load(tmp_path / other)
        np.testing.assert_array_equal(model.empty, ours.empty)
        np.testing.assert_array_equal(model.encode(PROMPTS), ours.encode(PROMPTS))
        assert model.default_guidance == 7.0


def test_parts_that_do_not_fit(tokenizer_folder, tmp_path):
    make(tokenizer_folder, tmp_path / "a")
    for part, changes, message in (
        ("model_index.json", {"text_encoder_3": None}, "go together: both or none"),
        ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModel"]},
         r"'text_encoder_2' must be \['transformers', CLIPTextModelWithProjection\]"),
        ("model_index.json", {"scheduler": ["diffusers", "DDIMScheduler"]},
         r"'scheduler' must be \['diffusers', FlowMatchEulerDiscreteScheduler\]"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"},
         "_class_name must be FlowMatchEulerDiscreteScheduler, got 'DDIMScheduler'"),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True},
         "use_dynamic_shifting must be off"),
        ("scheduler/scheduler_config.json", {"shift": 10**400}, "scheduler_config.json: .* large"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9},
         "num_train_timesteps must be from 1 to 100000, got 1000000000"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 8},
         "tokenizer and tokenizer_2 must make as many tokens"),
    ):  # fmt: skip
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        path = tmp_path / "b" / part
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(ValueError, match=message):
            sj.load(tmp_path / "b")
    (tmp_path / "a/tokenizer_3/tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json in .*tokenizer_3"):
        sj.load(tmp_path / "a")


def test_a_flow_under_a_network_of_noise_is_refused(stable_diffusion_directory, tmp_path):
    shutil.copytree(stable_diffusion_directory, tmp_path / "sd")
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (tmp_path / "sd/scheduler/scheduler_config.json").write_text(json.dumps(flow))
    with pytest.raises(ValueError, match=r"_class_name must be one of .* another forward process"):
        sj.load(tmp_path / "sd")


def test_the_fingerprint_is_of_all_parts(pair, tmp_path):
    folder = pair[1]
    first = fingerprint(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == first
    path = tmp_path / "copy/text_encoder_2/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (tmp_path / "copy/text_encoder_2/manifest.sha256.json").unlink(missing_ok=True)
    assert fingerprint(tmp_path / "copy") != first


def test_t5_tokens(tokenizer_folder, tmp_path):
    tokenizer = T5TokenizerFast(vocab=PIECES, extra_ids=0)
    tokenizer.save_pretrained(tmp_path / "t")
    ours = T5Tokenizer.from_pretrained(Directory(tmp_path), "t")
    prompts = ["cat dog", "", "a  cow; Ünï"]
    expected = tokenizer(prompts, padding="max_length", max_length=256)["input_ids"]
    np.testing.assert_array_equal(ours(prompts), expected)
    with pytest.warns(UserWarning, match="1 of 1 prompts are longer than 256 tokens"):
        found = ours(["dog " * 300])
    expected = tokenizer(["dog " * 300], truncation=True, max_length=256)["input_ids"]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="prompts must be text, got 3"):
        ours([3])
    (tmp_path / "t/tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match=r"tokenizer\.json: "):
        T5Tokenizer.from_pretrained(Directory(tmp_path), "t")


@pytest.mark.slow
def test_commands(pair, tmp_path, sharpjax):
    _, folder = pair
    (tmp_path / "p.txt").write_text("cat\ndog cat\n")
    for command in (
        ["detect", "--prompts", "p.txt", "--statistics", "first", "--noises", 2, "--steps", 6],
        ["mitigate", "--prompts", "p.txt", "--clean", "p.txt", "--all-prompts", "--method",
         "ranked", "--images", 1, "--steps", 6],
        ["sample", "--prompts", "p.txt", "--images", 1, "--steps", 6],
    ):  # fmt: skip
        done = sharpjax(*command, "--model", folder, "--output", f"{command[0]}-run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
