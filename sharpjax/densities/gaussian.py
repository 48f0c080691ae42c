"""The normal distribution and mixtures of it, with full covariances."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp

from sharpjax._checks import checked_pytree, host_value, level, positive_integer, prng_key
from sharpjax._linalg import cholesky, inverse_of_lower
from sharpjax._types import Array, ArrayLike, Key, Numbers
from sharpjax.densities.base import (
    HALF_LOG_TWO_PI,
    Density,
    assign,
    build,
    point_method,
    weighted_square,
)
from sharpjax.densities.validation import check_covariance, check_weights, floats


def _whitener(covariance: Array) -> Array:
    """`L^{-1}` of `S = L L^T`, for one covariance or a stack: `L^{-1} (x - mean)` is white.

    The points of a batch multiply it: one factorization for all of them.
    """
    return inverse_of_lower(cholesky(covariance))


def _log_normal(x: Array, mean: Array, whitener: Array) -> Array:
    """`log N(x; mean, L L^T)` = -|L^{-1} (x - mean)|^2 / 2 - log det L - (d/2) log 2 pi."""
    z = whitener @ (x - mean)
    log_det = -jnp.sum(jnp.log(jnp.diagonal(whitener)))
    return -0.5 * jnp.sum(z**2) - log_det - x.size * HALF_LOG_TWO_PI


def _normal_score(x: Array, mean: Array, whitener: Array) -> Array:
    return -(whitener @ (x - mean)) @ whitener


def _precision(whitener: Array) -> Array:
    """(L L^T)^{-1} = L^{-T} L^{-1}, symmetric to the last bit of rounding."""
    return whitener.T @ whitener


def _noised_covariance(covariance: Array, alpha: ArrayLike, sigma: ArrayLike) -> Array:
    """alpha^2 S + sigma^2 I, for one covariance or a stack."""
    eye = jnp.eye(covariance.shape[-1], dtype=covariance.dtype)
    return jnp.asarray(alpha**2 * covariance + sigma**2 * eye)


@checked_pytree
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Gaussian(Density):
    r"""The normal distribution `N(mean, covariance)` on `R^d`.

    Args:
        mean: shape `(d,)`.
        covariance: shape `(d, d)`, symmetric and positive definite.

    Raises:
        ValueError: shapes that do not fit; a covariance that is not symmetric (the largest
            asymmetry is named) or not positive definite (the smallest eigenvalue is named); a
            number that their type (float32 unless JAX is told otherwise) does not hold.

    >>> import jax.numpy as jnp
    >>> p = Gaussian(mean=jnp.zeros(2), covariance=jnp.diag(jnp.array([1.0, 4.0])))
    >>> p.score(jnp.array([1.0, 4.0]))
    Array([-1., -1.], dtype=float32)
    >>> print(f"{p.noised(alpha=0.6, sigma=0.8).log_prob(jnp.zeros(2)):.4f}")
    -2.2041
    """

    mean: Array
    covariance: Array

    _points: ClassVar = "mean", 0

    if TYPE_CHECKING:  # the constructor makes arrays of what it is given

        def __init__(self, mean: Numbers, covariance: Numbers) -> None: ...

    def __post_init__(self) -> None:
        mean, covariance = floats("Gaussian", mean=self.mean, covariance=self.covariance)
        if mean.ndim != 1 or mean.size == 0:
            raise ValueError(f"Gaussian: mean must have shape (d,) with d >= 1, got {mean.shape}")
        if covariance.shape != 2 * mean.shape:
            raise ValueError(
                f"Gaussian: covariance has shape {covariance.shape}; with a mean of shape "
                f"{mean.shape} it must be square, {2 * mean.shape}"
            )
        check_covariance("Gaussian: covariance", self.covariance, covariance)
        assign(self, mean=mean, covariance=covariance)

    @point_method
    def log_prob(self, x: Array) -> Array:
        """`log p(x)`, a scalar; `x` has shape `(d,)`."""
        return _log_normal(x, self.mean, _whitener(self.covariance))

    @point_method
    def score(self, x: Array) -> Array:
        """`grad log p(x) = -S^{-1} (x - mean)`, shape `(d,)`, units 1/sigma."""
        return _normal_score(x, self.mean, _whitener(self.covariance))

    @point_method
    def hessian(self, x: Array) -> Array:
        """`-S^{-1}`, the same at every `x`; shape `(d, d)`, units 1/sigma^2."""
        return -_precision(_whitener(self.covariance)).astype(x.dtype)

    def _second_order(self, x: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        half = _whitener(self.covariance)
        score = _normal_score(x, self.mean, half)
        return score, -jnp.sum(half**2), lambda u: -jnp.sum((half @ u) ** 2)

    def sample(self, key: Key, n: int) -> Array:
        """`n` independent points, shape `(n, d)`."""
        key = prng_key(key, "Points are drawn")
        z = jax.random.normal(key, (positive_integer("n", n), *self.shape), self.dtype)
        factor = cholesky(self.covariance)
        return self.mean + jnp.matmul(z, factor.T, precision="highest")

    def noised(self, alpha: ArrayLike, sigma: ArrayLike) -> "Gaussian":
        """The density of `alpha x_0 + sigma eps`: `N(alpha mean, alpha^2 S + sigma^2 I)`.

        Raises:
            ValueError: `alpha < 0`, `sigma <= 0`, either not a scalar or its square out of range.
        """
        alpha, sigma = level("noised", alpha, sigma, self.dtype)
        covariance = _noised_covariance(self.covariance, alpha, sigma)
        mean, covariance = floats("Gaussian.noised", mean=alpha * self.mean, covariance=covariance)
        return build(Gaussian, mean=mean, covariance=covariance)


@checked_pytree
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GaussianMixture(Density):
    r"""The mixture `sum_k w_k N(mean_k, S_k)` on `R^d`.

    Args:
        weights: shape `(k,)`, non-negative, summing to 1.
        means: shape `(k, d)`.
        covariances: shape `(k, d, d)`, each symmetric and positive definite.

    Raises:
        ValueError: shapes that do not fit, weights that are negative or do not sum to 1 (the sum
            is named), a covariance that is not symmetric or not positive definite, a number that
            their type does not hold.

    >>> import jax.numpy as jnp
    >>> p = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], jnp.ones((2, 1, 1)))
    >>> print(f"{p.hessian(jnp.zeros(1))[0, 0]:.4f}")  # -1 + 2^2: convex between the modes
    3.0000
    """

    weights: Array
    means: Array
    covariances: Array

    _points: ClassVar = "means", 1

    if TYPE_CHECKING:  # the constructor makes arrays of what it is given

        def __init__(self, weights: Numbers, means: Numbers, covariances: Numbers) -> None: ...

    def __post_init__(self) -> None:
        weights, means, covariances = floats(
            "GaussianMixture",
            weights=self.weights,
            means=self.means,
            covariances=self.covariances,
        )
        if means.ndim != 2 or 0 in means.shape:
            raise ValueError(
                f"GaussianMixture: means must have shape (k, d) with k, d >= 1, got {means.shape}"
            )
        count, dim = means.shape
        if covariances.shape != (count, dim, dim):
            raise ValueError(
                f"GaussianMixture: covariances have shape {covariances.shape}; with means of shape "
                f"{means.shape} they must be square, one a component: {(count, dim, dim)}"
            )
        check_weights("GaussianMixture", self.weights, weights, count, "means")
        for k in range(count) if host_value(self.covariances) is not None else ():
            name = f"GaussianMixture: covariances[{k}]"
            check_covariance(name, self.covariances[k], covariances[k])
        assign(self, weights=weights, means=means, covariances=covariances)

    def _log_joint(self, x: Array, whiteners: Array) -> Array:
        """`log w_k + log N(x; mean_k, S_k)`, shape (k,)."""
        log_normals = jax.vmap(_log_normal, (None, 0, 0))(x, self.means, whiteners)
        return jnp.log(self.weights) + log_normals

    def _components(self, x: Array, whiteners: Array) -> tuple[Array, Array]:
        """`r_k` and `s_k`: posterior probabilities at `x`, (k,), and scores, (k, d)."""
        scores = jax.vmap(_normal_score, (None, 0, 0))(x, self.means, whiteners)
        return jax.nn.softmax(self._log_joint(x, whiteners)), scores

    @point_method
    def log_prob(self, x: Array) -> Array:
        """`log p(x)`, a scalar; `x` has shape `(d,)`."""
        return jax.nn.logsumexp(self._log_joint(x, _whitener(self.covariances)))

    @point_method
    def score(self, x: Array) -> Array:
        """`grad log p(x) = sum_k r_k s_k`, shape `(d,)`, units 1/sigma.

        `r_k` is the posterior probability of component k at `x`, `s_k` its score.
        """
        posterior, scores = self._components(x, _whitener(self.covariances))
        return posterior @ scores

    @point_method
    def hessian(self, x: Array) -> Array:
        """`sum_k r_k (-S_k^{-1} + (s_k - s)(s_k - s)^T)`, shape `(d, d)`, units 1/sigma^2."""
        whiteners = _whitener(self.covariances)
        posterior, scores = self._components(x, whiteners)
        spread = weighted_square(posterior, scores - posterior @ scores)
        precisions = jax.vmap(_precision)(whiteners)
        return spread - jnp.tensordot(posterior, precisions, 1)

    def _second_order(self, x: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        hessian = self.hessian(x)
        return self.score(x), jnp.trace(hessian), lambda u: u @ hessian @ u

    def sample(self, key: Key, n: int) -> Array:
        """`n` independent points, shape `(n, d)`."""
        key_component, key_normal = jax.random.split(prng_key(key, "Points are drawn"))
        n = positive_integer("n", n)
        component = jax.random.categorical(key_component, jnp.log(self.weights), shape=(n,))
        z = jax.random.normal(key_normal, (n, *self.shape), self.dtype)

        # One component at a time: gathering a factor a sample would hold n matrices of d x d.
        def place(x: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
            k, mean, factor = inputs
            drawn = mean + jnp.matmul(z, factor.T, precision="highest")
            return jnp.where((component == k)[:, None], drawn, x), None

        factors = cholesky(self.covariances)
        labels = jnp.arange(len(self.weights))
        return jax.lax.scan(place, jnp.zeros_like(z), (labels, self.means, factors))[0]

    def noised(self, alpha: ArrayLike, sigma: ArrayLike) -> "GaussianMixture":
        """The density of `alpha x_0 + sigma eps`: each component noised, the weights kept.

        Raises:
            ValueError: `alpha < 0`, `sigma <= 0`, either not a scalar or its square out of range.
        """
        alpha, sigma = level("noised", alpha, sigma, self.dtype)
        means, covariances = floats(
            "GaussianMixture.noised",
            means=alpha * self.means,
            covariances=_noised_covariance(self.covariances, alpha, sigma),
        )
        return build(GaussianMixture, weights=self.weights, means=means, covariances=covariances)
