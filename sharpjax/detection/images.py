r"""Which finished images are memorized, without their prompts: the p-Laplacian about each.

About a memorized image the density at a small noise level is a narrow peak: the flux of
:math:`s/\|s\|` through a sphere about it is more negative than about an image in a broad region
(Brokman et al., SSVM 2025, arXiv:2505.08246).  Only the unconditional score is asked.
"""

import collections
import dataclasses
import functools
import hashlib
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array, ArrayLike
from sharpjax.conditional import ConditionalModel, unconditional_pair
from sharpjax.detection.cases import Case
from sharpjax.detection.run import RESULTS_NAME, SECONDS_NAME
from sharpjax.detection.settings import PARTS, ImageSettings
from sharpjax.detection.statistics import p_laplacian
from sharpjax.pictures import ENDINGS, read_picture, to_array
from sharpjax.progress import progress
from sharpjax.prompts import LABELS_NAME, LabelledPrompt, read_labelled
from sharpjax.rundir import append_lines, claim, read_lines


def find_images(directory: str | Path) -> list[Case]:
    """Images of a directory, by name, with what its ``labels.csv`` says of them, if it is there.

    The file has columns ``prompt`` (the image's name), ``label`` and ``source``.  What else is in
    the directory is left out, with a warning that counts it by its endings.

    Raises:
        FileNotFoundError: no such directory, no images in it, or labels of an image that is not
            there.
        ValueError: a file of labels that cannot be read.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"no directory of images {folder}")
    entries = sorted(p for p in folder.iterdir() if p.name != LABELS_NAME and p.name[0] != ".")
    files = [p.name for p in entries if p.suffix.lower() in ENDINGS and p.is_file()]
    if not files:
        raise FileNotFoundError(f"no images ({', '.join(ENDINGS)}) in {folder}")
    kept = set(files)
    if others := collections.Counter(_kind(p) for p in entries if p.name not in kept):
        told = ", ".join(
            f"{n} {kind if n == 1 else _PLURAL.get(kind, kind)}" for kind, n in others.items()
        )
        warnings.warn(
            f"{folder}: left out {told}; images that are read: {', '.join(ENDINGS)}", stacklevel=2
        )
    labels = folder / LABELS_NAME
    lines = read_labelled(labels) if labels.is_file() else []
    known = {line.prompt: line for line in lines if line != LabelledPrompt("")}  # an empty row
    if absent := [name for name in known if name not in files]:
        raise FileNotFoundError(f"{labels} names {absent[0]!r}, which is not in {folder}")
    return [
        Case(name, known[name].label, known[name].source) if name in known else Case(name)
        for name in files
    ]


_PLURAL = {"directory": "directories", "broken link": "broken links", "pipe": "pipes"}


def _kind(path: Path) -> str:
    """Of what is no image, in words."""
    if path.is_dir():
        return "directory"
    if not path.exists():
        return "broken link"
    if path.is_fifo():
        return "pipe"
    return path.suffix or "without an ending"


def detect_images(
    model: ConditionalModel,
    images: str | Path,
    cases: Sequence[Case],
    directory: str | Path,
    settings: ImageSettings,
    *,
    fingerprint: str,
) -> list[dict[str, Any]]:
    """The p-Laplacian about every image, or the rest of a run that was stopped.

    Args:
        model: any conditional model.
        images: their directory.
        cases: as :func:`find_images` returns them.
        directory: of the run.
        settings: what to compute.
        fingerprint: of the model.

    Returns:
        One record per image: ``index``, ``condition`` (its name) and ``network``, which has four
        values of ``p_laplacian@t``, each from a quarter of the directions, and if asked for one of
        ``p_laplacian@t, exact``; or ``failed``, where an image could not be read.

    Raises:
        ValueError: a directory with another run in it, a timestep out of range, or a model without
            an unconditional score.
        FileExistsError: the directory holds something else.
    """
    if not model.has_unconditional:
        raise ValueError("images are judged by the unconditional score, which this model lacks")
    names = [case.condition for case in cases]
    folder = claim(
        directory,
        {
            "run": "detect images",
            "model": fingerprint,
            "images": _digest(Path(images), names),
            "num_images": len(names),
            **dataclasses.asdict(settings),
        },
        what="detect images",
    )
    model.schedule.alpha(np.array([settings.timestep]))  # checks the range
    path = folder / RESULTS_NAME
    done = {record["index"]: record for record in read_lines(path, {"index", "condition"})}
    key, seconds = jax.random.key(settings.seed), []
    resized, mode = 0, "L" if model.image_shape[0] == 1 else "RGB"
    with progress("detecting", total=len(names), done=len(done)) as bar:
        for index, name in enumerate(names):
            if index in done:
                continue
            record: dict[str, Any] = {"index": index, "condition": name}
            start = time.perf_counter()
            try:
                picture = read_picture(Path(images) / name, mode)
            except ValueError as error:
                record["failed"] = str(error).removeprefix(f"{Path(images) / name} ")
            else:
                resized += picture.size != model.image_shape[:0:-1]
                z = jnp.asarray(model.encode_image(to_array(picture, model.image_shape)[None]))[0]
                record |= _measured(model, z, key, settings)
            seconds.append(time.perf_counter() - start)
            append_lines(path, [record])
            done[index] = record
            bar.advance(note=name)
    if seconds:
        line = {"batch_size": 1, "seconds": {"images": seconds}}
        append_lines(folder / SECONDS_NAME, [line])
    if resized:
        height, width = model.image_shape[1:]
        warnings.warn(
            f"{resized} images are not {width} x {height}: the middle part of each was resized",
            stacklevel=2,
        )
    return [done[index] for index in range(len(names))]


def _digest(folder: Path, names: Sequence[str]) -> str:
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
    if bad := [name for name, column in columns.items() if not np.isfinite(column).all()]:
        return {"failed": f"{', '.join(bad)} not finite"}
    return {"network": {name: column.tolist() for name, column in columns.items()}}


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

    values: Array = jax.lax.map(part, jnp.arange(PARTS))
    return values


@functools.partial(jax.jit, static_argnames="settings")
def _exact(model: ConditionalModel, z: Array, t: ArrayLike, *, settings: ImageSettings) -> Array:
    pair = unconditional_pair(model, t)
    value: Array = p_laplacian(pair, z, key=None, p=settings.p, method="exact")
    return value
