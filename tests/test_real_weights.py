"""Weights and a vocabulary that others trained, fetched from the package index: `-m network`.

`adaptive-terrain-diffusion` (MIT) has a consistency network with classes, residual resampling and
attention, as ONNX, in the names of Dhariwal & Nichol 2021; `open-clip-torch` (MIT) has CLIP's
49,408 tokens.
"""

import importlib.util
import json
import re
import subprocess
import sys
import unicodedata
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from flax import nnx
from safetensors.numpy import save_file

from sharpjax.checkpoints import from_pretrained
from sharpjax.checkpoints.tokenizer import Tokenizer

pytestmark = pytest.mark.network

TERRAIN = "adaptive-terrain-diffusion==0.4.2"
CLIP = "open-clip-torch==3.3.0"
CONFIG = {
    "_class_name": "UNet2DModel", "sample_size": 128, "in_channels": 1, "out_channels": 1,
    "down_block_types": ["ResnetDownsampleBlock2D"] * 2 + ["AttnDownBlock2D"] * 3,
    "up_block_types": ["AttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"] * 2,
    "block_out_channels": [32, 32, 64, 96, 128], "layers_per_block": 4,
    "downsample_type": "resnet", "upsample_type": "resnet", "num_class_embeds": 100,
    "resnet_time_scale_shift": "scale_shift", "attention_head_dim": 32,
    "attn_norm_num_groups": 32,
}  # fmt: skip
RESNET = {
    "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut", "in_layers.0": "norm1", "out_layers.0": "norm2",
}  # fmt: skip
ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
ELSEWHERE = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip


LEVELS = np.arange(100) / 99  # of difficulty
DATA, SMALLEST = 0.5, 0.002  # sigma of the data, least sigma


def pip(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(f"pip {' '.join(map(str, arguments))} failed:\n{done.stderr}", pytrace=False)


def wheel(requirement, directory):
    """The package's files, without its dependencies."""
    pip("download", "--no-deps", "--only-binary", ":all:", "--dest", directory, requirement)
    [path] = directory.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """What reads ONNX and what open_clip's tokenizer imports, behind all that is installed."""
    directory = tmp_path_factory.mktemp("packages")
    pip("install", "--target", directory, "onnx", "onnxruntime", "ftfy")
    sys.path.append(str(directory))
    yield
    sys.path.remove(str(directory))


@pytest.fixture(scope="module")
def onnx_model(packages, tmp_path_factory):
    import onnx

    with wheel(TERRAIN, tmp_path_factory.mktemp("terrain")) as files:
        [name] = [name for name in files.namelist() if name.endswith(".onnx")]
        return onnx.load_model_from_string(files.read(name))


@pytest.fixture(scope="module")
def directory(onnx_model, tmp_path_factory):
    """The network as diffusers would have written it."""
    directory = tmp_path_factory.mktemp("ours")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    save_file(converted(onnx_model.graph), directory / "diffusion_pytorch_model.safetensors")
    return directory


@pytest.fixture(scope="module")
def ours(directory):
    return from_pretrained(directory)


def modules():
    """`(their name, ours)` of residual blocks and attentions, from the input to the output."""
    levels, layers = len(CONFIG["block_out_channels"]), CONFIG["layers_per_block"]
    n = 1
    for level, kind in enumerate(CONFIG["down_block_types"]):
        for layer in range(layers):
            yield f"input_blocks.{n}.0", f"down_blocks.{level}.resnets.{layer}"
            if kind.startswith("Attn"):
                yield f"input_blocks.{n}.1", f"down_blocks.{level}.attentions.{layer}"
            n += 1
        if level < levels - 1:
            yield f"input_blocks.{n}.0", f"down_blocks.{level}.downsamplers.0"
            n += 1
    for i, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"middle_block.{i}", f"mid_block.{name}"
    n = 0
    for level, kind in enumerate(CONFIG["up_block_types"]):
        for layer in range(layers + 1):
            yield f"output_blocks.{n}.0", f"up_blocks.{level}.resnets.{layer}"
            if kind.startswith("Attn"):
                yield f"output_blocks.{n}.1", f"up_blocks.{level}.attentions.{layer}"
            n += 1
        if level < levels - 1:
            last = f"output_blocks.{n - 1}.{1 + kind.startswith('Attn')}"
            yield last, f"up_blocks.{level}.upsamplers.0"


def tensors(graph):
    """The initializers, with the norms', which the export left nameless, under their names."""
    from onnx import numpy_helper

    found = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    named = {
        name.removeprefix("network."): found[name] for name in found if name.startswith("network.")
    }
    following = {name: node for node in graph.node for name in node.input}

    def after(node, kind):
        node = following[node.output[0]]
        return node if node.op_type == kind else after(node, kind)

    for node in graph.node:
        if node.op_type == "InstanceNormalization":
            scale = after(node, "Mul")
            shift = after(scale, "Add")
            convolution = after(shift, "Conv").input[1].removeprefix("network.")
            norm = convolution.replace("qkv.", "norm.")
            norm = re.sub(r"(in_layers|out_layers|out)\.\d\.weight", r"\1.0.weight", norm)
            named[norm] = found[scale.input[1]].ravel()
            named[norm.replace("weight", "bias")] = found[shift.input[1]].ravel()
    return named


def converted(graph):
    """Our tensors, every one of theirs used once."""
    theirs, result = tensors(graph), {}
    for leaf in ("weight", "bias"):
        for name, our_name in ELSEWHERE.items():
            result[f"{our_name}.{leaf}"] = theirs.pop(f"{name}.{leaf}")
        for name, our_name in modules():
            names = RESNET
            if "attentions" in our_name:
                names = ATTENTION
                parts = np.split(theirs.pop(f"{name}.qkv.{leaf}"), 3)
                for part, to in zip(parts, ("to_q", "to_k", "to_v"), strict=True):
                    result[f"{our_name}.{to}.{leaf}"] = part.reshape(part.shape[:2])
            for layer, our_layer in names.items():
                if (value := theirs.pop(f"{name}.{layer}.{leaf}", None)) is not None:
                    is_matrix = our_layer == "to_out.0"  # a convolution of 1 x 1 there
                    result[f"{our_name}.{our_layer}.{leaf}"] = (
                        value.reshape(value.shape[:2]) if is_matrix else value
                    )
    # a difficulty from 0 to 1 goes through a small network: its values at the levels are a table
    hidden, last = (
        lambda x, i=i: x @ theirs.pop(f"label_emb.{i}.weight").T + theirs.pop(f"label_emb.{i}.bias")
        for i in (0, 2)
    )
    x = hidden(LEVELS[:, None])
    result["class_embedding.weight"] = last(x / (1 + np.exp(-x))).astype(np.float32)
    assert not theirs
    return {name: np.ascontiguousarray(value) for name, value in result.items()}


@pytest.fixture(scope="module")
def reference(onnx_model):
    """`(what the network inside gives, what the model gives)` of `noisy`, `sigma`, `level`."""
    import onnx
    import onnxruntime

    [last] = [node for node in onnx_model.graph.node if "network.out.2.weight" in node.input]
    inside = onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None)
    onnx_model.graph.output.append(inside)
    session = onnxruntime.InferenceSession(onnx_model.SerializeToString())

    def run(noisy, sigma, level):
        given = {"noisy": noisy, "sigma": sigma, "difficulty": LEVELS[level].astype(np.float32)}
        return session.run([last.output[0], "denoised"], given)

    return run


def network(ours, noisy, sigma, level):
    """Song et al. 2023: scaled input, logarithmic time."""
    scaled = noisy / jnp.sqrt(sigma**2 + DATA**2)[:, None, None, None]
    return ours(scaled, 250 * jnp.log(sigma), level)


def denoised(ours, noisy, sigma, level):
    """Their boundary condition: at `SMALLEST` the model gives what it is given."""
    above = (sigma - SMALLEST)[:, None, None, None]
    c_skip = DATA**2 / (above**2 + DATA**2)
    c_out = DATA * above / jnp.sqrt(sigma**2 + DATA**2)[:, None, None, None]
    return jnp.clip(c_skip * noisy + c_out * network(ours, noisy, sigma, level), -1, 1)


@pytest.fixture(scope="module")
def point():
    """Noise at three levels of it, and three levels of difficulty."""
    sigma = np.array([80.0, 2.0, 0.1], np.float32)
    noise = np.random.default_rng(0).standard_normal((3, 1, 128, 128), np.float32)
    return sigma[:, None, None, None] * noise, sigma, np.array([0, 37, 99])


def off(found, expected, size=np.linalg.norm):
    return float(size(np.ravel(found - expected)) / size(np.ravel(expected)))


def largest(x):
    return np.abs(x).max()


def test_a_trained_consistency_network(ours, reference, point):
    inside, image = reference(*point)
    found = jax.jit(network)(ours, *point)
    count = sum(each.size for each in jax.tree.leaves(nnx.state(ours)))
    print(f"\n{count:,} parameters, outputs off by {off(found, inside, largest):.1e}")
    assert off(found, inside, largest) < 1e-4
    assert off(jax.jit(denoised)(ours, *point), image, largest) < 1e-4


def test_its_tangent(ours, directory, reference, point):
    """Against a central difference of diffusers' module in float64, which is the reference's.

    Not of the reference: differences in float32 are off by 3e-3 at any step.
    """
    noisy, sigma, level = (each[1:2] for each in point)
    along = sigma * np.random.default_rng(1).choice(np.array([-1, 1], np.float32), noisy.shape)
    tangent = jax.jit(
        lambda ours, x, dx: jax.jvp(lambda x: network(ours, x, sigma, level), (x,), (dx,))[1]
    )(ours, noisy, along)

    theirs = UNet2DModel.from_pretrained(directory, low_cpu_mem_usage=False).double().eval()
    x, dx, s = (torch.tensor(each).double() for each in (noisy, 1e-6 * along, sigma))
    with torch.no_grad():
        ahead, behind = (
            theirs(
                (x + move) / (s**2 + DATA**2).sqrt(),
                250 * s.log(),
                class_labels=torch.tensor(level),
            ).sample.numpy()
            for move in (dx, -dx)
        )
    assert off((ahead + behind) / 2, reference(noisy, sigma, level)[0], largest) < 1e-4
    expected = (ahead - behind) / 2e-6
    print(f"\ntangent off by {off(tangent, expected):.1e}, {off(tangent, expected, largest):.1e}")
    assert off(tangent, expected) < 1e-3


@pytest.fixture(scope="module")
def theirs(packages, tmp_path_factory):
    """open_clip's module of tokenizers, alone: the package needs more than it."""
    directory = tmp_path_factory.mktemp("clip")
    with wheel(CLIP, directory) as files:
        files.extractall(directory)
    path = directory / "open_clip" / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("tokenizer_of_open_clip", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


START, END = "<|startoftext|>", "<|endoftext|>"
HARD = [
    "", "  ", "A Photo of a CAT", "don't WE'LL they've I'm he'd it's we're 'tis", "'", "''s",
    "50% off! $3.99 (€4) — “quotes” …", "naïve café", "cafe\u0301", "İstanbul",
    "日本語のテキスト", "한국어 문장", "Привет, мир", "ελληνικά", "مرحبا بالعالم", "नमस्ते दुनिया",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🎉🎉", "tab\tline\nand  nbsp\u00a0ideographic\u3000", "&amp; &lt;b&gt;",
    "schÃ¶n", "a" * 500, "1234567890" * 12, "!!!???...,,,;;;:::", "x_y-z/w\\v|u", "ﬁ ligature ﬀ",
    "ß ẞ", "①②③ ½ ⅔ Ⅷ", "\u200bzero\u200bwidth\ufeff", "C++ & C# @ #hashtag",
]  # fmt: skip


def prompts(theirs):
    """The vocabulary's own words, any characters, and what tends to go wrong."""
    rng = np.random.default_rng(0)
    backend = theirs.SimpleTokenizer()
    words = [backend.decode([i]) for word, i in backend.encoder.items() if word.endswith("</w>")]
    words = [word.strip() for word in words if "\ufffd" not in word]
    yield from (" ".join(rng.choice(words, rng.integers(1, 150))) for _ in range(300))
    # of an old Unicode, which all tables of characters know
    kind = unicodedata.ucd_3_2_0.category
    letters = [chr(c) for c in range(0x20, 0x3000) if kind(chr(c))[0] in "LNPSMZ"]
    letters = [c for c in letters if c not in "Σ\u0345"]  # lower case by context, and by itself
    yield from ("".join(rng.choice(letters, rng.integers(1, 30))) for _ in range(300))
    yield from HARD


def test_the_vocabulary_of_clip(theirs, tmp_path):
    """Ids of open_clip's tokenizer.  It mends a text first (ftfy), transformers' does not."""
    backend = theirs.SimpleTokenizer()
    vocab = dict(zip([*list(backend.encoder)[:-2], START, END], range(49_408), strict=True))
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    merges = "\n".join(" ".join(pair) for pair in backend.bpe_ranks)
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    named = {"bos_token": START} | dict.fromkeys(("eos_token", "pad_token", "unk_token"), END)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77} | named))
    ours = Tokenizer.from_pretrained(tmp_path, vocab_size=49_408)

    texts = [theirs.basic_clean(text) for text in prompts(theirs)]
    with pytest.warns(UserWarning, match="prompts are too long"):
        found = ours(texts)
    expected = theirs.SimpleTokenizer()(texts).numpy()
    end = vocab[END]
    expected[np.cumsum(expected == end, axis=1) > 0] = end  # it pads with 0, which is "!" too
    print(f"\n{len(texts)} prompts, {np.sum(found[:, -2] != end)} of them fill all 77 places")
    np.testing.assert_array_equal(found, expected)
