"""Images of prompts with and without mitigation into a directory; a run that was stopped goes on.

``images/sail-0.5/00012-1.png`` is the second image of the thirteenth prompt by that method at that
strength.  Every method begins at the same noise, which depends on the seed and these two numbers
alone, so images are compared one by one; and it is the noise of ``sharpjax sample``.
"""

import dataclasses
import functools
import hashlib
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sharpjax._types import Array, ArrayLike
from sharpjax.conditional import ConditionalModel
from sharpjax.curvature.loops import over_points
from sharpjax.detection.statistics import score_difference
from sharpjax.generation import to_picture, write_png
from sharpjax.mitigation.calibration import Levels, calibrate
from sharpjax.mitigation.descent import MAX_STEPS
from sharpjax.mitigation.methods import METHODS, NONE, losses_of, treat
from sharpjax.mitigation.perturbation import Vocabulary
from sharpjax.mitigation.problem import Problem, Treatment
from sharpjax.progress import progress
from sharpjax.rundir import append_lines, claim, make_folder, read_lines, within, write_text

RESULTS_NAME, LEVELS_NAME, IMAGES_NAME = "results.jsonl", "levels.json", "images"
_FIELDS = ("method", "strength", "index", "prompt", "images")
_BATCH = 8  # images at a time
_GROUP = 4  # prompts that are sampled together, and recomputed if the run is killed


@dataclasses.dataclass(frozen=True, kw_only=True)
class MitigationSettings:
    """What defines the images of a run, beside model and prompts.

    Attributes:
        num_images: of each prompt.
        num_steps: of the sampler.
        guidance: without mitigation.
        max_steps: of a descent.
        seed: of all noise.
    """

    num_images: int = 4
    num_steps: int = 50
    guidance: float = 7.5
    max_steps: int = MAX_STEPS
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_images", 1), ("num_steps", 1), ("max_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not np.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}")


@dataclasses.dataclass(frozen=True, order=True)
class Job:
    """One prompt by one method at one strength."""

    method: str
    strength: float
    index: int

    @property
    def folder(self) -> str:
        """Name of the images' folder."""
        return NONE if self.method == NONE else f"{self.method}-{self.strength:g}"


def jobs(index: Sequence[int], method: str, strengths: Sequence[float] = (0.0,)) -> list[Job]:
    """Prompts by a method, at every strength.

    Raises:
        ValueError: an unknown method.
    """
    if method != NONE and method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join((NONE, *METHODS))}")
    return [Job(method, float(strength), i) for strength in strengths for i in index]


def mitigate(
    model: ConditionalModel,
    prompts: Sequence[str],
    wanted: Sequence[Job],
    directory: str | Path,
    settings: MitigationSettings,
    *,
    clean: Sequence[str],
    vocabulary: Vocabulary,
    fingerprint: str,
    mesh: Mesh | None = None,
) -> list[dict[str, Any]]:
    """Do the jobs, or the rest of a run that was stopped.

    A job that fails (no room in the prompt, images that are not finite) is recorded with its error
    and a warning; the others go on.

    Args:
        model: of prompts.
        prompts: texts; may grow at their end when a run goes on.
        wanted: jobs on them.
        directory: of the run.
        settings: of all images.
        clean: prompts that are not memorized, for thresholds (:mod:`~.calibration`).
        vocabulary: the model's tokenizer.
        fingerprint: of the model; a run refuses to go on with another.
        mesh: devices that share the work.

    Returns:
        The record of every job, in order: ``images`` are files, or ``error`` says why there are
        none; ``evaluations`` of the network and ``seconds`` are an image's, sampling included;
        ``score_difference`` is that where the image starts; ``details`` are the method's.

    Raises:
        ValueError: no jobs, a directory with another run, or as :func:`calibrate`.
        FileExistsError, OSError: of the directory.
    """
    if not wanted:
        raise ValueError("no jobs: at least one prompt and one method are needed")
    folder, records = claim_run(directory, prompts, settings, fingerprint=fingerprint)
    path = folder / RESULTS_NAME
    key = jax.random.key(settings.seed)
    levels = _levels(folder, model, clean, key, settings, wanted, mesh)
    make_folder(folder / IMAGES_NAME)
    missing = [job for job in wanted if job not in records]
    with progress("mitigating", total=len(wanted), done=len(wanted) - len(missing)) as bar:
        for group in _groups(missing):
            for record in _group(
                model, prompts, group, folder, settings, key, levels, vocabulary, mesh
            ):
                append_lines(path, [record])
                records[Job(record["method"], record["strength"], record["index"])] = record
                bar.advance(note=group[0].folder)
    return [records[job] for job in wanted]


def claim_run(
    directory: str | Path,
    prompts: Sequence[str],
    settings: MitigationSettings,
    *,
    fingerprint: str,
) -> tuple[Path, dict[Job, dict[str, Any]]]:
    """The directory of a run of :func:`mitigate`, and the records that are there, before any work.

    Raises:
        ValueError, FileExistsError, OSError: another run, or one of other prompts.
    """
    defining = {"run": "mitigate", "model": fingerprint} | dataclasses.asdict(settings)
    folder = claim(directory, defining, what="mitigate")
    records = {
        Job(r["method"], r["strength"], r["index"]): r
        for r in read_lines(folder / RESULTS_NAME, _FIELDS)
    }
    for job, record in records.items():
        if job.index < len(prompts) and record["prompt"] != prompts[job.index]:
            raise ValueError(
                f"{folder} holds images of other prompts: number {job.index} is "
                f"{record['prompt']!r} there, {prompts[job.index]!r} now; repeat its prompts in "
                "their order (more may follow), or choose another directory"
            )
    return folder, records


def _groups(missing: Sequence[Job]) -> list[list[Job]]:
    """Jobs of one method and strength, a few at a time."""
    by_kind: dict[tuple[str, float], list[Job]] = {}
    for job in missing:
        by_kind.setdefault((job.method, job.strength), []).append(job)
    return [
        same[start : start + _GROUP]
        for same in by_kind.values()
        for start in range(0, len(same), _GROUP)
    ]


def _group(
    model: ConditionalModel,
    prompts: Sequence[str],
    group: Sequence[Job],
    folder: Path,
    settings: MitigationSettings,
    key: Array,
    levels: Levels,
    vocabulary: Vocabulary,
    mesh: Mesh | None,
) -> Iterator[dict[str, Any]]:
    """Records of the jobs of one method and strength, their images written."""
    begin = time.perf_counter()
    treatments: dict[Job, Treatment] = {}
    errors: dict[Job, str] = {}
    for job in group:
        problem = Problem(
            model, prompts[job.index], initial_noise(key, job.index, settings, model.shape),
            jax.random.fold_in(jax.random.fold_in(key, job.index), 2**31 - 1),
            settings.guidance, settings.num_steps, levels, vocabulary, settings.max_steps, mesh,
        )  # fmt: skip
        try:
            treatments[job] = treat(job.method, problem, job.strength)
        except ValueError as error:
            errors[job] = str(error)
            warnings.warn(f"{job.method} at {job.strength:g}: {error}", stacklevel=4)
    done = list(treatments.values())
    pixels = lengths = np.empty(0)
    if done:
        pixels = _sample(model, done, settings, mesh)
        lengths = _score_differences(model, done, settings, mesh)
    count = settings.num_images
    seconds = (time.perf_counter() - begin) / (len(group) * count)
    for job in group:
        record: dict[str, Any] = {
            "method": job.method, "strength": job.strength, "index": job.index,
            "prompt": prompts[job.index], "images": [],
        }  # fmt: skip
        if job in treatments:
            treatment = treatments[job]
            start = count * list(treatments).index(job)
            record |= {
                "evaluations": [
                    float(n) + _of_sampling(treatment.guidance, settings)
                    for n in treatment.evaluations
                ],
                "seconds": seconds,
                "score_difference": lengths[start : start + count].tolist(),
                "details": treatment.details,
            }
            try:
                pictures = [
                    to_picture(pixels[start + j], f"image {j} of {prompts[job.index]!r}")
                    for j in range(count)
                ]
            except ValueError as error:
                errors[job] = str(error)
                warnings.warn(f"{job.method} at {job.strength:g}: {error}", stacklevel=4)
            else:
                for j, image in enumerate(pictures):
                    file = folder / IMAGES_NAME / job.folder / f"{job.index:05d}-{j}.png"
                    make_folder(file.parent)
                    write_png(file, image)
                    record["images"].append(str(file.relative_to(folder)))
        if job in errors:
            record["error"] = errors[job]
        yield record


def initial_noise(
    key: Array, index: int, settings: MitigationSettings, shape: tuple[int, ...]
) -> Array:
    """Noises of the images of one prompt, those that ``sharpjax sample`` has."""
    keys = [
        jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, index), j), 0)
        for j in range(settings.num_images)
    ]
    return jnp.stack([jax.random.normal(k, shape) for k in keys])


def _sample(
    model: ConditionalModel,
    treatments: Sequence[Treatment],
    settings: MitigationSettings,
    mesh: Mesh | None,
) -> np.ndarray:
    """Images of all treatments, which share method and strength, and so the guidance."""
    return model.sample(
        jnp.concatenate([one.context for one in treatments]),
        noise=jnp.concatenate([one.noise for one in treatments]),
        num_steps=settings.num_steps,
        guidance=treatments[0].guidance,
        batch_size=_BATCH,
        mesh=mesh,
    )


def _score_differences(
    model: ConditionalModel,
    treatments: Sequence[Treatment],
    settings: MitigationSettings,
    mesh: Mesh | None,
) -> np.ndarray:
    """``‖s_D‖`` where each image starts, with the condition that it is sampled under."""
    contexts = jnp.concatenate([one.context for one in treatments])
    noise = jnp.concatenate([one.noise for one in treatments])
    t = int(model.schedule.timesteps_with_signal(settings.num_steps)[0])
    found = []
    for start in range(0, len(noise), _BATCH):
        rows = np.arange(start, start + _BATCH) % len(noise)
        found.append(_lengths(model, contexts[rows], noise[rows], t, mesh=mesh))
    return np.concatenate(found)[: len(noise)]


@functools.partial(jax.jit, static_argnames="mesh")
def _lengths(
    model: ConditionalModel, contexts: Array, noise: Array, t: ArrayLike, *, mesh: Mesh | None
) -> Array:
    def one(common: Any, row: Any) -> Array:
        model, t = common
        context, x = row
        return score_difference(model.scores(context, t), x)

    result: Array = over_points(jax.vmap(one, (None, 0)), mesh, (model, t), (contexts, noise))
    return result


def _of_sampling(guidance: float | np.ndarray, settings: MitigationSettings) -> int:
    """Forward passes of sampling an image: both scores in a step, or one where one is enough."""
    weights = np.broadcast_to(guidance, settings.num_steps)
    return int(np.sum(np.where((weights == 0) | (weights == 1), 1, 2)))


def _levels(
    folder: Path,
    model: ConditionalModel,
    clean: Sequence[str],
    key: Array,
    settings: MitigationSettings,
    wanted: Sequence[Job],
    mesh: Mesh | None,
) -> Levels:
    """Clean prompts' losses, computed once a run."""
    names = losses_of(dict.fromkeys(job.method for job in wanted))
    if not names:
        return Levels({})
    path, digest = (
        within(folder, LEVELS_NAME),
        hashlib.sha256(json.dumps(list(clean)).encode()).hexdigest(),
    )
    if path.is_file():
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["clean"] != digest:
            raise ValueError(
                f"{folder} has its thresholds from other clean prompts; repeat those, or choose "
                "another directory"
            )
        found = Levels.from_json(document["values"])
        if set(names) <= found.values.keys():
            return found
    levels = calibrate(
        model, clean, jax.random.fold_in(key, 2**31 - 2), names=names,
        num_steps=settings.num_steps, mesh=mesh,
    )  # fmt: skip
    document = {"clean": digest, "values": levels.as_json()}
    write_text(path, json.dumps(document) + "\n")
    return levels
