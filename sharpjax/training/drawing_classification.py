"""Learning to tell drawings apart, and all of them from nothing.

The classifier is to judge a model's images, which have passed through its autoencoder: so a part of
every batch does, too.  And a model that has learnt colours but no shapes must not be called right:
a part of every batch shows *nothing*.  These are blurs (Gaussian, of 4 to 10 pixels), pieces of a
drawing in another order (squares of 4 to 16 pixels), two drawings at half strength each, and smooth
noise in a drawing's colours.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sharpjax._reprs import one_line
from sharpjax._types import Array
from sharpjax.datasets import poses
from sharpjax.datasets.augmentation import IMAGE_SIZE
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.networks.concept_classifier import ConceptClassifier
from sharpjax.training.loop import digest


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DrawingClassification:
    """Drawings are shown equally often, each in a fresh pose; the label is a drawing's number.

    Attributes:
        pictures: `(n, size, size, 4)` uint8.
        radii: `(n,)` their radii.
        vae: what some images pass through.
        reconstructed: one in so many of them.
        nothing: one in so many shows nothing; its label is `n`.
    """

    pictures: jax.Array
    radii: jax.Array
    vae: AutoencoderKL
    reconstructed: int = dataclasses.field(default=3, metadata={"static": True})
    nothing: int = dataclasses.field(default=8, metadata={"static": True})

    __repr__ = one_line

    @property
    def groups(self) -> tuple[str, ...]:
        """Images as they are, those that passed through the autoencoder, and nothing."""
        return ("rendered", "reconstructed", "nothing")

    def batch(self, key: jax.Array, n: int) -> tuple[Any, jax.Array]:
        """Images and labels; the group of each."""
        choice, pose, none = jax.random.split(key, 3)
        label = jax.random.randint(choice, (n,), 0, len(self.pictures))
        images = poses.anywhere(self.pictures[label], self.radii[label], pose)
        # every so-manieth, not the first ones: each device then has some
        images = images.at[:: self.nothing].set(nothings(none, images[:: self.nothing]))
        label = label.at[:: self.nothing].set(len(self.pictures))
        some = images[1 :: self.reconstructed]
        some = jnp.clip(self.vae.decode(self.vae.encode(some).mean), -1, 1)
        images = images.at[1 :: self.reconstructed].set(some)
        place = jnp.arange(n)
        group = jnp.where(place % self.reconstructed == 1, 1, 0)
        return (images, label), jnp.where(place % self.nothing == 0, 2, group)

    def losses(self, model: ConceptClassifier, batch: Any) -> jax.Array:
        """Cross entropy of each example in nats, `(n,)`."""
        images, label = batch
        return optax.softmax_cross_entropy_with_integer_labels(model(images), label)

    def identity(self) -> dict[str, Any]:
        """What tells this task from another."""
        return {
            "task": "classification of drawings",
            "pictures": list(self.pictures.shape),
            "data_sha256": digest((self.pictures, self.radii)),
            "vae_sha256": digest(self.vae),
            "reconstructed": self.reconstructed,
            "nothing": self.nothing,
        }


def nothings(key: Array, images: Array) -> Array:
    """What no longer shows what images `(n, 3, side, side)` do: one of four ways for each."""
    keys = jax.random.split(key, len(images))
    return jax.vmap(_nothing)(keys, images, jnp.roll(images, 1, axis=0))


def _nothing(key: Array, image: Array, other: Array) -> Array:
    which, *keys = jax.random.split(key, 5)
    width = jax.random.uniform(keys[0], minval=4.0, maxval=10.0)
    noise = _blurred(jax.random.normal(keys[1], image.shape), width / 2)
    spread = image.std(axis=(1, 2), keepdims=True) / noise.std(axis=(1, 2), keepdims=True)
    ways = (
        _blurred(image, width),
        _shuffled(keys[2], image),
        0.5 * (image + other),
        image.mean(axis=(1, 2), keepdims=True) + spread * noise,
    )
    return jnp.clip(jnp.stack(ways)[jax.random.randint(which, (), 0, len(ways))], -1, 1)


def _blurred(image: Array, width: Array) -> Array:
    """A Gaussian of a standard deviation of `width` pixels, the border repeated."""
    place = jnp.arange(IMAGE_SIZE)
    weights = jnp.exp(-0.5 * ((place[:, None] - place) / width) ** 2)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return jnp.einsum("ij,cjk,lk->cil", weights, image, weights)


def _shuffled(key: Array, image: Array) -> Array:
    """Squares of 4, 8 or 16 pixels in another order."""

    def pieces(key: Array, side: int) -> Array:
        count = IMAGE_SIZE // side
        cut = image.reshape(3, count, side, count, side).transpose(1, 3, 0, 2, 4)
        order = jax.random.permutation(key, count * count)
        mixed = cut.reshape(count * count, 3, side, side)[order].reshape(cut.shape)
        return mixed.transpose(2, 0, 3, 1, 4).reshape(image.shape)

    choice, *keys = jax.random.split(key, 4)
    ways = jnp.stack([pieces(k, side) for k, side in zip(keys, (4, 8, 16), strict=True)])
    return ways[jax.random.randint(choice, (), 0, 3)]
