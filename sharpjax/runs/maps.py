"""Where the images of a run's conditions are memorized: a map of each, resumable.

The first noise of a detection run leads to one image a condition; its map is taken at the last step
(`sharpjax.detection.maps`).  `images/00012.png` is the image of the thirteenth condition,
`maps/00012.npy` its map at the size of the image, float32.
"""

import dataclasses
import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sharpjax._types import Array
from sharpjax.conditional import ConditionalModel
from sharpjax.detection.maps import PROBES, memorization_map, to_pixels
from sharpjax.detection.trajectory import follow
from sharpjax.pictures import write_png
from sharpjax.rundir.files import write_bytes
from sharpjax.rundir.run import Run
from sharpjax.runs.sample import to_picture

MAPS_NAME = "maps"  # in a detection run: its own
_IMAGES, _ARRAYS = "images", "maps"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapSettings:
    """What defines the maps of a run.

    Attributes:
        num_steps: of the path.
        guidance: of the path.
        num_probes: of the diagonal.
        seed: of noise and probes; the noise is the first of a detection run of the same seed.
    """

    num_steps: int = 50
    guidance: float = 7.5
    num_probes: int = PROBES
    seed: int = 0


def maps(
    model: ConditionalModel,
    conditions: Sequence[str],
    directory: str | Path,
    settings: MapSettings,
    *,
    fingerprint: str,
) -> list[dict[str, Any]]:
    """An image and a map of every condition, or the rest of a run that was stopped.

    Returns:
        One record per condition: `index`, `condition`, the files `image` and `map`, and the map's
        `mean` over pixels and `largest` value, units 1/sigma; or `failed`.

    Raises:
        ValueError: no conditions, a model without an unconditional score, or a directory with
            another run in it.
        FileExistsError: the directory holds something else.
    """
    if not conditions:
        raise ValueError("there is nothing to map: no conditions")
    if not model.has_unconditional:
        raise ValueError("maps compare with the unconditional score, which this model lacks")
    run = Run.claim(
        directory,
        "maps",
        {"model": fingerprint, "names": list(conditions), **dataclasses.asdict(settings)},
        key=["index"],
        fields=["condition"],
    )
    timesteps = model.schedule.timesteps_with_signal(settings.num_steps)
    for name in (_IMAGES, _ARRAYS):
        run.make_folder(name)
    key = jax.random.key(settings.seed)
    # as `sharpjax.detection.compute` draws the first
    unit = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 0), 0), model.shape)
    noise = model.schedule.first_sigma * unit

    def one(_: Sequence[int], missing: list[int]) -> Iterator[dict[str, Any]]:
        (index,) = missing
        record: dict[str, Any] = {"index": index, "condition": conditions[index]}
        condition = model.encode([conditions[index]])[0]
        values, example = _map(
            model, condition, noise, timesteps[-1].item(), jax.random.fold_in(key, 3),
            num_steps=settings.num_steps, guidance=settings.guidance,
            num_probes=settings.num_probes,
        )  # fmt: skip
        pixels = model.decode(example[None])[0]
        if not (np.isfinite(pixels).all() and np.isfinite(np.asarray(values)).all()):
            yield record | {"failed": "image or map not finite"}
            return
        names = {"image": f"{_IMAGES}/{index:05d}.png", "map": f"{_ARRAYS}/{index:05d}.npy"}
        write_png(run.folder / names["image"], to_picture(pixels, conditions[index]))
        data = io.BytesIO()
        np.save(data, to_pixels(np.asarray(values), model.image_shape), allow_pickle=False)
        write_bytes(run.folder / names["map"], data.getvalue())
        yield record | names | {"mean": float(values.mean()), "largest": float(values.max())}

    run.work(
        "mapping",
        [[index] for index in range(len(conditions))],
        one,
        note=lambda record: record["condition"],
    )
    return [run.done[index] for index in range(len(conditions))]


@functools.partial(jax.jit, static_argnames=("num_steps", "guidance", "num_probes"))
def _map(
    model: ConditionalModel,
    condition: Array,
    noise: Array,
    last: Array,
    key: Array,
    *,
    num_steps: int,
    guidance: float,
    num_probes: int,
) -> tuple[Array, Array]:
    path = follow(model, condition, noise, num_steps=num_steps, guidance=guidance)
    pair = model.scores(condition, last)
    values = memorization_map(pair, path.states[-2], key=key, num_probes=num_probes)
    return values, path.states[-1]
