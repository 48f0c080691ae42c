"""What models of prompts have in common: encoding, pairs of scores, sampling of latents.

A model's conditions are encoded prompts, one array `(rows, width)` each.  What a network wants
beside the text, as Stable Diffusion XL and 3 do, is packed into the last row of it
(`sharpjax.networks.packed`), so that everything that works on one array works on these.
"""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sharpjax._types import Array, ArrayLike, Key
from sharpjax.models.diffusion import Diffusion
from sharpjax.networks.text_attention import TextAttention
from sharpjax.score import ScorePair


class PromptDiffusion(Diffusion, abc.ABC):
    """Base of the models whose conditions are prompts, which are dataclasses with these fields.

    Its states are latents `(channels, height, width)`, scaled as the network sees them.

    Scores, and what is computed from them, are float32 whatever the network's type: its input and
    output are cast, so that differences and tangents of two scores keep the digits that they have.

    Attributes:
        empty: the encoded empty prompt, condition of the unconditional score.
        tokenizer: splits prompts; the first of several.
        default_guidance: the weight of classifier-free guidance that the model is meant for.
    """

    empty: Array
    tokenizer: Any
    default_guidance: Any

    _samples_by_score = False

    @abc.abstractmethod
    def _encoded(self, prompts: list[str], clip_skip: int) -> Array:
        """Encoded prompts, `(len(prompts), rows, width)`."""

    def _sized(self, conditions: Array, height: int, width: int) -> Array:
        """Encoded prompts of images of so many pixels."""
        return conditions

    def check(self, prompts: Sequence[str]) -> None:
        """Raise or warn of what `encode` would, before hours of work."""
        self.tokenizer(list(prompts))

    def encode(self, prompts: Sequence[str], *, clip_skip: int = 0) -> Array:
        """Encoded prompts, `(len(prompts), tokens, width)`.

        Args:
            prompts: texts; what does not fit the tokenizer's length is cut, with a warning.
            clip_skip: last layers of the text encoder to leave out.

        Raises:
            ValueError: no prompts, or one that is not text.
        """
        if isinstance(prompts, str):
            raise ValueError(f"encode takes a list of prompts, got the string {prompts[:40]!r}")
        if not len(prompts):
            raise ValueError("prompts must be at least one, got none")
        return self._encoded(list(prompts), clip_skip)

    @property
    def has_conditions(self) -> bool:
        """True: prompts."""
        return True

    @property
    def has_unconditional(self) -> bool:
        """True: the condition of the unconditional score is the empty prompt."""
        return True

    @property
    def _null(self) -> Array:
        return self.empty

    def scores(self, condition: str | Array, t: ArrayLike) -> ScorePair:
        """The pair of scores of a prompt, given or encoded `(tokens, width)`, at timestep `t`.

        Raises:
            ValueError: an encoded prompt of the wrong shape, or `t` outside the training grid.
        """
        context = self.encode([condition])[0] if isinstance(condition, str) else condition
        if not isinstance(context, jax.Array | np.ndarray):
            raise ValueError(
                "scores takes one prompt, a string or encoded, got "
                f"{type(condition).__name__} {condition!r:.40}"
            )
        if context.ndim != 2 or context.shape[-1] != self.empty.shape[-1]:
            raise ValueError(
                f"scores takes one encoded prompt of shape (tokens, {self.empty.shape[-1]}), "
                f"got {context.shape}"
            )
        return self._pair(context, t)

    def sample(
        self,
        conditions: Sequence[str] | Array,
        key: Key | None = None,
        *,
        noise: Array | None = None,
        num_images: int = 1,
        num_steps: int = 50,
        guidance: float | Sequence[float] | np.ndarray | None = None,
        eta: float = 0.0,
        negative_prompt: str = "",
        attention: TextAttention | None = None,
        repulsion: float | Sequence[float] | np.ndarray = 0.0,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 4,
        decode: bool = True,
        mesh: Mesh | None = None,
    ) -> np.ndarray:
        """Images of prompts.

        Args:
            conditions: prompts, or encoded ones `(n, tokens, width)`.
            key: draws the noise.
            noise: initial noise `(n * num_images, channels, height, width)` in latents, instead:
                such as `jax.random.normal(key, (n, *model.shape))`.
            num_images: of each prompt, one after the other.
            num_steps: of the sampler.
            guidance: of classifier-free guidance; 1 samples the conditional distribution itself,
                with one evaluation a step instead of two. One number, one for each step, or
                `(n * num_images, num_steps)`, each image's own; `default_guidance` when left out.
            eta: 0 DDIM, 1 ancestral.
            negative_prompt: what guidance leads away from.
            attention: to the prompts, `n * num_images` rows, where it is not to be as it was
                trained; the unconditional score has its own but for tokens that are not seen.
            repulsion: weight, as `guidance`, of the step from the unconditional prediction to that
                with the usual attention, which is taken away: a third evaluation a step.
            height: of the images in pixels; the network's own when left out.
            width: likewise.
            batch_size: images at a time; changes the speed, and the result by rounding.
            decode: give images; otherwise latents.
            mesh: devices that share a batch, which is rounded up to a multiple of their number.

        Returns:
            `(n * num_images, 3, height, width)` from -1 to 1, not clipped, or latents `(n *
            num_images, *shape)`, as NumPy and float32.

        Raises:
            ValueError: no prompts, noise of the wrong shape, neither noise nor key, or settings
                outside their range.
        """
        if not isinstance(conditions, jax.Array | np.ndarray):
            conditions = self.encode(conditions)
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        contexts = jnp.repeat(jnp.asarray(conditions), num_images, axis=0)
        if contexts.shape[1:] != self.empty.shape:
            raise ValueError(
                f"encoded prompts must have shape (n, {self.empty.shape[0]}, "
                f"{self.empty.shape[1]}), got {np.shape(conditions)}"
            )
        if attention is not None and attention.scale.shape != contexts.shape[:2]:
            raise ValueError(
                f"attention must have {len(contexts)} rows of {contexts.shape[1]} tokens, got "
                f"{attention.scale.shape}"
            )
        shape = self.noise_shape(height, width)
        if noise is not None and np.ndim(noise) == 4 and np.shape(noise)[1] == shape[0]:
            shape = (shape[0], *np.shape(noise)[2:])
        pixels = [side * self.pixels_per_latent for side in shape[1:]]
        away = self.encode([negative_prompt])[0] if negative_prompt else self.empty
        return self._generate(
            self._sized(contexts, *pixels),
            len(contexts),
            key=key,
            noise=noise,
            shape=shape,
            num_steps=num_steps,
            guidance=self.default_guidance if guidance is None else guidance,
            eta=eta,
            batch_size=batch_size,
            away_from=self._sized(away[None], *pixels)[0],
            attention=attention,
            repulsion=repulsion,
            decode=decode,
            mesh=mesh,
        )

    # What sampling and the commands ask of a model
    takes_prompts: ClassVar[bool] = True
    rows_are_tokens: ClassVar[bool] = True  # of an encoded prompt, all of them
    meaning_of_levels: ClassVar[str] = "repetitions of the caption's image in training"
    default_batch: ClassVar[int] = 4
    conditions: ClassVar[tuple[str, ...]] = ()

    def noise_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        """Shape of the noise of an image of so many pixels; the network's own when left out.

        Raises:
            ValueError: not a multiple of `pixels_per_latent`.
        """
        channels, *own = self.shape
        sides = []
        for name, pixels, default in (("height", height, own[0]), ("width", width, own[1])):
            if pixels is not None and (pixels < 1 or pixels % self.pixels_per_latent):
                raise ValueError(
                    f"{name} must be a multiple of {self.pixels_per_latent} pixels, got {pixels}"
                )
            sides.append(default if pixels is None else pixels // self.pixels_per_latent)
        return (channels, *sides)
