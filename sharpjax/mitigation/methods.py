"""The methods of mitigation by name, with what their strength means."""

import dataclasses
from collections.abc import Callable, Iterable

from sharpjax.mitigation import baselines
from sharpjax.mitigation.calibration import SCORE_DIFFERENCE
from sharpjax.mitigation.descent import descend
from sharpjax.mitigation.problem import Problem, Treatment
from sharpjax.mitigation.sail import sharpness_loss
from sharpjax.mitigation.sharpness import DELTA
from sharpjax.mitigation.trust import adam_on_sphere

_FRACTION = "fraction of steps without guidance"
_OF_MEDIAN = "threshold over the median of clean prompts"


@dataclasses.dataclass(frozen=True)
class Method:
    """An entry of the registry.

    Attributes:
        apply: what it does to a problem at a strength.
        strengths: those that a curve is drawn over, from the weakest.
        meaning: of the strength.
        source: where it was published.
        whole: whether the strength is a number of things.
        loss: what it descends, whose values on clean prompts set its threshold; None if nothing.
    """

    apply: Callable[[Problem, float], Treatment]
    strengths: tuple[float, ...]
    meaning: str
    source: str
    loss: str | None = None
    whole: bool = False

    @property
    def default(self) -> float:
        """The middle strength."""
        return self.strengths[len(self.strengths) // 2]


def _sail(
    form: str, evaluations: float, *, sphere: bool = False
) -> Callable[[Problem, float], Treatment]:
    # what one step costs: the loss's forward passes and tangents, and twice that to go back
    def apply(problem: Problem, strength: float) -> Treatment:
        ended = descend(
            sharpness_loss(form, DELTA, 0.0), problem.pair, problem.noise,
            threshold=strength * problem.levels.threshold(form, 0.5).value,
            max_steps=problem.max_steps, mesh=problem.mesh,
            optimizer=adam_on_sphere() if sphere else None,
        )  # fmt: skip
        return baselines.moved(problem, ended, evaluations=evaluations)

    return apply


# The sharpness is a square of third order in the score, so it falls over a wider range.
_SHARPNESS = (1.0, 0.3, 0.1)
_LENGTH = (1.0, 0.7, 0.4)

METHODS: dict[str, Method] = {
    "sail": Method(
        _sail("exact", 12), _SHARPNESS, _OF_MEDIAN, "Jeon et al. 2025, exact tangent", "exact"
    ),
    "sail_finite_difference": Method(
        _sail("finite_difference", 12), (0.3,), _OF_MEDIAN, "Jeon et al. 2025",
        "finite_difference",
    ),
    "sail_official": Method(
        _sail("official", 6), (1.0, 0.7), _OF_MEDIAN, "Jeon et al. 2025, public code",
        "official",
    ),
    "sail_on_sphere": Method(
        _sail("exact", 12, sphere=True), (0.3,), _OF_MEDIAN,
        "sharpjax: the noise keeps its length", "exact",
    ),
    "random_tokens": Method(
        baselines.random_tokens, (1, 2, 4), "tokens added", "Somepalli et al. 2023",
        whole=True,
    ),
    "random_words": Method(
        baselines.random_words, (1, 2, 4), "words added", "Somepalli et al. 2023",
        whole=True,
    ),
    "prompt_embedding": Method(
        baselines.prompt_embedding, _LENGTH, _OF_MEDIAN, "Wen et al. 2024", SCORE_DIFFERENCE
    ),
    "noise_gradient": Method(
        baselines.noise_gradient, _LENGTH, _OF_MEDIAN, "Han et al. 2025, per sample",
        SCORE_DIFFERENCE,
    ),
    "noise_batch": Method(
        baselines.noise_batch, (0.1, 0.3, 0.5), _FRACTION,
        "Han et al. 2025, batch-wise",
    ),
    "lower_guidance": Method(
        baselines.lower_guidance, (1.5, 3, 6), "guidance divided by this", "Ho & Salimans 2022"
    ),
    "delayed_guidance": Method(
        baselines.delayed_guidance, (0.3, 0.5, 0.6), _FRACTION,
        "Jain et al. 2024",
    ),
    "noise_gradient_delayed": Method(
        baselines.noise_gradient_delayed, (0.1, 0.3), _FRACTION,
        "sharpjax, of the two", SCORE_DIFFERENCE,
    ),
    "best_of": Method(
        baselines.best_of, (4, 16), "noises to choose from", "sharpjax, by ‖H_D s_D‖",
        whole=True,
    ),
}  # fmt: skip
"""Every method by its name, with the strengths that a comparison tries."""

NONE = "none"


def check_strength(name: str, strength: float) -> None:
    """Refuse a method, or a strength, that there is not.

    Raises:
        ValueError: an unknown method, or a strength that it does not take.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join((NONE, *METHODS))}")
    method = METHODS[name]
    wanted = None
    if method.whole and (not 1 <= strength < float("inf") or strength != int(strength)):
        wanted = "a whole number of at least 1"
    elif method.meaning == _FRACTION and not 0 < strength < 1:
        wanted = "a number between 0 and 1"
    elif not 0 < strength < float("inf"):
        wanted = "a positive number"
    if wanted:
        raise ValueError(
            f"the strength of {name} must be {wanted} ({method.meaning}), got {strength}"
        )


def treat(name: str, problem: Problem, strength: float) -> Treatment:
    """What a method makes of a problem.

    Raises:
        ValueError: an unknown method, or a strength that it does not take.
    """
    if name == NONE:
        return baselines.untreated(problem)
    check_strength(name, strength)
    return METHODS[name].apply(problem, strength)


def losses_of(names: Iterable[str]) -> tuple[str, ...]:
    """The losses whose clean values the methods ask for."""
    losses = (METHODS[name].loss for name in names if name != NONE)
    return tuple(sorted({loss for loss in losses if loss is not None}))
