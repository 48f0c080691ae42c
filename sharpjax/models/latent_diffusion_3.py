"""Stable Diffusion 3 and 3.5: a transformer, flow matching, and up to three text encoders.

Esser et al. 2024 (arXiv:2403.03206).  The text is the second-last layer of both CLIP encoders,
side by side and widened by zeros, and after it T5's, or zeros where there is no T5; beside it the
network is told the projected texts of both CLIP encoders.  Latents have 16 channels, shifted and
scaled.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from sharpjax._reprs import network
from sharpjax._types import Array
from sharpjax.checkpoints.component import save_pretrained
from sharpjax.checkpoints.configuration import check
from sharpjax.checkpoints.pipeline import THREE, Pipeline, read_guidance, write_pipeline
from sharpjax.checkpoints.t5_tokenizer import LENGTH, T5Tokenizer
from sharpjax.checkpoints.tokenizer import Tokenizer
from sharpjax.models.diffusion import read_flow_schedule
from sharpjax.models.latent_diffusion import check_sides, check_tokenizer, checked_type
from sharpjax.models.latent_diffusion_xl import check_tokenizers, encode_twice
from sharpjax.models.prompt_diffusion import PromptDiffusion
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.networks.clip_text import CLIPTextModelWithProjection
from sharpjax.networks.packed import Packed3, pack
from sharpjax.networks.sd3_transformer_2d import SD3Transformer2DModel
from sharpjax.networks.t5_encoder import T5EncoderModel
from sharpjax.schedules import NoiseSchedule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LatentDiffusion3(PromptDiffusion):
    """As `LatentDiffusion`, of a `StableDiffusion3Pipeline`.

    An encoded condition is `(tokens + 256 + 1, width)`: CLIP's text, T5's, and a row that begins
    with the pooled texts.

    Attributes:
        unet: the transformer: predicts from latents, time and packed conditions.
        vae: between images and latents.
        text_encoder: the first encoder of prompts.
        text_encoder_2: the second.
        text_encoder_3: T5, or None.
        schedule: of the noise.
        empty: the encoded empty prompt, condition of the unconditional score.
        tokenizer: of the first encoder.
        tokenizer_2: of the second.
        tokenizer_3: of T5, or None.
        default_guidance: the weight of classifier-free guidance that the model is meant for.
    """

    unet: Packed3
    vae: AutoencoderKL
    text_encoder: CLIPTextModelWithProjection
    text_encoder_2: CLIPTextModelWithProjection
    text_encoder_3: T5EncoderModel | None
    schedule: NoiseSchedule
    empty: Array
    tokenizer: Tokenizer = dataclasses.field(metadata={"static": True})
    tokenizer_2: Tokenizer = dataclasses.field(metadata={"static": True})
    tokenizer_3: T5Tokenizer | None = dataclasses.field(metadata={"static": True})
    default_guidance: float = dataclasses.field(default=THREE.guidance, metadata={"static": True})

    rows_are_tokens: ClassVar[bool] = False

    def __repr__(self) -> str:
        t5 = "" if self.text_encoder_3 is None else f"{network(self.text_encoder_3)}, "
        return (
            f"LatentDiffusion3(shape={self.shape}, transformer={network(self.unet.net)}, "
            f"vae={network(self.vae)}, text_encoder={network(self.text_encoder)}, "
            f"text_encoder_2={network(self.text_encoder_2)}, {t5}schedule={self.schedule})"
        )

    @classmethod
    def create(
        cls,
        *,
        transformer: SD3Transformer2DModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModelWithProjection,
        text_encoder_2: CLIPTextModelWithProjection,
        schedule: NoiseSchedule,
        tokenizer: Tokenizer,
        tokenizer_2: Tokenizer,
        text_encoder_3: T5EncoderModel | None = None,
        tokenizer_3: T5Tokenizer | None = None,
        default_guidance: float = THREE.guidance,
    ) -> "LatentDiffusion3":
        """Join the parts.

        Raises:
            ValueError: parts that do not fit each other.
        """
        check_fit_3(
            transformer, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, text_encoder_3,
            tokenizer_3,
        )  # fmt: skip
        config = transformer.config
        packed = Packed3(
            transformer,
            width=config["joint_attention_dim"],
            sizes=(config["pooled_projection_dim"],),
        )
        model = cls(
            packed, vae, text_encoder, text_encoder_2, text_encoder_3, schedule, jnp.zeros(0),
            tokenizer, tokenizer_2, tokenizer_3, default_guidance,
        )  # fmt: skip
        return dataclasses.replace(model, empty=model._encoded([""], 0)[0])

    @classmethod
    def of_pipeline(cls, pipeline: Pipeline, *, dtype: Any = jnp.float32) -> "LatentDiffusion3":
        """Of a directory whose index was read.

        Raises:
            FileNotFoundError: a part is missing.
            ValueError: a part is damaged, not supported, or does not fit the others.
        """
        checked_type(dtype)
        root = pipeline.directory
        schedule = read_flow_schedule(pipeline)
        tokenizers: dict[str, Any] = {
            name: Tokenizer.from_pretrained(root, name) for name in ("tokenizer", "tokenizer_2")
        }
        if "tokenizer_3" in pipeline.parts:
            tokenizers["tokenizer_3"] = T5Tokenizer.from_pretrained(root, "tokenizer_3")
        parts = {part: pipeline.read(part, dtype=dtype) for part in pipeline.networks}
        try:
            return cls.create(
                **parts, **tokenizers, schedule=schedule,
                default_guidance=read_guidance(root, usual=THREE.guidance),
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{root}: {error}") from error

    def save_pretrained(self, directory: str | Path, **options: Any) -> Path:
        """Write a directory that PyTorch's `StableDiffusion3Pipeline` and this class both load."""
        root = Path(directory)
        parts = [
            part
            for part in THREE.parts
            if not part.endswith("_3") or self.text_encoder_3 is not None
        ]
        for part in (part for part in parts if part in THREE.networks):
            module = self.unet.net if part == THREE.denoiser else getattr(self, part)
            save_pretrained(module, root / part, **options)
        for part in (part for part in parts if part.startswith("tokenizer")):
            getattr(self, part).save_pretrained(root / part)
        write_pipeline(root, parts, self.schedule.to_config(), guidance=self.default_guidance)
        return root

    @property
    def _shift(self) -> float:
        return self.vae.config["shift_factor"] or 0.0

    def check(self, prompts: Any) -> None:
        """Raise or warn of what `encode` would, before hours of work."""
        for tokenizer in (self.tokenizer, self.tokenizer_2, self.tokenizer_3):
            if tokenizer is not None:
                tokenizer(list(prompts))

    def _encoded(self, prompts: list[str], clip_skip: int) -> Array:
        ids = self.tokenizer(prompts), self.tokenizer_2(prompts)
        text, *vectors = encode_twice(
            self.text_encoder, self.text_encoder_2, *ids, clip_skip=clip_skip
        )
        pooled = [one for one in vectors if one is not None]  # both encoders project
        width = self.unet.width
        text = jnp.pad(text, ((0, 0), (0, 0), (0, width - text.shape[-1])))
        if self.text_encoder_3 is None or self.tokenizer_3 is None:
            more = jnp.zeros((len(prompts), LENGTH, width))
        else:
            more = _t5(self.text_encoder_3, self.tokenizer_3(prompts))
        return pack(jnp.concatenate([text, more], axis=1), pooled)


@jax.jit
def _t5(encoder: T5EncoderModel, ids: Any) -> Array:
    return encoder(ids).astype(jnp.float32)


def check_fit_3(
    transformer: SD3Transformer2DModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModelWithProjection,
    text_encoder_2: CLIPTextModelWithProjection,
    tokenizer: Tokenizer,
    tokenizer_2: Tokenizer,
    text_encoder_3: T5EncoderModel | None = None,
    tokenizer_3: T5Tokenizer | None = None,
) -> None:
    """Refuse parts that do not fit each other, before anything is computed."""
    config, one, two = transformer.config, text_encoder.config, text_encoder_2.config
    width, pooled = (one[key] + two[key] for key in ("hidden_size", "projection_dim"))
    check(
        width <= config["joint_attention_dim"],
        f"text_encoder and text_encoder_2 give embeddings of width {one['hidden_size']} + "
        f"{two['hidden_size']} (hidden_size), transformer takes {config['joint_attention_dim']} "
        "(joint_attention_dim)",
    )
    check(
        pooled == config["pooled_projection_dim"],
        f"text_encoder and text_encoder_2 give {one['projection_dim']} + {two['projection_dim']} "
        f"numbers (projection_dim), transformer takes {config['pooled_projection_dim']} "
        "(pooled_projection_dim)",
    )
    check_tokenizers(one, two, tokenizer, tokenizer_2)
    check(
        (text_encoder_3 is None) == (tokenizer_3 is None),
        "text_encoder_3 and tokenizer_3 go together: both or none",
    )
    if text_encoder_3 is not None:
        check_tokenizer(tokenizer_3, text_encoder_3.config, "_3")
        own = text_encoder_3.config["d_model"]
        check(
            own == config["joint_attention_dim"],
            f"text_encoder_3 gives embeddings of width {own} (d_model), transformer takes "
            f"{config['joint_attention_dim']} (joint_attention_dim)",
        )
    latent = vae.config["latent_channels"]
    check(
        config["in_channels"] == latent and config["out_channels"] in (None, latent),
        f"transformer maps {config['in_channels']} (in_channels) to {config['out_channels']} "
        f"channels (out_channels), vae makes latents of {latent} (latent_channels)",
    )
    check_sides("transformer", config["sample_size"])
