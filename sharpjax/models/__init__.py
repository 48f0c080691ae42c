"""Flax NNX ports of the diffusers networks, and the models built from them."""

from sharpjax.models.autoencoder_kl import AutoencoderKL
from sharpjax.models.checkpoints import from_pretrained, save_pretrained
from sharpjax.models.clip_text import CLIPTextModel, CLIPTextModelWithProjection
from sharpjax.models.mlp import ScoreMLP
from sharpjax.models.tokenizer import Tokenizer
from sharpjax.models.unet_2d import UNet2DModel
from sharpjax.models.unet_2d_condition import UNet2DConditionModel

__all__ = [
    "AutoencoderKL",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "ScoreMLP",
    "Tokenizer",
    "UNet2DConditionModel",
    "UNet2DModel",
    "from_pretrained",
    "save_pretrained",
]
