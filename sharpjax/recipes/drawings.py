"""How the drawings' text-to-image model is made: tokenizer, networks, schedule and settings."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sharpjax._types import Key
from sharpjax.checkpoints.component import from_pretrained
from sharpjax.checkpoints.tokenizer import Tokenizer
from sharpjax.datasets.planted_drawings import (
    CAPTIONS_NAME,
    PlantedDrawings,
    planted_drawings,
    to_csv,
)
from sharpjax.mitigation.drawing_judge import JUDGE_NAME, Control, write_control
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.networks.clip_text import CLIPTextModel
from sharpjax.networks.unet_2d_condition import UNet2DConditionModel
from sharpjax.rundir.files import write_text
from sharpjax.schedules import Schedule
from sharpjax.training import CaptionedUNet, Settings, averaged, train, train_tokenizer
from sharpjax.training.drawing_denoising import DrawingDenoising
from sharpjax.training.loop import digest

SETTINGS = Settings(steps=7000, batch_size=32, learning_rate=1e-3, decay=0.5, warmup=200, ema=0.999)
# Of classifier-free guidance: chosen by benchmarks/drawings_guidance.py on general captions, which
# show the right thing most often at this weight.
GUIDANCE = 5.0
KEEP_EVERY = 2000  # steps; these checkpoints show how memorization sets in
# Stable Diffusion's betas. The network predicts v: its error in the score is multiplied by
# alpha/sigma, where that of a noise prediction is multiplied by 1/sigma.
SCHEDULE = Schedule.create(
    "scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"
)
MAX_TOKENS = 16  # the longest caption has 8, start and end included
_TEXT_WIDTH = 128


def drawings_tokenizer(planted: PlantedDrawings) -> Tokenizer:
    """Every word of the captions, those never drawn too, is a token."""
    return train_tokenizer([c.caption for c in planted.captions], length=MAX_TOKENS)


def drawings_networks(
    tokenizer: Tokenizer, *, seed: int = 0, max_tokens: int = MAX_TOKENS
) -> CaptionedUNet:
    """The denoiser of 16 x 16 x 4 latents and its text encoder, not trained."""
    end = tokenizer.backend.eos_token_id
    return _networks(jax.random.key(seed), tokenizer.vocab_size, end, max_tokens)


@nnx.jit(static_argnums=(1, 2, 3))
def _networks(key: Key, vocab_size: int, end: int, max_tokens: int) -> CaptionedUNet:
    """The same; no seed is another program."""
    rngs = nnx.Rngs(key)
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
        max_position_embeddings=max_tokens,
        eos_token_id=end,
        rngs=rngs,
    )
    return CaptionedUNet(unet, text_encoder)


def train_drawings(
    directory: str | Path,
    vae: AutoencoderKL,
    settings: Settings = SETTINGS,
    *,
    keep_every: int | None = KEEP_EVERY,
    start: str | Path | None = None,
    **options: Any,
) -> LatentDiffusion:
    """Train the network and the text encoder, or go on where `directory` stopped.

    Args:
        directory: of the run.
        vae: the autoencoder.
        settings: of the training.
        keep_every: steps between models that are kept.
        start: a model's directory to begin from, with fresh averages and moments; with the seed
            that made it the same examples would be drawn again.
        options: of `sharpjax.training.train`.

    Raises:
        ValueError: the networks there are others.
    """
    planted = planted_drawings()
    tokenizer = drawings_tokenizer(planted)
    task = DrawingDenoising.create(planted, tokenizer, vae, SCHEDULE)
    networks = drawings_networks(tokenizer, seed=settings.seed)
    if start is not None:
        networks = _started(networks, Path(start))
        options["origin"] = digest(nnx.state(networks, nnx.Param))
    trained = train(networks, task, directory, settings, keep_every=keep_every, **options)
    return joined(trained, vae, tokenizer)


def _started(networks: CaptionedUNet, folder: Path) -> CaptionedUNet:
    """The same networks with a model's weights."""
    parts = {}
    for name in ("unet", "text_encoder"):
        parts[name] = from_pretrained(folder / name)
        if (ours := getattr(networks, name).config) != parts[name].config:
            changed = [key for key in ours if ours[key] != parts[name].config.get(key)]
            raise ValueError(f"{folder / name} is another network: {', '.join(changed)} differ")
    return CaptionedUNet(parts["unet"], parts["text_encoder"])


def drawings_at(directory: str | Path, vae: AutoencoderKL, step: int) -> LatentDiffusion:
    """The model as it was at a step whose checkpoint was kept."""
    tokenizer = drawings_tokenizer(planted_drawings())
    shapes = nnx.eval_shape(lambda: drawings_networks(tokenizer))
    return joined(averaged(shapes, directory, step), vae, tokenizer)


def save_drawings(model: LatentDiffusion, directory: str | Path, judge: Control) -> Path:
    """A Stable Diffusion directory in half precision, captions and judge beside the parts."""
    folder = model.save_pretrained(directory, dtype=jnp.float16)
    write_control(judge, folder / JUDGE_NAME)
    write_text(folder / CAPTIONS_NAME, to_csv(planted_drawings().captions))
    return folder


def joined(networks: CaptionedUNet, vae: AutoencoderKL, tokenizer: Tokenizer) -> LatentDiffusion:
    """All parts as one model."""
    return LatentDiffusion.create(
        unet=networks.unet,
        vae=vae,
        text_encoder=networks.text_encoder,
        schedule=SCHEDULE,
        tokenizer=tokenizer,
        default_guidance=GUIDANCE,
    )
