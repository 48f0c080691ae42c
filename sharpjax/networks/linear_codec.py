r"""A linear autoencoder: images to a few nearly white numbers and back, exactly invertible there.

With the mean $m$ and the first $k$ principal components $u_j$ of images, of standard deviations
$s_j$, the latents are $z_j = u_j \cdot (x - m)/c_j$ and the image of them $m + \sum_j c_j z_j u_j$,
with $c_j = g \sqrt{s_j}$: each component keeps the root of its standard deviation, and $g$ makes
the mean variance 1.  Wholly white latents would give the last component the weight of the first.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharpjax.networks.autoencoder_kl import DiagonalGaussian
from sharpjax.networks.network import Network

_PASSES = 4  # of the subspace iteration


class LinearCodec(Network):
    """Stands where an `AutoencoderKL` does, with latents of shape `(latent_channels, 1, 1)`.

    Args:
        in_channels: of the images.
        out_channels: the same.
        sample_size: pixels a side, a power of 2.
        latent_channels: numbers of an image.
        scaling_factor: 1.

    Raises:
        ValueError: sizes that make no such codec.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        sample_size: int = 64,
        latent_channels: int = 256,
        scaling_factor: float = 1.0,
        rngs: nnx.Rngs,
    ):
        if sample_size < 1 or sample_size & (sample_size - 1) or in_channels != out_channels:
            raise ValueError(
                "sample_size must be a power of 2 and out_channels as in_channels, got "
                f"{sample_size}, {out_channels} and {in_channels}"
            )
        if scaling_factor != 1.0:
            raise ValueError(f"scaling_factor must be 1, got {scaling_factor}")
        self._remember(locals())
        pixels = in_channels * sample_size**2
        self.encoder = nnx.Linear(pixels, latent_channels, rngs=rngs)
        self.decoder = nnx.Linear(latent_channels, pixels, rngs=rngs)

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along the side of a latent: all of them."""
        return self.config["sample_size"]

    @classmethod
    def fit(cls, images: np.ndarray, latent_channels: int, *, seed: int = 0) -> "LinearCodec":
        """The principal components of images `(n, channels, side, side)`.

        By subspace iteration with twice as many random directions and four passes (Halko,
        Martinsson & Tropp 2011, doi:10.1137/090771806).

        Raises:
            ValueError: fewer images than numbers, or images that are not square.
        """
        n, channels, side, width = images.shape
        if n <= latent_channels or side != width:
            raise ValueError(f"needs more than {latent_channels} square images, got {images.shape}")
        rows = images.reshape(n, -1).astype(np.float32)
        mean = rows.mean(axis=0)
        rows = rows - mean
        width = min(2 * latent_channels, n, rows.shape[1])
        basis = np.random.default_rng(seed).normal(size=(rows.shape[1], width)).astype(np.float32)
        for _ in range(_PASSES):
            basis = np.linalg.qr(rows.T @ (rows @ basis))[0]
        _, scale, turn = np.linalg.svd(rows @ basis, full_matrices=False)
        components = (turn @ basis.T)[:latent_channels]
        deviation = scale[:latent_channels] / np.sqrt(n)
        weight = np.sqrt(deviation / deviation.mean())  # so that the mean variance s^2/c^2 is 1
        unit = np.sqrt(np.mean((deviation / weight) ** 2)) * weight
        codec = cls(
            in_channels=channels,
            out_channels=channels,
            sample_size=side,
            latent_channels=latent_channels,
            rngs=nnx.Rngs(0),
        )
        encoder: Any = codec.encoder
        decoder: Any = codec.decoder
        encoder.kernel[...] = jnp.asarray(components.T / unit)
        encoder.bias[...] = jnp.asarray(-(components @ mean) / unit)
        decoder.kernel[...] = jnp.asarray(components * unit[:, None])
        decoder.bias[...] = jnp.asarray(mean)
        return codec

    def encode(self, images: jax.Array) -> DiagonalGaussian:
        """`(n, channels, side, side)` to latents `(n, latent_channels, 1, 1)`, without noise."""
        mean = self.encoder(images.reshape(len(images), -1))[..., None, None]
        return DiagonalGaussian(mean, jnp.full_like(mean, -30.0))

    def decode(self, latents: jax.Array) -> jax.Array:
        """`(n, latent_channels, 1, 1)` to `(n, channels, side, side)`."""
        channels, side = self.config["in_channels"], self.config["sample_size"]
        return self.decoder(latents[..., 0, 0]).reshape(-1, channels, side, side)
