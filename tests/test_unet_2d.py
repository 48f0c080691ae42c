"""`UNet2DModel` against the PyTorch module: outputs, tangents, and directories both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel as TorchUNet2DModel

from sharpjax.checkpoints import from_pretrained, save_pretrained
from sharpjax.networks import UNet2DModel

pytestmark = pytest.mark.quick

SMALL = {
    "sample_size": 16,
    "in_channels": 2,
    "out_channels": 2,
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
CONV, ATTN = ("DownBlock2D", "UpBlock2D"), ("AttnDownBlock2D", "AttnUpBlock2D")
RESNET = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")


def blocks(*kinds):
    """Down and up block types; the up path mirrors the down path."""
    return {
        "down_block_types": tuple(k[0] for k in kinds),
        "up_block_types": tuple(k[1] for k in reversed(kinds)),
    }


CONFIGS = {
    "plain": SMALL | blocks(CONV, CONV) | {"add_attention": False},
    "attention": SMALL | blocks(CONV, ATTN) | {"layers_per_block": 2},
    "attention_everywhere_one_head": SMALL | blocks(ATTN, ATTN) | {"attention_head_dim": None},
    "resnet_resampling": SMALL
    | blocks(ATTN, ATTN)
    | {"downsample_type": "resnet", "upsample_type": "resnet"},
    "resnet_blocks_scale_shift": SMALL
    | blocks(RESNET, RESNET)
    | {"resnet_time_scale_shift": "scale_shift"},
    "scale_shift_attention": SMALL
    | blocks(CONV, ATTN)
    | {"resnet_time_scale_shift": "scale_shift", "attention_head_dim": 16, "norm_eps": 1e-6},
    "attention_groups_mid_scale": SMALL
    | blocks(CONV, ATTN)
    | {"attn_norm_num_groups": 8, "mid_block_scale_factor": 2**0.5},
    "no_mid_block": SMALL | blocks(CONV, ATTN) | {"mid_block_type": None},
    "google_ddpm": SMALL
    | blocks(CONV, ATTN)
    | {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "act_fn": "mish"},
    "gelu": SMALL | blocks(CONV, CONV) | {"act_fn": "gelu"},
    "classes": SMALL | blocks(CONV, ATTN) | {"num_class_embeds": 7},
    "three_levels_relu": SMALL
    | blocks(CONV, ATTN, CONV)
    | {"block_out_channels": (8, 16, 32), "act_fn": "relu"},
}


@jax.jit
def value_and_tangent(model, x, t, labels, v):
    return jax.jvp(lambda x: model(x, t, class_labels=labels), (x,), (v,))


def torch_model(config, seed=0):
    """Random weights everywhere: PyTorch starts norms at one and biases of norms at zero."""
    torch.manual_seed(seed)
    model = TorchUNet2DModel(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def inputs(config, seed=1):
    rng = np.random.default_rng(seed)
    x, v = rng.standard_normal((2, 3, config["in_channels"], 16, 16), dtype=np.float32)
    t = np.array([981, 400, 3])
    labels = None
    if "num_class_embeds" in config:
        labels = np.array([0, 6, 2])
    return x, v, t, labels


def relative_error(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


# What the others add to these is checked in the slow tier: each is a compilation of its own.
OFTEN = ("attention", "resnet_blocks_scale_shift", "google_ddpm", "classes")


def marks(name):
    """One of them is compiled as users compile it: optimization keeps the numbers."""
    if name == "google_ddpm":
        return pytest.mark.optimized
    return () if name in OFTEN else pytest.mark.slow


@pytest.mark.fast_cases("classes")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=marks(n)) for n in CONFIGS],
)
def test_matches_pytorch_and_back(name, tmp_path):
    config = CONFIGS[name]
    theirs = torch_model(config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    x, v, t, labels = inputs(config)
    torch_labels = None if labels is None else torch.tensor(labels)

    def f(x):
        return theirs(x, torch.tensor(t), class_labels=torch_labels).sample

    # fused attention has no second derivative; the plain kernel is the same mathematics.
    # (torch.func.jvp fails in PyTorch 2.13's group norm, so: two reverse passes.)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value, tangent = torch.autograd.functional.jvp(f, torch.tensor(x), torch.tensor(v))
    value, tangent = value.detach().numpy(), tangent.detach().numpy()
    our_value, our_tangent = value_and_tangent(ours, x, t, labels, v)
    assert relative_error(our_value, value) < 1e-4
    assert relative_error(our_tangent, tangent) < 1e-4

    save_pretrained(ours, tmp_path / "ours")
    back = TorchUNet2DModel.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        again = back(torch.tensor(x), torch.tensor(t), class_labels=torch_labels).sample
    np.testing.assert_array_equal(again.numpy(), f(torch.tensor(x)).detach().numpy())


@pytest.mark.slow
def test_vmap_over_examples_equals_batch():
    from flax import nnx

    model = UNet2DModel(**CONFIGS["classes"], rngs=nnx.Rngs(0))
    x, _, t, labels = inputs(CONFIGS["classes"])
    one = jax.vmap(lambda x, t, c: model(x[None], t, class_labels=c[None])[0])
    np.testing.assert_allclose(
        one(x, jnp.asarray(t), labels), model(x, t, class_labels=labels), atol=2e-5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ("DownBlock2D", "KDownBlock2D")}, "one of .*, got 'KDownBlock2D'"),
        ({"up_block_types": ("UpBlock2D",)}, "equally long"),
        ({"norm_num_groups": 5}, "must divide"),
        ({"attention_head_dim": 7}, "attention_head_dim=7 must divide"),
        ({"act_fn": "tanh"}, "act_fn must be one of"),
        ({"resnet_time_scale_shift": "ada_group"}, "scale_shift"),
    ],
)
def test_unsupported_configuration_is_named(change, message):
    from flax import nnx

    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: UNet2DModel(**(CONFIGS["attention"] | change), rngs=nnx.Rngs(0)))


def test_wrong_calls_are_named():
    from flax import nnx

    plain, classes = (  # the checks need no weights
        nnx.eval_shape(lambda name=name: UNet2DModel(**CONFIGS[name], rngs=nnx.Rngs(0)))
        for name in ("plain", "classes")
    )
    x = jnp.zeros((1, 2, 16, 16))

    def call(network, *arguments, **options):
        return jax.eval_shape(lambda network: network(*arguments, **options), network)

    with pytest.raises(ValueError, match="takes no class_labels"):
        call(plain, x, 0, class_labels=jnp.zeros(1, int))
    with pytest.raises(ValueError, match="needs class_labels"):
        call(classes, x, 0)
    with pytest.raises(ValueError, match="batch, 2, height, width"):
        call(plain, jnp.zeros((1, 3, 16, 16)), 0)
    config = SMALL | blocks(RESNET, RESNET)
    halving = nnx.eval_shape(lambda: UNet2DModel(**config, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="all its levels can halve"):
        call(halving, jnp.zeros((1, 2, 13, 16)), 0)
