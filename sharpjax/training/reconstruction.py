r"""Learning to reconstruct: a variational autoencoder on fresh renderings.

The loss of an image is $\|\hat x - x\|_1 + \|\hat x - x\|_2^2 + \beta KL$, means over
pixels and over latents, with $\hat x$ decoded from a draw of the posterior (Kingma & Welling
2014, arXiv:1312.6114, without an adversary).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax._reprs import one_line
from sharpjax.datasets import poses
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.training.loop import digest


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Pictures are drawn equally often, each rendered afresh.

    Attributes:
        pictures: `(n, size, size, 4)` uint8.
        radii: `(n,)` of the drawings, which are posed by `poses`.
        kl_weight: of the KL divergence.
    """

    pictures: jax.Array
    radii: jax.Array
    kl_weight: float = dataclasses.field(default=1e-4, metadata={"static": True})

    __repr__ = one_line

    @property
    def groups(self) -> tuple[str, ...]:
        """All images are one group."""
        return ("images",)

    def batch(self, key: jax.Array, n: int) -> tuple[Any, jax.Array]:
        """Renderings and the noise of their latents."""
        choice, pose, noise = jax.random.split(key, 3)
        index = jax.random.randint(choice, (n,), 0, len(self.pictures))
        images = poses.anywhere(self.pictures[index], self.radii[index], pose)
        return (images, jax.random.split(noise, n)), jnp.zeros(n, jnp.int32)

    def losses(self, model: AutoencoderKL, batch: Any) -> jax.Array:
        """The loss of each image, `(n,)`."""
        images, keys = batch
        posterior = model.encode(images)
        noise = jax.vmap(lambda key: jax.random.normal(key, posterior.mean.shape[1:]))(keys)
        error = model.decode(posterior.mean + posterior.std * noise) - images
        kl = posterior.kl() / posterior.mean[0].size
        return jnp.mean(jnp.abs(error) + error**2, axis=(1, 2, 3)) + self.kl_weight * kl

    def identity(self) -> dict[str, Any]:
        """What tells this task from another."""
        return {
            "task": "reconstruction",
            "pictures": list(self.pictures.shape),
            "pictures_sha256": digest((self.pictures, self.radii)),
            "kl_weight": self.kl_weight,
        }
