"""Model directories: what PyTorch writes, every kind of damage, and ``PixelDiffusion`` on disk."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from diffusers import UNet2DModel as TorchUNet2DModel
from safetensors.numpy import load_file, save_file

from sharpjax.models import from_pretrained, save_pretrained
from sharpjax.models.checkpoints import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.schedules import Schedule

CONFIG = dict(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    attention_head_dim=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    num_class_embeds=4,
)
NAMES = ("zero", "one", "two")
KEY = "mid_block.attentions.0.to_q.weight"  # square, so only its name tells it from its transpose
CONV = "conv_in.weight"


def torch_unet():
    torch.manual_seed(0)
    return TorchUNet2DModel(**CONFIG).eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A directory by PyTorch's own ``save_pretrained``; tests copy it before they touch it."""
    folder = tmp_path_factory.mktemp("torch") / "unet"
    torch_unet().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "model")


def change_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def change_config(folder, **changes):
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors_of(module, tmp_path):
    """Every parameter under its PyTorch name and in its PyTorch layout."""
    return load_file(save_pretrained(module, tmp_path / "as_written") / WEIGHTS_NAME)


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
        assert found[key].dtype == np.float32


# --- what is read ------------------------------------------------------------------------------


def test_every_tensor_arrives_bit_for_bit(folder, tmp_path):
    expected = load_file(folder / WEIGHTS_NAME)
    assert {KEY, CONV, "class_embedding.weight"} <= expected.keys()
    assert_same_tensors(tensors_of(from_pretrained(folder), tmp_path), expected)


def test_legacy_attention_names(folder, tmp_path):
    expected = load_file(folder / WEIGHTS_NAME)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        for key in list(tensors):
            for new, legacy in old.items():
                if f".{new}." in key:
                    tensors[key.replace(f".{new}.", f".{legacy}.")] = tensors.pop(key)
        assert sum(".proj_attn." in key for key in tensors) == 8  # 4 attentions, weight and bias

    change_tensors(folder, rename)
    assert_same_tensors(tensors_of(from_pretrained(folder), tmp_path), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(dtype, tmp_path):
    model = torch_unet().to(dtype)
    model.save_pretrained(tmp_path / "other")
    expected = {k: v.float().numpy() for k, v in model.state_dict().items()}
    assert_same_tensors(tensors_of(from_pretrained(tmp_path / "other"), tmp_path), expected)


def test_stored_as_float16(written, tmp_path):
    module = from_pretrained(written)
    stored = load_file(save_pretrained(module, tmp_path / "half", dtype=np.float16) / WEIGHTS_NAME)
    assert {v.dtype for v in stored.values()} == {np.dtype(np.float16)}
    again = tensors_of(from_pretrained(tmp_path / "half"), tmp_path)
    assert_same_tensors(again, {k: v.astype(np.float32) for k, v in stored.items()})


# --- damaged weights ---------------------------------------------------------------------------


def poke(key, value):
    def change(tensors):
        tensors[key].ravel()[-1] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), rf"1 tensor\(s\) missing, the first is '{KEY}'"),
        (lambda t: t.update(extra=np.ones(2, np.float32)), "'extra' has no place"),
        (lambda t: t.update({KEY + "x": t.pop(KEY)}), rf"'{KEY}x' has no place"),
        (
            lambda t: t.update({CONV: t[CONV].transpose(2, 3, 1, 0).copy()}),
            rf"'{CONV}' has shape \(3, 3, 1, 8\), this model needs \(8, 1, 3, 3\)",
        ),
        (lambda t: t.update({CONV: t[CONV][:4]}), rf"'{CONV}' has shape \(4, 1, 3, 3\)"),
        (poke(KEY, np.nan), rf"'{KEY}' contains NaN or infinite"),
        (poke(CONV, -np.inf), rf"'{CONV}' contains NaN or infinite"),
        (
            lambda t: t.update({KEY: t[KEY].astype(np.float64) + 1e300}),
            rf"'{KEY}' contains NaN or infinite",
        ),
        (
            lambda t: t.update({KEY: t[KEY].astype(np.int32)}),
            rf"'{KEY}' must be floating point, got int32",
        ),
        (
            lambda t: t.update({KEY.replace("to_q", "query"): t[KEY]}),
            rf"'mid_block.attentions.0.(query|to_q).weight' fills '{KEY}' a second time",
        ),
    ],
    ids=[
        "missing", "extra", "renamed", "transposed", "short", "nan", "inf", "overflow", "integer",
        "duplicate",
    ],
)  # fmt: skip
def test_damaged_tensor_is_named(change, message, folder):
    change_tensors(folder, change)
    with pytest.raises(ValueError, match=message) as caught:
        from_pretrained(folder)
    assert str(folder / WEIGHTS_NAME) in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_file(keep, folder):
    path = folder / WEIGHTS_NAME
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="truncated or not a safetensors file") as caught:
        from_pretrained(folder)
    assert str(path) in str(caught.value)


def test_pickle_is_never_read(tmp_path):
    torch_unet().save_pretrained(tmp_path, safe_serialization=False)
    pickled = "diffusion_pytorch_model.bin"
    assert (tmp_path / pickled).is_file()
    with pytest.raises(FileNotFoundError, match=rf"no {WEIGHTS_NAME} in .*{pickled} is pickle"):
        from_pretrained(tmp_path)


def test_no_weights_and_no_directory(folder):
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {WEIGHTS_NAME} in {folder}$"):
        from_pretrained(folder)
    (folder / CONFIG_NAME).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {CONFIG_NAME} in {folder}"):
        from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="no model directory"):
        from_pretrained(folder / "elsewhere")


# --- damaged configuration ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(attention_type="gated"), "unknown configuration key 'attention_type'"),
        (dict(_class_name="UNet1DModel"), "_class_name 'UNet1DModel' is not supported"),
        (dict(_class_name=None), "_class_name None is not supported"),
        (dict(_class_name=["UNet2DModel"]), "is not supported"),
        (dict(rngs=0), "unknown configuration key 'rngs'"),
        (dict(act_fn="tanh"), "unknown act_fn 'tanh'"),
        (dict(norm_num_groups=3), "norm_num_groups=3 must divide"),
        (dict(norm_num_groups=0), CONFIG_NAME),
        (dict(block_out_channels="wide"), CONFIG_NAME),
        (dict(block_out_channels=[]), CONFIG_NAME),
        (dict(layers_per_block="2"), CONFIG_NAME),
        (dict(in_channels=3), rf"'{CONV}' has shape \(8, 1, 3, 3\), this model needs \(8, 3"),
        (dict(num_class_embeds=None), "'class_embedding.weight' has no place"),
    ],
)
def test_wrong_configuration_is_named(changes, message, folder):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        from_pretrained(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", '"UNet2DModel"', "\udcff"])
def test_configuration_is_not_a_json_object(text, folder):
    (folder / CONFIG_NAME).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="JSON") as caught:
        from_pretrained(folder)
    assert str(folder / CONFIG_NAME) in str(caught.value)


# --- manifest ----------------------------------------------------------------------------------


@pytest.fixture
def ours(written, tmp_path):
    """A directory by our writer, which has a manifest."""
    return save_pretrained(from_pretrained(written), tmp_path / "ours")


def test_manifest_notices_one_flipped_bit(ours):
    from_pretrained(ours)
    path = ours / WEIGHTS_NAME
    data = bytearray(path.read_bytes())
    data[-4] ^= 1  # the last bit of one float: nothing else could notice
    path.write_bytes(data)
    with pytest.raises(ValueError, match="does not match its digest") as caught:
        from_pretrained(ours)
    assert str(path) in str(caught.value)


def test_manifest_notices_an_edited_configuration(ours):
    change_config(ours, norm_eps=1e-3)
    with pytest.raises(ValueError, match=rf"{CONFIG_NAME} does not match its digest"):
        from_pretrained(ours)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\\b"])
def test_manifest_names_a_path(name, ours):
    path = ours / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: "0" * 64}))
    with pytest.raises(ValueError, match="is not a plain file name") as caught:
        from_pretrained(ours)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"other.safetensors": ""}', FileNotFoundError, r"names other\.safetensors"),
        (f'{{"{CONFIG_NAME}": 5}}', ValueError, "does not match"),
        ("[]", ValueError, "JSON object"),
        ("{", ValueError, "not valid JSON"),
    ],
)
def test_damaged_manifest(text, error, message, ours):
    (ours / MANIFEST_NAME).write_text(text)
    with pytest.raises(error, match=message) as caught:
        from_pretrained(ours)
    assert MANIFEST_NAME in str(caught.value)


# --- paths -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subfolder", ["../model", "..", ".", "", "a/../../model", "/etc", "unet/", ".hidden", "a\0b"]
)
def test_subfolder_may_not_leave(subfolder, folder):
    with pytest.raises(ValueError, match="must be a plain name inside"):
        from_pretrained(folder, subfolder)


def test_subfolder_missing(folder):
    with pytest.raises(FileNotFoundError, match="no folder 'unet'"):
        from_pretrained(folder, "unet")


def test_linked_subfolder_may_not_leave(folder, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "unet").symlink_to(folder)
    with pytest.raises(ValueError, match="link that leads outside") as caught:
        from_pretrained(root, "unet")
    assert str(root / "unet") in str(caught.value)
    shutil.copytree(folder, root / "inside")
    (root / "unet").unlink()
    (root / "unet").symlink_to("inside")
    from_pretrained(root, "unet")


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_linked_file_may_not_leave(name, folder, tmp_path):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(ValueError, match="link that leads outside") as caught:
        from_pretrained(folder)
    assert str(folder / name) in str(caught.value)


def test_links_of_a_hub_cache_are_followed(folder, tmp_path):
    """``snapshots/<revision>/unet/<file>`` -> ``blobs/<digest>``, as in a hub cache."""
    cache = tmp_path / "models--someone--digits"
    snapshot = cache / "snapshots" / "0123abc" / "unet"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, name in enumerate([CONFIG_NAME, WEIGHTS_NAME]):
        (folder / name).rename(cache / "blobs" / str(number))
        (snapshot / name).symlink_to(f"../../../blobs/{number}")
    from_pretrained(snapshot.parent, "unet")
    from_pretrained(snapshot)
    # another model's blobs are outside
    cache.rename(tmp_path / "models--other")
    shutil.copytree(tmp_path / "models--other", cache, symlinks=True)
    link = cache / "snapshots" / "0123abc" / "unet" / WEIGHTS_NAME
    link.unlink()
    link.symlink_to(tmp_path / "models--other" / "blobs" / "1")
    with pytest.raises(ValueError, match="link that leads outside"):
        from_pretrained(snapshot.parent, "unet")


# --- PixelDiffusion ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(written):
    return PixelDiffusion(from_pretrained(written), Schedule.create(), NAMES)


@pytest.fixture
def saved(model, tmp_path):
    return model.save_pretrained(tmp_path / "pixel")


pair_values = jax.jit(
    lambda pair, x: (pair.both(x), pair.unconditional(x), pair.conditional(x), pair.difference(x))
)


def draw(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_scores_are_minus_eps_over_sigma(model):
    """Both views and the batched form, against the PyTorch network with label and with "none"."""
    theirs, scheduler = torch_unet(), DDIMScheduler(beta_schedule="scaled_linear",
                                                    beta_start=0.00085, beta_end=0.012)  # fmt: skip
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


def test_pytorch_loads_what_we_write(saved):
    pipeline = DDIMPipeline.from_pretrained(saved)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    for key, tensor in torch_unet().state_dict().items():
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
