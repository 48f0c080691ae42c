"""Model directories: what PyTorch writes, and every kind of damage."""

import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TorchAutoencoderKL
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sharpjax.checkpoints import from_pretrained, save_pretrained
from sharpjax.checkpoints.directory import CONFIG_NAME, MANIFEST_NAME, Directory, read_json
from sharpjax.checkpoints.hub import resolve
from sharpjax.networks.autoencoder_kl import AutoencoderKL

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
KEY = "mid_block.attentions.0.to_q.weight"  # square, so only its name tells it from its transpose
CONV = "conv_in.weight"


@pytest.fixture(scope="module")
def written(pytorch_unet, tmp_path_factory):
    """A directory by PyTorch's own `save_pretrained`; tests copy it before they touch it."""
    folder = tmp_path_factory.mktemp("torch") / "unet"
    pytorch_unet().save_pretrained(folder)
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
def test_other_float_types_become_float32(pytorch_unet, dtype, tmp_path):
    model = pytorch_unet().to(dtype)
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
            rf"'{CONV}' must have shape \(8, 1, 3, 3\), got \(3, 3, 1, 8\)",
        ),
        (lambda t: t.update({CONV: t[CONV][:4]}), rf"'{CONV}' .* got \(4, 1, 3, 3\)"),
        (poke(KEY, np.nan), rf"'{KEY}' contains NaN or infinite"),
        (poke(CONV, -np.inf), rf"'{CONV}' contains NaN or infinite"),
        (
            lambda t: t.update({KEY: t[KEY].astype(np.float64) + 1e300}),
            rf"'{KEY}' contains values too large for float32",
        ),
        (
            lambda t: t.update({KEY: t[KEY].astype(np.int32)}),
            rf"'{KEY}' must be floating point .*, got I32",
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


def test_pickle_is_never_read(pytorch_unet, tmp_path):
    pytorch_unet().save_pretrained(tmp_path, safe_serialization=False)
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
        (dict(_class_name="UNet1DModel"), "_class_name must be one of .* got 'UNet1DModel'"),
        (dict(_class_name=None), "_class_name must be .* got None"),
        (dict(_class_name=["UNet2DModel"]), "_class_name must be one of"),
        (dict(rngs=0), "unknown configuration key 'rngs'"),
        (dict(quantization_config={"quant_method": "x"}), "quantized weights are not read .*'x'"),
        (dict(act_fn="tanh"), "act_fn must be .* got 'tanh'"),
        (dict(norm_num_groups=3), "norm_num_groups=3 must divide"),
        (dict(norm_num_groups=0), CONFIG_NAME),
        (dict(block_out_channels="wide"), CONFIG_NAME),
        (dict(block_out_channels=[]), CONFIG_NAME),
        (dict(layers_per_block="2"), CONFIG_NAME),
        (dict(in_channels=3), rf"'{CONV}' must have shape \(8, 3, 3, 3\), got \(8, 1"),
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


@pytest.mark.fast_cases("../secret", "")
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
        ('{"other.safetensors": ""}', ValueError, rf"does not name {CONFIG_NAME}"),
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
    """`snapshots/<revision>/unet/<file>` -> `blobs/<digest>`, as in a hub cache."""
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


# --- every component of a Stable Diffusion directory ----------------------------------------------


def torch_vae():
    torch.manual_seed(1)
    return TorchAutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


def torch_clip(kind):
    torch.manual_seed(2)
    return kind(
        CLIPTextConfig(
            vocab_size=40,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=7,
            projection_dim=6,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


@pytest.fixture(scope="module")
def parts(pytorch_unet, tmp_path_factory):
    """A directory with one folder per component, by PyTorch, and each one's tensors."""
    root = tmp_path_factory.mktemp("parts")
    models = {
        "unet": pytorch_unet(),
        "vae": torch_vae(),
        "text_encoder": torch_clip(CLIPTextModel),
        "projection": torch_clip(CLIPTextModelWithProjection),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
    return root, {name: type(model) for name, model in models.items()}


def weights_of(folder):
    """Tensors of a folder in one file or several, with the prefix that older files have."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    clip = (folder / "model.safetensors").exists() or any(folder.glob("model*.safetensors"))
    return {
        k if not clip or k.startswith("text_") else f"text_model.{k}": v for k, v in tensors.items()
    }


COMPONENTS = ("unet", "vae", "text_encoder", "projection")


@pytest.mark.parametrize("name", COMPONENTS)
def test_components_there_and_back(name, parts, tmp_path):
    """PyTorch's files, in one piece and in shards of both its libraries, and ours again."""
    root, classes = parts
    module = from_pretrained(root, name)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(module)))
    expected = weights_of(root / name)

    theirs = classes[name].from_pretrained(root / name)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size=5000, variant="fp16")
    assert len(list((tmp_path / "shards").glob("*.fp16-0000?-of-*.safetensors"))) > 1
    sharded = from_pretrained(tmp_path / "shards", variant="fp16")

    ours = save_pretrained(sharded, tmp_path / "ours")
    assert_same_tensors(weights_of(ours), expected)
    pieces = save_pretrained(module, tmp_path / "pieces", max_shard_size=5000)
    assert_same_tensors(weights_of(pieces), expected)
    assert read_json(pieces / MANIFEST_NAME).keys() == {
        path.name for path in pieces.iterdir() if path.name != MANIFEST_NAME
    }
    for folder in (ours, pieces):
        again = classes[name].from_pretrained(folder).state_dict()
        assert again.keys() == theirs.state_dict().keys()
        for key, tensor in theirs.state_dict().items():
            assert torch.equal(again[key], tensor), key
    assert_same_tensors(weights_of(save_pretrained(from_pretrained(pieces), ours)), expected)


def test_half_precision_variants(parts, tmp_path):
    """fp16 and bf16 files beside the full one, read as either type."""
    root, _ = parts
    folder = shutil.copytree(root / "vae", tmp_path / "vae")
    module = from_pretrained(folder)
    save_pretrained(module, folder, variant="fp16", dtype=np.float16)
    save_pretrained(module, folder, variant="bf16", dtype=jnp.bfloat16)
    assert read_json(folder / MANIFEST_NAME).keys() >= {
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.bf16.safetensors",
    }
    with pytest.raises(ValueError, match=f"does not name {WEIGHTS_NAME}"):
        from_pretrained(folder)  # PyTorch wrote that one
    full = [np.asarray(leaf) for leaf in jax.tree.leaves(module)]
    for variant, stored in (("fp16", jnp.float16), ("bf16", jnp.bfloat16)):
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            found = jax.tree.leaves(from_pretrained(folder, variant=variant, dtype=dtype))
            for a, b in zip(map(np.asarray, found), full, strict=True):
                assert a.dtype == dtype
                np.testing.assert_array_equal(a, b.astype(stored).astype(dtype))
    for wrong in (jnp.int8, np.float64, "bf16", None):
        with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16"):
            from_pretrained(folder, dtype=wrong)


def test_missing_variant_names_those_that_are_there(written, tmp_path):
    module = from_pretrained(written)
    folder = save_pretrained(module, tmp_path / "a", variant="fp16")
    told = rf"no {WEIGHTS_NAME} in .*; name variant='fp16' \(--variant fp16\)$"
    with pytest.raises(FileNotFoundError, match=told):
        from_pretrained(folder)
    save_pretrained(module, folder, variant="ema", max_shard_size=10_000)
    with pytest.raises(FileNotFoundError, match=r"; name variant='ema' .* or variant='fp16'"):
        from_pretrained(folder, variant="bf16")
    (folder / "x.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"--variant fp16\) \(x.ckpt is pickle"):
        from_pretrained(folder)
    for wrong in ("../x", "", "a.b", 3):
        with pytest.raises(ValueError, match="variant must be a plain name"):
            from_pretrained(folder, variant=wrong)


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("as_convolution", [False, True])
def test_legacy_attention_of_an_autoencoder(as_convolution, parts, tmp_path):
    root, _ = parts
    folder = shutil.copytree(root / "vae", tmp_path / "vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def change(tensors):
        for key in [k for k in tensors if ".attentions." in k and "norm" not in k]:
            name = key
            for new, legacy in old.items():
                name = name.replace(f".{new}.", f".{legacy}.")
            value = tensors.pop(key)
            if as_convolution and value.ndim == 2:
                value = value[:, :, None, None]
            tensors[name] = value

    rewrite(folder / WEIGHTS_NAME, change)
    assert any(".proj_attn." in key for key in load_file(folder / WEIGHTS_NAME))
    found = weights_of(save_pretrained(from_pretrained(folder), tmp_path / "ours"))
    assert_same_tensors(found, weights_of(root / "vae"))

    def modern_name(tensors):
        key = "encoder.mid_block.attentions.0.query.weight"
        tensors[key.replace("query", "to_q")] = tensors.pop(key)[..., None, None].copy()

    rewrite(folder / WEIGHTS_NAME, modern_name)
    with pytest.raises(ValueError, match=r"to_q\.weight' must have shape"):
        from_pretrained(folder)


def test_text_model_prefix_and_position_ids(parts, tmp_path):
    root, _ = parts
    expected = weights_of(root / "text_encoder")
    folder = shutil.copytree(root / "text_encoder", tmp_path / "clip")
    path = folder / "model.safetensors"
    for prefix, dtype in (("", np.int64), ("text_model.", np.float32), ("text_model.", np.float16)):
        tensors = {prefix + k.removeprefix("text_model."): v for k, v in expected.items()}
        tensors[prefix + "embeddings.position_ids"] = np.arange(7, dtype=dtype)[None]
        save_file(tensors, path, metadata={"format": "pt"})
        found = weights_of(save_pretrained(from_pretrained(folder), tmp_path / "ours"))
        assert_same_tensors(found, expected)
    for changes, message in (
        ({"text_model.embeddings.other_ids": np.arange(7)}, "has no place"),
        ({"final_layer_norm.bias": tensors["text_model.final_layer_norm.bias"]}, "a second time"),
    ):
        save_file(tensors | changes, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message) as caught:
            from_pretrained(folder)
        assert str(path) in str(caught.value)


# --- shards ------------------------------------------------------------------------------------


INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(scope="module")
def sharded_once(pytorch_unet, written, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "unet"
    pytorch_unet().save_pretrained(folder, max_shard_size=12_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def sharded(sharded_once, tmp_path):
    return shutil.copytree(sharded_once, tmp_path / "sharded")


def listed_in(value):
    return lambda folder: change_index(folder, {KEY: value})


def change_index(folder, changes):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"].update(changes)
    (folder / INDEX).write_text(json.dumps(index))


def shard_of(folder, key):
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][key]


def drop_listing(folder):
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][KEY]
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            listed_in("../x.safetensors"),
            f"'{KEY}' must be in a plain .*safetensors file, got '../x",
        ),
        (listed_in("/etc/x.safetensors"), "must be in a plain"),
        (listed_in("x.bin"), r"must be in a plain .*, got 'x\.bin'"),
        (listed_in(5), "must be in a plain .*, got 5"),
        (listed_in("x.safetensors"), r"names x\.safetensors, which is missing"),
        (lambda f: change_index(f, {"a": shard_of(f, CONV).name}), "tensor 'a' is not in"),
        (drop_listing, f"'{KEY}' is not listed for it in {INDEX}"),
        (lambda f: change_index(f, {KEY: shard_of(f, CONV).name}), "is not (listed for it )?in"),
        (lambda f: shard_of(f, KEY).unlink(), "which is missing"),
        (lambda f: shard_of(f, KEY).write_bytes(b""), "truncated or not a safetensors"),
        (lambda f: (f / INDEX).write_text("{}"), "'weight_map' must be an object"),
        (lambda f: (f / INDEX).write_text('{"weight_map": []}'), "'weight_map' must be an object"),
        (lambda f: save_file({}, f / WEIGHTS_NAME), f"holds both {WEIGHTS_NAME} and {INDEX}"),
    ],
)
def test_damaged_shards(change, message, sharded):
    from_pretrained(sharded)
    assert shard_of(sharded, KEY) != shard_of(sharded, CONV)
    change(sharded)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        from_pretrained(sharded)
    assert str(sharded) in str(caught.value)


# --- the hub's cache ---------------------------------------------------------------------------


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(parts, tmp_path, monkeypatch):
    """A hub cache that holds `someone/tiny`, without a connection."""
    import huggingface_hub.constants as constants

    root, _ = parts
    repo = tmp_path / "hub" / "models--someone--tiny"
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(p for p in root.rglob("*") if p.is_file())):
        link = repo / "snapshots" / COMMIT / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, repo / "blobs" / str(number))
        link.symlink_to(os.path.relpath(repo / "blobs" / str(number), link.parent))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repo


def test_hub_id_is_read_from_the_cache(hub, parts, tmp_path):
    for options in ({}, {"local_files_only": True}, {"revision": COMMIT}, {"revision": "main"}):
        found = resolve("someone/tiny", folders=["vae"], **options)
        assert found.path == hub / "snapshots" / COMMIT
        module = from_pretrained("someone/tiny", "text_encoder", **options)
    found = weights_of(save_pretrained(module, tmp_path / "ours"))
    assert_same_tensors(found, weights_of(parts[0] / "text_encoder"))
    link = hub / "snapshots" / COMMIT / "vae" / WEIGHTS_NAME
    link.unlink()
    link.symlink_to(parts[0] / "vae" / WEIGHTS_NAME)
    with pytest.raises(ValueError, match="link that leads outside"):
        from_pretrained("someone/tiny", "vae")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("someone/other", {}),
        ("someone/other", {"local_files_only": True}),
        ("someone/tiny", {"revision": "v2"}),
        ("some--one/tiny", {}),
        ("someone/tiny.git", {}),
    ],
)
def test_hub_has_no_such_model(name, options, hub):
    with pytest.raises(FileNotFoundError, match="Check the spelling") as caught:
        from_pretrained(name, "unet", **options)
    assert f"no model '{name}' at revision '{options.get('revision', 'main')}'" in str(caught.value)


@pytest.mark.parametrize("revision", ["../../x", "/etc", "", "a/../b", "a b"])
def test_revision_may_not_lead_away(revision, hub):
    with pytest.raises(ValueError, match="revision must be a branch, tag or commit"):
        from_pretrained("someone/tiny", "unet", revision=revision)


def test_only_an_owner_and_a_name_ask_the_hub(hub, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def download(*args, **options):
        asked.append((args, options))
        return hub / "snapshots" / COMMIT

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for name in ("tiny", "/a/b", "a/b/c", "./a/b", "../b", "a/", "", tmp_path / "x", "a\0b/c"):
        with pytest.raises(FileNotFoundError, match=r"no model directory|no config\.json"):
            from_pretrained(name)
    assert not asked
    with pytest.raises(
        FileNotFoundError, match=r"no .*\.fp16\.safetensors in any part .*variant=None"
    ):
        resolve("someone/tiny", folders=["unet"], variant="fp16", revision="r")
    args, options = asked[0]
    assert args == ("someone/tiny",)
    assert options["revision"] == "r"
    patterns = options["allow_patterns"]
    # of pipelines that have all files in one folder
    flat = {CONFIG_NAME, "scheduler_config.json", "diffusion_pytorch_model.fp16.safetensors"}
    assert flat <= set(patterns)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in patterns
    assert "unet/diffusion_pytorch_model.fp16-?????-of-?????.safetensors" in patterns
    assert all(p.endswith((".json", ".txt", ".safetensors")) for p in patterns)
    assert not any(p.endswith("model.safetensors") for p in patterns)


def test_parts_without_the_variant_are_fetched_too(hub, monkeypatch):
    import huggingface_hub

    asked = []

    def download(*args, **options):
        asked.append(options["allow_patterns"])
        return hub / "snapshots" / COMMIT

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    folder = hub / "snapshots" / COMMIT / "unet"
    (folder / WEIGHTS_NAME).rename(folder / WEIGHTS_NAME.replace(".", ".fp16."))
    with pytest.warns(match=r"no variant 'fp16' of vae: the plain files are read"):
        root = resolve("someone/tiny", folders=["unet", "vae"], variant="fp16")
    assert len(asked) == 2
    assert f"vae/{WEIGHTS_NAME}" in asked[1]
    assert not any(pattern.startswith("unet/") for pattern in asked[1])
    for part in ("unet", "vae"):
        from_pretrained(root, part)


# --- writing -----------------------------------------------------------------------------------


def test_nothing_is_written_from_a_broken_module(written, tmp_path):
    module = from_pretrained(written)
    big = nnx.clone(module)
    big.conv_in.kernel[...] = big.conv_in.kernel[...] * 1e6
    with pytest.raises(
        ValueError, match=r"'conv_in\.weight' contains values too large for float16"
    ):
        save_pretrained(big, tmp_path / "new", dtype=np.float16)
    module.mid_block.attentions[0].to_q.bias[...] = jnp.full(16, jnp.nan)
    with pytest.raises(ValueError, match=r"'mid_block.attentions.0.to_q.bias' contains NaN"):
        save_pretrained(module, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not any(p.name.startswith(".") for p in tmp_path.iterdir())
    with pytest.raises(ValueError, match="Linear has no PyTorch counterpart"):
        save_pretrained(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), tmp_path / "new")
    with pytest.raises(ValueError, match="max_shard_size must be at least 1"):
        save_pretrained(big, tmp_path / "new", max_shard_size=0)


def test_a_file_is_in_the_way(written, tmp_path):
    module = from_pretrained(written)
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FileExistsError, match="file is a file"):
            save_pretrained(module, target)
    (tmp_path / "folder" / CONFIG_NAME).mkdir(parents=True)
    with pytest.raises(FileExistsError, match="a directory is in the way"):
        save_pretrained(module, tmp_path / "folder")


def test_a_smaller_model_leaves_no_stale_shard(written, tmp_path):
    module = from_pretrained(written)
    folder = save_pretrained(module, tmp_path / "m", max_shard_size=12_000)
    (folder / "README.md").write_text("kept")
    save_pretrained(module, folder, variant="fp16")
    save_pretrained(module, folder)
    assert {p.name for p in folder.iterdir()} == {
        CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, "README.md",
        "diffusion_pytorch_model.fp16.safetensors",
    }  # fmt: skip
    assert "README.md" not in read_json(folder / MANIFEST_NAME)
    from_pretrained(folder)
    from_pretrained(folder, variant="fp16")


@pytest.mark.parametrize("exists", [False, True])
def test_killed_while_writing(exists, written, tmp_path, monkeypatch):
    """Stopped before every single rename: the old model, the new one, or a refusal; no mixture."""
    old, new = from_pretrained(written), from_pretrained(written)
    new.conv_in.bias[...] = new.conv_in.bias[...] + 1
    outcomes = []
    for steps in range(20):
        folder = tmp_path / f"m{steps}"
        if exists:
            save_pretrained(old, folder)
        left = [steps]

        def move(source, target, left=left, rename=os.rename):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            rename(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", move)
            patch.setattr(os, "replace", move)
            try:
                save_pretrained(new, folder, max_shard_size=60_000)
            except KeyboardInterrupt:
                pass
            else:
                outcomes.append("done")
                break
        try:
            bias = from_pretrained(folder).conv_in.bias[...]
        except FileNotFoundError:
            assert not folder.exists()
            outcomes.append("nothing")
        except ValueError as error:
            named = [n for n in (MANIFEST_NAME, "holds both") if n in str(error)]
            outcomes.append("refused" if named else str(error))
        else:
            np.testing.assert_array_equal(bias, old.conv_in.bias[...])
            outcomes.append("old")
    assert outcomes[-1] == "done"
    assert outcomes[0] == ("old" if exists else "nothing")
    assert set(outcomes[1:-1]) <= {"refused"}
    np.testing.assert_array_equal(from_pretrained(folder).conv_in.bias[...], new.conv_in.bias[...])


# --- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(layers_per_block=10**6), "layers_per_block=1000000 asks for more layers than the"),
        (dict(layers_per_block=40), "layers_per_block=40 asks for more layers"),
        (dict(layers_per_block=1.0), r"layers_per_block must be int .*got 1\.0"),
        (dict(layers_per_block=True), "layers_per_block must be int .*got True"),
        (dict(block_out_channels=[10**9, 10**9]), "block_out_channels is too large"),
        (dict(block_out_channels=[10**6, 10**6], attention_head_dim=10**6), "must have shape"),
        (dict(block_out_channels=[8] * 1000), "block_out_channels has 1000 entries"),
        (dict(block_out_channels=[8, "16"]), "block_out_channels must be tuple"),
        (dict(block_out_channels=8), "block_out_channels must be tuple"),
        (dict(act_fn=None), "act_fn must be str"),
        (dict(norm_eps="small"), "norm_eps must be float"),
        (dict(sample_size=[8, 8, 8]), "sample_size must be int | tuple"),
        (dict(sample_size=-(10**400)), "sample_size is too large"),
        (dict(norm_num_groups=-4), CONFIG_NAME),
        (dict(in_channels=0), CONFIG_NAME),
    ],
)
def test_size_and_type_of_configuration(changes, message, folder):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        from_pretrained(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "key 'a' stands there twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ('{"a": 1e999}', "1e999 is not a JSON number"),
        ('{"a": ' + "1" * 5000 + "}", "not valid JSON"),
    ],
)
def test_json_is_read_strictly(text, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_files_larger_than_they_may_be(folder):
    with (folder / CONFIG_NAME).open("r+b") as file:
        file.truncate(10**11)  # sparse: takes no room
    with pytest.raises(ValueError, match="not valid JSON of a model: over"):
        from_pretrained(folder)


def test_header_that_claims_a_terabyte(folder):
    """In a sparse file that really has the size: refused by its shape, before it is read."""
    header = json.dumps(
        {CONV: {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    )
    with (folder / WEIGHTS_NAME).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 4 * 10**12)
    (folder / MANIFEST_NAME).write_text("{}")
    with pytest.raises(ValueError, match=r"got \(1000000000000,\)|asks for more layers"):
        from_pretrained(folder)


PEAK = """
import sys, jax, jax.numpy as jnp
from flax import nnx
from sharpjax.checkpoints import from_pretrained

def level(name):
    return next(int(s.split()[1]) << 10 for s in open("/proc/self/status") if s.startswith(name))

from_pretrained(sys.argv[1], dtype=sys.argv[3])  # imports, and what jax keeps for good
before = level("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts here
module = from_pretrained(sys.argv[2], dtype=sys.argv[3])
peak = level("VmHWM") - before
print(peak / sum(x.nbytes for x in jax.tree.leaves(nnx.state(module))))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
def test_peak_memory_is_little_more_than_the_parameters(tmp_path):
    """float32 -> float32, float16 -> float32, float32 -> bfloat16, 335 MB of float32."""

    def vae(channels):
        config = dict(block_out_channels=channels, layers_per_block=2, latent_channels=4)
        config["down_block_types"] = ("DownEncoderBlock2D",) * len(channels)
        config["up_block_types"] = ("UpDecoderBlock2D",) * len(channels)
        return nnx.jit(lambda: AutoencoderKL(**config, rngs=nnx.Rngs(0)))()

    tiny = save_pretrained(vae((32, 32, 32, 32)), tmp_path / "tiny")
    large = vae((128, 256, 512, 512))
    full = save_pretrained(large, tmp_path / "full")
    half = save_pretrained(large, tmp_path / "half", dtype=np.float16, max_shard_size=40_000_000)
    assert (full / WEIGHTS_NAME).stat().st_size > 300e6
    for source, dtype in ((full, "float32"), (half, "float32"), (full, "bfloat16")):
        run = subprocess.run(
            [sys.executable, "-c", PEAK, tiny, source, dtype], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        ratio = float(run.stdout)
        print(f"{source.name} -> {dtype}: {ratio:.3f} of the parameters")
        assert 1 <= ratio < 1.2


# --- configurations with keys that are off -----------------------------------------------------


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_keys_that_are_off_change_nothing(part, parts, tmp_path):
    """Whatever they are called: other versions of the libraries write them."""
    folder = shutil.copytree(parts[0] / part, tmp_path / part)
    rng = np.random.default_rng(0)
    words = [
        "quantization_config", "num_head_channels", "use_flash",
        *("".join(rng.choice(list("abcdefg_"), 9)) for _ in range(20)),
    ]  # fmt: skip
    expected = weights_of(save_pretrained(from_pretrained(folder), tmp_path / "before"))
    change_config(
        folder, **{word: [None, False, [], {}, ""][i % 5] for i, word in enumerate(words)}
    )
    known = {"unet": "center_input_sample", "vae": "force_upcast"}
    change_config(folder, **({known[part]: None} if part in known else {}))
    found = weights_of(save_pretrained(from_pretrained(folder), tmp_path / "after"))
    assert_same_tensors(found, expected)
    for value in (0, 1, True, "x", [0], {"a": None}):
        change_config(folder, unknown=value)
        with pytest.raises(ValueError, match="unknown configuration key 'unknown'"):
            from_pretrained(folder)


def test_an_averaged_network_as_diffusers_saves_it(written, tmp_path):
    theirs = UNet2DModel.from_pretrained(written)
    average = EMAModel(theirs.parameters(), model_cls=UNet2DModel, model_config=theirs.config)
    with torch.no_grad():
        theirs.conv_in.weight.add_(1)
    average.step(theirs.parameters())
    average.save_pretrained(tmp_path / "unet_ema")
    assert "optimization_step" in read_json(tmp_path / "unet_ema" / CONFIG_NAME)
    expected = UNet2DModel.from_pretrained(tmp_path / "unet_ema").state_dict()
    found = tensors_of(from_pretrained(tmp_path / "unet_ema"), tmp_path)
    assert_same_tensors(found, {key: value.numpy() for key, value in expected.items()})


@pytest.mark.parametrize(
    "changes",
    [
        dict(architectures=None),
        dict(architectures=["CLIPModel"]),
        dict(_attn_implementation="sdpa"),
        dict(_attn_implementation=None, attn_implementation="eager"),
    ],
)
def test_text_configurations_of_the_field(changes, parts, tmp_path):
    folder = shutil.copytree(parts[0] / "text_encoder", tmp_path / "text_encoder")
    change_config(folder, **changes)
    found = weights_of(save_pretrained(from_pretrained(folder), tmp_path / "ours"))
    assert_same_tensors(found, weights_of(parts[0] / "text_encoder"))
    if "architectures" in changes:  # nothing else says what it is
        change_config(folder, model_type="clip")
        with pytest.raises(ValueError, match="architectures must be one of"):
            from_pretrained(folder)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "vocab.json")
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({"vocab.json": "0" * 64}))
    with pytest.raises(FileNotFoundError, match=r"vocab\.json is missing, or no regular file"):
        Directory(tmp_path).verify_manifest(["vocab.json"])
