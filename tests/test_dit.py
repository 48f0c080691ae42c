"""`DiTTransformer2DModel` against the PyTorch module, and a `DiTPipeline` as PyTorch writes it.

Outputs, tangents, scores, images, detection; directories both ways, damaged ones refused.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline
from diffusers import DiTTransformer2DModel as TorchDiT
from diffusers.models.attention_processor import AttnProcessor
from flax import nnx

import sharpjax as sj
from sharpjax.checkpoints import from_pretrained, save_pretrained
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.detection.settings import DetectSettings
from sharpjax.models.convert import convert
from sharpjax.networks.dit_transformer_2d import DiTTransformer2DModel

SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 5,
}
CONFIGS = {
    "plain": SMALL,
    "learned_variance": SMALL | {"out_channels": 8},
    "no_bias_affine": SMALL
    | {"attention_bias": False, "norm_elementwise_affine": True, "norm_eps": 1e-6},
    "patches_of_four": SMALL | {"patch_size": 4, "in_channels": 3, "num_attention_heads": 3},
    "patches_of_one": SMALL | {"patch_size": 1, "sample_size": 4},
}


@jax.jit
def value_and_tangent(model, x, t, labels, v):
    return jax.jvp(lambda x: model(x, t, class_labels=labels), (x,), (v,))


def torch_model(config):
    """Random weights everywhere: PyTorch starts what gates the blocks so that some do nothing."""
    torch.manual_seed(0)
    model = TorchDiT(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    for module in model.modules():  # fused attention has no forward-mode derivative
        if hasattr(module, "set_processor"):
            module.set_processor(AttnProcessor())
    return model


def inputs(config, side=None):
    rng = np.random.default_rng(1)
    side = side or config["sample_size"]
    shape = (3, config.get("in_channels", 4), side, side)
    x, v = rng.standard_normal((2, *shape)).astype(np.float32)
    return x, np.array([3, 500, 981]), np.array([0, 5, 2]), v  # class 5 of five is none


@pytest.mark.parametrize("name", CONFIGS)
def test_value_and_tangent(name, tmp_path):
    theirs = torch_model(CONFIGS[name])
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    x, t, labels, v = inputs(CONFIGS[name])

    def function(x):
        return theirs(x, torch.tensor(t), torch.tensor(labels)).sample

    value, tangent = torch.func.jvp(function, (torch.tensor(x),), (torch.tensor(v),))
    found = value_and_tangent(ours, x, t, labels, v)
    for mine, other, limit in zip(found, (value, tangent), (1e-4, 1e-3), strict=True):
        other = other.detach().numpy()
        assert np.abs(mine - other).max() < limit * np.abs(other).max()


def test_another_size_covers_the_same_range(tmp_path):
    theirs = torch_model(SMALL)
    theirs.save_pretrained(tmp_path)
    x, t, labels, _ = inputs(SMALL, side=12)
    with torch.no_grad():
        expected = theirs(torch.tensor(x), torch.tensor(t), torch.tensor(labels)).sample.numpy()
    found = from_pretrained(tmp_path)(jnp.asarray(x), t, class_labels=labels)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_pytorch_reads_what_is_written(tmp_path):
    model = DiTTransformer2DModel(**SMALL, rngs=nnx.Rngs(0))
    save_pretrained(model, tmp_path / "transformer")
    x, t, labels, _ = inputs(SMALL)
    theirs = TorchDiT.from_pretrained(tmp_path / "transformer").eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(x), torch.tensor(t), torch.tensor(labels)).sample.numpy()
    found = model(jnp.asarray(x), t, class_labels=labels)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size must divide sample_size, got 3 and 8"),
        ({"attention_head_dim": 5, "num_attention_heads": 1}, "must be a multiple of 4, got 1"),
        ({"activation_fn": "geglu"}, "activation_fn must be one of gelu-approximate"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DiTTransformer2DModel(**SMALL | changes, rngs=nnx.Rngs(0))


def test_inputs_that_do_not_fit():
    model = DiTTransformer2DModel(**SMALL, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="class_labels"):
        model(jnp.zeros((1, 4, 8, 8)), 3)
    with pytest.raises(ValueError, match="multiples of patch_size 2, got 7 and 8"):
        model(jnp.zeros((1, 4, 7, 8)), 3, class_labels=jnp.array([0]))


# --- the pipeline ------------------------------------------------------------------------------

CLASSES = ["tench, Tinca tinca", "goldfish", "great white shark", "hen", "ostrich"]
LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}


def make(folder, *, classes=1000, labels=None, out_channels=8):
    """A small one; the null class of diffusers' pipeline is always 1,000."""
    config = SMALL | {"num_embeds_ada_norm": classes, "out_channels": out_channels}
    torch.manual_seed(1)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4,
                        sample_size=8).eval()  # fmt: skip
    names = {str(i): f"class {i}" for i in range(classes)} if labels is None else labels
    scheduler = DDIMScheduler(**LINEAR, clip_sample=False, set_alpha_to_one=False)
    pipe = DiTPipeline(torch_model(config), vae, scheduler, id2label=names)
    pipe.register_to_config(id2label=names)
    pipe.save_pretrained(folder)
    return pipe


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dit")
    return make(folder), folder


def test_scores(pair):
    theirs, folder = pair
    ours = sj.load(folder)
    assert len(ours.conditions) == 1000
    assert ours.has_unconditional
    x = np.random.default_rng(0).standard_normal(ours.shape, dtype=np.float32)
    t, sigma = 681, float(ours.schedule.sigma(681))
    both = ours.scores("class 7", t).both(x)
    for label, found in ((1000, both[0]), (7, both[1])):
        with torch.no_grad():
            out = theirs.transformer(
                torch.tensor(x)[None], torch.tensor([t]), torch.tensor([label])
            ).sample[0, :4]
        expected = -out.numpy() / sigma
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_images(pair, guidance, monkeypatch):
    theirs, folder = pair
    theirs.set_progress_bar_config(disable=True)
    ours = sj.load(folder)
    noise = np.random.default_rng(2).standard_normal((2, *ours.shape), dtype=np.float32)
    monkeypatch.setattr(
        "diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda *a, **k: torch.tensor(noise)
    )
    expected = theirs(
        [7, 3], guidance_scale=guidance, num_inference_steps=10, output_type="np"
    ).images
    found = ours.sample(["class 7", "class 3"], noise=noise, num_steps=10, guidance=guidance)
    found = (np.clip(found, -1, 1).transpose(0, 2, 3, 1) + 1) / 2
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_written_again_it_is_the_same(pair, tmp_path):
    _, folder = pair
    conversion = convert(folder, tmp_path / "out")
    assert [part.name for part in conversion.parts] == ["transformer", "vae", "scheduler"]
    again = DiTPipeline.from_pretrained(tmp_path / "out")
    assert again.get_label_ids(["class 7"]) == [7]
    ours, model = sj.load(folder), sj.load(tmp_path / "out")
    assert model.conditions == ours.conditions
    x = np.random.default_rng(0).standard_normal(ours.shape, dtype=np.float32)
    np.testing.assert_array_equal(
        model.scores("class 7", 300).both(x), ours.scores("class 7", 300).both(x)
    )


def test_detection_runs(pair, tmp_path):
    _, folder = pair
    model = sj.load(folder)
    names = ("score_difference", "hessian_score_difference", "effective_dimension")
    settings = DetectSettings(statistics=names, num_noises=2, trace_noises=1)
    records = sj.runs.detect(
        model, ["class 0", "class 9"], tmp_path / "run", settings, fingerprint="f", batch_size=2
    )
    values = [v for record in records for row in record["network"].values() for v in row]
    assert np.isfinite(values).all()


def test_fingerprints_tell_models_apart(pair, tmp_path):
    _, folder = pair
    first = fingerprint(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == first
    index = json.loads((tmp_path / "copy/model_index.json").read_text())
    index["id2label"]["7"] = "another"
    (tmp_path / "copy/model_index.json").write_text(json.dumps(index))
    assert fingerprint(tmp_path / "copy") != first
    make(tmp_path / "other", classes=5)
    assert fingerprint(tmp_path / "other") != first


@pytest.mark.slow
def test_detect_by_the_command(pair, tmp_path, sharpjax):
    _, folder = pair
    command = ["detect", "--model", folder, "--condition", "class 0", "--condition", "class 9",
               "--statistics", "first", "--noises", 2, "--output", "run", "--json"]  # fmt: skip
    done = sharpjax(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/report.html").is_file()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "id2label must name the 5 classes of the transformer"),
        ({"0": "a", "1": "b"}, "id2label must name the 5 classes"),
        ({str(i): "same" for i in range(5)}, "names in id2label must be distinct"),
        (["a", "b", "c", "d", "e"], "id2label must name the 5 classes"),
    ],
)
def test_names_that_do_not_fit(labels, message, tmp_path):
    make(tmp_path, classes=5, labels={str(i): name for i, name in enumerate(CLASSES)})
    assert sj.load(tmp_path).conditions == tuple(CLASSES)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["id2label"] = labels
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        sj.load(tmp_path)


def test_parts_that_do_not_fit(tmp_path):
    make(tmp_path / "a", classes=5, labels=dict(enumerate(CLASSES)))
    whole = json.loads((tmp_path / "a/model_index.json").read_text())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for change, message in (
        ({"transformer": ["diffusers", "PixArtTransformer2DModel"]},
         r"'transformer' must be \['diffusers', 'DiTTransformer2DModel'\]"),
        ({"vae": None}, r"'vae' must be \['diffusers', AutoencoderKL\], got None"),
        ({"text_encoder": ["transformers", "CLIPTextModel"]}, "unknown part 'text_encoder'"),
    ):  # fmt: skip
        (tmp_path / "b/model_index.json").write_text(json.dumps(whole | change))
        with pytest.raises(ValueError, match=message):
            sj.load(tmp_path / "b")
    shutil.rmtree(tmp_path / "a/vae")
    with pytest.raises(FileNotFoundError, match="vae"):
        sj.load(tmp_path / "a")
