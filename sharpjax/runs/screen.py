"""Setting a screen: paths of clean prompts, and of memorized ones with their ends; resumable."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sharpjax.mitigation.judging import Judge
from sharpjax.mitigation.screen import FREE, QUANTITIES, Look, Quantity, screened
from sharpjax.mitigation.screen_calibration import ScreenCalibration
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.rundir.run import Run

_CLEAN, _BATCH = 16, 16  # clean prompts in a unit of work, and paths at a time
_ALL = 1e30  # beyond every value: a look that all paths pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScreenSettings:
    """What defines a screen, beside its prompts.

    Attributes:
        quantity: of `sharpjax.mitigation.screen.QUANTITIES`.
        step: before which is looked; half-way when left out.
        num_probes: of the effective dimension.
        num_images: of every memorized prompt.
        num_steps: of the sampler.
        guidance: after the free steps; the model's own when left out.
        free: share of the steps without guidance.
        seed: of all noise.
    """

    quantity: Quantity = "effective_dimension"
    step: int | None = None
    num_probes: int = 8
    num_images: int = 16
    num_steps: int = 50
    guidance: float | None = None
    free: float = FREE
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_images", "num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        _ = self.look  # checks its own

    @property
    def look(self) -> Look:
        """One that all paths pass."""
        step = max(self.num_steps // 2, 1) if self.step is None else self.step
        none = -_ALL * QUANTITIES.get(self.quantity, 1)
        return Look(quantity=self.quantity, step=step, threshold=none, num_probes=self.num_probes)


def set_screen(
    model: LatentDiffusion,
    clean: Sequence[str],
    memorized: Sequence[str],
    judge: Judge | None,
    directory: str | Path,
    settings: ScreenSettings,
    *,
    fingerprint: str,
    mesh: Mesh | None = None,
) -> ScreenCalibration:
    """Look at the paths of all prompts, or finish a run that was stopped.

    Args:
        model: of prompts.
        clean: certainly not memorized, of the kind that will be asked for.
        memorized: verified ones that set nothing else; may be none: then nothing is bounded.
        judge: of their copies; needed with them.
        directory: of the run.
        settings: of sampler and look.
        fingerprint: of the model.
        mesh: devices that share a batch of paths.

    Raises:
        ValueError: fewer than two clean prompts, one that is of both kinds, memorized ones without
            a judge, or another run in the directory.
    """
    if len(clean) < 2:
        raise ValueError(f"a screen needs at least two clean prompts, got {len(clean)}")
    if both := sorted(set(clean) & set(memorized)):
        raise ValueError(f"{both[0]!r} is given as clean and as memorized")
    if memorized and judge is None:
        raise ValueError("memorized prompts need a judge of their copies")
    own = model.default_guidance
    guidance = float(own if settings.guidance is None else settings.guidance)
    model.check([*clean, *memorized])
    digest = hashlib.sha256(json.dumps([list(clean), list(memorized)]).encode()).hexdigest()
    about = dataclasses.asdict(settings) | {"guidance": guidance, "prompts": digest}
    about |= {"model": fingerprint, "judge": None if judge is None else judge.threshold}
    run = Run.claim(directory, "screen", about, key=["prompt"], fields=["values", "copied"])
    key = jax.random.key(settings.seed)
    places = {prompt: place for place, prompt in enumerate([*clean, *memorized])}

    def look(group: Sequence[str], missing: Sequence[str]) -> Iterator[dict[str, Any]]:
        is_clean = group[0] not in memorized
        found = screened(
            model, group, jax.random.fold_in(key, places[group[0]]), looks=[settings.look],
            num_images=1 if is_clean else settings.num_images, max_tries=1, guidance=guidance,
            free=settings.free, num_steps=settings.num_steps, batch_size=_BATCH,
            complete=not is_clean, mesh=mesh,
        )  # fmt: skip
        for row, prompt in enumerate(group):
            if prompt not in missing:
                continue
            values = [tries[0][0] for tries in found.values[row]]
            if not np.isfinite(values).all():
                raise ValueError(f"a path of {prompt!r} has a value that is NaN or infinite")
            copied = None
            if judge is not None and not is_clean:
                images = np.clip(model.decode(found.examples[row]), -1, 1)
                copied = judge(images, [prompt] * len(images)).copied.tolist()
            yield {"prompt": prompt, "values": values, "copied": copied}

    groups = [list(clean[i : i + _CLEAN]) for i in range(0, len(clean), _CLEAN)]
    run.work("looking", [*groups, *([one] for one in memorized)], look)
    return ScreenCalibration(
        model=fingerprint,
        quantity=settings.quantity,
        step=settings.look.step,
        num_probes=settings.num_probes,
        num_steps=settings.num_steps,
        guidance=guidance,
        free=settings.free,
        clean=np.array([run.done[prompt]["values"][0] for prompt in clean]),
        memorized={
            prompt: (
                np.array(run.done[prompt]["values"], float),
                np.array(run.done[prompt]["copied"], bool),
            )
            for prompt in memorized
        },
    )
