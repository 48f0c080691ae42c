"""Stable Diffusion: tokenizer, text encoder, autoencoder, network and schedule as one model.

On disk it is the directory of a `StableDiffusionPipeline`: `model_index.json` and a folder for
each part.  Any such directory of the families 1.x and 2.x is read, and PyTorch reads what is
written.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._reprs import network
from sharpjax._types import Array
from sharpjax.checkpoints.component import save_pretrained
from sharpjax.checkpoints.configuration import check, check_channels
from sharpjax.checkpoints.directory import Directory
from sharpjax.checkpoints.hub import resolve
from sharpjax.checkpoints.pipeline import (
    LATENT,
    USUAL_GUIDANCE,
    Pipeline,
    learned_variance,
    read_guidance,
    read_index,
    write_pipeline,
)
from sharpjax.checkpoints.tokenizer import Tokenizer
from sharpjax.models.diffusion import read_schedule
from sharpjax.models.prompt_diffusion import PromptDiffusion
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.networks.clip_text import CLIPTextModel
from sharpjax.networks.unet_2d_condition import UNet2DConditionModel
from sharpjax.schedules import NoiseSchedule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LatentDiffusion(PromptDiffusion):
    """A `ConditionalModel` whose conditions are prompts; a pytree, so a `jit` argument.

    Its states are latents `(channels, height, width)`, scaled as the network sees them.  An
    encoded condition is the text encoder's `(tokens, width)`.

    Attributes:
        unet: predicts from latents, timestep and encoded prompt.
        vae: between images and latents.
        text_encoder: encodes prompts.
        schedule: of the noise.
        tokenizer: splits prompts.
        empty: the encoded empty prompt, condition of the unconditional score.
        default_guidance: the weight of classifier-free guidance that the model is meant for.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    schedule: NoiseSchedule
    empty: Array
    tokenizer: Tokenizer = dataclasses.field(metadata={"static": True})
    default_guidance: float = dataclasses.field(default=USUAL_GUIDANCE, metadata={"static": True})

    def __repr__(self) -> str:
        return (
            f"LatentDiffusion(shape={self.shape}, unet={network(self.unet)}, "
            f"vae={network(self.vae)}, text_encoder={network(self.text_encoder)}, "
            f"schedule={self.schedule})"
        )

    @classmethod
    def create(
        cls,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        schedule: NoiseSchedule,
        tokenizer: Tokenizer,
        default_guidance: float = USUAL_GUIDANCE,
    ) -> "LatentDiffusion":
        """Join the parts.

        A schedule that clips is taken without that, as by diffusers' pipeline: it is for pixels.

        Raises:
            ValueError: parts that do not fit each other.
        """
        check_fit(unet, vae, text_encoder, tokenizer)
        schedule = schedule.without_clipping()
        empty = _encode(text_encoder, tokenizer([""]), clip_skip=0)[0]
        return cls(unet, vae, text_encoder, schedule, empty, tokenizer, default_guidance)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | Directory,
        *,
        dtype: Any = jnp.float32,
        remat: bool = False,
        **files: Any,
    ) -> "LatentDiffusion":
        """Read the directory of a Stable Diffusion pipeline.

        A `steps_offset` other than 1 in the scheduler's configuration is taken for the outdated
        value that it is and read as 1, as by diffusers' pipeline.

        Args:
            name: a directory, or a hub id such as `"CompVis/stable-diffusion-v1-4"`.
            dtype: of the parameters and of the networks' arithmetic, `float32` or `bfloat16`;
                norms, softmax and scores stay in float32.
            remat: see `UNet2DConditionModel.remat`.
            files: `variant`, `revision`, `local_files_only` and `follow_links`, as of
                `sharpjax.checkpoints.from_pretrained`; a part without the variant is read from
                its plain files.

        Raises:
            FileNotFoundError: no such directory or hub id, or a part is missing.
            ValueError: a part is damaged, not supported, or does not fit the others.
        """
        directory = resolve(name, folders=tuple(LATENT.parts), **files)
        return cls.of_pipeline(read_index(directory, LATENT), dtype=dtype, remat=remat)

    @classmethod
    def of_pipeline(
        cls, pipeline: Pipeline, *, dtype: Any = jnp.float32, remat: bool = False
    ) -> "LatentDiffusion":
        """As `from_pretrained`, of a directory whose index was read."""
        checked_type(dtype)
        root = pipeline.directory
        schedule, scheduler = read_schedule(pipeline)
        schedule = dataclasses.replace(schedule, steps_offset=1)
        tokenizer, guidance = Tokenizer.from_pretrained(root, "tokenizer"), read_guidance(root)
        parts = {part: pipeline.read(part, dtype=dtype) for part in pipeline.networks}
        check_channels(parts["unet"].config, scheduler, root.path)
        parts["unet"].remat = remat
        try:
            return cls.create(
                **parts, schedule=schedule, tokenizer=tokenizer, default_guidance=guidance
            )
        except ValueError as error:
            raise ValueError(f"{root}: {error}") from error

    def save_pretrained(self, directory: str | Path, **options: Any) -> Path:
        """Write a directory that PyTorch's `StableDiffusionPipeline` and this class both load.

        The scheduler that it names is DDIM, with the noise levels of this model's, whatever solver
        was named where the model came from.

        Args:
            directory: made if missing; files of the same names are replaced.
            options: `dtype`, `variant` and `max_shard_size` of each part, as of
                `sharpjax.checkpoints.save_pretrained`.
        """
        root = Path(directory)
        for part in LATENT.networks:
            save_pretrained(getattr(self, part), root / part, **options)
        self.tokenizer.save_pretrained(root / "tokenizer")
        scheduler = self.schedule.to_config() | learned_variance(self.unet.config)
        write_pipeline(root, LATENT.parts, scheduler, guidance=self.default_guidance)
        return root

    def _encoded(self, prompts: list[str], clip_skip: int) -> Array:
        return _encode(self.text_encoder, self.tokenizer(prompts), clip_skip=clip_skip)


def checked_type(dtype: Any) -> None:
    """Refuse types that these networks do not compute in."""
    if np.dtype(dtype) not in (np.float32, jnp.bfloat16):
        raise ValueError(
            f"dtype must be float32 or bfloat16, got {np.dtype(dtype).name}: float16 does not "
            "hold what these networks compute (files in float16 are read into either)"
        )


_MAX_SIDE = 4096  # of a latent: Stable Diffusion's has 64 or 96


def check_fit(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: Tokenizer,
) -> None:
    """Refuse parts that do not fit each other, before anything is computed."""
    text, width = text_encoder.config, unet.config["cross_attention_dim"]
    latent = vae.config["latent_channels"]
    inputs, outputs = unet.config["in_channels"], unet.config["out_channels"]
    check(
        width == text["hidden_size"],
        f"text_encoder gives embeddings of width {text['hidden_size']} (hidden_size), unet takes "
        f"{width} (cross_attention_dim)",
    )
    check(
        inputs == latent and outputs in (latent, 2 * latent),  # and a learned variance
        f"unet maps {inputs} (in_channels) to {outputs} channels (out_channels), vae makes latents "
        f"of {latent} (latent_channels); networks with further inputs, as for inpainting, are not "
        "supported",
    )
    check_sides("unet", unet.config["sample_size"])
    check(
        unet.config["addition_embed_type"] is None,
        "unet wants further embeddings (addition_embed_type) beside the prompt, which is not "
        "supported",
    )
    check_tokenizer(tokenizer, text)


def check_sides(denoiser: str, sides: Any) -> None:
    """Refuse a latent's sides that are not given, or none that a model has."""
    check(sides is not None, f"{denoiser}: sample_size must be given")
    check(
        all(1 <= n <= _MAX_SIDE for n in np.atleast_1d(sides)),
        f"{denoiser}: sample_size must be from 1 to {_MAX_SIDE}, got {sides}",
    )


def check_tokenizer(tokenizer: Any, encoder: dict[str, Any], suffix: str = "") -> None:
    """Refuse a tokenizer with more tokens, or longer rows, than its encoder's configuration has.

    The network would give NaN for an id that it does not know.
    """
    who, whom = f"tokenizer{suffix}", f"text_encoder{suffix}"
    check(
        tokenizer.vocab_size <= encoder["vocab_size"],
        f"{who} has {tokenizer.vocab_size} tokens, {whom} knows {encoder['vocab_size']} "
        "(vocab_size)",
    )
    most = encoder.get("max_position_embeddings", tokenizer.length)  # T5 takes any length
    check(
        tokenizer.length <= most,
        f"{who} makes {tokenizer.length} tokens (model_max_length), {whom} takes {most} "
        "(max_position_embeddings)",
    )


@functools.partial(jax.jit, static_argnames="clip_skip")
def _encode(text_encoder: CLIPTextModel, ids: Any, *, clip_skip: int) -> Array:
    return text_encoder(ids, clip_skip=clip_skip).last_hidden_state.astype(jnp.float32)
