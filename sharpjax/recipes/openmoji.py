"""How the pictograms' text-to-image model is made: tokenizer, networks, schedule and settings."""

from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from sharpjax.datasets.openmoji import (
    CAPTIONS_NAME,
    SPLIT_PATH,
    PlantedPictograms,
    planted_pictograms,
)
from sharpjax.models.autoencoder_kl import AutoencoderKL
from sharpjax.models.clip_text import CLIPTextModel
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.models.tokenizer import Tokenizer
from sharpjax.models.unet_2d_condition import UNet2DConditionModel
from sharpjax.rundir import write_bytes
from sharpjax.schedules import Schedule
from sharpjax.training import (
    CaptionDenoising,
    CaptionedUNet,
    Settings,
    averaged,
    train,
    train_tokenizer,
)

SETTINGS = Settings(
    steps=12000, batch_size=32, learning_rate=1e-3, decay=0.5, warmup=200, ema=0.999
)
KEEP_EVERY = 2000  # steps; these checkpoints show how memorization sets in
# Stable Diffusion's
SCHEDULE = Schedule.create("scaled_linear", beta_start=0.00085, beta_end=0.012)
MAX_TOKENS = 24  # the longest caption has 13, start and end included
_TEXT_WIDTH = 128


def openmoji_tokenizer(pictograms: PlantedPictograms) -> Tokenizer:
    """Every word of the captions, those never drawn too, is a token."""
    return train_tokenizer(pictograms.captions, length=MAX_TOKENS)


def openmoji_networks(tokenizer: Tokenizer, *, seed: int = 0) -> CaptionedUNet:
    """The denoiser of 16 x 16 x 4 latents and its text encoder, not trained."""

    @nnx.jit(static_argnums=(0, 1, 2))
    def create(seed: int, vocab_size: int, end: int) -> CaptionedUNet:
        rngs = nnx.Rngs(seed)
        unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            block_out_channels=(64, 96, 128),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=_TEXT_WIDTH,
            attention_head_dim=4,  # the number of heads, by diffusers' misnomer
            norm_num_groups=16,
            rngs=rngs,
        )
        text_encoder = CLIPTextModel(
            vocab_size=vocab_size,
            hidden_size=_TEXT_WIDTH,
            intermediate_size=4 * _TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            eos_token_id=end,
            rngs=rngs,
        )
        return CaptionedUNet(unet, text_encoder)

    return create(seed, tokenizer.vocab_size, tokenizer.backend.eos_token_id)


def train_openmoji(
    directory: str | Path,
    vae: AutoencoderKL,
    settings: Settings = SETTINGS,
    *,
    checkpoint_every: int = 100,
    keep_every: int | None = KEEP_EVERY,
) -> LatentDiffusion:
    """Train the network and the text encoder, or go on where ``directory`` stopped."""
    pictograms = planted_pictograms()
    tokenizer = openmoji_tokenizer(pictograms)
    task = CaptionDenoising.create(pictograms, tokenizer, vae, SCHEDULE)
    networks = openmoji_networks(tokenizer, seed=settings.seed)
    trained = train(
        networks, task, directory, settings,
        checkpoint_every=checkpoint_every, keep_every=keep_every,
    )  # fmt: skip
    return joined(trained, vae, tokenizer)


def openmoji_at(directory: str | Path, vae: AutoencoderKL, step: int) -> LatentDiffusion:
    """The model as it was at a step whose checkpoint was kept."""
    tokenizer = openmoji_tokenizer(planted_pictograms())
    return joined(averaged(openmoji_networks(tokenizer), directory, step), vae, tokenizer)


def save_openmoji(model: LatentDiffusion, directory: str | Path) -> Path:
    """A Stable Diffusion directory in half precision, the captions beside the parts."""
    folder = model.save_pretrained(directory, dtype=jnp.float16)
    write_bytes(folder / CAPTIONS_NAME, SPLIT_PATH.read_bytes())
    return folder


def joined(networks: CaptionedUNet, vae: AutoencoderKL, tokenizer: Tokenizer) -> LatentDiffusion:
    """All parts as one model."""
    return LatentDiffusion.create(
        unet=networks.unet,
        vae=vae,
        text_encoder=networks.text_encoder,
        schedule=SCHEDULE,
        tokenizer=tokenizer,
    )
