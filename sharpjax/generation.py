"""Images of prompts into a directory, one file each; a run that was stopped goes on.

``images/00012-1.png`` is the second image of the thirteenth prompt.  Its noise depends on the
seed and these two numbers alone: not on the batch size, on how many prompts or images there are,
or on which of them were made before.  So a run may be resumed, and prompts (at the end of the
list) or images of each may be added later, and every image is what it would have been.
"""

import dataclasses
import math
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from PIL import Image, ImageDraw, ImageFont
from rich.markup import escape

from sharpjax import pictures
from sharpjax._types import Array
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.progress import progress
from sharpjax.rundir import append_lines, claim, make_folder, read_lines

RESULTS_NAME, GRID_NAME, IMAGES_NAME = "results.jsonl", "grid.png", "images"
_FIELDS = ("prompt", "index", "image", "noise", "file")
_MOST = 16  # rows and columns of the grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What defines the images of a run, beside model and prompts.

    Attributes:
        num_steps: of the sampler.
        guidance: of classifier-free guidance; 7.5 for prompts and 1 (none) for the conditions of a
            pixel model when left out.
        eta: 0 DDIM, 1 ancestral.
        negative_prompt: what guidance leads away from.
        height: of the images in pixels; the model's own when left out.
        width: likewise.
        clip_skip: last layers of the text encoder to leave out.
        seed: of all noise.
    """

    num_steps: int = 50
    guidance: float | None = None
    eta: float = 0.0
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    clip_skip: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}")


def generate(
    model: PixelDiffusion | LatentDiffusion,
    prompts: Sequence[str],
    directory: str | Path,
    settings: GenerationSettings,
    *,
    fingerprint: str,
    num_images: int = 1,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> list[dict[str, Any]]:
    """Images of ``prompts``, or the rest of a run that was stopped, and ``grid.png`` of them all.

    Args:
        model: of pixels or latents.
        prompts: texts, or names of a pixel model's conditions; one may stand there twice. Of a
            model without conditions the empty one.
        directory: of the run. One that holds the same run is finished; it may get more prompts, at
            the end of the list, and more images of each.
        settings: what to draw.
        fingerprint: of the model; a run refuses to go on with another.
        num_images: of each prompt.
        batch_size: images at a time, 4 when left out (64 of a pixel model); changes the images by
            rounding errors at most. Ancestral sampling (``eta > 0``) goes image by image, because
            the noise of its steps is that image's own.
        mesh: devices that share a batch; of a model of latents.

    Returns:
        One record per image: ``prompt``, its ``index``, number of the ``image``, ``noise`` (the
        three integers that it is drawn from) and the name of the ``file``.

    Raises:
        ValueError: no prompts, settings that the model does not take, an unknown condition, an
            image that is not finite, or a directory with another run or with other prompts.
        FileExistsError: the directory holds something else.
        OSError: it cannot be written, or the disk is full.
    """
    prompts = list(prompts)
    is_latent = isinstance(model, LatentDiffusion)
    batch_size = (4 if is_latent else 64) if batch_size is None else batch_size
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    folder, records = begin(model, prompts, directory, settings, fingerprint=fingerprint)
    settings, shape = _completed(settings, model)
    path = folder / RESULTS_NAME
    images = [(i, j) for i in range(len(prompts)) for j in range(num_images)]
    done = {key for key in images if key in records and _is_there(_file(folder, *key))}
    key = jax.random.key(settings.seed)
    options: Any = {"negative_prompt": settings.negative_prompt, "mesh": mesh} if is_latent else {}
    contexts: dict[int, Any] = {}
    make_folder(folder / IMAGES_NAME)
    with progress("sampling", total=len(images), done=len(done)) as bar:
        size = min(batch_size, len(images)) if settings.eta == 0 else 1
        for start in range(0, len(images), size):
            missing = [image for image in images[start : start + size] if image not in done]
            if not missing:
                continue
            # The whole batch again, whatever part of it is there: the same program on the same
            # numbers gives the same bits.  The last one is filled up by repetition.
            batch = [images[k % len(images)] for k in range(start, start + size)]
            contexts = {
                i: contexts[i] if i in contexts else _encode(model, prompts[i], settings)
                for i in dict.fromkeys(i for i, _ in batch)
            }
            encoded: Any = None
            if model.has_conditions:
                encoded = jnp.concatenate([contexts[i] for i, _ in batch])
            keys = [jax.random.fold_in(jax.random.fold_in(key, i), j) for i, j in batch]
            pixels = model.sample(
                encoded,
                jax.random.fold_in(keys[0], 1),  # of the steps, used if there is one image
                noise=jnp.stack([jax.random.normal(jax.random.fold_in(k, 0), shape) for k in keys]),
                num_steps=settings.num_steps,
                guidance=cast(float, settings.guidance),  # `_completed` filled it in
                eta=settings.eta,
                batch_size=size,
                **options,
            )
            for i, j in missing:
                picture = to_picture(pixels[batch.index((i, j))], f"image {j} of {prompts[i]!r}")
                file = _file(folder, i, j)
                record = {
                    "prompt": prompts[i],
                    "index": i,
                    "image": j,
                    "noise": [settings.seed, i, j],
                    "file": str(file.relative_to(folder)),
                }
                write_png(file, picture)
                if (i, j) not in records:
                    _append(path, record)
                records[i, j] = record
                bar.advance(note=escape(prompts[i][:40]))
    write_png(folder / GRID_NAME, _grid(folder, prompts, num_images))
    return [records[image] for image in images]


def begin(
    model: PixelDiffusion | LatentDiffusion,
    prompts: Sequence[str],
    directory: str | Path,
    settings: GenerationSettings,
    *,
    fingerprint: str,
) -> tuple[Path, dict[tuple[int, int], dict[str, Any]]]:
    """The directory of a run of :func:`generate`, and the records that are there, before any work.

    Raises:
        ValueError, FileExistsError, OSError: as :func:`generate`.
    """
    if not prompts:
        raise ValueError("the number of prompts must be at least 1, got 0")
    settings, _ = _completed(settings, model)
    model.schedule.timesteps(settings.num_steps)
    if isinstance(model, LatentDiffusion):
        model.tokenizer(list(prompts))  # warns of all that are too long, before hours of work
    elif model.has_conditions or any(prompts):
        model.encode(prompts)
    _encode(model, prompts[0], settings)  # whatever is wrong with the settings shows here
    dtype = jax.tree.leaves(nnx.state(model.unet, nnx.Param))[0].dtype.name
    defining = {"run": "sample", "model": fingerprint, "dtype": dtype}
    folder = claim(directory, defining | dataclasses.asdict(settings), what="sample")
    path = folder / RESULTS_NAME
    records = {(r["index"], r["image"]): r for r in read_lines(path, _FIELDS)}
    for (index, _), record in records.items():
        if index < len(prompts) and record["prompt"] != prompts[index]:
            raise ValueError(
                f"{folder} holds images of other prompts: number {index} is {record['prompt']!r} "
                f"there, {prompts[index]!r} now. Repeat its prompts in their order (more may "
                "follow), or choose another directory"
            )
    return folder, records


def _completed(
    settings: GenerationSettings, model: PixelDiffusion | LatentDiffusion
) -> tuple[GenerationSettings, tuple[int, ...]]:
    """The settings with the model's own values for what is left out, and the shape of the noise."""
    if isinstance(model, PixelDiffusion):
        for name in ("negative_prompt", "height", "width", "clip_skip"):
            if getattr(settings, name) != getattr(GenerationSettings, name):
                raise ValueError(
                    f"a pixel model takes no {name}: it knows conditions, not prompts, and makes "
                    f"images of one size, {model.shape[1]} x {model.shape[2]}"
                )
        guidance = 1.0 if settings.guidance is None else settings.guidance
        if guidance != 1.0 and not model.has_conditions:
            raise ValueError(f"guidance must be 1, got {guidance}: this model has no conditions")
        return dataclasses.replace(settings, guidance=guidance), model.shape
    channels, *sides = model.shape
    unit = model.pixels_per_latent
    given = {"height": settings.height, "width": settings.width}
    pixels: dict[str, Any] = {}
    for (name, value), side in zip(given.items(), sides, strict=True):
        if value is not None and (value < 1 or value % unit):
            raise ValueError(f"{name} must be a multiple of {unit} pixels, got {value}")
        pixels[name] = side * unit if value is None else value
    guidance = 7.5 if settings.guidance is None else settings.guidance
    shape = (channels, pixels["height"] // unit, pixels["width"] // unit)
    return dataclasses.replace(settings, guidance=guidance, **pixels), shape


def _encode(
    model: PixelDiffusion | LatentDiffusion, prompt: str, settings: GenerationSettings
) -> Array | None:
    """One prompt at a time: one compilation, and the same bits whatever the others are.

    ``None`` of a model without conditions.
    """
    if isinstance(model, PixelDiffusion):
        return model.encode([prompt]) if model.has_conditions else None
    with warnings.catch_warnings():  # of a prompt that is too long: it was announced
        warnings.simplefilter("ignore", UserWarning)
        result: Array = model.encode([prompt], clip_skip=settings.clip_skip)
        return result


# --- files -------------------------------------------------------------------------------------


def _file(folder: Path, index: int, image: int) -> Path:
    return folder / IMAGES_NAME / f"{index:05d}-{image}.png"


def _is_there(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()  # a link may lead out of the run


def to_picture(pixels: np.ndarray, what: str) -> Image.Image:
    """Of ``(channels, height, width)`` from -1 to 1."""
    if not np.isfinite(pixels).all():
        raise ValueError(
            f"{what} is not finite: the network gives NaN or infinite values at these settings"
        )
    if len(pixels) not in (1, 3):
        raise ValueError(f"{what} has {len(pixels)} channels; an image file takes 1 or 3")
    levels = np.round((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(levels[..., 0] if len(pixels) == 1 else levels)


def write_png(path: Path, picture: Image.Image) -> None:
    """Whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    try:
        pictures.write_png(path, picture)
    except OSError as error:
        raise _explained(error, path) from error


def _append(path: Path, record: dict[str, Any]) -> None:
    try:
        append_lines(path, [record])
    except OSError as error:
        raise _explained(error, path) from error


def _explained(error: OSError, path: Path) -> OSError:
    return OSError(
        f"cannot write {path}: {error.strerror or error}; finished images are kept, and the same "
        "command goes on from there"
    )


def _grid(folder: Path, prompts: Sequence[str], num_images: int) -> Image.Image:
    """The first prompts, a row each under a caption, and the first images of each."""
    rows, columns = min(len(prompts), _MOST), min(num_images, _MOST)
    size = pictures.read_picture(_file(folder, 0, 0)).size
    scale = 160 / max(size)
    scale = math.floor(scale) if scale >= 2 else min(scale, 1.0)  # small ones by whole pixels
    width, height = (max(1, round(side * scale)) for side in size)
    gap, line = 6, 15
    import matplotlib  # half a second, which most uses do not need

    # Pillow's own font knows Latin letters only
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 11)
    total = max(columns * (width + gap), 200) + gap
    captions = [
        textwrap.wrap(
            " ".join(prompt.split()) or "(empty prompt)",
            total // 7,
            max_lines=2,
            placeholder=" ...",
        )
        for prompt in prompts[:rows]
    ]
    above = line * max(map(len, captions))
    block = height + gap + above
    sheet = Image.new("RGB", (total, rows * block + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i in range(rows):
        top = gap + i * block
        for k, text in enumerate(captions[i]):
            draw.text((gap, top + k * line), text, fill="black", font=font)
        for j in range(columns):
            how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
            cell = pictures.read_picture(_file(folder, i, j)).resize((width, height), how)
            sheet.paste(cell, (gap + j * (width + gap), top + above))
    return sheet
