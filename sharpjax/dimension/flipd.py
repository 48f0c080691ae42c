r"""Dimension from how fast the log-density changes with the noise.

Near a smooth manifold of dimension $n$ in $d$ coordinates, $\log p_\sigma(x)$ grows as
$(n - d) \log\sigma$ as $\sigma \to 0$.  The Fokker-Planck equation gives that slope without the
density: of $p_\sigma$, the law of $\alpha x_0 + \sigma\varepsilon$ with $\alpha$ held,
$\partial \log p_\sigma / \partial \log\sigma = \sigma^2 (\mathrm{tr} H + \|s\|^2)$, so

$$
n \approx d + \sigma^2 (\mathrm{tr} H + \|s\|^2) = \mathrm{tr} K + \sigma^2 \|s\|^2
\quad \text{at } \alpha x_0 .
$$
"""

import jax.numpy as jnp

from sharpjax._checks import positive_integer
from sharpjax._types import ArrayLike, Key, Score
from sharpjax.curvature.estimate import Estimate
from sharpjax.curvature.methods import Method
from sharpjax.curvature.operators import jacobian
from sharpjax.curvature.traces import effective_dimension
from sharpjax.dimension.level import at_level


def flipd(
    score: Score,
    x0: ArrayLike,
    *,
    alpha: ArrayLike,
    sigma: ArrayLike,
    key: Key | None = None,
    num_matvecs: int = 32,
    method: Method | str = "hutchinson",
    batch_size: int | None = None,
) -> Estimate:
    r"""FLIPD, $\mathrm{tr} K + \sigma^2 \|s\|^2$ at $\alpha x_0$.

    Args:
        score: of the noised data at this level.
        x0: the clean point, any shape.
        alpha: signal, > 0.
        sigma: noise, > 0.
        key: PRNG key of the probes; "exact" needs none.
        num_matvecs: products with the Jacobian, two at least; this and the other options as of
            `sharpjax.curvature.effective_dimension`.
        method: of the trace.
        batch_size: products at once.

    Returns:
        An `Estimate`, whose standard error is the trace's.

    Raises:
        ValueError: as `effective_dimension`; `alpha = 0`.

    References:
        H. Kamkari et al., A geometric view of data complexity: efficient local intrinsic dimension
        estimation with diffusion models, NeurIPS 2024, arXiv:2406.03537.

    Two directions of three, seen through little noise:

    >>> import jax, jax.numpy as jnp
    >>> S = jnp.array([1.0, 1.0, 0.0]) + 0.01**2  # N(0, diag(1, 1, 0)), noised
    >>> flipd(lambda x: -x / S, jnp.zeros(3), alpha=1.0, sigma=0.01, method="exact").value.round(2)
    Array(2., dtype=float32)
    """
    x0, alpha, sigma = at_level("flipd", x0, alpha, sigma)
    if method != "exact":
        positive_integer("num_matvecs", num_matvecs, least=2)  # one has no error
    x = alpha * x0
    trace = effective_dimension(
        score, x, sigma=sigma, key=key, num_matvecs=num_matvecs, method=method,
        batch_size=batch_size,
    )  # fmt: skip
    length = jnp.sum((sigma * jacobian(score, x).value) ** 2)
    return Estimate(
        trace.value + length, trace._standard_error, trace.num_samples, trace.num_matvecs
    )
