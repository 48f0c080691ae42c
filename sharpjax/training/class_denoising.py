r"""Denoising of images by their class, of any prediction type.

The loss is the mean over pixels, examples and uniform timesteps of
$\|f_\theta(\alpha_t x_0 + \sigma_t \epsilon, t, c) - y\|^2$, with the target `y` that the
schedule's `prediction_type` names (Ho et al. 2020, arXiv:2006.11239, for the noise).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._reprs import one_line
from sharpjax.schedules import Schedule
from sharpjax.training.loop import digest


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Data:
    """A training set on the device: `images (n, ...)`, and a table of each condition's images.

    `members` is `(num_conditions, largest set)`, rows padded by repetition of valid indices;
    `sizes` is `(num_conditions,)`; `groups` names the group whose loss a condition is
    reported in.
    """

    images: jax.Array
    members: jax.Array
    sizes: jax.Array
    groups: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    __repr__ = one_line

    @classmethod
    def create(cls, images: np.ndarray, conditions: np.ndarray, groups: tuple[str, ...]) -> "Data":
        """From images and the condition of each, an index into `groups`.

        Raises:
            ValueError: images and conditions do not fit, or a condition has no image.
        """
        conditions = np.asarray(conditions)
        if conditions.shape != np.shape(images)[:1]:
            raise ValueError(
                f"images and conditions must be equally many, got {np.shape(images)[:1]} and "
                f"{conditions.shape}"
            )
        if not np.array_equal(np.unique(conditions), np.arange(len(groups))):
            raise ValueError(
                f"every condition in 0..{len(groups) - 1} needs an image and there may be no "
                f"other, got {np.unique(conditions).tolist()}"
            )
        sizes = np.bincount(conditions, minlength=len(groups))
        rows = [np.resize(np.flatnonzero(conditions == c), sizes.max()) for c in range(len(groups))]
        return cls(jnp.asarray(images), jnp.asarray(np.stack(rows)), jnp.asarray(sizes), groups)


class Denoising:
    """Noised examples of a `schedule`, and the square error of what is predicted from them."""

    schedule: Schedule

    def noised(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The noised examples and the targets."""
        return (
            jax.vmap(self.schedule.add_noise)(x0, noise, t),
            jax.vmap(self.schedule.target)(x0, noise, t),
        )

    def losses(self, model: Any, batch: Any) -> jax.Array:
        """Mean square error of each example, `(n,)`."""
        x, t, condition, target = batch
        return jnp.mean((model(x, t, condition) - target) ** 2, axis=tuple(range(1, x.ndim)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassDenoising(Denoising):
    """Conditions are drawn equally often, and of a condition its images.

    Attributes:
        data: the training set.
        schedule: its levels and what the network predicts.
        condition_dropout: fraction of examples trained with the null condition, the class after
            the last.
    """

    data: Data
    schedule: Schedule
    condition_dropout: float = dataclasses.field(default=0.2, metadata={"static": True})

    __repr__ = one_line

    def __post_init__(self) -> None:
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"condition_dropout must lie in [0, 1), got {self.condition_dropout}")

    @property
    def groups(self) -> tuple[str, ...]:
        """Whose losses are reported apart."""
        return tuple(dict.fromkeys(self.data.groups))

    def batch(self, key: jax.Array, n: int) -> tuple[Any, jax.Array]:
        """Noised images, timesteps, labels and targets; the group of each."""
        x0, labels, t, noise, condition = draw(self, key, n)
        x, target = self.noised(x0, noise, t)
        group = jnp.array([self.groups.index(name) for name in self.data.groups])
        return (x, t, labels, target), group[condition]

    def identity(self) -> dict[str, Any]:
        """What tells this task from another."""
        images = np.asarray(self.data.images)
        return {
            "condition_dropout": self.condition_dropout,
            "schedule": self.schedule.to_config(),
            "images": list(images.shape),
            "images_sha256": digest(images),
            "conditions": len(self.data.groups),
        }


def draw(task: ClassDenoising, key: jax.Array, n: int) -> tuple[jax.Array, ...]:
    """One batch: images, labels (null = number of conditions), timesteps, noise, conditions."""
    data = task.data
    keys = jax.random.split(key, 6)
    null = data.members.shape[0]
    condition = jax.random.randint(keys[0], (n,), 0, null)
    member = jax.random.randint(keys[1], (n,), 0, data.sizes[condition])
    x0 = data.images[data.members[condition, member]]
    dropped = jax.random.bernoulli(keys[2], task.condition_dropout, (n,))
    t = jax.random.permutation(keys[4], task.schedule.stratified_timesteps(keys[3], n))
    labels = jnp.where(dropped, null, condition)
    return x0, labels, t, jax.random.normal(keys[5], x0.shape), condition
