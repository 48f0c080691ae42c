"""``sj.load``: a model ready for detection, from a bundled name, a directory or the hub."""

from pathlib import Path
from typing import Any

from sharpjax import zoo
from sharpjax.models.files import checked_file, read_json, resolve
from sharpjax.models.latent_diffusion import PARTS, LatentDiffusion
from sharpjax.models.pixel_diffusion import PixelDiffusion


def load(name: str | Path, **options: Any) -> PixelDiffusion | LatentDiffusion:
    """A conditional diffusion model.

    Args:
        name: a bundled model such as ``"mnist"``, a diffusers directory, or a Hugging Face hub id.
        options: of :meth:`LatentDiffusion.from_pretrained`, for a Stable Diffusion pipeline.

    Raises:
        FileNotFoundError: unknown name, directory or hub id, or a missing part.
        ValueError: a pipeline that is not supported, or a damaged part.
    """
    directory = find(name, **{k: v for k, v in options.items() if k in _OF_THE_HUB})
    path = checked_file(directory, directory / "model_index.json")
    unet = read_json(path).get("unet")
    if unet == ["diffusers", "UNet2DModel"]:
        if options:
            raise ValueError(f"{name} is a pixel model, which takes no {', '.join(options)}")
        return PixelDiffusion.from_pretrained(directory)
    if unet == ["diffusers", "UNet2DConditionModel"]:
        options = {k: v for k, v in options.items() if k not in ("revision", "local_files_only")}
        return LatentDiffusion.from_pretrained(directory, **options)
    raise ValueError(
        f"{path}: 'unet' must be ['diffusers', 'UNet2DModel'] or "
        f"['diffusers', 'UNet2DConditionModel'], got {unet}"
    )


_OF_THE_HUB = ("variant", "revision", "local_files_only")


def find(name: str | Path, **options: Any) -> Path:
    """The directory of a bundled model, of one on this machine, or of a hub id's snapshot."""
    if str(name) in zoo.bundled() or not ("/" in str(name) or Path(name).exists()):
        return zoo.find(name)  # or its message, which lists the bundled ones
    return resolve(name, folders=tuple(PARTS), **options)
