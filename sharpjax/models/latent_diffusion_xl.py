"""Stable Diffusion XL: two text encoders, a pooled text, and the size of the image.

Podell et al. 2023 (arXiv:2307.01952).  The text is the second-last layer of both encoders, side by
side; beside it the network is told the second encoder's projected text and six numbers: the
original size, where it was cropped, and the size of the image, height before width.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._reprs import network
from sharpjax._types import Array
from sharpjax.checkpoints.component import save_pretrained
from sharpjax.checkpoints.configuration import check, check_channels
from sharpjax.checkpoints.directory import INDEX_NAME, Directory
from sharpjax.checkpoints.pipeline import (
    XL,
    Pipeline,
    learned_variance,
    read_guidance,
    write_pipeline,
)
from sharpjax.checkpoints.tokenizer import Tokenizer
from sharpjax.models.diffusion import read_schedule
from sharpjax.models.latent_diffusion import check_sides, check_tokenizer, checked_type
from sharpjax.models.prompt_diffusion import PromptDiffusion
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.networks.clip_text import CLIPTextModel, CLIPTextModelWithProjection
from sharpjax.networks.packed import PackedXL, pack
from sharpjax.networks.unet_2d_condition import UNet2DConditionModel
from sharpjax.schedules import NoiseSchedule

ZEROS = "force_zeros_for_empty_prompt"  # in the index: the empty prompt is zeros, not a text
_NUMBERS = 6  # of the image's size


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LatentDiffusionXL(PromptDiffusion):
    """As `LatentDiffusion`, of a `StableDiffusionXLPipeline`.

    An encoded condition is `(tokens + 1, width)`: the text, and a row that begins with the pooled
    text and the numbers of the image's size.

    Attributes:
        unet: predicts from latents, timestep and packed conditions.
        vae: between images and latents.
        text_encoder: the first encoder of prompts.
        text_encoder_2: the second, which also gives the pooled text.
        schedule: of the noise.
        empty: condition of the unconditional score: zeros, or the encoded empty prompt.
        tokenizer: of the first encoder.
        tokenizer_2: of the second.
        zeros: whether the empty prompt is zeros.
        default_guidance: the weight of classifier-free guidance that the model is meant for.
    """

    unet: PackedXL
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    schedule: NoiseSchedule
    empty: Array
    tokenizer: Tokenizer = dataclasses.field(metadata={"static": True})
    tokenizer_2: Tokenizer = dataclasses.field(metadata={"static": True})
    zeros: bool = dataclasses.field(default=True, metadata={"static": True})
    default_guidance: float = dataclasses.field(default=XL.guidance, metadata={"static": True})

    rows_are_tokens: ClassVar[bool] = False

    def __repr__(self) -> str:
        return (
            f"LatentDiffusionXL(shape={self.shape}, unet={network(self.unet.net)}, "
            f"vae={network(self.vae)}, text_encoder={network(self.text_encoder)}, "
            f"text_encoder_2={network(self.text_encoder_2)}, schedule={self.schedule})"
        )

    @classmethod
    def create(
        cls,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        schedule: NoiseSchedule,
        tokenizer: Tokenizer,
        tokenizer_2: Tokenizer,
        zeros: bool = True,
        default_guidance: float = XL.guidance,
    ) -> "LatentDiffusionXL":
        """Join the parts.

        Raises:
            ValueError: parts that do not fit each other.
        """
        check_fit_xl(unet, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2)
        schedule = schedule.without_clipping()
        width = unet.config["cross_attention_dim"]
        sizes = (text_encoder_2.config["projection_dim"], _NUMBERS)
        packed = PackedXL(unet, width=width, sizes=sizes)
        tokenizers = tokenizer, tokenizer_2
        model = cls(
            packed, vae, text_encoder, text_encoder_2, schedule, jnp.zeros(0), *tokenizers,
            zeros, default_guidance,
        )  # fmt: skip
        empty = model._encoded([""], 0)
        if zeros:
            pixels = (side * model.pixels_per_latent for side in model.shape[1:])
            empty = model._sized(jnp.zeros_like(empty), *pixels)
        return dataclasses.replace(model, empty=empty[0])

    @classmethod
    def of_pipeline(
        cls, pipeline: Pipeline, *, dtype: Any = jnp.float32, remat: bool = False
    ) -> "LatentDiffusionXL":
        """Of a directory whose index was read.

        Raises:
            FileNotFoundError: a part is missing.
            ValueError: a part is damaged, not supported, or does not fit the others.
        """
        checked_type(dtype)
        root = pipeline.directory
        schedule, scheduler = read_schedule(pipeline)
        schedule = dataclasses.replace(schedule, steps_offset=1)
        zeros = read_zeros(root)
        tokenizers: dict[str, Any] = {
            name: Tokenizer.from_pretrained(root, name) for name in ("tokenizer", "tokenizer_2")
        }
        parts = {part: pipeline.read(part, dtype=dtype) for part in pipeline.networks}
        check_channels(parts["unet"].config, scheduler, root.path)
        parts["unet"].remat = remat
        try:
            return cls.create(
                **parts, **tokenizers, schedule=schedule, zeros=zeros,
                default_guidance=read_guidance(root, usual=XL.guidance),
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{root}: {error}") from error

    def save_pretrained(self, directory: str | Path, **options: Any) -> Path:
        """Write a directory that PyTorch's `StableDiffusionXLPipeline` and this class both load."""
        root = Path(directory)
        for part in XL.networks:
            module = getattr(self, part)
            save_pretrained(module.net if part == "unet" else module, root / part, **options)
        self.tokenizer.save_pretrained(root / "tokenizer")
        self.tokenizer_2.save_pretrained(root / "tokenizer_2")
        scheduler = self.schedule.to_config() | learned_variance(self.unet.config)
        extra = told_of_zeros(self.zeros)
        write_pipeline(root, XL.parts, scheduler, guidance=self.default_guidance, extra=extra)
        return root

    def check(self, prompts: Any) -> None:
        """Raise or warn of what `encode` would, before hours of work."""
        self.tokenizer(list(prompts))
        self.tokenizer_2(list(prompts))

    def _encoded(self, prompts: list[str], clip_skip: int) -> Array:
        ids = self.tokenizer(prompts), self.tokenizer_2(prompts)
        text, _, pooled = encode_twice(
            self.text_encoder, self.text_encoder_2, *ids, clip_skip=clip_skip
        )
        pixels = [side * self.pixels_per_latent for side in self.shape[1:]]
        packed = pack(text, [pooled, jnp.zeros((len(prompts), _NUMBERS))])
        return self._sized(packed, *pixels)

    def _sized(self, conditions: Array, height: int, width: int) -> Array:
        numbers = jnp.array([height, width, 0, 0, height, width], conditions.dtype)
        start = self.unet.sizes[0]
        return conditions.at[:, -1, start : start + _NUMBERS].set(numbers)


def told_of_zeros(zeros: bool) -> dict[str, bool]:
    """What the index of such a pipeline says beside its parts; images get no watermark here."""
    return {ZEROS: zeros, "add_watermarker": False}


def read_zeros(root: Directory) -> bool:
    """Whether the empty prompt is zeros, as a pipeline's index says."""
    zeros = root.json(INDEX_NAME).get(ZEROS, True)
    check(
        isinstance(zeros, bool),
        f"{root.path / INDEX_NAME}: {ZEROS} must be true or false, got {zeros!r:.80}",
    )
    return zeros


def check_fit_xl(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    text_encoder_2: CLIPTextModelWithProjection,
    tokenizer: Tokenizer,
    tokenizer_2: Tokenizer,
) -> None:
    """Refuse parts that do not fit each other, before anything is computed."""
    one, two, config = text_encoder.config, text_encoder_2.config, unet.config
    width = one["hidden_size"] + two["hidden_size"]
    check(
        width == config["cross_attention_dim"],
        f"text_encoder and text_encoder_2 give embeddings of width {one['hidden_size']} + "
        f"{two['hidden_size']} (hidden_size), unet takes {config['cross_attention_dim']} "
        "(cross_attention_dim)",
    )
    check(
        config["addition_embed_type"] == "text_time",
        "unet must be told of the pooled text and of sizes (addition_embed_type 'text_time'), got "
        f"{config['addition_embed_type']!r}",
    )
    told = two["projection_dim"] + _NUMBERS * config["addition_time_embed_dim"]
    check(
        told == config["projection_class_embeddings_input_dim"],
        f"text_encoder_2 gives {two['projection_dim']} numbers (projection_dim), with six sizes of "
        f"{config['addition_time_embed_dim']} (addition_time_embed_dim) {told}; unet takes "
        f"{config['projection_class_embeddings_input_dim']} "
        "(projection_class_embeddings_input_dim)",
    )
    latent = vae.config["latent_channels"]
    check(
        config["in_channels"] == latent and config["out_channels"] == latent,
        f"unet maps {config['in_channels']} (in_channels) to {config['out_channels']} channels "
        f"(out_channels), vae makes latents of {latent} (latent_channels)",
    )
    check_sides("unet", config["sample_size"])
    check_tokenizers(one, two, tokenizer, tokenizer_2)


def check_tokenizers(
    one: dict[str, Any], two: dict[str, Any], tokenizer: Tokenizer, tokenizer_2: Tokenizer
) -> None:
    """Refuse tokenizers that do not fit their encoders' configurations, or each other."""
    check_tokenizer(tokenizer, one)
    check_tokenizer(tokenizer_2, two, "_2")
    check(
        tokenizer.length == tokenizer_2.length,
        "tokenizer and tokenizer_2 must make as many tokens (model_max_length), got "
        f"{tokenizer.length} and {tokenizer_2.length}",
    )


@jax.jit
def _states(encoder: CLIPTextModel, ids: Any) -> Any:
    found = encoder(ids, output_hidden_states=True)
    return found.hidden_states, found.text_embeds


def encode_twice(
    first: CLIPTextModel,
    second: CLIPTextModelWithProjection,
    ids: np.ndarray,
    ids_2: np.ndarray,
    *,
    clip_skip: int,
) -> tuple[Array, Array | None, Array]:
    """The texts of both encoders side by side, and their projected ones, float32."""
    (states, own), (states_2, pooled) = _states(first, ids), _states(second, ids_2)
    fewest = min(len(states), len(states_2)) - 2
    if not 0 <= clip_skip <= fewest:
        raise ValueError(f"clip_skip must be an integer from 0 to {fewest}, got {clip_skip!r}")
    text = [one[-(clip_skip + 2)] for one in (states, states_2)]
    own = None if own is None else own.astype(jnp.float32)
    return jnp.concatenate(text, axis=-1).astype(jnp.float32), own, pooled.astype(jnp.float32)
