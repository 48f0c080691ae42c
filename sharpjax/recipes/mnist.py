"""How the digits' model is made: data, architecture and settings."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from sharpjax.datasets.mnist import SET_SIZES, PlantedDigits, planted_digits
from sharpjax.detection.oracle import TrainingSet
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.networks.unet_2d import UNet2DModel
from sharpjax.schedules import Schedule
from sharpjax.training import ClassDenoising, Data, Settings, train

MNIST_SETTINGS = Settings(steps=2600, batch_size=64, learning_rate=1e-3)

# With Stable Diffusion's betas the first sampling step (t = 981) still carries a signal of
# alpha = 0.08; with DDPM's linear betas, alpha = 0.008, what the condition tells there is below
# any network's error.  For the same reason the network predicts v: its error in the score is then
# multiplied by alpha/sigma, where that of a noise prediction is multiplied by 1/sigma.
MNIST_SCHEDULE = Schedule.create(
    "scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"
)


def mnist_unet(num_conditions: int, *, seed: int = 0) -> UNet2DModel:
    """The digits' network: three levels of 32, 64, 64 channels, attention at 7 x 7.

    The last class embedding stands for "no condition".
    """
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=num_conditions + 1,
        rngs=nnx.Rngs(seed),
    )


def train_mnist(
    directory: str | Path, settings: Settings = MNIST_SETTINGS, **options: Any
) -> tuple[UNet2DModel, PlantedDigits]:
    """Train the digits' network, or go on where `directory` stopped.

    Losses are reported per set size.  Returns the averaged network and its training set.
    """
    digits = planted_digits()
    groups = tuple(f"sets of {SET_SIZES[i % len(SET_SIZES)]}" for i in range(len(digits.names)))
    data = Data.create(digits.images, digits.conditions, groups)
    model = mnist_unet(len(digits.names), seed=settings.seed)
    task = ClassDenoising(data, MNIST_SCHEDULE)
    trained = train(model, task, directory, settings, **options)
    return trained, digits


def save_mnist(unet: UNet2DModel, digits: PlantedDigits, directory: str | Path) -> Path:
    """Write the digits' model as a diffusers directory, its training set beside the weights."""
    folder = PixelDiffusion(unet, MNIST_SCHEDULE, digits.names).save_pretrained(directory)
    training_set = TrainingSet(
        jnp.asarray(digits.images), jnp.asarray(digits.conditions), len(digits.names)
    )
    training_set.save(folder)
    return folder
