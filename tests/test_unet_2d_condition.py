"""`UNet2DConditionModel` against the PyTorch module: outputs, tangents, directories both ways."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel as TorchUNet2DConditionModel
from flax import nnx

from sharpjax.checkpoints import from_pretrained, save_pretrained
from sharpjax.networks import UNet2DConditionModel

CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


def blocks(*kinds):
    """Down and up block types; the up path mirrors the down path."""
    return {
        "down_block_types": tuple(k[0] for k in kinds),
        "up_block_types": tuple(k[1] for k in reversed(kinds)),
    }


TINY = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    **blocks(CROSS, PLAIN),
}
CONFIGS = {
    # the shape of SD 1.x: four levels, convolutional projections, 8 heads everywhere
    "sd1": TINY
    | blocks(CROSS, CROSS, CROSS, PLAIN)
    | {"block_out_channels": (16, 32, 64, 64), "layers_per_block": 2, "attention_head_dim": 8},
    # SD 2.x: linear projections, a number of heads for each level, upcast attention
    "sd2": TINY
    | blocks(CROSS, CROSS, CROSS, PLAIN)
    | {
        "block_out_channels": (16, 32, 64, 64),
        "layers_per_block": 2,
        "attention_head_dim": (2, 4, 8, 8),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    # XL: several transformer layers, sizes and pooled text as additional embedding
    "xl": TINY
    | blocks(PLAIN, CROSS, CROSS)
    | {
        "block_out_channels": (16, 32, 64),
        "attention_head_dim": (2, 4, 8),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
    },
    "uneven_heads": TINY | {"attention_head_dim": (3, 5), **blocks(CROSS, CROSS)},
    "no_mid_block": TINY | {"mid_block_type": None, "act_fn": "gelu"},
    "layers_per_level": TINY
    | blocks(CROSS, CROSS, PLAIN)
    | {
        "block_out_channels": (16, 16, 32),
        "layers_per_block": (1, 3, 2),
        "transformer_layers_per_block": (2, 1, 1),
    },
    "old_padding": TINY
    | {
        "downsample_padding": 0,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "act_fn": "mish",
        "norm_eps": 1e-6,
        "in_channels": 9,  # as for inpainting
    },
}
# What the others add to these is checked in the slow tier: each is a compilation of its own.
often = [pytest.param(n, marks=() if n == "xl" else pytest.mark.slow) for n in CONFIGS]


@jax.jit
def value_and_tangent(model, x, v, conditions):
    return jax.jvp(lambda x: model(x, **conditions), (x,), (v,))


def torch_model(config, seed=0):
    """Random weights everywhere: PyTorch starts norms at one and biases of norms at zero."""
    torch.manual_seed(seed)
    model = TorchUNet2DConditionModel(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def inputs(config, seed=1, size=(16, 16)):
    """Sample, direction and everything else that the network is called with."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    x, v = normal(2, 3, config.get("in_channels", 4), *size)
    width = config["cross_attention_dim"]
    conditions = {"timestep": np.array([981, 400, 3]), "encoder_hidden_states": normal(3, 5, width)}
    if config.get("addition_embed_type"):
        conditions["added_cond_kwargs"] = {
            "text_embeds": normal(3, 20),
            "time_ids": np.array([[512, 512, 0, 0, 512, 512], [64, 32, 1, 2, 64, 32]] * 2)[:3],
        }
    return x, v, conditions


def tensors(tree):
    return jax.tree.map(torch.tensor, tree)


def relative_error(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def compare(ours, theirs, x, v, conditions):
    torch_conditions = tensors(conditions)

    def f(x):
        return theirs(x, **torch_conditions).sample

    # fused attention has no second derivative; the plain kernel is the same mathematics.
    # (torch.func.jvp fails in PyTorch 2.13's group norm, so: two reverse passes.)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value, tangent = torch.autograd.functional.jvp(f, torch.tensor(x), torch.tensor(v))
    our_value, our_tangent = value_and_tangent(ours, x, v, conditions)
    assert relative_error(our_value, value.detach().numpy()) < 1e-4
    assert relative_error(our_tangent, tangent.detach().numpy()) < 1e-3
    return f(torch.tensor(x)).detach().numpy()


@pytest.mark.parametrize("name", often)
def test_matches_pytorch_and_back(name, tmp_path):
    config = CONFIGS[name]
    theirs = torch_model(config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    x, v, conditions = inputs(config)
    value = compare(ours, theirs, x, v, conditions)

    save_pretrained(ours, tmp_path / "ours")
    back = TorchUNet2DConditionModel.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        again = back(torch.tensor(x), **tensors(conditions)).sample
    np.testing.assert_array_equal(again.numpy(), value)


@pytest.mark.slow
def test_odd_sizes(tmp_path):
    """13 x 18 pixels: rounded up on the way down, cropped on the way up, as diffusers does."""
    config = CONFIGS["sd1"]
    theirs = torch_model(config)
    theirs.save_pretrained(tmp_path)
    compare(from_pretrained(tmp_path), theirs, *inputs(config, size=(13, 18)))


@pytest.mark.slow
def test_batch_vmap_and_remat_agree():
    config = CONFIGS["xl"]
    model = UNet2DConditionModel(**config, rngs=nnx.Rngs(0))
    x, v, conditions = inputs(config)
    value, tangent = value_and_tangent(model, x, v, conditions)
    one = jax.jit(
        jax.vmap(
            lambda x, c: model(x[None], **jax.tree.map(lambda a: a[None], c))[0], in_axes=(0, 0)
        )
    )
    scale = np.abs(value).max()  # float32 sums in another order: some 1e-6 of it
    np.testing.assert_allclose(
        one(x, jax.tree.map(jnp.asarray, conditions)), value, atol=2e-5 * scale
    )

    model.remat = True
    again, again_tangent = value_and_tangent(model, x, v, conditions)
    np.testing.assert_allclose(again, value, atol=2e-5 * scale)
    np.testing.assert_allclose(again_tangent, tangent, atol=2e-5 * np.abs(tangent).max())
    saved = jax.eval_shape(lambda m: jax.linearize(lambda x: m(x, **conditions), x)[1], model)
    kept = sum(leaf.size for leaf in jax.tree.leaves(saved))
    model.remat = False
    saved = jax.eval_shape(lambda m: jax.linearize(lambda x: m(x, **conditions), x)[1], model)
    assert kept < 0.7 * sum(leaf.size for leaf in jax.tree.leaves(saved))


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16():
    config = CONFIGS["sd2"]
    model = UNet2DConditionModel(**config, rngs=nnx.Rngs(0))
    x, _, conditions = inputs(config)
    exact = jax.jit(lambda m, x, c: m(x, **c))(model, x, conditions)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), model)
    rounded = jax.jit(lambda m, x, c: m(x, **c))(half, x.astype(jnp.bfloat16), conditions)
    assert rounded.dtype == jnp.bfloat16
    # 8 bits, 2^-9 a rounding, through some hundred layers that mostly add to a residual stream
    assert relative_error(rounded.astype(jnp.float32), np.asarray(exact)) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            blocks(CROSS, ("KDownBlock2D", "UpBlock2D")),
            "one of .*, got 'KDownBlock2D'",
        ),
        ({"up_block_types": ("UpBlock2D",)}, "equally long"),
        ({"mid_block_type": "Mid"}, "mid_block_type must be one of None, .*, got 'Mid'"),
        ({"norm_num_groups": 5}, "must divide"),
        ({"attention_head_dim": 0}, "number of heads, must lie in 1..16"),
        ({"attention_head_dim": (4, 4, 4)}, "one value or 2, one for each level, got 3"),
        ({"layers_per_block": (1,)}, "layers_per_block must be one value or 2"),
        ({"act_fn": "tanh"}, "act_fn must be one of"),
        ({"addition_embed_type": "image"}, "addition_embed_type must be one of .*, got 'image'"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim and .* must be given"),
    ],
)
def test_unsupported_configuration_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: UNet2DConditionModel(**(TINY | change), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_type": "gated"}, "attention_type must be 'default', got 'gated'"),
        ({"conv_in_kernel": 5}, "conv_in_kernel must be 3, got 5"),
        ({"resnet_time_scale_shift": "scale_shift"}, "must be 'default', got 'scale_shift'"),
        ({"num_class_embeds": 7}, "unknown configuration key 'num_class_embeds'"),
        ({"time_cond_proj_dim": 8}, "unknown configuration key 'time_cond_proj_dim'"),
        ({"dual_cross_attention": True}, "unknown configuration key 'dual_cross_attention'"),
    ],
)
def test_what_other_pipelines_use_is_refused(change, message, tmp_path):
    torch_model(TINY).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


@pytest.mark.slow
def test_wrong_calls_are_named():
    plain, large = (  # the checks need no weights
        nnx.eval_shape(lambda config=config: UNet2DConditionModel(**config, rngs=nnx.Rngs(0)))
        for config in (TINY, CONFIGS["xl"])
    )
    x, text = jnp.zeros((1, 4, 16, 16)), jnp.zeros((1, 5, 24))

    def call(network, *arguments, **options):
        return jax.eval_shape(lambda network: network(*arguments, **options), network)

    with pytest.raises(ValueError, match="batch, 4, height, width"):
        call(plain, jnp.zeros((1, 3, 16, 16)), 0, text)
    with pytest.raises(ValueError, match=r"must have shape \(1, tokens, 24\), got \(1, 5, 23\)"):
        call(plain, x, 0, text[..., :-1])
    with pytest.raises(ValueError, match="needs added_cond_kwargs"):
        call(large, x, 0, text)
    with pytest.raises(ValueError, match="lacks time_ids"):
        call(large, x, 0, text, added_cond_kwargs={"text_embeds": jnp.zeros((1, 20))})
    for ids in ((1, 5), (2, 6), (6,)):
        told = {"text_embeds": jnp.zeros((1, 20)), "time_ids": jnp.zeros(ids)}
        with pytest.raises(ValueError, match=r"8 features of each number .* must be 68"):
            call(large, x, 0, text, added_cond_kwargs=told)
