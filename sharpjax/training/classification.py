"""Learning to tell concepts apart: a classifier on fresh renderings, some of them reconstructed.

The classifier is to judge a model's images, which have passed through its autoencoder.  So a part
of every batch does, too.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sharpjax.datasets.augmentation import Augmentation, render
from sharpjax.models.autoencoder_kl import AutoencoderKL
from sharpjax.models.concept_classifier import ConceptClassifier
from sharpjax.reprs import one_line
from sharpjax.training.loop import digest


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Classification:
    """Pictures are drawn equally often, each rendered afresh; its label is its index.

    Attributes:
        pictures: ``(n, size, size, 4)`` uint8.
        vae: what some renderings pass through.
        reconstructed: one in so many of them.
    """

    pictures: jax.Array
    vae: AutoencoderKL
    reconstructed: int = dataclasses.field(default=4, metadata={"static": True})

    __repr__ = one_line

    @property
    def groups(self) -> tuple[str, ...]:
        """Renderings as they are, and those that passed through the autoencoder."""
        return ("rendered", "reconstructed")

    def batch(self, key: jax.Array, n: int) -> tuple[Any, jax.Array]:
        """Images and labels; the group of each."""
        choice, pose = jax.random.split(key)
        label = jax.random.randint(choice, (n,), 0, len(self.pictures))
        how = jax.vmap(Augmentation.draw)(jax.random.split(pose, n))
        images = jax.vmap(render)(self.pictures[label], how)
        # every so-manieth, not the first ones: each device then has some
        some = images[:: self.reconstructed]
        some = jnp.clip(self.vae.decode(self.vae.encode(some).mode), -1, 1)
        images = images.at[:: self.reconstructed].set(some)
        group = jnp.where(jnp.arange(n) % self.reconstructed == 0, 1, 0)
        return (images, label), group

    def losses(self, model: ConceptClassifier, batch: Any) -> jax.Array:
        """Cross entropy of each example in nats, ``(n,)``."""
        images, label = batch
        result: jax.Array = optax.softmax_cross_entropy_with_integer_labels(model(images), label)
        return result

    def identity(self) -> dict[str, Any]:
        """What tells this task from another."""
        return {
            "task": "classification",
            "pictures": list(self.pictures.shape),
            "data_sha256": digest(self.pictures),
            "vae_sha256": digest(self.vae),
            "reconstructed": self.reconstructed,
        }
