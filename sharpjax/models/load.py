"""``sj.load``: a model ready for detection, from a bundled name or a directory."""

from pathlib import Path

from sharpjax import zoo
from sharpjax.models.checkpoints import read_json
from sharpjax.models.pixel_diffusion import PixelDiffusion


def load(name_or_directory: str | Path) -> PixelDiffusion:
    """A conditional diffusion model.

    Args:
        name_or_directory: a bundled model such as ``"mnist"``, or a diffusers directory.

    Raises:
        FileNotFoundError: unknown name or directory, or a missing part.
        ValueError: a pipeline that is not supported, or a damaged part.
    """
    directory = zoo.find(name_or_directory)
    index = read_json(directory / "model_index.json")
    if index.get("unet") != ["diffusers", "UNet2DModel"]:
        raise ValueError(
            f"{directory / 'model_index.json'}: 'unet' must be ['diffusers', 'UNet2DModel'], "
            f"got {index.get('unet')}"
        )
    return PixelDiffusion.from_pretrained(directory)
