"""A noised data set: the exact-score oracle, the score of a perfectly trained network."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, cast

import jax
import jax.numpy as jnp

from sharpjax._checks import checked_pytree, level, positive_integer, prng_key
from sharpjax._types import Array, ArrayLike, Key, Numbers
from sharpjax.densities.base import (
    HALF_LOG_TWO_PI,
    Density,
    assign,
    build,
    point_method,
    weighted_square,
)
from sharpjax.densities.validation import check_weights, floats


@checked_pytree
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Empirical(Density):
    r"""A data set, and once noised the exact density of its noised points.

    `p_t(x) = sum_i w_i N(x; alpha y_i, sigma^2 I)`. With the posterior weights
    `r_i(x) = P(x_0 = y_i | x)`, the posterior mean `m = sum_i r_i y_i` and `C = Cov[x_0 | x]`,

    `s(x) = (alpha m - x)/sigma^2`, `H(x) = (-I + (alpha^2/sigma^2) C)/sigma^2`,

    so that `K = I + sigma^2 H = (alpha^2/sigma^2) C` is positive semidefinite. No d x d matrix is
    formed except by `hessian`; time and memory grow as `n d`.

    Args:
        points: shape `(n, *shape)`; a point, its score and vectors have the data's `shape`, of
            any number of axes.
        weights: shape `(n,)`, non-negative, summing to 1; equal weights by default.
        alpha: scale of the data, >= 0.
        sigma: noise, > 0, or None: the data set itself, a sum of point masses without a density,
            of which only `sample` and `noised` can be asked. (None and not 0, so that the
            difference is still seen under `jit`.)

    Raises:
        ValueError: shapes that do not fit, weights that are negative or do not sum to 1 (the sum
            is named), `alpha < 0`, `sigma <= 0`; a number that the type of the points (float32
            unless JAX is told otherwise) does not hold; by a method of a point, `sigma` None.

    >>> import jax.numpy as jnp
    >>> data = Empirical(points=[[-1.0, 0.0], [1.0, 0.0]])
    >>> p = data.noised(alpha=0.6, sigma=0.8)
    >>> p.posterior_weights(jnp.zeros(2))
    Array([0.5, 0.5], dtype=float32)
    >>> print(f"{p.effective_dimension(jnp.zeros(2)):.4f}")  # (0.6/0.8)^2 times a variance of 1
    0.5625
    >>> p.noised(alpha=0.5, sigma=0.3)
    Empirical(points=float32[2,2], weights=float32[2], alpha=0.3, sigma=0.5)
    """

    points: Array
    weights: Array = None  # type: ignore[assignment]  # made when built
    alpha: Array | float = 1.0
    sigma: Array | float | None = None

    _points: ClassVar = "points", 1

    if TYPE_CHECKING:  # the constructor makes arrays of what it is given

        def __init__(
            self,
            points: Numbers,
            weights: Numbers | None = None,
            alpha: ArrayLike = 1.0,
            sigma: ArrayLike | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        (points,) = floats("Empirical", points=self.points)
        if points.ndim < 2 or points.size == 0:
            raise ValueError(
                "Empirical: points must have shape (n, *shape), n >= 1 points of at least one "
                f"coordinate each, got {points.shape}"
            )
        count = len(points)
        if self.weights is None:
            weights = jnp.full(count, 1.0 / count, points.dtype)
        else:
            points, weights = floats("Empirical", points=points, weights=self.weights)
            check_weights("Empirical", self.weights, weights, count, "points")
        given = self.alpha, 1.0 if self.sigma is None else self.sigma
        alpha, sigma = level("Empirical", *given, points.dtype)
        known = None if self.sigma is None else sigma
        assign(self, points=points, weights=weights, alpha=alpha, sigma=known)

    @property
    def _noise(self) -> Array:
        """Sigma, of a density."""
        if self.sigma is None:
            raise ValueError(
                "Empirical without noise is a sum of point masses and has no density; "
                "call .noised(alpha, sigma) first"
            )
        return cast(Array, self.sigma)  # the constructor made an array of it

    @property
    def _flat(self) -> Array:
        """The points as an (n, d) matrix."""
        return self.points.reshape(len(self.points), -1)

    def _log_joint(self, x: Array) -> tuple[Array, Array]:
        """Logits l_i and a base b, with log(w_i N(x; alpha y_i, sigma^2 I)) = l_i + b.

        The base is the likeliest point j. With e_i = x - alpha y_i and z_i = y_i - y_j the others
        follow as |e_i|^2 - |e_j|^2 = -alpha z_i.(2 e_j - alpha z_i): a sum of small terms, where
        the difference of the two squares, each as large as d, would lose the digits that decide
        between points when sigma is small. Duplicate points get equal logits exactly. (Sums of
        products and not matrix products, so that XLA fuses them and a batch of x holds no
        batch x n x d array.)
        """
        points, sigma, x = self._flat, self._noise, x.ravel()
        log_weights = jnp.log(self.weights)
        squares = jnp.sum(((x - self.alpha * points) / sigma) ** 2, axis=1)
        j = jnp.argmax(log_weights - 0.5 * squares)
        error, offsets = x - self.alpha * points[j], points - points[j]
        gains = jnp.sum(offsets * (2.0 * error - self.alpha * offsets), axis=1)
        logits = log_weights + 0.5 * self.alpha / sigma**2 * gains
        base = -0.5 * jnp.sum((error / sigma) ** 2)
        return logits, base - x.size * (jnp.log(sigma) + HALF_LOG_TWO_PI)

    def _centred(self, x: Array) -> tuple[Array, Array]:
        """The posterior weights, and the points less their posterior mean, (n, d)."""
        posterior = jax.nn.softmax(self._log_joint(x)[0])
        points = self._flat
        return posterior, points - posterior @ points

    @point_method
    def posterior_weights(self, x: Array) -> Array:
        """`r_i = P(x_0 = y_i | x)`, shape `(n,)`: which data points `x` may come from."""
        return jax.nn.softmax(self._log_joint(x)[0])

    @point_method
    def log_prob(self, x: Array) -> Array:
        """`log p_t(x)`, a scalar."""
        logits, base = self._log_joint(x)
        return base + jax.nn.logsumexp(logits)

    @point_method
    def score(self, x: Array) -> Array:
        """`(alpha E[x_0 | x] - x)/sigma^2`, of the data's shape, units 1/sigma."""
        posterior = jax.nn.softmax(self._log_joint(x)[0])
        mean = (posterior @ self._flat).reshape(self.shape)
        return (self.alpha * mean - x) / self._noise**2

    @point_method
    def hvp(self, x: Array, v: ArrayLike) -> Array:
        """`H(x) v` without forming `H`; `v` and the result have the data's shape.

        `(-v + (alpha/sigma)^2 sum_i r_i c_i (c_i . v))/sigma^2` with `c_i = y_i - m`.

        Raises:
            ValueError: `v` of another shape than the data.
        """
        v = jnp.asarray(v)
        if v.shape != self.shape:
            raise ValueError(f"v has shape {v.shape}, but a point has shape {self.shape}")
        posterior, centred = self._centred(x)
        pulled = (posterior * (centred @ v.ravel().astype(x.dtype))) @ centred
        return ((self.alpha / self._noise) ** 2 * pulled.reshape(self.shape) - v) / self._noise**2

    @point_method
    def hessian(self, x: Array) -> Array:
        """The dense Hessian on the flattened coordinates, `(d, d)`, units 1/sigma^2. Small d."""
        posterior, centred = self._centred(x)
        K = weighted_square(posterior, centred * (self.alpha / self._noise))
        return (K - jnp.eye(x.size, dtype=K.dtype)) / self._noise**2

    @point_method
    def effective_dimension(self, x: Array) -> Array:
        """`tr K = (alpha/sigma)^2 tr Cov[x_0 | x]`, dimensionless, in O(n d).

        It sums squares, so it keeps its digits where `d + sigma^2 tr H` would cancel.
        """
        posterior, centred = self._centred(x)
        return (self.alpha / self._noise) ** 2 * (posterior @ jnp.sum(centred**2, axis=1))

    @point_method
    def trace_hessian(self, x: Array) -> Array:
        """`tr H = (tr K - d)/sigma^2`, a scalar, exact, in O(n d)."""
        dimension: Array = self.effective_dimension(x)
        return (dimension - x.size) / self._noise**2

    def _second_order(self, x: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        return self.score(x), self.trace_hessian(x), lambda u: jnp.sum(u * self.hvp(x, u))

    def sample(self, key: Key, n: int) -> Array:
        """`n` independent points, shape `(n, *shape)`: data points drawn by weight, then noised."""
        key_point, key_noise = jax.random.split(prng_key(key, "Points are drawn"))
        n = positive_integer("n", n)
        index = jax.random.categorical(key_point, jnp.log(self.weights), shape=(n,))
        clean = self.alpha * self.points[index]
        if self.sigma is None:
            return clean
        return clean + self.sigma * jax.random.normal(key_noise, (n, *self.shape), self.dtype)

    def noised(self, alpha: ArrayLike, sigma: ArrayLike) -> "Empirical":
        """The density of `alpha x + sigma eps` with `x` from this one.

        On data already noised by `(a, s)` the two levels compose to
        `(alpha a, sqrt(alpha^2 s^2 + sigma^2))`.

        Raises:
            ValueError: `alpha < 0`, `sigma <= 0`, either not a scalar or its square out of range.
        """
        alpha, sigma = level("noised", alpha, sigma, self.dtype)
        if self.sigma is not None:
            sigma = jnp.hypot(alpha * self.sigma, sigma)
        alpha, sigma = level("noised", alpha * self.alpha, sigma, self.dtype)
        fields = {"points": self.points, "weights": self.weights}
        return build(Empirical, **fields, alpha=alpha, sigma=sigma)
