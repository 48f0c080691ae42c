"""`sj.load`: a model ready for detection, from a bundled name, a directory or the hub."""

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from sharpjax import zoo
from sharpjax.checkpoints.directory import Directory
from sharpjax.checkpoints.hub import resolve
from sharpjax.checkpoints.pipeline import FOLDERS, LATENT, THREE, XL, read_index
from sharpjax.checkpoints.sharding import checked_mesh
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.models.latent_diffusion_3 import LatentDiffusion3
from sharpjax.models.latent_diffusion_xl import LatentDiffusionXL
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.models.prompt_diffusion import PromptDiffusion

_OF_FILES = ("variant", "revision", "local_files_only", "follow_links")


def load(
    name: str | Path | Directory, *, mesh: Mesh | None = None, **options: Any
) -> PixelDiffusion | PromptDiffusion:
    """A conditional diffusion model.

    Args:
        name: a bundled model such as `"mnist"`, a diffusers directory, or a Hugging Face hub id;
            or what `find` made of it.
        mesh: devices along an axis "weights" that the networks' weights are sharded over, as of
            `sharpjax.checkpoints.from_pretrained`: for a model that one device does not hold.
            `sharpjax.checkpoints.placement(model)` tells what lies where. The model
            computes on all of them together; work on it is spread over no other mesh.
        options: `variant`, `revision`, `local_files_only` and `follow_links`, which choose
            files, and the others of `LatentDiffusion.from_pretrained`, for a Stable Diffusion
            pipeline.

    Raises:
        FileNotFoundError: unknown name, directory or hub id, or a missing part.
        ValueError: a pipeline that is not supported, a damaged part, or a mesh with other axes.
        TypeError: a model that is in memory, or `mesh` is none.
    """
    mesh = checked_mesh(mesh)
    directory = find(name, **{k: options.pop(k) for k in _OF_FILES if k in options})
    pipeline = dataclasses.replace(read_index(directory), mesh=mesh)
    if pipeline.kind is THREE:
        return LatentDiffusion3.of_pipeline(pipeline, **options)
    if pipeline.kind is XL:
        return LatentDiffusionXL.of_pipeline(pipeline, **options)
    if pipeline.kind is LATENT:
        return LatentDiffusion.of_pipeline(pipeline, **options)
    if options:
        raise ValueError(f"{name} is a pixel model, which takes no {', '.join(options)}")
    return PixelDiffusion.of_pipeline(pipeline)


def find(name: str | Path | Directory, **options: Any) -> Directory:
    """The directory of a bundled model, of one on this machine, or of a hub id's snapshot.

    Args:
        name: as of `load`.
        options: of `sharpjax.checkpoints.hub.resolve`; the directory keeps them.

    Raises:
        TypeError: something else, such as a model.
    """
    if isinstance(name, Directory):
        return name
    if not isinstance(name, str | Path):
        raise TypeError(
            "a model is read from its files, by the name of a directory, got "
            f"{type(name).__name__}; write one that is in memory by its save_pretrained"
        )
    if str(name) in zoo.bundled() or not ("/" in str(name) or Path(name).exists()):
        name = zoo.find(name)  # or its message, which lists the bundled ones
    return resolve(name, folders=FOLDERS, **options)
