"""A mixture of low-rank Gaussians: image-sized densities whose curvature is a closed form."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._checks import checked_pytree, host_value, level, positive_integer, prng_key
from sharpjax._types import Array, ArrayLike, Key, Numbers
from sharpjax.densities.base import (
    HALF_LOG_TWO_PI,
    Density,
    assign,
    build,
    point_method,
    weighted_square,
)
from sharpjax.densities.validation import check_weights, floats, rounding_unit


class _Components(NamedTuple):
    """What the components are at one level, and where `x` lies in each."""

    posterior: Array  # (k,)
    log_joint: Array  # (k,)
    scores: Array  # (k, d)
    across: Array  # (k,) variance across the directions, nu
    along: Array  # (k, r) variances along them


@checked_pytree
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LowRankMixture(Density):
    r"""The mixture $\sum_k w_k N(\mu_k, S_k)$, $S_k = U_k^T \mathrm{diag}(v_k) U_k + f_k I$.

    The rows of $U_k$, `(r, d)`, are orthonormal; with $\alpha^2 f_k + \sigma^2 = \nu_k$ the noised
    component is $N(\alpha\mu_k, \alpha^2 U_k^T \mathrm{diag}(v_k) U_k + \nu_k I)$, and by
    Woodbury's identity, with $e = x - \alpha\mu_k$ and $c = U_k e$,

    $$
    S_k^{-1} e = \frac{e - U_k^T c}{\nu_k} + U_k^T \frac{c}{\alpha^2 v_k + \nu_k}, \qquad
    \log\det S_k = (d - r) \log \nu_k + \sum_j \log(\alpha^2 v_{kj} + \nu_k) .
    $$

    No $d \times d$ matrix is formed except by `hessian`: time and memory grow as `k r d`. Fitted to
    the renderings of each thing by `fit`, it is the exact-score oracle for *broad* conditions,
    which a finite data set ([`Empirical`][sharpjax.densities.Empirical]: all ranks 0) cannot be.
    A condition is another set of weights: see `reweighted`.

    Args:
        weights: `(k,)`, non-negative, summing to 1.
        means: `(k, *shape)`; a point, its score and vectors have this `shape`, of any axes.
        directions: `(k, r, *shape)`, orthonormal within a component; a direction of variance 0 may
            be anything, zeros for instance, so that components of lower rank are padded.
        variances: `(k, r)`, along the directions, beyond `floor`; >= 0.
        floor: `(k,)`, the variance of every other direction; >= 0.
        alpha: scale of the data, >= 0.
        sigma: noise, > 0, or None: no noise; where a floor is 0 too there is no density then.

    Raises:
        ValueError: shapes that do not fit, weights that are negative or do not sum to 1, directions
            that are not orthonormal (the largest error is named), negative variances, no valid
            level; by a method of a point, no noise and a floor of 0.

    >>> p = LowRankMixture([1.0], jnp.zeros((1, 3)), [[[0.0, 1.0, 0.0]]], [[3.0]], [0.0])
    >>> p.noised(alpha=1.0, sigma=1.0).score(jnp.array([1.0, 1.0, 2.0]))
    Array([-1.  , -0.25, -2.  ], dtype=float32)
    >>> print(f"{p.noised(alpha=1.0, sigma=1.0).effective_dimension(jnp.zeros(3)):.2f}")
    0.75
    """

    weights: Array
    means: Array
    directions: Array
    variances: Array
    floor: Array
    alpha: Array | float = 1.0
    sigma: Array | float | None = None

    _points: ClassVar = "means", 1

    if TYPE_CHECKING:  # the constructor makes arrays of what it is given

        def __init__(
            self,
            weights: Numbers,
            means: Numbers,
            directions: Numbers,
            variances: Numbers,
            floor: Numbers,
            alpha: ArrayLike = 1.0,
            sigma: ArrayLike | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        weights, means, directions, variances, floor = floats(
            "LowRankMixture",
            weights=self.weights,
            means=self.means,
            directions=self.directions,
            variances=self.variances,
            floor=self.floor,
        )
        if means.ndim < 2 or 0 in means.shape:
            raise ValueError(
                "LowRankMixture: means must have shape (k, *shape), k >= 1 points of at least one "
                f"coordinate each, got {means.shape}"
            )
        count, shape = len(means), means.shape[1:]
        if directions.shape[:1] + directions.shape[2:] != means.shape:
            raise ValueError(
                f"LowRankMixture: directions must have shape (k, r, *shape), here ({count}, r, "
                f"{', '.join(map(str, shape))}), got {directions.shape}"
            )
        rank = directions.shape[1]
        for name, value, wanted in (
            ("variances", variances, (count, rank)),
            ("floor", floor, (count,)),
        ):
            if value.shape != wanted:
                raise ValueError(
                    f"LowRankMixture: {name} must have shape {wanted}, got {value.shape}"
                )
            host = host_value(getattr(self, name))
            if host is not None and host.min(initial=0.0) < 0:
                raise ValueError(
                    f"LowRankMixture: {name} must be >= 0, the smallest is {host.min():.6g}"
                )
        check_weights("LowRankMixture", self.weights, weights, count, "means")
        _check_orthonormal(self.directions, self.variances, directions)
        given = self.alpha, 1.0 if self.sigma is None else self.sigma
        alpha, sigma = level("LowRankMixture", *given, means.dtype)
        assign(
            self,
            weights=weights,
            means=means,
            directions=directions,
            variances=variances,
            floor=floor,
            alpha=alpha,
            sigma=None if self.sigma is None else sigma,
        )

    @classmethod
    def fit(
        cls,
        points: ArrayLike,
        labels: ArrayLike,
        *,
        rank: int,
        floor: float = 0.0,
        weights: Numbers | None = None,
    ) -> "LowRankMixture":
        r"""One component for the points of each label, by maximum likelihood.

        Of a component's points, with eigenvalues $\lambda_1 \ge \dots$ of their covariance, the
        first `rank` eigenvectors are its directions, the mean of the other $d - r$ eigenvalues its
        floor $f$ (or `floor`, if that is more), and $\lambda_j - f$ its variances (Tipping &
        Bishop 1999, doi:10.1111/1467-9868.00196): no variance is lost. A label with one point has
        rank 0 and the floor `floor`.

        Args:
            points: `(n, *shape)`.
            labels: `(n,)` integers; every one from 0 to k - 1 has a point.
            rank: directions a component at most.
            floor: the least variance across the directions, >= 0; of images that passed through an
                autoencoder: the variance of its error.
            weights: of the components; by default the shares of the points.

        Raises:
            ValueError: shapes that do not fit, a label without a point, `rank < 1`.

        >>> x = jax.random.normal(jax.random.key(0), (50, 4)) * jnp.array([5.0, 1.0, 1.0, 1.0])
        >>> p = LowRankMixture.fit(x, jnp.zeros(50, int), rank=1)
        >>> print(p.means.shape, p.directions.shape, f"{abs(p.directions[0, 0, 0]):.2f}")
        (1, 4) (1, 1, 4) 1.00
        """
        rank = positive_integer("rank", rank)
        data, owner = np.asarray(points), np.asarray(labels)
        if data.ndim < 2 or owner.shape != data.shape[:1] or owner.dtype.kind not in "iu":
            raise ValueError(
                "points must have shape (n, *shape) with one integer label each, got "
                f"{data.shape} and labels {owner.dtype} {owner.shape}"
            )
        sizes = np.bincount(owner) if owner.size and owner.min() >= 0 else np.zeros(1, int)
        if not sizes.all():
            raise ValueError(
                f"every label from 0 to {len(sizes) - 1} needs a point, {np.argmin(sizes)} has none"
            )
        flat = data.reshape(len(data), -1).astype(np.float64)
        rank = min(rank, int(sizes.max()) - 1, flat.shape[1])
        means = np.zeros((len(sizes), flat.shape[1]))
        directions = np.zeros((len(sizes), rank, flat.shape[1]))
        variances, floors = np.zeros((len(sizes), rank)), np.full(len(sizes), floor)
        for k, size in enumerate(sizes):
            own = flat[owner == k]
            means[k] = own.mean(axis=0)
            r = min(rank, size - 1)
            if r == 0:
                continue
            _, scale, basis = np.linalg.svd((own - means[k]) / np.sqrt(size), full_matrices=False)
            rest = np.sum(scale[r:] ** 2) / max(flat.shape[1] - r, 1)
            floors[k] = max(rest, floor)
            directions[k, :r] = basis[:r]
            variances[k, :r] = np.maximum(scale[:r] ** 2 - floors[k], 0.0)
        shape, dtype = data.shape[1:], jnp.result_type(data.dtype, jnp.float32)
        return cls(
            sizes / len(data) if weights is None else weights,
            means.reshape(-1, *shape).astype(dtype),
            directions.reshape(len(sizes), rank, *shape).astype(dtype),
            variances.astype(dtype),
            floors.astype(dtype),
        )

    def reweighted(self, weights: Numbers) -> "LowRankMixture":
        """The same components in other shares: what a condition is to all of the data.

        Raises:
            ValueError: weights that are not one each, are negative or do not sum to 1.
        """
        (stored,) = floats("reweighted", weights=weights)
        check_weights("reweighted", cast(ArrayLike, weights), stored, len(self.means), "means")
        return dataclasses.replace(self, weights=stored.astype(self.dtype))

    def _variances(self) -> tuple[Array, Array]:
        """`nu`, (k,), and the variances along the directions, (k, r), of this level."""
        if self.sigma is None:
            host = host_value(self.floor)
            if host is not None and not host.all():
                raise ValueError(
                    "LowRankMixture without noise has no density where its floor is 0; call "
                    ".noised(alpha, sigma) first"
                )
        noise = 0.0 if self.sigma is None else self.sigma**2
        across = self.alpha**2 * self.floor + noise
        return across, self.alpha**2 * self.variances + across[:, None]

    @property
    def _flat(self) -> tuple[Array, Array]:
        """Means as `(k, d)` and directions as `(k, r, d)`, zeros where the variance is 0."""
        means = self.means.reshape(len(self.means), -1)
        directions = self.directions.reshape(*self.variances.shape, means.shape[1])
        return means, jnp.where((self.variances > 0)[..., None], directions, 0.0)

    def _components(self, x: Array) -> _Components:
        """The square of e is summed across and along the directions, never as a difference."""
        across, along = self._variances()
        means, directions = self._flat
        error = x.ravel() - self.alpha * means
        inside = jnp.einsum("krd,kd->kr", directions, error)
        outside = error - jnp.einsum("kr,krd->kd", inside, directions)
        square = jnp.sum(outside**2, axis=1) / across + jnp.sum(inside**2 / along, axis=1)
        rank = directions.shape[1]
        log_det = (x.size - rank) * jnp.log(across) + jnp.sum(jnp.log(along), axis=1)
        log_joint = jnp.log(self.weights) - 0.5 * (square + log_det) - x.size * HALF_LOG_TWO_PI
        pull = jnp.einsum("kr,krd->kd", inside / along, directions)
        scores = -(outside / across[:, None] + pull)
        return _Components(jax.nn.softmax(log_joint), log_joint, scores, across, along)

    @point_method
    def posterior_weights(self, x: Array) -> Array:
        """The posterior probability of each component at `x`, `(k,)`."""
        return self._components(x).posterior

    @point_method
    def log_prob(self, x: Array) -> Array:
        """`log p(x)`, a scalar."""
        return jax.nn.logsumexp(self._components(x).log_joint)

    @point_method
    def score(self, x: Array) -> Array:
        """`sum_k r_k s_k`, of the data's shape, units 1/sigma; `r_k` as `posterior_weights`."""
        here = self._components(x)
        return (here.posterior @ here.scores).reshape(self.shape)

    @point_method
    def hvp(self, x: Array, v: ArrayLike) -> Array:
        """`H(x) v` without forming `H`: `sum_k r_k (-S_k^{-1} v + (s_k - s) ((s_k - s) . v))`.

        Raises:
            ValueError: `v` of another shape than the data.
        """
        v = jnp.asarray(v)
        if v.shape != self.shape:
            raise ValueError(f"v has shape {v.shape}, but a point has shape {self.shape}")
        v = v.ravel().astype(x.dtype)
        here, directions = self._components(x), self._flat[1]
        centred = here.scores - here.posterior @ here.scores
        spread = (here.posterior * (centred @ v)) @ centred
        inside = directions @ v
        share = inside * (1 / here.along - 1 / here.across[:, None])
        pulled = jnp.einsum("kr,krd,k->d", share, directions, here.posterior)
        return (spread - (here.posterior @ (1 / here.across)) * v - pulled).reshape(self.shape)

    @point_method
    def hessian(self, x: Array) -> Array:
        """The dense Hessian on the flattened coordinates, `(d, d)`, units 1/sigma^2. Small d."""
        here, directions = self._components(x), self._flat[1]
        spread = weighted_square(here.posterior, here.scores - here.posterior @ here.scores)
        share = here.posterior[:, None] * (1 / here.across[:, None] - 1 / here.along)
        rows = directions.reshape(-1, x.size)
        inside = weighted_square(share.ravel(), rows)
        eye = jnp.eye(x.size, dtype=spread.dtype)
        return spread + inside - (here.posterior @ (1 / here.across)) * eye

    @point_method
    def effective_dimension(self, x: Array) -> Array:
        r"""`tr K = d + sigma^2 tr H`, dimensionless; d where there is no noise.

        $\sum_k r_k [(d - r) \alpha^2 f_k/\nu_k + \sum_j \alpha^2 (v_{kj} + f_k)/(\alpha^2 v_{kj} +
        \nu_k) + \sigma^2 |s_k - s|^2]$: a sum of what is not negative, so it keeps its digits
        where `d + sigma^2 tr H` would cancel.
        """
        here = self._components(x)
        noise = 0.0 if self.sigma is None else self.sigma**2
        centred = here.scores - here.posterior @ here.scores
        rank = here.along.shape[1]
        signal = self.alpha**2 * self.floor
        own = (x.size - rank) * signal / here.across
        own += jnp.sum((self.alpha**2 * self.variances + signal[:, None]) / here.along, axis=1)
        return here.posterior @ (own + noise * jnp.sum(centred**2, axis=1))

    @point_method
    def trace_hessian(self, x: Array) -> Array:
        """`tr H`, a scalar, exact, in O(k r d)."""
        here = self._components(x)
        centred = here.scores - here.posterior @ here.scores
        rank = here.along.shape[1]
        own = (x.size - rank) / here.across + jnp.sum(1 / here.along, axis=1)
        return here.posterior @ (jnp.sum(centred**2, axis=1) - own)

    def _second_order(self, x: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        return self.score(x), self.trace_hessian(x), lambda u: jnp.sum(u * self.hvp(x, u))

    def sample(self, key: Key, n: int) -> Array:
        """`n` independent points, shape `(n, *shape)`."""
        n = positive_integer("n", n)
        keys = jax.random.split(prng_key(key, "Points are drawn"), 3)
        component = jax.random.categorical(keys[0], jnp.log(self.weights), shape=(n,))
        means, directions = self._flat
        inside = jax.random.normal(keys[1], (n, directions.shape[1]), self.dtype)
        inside *= self.alpha * jnp.sqrt(self.variances[component])
        noise = 0.0 if self.sigma is None else self.sigma**2
        across = jnp.sqrt(self.alpha**2 * self.floor + noise)[component, None]
        white = jax.random.normal(keys[2], (n, means.shape[1]), self.dtype)

        # One at a time: gathering the directions of each would hold n r d numbers.
        def place(own: tuple[Array, Array]) -> Array:
            k, along = own
            return self.alpha * means[k] + along @ directions[k]

        points = jax.lax.map(place, (component, inside)) + across * white
        return points.reshape(n, *self.shape)

    def noised(self, alpha: ArrayLike, sigma: ArrayLike) -> "LowRankMixture":
        """The density of `alpha x + sigma eps` with `x` from this one.

        On what is already noised by `(a, s)` the two levels compose to
        `(alpha a, sqrt(alpha^2 s^2 + sigma^2))`.

        Raises:
            ValueError: `alpha < 0`, `sigma <= 0`, either not a scalar or its square out of range.
        """
        alpha, sigma = level("noised", alpha, sigma, self.dtype)
        if self.sigma is not None:
            sigma = jnp.hypot(alpha * self.sigma, sigma)
        alpha, sigma = level("noised", alpha * self.alpha, sigma, self.dtype)
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return build(LowRankMixture, **fields | {"alpha": alpha, "sigma": sigma})


def _check_orthonormal(given: Numbers, variances: Numbers, stored: Array) -> None:
    """Rows of one component: unit vectors at right angles, where their variance is not 0."""
    host, used = host_value(given), host_value(variances)
    if host is None or used is None or not host.size:
        return
    rows = host.reshape(*host.shape[:2], -1).astype(np.float64) * (used > 0)[..., None]
    wanted = np.eye(rows.shape[1]) * (used > 0)[..., None]
    error = float(np.abs(rows @ rows.swapaxes(1, 2) - wanted).max())
    allowed = 100 * rounding_unit(given, stored) * np.sqrt(rows.shape[2])
    if error > allowed:
        raise ValueError(
            "LowRankMixture: the directions of a component must be orthonormal where their "
            f"variance is not 0; their products miss that by {error:.3g} (allowed {allowed:.1e}); "
            "numpy.linalg.qr makes such directions"
        )
