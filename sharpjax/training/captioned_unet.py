"""The two networks of a text-to-image model that are trained together."""

from typing import Any

import jax
from flax import nnx

from sharpjax.networks.clip_text import CLIPTextModel
from sharpjax.networks.unet_2d_condition import UNet2DConditionModel


class CaptionedUNet(nnx.Module):
    """A denoiser and its text encoder: `(x, t, token ids) -> prediction`."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel):
        self.unet = unet
        self.text_encoder = text_encoder

    def __call__(self, x: jax.Array, t: jax.Array, input_ids: jax.Array) -> jax.Array:
        """`(n, c, h, w)`, `(n,)` and `(n, tokens)` to `(n, c, h, w)`."""
        return self.unet(x, t, self.text_encoder(input_ids).last_hidden_state)

    @property
    def config(self) -> dict[str, Any]:
        """Of both."""
        return {"unet": self.unet.config, "text_encoder": self.text_encoder.config}
