r"""Denoising of latents by their captions: the network and the text encoder together.

As `sharpjax.training.class_denoising`, on latents of an autoencoder that is not trained, with the
encoded caption in the place of the class.  Fresh draws are rendered and encoded in the step that
uses them: none is ever seen twice.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._reprs import one_line
from sharpjax.checkpoints.tokenizer import Tokenizer
from sharpjax.datasets import poses
from sharpjax.datasets.augmentation import Augmentation, render
from sharpjax.datasets.planted_drawings import PlantedDrawings
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.schedules import Schedule
from sharpjax.training.class_denoising import Denoising
from sharpjax.training.loop import digest
from sharpjax.training.planted_draws import PlantedDraws


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DrawingDenoising(Denoising):
    """Captions as `PlantedDraws` says; made by `create`.

    Attributes:
        draws: of captions.
        input_ids: `(n, tokens)` of each caption that is drawn.
        empty_ids: `(tokens,)` of the empty caption, in which `caption_dropout` turns some.
        pictures: `(drawings, size, size, 4)` uint8.
        radii: `(drawings,)` of them.
        grounds: `(n, 3)` that the captions name, or `poses.PALE`.
        fixed: `(m,)` drawing of each repeated image.
        fixed_poses: `(m,)` of each.
        vae: encodes the images.
        schedule: its levels and what the network predicts.
        caption_dropout: fraction of examples without a caption.
    """

    draws: PlantedDraws
    input_ids: jax.Array
    empty_ids: jax.Array
    pictures: jax.Array
    radii: jax.Array
    grounds: jax.Array
    fixed: jax.Array
    fixed_poses: Augmentation
    vae: AutoencoderKL
    schedule: Schedule
    caption_dropout: float = dataclasses.field(default=0.1, metadata={"static": True})

    __repr__ = one_line

    @classmethod
    def create(
        cls,
        planted: PlantedDrawings,
        tokenizer: Tokenizer,
        vae: AutoencoderKL,
        schedule: Schedule,
        *,
        caption_dropout: float = 0.1,
    ) -> "DrawingDenoising":
        """The task of the captions that are drawn at all."""
        draws = PlantedDraws.create(planted)
        captions = [planted.captions[i] for i in np.asarray(draws.captions)]
        return cls(
            draws=draws,
            input_ids=jnp.asarray(tokenizer([c.caption for c in captions])),
            empty_ids=jnp.asarray(tokenizer([""])[0]),
            pictures=jnp.asarray(planted.pictures),
            radii=jnp.asarray(planted.radii),
            grounds=jnp.array([poses.colour(c.ground) for c in captions]),
            fixed=jnp.asarray(planted.fixed),
            fixed_poses=planted.poses,
            vae=vae,
            schedule=schedule,
            caption_dropout=caption_dropout,
        )

    @property
    def groups(self) -> tuple[str, ...]:
        """Whose losses are reported apart."""
        return self.draws.groups

    def examples(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Rows of captions `(n,)` and images of them `(n, 3, h, w)`."""
        choice, turn = jax.random.split(key)
        row, drawing, repeats = self.draws.draw(choice, n)
        planted = self.draws.fixed[row]
        drawing = jnp.where(repeats, self.fixed[planted], drawing)
        keys = jax.random.split(turn, n)
        fresh = jax.vmap(poses.pose)(keys, self.radii[drawing], self.grounds[row])

        def chosen(fixed: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(repeats.reshape((n,) + (1,) * (new.ndim - 1)), fixed[planted], new)

        how = jax.tree.map(chosen, self.fixed_poses, fresh)
        return row, jax.vmap(render)(self.pictures[drawing], how)

    def batch(self, key: jax.Array, n: int) -> tuple[Any, jax.Array]:
        """Noised latents, timesteps, token ids and targets; the group of each."""
        keys = jax.random.split(key, 6)
        row, images = self.examples(keys[0], n)
        x0 = self.vae.config["scaling_factor"] * self.vae.encode(images).sample(keys[1])
        noise = jax.random.normal(keys[2], x0.shape)
        t = jax.random.permutation(keys[4], self.schedule.stratified_timesteps(keys[3], n))
        dropped = jax.random.bernoulli(keys[5], self.caption_dropout, (n,))
        input_ids = jnp.where(dropped[:, None], self.empty_ids, self.input_ids[row])
        x, target = self.noised(x0, noise, t)
        return (x, t, input_ids, target), self.draws.group[row]

    def identity(self) -> dict[str, Any]:
        """What tells this task from another."""
        ids = self.input_ids, self.empty_ids
        data = (*ids, self.pictures, self.grounds, self.fixed, self.fixed_poses, self.draws)
        return {
            "task": "denoising of drawings",
            "captions": len(self.input_ids),
            "data_sha256": digest(data),
            "vae_sha256": digest(self.vae),
            "schedule": self.schedule.to_config(),
            "caption_dropout": self.caption_dropout,
        }
