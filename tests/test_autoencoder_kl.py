"""`AutoencoderKL` against the PyTorch module: outputs, tangents, and directories both ways."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TorchAutoencoderKL
from flax import nnx
from safetensors.numpy import load_file, save_file

from sharpjax.checkpoints import from_pretrained, save_pretrained
from sharpjax.networks.autoencoder_kl import AutoencoderKL, DiagonalGaussian

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
SMALL = {"block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 16}
PLAIN, ATTN = (
    ("DownEncoderBlock2D", "UpDecoderBlock2D"),
    ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"),
)


def blocks(*kinds):
    """Down and up block types; the up path mirrors the down path."""
    return {
        "down_block_types": tuple(k[0] for k in kinds),
        "up_block_types": tuple(k[1] for k in reversed(kinds)),
    }


STABLE_DIFFUSION = blocks(PLAIN, PLAIN, PLAIN, PLAIN) | {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
}
CONFIGS = {
    # the VAE of Stable Diffusion 1 and 2, narrower
    "stable_diffusion": STABLE_DIFFUSION
    | {"block_out_channels": (16, 32, 64, 64), "norm_num_groups": 8},
    "one_level_sixteen_latents_no_quant_convs": {
        "block_out_channels": (16,),
        "norm_num_groups": 8,
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "force_upcast": False,
    },
    "attention_blocks_mish": SMALL | blocks(PLAIN, ATTN) | {"act_fn": "mish", "out_channels": 2},
    "no_mid_attention": SMALL
    | blocks(PLAIN, PLAIN)
    | {"mid_block_add_attention": False, "use_post_quant_conv": False, "layers_per_block": 2},
    "attention_everywhere_gelu": SMALL | blocks(ATTN, ATTN) | {"act_fn": "gelu"},
    "attention_in_the_encoder_only": SMALL
    | blocks(ATTN, ATTN)
    | {"up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"), "use_quant_conv": False},
    "three_odd_groups_relu": blocks(PLAIN, ATTN, PLAIN)
    | {
        "block_out_channels": (9, 15, 21),
        "norm_num_groups": 3,
        "layers_per_block": 3,
        "act_fn": "relu",
        "in_channels": 1,
        "out_channels": 5,
        "latent_channels": 3,
        "sample_size": (16, 24),
        "latents_mean": (0.1, -0.2, 0.0),
        "latents_std": (1.0, 2.0, 0.5),
    },
}


# What the others add to these is checked in the slow tier: each is a compilation of its own.
def torch_model(config, seed=0):
    """Random weights everywhere: PyTorch starts norms at one and biases of norms at zero."""
    torch.manual_seed(seed)
    model = TorchAutoencoderKL(**config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def inputs(config, seed=1):
    """Images and latents with a direction each, neither square nor even at every level."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 2, config.get("in_channels", 3), 18, 13), dtype=np.float32)
    z = rng.standard_normal((2, 2, config.get("latent_channels", 4), 3, 2), dtype=np.float32)
    return *x, *z


@jax.jit
def encode_tangent(vae, x, v):
    return jax.jvp(vae.encode, (x,), (v,))


@jax.jit
def decode_tangent(vae, z, v):
    return jax.jvp(vae.decode, (z,), (v,))


@jax.jit
def encode_and_decode(vae, x, z):
    return vae.encode(x), vae.decode(z)


def values(vae, x, z):
    """The same without another compilation: the parity test has done these."""
    return encode_tangent(vae, x, x)[0], decode_tangent(vae, z, z)[0]


def torch_tangent(f, x, v):
    # fused attention has no second derivative; the plain kernel is the same mathematics.
    # (torch.func.jvp fails in PyTorch 2.13's group norm behind attention, whose output is
    # not contiguous, so: two reverse passes.)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        pair = torch.autograd.functional.jvp(f, torch.tensor(x), torch.tensor(v))
    return jax.tree.map(lambda t: t.detach().numpy(), pair)


def relative_error(ours, theirs):
    assert ours.shape == theirs.shape
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def read_config(folder):
    config = json.loads((folder / "config.json").read_text())
    return {k: v for k, v in config.items() if not k.startswith("_")}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A directory by PyTorch's `save_pretrained`, with attention in all places; only read it."""
    folder = tmp_path_factory.mktemp("torch") / "vae"
    torch_model(CONFIGS["attention_blocks_mish"]).save_pretrained(folder)
    return folder


@pytest.mark.quick
@pytest.mark.fast_cases("one_level_sixteen_latents_no_quant_convs")
@pytest.mark.parametrize("name", CONFIGS)
def test_matches_pytorch_and_back(name, tmp_path):
    theirs = torch_model(CONFIGS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    x, dx, z, dz = inputs(CONFIGS[name])

    def moments(x):
        posterior = theirs.encode(x).latent_dist
        return posterior.mean, posterior.logvar

    (mean, log_variance), (d_mean, d_log_variance) = torch_tangent(moments, x, dx)
    posterior, tangent = encode_tangent(ours, x, dx)
    assert relative_error(posterior.mean, mean) < 1e-5
    assert relative_error(posterior.log_variance, log_variance) < 1e-5
    assert relative_error(tangent.mean, d_mean) < 1e-4
    assert relative_error(tangent.log_variance, d_log_variance) < 1e-4
    expected = theirs.encode(torch.tensor(x)).latent_dist
    assert relative_error(posterior.std, expected.std.detach().numpy()) < 1e-5
    assert relative_error(posterior.kl(), expected.kl().detach().numpy()) < 1e-5

    image, d_image = torch_tangent(lambda z: theirs.decode(z).sample, z, dz)
    our_image, our_d_image = decode_tangent(ours, z, dz)
    assert relative_error(our_image, image) < 1e-5
    assert relative_error(our_d_image, d_image) < 1e-4

    save_pretrained(ours, tmp_path / "ours")
    back = TorchAutoencoderKL.from_pretrained(tmp_path / "ours").eval()
    assert read_config(tmp_path / "ours").items() <= read_config(tmp_path / "theirs").items()
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[key].numpy(), value.numpy(), err_msg=key)
    with torch.no_grad():
        again = back.encode(torch.tensor(x)).latent_dist.parameters
        np.testing.assert_array_equal(again, theirs.encode(torch.tensor(x)).latent_dist.parameters)
        again = back.decode(torch.tensor(z)).sample
        np.testing.assert_array_equal(again, theirs.decode(torch.tensor(z)).sample)


# --- files of Stable Diffusion -----------------------------------------------------------------


@pytest.mark.parametrize("suffix", [(), (1, 1)])
def test_legacy_attention_names(suffix, written, tmp_path):
    """Files from before diffusers 0.15, whose projections may still be 1 x 1 convolutions."""
    folder = shutil.copytree(written, tmp_path / "old")
    expected = load_file(folder / WEIGHTS_NAME)
    old = {}
    for key, value in expected.items():
        for new, legacy in (
            (".to_q.", ".query."),
            (".to_k.", ".key."),
            (".to_v.", ".value."),
            (".to_out.0.", ".proj_attn."),
        ):
            if new in key:
                key = key.replace(new, legacy)
                value = value.reshape(value.shape + suffix) if value.ndim == 2 else value
        old[key] = value
    assert len(old.keys() - expected.keys()) == 8 * 5  # 1 encoder, 2 decoder, 2 mid attentions
    save_file(old, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    found = load_file(save_pretrained(from_pretrained(folder), tmp_path / "new") / WEIGHTS_NAME)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_configuration_of_stable_diffusion_1(tmp_path):
    """The keys that its `vae/config.json` has; those that came later take their defaults."""
    old = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.2.2",
        "act_fn": "silu",
        "block_out_channels": [16, 32, 64, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    torch_model(CONFIGS["stable_diffusion"]).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = from_pretrained(tmp_path).config
    assert (config["scaling_factor"], config["shift_factor"]) == (0.18215, None)
    assert config["block_out_channels"] == (16, 32, 64, 64)


# --- the posterior -----------------------------------------------------------------------------


def test_posterior_formulas(written):
    """The bounds of the variance, which weights rarely reach, and the sample."""
    vae = from_pretrained(written)
    x, _, z, _ = inputs(vae.config)
    usual, _ = values(vae, x, z)
    vae.quant_conv.bias[...] += jnp.zeros(8).at[4].set(1e3).at[5].set(-1e3)
    posterior, _ = values(vae, x, z)
    assert (posterior.log_variance[:, 0] == 20).all()
    assert (posterior.log_variance[:, 1] == -30).all()
    np.testing.assert_array_equal(posterior.log_variance[:, 2:], usual.log_variance[:, 2:])
    np.testing.assert_allclose(posterior.std[:, 0], np.exp(10.0), rtol=1e-6)

    noise = jax.random.normal(jax.random.key(3), usual.mean.shape)
    np.testing.assert_allclose(
        usual.sample(jax.random.key(3)), usual.mean + usual.std * noise, rtol=1e-6
    )


def test_kl_divergence_keeps_its_digits_near_the_prior():
    rng = np.random.default_rng(0)
    mean, log_variance = 1e-4 * rng.standard_normal((2, 3, 4, 8, 8))
    exact = 0.5 * (mean**2 + np.expm1(log_variance) - log_variance).sum((1, 2, 3))
    ours = DiagonalGaussian(
        jnp.asarray(mean, jnp.float32), jnp.asarray(log_variance, jnp.float32)
    ).kl()
    assert ours.shape == (3,)
    np.testing.assert_allclose(ours, exact, rtol=1e-2)


# --- other types, transformations, errors ------------------------------------------------------


@pytest.mark.slow
def test_bfloat16(written):
    ours, theirs = from_pretrained(written), TorchAutoencoderKL.from_pretrained(written).bfloat16()
    x, _, z, _ = inputs(ours.config)
    posterior, image = values(ours, x, z)
    exact = (posterior.mean, posterior.log_variance, image)
    half = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), (ours, x, z))
    posterior, image = encode_and_decode(*half)
    found = (posterior.mean, posterior.log_variance, image)
    with torch.no_grad():
        posterior = theirs.encode(torch.tensor(x).bfloat16()).latent_dist
        image = theirs.decode(torch.tensor(z).bfloat16()).sample
    peers = (posterior.mean, posterior.logvar, image)
    for value, right, peer in zip(found, exact, peers, strict=True):
        assert value.dtype == jnp.bfloat16
        error = rms(value.astype(jnp.float32) - right) / rms(right)
        peer_error = rms(peer.float().numpy() - right) / rms(right)
        # Fewer than 64 results in a row are rounded to 8 bits, each by at most 2^-8 of itself, or
        # 2^-8 / sqrt(3) at the root mean square; independent errors add up to sqrt(64) of that.
        assert 2**-10 < error < 8 * 2**-8 / 3**0.5
        assert error < 1.5 * peer_error
    assert found[0].dtype == DiagonalGaussian(*found[:2]).sample(jax.random.key(0)).dtype
    assert DiagonalGaussian(*found[:2]).kl().dtype == jnp.float32

    # every convolution takes bfloat16, not float32 of which the result is rounded
    jaxpr = encode_and_decode.trace(*half).jaxpr.jaxpr
    kernels = [e.invars[1].aval for e in equations(jaxpr) if "conv_general" in e.primitive.name]
    assert len(kernels) > 20
    assert {k.dtype for k in kernels} == {jnp.dtype("bfloat16")}


def rms(x):
    return float(np.sqrt(np.mean(np.square(np.asarray(x)))))


def equations(jaxpr):
    """Of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from equations(value.jaxpr)


def test_vmap_over_examples_equals_batch(written):
    vae = from_pretrained(written)
    x, _, z, _ = inputs(vae.config)
    one = jax.vmap(lambda x, z: encode_and_decode(vae, x[None], z[None]))(x, z)
    batch = values(vae, x, z)
    for found, expected in zip(jax.tree.leaves(one), jax.tree.leaves(batch), strict=True):
        np.testing.assert_allclose(found[:, 0], expected, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ("DownEncoderBlock2D", "DownBlock2D")}, "must be one of DownEncoder"),
        ({"up_block_types": ("UpDecoderBlock2D", ["x"])}, r"up_block_types must .* got \('x',\)"),
        ({"up_block_types": ("UpDecoderBlock2D",)}, "as long as block_out_channels, 2"),
        ({"down_block_types": "DownEncoderBlock2D"}, "down_block_types must be a list"),
        ({"block_out_channels": ()}, r"block_out_channels must be a positive .* got \(\)"),
        ({"norm_num_groups": 5}, "norm_num_groups=5 must divide"),
        ({"act_fn": "tanh"}, "act_fn must be .* got 'tanh'"),
        ({"latent_channels": 0}, "latent_channels must be a positive integer or several, got 0"),
        ({"scaling_factor": float("nan")}, r"scaling_factor must be 1 positive float32 number"),
        ({"scaling_factor": 10**400}, r"scaling_factor must be 1 positive float32 number"),
        ({"latents_mean": [0.0, 0.0]}, r"latents_mean must be 4 float32 number"),
        ({"latents_std": [1.0, 1.0, 1.0, 0.0]}, r"latents_std must be 4 positive float32"),
    ],
)
def test_unsupported_configuration_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(
            lambda: AutoencoderKL(**(CONFIGS["attention_blocks_mish"] | change), rngs=nnx.Rngs(0))
        )


def test_wrong_shapes_are_named():
    config = CONFIGS["attention_blocks_mish"]
    vae = nnx.eval_shape(lambda: AutoencoderKL(**config, rngs=nnx.Rngs(0)))
    for shape in ((3, 16, 16), (1, 16, 16, 3), (1, 3, 16, 1)):
        with pytest.raises(ValueError, match=r"\(batch, 3, height, width\).*at least 2, got"):
            vae.encode(jnp.zeros(shape))
    for shape in ((4, 4, 4), (1, 3, 4, 4), (1, 4, 0, 4)):
        with pytest.raises(ValueError, match=r"\(batch, 4, height, width\), got"):
            vae.decode(jnp.zeros(shape))
