"""The methods of mitigation by name, with what their strength means."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable

import jax.numpy as jnp
import numpy as np

from sharpjax.checkpoints.tokenizer import Tokenizer
from sharpjax.conditional import ConditionalModel
from sharpjax.mitigation import baselines
from sharpjax.mitigation.descent import MAX_STEPS
from sharpjax.mitigation.levels import SAIL_OFFICIAL, SCORE_DIFFERENCE, SCREEN
from sharpjax.mitigation.problem import Problem, Treatment
from sharpjax.mitigation.sail import sharpness_loss
from sharpjax.mitigation.sail_official import MAX_STEPS as OFFICIAL_STEPS
from sharpjax.mitigation.sail_official import NUM_CANDIDATES, branch_of, sail_official
from sharpjax.mitigation.screen import QUANTITIES, Screened, halfway, ranked, screened
from sharpjax.mitigation.sharpness import DELTA
from sharpjax.networks.unet_2d_condition import UNet2DConditionModel

# what a strength may be, in words and as a test
_POSITIVE = ("a positive number", lambda strength: 0 < strength < math.inf)
_NOT_NEGATIVE = ("a number >= 0", lambda strength: 0 <= strength < math.inf)
_SHARE = ("a number between 0 and 1", lambda strength: 0 < strength < 1)
_WHOLE = (
    "a whole number of at least 1",
    lambda strength: 1 <= strength < math.inf and strength == int(strength),
)

# models, in words and as a test
_ANY = ("any model of conditions", lambda model: True)
_TOKENS = (
    "models that encode a prompt token by token and take nothing beside, as Stable Diffusion",
    lambda model: (
        isinstance(getattr(model, "tokenizer", None), Tokenizer)
        and getattr(model, "rows_are_tokens", False)
    ),
)
_ATTENDING = (
    "Stable Diffusion's UNet, which attends to the text",
    lambda model: isinstance(getattr(model, "unet", None), UNet2DConditionModel),
)

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
        loss: what it descends, whose values on clean prompts set its threshold; None if nothing.
        takes: what a strength may be.
        applies_to: the models that it works on.
    """

    apply: Callable[[Problem, float], Treatment]
    strengths: tuple[float, ...]
    meaning: str
    source: str
    loss: str | None = None
    takes: tuple[str, Callable[[float], bool]] = _POSITIVE
    applies_to: tuple[str, Callable[[ConditionalModel], bool]] = _ANY

    @property
    def default(self) -> float:
        """The middle strength."""
        return self.strengths[len(self.strengths) // 2]


def _sail(problem: Problem, strength: float) -> Treatment:
    usual = problem.usual("exact")
    loss = sharpness_loss("exact", DELTA, problem.penalty * usual / problem.noise[0].size)
    ended = problem.descend(loss, strength * usual, MAX_STEPS)
    # a step is a paired forward and a paired tangent, and twice that to go back
    return baselines.moved(problem, ended, evaluations=12)


def _sail_official(problem: Problem, strength: float) -> Treatment:
    """The other methods' noises are the first candidates."""
    count = len(problem.noise)
    with warnings.catch_warnings():  # of implausible noises: they are told together
        warnings.simplefilter("ignore", UserWarning)
        found = sail_official(
            problem.pair,
            problem.key,
            noise=problem.noise,
            num_noises=count,
            num_candidates=max(NUM_CANDIDATES, count),
            prediction_type=branch_of(problem.model.schedule.prediction_type),
            threshold=strength * problem.usual(SAIL_OFFICIAL),
            max_steps=problem.budget(OFFICIAL_STEPS),
            mesh=problem.mesh,
        )
    treatment = baselines.moved(problem, found, evaluations=12)
    for details, attempts in zip(treatment.details, found.attempts, strict=True):
        details["attempts"] = int(attempts)
    # all candidates of an attempt go until the last that is needed is found
    return dataclasses.replace(treatment, evaluations=np.full(count, 12.0 * found.spent / count))


def _screened(problem: Problem, strength: float) -> Treatment:
    """The other methods' noises are the first tries."""
    look = problem.look or halfway(problem.num_steps)
    sign = QUANTITIES[look.quantity]
    usual = problem.levels.threshold(SCREEN, 1 - strength, direction=-sign).value
    found = screened(
        problem.model, problem.context[None], problem.key,
        looks=[dataclasses.replace(look, threshold=usual)], num_images=len(problem.noise),
        noise=problem.noise[None], guidance=problem.guidance, free=problem.free,
        num_steps=problem.num_steps, complete=False, mesh=problem.mesh,
    )  # fmt: skip
    return _of_paths(problem, found, is_screen=True)


def _ranked(problem: Problem, strength: float) -> Treatment:
    found = ranked(
        problem.model, problem.context[None], problem.key,
        look=problem.look or halfway(problem.num_steps), num_tries=int(strength),
        num_images=len(problem.noise), noise=problem.noise[None], guidance=problem.guidance,
        free=problem.free, num_steps=problem.num_steps, complete=False, mesh=problem.mesh,
    )  # fmt: skip
    return _of_paths(problem, found)


def _of_paths(problem: Problem, found: Screened, *, is_screen: bool = False) -> Treatment:
    """Sampling from the noises of paths that passed: once more from the start, as all methods."""
    accepted, noise = found.accepted[0], np.asarray(problem.noise).copy()
    noise[accepted] = found.noise[0][accepted]
    base = baselines.delayed_guidance(problem, problem.free)
    tries = found.tries[0].tolist()
    return dataclasses.replace(
        base,
        noise=jnp.asarray(noise),
        evaluations=found.evaluations[0].astype(float),
        details=[
            {"tries": count, **({"passed": bool(one)} if is_screen else {})}
            | baselines.noise_figures(x)
            for count, one, x in zip(tries, accepted, noise, strict=True)
        ],
        refused=~accepted,
    )


_LENGTH = (1.0, 0.7, 0.4)

METHODS: dict[str, Method] = {
    "screened": Method(
        _screened, (0.1,), "share of clean images that the screen drops", "sharpjax",
        SCREEN, _SHARE,
    ),
    "ranked": Method(_ranked, (2, 5), "noises to choose from", "sharpjax", takes=_WHOLE),
    # SAIL at one strength in either form: its descents take most of a comparison's time
    "sail": Method(_sail, (0.3,), _OF_MEDIAN, "Jeon et al. 2025, exact tangent", "exact"),
    "sail_official": Method(
        _sail_official, (0.8,), _OF_MEDIAN, "Jeon et al. 2025, public code", SAIL_OFFICIAL
    ),
    "prompt_embedding": Method(
        baselines.prompt_embedding, _LENGTH, _OF_MEDIAN, "Wen et al. 2024", SCORE_DIFFERENCE,
        applies_to=_TOKENS,
    ),
    "noise_batch": Method(
        baselines.noise_batch, (0.1, 0.3, 0.5), _FRACTION, "Han et al. 2025, batch-wise",
        takes=_SHARE,
    ),
    "lower_guidance": Method(
        baselines.lower_guidance, (1.5, 3, 6), "guidance divided by this", "Ho & Salimans 2022"
    ),
    "delayed_guidance": Method(
        baselines.delayed_guidance, (0.3, 0.5, 0.6), _FRACTION,
        "Jain et al. 2025, static transition point", takes=_SHARE,
    ),
    "dynamic_guidance": Method(
        baselines.dynamic_guidance, (0, 1, 2), "opposite guidance before the transition",
        "Jain et al. 2025, dynamic transition point, opposite guidance", takes=_NOT_NEGATIVE,
    ),
    "padding": Method(
        baselines.padding, (0.5, 0.7, 0.9), "share of the padding that is zeroed",
        "Kim & No 2026", takes=_SHARE, applies_to=_TOKENS,
    ),
    "cross_attention": Method(
        baselines.cross_attention, (1.0, 1.25, 1.5), "factor of the first token's logits",
        "Ren et al. 2024", applies_to=_ATTENDING,
    ),
    "guard": Method(
        baselines.guard, (1, 2, 3), "repulsion from the prompt as it is",
        "Zhao et al. 2026, CA-in-GUARD", takes=_NOT_NEGATIVE, applies_to=_ATTENDING,
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
    wanted, holds = method.takes
    if not holds(strength):
        raise ValueError(
            f"the strength of {name} must be {wanted} ({method.meaning}), got {strength}"
        )


def check_applies(name: str, model: ConditionalModel) -> None:
    """Refuse a method that does not work on a model.

    Raises:
        ValueError: the message lists those that do.
    """
    if name == NONE:
        return
    which, holds = METHODS[name].applies_to
    if not holds(model):
        able = [other for other, method in METHODS.items() if method.applies_to[1](model)]
        raise ValueError(
            f"{name} is for {which}, got a {type(model).__name__}; choose of {', '.join(able)}"
        )


def treat(name: str, problem: Problem, strength: float) -> Treatment:
    """What a method makes of a problem.

    Raises:
        ValueError: an unknown method, a strength that it does not take, or a model.
    """
    if name == NONE:
        return baselines.untreated(problem)
    check_strength(name, strength)
    check_applies(name, problem.model)
    return METHODS[name].apply(problem, strength)


def losses_of(names: Iterable[str]) -> tuple[str, ...]:
    """The losses whose clean values the methods ask for."""
    losses = (METHODS[name].loss for name in names if name != NONE)
    return tuple(sorted({loss for loss in losses if loss is not None}))
