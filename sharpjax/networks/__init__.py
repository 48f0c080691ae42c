"""Flax NNX ports of diffusers' and transformers' networks, number for number."""

from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.networks.clip_text import CLIPTextModel, CLIPTextModelWithProjection
from sharpjax.networks.dit_transformer_2d import DiTTransformer2DModel
from sharpjax.networks.mlp import ScoreMLP
from sharpjax.networks.sd3_transformer_2d import SD3Transformer2DModel
from sharpjax.networks.t5_encoder import T5EncoderModel
from sharpjax.networks.text_attention import TextAttention
from sharpjax.networks.unet_2d import UNet2DModel
from sharpjax.networks.unet_2d_condition import UNet2DConditionModel

__all__ = [
    "AutoencoderKL",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "DiTTransformer2DModel",
    "SD3Transformer2DModel",
    "ScoreMLP",
    "T5EncoderModel",
    "TextAttention",
    "UNet2DConditionModel",
    "UNet2DModel",
]
