r"""The exact-score oracle: every statistic of the score of the noised training set.

A network trained on a finite set with the denoising loss has as its optimum the score of the
noised training set itself, $p_t = \sum_i w_i N(\alpha y_i, \sigma^2 I)$: all of it without
a condition, one condition's images with it.  Its detection figures are no bound: a network blurs
the training set, and may tell more from less.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from sharpjax._reprs import one_line
from sharpjax._types import Array
from sharpjax.densities import Empirical
from sharpjax.detection.registry import at_time
from sharpjax.detection.settings import DetectSettings
from sharpjax.mesh.loops import over_points
from sharpjax.rundir.files import write_bytes
from sharpjax.schedules import NoiseSchedule
from sharpjax.score import ScorePair

TRAINING_SET_NAME = "training_set.safetensors"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """A planted training set: which images belong to which condition.

    Attributes:
        images: `(n, *shape)` in model range.
        conditions: `(n,)` owner of each image.
        num_conditions: how many there are; each is drawn equally often.
    """

    images: Array
    conditions: Array
    num_conditions: int = dataclasses.field(metadata={"static": True})

    __repr__ = one_line

    @classmethod
    def load(cls, directory: str | Path) -> "TrainingSet":
        """Read `training_set.safetensors`: `images` uint8 and `conditions`.

        Raises:
            FileNotFoundError: the model ships no training set.
            ValueError: the file is damaged or its tensors do not fit each other.
        """
        path = Path(directory) / TRAINING_SET_NAME
        if not path.is_file():
            raise FileNotFoundError(f"no {TRAINING_SET_NAME} in {directory}")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
        if set(tensors) != {"images", "conditions"}:
            raise ValueError(
                f"{path} must hold 'images' and 'conditions', it holds {sorted(tensors)}"
            )
        images, conditions = tensors["images"], tensors["conditions"]
        if images.dtype != np.uint8 or images.ndim != 4 or conditions.shape != images.shape[:1]:
            raise ValueError(
                f"{path}: images must be uint8 (n, channels, height, width) with one condition "
                f"each, got {images.dtype} {images.shape} and {conditions.shape}"
            )
        count = int(conditions.max()) + 1
        if conditions.min() < 0 or np.any(np.bincount(conditions, minlength=count) == 0):
            raise ValueError(f"{path}: every condition from 0 to {count - 1} needs an image")
        return cls(jnp.asarray(images / 127.5 - 1, jnp.float32), jnp.asarray(conditions), count)

    def save(self, directory: str | Path) -> Path:
        """Write `training_set.safetensors`; pixels are exact if the images came from uint8."""
        path = Path(directory) / TRAINING_SET_NAME
        pixels = np.round((np.asarray(self.images) + 1) * 127.5).astype(np.uint8)
        conditions = np.asarray(self.conditions, np.int32)
        write_bytes(path, save({"images": pixels, "conditions": conditions}))
        return path

    @property
    def set_sizes(self) -> Array:
        """Number of images of each condition, `(num_conditions,)`."""
        return jnp.bincount(self.conditions, length=self.num_conditions)

    def of(self, condition: int) -> np.ndarray:
        """The images of one condition."""
        return np.asarray(self.images)[np.asarray(self.conditions) == condition]

    def densities(
        self, condition: Array, *, alpha: Array, sigma: Array
    ) -> tuple[Empirical, Empirical]:
        """`(unconditional, conditional)` noised empirical densities at one level."""
        everything = 1.0 / (self.num_conditions * self.set_sizes[self.conditions])
        # Weight zero outside the condition: one shape for all, so one compilation.
        own = jnp.where(self.conditions == condition, 1.0 / self.set_sizes[condition], 0.0)
        return (
            Empirical(self.images, everything).noised(alpha, sigma),
            Empirical(self.images, own).noised(alpha, sigma),
        )

    def scores(self, condition: Array, *, alpha: Array, sigma: Array) -> ScorePair:
        """The exact scores of a condition at one level."""
        unconditional, conditional = self.densities(condition, alpha=alpha, sigma=sigma)
        return ScorePair(unconditional.score, conditional.score, alpha, sigma)


@functools.partial(jax.jit, static_argnames=("settings", "mesh"))
def exact_columns(
    training_set: TrainingSet,
    schedule: NoiseSchedule,
    conditions: Array,
    noises: Array,
    states: Array | None,
    *,
    settings: DetectSettings,
    mesh: Mesh | None,
) -> dict[str, Array]:
    """Columns of the exact score: of the first step, and of traces that are closed forms.

    Args:
        training_set: whose score it is.
        schedule: of the levels.
        conditions: numbers of them in the training set, `(batch,)`.
        noises: of `sharpjax.detection.compute.Columns`.
        states: that the traces were taken at, `(batch, trace noises, timesteps, *shape)`.
        settings: what to compute.
        mesh: devices that share the conditions.
    """
    first_step = settings.timesteps(schedule)[0]
    at_first = settings.chosen("first")
    levels = [one.statistic for one in settings.chosen("level")]
    closed_forms = {one.name: one.exact for one in levels if one.exact}

    # One point at a time: a batch of them would hold a copy of the training set each.
    def part(common: Any, batch: Any) -> Any:
        training_set, schedule = common

        def level(t: float) -> dict[str, Array]:
            return {"alpha": schedule.alpha(t), "sigma": schedule.sigma(t)}

        def per_condition(own: Any) -> Any:
            condition, noises, visited = own

            def first(x: Array) -> dict[str, Array]:
                pair = training_set.scores(condition, **level(first_step))
                return {f"{one.statistic.name}@{first_step}": one(pair, x) for one in at_first}

            def traces(visited: Array) -> dict[str, Array]:
                columns: dict[str, Array] = {}
                for t, x in zip(settings.trace_timesteps, visited, strict=True):
                    everything, own = training_set.densities(condition, **level(t))
                    dimensions = own.effective_dimension(x), everything.effective_dimension(x)
                    for name, exact in closed_forms.items():
                        columns[at_time(name, t)] = exact(*dimensions, level(t)["sigma"])
                return columns

            columns = jax.lax.map(first, noises)
            return columns | jax.lax.map(traces, visited) if closed_forms else columns

        return jax.lax.map(per_condition, batch)

    noises = jnp.broadcast_to(noises, (len(conditions), *noises.shape))
    states = noises if states is None else states
    return over_points(part, mesh, (training_set, schedule), (conditions, noises, states))
