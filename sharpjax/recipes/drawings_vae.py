"""How the drawings' autoencoder is made: data, architecture, start and settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharpjax.datasets.planted_drawings import PlantedDrawings, planted_drawings
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.training import Reconstruction, Settings, train

VAE_SETTINGS = Settings(
    steps=6000, batch_size=16, learning_rate=2e-3, decay=0.6, warmup=100, ema=0.999
)


def small_vae(*, seed: int = 0, scaling_factor: float = 1.0) -> AutoencoderKL:
    """64 x 64 x 3 to 16 x 16 x 4 and back; no attention, few channels.

    It starts close to the identity. With the usual start, the flat colours that drawings consist
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


def unseen(planted: PlantedDrawings) -> np.ndarray:
    """The drawings that the autoencoder is not trained on: those of the held-out captions."""
    return np.unique(planted.pools[planted.of("held-out"), 0])


def train_drawings_vae(
    directory: str | Path, settings: Settings = VAE_SETTINGS, **options: Any
) -> tuple[AutoencoderKL, PlantedDrawings]:
    """Train the autoencoder on every drawing but the held-out ones, or go on with it."""
    planted = planted_drawings()
    seen = np.setdiff1d(np.arange(len(planted.radii)), unseen(planted))
    task = Reconstruction(jnp.asarray(planted.pictures[seen]), jnp.asarray(planted.radii[seen]))
    vae = small_vae(seed=settings.seed)
    return train(vae, task, directory, settings, **options), planted


def examples(planted: PlantedDrawings) -> np.ndarray:
    """A fresh image of every caption that is drawn."""
    drawn = np.flatnonzero([caption.draws > 0 for caption in planted.captions])
    return planted.fresh_images(jax.random.key(1), drawn)


def scaled(vae: AutoencoderKL, images: np.ndarray) -> AutoencoderKL:
    """The same, with the scaling factor that gives latents of these images unit variance."""
    factor = round(float(1 / _in_batches(_encode, vae, images).std()), 4)
    other = small_vae(scaling_factor=factor)
    nnx.update(other, nnx.state(vae))
    return other


def quality(vae: AutoencoderKL, planted: PlantedDrawings) -> dict[str, np.ndarray]:
    """`psnr` of fresh renderings: 300 of drawings that it was trained on, all of the others."""
    new = unseen(planted)
    seen = np.setdiff1d(np.arange(len(planted.radii)), new)
    shown = {"seen": np.random.default_rng(0).choice(seen, 300, replace=False), "new": np.sort(new)}
    return {
        name: psnr(vae, planted.render_anywhere(jax.random.key(2), drawings))
        for name, drawings in shown.items()
    }


def psnr(vae: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image's reconstruction from its latents' mean, dB.

    `10 log10(2^2 / mean square error)` for pixels in [-1, 1], which decoding is clipped to.
    """
    decoded = np.clip(_in_batches(reconstruct, vae, images), -1, 1)
    error = np.mean((decoded - images) ** 2, axis=(1, 2, 3))
    return 10 * np.log10(4 / error)


def through(vae: AutoencoderKL) -> Callable[[np.ndarray], np.ndarray]:
    """Images `(n, 3, h, w)` as they come out of the autoencoder, clipped to [-1, 1]."""
    return lambda images: np.clip(_in_batches(reconstruct, vae, images), -1, 1)


def _in_batches(function: Any, vae: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    batches = (jnp.asarray(images[i : i + 20]) for i in range(0, len(images), 20))
    return np.concatenate([np.asarray(function(vae, batch)) for batch in batches])


@nnx.jit
def _encode(vae: AutoencoderKL, images: jax.Array) -> jax.Array:
    return vae.encode(images).mean


@nnx.jit
def reconstruct(vae: AutoencoderKL, images: jax.Array) -> jax.Array:
    """Decoded from the latents' mean, not clipped."""
    return vae.decode(vae.encode(images).mean)
