"""Images of prompts into a directory, one file each; a run that was stopped goes on.

`images/00012-1.png` is the second image of the thirteenth prompt.  Its noise depends on the
seed and these two numbers alone: not on the batch size, on how many prompts or images there are,
or on which of them were made before.  So a run may be resumed, and prompts (at the end of the
list) or images of each may be added later, and every image is what it would have been.
"""

import dataclasses
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
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
from sharpjax.conditional import digest
from sharpjax.mitigation.screen import Screened, screened
from sharpjax.mitigation.screen_calibration import ScreenCalibration
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.models.prompt_diffusion import PromptDiffusion
from sharpjax.rundir.run import Run

GRID_NAME, IMAGES_NAME = "grid.png", "images"
Model = PixelDiffusion | PromptDiffusion
_Image = tuple[int, int]  # number of the prompt, and of the image
_MOST = 16  # rows and columns of the grid


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What defines the images of a run, beside model and prompts.

    Attributes:
        num_steps: of the sampler.
        guidance: of classifier-free guidance; when left out the model's own, of a pixel model 1,
            which is none.
        negative_prompt: what guidance leads away from.
        height: of the images in pixels; the model's own when left out.
        width: likewise.
        seed: of all noise.
        screen: a digest of what drops paths; None: nothing does.
        dropped: share of clean paths that it drops.
    """

    num_steps: int = 50
    guidance: float | None = None
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    seed: int = 0
    screen: str | None = None
    dropped: float | None = None

    def __post_init__(self) -> None:
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}")


def generate(
    model: Model,
    prompts: Sequence[str],
    directory: str | Path,
    settings: GenerationSettings,
    *,
    fingerprint: str | None = None,
    num_images: int = 1,
    batch_size: int | None = None,
    screen: ScreenCalibration | None = None,
    mesh: Mesh | None = None,
) -> list[dict[str, Any]]:
    """Images of `prompts`, or the rest of a run that was stopped, and `grid.png` of them all.

    Args:
        model: of pixels or latents.
        prompts: texts, or names of a pixel model's conditions; one may stand there twice. Of a
            model without conditions the empty one.
        directory: of the run. One that holds the same run is finished; it may get more prompts, at
            the end of the list, and more images of each.
        settings: what to draw.
        fingerprint: of the model, which a run goes on with alone; `None`: a digest of its arrays.
        num_images: of each prompt.
        batch_size: images at a time, 4 when left out (64 of a pixel model); changes the images by
            rounding errors at most.
        screen: drops paths and begins again; `settings` has its digest, and how many it drops. An
            image for which nothing passes is refused: its `file` is None.
        mesh: devices that share a batch; of a model of latents.

    Returns:
        One record per image: `prompt`, its `index`, number of the `image`, `noise` (the
        three integers that it is drawn from) and the name of the `file`; of a screen the `tries`.

    Raises:
        ValueError: no prompts, settings that the model does not take, an unknown condition, an
            image that is not finite, or a directory with another run or with other prompts.
        FileExistsError: the directory holds something else.
        OSError: it cannot be written, or the disk is full.
    """
    fingerprint = fingerprint or digest(model)
    prompts = list(prompts)
    batch_size = model.default_batch if batch_size is None else batch_size
    for name, value in (("num_images", num_images), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    completed, shape = _completed(settings, model)
    if screen is not None:  # before a directory is made
        screen.check(fingerprint, completed.num_steps, cast(float, completed.guidance))
    run = begin(model, prompts, directory, settings, fingerprint=fingerprint)
    folder, settings = run.folder, completed
    images = [(i, j) for i in range(len(prompts)) for j in range(num_images)]
    key = jax.random.key(settings.seed)
    options: Any = {}
    if model.takes_prompts:
        options = {"negative_prompt": settings.negative_prompt, "mesh": mesh}
    contexts: dict[int, Any] = {}
    run.make_folder(IMAGES_NAME)
    size = min(batch_size, len(images))

    def batch(chosen: Sequence[_Image], missing: list[_Image]) -> Iterator[dict[str, Any]]:
        nonlocal contexts
        first = images.index(chosen[0])
        # The last one is filled up by repetition.
        places = [images[k % len(images)] for k in range(first, first + size)]
        contexts = {
            i: contexts[i] if i in contexts else _encode(model, prompts[i])
            for i in dict.fromkeys(i for i, _ in places)
        }
        encoded: Any = None
        if model.has_conditions:
            encoded = jnp.concatenate([contexts[i] for i, _ in places])
        keys = [jax.random.fold_in(jax.random.fold_in(key, i), j) for i, j in places]
        weight = cast(float, settings.guidance)  # `_completed` filled it in
        tried: Screened | None = None
        if screen is not None:
            tried = screened(
                model,
                encoded,
                looks=[screen.look(settings.dropped)],
                keys=jnp.stack(keys)[:, None],
                guidance=weight,
                free=screen.free,
                num_steps=settings.num_steps,
                batch_size=size,
                mesh=mesh,
            )
            pixels = model.decode(jnp.nan_to_num(tried.examples[:, 0]))
        else:
            pixels = model.sample(
                encoded,
                noise=jnp.stack([jax.random.normal(jax.random.fold_in(k, 0), shape) for k in keys]),
                num_steps=settings.num_steps,
                guidance=weight,
                batch_size=size,
                **options,
            )
        for i, j in missing:
            place, file = places.index((i, j)), _file(folder, i, j)
            record = {"prompt": prompts[i], "index": i, "image": j, "noise": [settings.seed, i, j]}
            if tried is not None:
                record["tries"] = int(tried.tries[place, 0])
            if tried is not None and not tried.accepted[place, 0]:
                yield record | {"file": None}
                continue
            pictures.write_png(file, to_picture(pixels[place], f"image {j} of {prompts[i]!r}"))
            yield record | {"file": str(file.relative_to(folder))}

    refused = {image for image, record in run.done.items() if record["file"] is None}
    files = {image: _file(folder, *image) for image in images if image not in refused}
    run.work(
        "sampling",
        [images[start : start + size] for start in range(0, len(images), size)],
        batch,
        note=lambda record: escape(record["prompt"][:40]),
        again={i for i, file in files.items() if not file.is_file() or file.is_symlink()},
    )
    if any(run.done[image]["file"] for image in images):
        pictures.write_png(folder / GRID_NAME, _grid(folder, prompts, num_images))
    return [run.done[image] for image in images]


def begin(
    model: Model,
    prompts: Sequence[str],
    directory: str | Path,
    settings: GenerationSettings,
    *,
    fingerprint: str,
) -> Run:
    """The run of `generate`, and the records that are there, before any work.

    Raises:
        ValueError, FileExistsError, OSError: as `generate`.
    """
    if not prompts:
        raise ValueError("the number of prompts must be at least 1, got 0")
    settings, _ = _completed(settings, model)
    model.schedule.timesteps(settings.num_steps)
    if model.has_conditions or any(prompts):
        model.check(prompts)  # warns of all that are too long, before hours of work
    dtype = jax.tree.leaves(nnx.state(model.unet, nnx.Param))[0].dtype.name
    run = Run.claim(
        directory,
        "sample",
        {"model": fingerprint, "dtype": dtype} | dataclasses.asdict(settings),
        key=["index", "image"],
        fields=["prompt", "noise", "file"],
    )
    run.check_prompts(prompts)
    return run


def _completed(
    settings: GenerationSettings, model: Model
) -> tuple[GenerationSettings, tuple[int, ...]]:
    """The settings with the model's own values for what is left out, and the shape of the noise."""
    shape = model.noise_shape(settings.height, settings.width)
    guidance = model.default_guidance if settings.guidance is None else settings.guidance
    settings = dataclasses.replace(settings, guidance=guidance)
    if model.takes_prompts:
        _, height, width = (side * model.image_shape[1] // model.shape[1] for side in shape)
        return dataclasses.replace(settings, height=height, width=width), shape
    if settings.negative_prompt:
        raise ValueError("a pixel model takes no negative_prompt: it knows conditions, not prompts")
    if guidance != 1.0 and not model.has_conditions:
        raise ValueError(f"guidance must be 1, got {guidance}: this model has no conditions")
    return settings, shape


def _encode(model: Model, prompt: str) -> Array | None:
    """One prompt at a time: one compilation, and the same bits whatever the others are."""
    with warnings.catch_warnings():  # of a prompt that is too long: it was announced
        warnings.simplefilter("ignore", UserWarning)
        return model.encode([prompt]) if model.has_conditions else None


# --- files -------------------------------------------------------------------------------------


def _file(folder: Path, index: int, image: int) -> Path:
    return folder / IMAGES_NAME / f"{index:05d}-{image}.png"


def to_picture(pixels: np.ndarray, what: str) -> Image.Image:
    """Of `(channels, height, width)` from -1 to 1."""
    if not np.isfinite(pixels).all():
        raise ValueError(
            f"{what} is not finite: the network gives NaN or infinite values at these settings"
        )
    if len(pixels) not in (1, 3):
        raise ValueError(f"{what} has {len(pixels)} channels; an image file takes 1 or 3")
    levels = np.round((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(levels[..., 0] if len(pixels) == 1 else levels)


def _grid(folder: Path, prompts: Sequence[str], num_images: int) -> Image.Image:
    """The first prompts, a row each under a caption, and the first images of each."""
    rows, columns = min(len(prompts), _MOST), min(num_images, _MOST)
    places = [_file(folder, i, j) for i in range(rows) for j in range(columns)]
    drawn = {place for place in places if place.is_file()}  # the others were refused
    size = pictures.read_picture(min(drawn)).size if drawn else (1, 1)
    scale = 160 / max(size)
    scale = math.floor(scale) if scale >= 2 else min(scale, 1.0)  # small ones by whole pixels
    width, height = (max(1, round(side * scale)) for side in size)
    gap, line = 6, 15
    import matplotlib  # half a second, which most uses do not need

    # Pillow's own font knows Latin letters only
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 11)
    total = max(columns * (width + gap), 200) + gap
    texts = (" ".join(prompt.split()) or "(empty prompt)" for prompt in prompts[:rows])
    captions = [textwrap.wrap(t, total // 7, max_lines=2, placeholder=" ...") for t in texts]
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
            if (file := _file(folder, i, j)) not in drawn:
                continue
            cell = pictures.read_picture(file).resize((width, height), how)
            sheet.paste(cell, (gap + j * (width + gap), top + above))
    return sheet
