r"""From a network's prediction to a score, and the pair of scores that memorization lives in.

A *score* is a function of one example, `x -> s(x) = grad log p_t(x)`, of the same shape, with
the noise level and the condition already bound.  Networks predict something else; with
`x = alpha x0 + sigma eps` and Tweedie's formula,

$$
\text{epsilon: } s = -\epsilon/\sigma, \qquad
\text{v\_prediction: } s = -\frac{x + (\alpha/\sigma) v}{\alpha^2 + \sigma^2}, \qquad
\text{sample: } s = (\alpha \hat x_0 - x)/\sigma^2 , \qquad
\text{flow\_prediction: } s = -\frac{x + \alpha u}{\sigma (\alpha + \sigma)} ,
$$

with $v = \alpha \epsilon - \sigma x_0$, and $u = \epsilon - x_0$, the velocity of
$x_t = (1 - t) x_0 + t \epsilon$ (Lipman et al. 2023, arXiv:2210.02747), from which
$x = (\alpha + \sigma) \epsilon - \alpha u$ at any level.  No level needs
`alpha^2 + sigma^2 = 1`; a score exists where `sigma > 0`.

Units: `x` 1, `s` 1/sigma, its Jacobian 1/sigma^2.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._checks import check_finite, check_signal, checked_pytree, level, single_or_double
from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike, Score
from sharpjax.schedules import PREDICTION_TYPES


def score_from_prediction(
    prediction: Array, x: Array, *, alpha: Array, sigma: Array, prediction_type: str
) -> Array:
    """The score at `x` (units 1/sigma) from what a network predicts there.

    Raises:
        ValueError: an unknown `prediction_type`, a prediction of another shape than `x`, or no
            valid level: `alpha >= 0` and `sigma > 0`, finite, where they are known.

    >>> float(score_from_prediction(jnp.array(0.6), jnp.array(1.0), alpha=0.6, sigma=0.8,
    ...                             prediction_type="epsilon"))
    -0.75
    """
    alpha, sigma = level("score_from_prediction", alpha, sigma)
    _same_shape(prediction, x)
    if prediction_type == "epsilon":
        return -prediction / sigma
    if prediction_type == "v_prediction":
        return -(x + (alpha / sigma) * prediction) / (alpha**2 + sigma**2)
    if prediction_type == "sample":
        return (alpha * prediction - x) / sigma**2
    if prediction_type == "flow_prediction":
        return -(x + alpha * prediction) / (sigma * (alpha + sigma))
    raise ValueError(
        f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}"
    )


def _same_shape(prediction: Array, x: Array) -> None:
    if np.shape(prediction) != np.shape(x):  # it would be repeated, without a word
        raise ValueError(
            f"a prediction must have the shape of x, {np.shape(x)}, got {np.shape(prediction)}"
        )


def clean_and_noise(
    prediction: Array, x: Array, *, alpha: Array, sigma: Array, prediction_type: str
) -> tuple[Array, Array]:
    r"""Estimates of the clean example and of the noise in `x` from what a network predicts.

    Both are finite at `alpha = 0` for `sample`, for `v_prediction` and for `flow_prediction`,

    $$
    \hat x_0 = \frac{\alpha x - \sigma v}{\alpha^2 + \sigma^2}, \quad
    \hat\epsilon = \frac{\sigma x + \alpha v}{\alpha^2 + \sigma^2} ; \qquad
    \hat x_0 = \frac{x - \sigma u}{\alpha + \sigma}, \quad
    \hat\epsilon = \frac{x + \alpha u}{\alpha + \sigma} ;
    $$

    a score or an `epsilon` says nothing about the clean example there.

    Args:
        prediction: of the network, or a score.
        x: where.
        alpha: signal there.
        sigma: noise there.
        prediction_type: `score`, `epsilon`, `v_prediction`, `sample` or `flow_prediction`.

    Raises:
        ValueError: an unknown `prediction_type`, another shape or no valid level as in
            `score_from_prediction`, or `alpha = 0` with a score or an `epsilon`.
    """
    alpha, sigma = level("clean_and_noise", alpha, sigma)
    _same_shape(prediction, x)
    if prediction_type in ("score", "epsilon"):
        check_signal(alpha, f"the clean example that {prediction_type} leads to")
    if prediction_type == "score":
        return denoised(prediction, x, alpha=alpha, sigma=sigma), -sigma * prediction
    if prediction_type == "epsilon":
        return (x - sigma * prediction) / alpha, prediction
    if prediction_type == "v_prediction":
        square = alpha**2 + sigma**2
        clean = (alpha * x - sigma * prediction) / square
        return clean, (sigma * x + alpha * prediction) / square
    if prediction_type == "sample":
        return prediction, (x - alpha * prediction) / sigma
    if prediction_type == "flow_prediction":
        noise = (x + alpha * prediction) / (alpha + sigma)
        return noise - prediction, noise
    raise ValueError(
        f"prediction_type must be one of score, {', '.join(PREDICTION_TYPES)}, got "
        f"{prediction_type!r}"
    )


def denoised(score: Array, x: Array, *, alpha: Array, sigma: Array) -> Array:
    r"""Tweedie's estimate of the clean example, $E[x_0|x] = (x + \sigma^2 s)/\alpha$.

    Raises:
        ValueError: `alpha = 0`, where it is known.
    """
    check_signal(alpha, "the clean example that a score leads to")
    return (x + sigma**2 * score) / alpha


def score_at(score: Callable[[Array], Array], x: Array) -> Array:
    """`score(x)` in the type of `x`, and its tangents with it: the one rule for types.

    A score may be float64 at a float32 point, or the other way round; what it holds inside is its
    own business. A result in half precision is refused: what is computed from it would have errors
    that no error bar shows.

    Raises:
        ValueError: another shape than that of `x`, or not float32 or float64.
    """
    s = score(x)
    if getattr(s, "shape", None) != x.shape:
        raise ValueError(
            f"score(x) must have the shape of x, {x.shape}, got {jax.tree.map(jnp.shape, s)}; "
            "a score takes one point without a batch axis (curvature.at_points takes a batch)"
        )
    single_or_double("x", x)
    return jnp.asarray(single_or_double("score(x)", s), x.dtype)


@checked_pytree
@dataclasses.dataclass(frozen=True)
class ScorePair:
    """The unconditional and the conditional score at one noise level.

    A pytree: scores that carry weights (`jax.tree_util.Partial` over a network) cross
    `jax.jit` as arguments, so another prompt never recompiles.

    Attributes:
        unconditional: `s_u`.
        conditional: `s_c`.
        alpha: signal of this level.
        sigma: noise of this level.
        stacked: evaluates `s_u` at `x[0]` and `s_c` at `x[1]` in one batch,
            `(2, *shape) -> (2, *shape)`; made from the two scores when left out.
        along: the derivative of `s_c` in the condition, along the unit vector from the empty one
            to it; None where conditions are no vectors.

    Raises:
        ValueError: `alpha < 0`, `sigma <= 0` or not finite, where they are known.

    >>> from jax.tree_util import Partial
    >>> pair = ScorePair(Partial(jnp.negative), Partial(jnp.sin), alpha=0.6, sigma=0.8)
    >>> pair.both(jnp.zeros(3)).shape
    (2, 3)
    """

    unconditional: Score
    conditional: Score
    alpha: Array
    sigma: Array
    stacked: Callable[[Array], Array] | None = None
    along: Score | None = None

    __repr__ = one_line

    def __post_init__(self) -> None:
        if self.unconditional is None or self.conditional is None:
            return  # no pair, but a specification of one, such as vmap's in_axes
        alpha, sigma = level("ScorePair", self.alpha, self.sigma)
        object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "sigma", sigma)

    def at(self, points: Array) -> Array:
        """`(s_u(points[0]), s_c(points[1]))`: two points, one batch.

        Raises:
            ValueError: points that are not finite, where they are known.
        """
        check_finite("x", points)
        if self.stacked is not None:
            return score_at(self.stacked, points)
        unconditional, conditional = self._checked
        return jnp.stack([unconditional(points[0]), conditional(points[1])])

    def both(self, x: Array) -> Array:
        """`(s_u(x), s_c(x))` of shape `(2, *x.shape)`, units 1/sigma."""
        return self.at(jnp.stack([x, x]))

    def difference(self, x: Array) -> Array:
        """`s_D(x) = s_c(x) - s_u(x)`, units 1/sigma."""
        unconditional, conditional = self.both(x)
        return conditional - unconditional

    def guided(self, x: Array, guidance: ArrayLike) -> Array:
        """Classifier-free guidance, `s_u + guidance (s_c - s_u)` (arXiv:2207.12598)."""
        unconditional, conditional = self.both(x)
        return unconditional + guidance * (conditional - unconditional)

    def linearize(self, x: Array) -> "LinearizedPair":
        """Values and the two tangent maps at `x`, apart: 2 forward evaluations.

        Raises:
            ValueError: `x` is not finite, where it is known.
        """
        check_finite("x", x)
        unconditional, conditional = self._checked
        return LinearizedPair(*jax.linearize(unconditional, x), *jax.linearize(conditional, x))

    @property
    def _checked(self) -> tuple[Score, Score]:
        """Both scores in the type of the point."""
        return (
            functools.partial(score_at, self.unconditional),
            functools.partial(score_at, self.conditional),
        )


def check_pair(pair: ScorePair, what: str, *, signal: bool = True) -> None:
    """Refuse what is no pair of scores, and the pair of a level at which `what` says nothing.

    Args:
        pair: that a function was given.
        what: the function, as an error says it.
        signal: it needs `alpha > 0`.

    Raises:
        ValueError: no `ScorePair`, one without its scores, or `alpha = 0` where it is known.
    """
    scores = (getattr(pair, name, None) for name in ("unconditional", "conditional"))
    if not isinstance(pair, ScorePair) or not all(map(callable, scores)):
        raise ValueError(
            f"{what}: pair must be a sharpjax.ScorePair of two scores, such as "
            f"model.scores(condition, t), got {pair!r:.80}"
        )
    if signal:
        check_signal(pair.alpha, what)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearizedPair:
    """A pair of scores at one point; what `ScorePair.linearize` returns.

    A pytree.  The unconditional part does not depend on the condition: under `jax.vmap` over
    conditions at the same point it has no batch axis and is computed once; and it can leave
    `jit` and be kept.

    Attributes:
        unconditional: `s_u(x)`, units 1/sigma.
        unconditional_tangent: `v -> H_u v`, units of `H`: 1/sigma^2.
        conditional: `s_c(x)`.
        conditional_tangent: `v -> H_c v`.
    """

    unconditional: Array
    unconditional_tangent: Callable[[Array], Array]
    conditional: Array
    conditional_tangent: Callable[[Array], Array]

    __repr__ = one_line

    @property
    def difference(self) -> Array:
        """`s_D = s_c - s_u`, units 1/sigma."""
        return self.conditional - self.unconditional

    def difference_tangent(self, v: Array) -> Array:
        """`H_D v = H_c v - H_u v`, units of `H_D`: 1/sigma^2."""
        return self.conditional_tangent(v) - self.unconditional_tangent(v)
