r"""Densities with closed-form scores and Hessians: the truth that estimators are checked against.

* [`Gaussian`][sharpjax.densities.Gaussian], `N(mean, covariance)`;
* [`GaussianMixture`][sharpjax.densities.GaussianMixture], with full covariances;
* [`Empirical`][sharpjax.densities.Empirical], a noised data set: the exact-score oracle, the
  score that a perfectly trained network would have.

Each is a pytree, so it crosses `jit` and `vmap` as an argument. Its methods take **one** point (use
`jax.vmap` for more), and each method of a point, read from an instance (`p.score`), is a
`jax.tree_util.Partial`, so that it crosses `jit` as an argument too. `noised(alpha, sigma)` is the
density of `alpha x_0 + sigma eps` with `x_0 ~ p` and standard normal `eps`.

What is checked, and when: shapes always; numbers where the constructor can see them (not under a
trace, and never when JAX rebuilds the object from its leaves).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.tree_util import GetAttrKey, Partial, register_pytree_with_keys

from sharpjax._types import Array, ArrayLike

__all__ = ["Empirical", "Gaussian", "GaussianMixture"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


# --- Pytrees whose constructor validates ------------------------------------------------------


def _pytree(cls: type) -> type:
    """A frozen dataclass and pytree; JAX rebuilds it past `__post_init__` (any leaves may come)."""
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    register_pytree_with_keys(
        cls,
        lambda self: ([(GetAttrKey(name), getattr(self, name)) for name in names], None),
        lambda _, leaves: _build(cls, **dict(zip(names, leaves, strict=True))),
        lambda self: ([getattr(self, name) for name in names], None),
    )
    return cls


def _build(cls: type, **fields: Any) -> Any:
    self = object.__new__(cls)
    _assign(self, **fields)
    return self


def _assign(self: Any, **fields: Any) -> None:
    for name, value in fields.items():
        object.__setattr__(self, name, value)


class _point_method:
    """A method of one point `x`, which from an instance reads as `Partial(function, instance)`.

    It checks the shape of `x` and lifts it to the density's precision. Matrix products run at full
    precision: the accelerators' default (TF32, bfloat16) would spoil a closed form.
    """

    def __init__(self, function: Callable):
        @functools.wraps(function)
        def call(self, x, *args, **kwargs):
            with jax.default_matmul_precision("highest"):
                return function(self, _as_point(self, x), *args, **kwargs)

        self._call = call
        functools.update_wrapper(self, function)

    def __get__(self, instance, owner=None):
        return self._call if instance is None else Partial(self._call, instance)


class _Density:
    """What the densities share: how they print, and the shape and precision of one point."""

    def __repr__(self) -> str:
        fields = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]
        return f"{type(self).__name__}({', '.join(f'{n}={_summary(v)}' for n, v in fields)})"


def _summary(value: Any) -> str:
    if not hasattr(value, "shape"):
        return repr(value)
    if value.shape == () and not isinstance(value, jax.core.Tracer):
        return f"{value:.6g}"
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


# --- Validation -------------------------------------------------------------------------------


def _host(value: Any) -> np.ndarray | None:
    """The numbers in `value` where they are known now; None under a trace."""
    try:
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return None


def _floats(owner: str, **values: Any) -> list[Array]:
    """The values as arrays of one real floating dtype, at least float32, without NaN or inf."""
    arrays = [jnp.asarray(value) for value in values.values()]
    dtype = jnp.promote_types(jnp.result_type(*arrays, float), jnp.float32)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{owner} needs real numbers, got dtype {dtype} among {list(values)}.")
    for name, value in values.items():
        host = _host(value)
        if host is not None and not np.isfinite(host.astype(np.float64)).all():
            raise ValueError(f"{owner}: {name} holds NaN or infinite numbers; remove them first.")
    return [array.astype(dtype) for array in arrays]


def _eps(value: Any, stored: Array) -> float:
    """The rounding unit of the numbers as given or as stored, whichever is coarser."""
    own = getattr(value, "dtype", stored.dtype)
    own = own if jnp.issubdtype(own, jnp.floating) else stored.dtype
    return max(float(jnp.finfo(own).eps), float(jnp.finfo(stored.dtype).eps))


def _check_weights(owner: str, weights: ArrayLike, stored: Array, count: int, of: str) -> None:
    if stored.shape != (count,):
        raise ValueError(
            f"{owner}: weights have shape {stored.shape}, but there are {count} {of}; "
            f"give weights of shape ({count},)."
        )
    host = _host(weights)
    if host is None:
        return
    host = host.astype(np.float64)
    if (host < 0).any():
        raise ValueError(f"{owner}: weights must be >= 0, the smallest is {host.min():.6g}.")
    tolerance = (count + 8) * _eps(weights, stored)
    if abs(host.sum() - 1.0) > tolerance:
        raise ValueError(
            f"{owner}: weights must sum to 1 (within {tolerance:.1e}), they sum to "
            f"{host.sum():.9g}; divide them by their sum."
        )


def _check_covariance(owner: str, covariance: ArrayLike, stored: Array) -> None:
    """Symmetric and positive definite, to the precision in which it is used."""
    host = _host(covariance)
    if host is None:
        return
    host, eps = host.astype(np.float64), _eps(covariance, stored)
    asymmetry = np.abs(host - host.T)
    if asymmetry.max() > 100 * eps * np.abs(host).max():
        i, j = np.unravel_index(asymmetry.argmax(), host.shape)
        raise ValueError(
            f"{owner} is not symmetric: entries [{i}, {j}] and [{j}, {i}] differ by "
            f"{asymmetry.max():.6g}; pass (C + C.T) / 2 if that is meant."
        )
    try:
        # 1 - pivot/diagonal is the share of a coordinate explained by those before it: the test
        # is blind to the units of the coordinates, as the factorisation itself is. What entries
        # rounded to eps leave in the pivots of a singular matrix is about sqrt(d) eps.
        pivots = np.diag(np.linalg.cholesky(host)) ** 2 / np.diag(host)
        positive = bool((pivots > 4 * math.sqrt(len(host)) * eps).all())
    except np.linalg.LinAlgError:
        positive = False
    if not positive:
        smallest = np.linalg.eigvalsh(host)[0]
        raise ValueError(
            f"{owner} is not positive definite in {stored.dtype}: its smallest eigenvalue is "
            f"{smallest:.6g} (the largest entry is {np.abs(host).max():.6g}); remove the "
            "degenerate directions or add a multiple of the identity, as noised(1, sigma) does."
        )


def _as_level(alpha: ArrayLike, sigma: ArrayLike, dtype: Any) -> tuple[Array, Array]:
    """A valid noise level: alpha >= 0, sigma > 0, both scalars."""
    for name, value in (("alpha", alpha), ("sigma", sigma)):
        if np.shape(value) != ():
            raise ValueError(
                f"{name} has shape {np.shape(value)}; one noise level is a scalar: use jax.vmap."
            )
        host = _host(value)
        bad = host is not None and not (host > 0 or (host == 0 and name == "alpha"))
        if bad or (host is not None and not np.isfinite(host)):
            rule = ">= 0" if name == "alpha" else "> 0"
            raise ValueError(f"{name} must be finite and {rule}, got {float(host):.6g}.")
    return jnp.asarray(alpha, dtype), jnp.asarray(sigma, dtype)


def _as_point(density: _Density, x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if x.shape != density.shape:
        raise ValueError(
            f"x has shape {x.shape}, but {type(density).__name__} takes one point of shape "
            f"{density.shape}; use jax.vmap for a batch."
        )
    return x.astype(jnp.promote_types(x.dtype, density.dtype))


def _as_count(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n must be an integer >= 1, got {n!r}.")
    return int(n)


# --- Algebra shared by the densities ----------------------------------------------------------


def _log_normal(x: Array, mean: Array, factor: Array) -> Array:
    """`log N(x; mean, L L^T)` = -|L^{-1} (x - mean)|^2 / 2 - log det L - (d/2) log 2 pi."""
    z = solve_triangular(factor, x - mean, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(factor)))
    return -0.5 * jnp.sum(z**2) - log_det - x.size * _HALF_LOG_TWO_PI


def _normal_score(x: Array, mean: Array, factor: Array) -> Array:
    return -cho_solve((factor, True), x - mean)


def _precision(factor: Array) -> Array:
    """(L L^T)^{-1} = L^{-T} L^{-1}, symmetric to the last bit of rounding."""
    inverse = solve_triangular(factor, jnp.eye(factor.shape[0], dtype=factor.dtype), lower=True)
    return inverse.T @ inverse


def _noised_covariance(covariance: Array, alpha: Array, sigma: Array) -> Array:
    """alpha^2 S + sigma^2 I, for one covariance or a stack."""
    return alpha**2 * covariance + sigma**2 * jnp.eye(covariance.shape[-1], dtype=covariance.dtype)


def _p_laplacian(score: Array, trace: Array, quadratic: Callable, p: ArrayLike) -> Array:
    r"""div(|s|^{p-2} s) from s, tr H and the quadratic form v -> v^T H v.

    d_i (|s|^{p-2} s_i) = |s|^{p-2} d_i s_i + (p-2) |s|^{p-4} s_i (H s)_i, summed over i:
    |s|^{p-2} (tr H + (p-2) u^T H u), with u = s/|s|.
    """
    host = _host(p)
    if np.shape(p) != () or (host is not None and not host >= 1):
        raise ValueError(f"p must be one number >= 1, got {p}.")
    p = jnp.asarray(p, score.dtype)
    # Dividing by the largest entry first keeps |s|^2 from over- or underflowing in float32.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(score)))
    is_zero = largest == 0
    scaled = score / jnp.where(is_zero, 1.0, largest)
    length = jnp.sqrt(jnp.where(is_zero, 1.0, jnp.sum(scaled**2)))
    norm = jnp.where(is_zero, 1.0, largest * length)
    value = norm ** (p - 2) * (trace + (p - 2) * quadratic(scaled / length))
    at_zero = jnp.where(p < 2, jnp.nan, jnp.where(p == 2, trace, 0.0))
    return jnp.where(is_zero, at_zero, value)


# --- The densities ----------------------------------------------------------------------------


@_pytree
class Gaussian(_Density):
    r"""The normal distribution `N(mean, covariance)` on `R^d`.

    Args:
        mean: shape `(d,)`.
        covariance: shape `(d, d)`, symmetric and positive definite.

    Raises:
        ValueError: shapes that do not fit; a covariance that is not symmetric (the largest
            asymmetry is named) or not positive definite (the smallest eigenvalue is named).

    >>> import jax.numpy as jnp
    >>> p = Gaussian(mean=jnp.zeros(2), covariance=jnp.diag(jnp.array([1.0, 4.0])))
    >>> p.score(jnp.array([1.0, 4.0]))
    Array([-1., -1.], dtype=float32)
    >>> print(f"{p.noised(alpha=0.6, sigma=0.8).log_prob(jnp.zeros(2)):.4f}")
    -2.2041
    """

    mean: Array
    covariance: Array

    def __post_init__(self):
        mean, covariance = _floats("Gaussian", mean=self.mean, covariance=self.covariance)
        if mean.ndim != 1 or mean.size == 0:
            raise ValueError(f"Gaussian: mean must have shape (d,) with d >= 1, got {mean.shape}.")
        if covariance.shape != 2 * mean.shape:
            raise ValueError(
                f"Gaussian: covariance has shape {covariance.shape}; with a mean of shape "
                f"{mean.shape} it must be square, {2 * mean.shape}."
            )
        _check_covariance("Gaussian: covariance", self.covariance, covariance)
        _assign(self, mean=mean, covariance=covariance)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one point, `(d,)`."""
        return self.mean.shape

    @property
    def dtype(self) -> Any:
        """The precision of the parameters."""
        return self.mean.dtype

    @_point_method
    def log_prob(self, x: Array) -> Array:
        """`log p(x)`, a scalar; `x` has shape `(d,)`."""
        return _log_normal(x, self.mean, jnp.linalg.cholesky(self.covariance))

    @_point_method
    def score(self, x: Array) -> Array:
        """`grad log p(x) = -S^{-1} (x - mean)`, shape `(d,)`, units 1/sigma."""
        return _normal_score(x, self.mean, jnp.linalg.cholesky(self.covariance))

    @_point_method
    def hessian(self, x: Array) -> Array:
        """`-S^{-1}`, the same at every `x`; shape `(d, d)`, units 1/sigma^2."""
        return -_precision(jnp.linalg.cholesky(self.covariance)).astype(x.dtype)

    @_point_method
    def p_laplacian(self, x: Array, p: ArrayLike) -> Array:
        r"""`div(|s|^{p-2} s)` at `x`, a scalar, exact; units sigma^{-p}.

        `|s|^{p-2} (tr H + (p-2) u^T H u)` with `u = s/|s|`. Where `s = 0`: NaN for `p < 2`
        (undefined there), `tr H` for `p = 2`, 0 for `p > 2`.

        Raises:
            ValueError: `p < 1`.

        At radius `r` of an isotropic Gaussian the 1-Laplacian is `-(d - 1)/r`:

        >>> import jax.numpy as jnp
        >>> p = Gaussian(mean=jnp.zeros(3), covariance=jnp.eye(3))
        >>> print(f"{p.p_laplacian(jnp.array([0.0, 4.0, 0.0]), 1):.4f}")
        -0.5000
        """
        factor = jnp.linalg.cholesky(self.covariance)
        half = solve_triangular(factor, jnp.eye(x.size, dtype=factor.dtype), lower=True)
        score = _normal_score(x, self.mean, factor)
        return _p_laplacian(score, -jnp.sum(half**2), lambda u: -jnp.sum((half @ u) ** 2), p)

    def sample(self, key: Array, n: int) -> Array:
        """`n` independent points, shape `(n, d)`."""
        z = jax.random.normal(key, (_as_count(n), *self.shape), self.dtype)
        factor = jnp.linalg.cholesky(self.covariance)
        return self.mean + jnp.matmul(z, factor.T, precision="highest")

    def noised(self, alpha: ArrayLike, sigma: ArrayLike) -> "Gaussian":
        """The density of `alpha x_0 + sigma eps`: `N(alpha mean, alpha^2 S + sigma^2 I)`.

        Raises:
            ValueError: `alpha < 0`, `sigma <= 0`, or either not a scalar.
        """
        alpha, sigma = _as_level(alpha, sigma, self.dtype)
        covariance = _noised_covariance(self.covariance, alpha, sigma)
        return _build(Gaussian, mean=alpha * self.mean, covariance=covariance)


@_pytree
class GaussianMixture(_Density):
    r"""The mixture `sum_k w_k N(mean_k, S_k)` on `R^d`.

    Args:
        weights: shape `(k,)`, non-negative, summing to 1.
        means: shape `(k, d)`.
        covariances: shape `(k, d, d)`, each symmetric and positive definite.

    Raises:
        ValueError: shapes that do not fit, weights that are negative or do not sum to 1 (the sum
            is named), a covariance that is not symmetric or not positive definite.

    >>> import jax.numpy as jnp
    >>> p = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], jnp.ones((2, 1, 1)))
    >>> print(f"{p.hessian(jnp.zeros(1))[0, 0]:.4f}")  # -1 + 2^2: convex between the modes
    3.0000
    """

    weights: Array
    means: Array
    covariances: Array

    def __post_init__(self):
        weights, means, covariances = _floats(
            "GaussianMixture",
            weights=self.weights,
            means=self.means,
            covariances=self.covariances,
        )
        if means.ndim != 2 or 0 in means.shape:
            raise ValueError(
                f"GaussianMixture: means must have shape (k, d) with k, d >= 1, got {means.shape}."
            )
        count, dim = means.shape
        if covariances.shape != (count, dim, dim):
            raise ValueError(
                f"GaussianMixture: covariances have shape {covariances.shape}; with means of shape "
                f"{means.shape} they must be square, one a component: {(count, dim, dim)}."
            )
        _check_weights("GaussianMixture", self.weights, weights, count, "means")
        for k in range(count) if _host(self.covariances) is not None else ():
            name = f"GaussianMixture: covariances[{k}]"
            _check_covariance(name, self.covariances[k], covariances[k])
        _assign(self, weights=weights, means=means, covariances=covariances)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one point, `(d,)`."""
        return self.means.shape[1:]

    @property
    def dtype(self) -> Any:
        """The precision of the parameters."""
        return self.means.dtype

    def _log_joint(self, x: Array, factors: Array) -> Array:
        """`log w_k + log N(x; mean_k, S_k)`, shape (k,)."""
        log_normals = jax.vmap(_log_normal, (None, 0, 0))(x, self.means, factors)
        return jnp.log(self.weights) + log_normals

    @_point_method
    def log_prob(self, x: Array) -> Array:
        """`log p(x)`, a scalar; `x` has shape `(d,)`."""
        return jax.nn.logsumexp(self._log_joint(x, jnp.linalg.cholesky(self.covariances)))

    @_point_method
    def score(self, x: Array) -> Array:
        """`grad log p(x) = sum_k r_k s_k`, shape `(d,)`, units 1/sigma.

        `r_k` is the posterior probability of component k at `x`, `s_k` its score.
        """
        factors = jnp.linalg.cholesky(self.covariances)
        scores = jax.vmap(_normal_score, (None, 0, 0))(x, self.means, factors)
        return jax.nn.softmax(self._log_joint(x, factors)) @ scores

    @_point_method
    def hessian(self, x: Array) -> Array:
        """`sum_k r_k (-S_k^{-1} + (s_k - s)(s_k - s)^T)`, shape `(d, d)`, units 1/sigma^2."""
        factors = jnp.linalg.cholesky(self.covariances)
        posterior = jax.nn.softmax(self._log_joint(x, factors))
        scores = jax.vmap(_normal_score, (None, 0, 0))(x, self.means, factors)
        spread = jnp.sqrt(posterior)[:, None] * (scores - posterior @ scores)
        precisions = jax.vmap(_precision)(factors)
        return spread.T @ spread - jnp.tensordot(posterior, precisions, 1)

    @_point_method
    def p_laplacian(self, x: Array, p: ArrayLike) -> Array:
        r"""`div(|s|^{p-2} s)` at `x`, a scalar, exact; units sigma^{-p}.

        `|s|^{p-2} (tr H + (p-2) u^T H u)` with `u = s/|s|`. Where `s = 0`: NaN for `p < 2`
        (undefined there), `tr H` for `p = 2`, 0 for `p > 2`.

        Raises:
            ValueError: `p < 1`.
        """
        hessian = self.hessian(x)
        return _p_laplacian(self.score(x), jnp.trace(hessian), lambda u: u @ hessian @ u, p)

    def sample(self, key: Array, n: int) -> Array:
        """`n` independent points, shape `(n, d)`."""
        key_component, key_normal = jax.random.split(key)
        n = _as_count(n)
        component = jax.random.categorical(key_component, jnp.log(self.weights), shape=(n,))
        z = jax.random.normal(key_normal, (n, *self.shape), self.dtype)

        # One component at a time: gathering a factor a sample would hold n matrices of d x d.
        def place(x, inputs):
            k, mean, factor = inputs
            drawn = mean + jnp.matmul(z, factor.T, precision="highest")
            return jnp.where((component == k)[:, None], drawn, x), None

        factors = jnp.linalg.cholesky(self.covariances)
        labels = jnp.arange(len(self.weights))
        return jax.lax.scan(place, jnp.zeros_like(z), (labels, self.means, factors))[0]

    def noised(self, alpha: ArrayLike, sigma: ArrayLike) -> "GaussianMixture":
        """The density of `alpha x_0 + sigma eps`: each component noised, the weights kept.

        Raises:
            ValueError: `alpha < 0`, `sigma <= 0`, or either not a scalar.
        """
        alpha, sigma = _as_level(alpha, sigma, self.dtype)
        return _build(
            GaussianMixture,
            weights=self.weights,
            means=alpha * self.means,
            covariances=_noised_covariance(self.covariances, alpha, sigma),
        )


@_pytree
class Empirical(_Density):
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
            is named), `alpha < 0`, `sigma <= 0`; by a method of a point, `sigma` None.

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
    weights: Array | None = None
    alpha: Array | float = 1.0
    sigma: Array | float | None = None

    def __post_init__(self):
        (points,) = _floats("Empirical", points=self.points)
        if points.ndim < 2 or points.size == 0:
            raise ValueError(
                "Empirical: points must have shape (n, *shape), n >= 1 points of at least one "
                f"coordinate each, got {points.shape}."
            )
        count = len(points)
        if self.weights is None:
            weights = jnp.full(count, 1.0 / count, points.dtype)
        else:
            points, weights = _floats("Empirical", points=points, weights=self.weights)
            _check_weights("Empirical", self.weights, weights, count, "points")
        level = self.alpha, 1.0 if self.sigma is None else self.sigma
        alpha, sigma = _as_level(*level, points.dtype)
        sigma = None if self.sigma is None else sigma
        _assign(self, points=points, weights=weights, alpha=alpha, sigma=sigma)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one point."""
        return self.points.shape[1:]

    @property
    def dtype(self) -> Any:
        """The precision of the parameters."""
        return self.points.dtype

    @property
    def _flat(self) -> Array:
        """The points as an (n, d) matrix, of a density."""
        if self.sigma is None:
            raise ValueError(
                "Empirical without noise is a sum of point masses and has no density; "
                "call .noised(alpha, sigma) first."
            )
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
        points, x = self._flat, x.ravel()
        log_weights = jnp.log(self.weights)
        squares = jnp.sum(((x - self.alpha * points) / self.sigma) ** 2, axis=1)
        j = jnp.argmax(log_weights - 0.5 * squares)
        error, offsets = x - self.alpha * points[j], points - points[j]
        gains = jnp.sum(offsets * (2.0 * error - self.alpha * offsets), axis=1)
        logits = log_weights + 0.5 * self.alpha / self.sigma**2 * gains
        base = -0.5 * jnp.sum((error / self.sigma) ** 2)
        return logits, base - x.size * (jnp.log(self.sigma) + _HALF_LOG_TWO_PI)

    def _centred(self, x: Array) -> tuple[Array, Array]:
        """The posterior weights, and the points less their posterior mean, (n, d)."""
        posterior = jax.nn.softmax(self._log_joint(x)[0])
        points = self._flat
        return posterior, points - posterior @ points

    @_point_method
    def posterior_weights(self, x: Array) -> Array:
        """`r_i = P(x_0 = y_i | x)`, shape `(n,)`: which data points `x` may come from."""
        return jax.nn.softmax(self._log_joint(x)[0])

    @_point_method
    def log_prob(self, x: Array) -> Array:
        """`log p_t(x)`, a scalar."""
        logits, base = self._log_joint(x)
        return base + jax.nn.logsumexp(logits)

    @_point_method
    def score(self, x: Array) -> Array:
        """`(alpha E[x_0 | x] - x)/sigma^2`, of the data's shape, units 1/sigma."""
        posterior = jax.nn.softmax(self._log_joint(x)[0])
        mean = (posterior @ self._flat).reshape(self.shape)
        return (self.alpha * mean - x) / self.sigma**2

    @_point_method
    def hvp(self, x: Array, v: ArrayLike) -> Array:
        """`H(x) v` without forming `H`; `v` and the result have the data's shape.

        `(-v + (alpha/sigma)^2 sum_i r_i c_i (c_i . v))/sigma^2` with `c_i = y_i - m`.

        Raises:
            ValueError: `v` of another shape than the data.
        """
        v = jnp.asarray(v)
        if v.shape != self.shape:
            raise ValueError(f"v has shape {v.shape}, but a point has shape {self.shape}.")
        posterior, centred = self._centred(x)
        pulled = (posterior * (centred @ v.ravel().astype(x.dtype))) @ centred
        return ((self.alpha / self.sigma) ** 2 * pulled.reshape(self.shape) - v) / self.sigma**2

    @_point_method
    def hessian(self, x: Array) -> Array:
        """The dense Hessian on the flattened coordinates, `(d, d)`, units 1/sigma^2. Small d."""
        posterior, centred = self._centred(x)
        spread = jnp.sqrt(posterior)[:, None] * centred * (self.alpha / self.sigma)
        return (spread.T @ spread - jnp.eye(x.size, dtype=spread.dtype)) / self.sigma**2

    @_point_method
    def effective_dimension(self, x: Array) -> Array:
        """`tr K = (alpha/sigma)^2 tr Cov[x_0 | x]`, dimensionless, in O(n d).

        It sums squares, so it keeps its digits where `d + sigma^2 tr H` would cancel.
        """
        posterior, centred = self._centred(x)
        return (self.alpha / self.sigma) ** 2 * (posterior @ jnp.sum(centred**2, axis=1))

    @_point_method
    def trace_hessian(self, x: Array) -> Array:
        """`tr H = (tr K - d)/sigma^2`, a scalar, exact, in O(n d)."""
        return (self.effective_dimension(x) - x.size) / self.sigma**2

    @_point_method
    def p_laplacian(self, x: Array, p: ArrayLike) -> Array:
        r"""`div(|s|^{p-2} s)` at `x`, a scalar, exact, in O(n d); units sigma^{-p}.

        `|s|^{p-2} (tr H + (p-2) u^T H u)` with `u = s/|s|`. Where `s = 0`: NaN for `p < 2`
        (undefined there), `tr H` for `p = 2`, 0 for `p > 2`.

        Raises:
            ValueError: `p < 1`.
        """

        def quadratic(u):
            return jnp.sum(u * self.hvp(x, u))

        return _p_laplacian(self.score(x), self.trace_hessian(x), quadratic, p)

    def sample(self, key: Array, n: int) -> Array:
        """`n` independent points, shape `(n, *shape)`: data points drawn by weight, then noised."""
        key_point, key_noise = jax.random.split(key)
        n = _as_count(n)
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
            ValueError: `alpha < 0`, `sigma <= 0`, or either not a scalar.
        """
        alpha, sigma = _as_level(alpha, sigma, self.dtype)
        if self.sigma is not None:
            sigma = jnp.hypot(alpha * self.sigma, sigma)
        level = {"alpha": alpha * self.alpha, "sigma": sigma}
        return _build(Empirical, points=self.points, weights=self.weights, **level)
