"""How the pictograms' autoencoder is made: data, architecture, start and settings."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharpjax.datasets.openmoji import PlantedPictograms, planted_pictograms
from sharpjax.models.autoencoder_kl import AutoencoderKL
from sharpjax.training import Reconstruction, Settings, train

VAE_SETTINGS = Settings(
    steps=5000, batch_size=16, learning_rate=2e-3, decay=0.6, warmup=100, ema=0.999
)


def openmoji_vae(*, seed: int = 0, scaling_factor: float = 1.0) -> AutoencoderKL:
    """64 x 64 x 3 to 16 x 16 x 4 and back; no attention, few channels.

    It starts close to the identity. With the usual start, the flat colours that pictograms consist
    of are lost in the group normalizations, and training stays at images of one colour for long:
    here a convolution passes its input on, a residual block starts as its skip connection plus a
    tenth, and the posterior as narrow.
    """

    @nnx.jit(static_argnums=0)
    def create(seed: int) -> AutoencoderKL:
        vae = AutoencoderKL(
            sample_size=64,
            block_out_channels=(16, 32, 64),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            mid_block_add_attention=False,
            scaling_factor=scaling_factor,
            rngs=nnx.Rngs(seed),
        )
        for path, module in nnx.iter_modules(vae):
            if not isinstance(module, nnx.Conv):
                continue
            kernel = module.kernel[...]
            if path[-1] in ("conv1", "conv2"):
                scale = 0.1 if path[-1] == "conv2" else 1.0
                module.kernel[...] = scale * kernel
            else:
                module.kernel[...] = 0.1 * kernel + _identity(*kernel.shape)
        moments = vae.quant_conv
        latents = moments.kernel.shape[-1] // 2
        bias: Any = moments.bias
        bias[...] = bias[...].at[latents:].set(-5.0)
        moments.kernel[...] = moments.kernel[...].at[..., latents:].multiply(0.1)
        return vae

    return create(seed)


def _identity(height: int, width: int, c_in: int, c_out: int) -> jax.Array:
    """The kernel that passes channels on, those that agree modulo the smaller number of them."""
    kernel, period = np.zeros((height, width, c_in, c_out)), min(c_in, c_out)
    same = np.equal.outer(np.arange(c_in) % period, np.arange(c_out) % period)
    kernel[height // 2, width // 2] = same
    return jnp.asarray(kernel)


def train_openmoji_vae(
    directory: str | Path,
    settings: Settings = VAE_SETTINGS,
    *,
    checkpoint_every: int = 100,
) -> tuple[AutoencoderKL, PlantedPictograms]:
    """Train the autoencoder on every pictogram but the held-out ones, or go on with it."""
    pictograms = planted_pictograms()
    seen = pictograms.of("memorized", "hot", "general", "control")
    task = Reconstruction(jnp.asarray(pictograms.pictures[seen]))
    vae = openmoji_vae(seed=settings.seed)
    return train(vae, task, directory, settings, checkpoint_every=checkpoint_every), pictograms


def scaled(vae: AutoencoderKL, pictograms: PlantedPictograms) -> AutoencoderKL:
    """The same, with the scaling factor that gives latents of fresh renderings unit variance."""
    drawn = np.flatnonzero([concept.frequency > 0 for concept in pictograms.concepts])
    images = pictograms.fresh_images(jax.random.key(1), drawn)
    mean = np.concatenate(
        [np.asarray(_encode(vae, jnp.asarray(batch))) for batch in _batches(images)]
    )
    factor = round(float(1 / mean.std()), 4)
    other = openmoji_vae(scaling_factor=factor)
    nnx.update(other, nnx.state(vae))
    return other


def quality(vae: AutoencoderKL, pictograms: PlantedPictograms) -> dict[str, np.ndarray]:
    """:func:`psnr` of fresh renderings, one of each general and of each held-out caption."""
    return {
        group: psnr(vae, pictograms.fresh_images(jax.random.key(2), pictograms.of(group)))
        for group in ("general", "held-out")
    }


def psnr(vae: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image's reconstruction from its latents' mean, dB.

    ``10 log10(2^2 / mean square error)`` for pixels in [-1, 1], which decoding is clipped to.
    """
    decoded = np.concatenate(
        [np.asarray(reconstruct(vae, jnp.asarray(batch))) for batch in _batches(images)]
    )
    error = np.mean((np.clip(decoded, -1, 1) - images) ** 2, axis=(1, 2, 3))
    result: np.ndarray = 10 * np.log10(4 / error)
    return result


def _batches(images: np.ndarray, size: int = 20) -> list[np.ndarray]:
    return [images[i : i + size] for i in range(0, len(images), size)]


@nnx.jit
def _encode(vae: AutoencoderKL, images: jax.Array) -> jax.Array:
    return vae.encode(images).mode


@nnx.jit
def reconstruct(vae: AutoencoderKL, images: jax.Array) -> jax.Array:
    """Decoded from the latents' mean, not clipped."""
    return vae.decode(vae.encode(images).mode)
