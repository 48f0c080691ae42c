"""`T5EncoderModel` against transformers: outputs, the buckets of distances, and directories."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from sharpjax.checkpoints import from_pretrained, save_pretrained
from sharpjax.networks.t5_encoder import T5EncoderModel, buckets

SMALL = {"vocab_size": 50, "d_model": 12, "d_kv": 5, "d_ff": 16, "num_layers": 2, "num_heads": 3}
CONFIGS = {
    "first version": SMALL,
    "1.1": SMALL | {"feed_forward_proj": "gated-gelu"},
    "few buckets": SMALL
    | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20},
}


def torch_model(config):
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(transformers.T5Config(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    return model


def ids(n=23):
    return np.random.default_rng(0).integers(0, 50, (2, n))


def same(ours, theirs, tokens):
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens))[0].numpy()
    found = np.asarray(ours(tokens))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", CONFIGS)
def test_values(name, tmp_path):
    theirs = torch_model(CONFIGS[name])
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    for n in (1, 23, 150):  # beyond the largest distance
        same(ours, theirs, ids(n))


@pytest.mark.parametrize(("count", "most"), [(32, 128), (8, 20), (16, 50)])
def test_buckets_are_those_of_transformers(count, most):
    attention = transformers.models.t5.modeling_t5.T5Attention
    places = torch.arange(300)
    expected = attention._relative_position_bucket(
        places[None] - places[:, None], bidirectional=True, num_buckets=count, max_distance=most
    )
    np.testing.assert_array_equal(buckets(300, num_buckets=count, max_distance=most), expected)


def test_transformers_reads_what_is_written(tmp_path):
    model = T5EncoderModel(**CONFIGS["1.1"], rngs=nnx.Rngs(0))
    save_pretrained(model, tmp_path / "t5")
    same(model, transformers.T5EncoderModel.from_pretrained(tmp_path / "t5").eval(), ids())


def test_the_table_of_tokens_under_either_name(tmp_path):
    """Published files have it as one tensor, as another, or as both."""
    theirs = torch_model(SMALL)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    table = tensors.pop("shared.weight")
    for names in (
        ["encoder.embed_tokens.weight"],
        ["shared.weight", "encoder.embed_tokens.weight"],
    ):
        save_file(tensors | dict.fromkeys(names, table), path, metadata={"format": "pt"})
        same(from_pretrained(tmp_path), theirs, ids())
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensor\(s\) missing, the first is 'shared.weight'"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj must be one of relu, gated-gelu"),
        ({"relative_attention_num_buckets": 6}, "must be a multiple of 4"),
        ({"relative_attention_max_distance": 8}, "more than a quarter of it, got 32 and 8"),
        ({"model_type": "umt5"}, "model_type must be 't5', got 'umt5'"),
        ({"new_attention": True}, "unknown configuration key 'new_attention'"),
    ],
)
def test_refused(changes, message, tmp_path):
    torch_model(SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


def test_a_token_that_is_none():
    model = T5EncoderModel(**SMALL, rngs=nnx.Rngs(0))
    assert np.isnan(model(jnp.array([[50, -1, 3]]))).any()
