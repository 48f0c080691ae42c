"""Images of prompts with and without mitigation into a directory; a run that was stopped goes on.

`images/sail-0.5/00012-1.png` is the second image of the thirteenth prompt by that method at that
strength.  Every method begins at the same noise, which depends on the seed and these two numbers
alone, so images are compared one by one; and it is the noise of `sharpjax sample`.
"""

import dataclasses
import functools
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sharpjax._types import Array, ArrayLike
from sharpjax.conditional import ConditionalModel, digest
from sharpjax.detection.statistics import score_difference
from sharpjax.mesh.loops import over_points
from sharpjax.mitigation.levels import SCREEN, Levels, calibrate
from sharpjax.mitigation.methods import NONE, losses_of, treat
from sharpjax.mitigation.problem import PENALTY, Problem, Treatment, Vocabulary
from sharpjax.mitigation.screen_calibration import ScreenCalibration
from sharpjax.pictures import write_png
from sharpjax.rundir.files import make_folder, within, write_text
from sharpjax.rundir.run import Run
from sharpjax.runs.sample import to_picture

LEVELS_NAME, IMAGES_NAME = "levels.json", "images"
_BATCH = 8  # images at a time
_GROUP = 4  # prompts that are sampled together, and recomputed if the run is killed


@dataclasses.dataclass(frozen=True, kw_only=True)
class MitigationSettings:
    """What defines the images of a run, beside model and prompts.

    Attributes:
        num_images: of each prompt.
        num_steps: of the sampler.
        guidance: without mitigation.
        max_steps: of a descent, at most; None leaves it to the method.
        penalty: of the noise's length in SAIL's loss (`.problem.Problem`).
        screen: a digest of the screen that is used; None: set by clean prompts in the run.
        seed: of all noise.
    """

    num_images: int = 4
    num_steps: int = 50
    guidance: float = 7.5
    max_steps: int | None = None
    penalty: float = PENALTY
    screen: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_images", 1), ("num_steps", 1), ("max_steps", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(f"penalty must be a finite number >= 0, got {self.penalty}")
        if not np.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}")


class Job(NamedTuple):
    """One prompt by one method at one strength."""

    method: str
    strength: float
    place: int

    @property
    def folder(self) -> str:
        """Name of the images' folder."""
        return NONE if self.method == NONE else f"{self.method}-{self.strength:g}"


def jobs(index: Sequence[int], method: str, strengths: Sequence[float] = (0.0,)) -> list[Job]:
    """Prompts by a method, at every strength."""
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
    fingerprint: str | None = None,
    screen: ScreenCalibration | None = None,
    mesh: Mesh | None = None,
) -> list[dict[str, Any]]:
    """Do the jobs, or the rest of a run that was stopped.

    A job that fails (images that are not finite, a model that a method is not for) is recorded with
    its error and a warning; the others go on.

    Args:
        model: of prompts.
        prompts: texts; may grow at their end when a run goes on.
        wanted: jobs on them.
        directory: of the run.
        settings: of all images.
        clean: prompts that are not memorized, for thresholds (`.calibration`).
        vocabulary: the model's tokenizer.
        fingerprint: of the model, which a run goes on with alone; `None`: a digest of its arrays.
        screen: of `screened` and `ranked`; `settings.screen` is its digest.
        mesh: devices that share the work.

    Returns:
        The record of every job, in order: `images` are files, None of one for which the method
        found no noise, or `error` says why there are none; `evaluations` of the network and
        `seconds` are an image's, sampling included; `score_difference` is that where the image
        starts; `details` are the method's.

    Raises:
        ValueError: no jobs, a directory with another run, or as `calibrate`.
        FileExistsError, OSError: of the directory.
    """
    fingerprint = fingerprint or digest(model)
    if not getattr(model, "takes_prompts", True):
        raise ValueError(
            "mitigate is for models of prompts; sharpjax.mitigation.sail takes any pair of scores"
        )
    if not wanted:
        raise ValueError("no jobs: at least one prompt and one method are needed")
    run = claim_run(directory, prompts, settings, fingerprint=fingerprint)
    key = jax.random.key(settings.seed)
    how: dict[str, Any] = {}
    if screen is not None:
        screen.check(fingerprint, settings.num_steps, settings.guidance)
        how = {"look": screen.look(), "free": screen.free}
    levels = _levels(run.folder, model, clean, key, settings, wanted, mesh, screen)
    run.make_folder(IMAGES_NAME)

    def problem(job: Job) -> Problem:
        own = jax.random.fold_in(key, job.place)
        keys = [
            jax.random.fold_in(jax.random.fold_in(own, j), 0) for j in range(settings.num_images)
        ]
        return Problem(
            model,
            prompts[job.place],
            jnp.stack([jax.random.normal(k, model.shape) for k in keys]),  # of `sharpjax sample`
            jax.random.fold_in(own, 2**31 - 1),
            settings.guidance,
            settings.num_steps,
            levels,
            vocabulary,
            settings.max_steps,
            settings.penalty,
            mesh,
            **how,
        )

    group = functools.partial(_group, problem, run.folder, settings)
    run.work("mitigating", _groups(wanted), group, note=lambda record: record["method"])
    return [run.done[job] for job in wanted]


def claim_run(
    directory: str | Path, prompts: Sequence[str], settings: MitigationSettings, *, fingerprint: str
) -> Run:
    """The run of `mitigate`, and the records that are there, before any work.

    Raises:
        ValueError, FileExistsError, OSError: another run, or one of other prompts.
    """
    run = Run.claim(
        directory,
        "mitigate",
        {"model": fingerprint} | dataclasses.asdict(settings),
        key=["method", "strength", "index"],
        fields=["prompt", "images"],
    )
    run.check_prompts(prompts)
    return run


def _groups(wanted: Sequence[Job]) -> list[list[Job]]:
    """Jobs of one method and strength, a few at a time."""
    by_kind: dict[tuple[str, float], list[Job]] = {}
    for job in dict.fromkeys(wanted):
        by_kind.setdefault((job.method, job.strength), []).append(job)
    return [
        same[start : start + _GROUP]
        for same in by_kind.values()
        for start in range(0, len(same), _GROUP)
    ]


def _group(
    problem: Callable[[Job], Problem],
    folder: Path,
    settings: MitigationSettings,
    group: Sequence[Job],
    missing: Sequence[Job],
) -> Iterator[dict[str, Any]]:
    """Records of the missing jobs of one method and strength, their images written."""
    begin = time.perf_counter()
    problems = {job: problem(job) for job in group}
    treatments: dict[Job, Treatment] = {}
    errors: dict[Job, str] = {}

    def failed(job: Job, error: ValueError) -> None:
        errors[job] = str(error)
        warnings.warn(f"{job.method} at {job.strength:g}: {error}", stacklevel=5)

    for job in group:
        try:
            treatments[job] = treat(job.method, problems[job], job.strength)
        except ValueError as error:
            failed(job, error)
    done = list(treatments.values())
    pixels = lengths = np.empty(0)
    if done:
        model, mesh = problems[group[0]].model, problems[group[0]].mesh
        pixels = model.sample(
            jnp.concatenate([one.context for one in done]),
            noise=jnp.concatenate([one.noise for one in done]),
            num_steps=settings.num_steps,
            guidance=np.concatenate([_weights(one.guidance, one, settings) for one in done]),
            batch_size=_BATCH,
            mesh=mesh,
            **_of_attention(done, settings),
        )
        lengths = _score_differences(model, done, settings, mesh)
    count = settings.num_images
    seconds = (time.perf_counter() - begin) / (len(group) * count)
    for job in missing:
        record: dict[str, Any] = {
            "method": job.method,
            "strength": job.strength,
            "index": job.place,
            "prompt": problems[job].prompt,
            "images": [],
        }
        if job in treatments:
            treatment = treatments[job]
            start = count * list(treatments).index(job)
            evaluations = treatment.evaluations + _of_sampling(treatment, settings)
            record |= {
                "evaluations": evaluations.tolist(),
                "seconds": seconds,
                "score_difference": lengths[start : start + count].tolist(),
                "details": treatment.details,
            }
            refused = np.zeros(count, bool) if treatment.refused is None else treatment.refused
            try:
                pictures = [
                    None
                    if refused[j]
                    else to_picture(pixels[start + j], f"image {j} of {problems[job].prompt!r}")
                    for j in range(count)
                ]
            except ValueError as error:
                failed(job, error)
            else:
                for j, image in enumerate(pictures):
                    if image is None:
                        record["images"].append(None)
                        continue
                    file = folder / IMAGES_NAME / job.folder / f"{job.place:05d}-{j}.png"
                    make_folder(file.parent)
                    write_png(file, image)
                    record["images"].append(str(file.relative_to(folder)))
        if job in errors:
            record["error"] = errors[job]
        yield record


def _score_differences(
    model: ConditionalModel,
    treatments: Sequence[Treatment],
    settings: MitigationSettings,
    mesh: Mesh | None,
) -> np.ndarray:
    """`‖s_D‖` where each image starts, with the condition that it is sampled under."""
    contexts = jnp.concatenate([one.context for one in treatments])
    noise = jnp.concatenate([one.noise for one in treatments])
    t = model.schedule.first_step(settings.num_steps)
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

    return over_points(jax.vmap(one, (None, 0)), mesh, (model, t), (contexts, noise))


def _weights(
    given: float | np.ndarray, treatment: Treatment, settings: MitigationSettings
) -> np.ndarray:
    """Of each image at each step, `(n, num_steps)`."""
    return np.broadcast_to(np.asarray(given, float), (len(treatment.noise), settings.num_steps))


def _of_attention(done: Sequence[Treatment], settings: MitigationSettings) -> dict[str, Any]:
    """What `sample` is told of the attention, of treatments by one method; mostly nothing."""
    if (first := done[0].attention) is None:
        return {}
    rest: list[Any] = [one.attention for one in done[1:]]
    against = [_weights(one.repulsion, one, settings) for one in done]
    return {
        "attention": jax.tree.map(lambda *rows: jnp.concatenate(rows), first, *rest),
        "repulsion": np.concatenate(against) if np.any(against) else 0.0,
    }


def _of_sampling(treatment: Treatment, settings: MitigationSettings) -> np.ndarray:
    """Forward passes of sampling each image: both scores in a step, or one where one is enough.

    A third, where something leads away from the prompt as it is.
    """
    guidance = _weights(treatment.guidance, treatment, settings)
    repelled = _weights(treatment.repulsion, treatment, settings) != 0
    one_is_enough = ~repelled & ((guidance == 0) | (guidance == 1))
    return np.sum(np.where(one_is_enough, 1, 2) + repelled, axis=1)


def _levels(
    folder: Path,
    model: ConditionalModel,
    clean: Sequence[str],
    key: Array,
    settings: MitigationSettings,
    wanted: Sequence[Job],
    mesh: Mesh | None,
    screen: ScreenCalibration | None,
) -> Levels:
    """Clean prompts' losses, computed once a run; those of a screen that was set come with it."""
    names = losses_of(dict.fromkeys(job.method for job in wanted))
    told = {} if screen is None else {SCREEN: screen.clean}
    rest = tuple(name for name in names if name not in told)
    found = _clean_levels(folder, model, clean, key, settings, rest, mesh) if rest else {}
    return Levels(told | found)


def _clean_levels(
    folder: Path,
    model: ConditionalModel,
    clean: Sequence[str],
    key: Array,
    settings: MitigationSettings,
    names: tuple[str, ...],
    mesh: Mesh | None,
) -> dict[str, np.ndarray]:
    path = within(folder, LEVELS_NAME)
    digest = hashlib.sha256(json.dumps(list(clean)).encode()).hexdigest()
    if path.is_file():
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["clean"] != digest:
            raise ValueError(
                f"{folder} has its thresholds from other clean prompts; repeat those, or choose "
                "another directory"
            )
        found = {k: np.array(v, float) for k, v in document["values"].items()}
        if set(names) <= found.keys():
            return found
    levels = calibrate(
        model, clean, jax.random.fold_in(key, 2**31 - 2), names=names,
        num_steps=settings.num_steps, guidance=settings.guidance, mesh=mesh,
    )  # fmt: skip
    document = {"clean": digest, "values": {k: v.tolist() for k, v in levels.values.items()}}
    write_text(path, json.dumps(document) + "\n")
    return levels.values
