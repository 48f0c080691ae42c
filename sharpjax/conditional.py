"""What detection and mitigation know of a model."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array, ArrayLike, Score
from sharpjax.schedules import NoiseSchedule
from sharpjax.score import ScorePair


class ConditionalModel(Protocol):
    """A diffusion model with conditions: digits, prompts, anything that can be encoded.

    A pytree, so that it crosses `jax.jit` as an argument.
    """

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule and its sampling grid."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example, channels first."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, channels first."""

    def encode_image(self, images: ArrayLike) -> Array:
        """States at the end of sampling of images, -1 to 1; what `decode` turns back."""

    def check(self, names: Sequence[str]) -> None:
        """Raise or warn of what `encode` would, without its work."""

    def decode(self, examples: Array) -> np.ndarray:
        """Images `(n, channels, height, width)`, -1 to 1, of states at the end of sampling."""

    def encode(self, names: Sequence[str]) -> Array:
        """Encoded conditions, stacked along the first axis."""

    @property
    def has_conditions(self) -> bool:
        """Whether `encode` and `scores` can be asked."""

    @property
    def has_unconditional(self) -> bool:
        """Whether `unconditional` can be asked."""

    def unconditional(self, t: ArrayLike) -> Score:
        """The score without a condition at timestep `t`."""

    def scores(self, condition: Any, t: ArrayLike) -> ScorePair:
        """The pair of scores of one condition, a name or an encoded one, at timestep `t`."""

    def predictions(self, condition: Any, t: ArrayLike) -> Callable[[Array], Array]:
        """What the network predicts without and with an encoded condition, `x -> (2, *shape)`.

        Of the schedule's `prediction_type`.  Asked only where a path starts at `alpha = 0`,
        from where scores do not lead on.
        """

    @property
    def sample(self) -> Callable[..., np.ndarray]:
        """`(conditions, key, **options)`: one example per condition; a method, as a rule."""


def digest(model: ConditionalModel) -> str:
    """What tells a model in memory from another: 16 hexadecimal digits of all its arrays.

    Functions that it is made of do not count.  `sharpjax.checkpoints.fingerprint` is that of files.

    Raises:
        ValueError: it is no pytree of arrays.
    """
    total = hashlib.sha256(type(model).__qualname__.encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float):
            raise ValueError(
                f"{type(model).__name__} is no pytree of arrays: pass fingerprint=, a text that "
                "tells this model from others"
            )
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue  # of networks that could be trained
        array = np.ascontiguousarray(leaf)
        where = jax.tree_util.keystr(path)
        total.update(f"{where} {array.shape} {array.dtype}".encode() + array.tobytes())
    return total.hexdigest()[:16]


def unconditional_pair(model: ConditionalModel, t: ArrayLike) -> ScorePair:
    """The score without a condition on both sides, with its noise level."""
    score = model.unconditional(t)
    return ScorePair(score, score, model.schedule.alpha(t), model.schedule.sigma(t))
