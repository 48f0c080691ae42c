"""`CLIPTextModel` against the PyTorch modules: outputs, tangents, and directories both ways."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.torch import load_file, save_file
from transformers.activations import ACT2FN

from sharpjax.checkpoints.component import from_pretrained, save_pretrained
from sharpjax.networks import clip_text, layers
from sharpjax.networks.clip_text import CLIPTextModel, CLIPTextModelWithProjection

START, END = 58, 59  # of a vocabulary of 60
SD1 = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "projection_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "sd1": SD1,
    # padded with "!", so that the first end of text is not the first padding
    "sd2": SD1 | {"hidden_act": "gelu", "num_hidden_layers": 3, "eos_token_id": END},
    # with tokens added after the end of text, as textual inversion does
    "projection": SD1
    | {"vocab_size": 62, "eos_token_id": END, "layer_norm_eps": 1e-3, "intermediate_size": 40},
    "projection_legacy_pooling": SD1 | {"projection_dim": 48, "hidden_act": "gelu"},
    "one_layer_three_heads": SD1
    | {"hidden_size": 36, "num_hidden_layers": 1, "num_attention_heads": 3, "hidden_act": "relu"},
    "long": SD1 | {"max_position_embeddings": 77, "hidden_act": "gelu_new"},
    "short": SD1 | {"max_position_embeddings": 3, "num_attention_heads": 1, "hidden_act": "silu"},
}
# What the others add to these is checked in the slow tier: each is a compilation of its own.
OFTEN = ("sd1", "sd2", "projection", "one_layer_three_heads")


def class_name(name):
    return "CLIPTextModelWithProjection" if "projection" in name else "CLIPTextModel"


def torch_model(name, seed=0, **changes):
    """Random weights everywhere: PyTorch starts norms at one and biases at zero."""
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(**(CONFIGS[name] | changes))
    model = getattr(transformers, class_name(name))(config).eval()
    model.set_attn_implementation("eager")  # fused attention has no second derivative
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "embedding" in key:
                parameter.mul_(20)
            else:  # so that attention is far from uniform
                parameter.mul_(2)
    return model


def token_ids(name, seed=1):
    """Start, words, end, padding: the end itself, and for SD 2 and its like id 0."""
    n = CONFIGS[name]["max_position_embeddings"]
    padding = 0 if name in ("sd2", "projection") else END
    ids = np.full((3, n), padding)
    rng = np.random.default_rng(seed)
    for row, words in zip(ids, (0, n // 2, n - 2), strict=True):
        row[: words + 2] = [START, *rng.integers(1, START, words), END]
    if name == "projection":
        ids[1:, 2] = 61
    return ids


def text_model(theirs):
    return theirs.text_model if hasattr(theirs, "text_model") else theirs


def torch_outputs(theirs, ids, clip_skip):
    """What our `TextEncoding` holds, computed as diffusers' pipelines do."""
    found = theirs(torch.tensor(ids), output_hidden_states=True)
    skipped = text_model(theirs).final_layer_norm(found.hidden_states[-(clip_skip + 1)])
    outputs = {
        "last_hidden_state": found.last_hidden_state,
        "skipped": skipped,
        "hidden_states": torch.stack(found.hidden_states),
        "pooled": text_model(theirs)(torch.tensor(ids)).pooler_output,
    }
    if hasattr(theirs, "text_projection"):
        outputs["text_embeds"] = found.text_embeds
    return outputs


@jax.jit
def our_outputs(model, ids):
    encoding = model(ids, output_hidden_states=True)
    outputs = {
        "last_hidden_state": encoding.last_hidden_state,
        "skipped": model(ids, clip_skip=1).last_hidden_state,
        "hidden_states": jnp.stack(encoding.hidden_states),
        "pooled": encoding.pooled,
    }
    if encoding.text_embeds is not None:
        outputs["text_embeds"] = encoding.text_embeds
    return outputs


@jax.jit
def our_tangents(model, ids, embeddings, direction):
    def f(embeddings):
        encoding = model(ids, inputs_embeds=embeddings, clip_skip=1)
        return encoding.last_hidden_state, encoding.pooled

    return jax.jvp(f, (embeddings,), (direction,))


def torch_tangents(theirs, ids, embeddings, direction):
    """Tangents by two reverse passes.

    The PyTorch class takes no embeddings, so its embedding table is replaced.
    """
    table = text_model(theirs).embeddings.token_embedding

    def f(embeddings):
        handle = table.register_forward_hook(lambda *_: embeddings)
        try:
            found = text_model(theirs)(torch.tensor(ids), output_hidden_states=True)
        finally:
            handle.remove()
        skipped = text_model(theirs).final_layer_norm(found.hidden_states[-2])
        return skipped, found.pooler_output

    values, tangents = torch.autograd.functional.jvp(
        f, torch.tensor(embeddings), torch.tensor(direction)
    )
    return [v.detach().numpy() for v in values], [t.numpy() for t in tangents]


def relative_error(ours, theirs):
    theirs = np.asarray(theirs)
    return np.abs(np.asarray(ours, np.float64) - theirs).max() / np.abs(theirs).max()


@pytest.mark.quick
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in OFTEN else pytest.mark.slow) for n in CONFIGS],
)
def test_matches_pytorch_and_back(name, tmp_path):
    theirs, ids = torch_model(name), token_ids(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    assert type(ours).__name__ == class_name(name)
    with torch.no_grad():
        expected = {k: v.numpy() for k, v in torch_outputs(theirs, ids, clip_skip=1).items()}
    found = our_outputs(ours, ids)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape
        assert relative_error(found[key], value) < 1e-4, key

    rng = np.random.default_rng(2)
    shape = (*ids.shape, CONFIGS[name]["hidden_size"])
    embeddings, direction = rng.standard_normal((2, *shape), dtype=np.float32)
    values, tangents = torch_tangents(theirs, ids, embeddings, direction)
    our_values, our_directions = our_tangents(ours, ids, embeddings, direction)
    for i in range(2):
        assert relative_error(our_values[i], values[i]) < 1e-4
        assert relative_error(our_directions[i], tangents[i]) < 1e-3

    save_pretrained(ours, tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["architectures"] == [class_name(name)]
    back = type(theirs).from_pretrained(tmp_path / "ours").eval()
    back.set_attn_implementation("eager")
    with torch.no_grad():
        for key, value in torch_outputs(back, ids, clip_skip=1).items():
            np.testing.assert_array_equal(value.numpy(), expected[key], err_msg=key)


def test_every_activation_is_that_of_transformers():
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    for name, ours in clip_text.ACTIVATIONS.items():
        expected = ACT2FN[name](torch.tensor(x)).numpy()
        # float32 rounding, some of it in the cancelling 1 + tanh of the left tail
        np.testing.assert_allclose(ours(jnp.asarray(x)), expected, atol=3e-6, err_msg=name)


# what Stable Diffusion 1.4's text_encoder/config.json holds
HUB_CONFIG = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 12,
    "model_type": "clip_text_model",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "transformers_version": "4.21.0.dev0",
    "vocab_size": 60,
}


def test_file_of_the_hub(tmp_path):
    """Tensors under `text_model.`, and the integer positions that old files have."""
    theirs = torch_model("sd1")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {"text_model." + k.removeprefix("text_model."): v for k, v in tensors.items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    ids = token_ids("sd1")
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).last_hidden_state.numpy()
    assert relative_error(from_pretrained(tmp_path)(ids).last_hidden_state, expected) < 1e-4


# --- without PyTorch ---------------------------------------------------------------------------

SMALL = SD1 | {"eos_token_id": END, "vocab_size": 62}
SMALL = {k: v for k, v in SMALL.items() if not k.startswith(("bos", "pad"))}


@pytest.fixture(scope="module")
def small():
    return CLIPTextModelWithProjection(**SMALL, rngs=nnx.Rngs(0))


def test_every_key_that_transformers_writes_is_known(small):
    used, ignored = set(small.config), small.IGNORED_CONFIG
    assert set(transformers.CLIPTextConfig().to_dict()) <= used | ignored
    assert not used & ignored


def test_embeddings_instead_of_ids(small):
    ids = token_ids("projection")
    expected = small(ids)
    embeddings = small.token_embeddings(ids)
    with_ids = small(ids, inputs_embeds=embeddings)
    alone = small(inputs_embeds=embeddings)
    for found, wanted in zip(jax.tree.leaves(with_ids), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(alone.last_hidden_state, expected.last_hidden_state)
    assert alone.pooled is None
    assert alone.text_embeds is None
    assert alone.hidden_states is None


def test_clip_skip_counts_layers_from_the_end(small):
    ids = token_ids("projection")
    states = small(ids, output_hidden_states=True).hidden_states
    for skip in range(3):
        found = small(ids, clip_skip=skip)
        wanted = small.text_model.final_layer_norm(states[2 - skip])
        np.testing.assert_array_equal(found.last_hidden_state, wanted)
        np.testing.assert_array_equal(found.pooled, small(ids).pooled)  # of the last layer always


def test_tokens_see_only_earlier_ones(small):
    ids = token_ids("projection")
    changed = ids.copy()
    changed[:, 6:] = (changed[:, 6:] + 7) % 60
    before, after = (small(i).last_hidden_state for i in (ids, changed))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before[:, 6:] - after[:, 6:]).max((0, 2)) > 1e-3).all()


def test_vmap_over_examples_equals_batch(small):
    ids = jnp.asarray(token_ids("projection"))
    one = jax.vmap(lambda model, ids: jax.tree.map(lambda x: x[0], model(ids[None])), (None, 0))
    one = jax.jit(one)(small, ids)
    for found, wanted in zip(jax.tree.leaves(one), jax.tree.leaves(small(ids)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.slow
def test_bfloat16(small):
    """Every operation rounds to 8 bits, about 2^-9 relative, in each of about 10 steps."""
    ids = token_ids("projection")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), small)
    evaluate = jax.jit(lambda model, ids: model(ids))
    found, wanted = evaluate(half, ids), evaluate(small, ids)
    for key in ("last_hidden_state", "pooled", "text_embeds"):
        value = getattr(found, key)
        assert value.dtype == jnp.bfloat16
        error = np.asarray(value, np.float32) - getattr(wanted, key)
        assert np.sqrt((error**2).mean() / (getattr(wanted, key) ** 2).mean()) < 10 * 2**-9
    embeddings = half.token_embeddings(ids)
    _, (tangent, _) = our_tangents(half, ids, embeddings, embeddings)
    assert tangent.dtype == jnp.bfloat16
    assert jnp.isfinite(tangent).all()


def test_norms_are_taken_in_float32():
    """In 8 bits a mean of 100 would leave nothing of a spread of 0.5."""
    norm = layers.layer_norm(64, rngs=nnx.Rngs(0))
    x = jnp.asarray(100 + 0.5 * np.arange(64) % 2, jnp.bfloat16)
    norm = jax.tree.map(lambda p: p.astype(jnp.bfloat16), norm)
    assert norm(x).dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    np.testing.assert_allclose(np.asarray(norm(x), np.float64), exact, atol=2**-8)


def test_variance_keeps_its_digits():
    """`E[x^2] - E[x]^2` in float32 leaves nothing of a spread of 0.5 about 3000."""
    norm = layers.layer_norm(64, rngs=nnx.Rngs(0))
    x = jnp.asarray(3000 + 0.5 * (np.arange(64) % 2), jnp.float32)
    np.testing.assert_allclose(norm(x), np.where(np.arange(64) % 2, 1, -1), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be an integer from 1 to .* got 0"),
        ({"hidden_size": "32"}, "hidden_size must be an integer .* got '32'"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers must be an integer .* got 2.0"),
        ({"max_position_embeddings": True}, "max_position_embeddings must be .* got True"),
        ({"num_attention_heads": 5}, "num_attention_heads=5 must divide hidden_size, got 32"),
        ({"hidden_act": "prelu"}, "hidden_act must be one of quick_gelu, .* got 'prelu'"),
        ({"hidden_act": ["gelu"]}, "hidden_act must be one of"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be a finite number > 0, got nan"),
        ({"layer_norm_eps": None}, "layer_norm_eps must be .* got None"),
        ({"eos_token_id": [59]}, r"eos_token_id must be an integer .* got \(59,\)"),
        ({"eos_token_id": 10**12}, "eos_token_id must be an integer from 0"),
        ({"projection_dim": None}, "projection_dim must be an integer, got None"),
    ],
)
def test_unsupported_configuration_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        CLIPTextModelWithProjection(**(SMALL | change), rngs=nnx.Rngs(0))


def test_projection_is_not_needed_without_one():
    model = CLIPTextModel(**(SMALL | {"projection_dim": None}), rngs=nnx.Rngs(0))
    assert not hasattr(model, "text_projection")
    assert model(token_ids("sd1")).text_embeds is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "clip"}, "config.json: model_type must be 'clip_text_model', got 'clip'"),
        (
            {"per_layer_config": {"0": 1}},
            "config.json: unknown configuration key 'per_layer_config'",
        ),
        ({"hidden_act": "prelu"}, "config.json: hidden_act must be .* got 'prelu'"),
    ],
)
def test_bad_config_file_is_named(change, message, small, tmp_path):
    save_pretrained(small, tmp_path)
    (tmp_path / "manifest.sha256.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


IDS = np.zeros((2, 4), np.int32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "pass input_ids or inputs_embeds"),
        ({"input_ids": IDS[0]}, r"shape \(batch, n\), got int32 \(4,\)"),
        ({"input_ids": IDS.astype(np.float32)}, "must be integers"),
        ({"input_ids": IDS + 62}, r"from 0 to 61 \(vocab_size - 1\), got 62"),
        ({"input_ids": IDS - 1}, r"from 0 to 61 \(vocab_size - 1\), got -1"),
        ({"input_ids": IDS.astype(np.int64) + 2**40}, f"got {2**40}"),
        ({"input_ids": np.zeros((1, 13), int)}, r"1 to 12 tokens .* got 13"),
        ({"input_ids": IDS[:, :0]}, r"1 to 12 tokens .* got 0"),
        ({"inputs_embeds": np.zeros((2, 4, 31))}, r"\(batch, n, 32\), got \(2, 4, 31\)"),
        ({"input_ids": IDS, "inputs_embeds": np.zeros((2, 5, 32))}, "do not fit inputs_embeds"),
        ({"input_ids": IDS, "clip_skip": 3}, "clip_skip must be an integer from 0 to 2, got 3"),
        ({"input_ids": IDS, "clip_skip": -1}, "clip_skip must be .* got -1"),
        ({"input_ids": IDS, "clip_skip": None}, "clip_skip must be .* got None"),
    ],
)
def test_wrong_calls_are_named(given, message, small):
    with pytest.raises(ValueError, match=message):
        small(**given)


@pytest.mark.parametrize("wrong", [-1, 62])
def test_unknown_id_under_jit_is_not_silent(wrong, small):
    ids = token_ids("projection")
    ids[1, 3] = wrong
    found = jax.jit(lambda model, ids: model(ids).last_hidden_state)(small, ids)
    assert jnp.isnan(found[1]).all()
    assert jnp.isfinite(found[::2]).all()
