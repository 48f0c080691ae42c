"""Losses and samples of checkpoints of one training, resumable.

Of every checkpoint the denoising losses of suspected and of held-out images at fixed levels, and
samples, of which only the ratio of their two smallest distances to suspected images is kept.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array, ArrayLike
from sharpjax.conditional import ConditionalModel
from sharpjax.detection.audit import nearest_ratio
from sharpjax.dimension import denoising_loss
from sharpjax.rundir.run import Run

TIMES = (10, 50, 200, 500)
SUSPECTED, HELD_OUT, SAMPLES = "suspected", "held-out", "samples"
_BATCH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """What defines the numbers of a run.

    Attributes:
        times: timesteps of the losses.
        num_noises: of each image and level.
        num_samples: images drawn from every checkpoint.
        num_steps: of the sampler.
        guidance: of the samples.
        seed: of noises and samples.
    """

    times: tuple[int, ...] = TIMES
    num_noises: int = 4
    num_samples: int = 64
    num_steps: int = 50
    guidance: float = 1.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Audited:
    """One checkpoint: its name, training step, fingerprint, and how its model is read."""

    name: str
    step: int
    fingerprint: str
    load: Callable[[], ConditionalModel]


def audit(
    checkpoints: Sequence[Audited],
    suspected: np.ndarray,
    held_out: np.ndarray,
    conditions: Sequence[str],
    directory: str | Path,
    settings: AuditSettings,
    *,
    references: np.ndarray | None = None,
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
) -> list[dict[str, Any]]:
    """Records of every checkpoint, or the rest of a run that was stopped.

    Args:
        checkpoints: of one training, in its order; a model is read when its turn comes.
        suspected: images `(n, *image_shape)`, -1 to 1, whose losses are taken.
        held_out: of the same kind, never trained on; at least two.
        conditions: of the samples, in turn; none for a model without.
        directory: of the run.
        settings: what to compute.
        references: images that samples may be copies of, at least two different ones; the suspected
            ones when left out.
        texts: conditions of the suspected and of the held-out images, whose losses are then those
            of the conditional score; of the unconditional one when left out.

    Returns:
        Records of `checkpoint` (its place), `part` and `index`: of images `losses` at every level,
        a mean over coordinates and noises, and of held-out ones and samples `ratio`.

    Raises:
        ValueError: too few images, held-out ones that are suspected too, no samples, a level
            outside the schedule, a model without an unconditional score, losses that are not
            finite, or a directory with another run in it.
        FileExistsError: the directory holds something else.
    """
    if not checkpoints:
        raise ValueError("there is nothing to audit: no checkpoints")
    for what, images in ((SUSPECTED, suspected), (HELD_OUT, held_out)):
        if len(images) < 2:
            raise ValueError(f"{what} images must be at least 2, got {len(images)}")
    for name in ("num_noises", "num_samples"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(settings, name)}")
    references = suspected if references is None else references
    ratios = nearest_ratio(held_out, references)
    equal = np.flatnonzero(ratios == 0)
    if len(equal):
        raise ValueError(
            f"{len(equal)} of {len(held_out)} held-out images are suspected ones, such as number "
            f"{equal[0]}: what was trained on cannot say what chance explains; leave them out of "
            "either"
        )
    digest = hashlib.sha256(np.concatenate([suspected, held_out, references]).tobytes())
    run = Run.claim(
        directory,
        "audit",
        {
            "model": checkpoints[-1].fingerprint,
            "checkpoints": [one.name for one in checkpoints],
            "steps": [one.step for one in checkpoints],
            "fingerprints": [one.fingerprint for one in checkpoints],
            "images": digest.hexdigest(),
            "num_suspected": len(suspected),
            "num_held_out": len(held_out),
            "conditions": list(conditions),
            "texts": None if texts is None else [list(one) for one in texts],
            **dataclasses.asdict(settings),
        },
        key=["checkpoint", "part", "index"],
    )
    key = jax.random.key(settings.seed)

    @functools.lru_cache(maxsize=1)
    def model_of(place: int) -> ConditionalModel:
        model = checkpoints[place].load()
        if texts is None and not model.has_unconditional:
            raise ValueError(
                "without texts of the images audit asks the unconditional score, which this model "
                "lacks"
            )
        for t in settings.times:
            model.schedule.checked_timestep(t)
        return model

    def batch(keys: Sequence[Any], missing: list[Any]) -> Iterator[dict[str, Any]]:
        place, part, _ = keys[0]
        model, rows = model_of(place), [index for *_, index in keys]
        if part == SAMPLES:
            drawn = _draw(model, conditions, rows, key, settings)
            found: list[dict[str, Any]] = [
                {"ratio": float(r)} for r in nearest_ratio(drawn, references)
            ]
        else:
            which = (SUSPECTED, HELD_OUT).index(part)
            chosen = np.resize(rows, _BATCH)
            points = jnp.asarray(model.encode_image((suspected, held_out)[which][chosen]))
            said = None if texts is None else model.encode([texts[which][i] for i in chosen])
            found = [{"losses": one} for one in _losses_at(model, points, said, key, settings)]
            if part == HELD_OUT:
                for record, index in zip(found, rows, strict=False):
                    record["ratio"] = float(ratios[index])
        for row, record in zip(keys, found, strict=False):
            if row in missing:
                yield {"checkpoint": place, "part": part, "index": row[-1]} | record

    counts = {SUSPECTED: len(suspected), HELD_OUT: len(held_out), SAMPLES: settings.num_samples}
    batches = [
        [(place, part, index) for index in range(first, min(first + _BATCH, count))]
        for place in range(len(checkpoints))
        for part, count in counts.items()
        for first in range(0, count, _BATCH)
    ]
    run.work("auditing", batches, batch, note=lambda record: checkpoints[record["checkpoint"]].name)
    return [run.done[row] for rows in batches for row in rows]


def _losses_at(
    model: ConditionalModel,
    points: Array,
    conditions: Array | None,
    key: Array,
    settings: AuditSettings,
) -> list[list[float]]:
    num = settings.num_noises
    levels = [
        np.asarray(_losses(model, points, conditions, t, key, num=num)) for t in settings.times
    ]
    found = np.stack(levels, axis=1)
    if not (np.isfinite(found) & (found > 0)).all():
        raise ValueError("the losses of this checkpoint are not finite and positive: is it whole?")
    return found.astype(float).tolist()


@functools.partial(jax.jit, static_argnames="num")
def _losses(
    model: ConditionalModel,
    points: Array,
    conditions: Array | None,
    t: ArrayLike,
    key: Array,
    *,
    num: int,
) -> Array:
    level: Any = {"alpha": model.schedule.alpha(t), "sigma": model.schedule.sigma(t)}
    noises = jax.random.fold_in(jax.random.fold_in(key, 0), t)

    def one(given: tuple[Array, Array | None]) -> Array:
        z, condition = given
        known = condition is not None
        score = model.scores(condition, t).conditional if known else model.unconditional(t)
        return denoising_loss(score, z, **level, key=noises, num_samples=num).value / z.size

    return jax.lax.map(one, (points, conditions))


def _draw(
    model: ConditionalModel,
    conditions: Sequence[str],
    rows: Sequence[int],
    key: Array,
    settings: AuditSettings,
) -> np.ndarray:
    draws = jax.random.fold_in(key, 1)
    noise = jnp.stack([jax.random.normal(jax.random.fold_in(draws, i), model.shape) for i in rows])
    options: dict[str, Any] = {
        "noise": noise,
        "batch_size": _BATCH,
        "num_steps": settings.num_steps,
    }
    if not model.has_conditions:
        return model.sample(None, **options)
    names = [conditions[i % len(conditions)] for i in rows]
    return model.sample(names, guidance=settings.guidance, **options)
