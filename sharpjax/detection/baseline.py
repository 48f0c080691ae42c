r"""An earlier checkpoint in place of the unconditional score.

Every statistic of a difference compares $s_c$ with $s_u$.  Training that repeats a picture moves
the score under its caption and leaves that of an earlier checkpoint where it was, so

$$
s_D(x) = s_c^{\text{model}}(x, c) - s_c^{\text{baseline}}(x, c)
$$

holds what was learned between the two, and not what a caption says at all (Kim & Lee 2026, whose
best figures are with it).  Paths are the model's own: guidance leads by its own two scores.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import Array, ArrayLike, Score
from sharpjax.conditional import ConditionalModel
from sharpjax.schedules import Schedule
from sharpjax.score import ScorePair

# of the model's unconditional score alone, or of its conditions: no difference of two models
NOT_COMPARED = ("p_laplacian", "condition_jacobian")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Baseline:
    """A conditional model whose differences are those from another model under the same condition.

    Attributes:
        model: that is judged.
        other: that it is compared with, of the same states, schedule and conditions.
    """

    model: Any
    other: Any

    @classmethod
    def of(cls, model: ConditionalModel, other: ConditionalModel) -> "Baseline":
        """Both, if their scores can be subtracted.

        Raises:
            ValueError: other states, schedule, autoencoder or encoded conditions.
        """
        check_same_model("the baseline", model, other)
        return cls(model, other)

    @property
    def is_alike(self) -> bool:
        """Whether both hold the same numbers, as a copy in other files does."""
        own, its = (jax.tree.leaves(one) for one in (self.model, self.other))
        return len(own) == len(its) and all(
            a.shape == b.shape and bool(jnp.array_equal(a, b))
            for a, b in zip(own, its, strict=True)
        )

    @property
    def schedule(self) -> Schedule:
        """Of both."""
        return self.model.schedule

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self.model.shape

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.model.image_shape

    @property
    def has_conditions(self) -> bool:
        """Whether `encode` can be asked."""
        return self.model.has_conditions

    @property
    def has_unconditional(self) -> bool:
        """True: what stands in its place."""
        return True

    def encode_image(self, images: ArrayLike) -> Array:
        """Of the model."""
        return self.model.encode_image(images)

    def decode(self, examples: Array) -> np.ndarray:
        """Of the model."""
        return self.model.decode(examples)

    def check(self, names: Sequence[str]) -> None:
        """Of the model."""
        self.model.check(names)

    def encode(self, names: Sequence[str]) -> Array:
        """What each of the two encodes, `(n, 2, ...)`."""
        return jnp.stack([self.model.encode(names), self.other.encode(names)], axis=1)

    def scores(self, condition: Array, t: ArrayLike) -> ScorePair:
        """The other's score of a condition as the unconditional one, the model's beside it."""
        own = self.model.scores(condition[0], t)
        its = self.other.scores(condition[1], t)
        return ScorePair(its.conditional, own.conditional, own.alpha, own.sigma)

    def predictions(self, condition: Array, t: ArrayLike) -> Callable[[Array], Array]:
        """Likewise of what the networks predict."""
        own, its = self.model.predictions(condition[0], t), self.other.predictions(condition[1], t)
        return lambda x: jnp.stack([its(x)[1], own(x)[1]])

    def unconditional(self, t: ArrayLike) -> Score:
        """None is shared by all conditions.

        Raises:
            ValueError: always.
        """
        raise ValueError("a baseline stands in place of the unconditional score, under a condition")

    @property
    def sample(self) -> Callable[..., np.ndarray]:
        """Of the model."""
        return self.model.sample


def check_same_model(what: str, model: ConditionalModel, other: ConditionalModel) -> None:
    """See that scores of another model can be compared with those of `model`.

    Raises:
        ValueError: other states, schedule, autoencoder or encoded conditions.
    """
    for of, own, its in _comparisons(model, other):
        if own != its:
            if isinstance(own, dict):  # all of it is long, and the same at its beginning
                keys = [key for key in own | its if own.get(key) != its.get(key)]
                own, its = (
                    ", ".join(f"{key} = {one.get(key)}" for key in keys) for one in (own, its)
                )
            raise ValueError(
                f"{what} must be another checkpoint of the same model: its {of} is {its!s:.80}, "
                f"the model's {own!s:.80}"
            )


def _comparisons(model: Any, other: Any) -> list[tuple[str, Any, Any]]:
    """What has to be the same, in words, and what it is."""
    both = model, other
    found = [
        ("kind", *[type(one).__name__ for one in both]),
        ("shape of an example", *[tuple(one.shape) for one in both]),
        ("schedule", *[one.schedule.to_config() for one in both]),
    ]
    if model.has_conditions and other.has_conditions:
        names = [getattr(one, "conditions", ()) for one in both]
        probe = [[one[0] if one else ""] for one in names]
        shapes = [m.encode(p).shape[1:] for m, p in zip(both, probe, strict=True)]
        found += [("conditions", *names), ("shape of an encoded condition", *shapes)]
    else:
        found.append(("having conditions", *[one.has_conditions for one in both]))
    found.append(("autoencoder", *_weights(model, other)))
    return found


def _weights(model: Any, other: Any) -> tuple[str, str]:
    """Words that are the same where the autoencoders are: else latents are of two spaces."""
    own, its = (jax.tree.leaves(getattr(one, "vae", None)) for one in (model, other))
    same = len(own) == len(its) and all(map(np.array_equal, own, its))
    return "its own", "its own" if same else "another one"
