"""``sj.load``: a model ready for detection, from a bundled name, a directory or the hub."""

from pathlib import Path
from typing import Any

from sharpjax import zoo
from sharpjax.models.files import (
    INDEX_NAME,
    ModelDirectory,
    checked_file,
    no_pipeline,
    read_json,
    resolve,
    unread,
)
from sharpjax.models.latent_diffusion import PARTS, LatentDiffusion
from sharpjax.models.pixel_diffusion import VQVAE, PixelDiffusion


def load(name: str | Path, **options: Any) -> PixelDiffusion | LatentDiffusion:
    """A conditional diffusion model.

    Args:
        name: a bundled model such as ``"mnist"``, a diffusers directory, or a Hugging Face hub id.
        options: ``variant``, ``revision``, ``local_files_only`` and ``follow_links``, which choose
            files, and the others of :meth:`LatentDiffusion.from_pretrained`, for a Stable Diffusion
            pipeline.

    Raises:
        FileNotFoundError: unknown name, directory or hub id, or a missing part.
        ValueError: a pipeline that is not supported, or a damaged part.
    """
    directory = find(name, **{k: options.pop(k) for k in _OF_FILES if k in options})
    path = checked_file(directory, directory / INDEX_NAME)
    if not path.exists():
        raise FileNotFoundError(f"no {INDEX_NAME} in {directory}: {no_pipeline(directory)}")
    index = read_json(path)
    unet = index.get("unet")
    if unet == ["diffusers", "UNet2DModel"]:
        if options:
            raise ValueError(f"{name} is a pixel model, which takes no {', '.join(options)}")
        return PixelDiffusion.from_pretrained(directory)
    if unet == ["diffusers", "UNet2DConditionModel"]:
        return LatentDiffusion.from_pretrained(directory, **options)
    raise ValueError(
        f"{path}: 'unet' must be ['diffusers', 'UNet2DModel'] or "
        f"['diffusers', 'UNet2DConditionModel'], got {unet!r:.80}. {unread(index)}"
    )


_OF_FILES = ("variant", "revision", "local_files_only", "follow_links")


def find(name: str | Path, **options: Any) -> ModelDirectory:
    """The directory of a bundled model, of one on this machine, or of a hub id's snapshot.

    Args:
        name: as of :func:`load`.
        options: of :func:`~sharpjax.models.files.resolve`; the directory keeps what they say.
    """
    if str(name) in zoo.bundled() or not ("/" in str(name) or Path(name).exists()):
        name = zoo.find(name)  # or its message, which lists the bundled ones
    return resolve(name, folders=(*PARTS, VQVAE), **options)
