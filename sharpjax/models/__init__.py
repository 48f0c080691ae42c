"""A network with its noise schedule and conditions, whose scores are functions of a point."""

from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.models.latent_diffusion_3 import LatentDiffusion3
from sharpjax.models.latent_diffusion_xl import LatentDiffusionXL
from sharpjax.models.load import load
from sharpjax.models.pixel_diffusion import PixelDiffusion

__all__ = ["LatentDiffusion", "LatentDiffusion3", "LatentDiffusionXL", "PixelDiffusion", "load"]
