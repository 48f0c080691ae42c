r"""The covariance of the clean example given the noisy one, from a score.

**Tweedie.** Of $x = \alpha x_0 + \sigma\varepsilon$ the posterior mean is
$E[x_0 \mid x] = (x + \sigma^2 s(x))/\alpha$, and its derivative is the posterior covariance over
$\sigma^2/\alpha$:

$$
\mathrm{Cov}[x_0 \mid x] = \frac{\sigma^2}{\alpha} \frac{\partial E[x_0 \mid x]}{\partial x}
= \frac{\sigma^2}{\alpha^2} K, \qquad K = I + \sigma^2 H .
$$

So it is the Jacobian of one function, $(\sigma^2/\alpha^2)(x + \sigma^2 s(x))$, and whatever this
package estimates of a score's Jacobian it estimates of that.  The covariance is of low effective
rank where the data are, so sketches need no further scaling.

(M. C. K. Tweedie, J. R. Statist. Soc. B 9 (1947); B. Efron, J. Amer. Statist. Assoc. 106 (2011),
doi:10.1198/jasa.2011.tm11181; principal components of posteriors: H. Manor & T. Michaeli,
arXiv:2309.13598.)
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sharpjax._checks import check_signal, level
from sharpjax._checks import point as checked_point
from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike, Key, Score
from sharpjax.curvature.eigenpairs import Eigenpairs, extreme_eigenpairs
from sharpjax.curvature.estimate import Estimate
from sharpjax.curvature.methods import Method
from sharpjax.curvature.norms import diagonal
from sharpjax.curvature.operators import Jacobian, jacobian
from sharpjax.curvature.programs import as_pytree
from sharpjax.curvature.spectra import stochastic_asymmetry
from sharpjax.curvature.traces import trace
from sharpjax.mesh.loops import without_explicit_axes
from sharpjax.score import score_at


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PosteriorCovariance:
    r"""$C = \mathrm{Cov}[x_0 \mid x]$ as a linear operator; made by `posterior_covariance`.

    A pytree, as `Jacobian`.  Vectors have the shape of the point, `d = x.size`; C has the units of
    $x_0$ squared.  Of a learned score C is not exactly symmetric (`asymmetry`) and may have
    eigenvalues below 0: what is estimated is C as the score has it, of `principal_components` its
    symmetric part.

    Attributes:
        mean: $E[x_0 \mid x]$.
        denoiser: $(\sigma^2/\alpha^2)(x + \sigma^2 s(x))$, whose Jacobian C is.
        operator: that Jacobian.
    """

    mean: Array
    denoiser: Score
    operator: Jacobian

    __repr__ = one_line

    def mv(self, v: ArrayLike) -> Array:
        """`C v`: one tangent of the score.

        Raises:
            ValueError: `v` has not the shape of the point.
        """
        return self.operator.mv(v)

    def symmetric_mv(self, v: ArrayLike) -> Array:
        """`(C + C^T) v / 2`: one tangent and one cotangent."""
        return self.operator.symmetric_mv(v)

    def trace(self, *, key: Key | None = None, **options: Any) -> Estimate:
        """`tr C`, the mean squared error of the best denoiser; options as of `trace`.

        >>> import jax, jax.numpy as jnp
        >>> C = posterior_covariance(lambda x: -x / 2, jnp.ones(3), alpha=1.0, sigma=1.0)
        >>> C.trace(key=jax.random.key(0))  # N(0, 1) seen through as much noise: half is left
        Estimate(1.5 ± 0, num_samples=32, num_matvecs=32)
        """
        return trace(self.denoiser, self.operator.point, key=key, **options)

    def diagonal(self, *, key: Key | None = None, **options: Any) -> Estimate:
        """The variance of each coordinate, shaped as the point; options as of `diagonal`."""
        return diagonal(self.denoiser, self.operator.point, key=key, **options)

    def standard_deviation(
        self,
        *,
        key: Key | None = None,
        num_matvecs: int = 32,
        method: Method | str = "hutchinson",
        batch_size: int | None = None,
    ) -> Estimate:
        r"""That of each coordinate (of each pixel), shaped as the point; in the units of $x_0$.

        The root of `diagonal`, 0 where that is negative.  With $v$ and $e$ the variance and its
        standard error, that of the root is the larger of $\sqrt{v+e} - \sqrt v$ and $\sqrt v -
        \sqrt{v-e}$ (0 for a negative number), which tends to $e/(2\sqrt v)$ where the variance is
        well known, and is wide where it is not.

        Args:
            key: PRNG key of the probes; the exact diagonal needs none.
            num_matvecs: products with C.
            method: "hutchinson", or "exact", by d products.
            batch_size: products at once.

        Raises:
            ValueError: as `sharpjax.curvature.diagonal`.
        """
        found = self.diagonal(
            key=key, num_matvecs=num_matvecs, method=method, batch_size=batch_size
        )
        value, error = jnp.maximum(found.value, 0.0), found._standard_error
        root = jnp.sqrt(value)
        if error is not None:
            below = root - jnp.sqrt(jnp.maximum(value - error, 0.0))
            error = jnp.maximum(jnp.sqrt(value + error) - root, below)
        return Estimate(root, error, found.num_samples, found.num_matvecs)

    def principal_components(self, k: int, *, key: Key, **options: Any) -> Eigenpairs:
        """The k largest eigenvalues of `(C + C^T)/2`, descending, their vectors and residuals.

        The options are those of `extreme_eigenpairs`: `rtol`, `max_matvecs`, `basis_size`,
        `symmetric`.

        Raises:
            ValueError: as there.
        """
        ascending = extreme_eigenpairs(
            self.denoiser, self.operator.point, key=key, k=k, which="largest", **options
        )
        names = ("values", "vectors", "residuals", "converged")
        return dataclasses.replace(
            ascending, **{name: getattr(ascending, name)[::-1] for name in names}
        )

    def asymmetry(self, *, key: Key, **options: Any) -> Estimate:
        """`||C - C^T||_F / ||C + C^T||_F`, 0 of an exact score; options: `stochastic_asymmetry`'s.

        It is that of K, not of the score's Jacobian: the `-I/sigma^2` of pure noise, which is
        symmetric and says nothing of the score, is not in its denominator.
        """
        return stochastic_asymmetry(self.denoiser, self.operator.point, key=key, **options)


def posterior_covariance(
    score: Score, x: ArrayLike, *, alpha: ArrayLike, sigma: ArrayLike
) -> PosteriorCovariance:
    r"""The covariance of $x_0$ given $x = \alpha x_0 + \sigma\varepsilon$, $(\sigma^2/\alpha^2) K$.

    Args:
        score: of the noised density at this level, one point to its score.
        x: the noisy point, any shape.
        alpha: signal, > 0.
        sigma: noise, > 0.

    Raises:
        ValueError: `alpha = 0`, where x says nothing of $x_0$ and the covariance is the data's own;
            no level; and as `jacobian`.

    Batches by `jax.vmap`, or by `at_points` with a function of it:

    >>> import jax, jax.numpy as jnp
    >>> from sharpjax.curvature import at_points
    >>> def spread(score, x, key):
    ...     return posterior_covariance(score, x, alpha=0.6, sigma=0.8).trace(key=key)
    >>> found = at_points(spread, lambda x: -x, jnp.ones((5, 3)), key=jax.random.key(0))
    >>> print(found.value.round(2))  # N(0, I) at every level: 3 sigma^2
    [1.92 1.92 1.92 1.92 1.92]
    """
    point = without_explicit_axes(checked_point(x), replicate=True)
    check_signal(alpha, "The posterior covariance")
    alpha, sigma = level("posterior_covariance", alpha, sigma, point.dtype)
    denoiser = jax.tree_util.Partial(_scaled_mean, as_pytree(score, point), alpha, sigma)
    operator = jacobian(denoiser, point)
    return PosteriorCovariance(operator.value * (alpha / sigma**2), denoiser, operator)


def _scaled_mean(score: Score, alpha: Array, sigma: Array, x: Array) -> Array:
    # x is added before any product, entry by entry: where K is small the sum cancels
    return (sigma / alpha) ** 2 * (x + sigma**2 * score_at(score, x))
