"""Model directories of diffusers, read with every check and written back."""

from sharpjax.checkpoints.component import from_pretrained, save_pretrained
from sharpjax.checkpoints.sharding import placement
from sharpjax.checkpoints.tokenizer import Tokenizer

__all__ = ["Tokenizer", "from_pretrained", "placement", "save_pretrained"]
