"""Flax NNX ports of the diffusers score networks, and the models built from them."""

from sharpjax.models.checkpoints import from_pretrained, save_pretrained
from sharpjax.models.mlp import ScoreMLP
from sharpjax.models.unet_2d import UNet2DModel

__all__ = ["ScoreMLP", "UNet2DModel", "from_pretrained", "save_pretrained"]
