r"""Denoising of latents by their captions: the network and the text encoder together.

As :mod:`sharpjax.training.class_denoising`, on latents of an autoencoder that is not trained, with
the encoded caption in the place of the class.  Images are rendered and encoded in the step that
uses them: a fresh rendering is never seen twice.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharpjax.datasets.augmentation import Augmentation, render
from sharpjax.datasets.openmoji import PlantedPictograms
from sharpjax.models.autoencoder_kl import AutoencoderKL
from sharpjax.models.clip_text import CLIPTextModel
from sharpjax.models.tokenizer import Tokenizer
from sharpjax.models.unet_2d_condition import UNet2DConditionModel
from sharpjax.reprs import one_line
from sharpjax.schedules import Schedule
from sharpjax.training.loop import digest


class CaptionedUNet(nnx.Module):
    """The two modules that are trained together: ``(x, t, token ids) -> prediction``."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel):
        self.unet = unet
        self.text_encoder = text_encoder

    def __call__(self, x: jax.Array, t: jax.Array, input_ids: jax.Array) -> jax.Array:
        """``(n, c, h, w)``, ``(n,)`` and ``(n, tokens)`` to ``(n, c, h, w)``."""
        return self.unet(x, t, self.text_encoder(input_ids).last_hidden_state)

    @property
    def config(self) -> dict[str, Any]:
        """Of both."""
        return {"unet": self.unet.config, "text_encoder": self.text_encoder.config}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CaptionDenoising:
    """Captions are drawn by their frequencies; made by :meth:`create`.

    Attributes:
        input_ids: ``(n, tokens)`` of each caption that is drawn.
        empty_ids: ``(tokens,)`` of the empty caption, in which ``caption_dropout`` turns some.
        pictures: ``(n, size, size, 4)`` uint8.
        fixed: renderings ``(n,)`` of the captions with one image.
        repeats: ``(n,)`` whether a caption has one image.
        below: ``(n,)`` probability of an earlier caption, ascending from 0.
        group: ``(n,)`` index into ``groups``.
        vae: encodes the images.
        schedule: its levels and what the network predicts.
        groups: whose losses are reported apart.
        caption_dropout: fraction of examples without a caption.
    """

    input_ids: jax.Array
    empty_ids: jax.Array
    pictures: jax.Array
    fixed: Augmentation
    repeats: jax.Array
    below: jax.Array
    group: jax.Array
    vae: AutoencoderKL
    schedule: Schedule
    groups: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    caption_dropout: float = dataclasses.field(default=0.1, metadata={"static": True})

    __repr__ = one_line

    @classmethod
    def create(
        cls,
        pictograms: PlantedPictograms,
        tokenizer: Tokenizer,
        vae: AutoencoderKL,
        schedule: Schedule,
        *,
        caption_dropout: float = 0.1,
    ) -> "CaptionDenoising":
        """The task of the concepts that are drawn at all."""
        drawn = np.flatnonzero([c.frequency > 0 for c in pictograms.concepts])
        concepts = [pictograms.concepts[i] for i in drawn]
        frequency = np.array([c.frequency for c in concepts], float)
        names = [f"memorized x{c.level}" if c.group == "memorized" else c.group for c in concepts]
        groups = tuple(dict.fromkeys(names))
        share = np.cumsum(frequency) / frequency.sum()
        return cls(
            input_ids=jnp.asarray(tokenizer([c.caption for c in concepts])),
            empty_ids=jnp.asarray(tokenizer([""])[0]),
            pictures=jnp.asarray(pictograms.pictures[drawn]),
            fixed=jax.tree.map(lambda field: field[drawn], pictograms.fixed),
            repeats=jnp.array([c.group == "memorized" for c in concepts]),
            below=jnp.asarray(np.concatenate([[0], share[:-1]]), jnp.float32),
            group=jnp.array([groups.index(name) for name in names]),
            vae=vae,
            schedule=schedule,
            groups=groups,
            caption_dropout=caption_dropout,
        )

    def examples(self, key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
        """Captions' indices ``(n,)`` and images of them ``(n, 3, h, w)``."""
        keys = jax.random.split(key)
        # one draw from each n-th of the captions' probability, so that a batch is a fair sample
        quantile = (jnp.arange(n) + jax.random.uniform(keys[0], (n,))) / n
        concept = jnp.searchsorted(self.below, quantile, side="right") - 1
        fresh = jax.vmap(Augmentation.draw)(jax.random.split(keys[1], n))

        def chosen(fixed: jax.Array, new: jax.Array) -> jax.Array:
            repeats = self.repeats[concept].reshape((n,) + (1,) * (new.ndim - 1))
            return jnp.where(repeats, fixed[concept], new)

        how = jax.tree.map(chosen, self.fixed, fresh)
        return concept, jax.vmap(render)(self.pictures[concept], how)

    def batch(self, key: jax.Array, n: int) -> tuple[Any, jax.Array]:
        """Noised latents, timesteps, token ids and targets; the group of each."""
        keys = jax.random.split(key, 6)
        concept, images = self.examples(keys[0], n)
        x0 = self.vae.config["scaling_factor"] * self.vae.encode(images).sample(keys[1])
        noise = jax.random.normal(keys[2], x0.shape)
        t = jax.random.permutation(keys[4], self.schedule.stratified_timesteps(keys[3], n))
        dropped = jax.random.bernoulli(keys[5], self.caption_dropout, (n,))
        input_ids = jnp.where(dropped[:, None], self.empty_ids, self.input_ids[concept])
        x = jax.vmap(self.schedule.add_noise)(x0, noise, t)
        target = jax.vmap(self.schedule.target)(x0, noise, t)
        return (x, t, input_ids, target), self.group[concept]

    def losses(self, model: CaptionedUNet, batch: Any) -> jax.Array:
        """Mean square error of each example, ``(n,)``."""
        x, t, input_ids, target = batch
        return jnp.mean((model(x, t, input_ids) - target) ** 2, axis=(1, 2, 3))

    def identity(self) -> dict[str, Any]:
        """What tells this task from another."""
        data = (
            self.input_ids, self.empty_ids, self.pictures, self.fixed, self.repeats, self.below
        )  # fmt: skip
        return {
            "task": "caption denoising",
            "captions": len(self.input_ids),
            "data_sha256": digest(data),
            "vae_sha256": digest(self.vae),
            "schedule": self.schedule.to_config(),
            "caption_dropout": self.caption_dropout,
        }
