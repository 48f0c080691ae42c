"""Local dimension about finished images over noise levels, resumable.

Of every image the curves of `sharpjax.dimension.dimension_curve`, by the unconditional score.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.conditional import ConditionalModel
from sharpjax.curvature.estimate import Estimate
from sharpjax.dimension import dimension_curve
from sharpjax.pictures import read_picture, to_array
from sharpjax.prompts import Case
from sharpjax.rundir.run import Run
from sharpjax.runs.images import digest_of, warn_resized

TIMES = (1, 5, 10, 20, 50, 100, 200)
_COLUMNS = ("flipd", "lhsd", "transition_mass")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DimensionSettings:
    """What defines the numbers of a run.

    Attributes:
        times: timesteps.
        num_probes: of LHSD at each.
        num_matvecs: products of each probe; FLIPD has as many in all.
        cutoff: of LHSD, in units of 1/sigma^2.
        seed: of the probes.
    """

    times: tuple[int, ...] = TIMES
    num_probes: int = 8
    num_matvecs: int = 20
    cutoff: float = 0.1
    seed: int = 0


def dimension_of_images(
    model: ConditionalModel,
    images: str | Path,
    cases: Sequence[Case],
    directory: str | Path,
    settings: DimensionSettings,
    *,
    fingerprint: str,
) -> list[dict[str, Any]]:
    """Curves of every image, or the rest of a run that was stopped.

    Args:
        model: any model with an unconditional score.
        images: their directory.
        cases: as `sharpjax.runs.images.find_images` returns them.
        directory: of the run.
        settings: what to compute.
        fingerprint: of the model.

    Returns:
        One record per image: `index`, `condition` (its name), `coordinates` (how many there are),
        and of `flipd`, `lhsd` and `transition_mass` the values and `..._error` at every time,
        ascending; `chosen`, the time of the least transition mass; or `failed`, where an image
        could not be read.

    Raises:
        ValueError: a directory with another run in it, a timestep out of range, or a model without
            an unconditional score.
        FileExistsError: the directory holds something else.
    """
    if not model.has_unconditional:
        raise ValueError("dimension is that of the unconditional score, which this model lacks")
    names, folder = [case.condition for case in cases], Path(images)
    for t in settings.times:
        model.schedule.checked_timestep(t)
    run = Run.claim(
        directory,
        "dimension",
        {"model": fingerprint, "images": digest_of(folder, names), "num_images": len(names)}
        | dataclasses.asdict(settings),
        key=["index"],
        fields=["condition"],
    )
    key = jax.random.key(settings.seed)
    resized, mode = 0, "L" if model.image_shape[0] == 1 else "RGB"

    def one(_: Sequence[int], missing: list[int]) -> Iterator[dict[str, Any]]:
        nonlocal resized
        (index,) = missing
        record: dict[str, Any] = {"index": index, "condition": names[index]}
        try:
            picture = read_picture(folder / names[index], mode)
        except ValueError as error:
            yield record | {"failed": str(error).removeprefix(f"{folder / names[index]} ")}
            return
        resized += picture.size != model.image_shape[:0:-1]
        z = jnp.asarray(model.encode_image(to_array(picture, model.image_shape)[None]))[0]
        curve = dimension_curve(
            model.unconditional, z, schedule=model.schedule, times=settings.times,
            key=jax.random.fold_in(key, index), num_probes=settings.num_probes,
            num_matvecs=settings.num_matvecs, cutoff=settings.cutoff,
        )  # fmt: skip
        record |= {"coordinates": z.size, "times": curve.times.tolist()}
        for name in _COLUMNS:
            record |= _columns(name, getattr(curve, name))
        yield record | {"chosen": record["times"][curve.chosen]}

    run.work(
        "dimension", [[i] for i in range(len(names))], one, note=lambda record: record["condition"]
    )
    warn_resized(resized, model)
    return [run.done[index] for index in range(len(names))]


def _columns(name: str, estimate: Estimate) -> dict[str, Any]:
    found = {name: np.asarray(estimate.value, float).tolist()}
    if estimate.num_samples != 1:
        found[f"{name}_error"] = np.asarray(estimate.standard_error, float).tolist()
    return found
