r"""The exact-score oracle: what every statistic would be if the network were perfect.

A network trained on a finite set with the denoising loss has as its optimum the score of the
noised training set itself, :math:`p_t = \sum_i w_i N(\alpha y_i, \sigma^2 I)`: all of it without
a condition, one condition's images with it.  Its detection figures are the ceiling on a planted
data set.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from sharpjax._types import Array
from sharpjax.densities import Empirical
from sharpjax.reprs import one_line
from sharpjax.rundir import write_bytes
from sharpjax.score import ScorePair

TRAINING_SET_NAME = "training_set.safetensors"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """A planted training set: which images belong to which condition.

    Attributes:
        images: ``(n, *shape)`` in model range.
        conditions: ``(n,)`` owner of each image.
        num_conditions: how many there are; each is drawn equally often.
    """

    images: Array
    conditions: Array
    num_conditions: int = dataclasses.field(metadata={"static": True})

    __repr__ = one_line

    @classmethod
    def load(cls, directory: str | Path) -> "TrainingSet":
        """Read ``training_set.safetensors``: ``images`` uint8 and ``conditions``.

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
        """Write ``training_set.safetensors``; pixels are exact if the images came from uint8."""
        path = Path(directory) / TRAINING_SET_NAME
        pixels = np.round((np.asarray(self.images) + 1) * 127.5).astype(np.uint8)
        conditions = np.asarray(self.conditions, np.int32)
        write_bytes(path, save({"images": pixels, "conditions": conditions}))
        return path

    @property
    def set_sizes(self) -> Array:
        """Number of images of each condition, ``(num_conditions,)``."""
        return jnp.bincount(self.conditions, length=self.num_conditions)

    def of(self, condition: int) -> np.ndarray:
        """The images of one condition."""
        images: np.ndarray = np.asarray(self.images)[np.asarray(self.conditions) == condition]
        return images

    def densities(
        self, condition: Array, *, alpha: Array, sigma: Array
    ) -> tuple[Empirical, Empirical]:
        """``(unconditional, conditional)`` noised empirical densities at one level."""
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
