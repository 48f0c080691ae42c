"""`SD3Transformer2DModel` against the PyTorch module: outputs, tangents, and directories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel as TorchSD3
from flax import nnx
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpjax.checkpoints import from_pretrained, save_pretrained
from sharpjax.networks.sd3_transformer_2d import SD3Transformer2DModel

SMALL = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 6,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 5,
    "pos_embed_max_size": 6,
}
CONFIGS = {
    "3": SMALL,
    "3.5 large": SMALL | {"qk_norm": "rms_norm"},
    "3.5 medium": SMALL | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 2)},
    "dual, not normalized": SMALL | {"dual_attention_layers": (1,), "out_channels": None},
    "patches of four": SMALL | {"patch_size": 4, "num_layers": 1, "in_channels": 3,
                                "out_channels": 3},
}  # fmt: skip


@jax.jit
def value_and_tangent(model, x, t, text, pooled, v):
    return jax.jvp(lambda x: model(x, t, text, pooled), (x,), (v,))


def torch_model(config, seed=0):
    torch.manual_seed(seed)
    model = TorchSD3(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
        model.pos_embed.pos_embed.add_(0.1 * torch.randn_like(model.pos_embed.pos_embed))
    return model


def inputs(config, sides=(8, 8)):
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    x, v = (draw(3, config["in_channels"], *sides) for _ in range(2))
    return x, np.array([1000.0, 512.3, 2.9], np.float32), draw(3, 7, 6), draw(3, 5), v


def theirs_of(model, x, t, text, pooled):
    return model(
        x, encoder_hidden_states=torch.tensor(text), pooled_projections=torch.tensor(pooled),
        timestep=torch.tensor(t),
    ).sample  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_value_and_tangent(name, tmp_path):
    theirs = torch_model(CONFIGS[name])
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    x, t, text, pooled, v = inputs(CONFIGS[name])
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative
        value, tangent = torch.func.jvp(
            lambda x: theirs_of(theirs, x, t, text, pooled), (torch.tensor(x),), (torch.tensor(v),)
        )
    found = value_and_tangent(ours, x, t, text, pooled, v)
    for mine, other, limit in zip(found, (value, tangent), (1e-4, 1e-3), strict=True):
        other = other.detach().numpy()
        assert np.abs(mine - other).max() < limit * np.abs(other).max()


@pytest.mark.parametrize("sides", [(12, 12), (4, 10)])
def test_other_sizes_take_the_middle_of_the_table(sides, tmp_path):
    theirs = torch_model(SMALL)
    theirs.save_pretrained(tmp_path)
    x, t, text, pooled, _ = inputs(SMALL, sides)
    with torch.no_grad():
        expected = theirs_of(theirs, torch.tensor(x), t, text, pooled).numpy()
    found = from_pretrained(tmp_path)(jnp.asarray(x), t, text, pooled)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_pytorch_reads_what_is_written(tmp_path):
    config = CONFIGS["3.5 medium"]
    model = SD3Transformer2DModel(**config, rngs=nnx.Rngs(0))
    save_pretrained(model, tmp_path / "transformer")
    x, t, text, pooled, _ = inputs(config)
    theirs = TorchSD3.from_pretrained(tmp_path / "transformer").eval()
    with torch.no_grad():
        expected = theirs_of(theirs, torch.tensor(x), t, text, pooled).numpy()
    found = model(jnp.asarray(x), t, text, pooled)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size must divide sample_size, got 3 and 8"),
        ({"caption_projection_dim": 8}, r"and that of caption_projection_dim, got 2 \* 8 and 8"),
        ({"qk_norm": "layer_norm"}, "qk_norm must be one of None, rms_norm"),
        ({"dual_attention_layers": (3,)}, r"dual_attention_layers must be of 0\.\.2, got \(3,\)"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SD3Transformer2DModel(**SMALL | changes, rngs=nnx.Rngs(0))


def test_sizes_that_do_not_fit():
    model = SD3Transformer2DModel(**SMALL, rngs=nnx.Rngs(0))
    text, pooled = jnp.zeros((1, 7, 6)), jnp.zeros((1, 5))
    for sides, message in (
        ((7, 8), "multiples of patch_size 2, got 7 and 8"),
        ((16, 8), r"at most 6 patches \(pos_embed_max_size\), got 8 and 4"),
    ):
        with pytest.raises(ValueError, match=message):
            model(jnp.zeros((1, 4, *sides)), 3.0, text, pooled)
