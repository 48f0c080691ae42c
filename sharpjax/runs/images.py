r"""Which finished images are memorized, without their prompts: the p-Laplacian about each.

About a memorized image the density at a small noise level is a narrow peak: the flux of
$s/\|s\|$ through a sphere about it is more negative than about an image in a broad region
(Brokman et al., SSVM 2025, arXiv:2505.08246).  Only the unconditional score is asked.
"""

import dataclasses
import functools
import hashlib
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array, ArrayLike
from sharpjax.conditional import ConditionalModel, digest, unconditional_pair
from sharpjax.detection.settings import PARTS, ImageSettings
from sharpjax.detection.statistics import p_laplacian
from sharpjax.pictures import ENDINGS, read_image, read_picture, to_array
from sharpjax.prompts import LABELS_NAME, Case, read_labelled
from sharpjax.rundir.files import append_lines, read_csv
from sharpjax.rundir.run import Run
from sharpjax.runs.detect import SECONDS_NAME, finite

METADATA_NAME = "metadata.csv"


def find_images(directory: str | Path) -> list[Case]:
    """Images of a directory, by name, with what its `labels.csv` says of them, if it is there.

    The file has columns `prompt` (the image's name), `label` and `source`.  What else is in
    the directory is left out, with a warning that names some of it.

    Raises:
        FileNotFoundError: no such directory, no images in it, or labels of an image that is not
            there.
        ValueError: a file of labels that cannot be read.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"no directory of images {folder}")
    known = {LABELS_NAME, METADATA_NAME}
    entries = sorted(p for p in folder.iterdir() if p.name not in known and p.name[0] != ".")
    files = [p.name for p in entries if p.suffix.lower() in ENDINGS and p.is_file()]
    if not files:
        raise FileNotFoundError(f"no images ({', '.join(ENDINGS)}) in {folder}")
    kept = set(files)
    if others := [p.name for p in entries if p.name not in kept]:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        warnings.warn(
            f"{folder}: left out {', '.join(others[:3])}{more}; images that are read: files "
            f"({', '.join(ENDINGS)})",
            stacklevel=2,
        )
    labels = folder / LABELS_NAME
    lines = read_labelled(labels) if labels.is_file() else []
    empty = Case("")
    told = {c.condition: c for c in lines if dataclasses.replace(c, others={}) != empty}
    if absent := [name for name in told if name not in files]:
        raise FileNotFoundError(f"{labels} names {absent[0]!r}, which is not in {folder}")
    return [told.get(name, Case(name)) for name in files]


def read_images(directory: str | Path, cases: Sequence[Case], shape: tuple[int, ...]) -> np.ndarray:
    """All images of a directory at once, `(n, *shape)`.

    Raises:
        ValueError: one cannot be read.
    """
    return np.stack([read_image(Path(directory) / case.condition, shape) for case in cases])


def read_texts(directory: str | Path, cases: Sequence[Case]) -> list[str] | None:
    """What `metadata.csv` says of the images, if it is there.

    Its columns are file_name and text, as in a Hugging Face image folder.

    Raises:
        ValueError: it lacks a column or an image, or cannot be read.
    """
    path = Path(directory) / METADATA_NAME
    if not path.is_file():
        return None
    rows = read_csv(path)
    if rows and not {"file_name", "text"} <= rows[0].keys():
        raise ValueError(f"{path} must have columns file_name and text, got {', '.join(rows[0])}")
    known = {row["file_name"]: row["text"] for row in rows}
    if lacking := [case.condition for case in cases if case.condition not in known]:
        raise ValueError(f"{path} says nothing of {lacking[0]!r}; every image needs its text")
    return [known[case.condition] for case in cases]


def detect_images(
    model: ConditionalModel,
    images: str | Path,
    cases: Sequence[Case],
    directory: str | Path,
    settings: ImageSettings,
    *,
    fingerprint: str | None = None,
) -> list[dict[str, Any]]:
    """The p-Laplacian about every image, or the rest of a run that was stopped.

    Args:
        model: any conditional model.
        images: their directory.
        cases: as `find_images` returns them.
        directory: of the run.
        settings: what to compute.
        fingerprint: of the model, which a run goes on with alone; `None`: a digest of its arrays.

    Returns:
        One record per image: `index`, `condition` (its name) and `network`, which has four
        values of `p_laplacian@t`, each from a quarter of the directions, and if asked for one of
        `p_laplacian@t, exact`; or `failed`, where an image could not be read.

    Raises:
        ValueError: a directory with another run in it, a timestep out of range, or a model without
            an unconditional score.
        FileExistsError: the directory holds something else.
    """
    fingerprint = fingerprint or digest(model)
    if not model.has_unconditional:
        raise ValueError("images are judged by the unconditional score, which this model lacks")
    names = [case.condition for case in cases]
    model.schedule.alpha(np.array([settings.timestep]))  # checks the range
    run = Run.claim(
        directory,
        "detect images",
        {
            "model": fingerprint,
            "images": digest_of(Path(images), names),
            "num_images": len(names),
            **dataclasses.asdict(settings),
        },
        key=["index"],
        fields=["condition"],
    )
    key, seconds = jax.random.key(settings.seed), []
    resized, mode = 0, "L" if model.image_shape[0] == 1 else "RGB"

    def image(_: Sequence[int], missing: list[int]) -> Iterator[dict[str, Any]]:
        nonlocal resized
        (index,) = missing
        record: dict[str, Any] = {"index": index, "condition": names[index]}
        start, path = time.perf_counter(), Path(images) / names[index]
        try:
            picture = read_picture(path, mode)
        except ValueError as error:
            record["failed"] = str(error).removeprefix(f"{path} ")
        else:
            resized += picture.size != model.image_shape[:0:-1]
            z = jnp.asarray(model.encode_image(to_array(picture, model.image_shape)[None]))[0]
            record |= _measured(model, z, key, settings)
        seconds.append(time.perf_counter() - start)
        yield record

    batches = [[index] for index in range(len(names))]
    run.work("detecting", batches, image, note=lambda record: record["condition"])
    if seconds:
        line = {"batch_size": 1, "seconds": {"images": seconds}}
        append_lines(run.folder / SECONDS_NAME, [line])
    warn_resized(resized, model)
    return [run.done[index] for index in range(len(names))]


def warn_resized(number: int, model: ConditionalModel) -> None:
    """Say of how many images the middle part was resized, if of any."""
    if number:
        height, width = model.image_shape[1:]
        warnings.warn(
            f"{number} images are not {width} x {height}: the middle part of each was resized",
            stacklevel=3,
        )


def digest_of(folder: Path, names: Sequence[str]) -> str:
    """Of names and contents: a run goes on with the same images only."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(hashlib.sha256(name.encode()).digest())
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def _measured(
    model: ConditionalModel, z: Array, key: Array, settings: ImageSettings
) -> dict[str, Any]:
    t = settings.timestep
    values = [_flux(model, z, t, key, settings=settings)]
    if settings.exact:
        values.append(_exact(model, z, t, settings=settings))
    named = zip(settings.names(), values, strict=True)
    columns = {name: np.atleast_1d(value) for name, value in named}
    return finite({"network": columns})


@functools.partial(jax.jit, static_argnames="settings")
def _flux(
    model: ConditionalModel, z: Array, t: ArrayLike, key: Array, *, settings: ImageSettings
) -> Array:
    pair = unconditional_pair(model, t)

    def part(i: Array) -> Array:
        return p_laplacian(
            pair, z, key=jax.random.fold_in(key, i), p=settings.p,
            num_directions=settings.num_directions // PARTS,
        )  # fmt: skip

    return jax.lax.map(part, jnp.arange(PARTS))


@functools.partial(jax.jit, static_argnames="settings")
def _exact(model: ConditionalModel, z: Array, t: ArrayLike, *, settings: ImageSettings) -> Array:
    pair = unconditional_pair(model, t)
    return p_laplacian(pair, z, key=None, p=settings.p, method="exact")
