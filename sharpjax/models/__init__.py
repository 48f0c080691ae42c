"""Flax NNX ports of the diffusers score networks, and the models built from them."""

from sharpjax.models.checkpoints import from_pretrained, save_pretrained
from sharpjax.models.mlp import ScoreMLP
from sharpjax.models.unet_2d import UNet2DModel
from sharpjax.models.unet_2d_condition import UNet2DConditionModel

__all__ = ["ScoreMLP", "UNet2DConditionModel", "UNet2DModel", "from_pretrained", "save_pretrained"]
