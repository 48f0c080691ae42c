r"""Denoising score matching of points in `R^d`, with an optional second-order term.

With `x = alpha x_0 + sigma eps`, the posterior mean and covariance of the noise are the score and
the Hessian of `u = log p_t` in disguise (Tweedie):

$$
E[\epsilon | x] = -\sigma s(x), \qquad
\mathrm{Cov}[\epsilon | x] = \frac{\alpha^2}{\sigma^2} \mathrm{Cov}[x_0 | x]
= I + \sigma^2 H(x) = K(x) .
$$

The first from $\nabla p_t = E[-\epsilon/\sigma \,|\, x]\, p_t$, the second by differentiating
once more: $\nabla^2 p_t = E[(\epsilon\epsilon^T - I)/\sigma^2 \,|\, x]\, p_t$ and
$H = \nabla^2 p_t/p_t - s s^T$, so
$\sigma^2 H = E[\epsilon\epsilon^T|x] - I - \sigma^2 s s^T = \mathrm{Cov}[\epsilon|x] - I$.
A conditional expectation minimises a mean square, hence two losses for one network.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from sharpjax._checks import check_finite, positive_integer, positive_number
from sharpjax._types import Array, ArrayLike, Score
from sharpjax.networks.mlp import ScoreMLP
from sharpjax.rundir.progress import progress
from sharpjax.schedules import Schedule

__all__ = ["first_order_loss", "fit", "second_order_loss"]

_BLOCK = 100  # steps between two reports of the progress bar
_CLIP = 1.0  # largest global gradient norm


def first_order_loss(score: Score, x0: Array, noise: Array, alpha: Array, sigma: Array) -> Array:
    r"""`|sigma s(x) + eps|^2 / d` at `x = alpha x_0 + sigma eps`; dimensionless.

    Its expectation is least for $\sigma s(x) = -E[\epsilon|x]$, the exact score, where
    $E[\mathrm{tr}\,K]/d$ of it is left.

    References:
        P. Vincent, A connection between score matching and denoising autoencoders, Neural
        Computation 23 (2011), doi:10.1162/NECO_a_00142; weighted by sigma^2 as in J. Ho et al.,
        Denoising diffusion probabilistic models, NeurIPS 2020, arXiv:2006.11239.
    """
    return jnp.mean((sigma * score(alpha * x0 + sigma * noise) + noise) ** 2)


def second_order_loss(score: Score, x0: Array, noise: Array, alpha: Array, sigma: Array) -> Array:
    r"""`|I + sigma^2 J - l l^T|_F^2 / d^2` at `x = alpha x_0 + sigma eps`; dimensionless.

    `J` is the Jacobian of the score (d tangents) and `l = eps + sigma s(x)`, the noise that the
    score leaves unexplained, taken as a constant (`stop_gradient`): the loss trains J.

    *Minimiser.* The J that minimises the expectation has $I + \sigma^2 J(x) = E[l l^T|x]$.
    Where s is exact, `l = eps - E[eps|x]`, so this is $\mathrm{Cov}[\epsilon|x] = K(x)$ and
    $J = H$. Where s is off by $\delta(x)$, `l` is off by
    $\sigma\delta$, and as $E[\epsilon + \sigma (s - \delta) | x] = 0$ it is
    $K + \sigma^2\delta\delta^T$: J is then off by $\delta\delta^T$, second order in
    the error of the score.

    References:
        C. Lu et al., Maximum likelihood training for score-based diffusion ODEs by high-order
        denoising score matching, ICML 2022, arXiv:2206.08265.
    """
    x = alpha * x0 + sigma * noise

    def twice(x: Array) -> tuple[Array, Array]:
        s = score(x)
        return s, s

    J, s = jax.jacfwd(twice, has_aux=True)(x)
    left = jax.lax.stop_gradient(noise + sigma * s)
    K = jnp.eye(x.size, dtype=J.dtype) + sigma**2 * J
    return jnp.mean((K - jnp.outer(left, left)) ** 2)


def fit(
    network: ScoreMLP,
    points: ArrayLike,
    schedule: Schedule,
    *,
    steps: int = 4000,
    batch_size: int = 512,
    learning_rate: float = 3e-3,
    second_order_weight: float = 0.0,
    seed: int = 0,
) -> tuple[ScoreMLP, np.ndarray]:
    """Fit a network to the noised points: Adam, a cosine to zero, gradients clipped at norm 1.

    Every step draws `batch_size` points with replacement, one noise each, and timesteps that are
    uniform on the schedule's training grid and stratified over the batch. What step k draws
    depends on `(seed, k)` only.

    Args:
        network: where to start; it is not changed.
        points: `(n, d)`; the network expects coordinates of order 1.
        schedule: its levels `alpha_t`, `sigma_t`.
        steps: of the optimiser.
        batch_size: points a step.
        learning_rate: the first one of the cosine.
        second_order_weight: of `second_order_loss` beside `first_order_loss`; it costs d tangents
            more a point. 0 leaves it out.
        seed: of points, timesteps and noise.

    Returns:
        The fitted network, and the loss at each step, `(steps,)`.

    Raises:
        ValueError: points that are not `(n, d)` real floating numbers with the network's d, or not
            finite; counts that are not positive integers; `learning_rate <= 0`;
            `second_order_weight < 0`; a schedule of another prediction type than the network's.
        FloatingPointError: the loss stopped being finite.

    >>> points = jax.random.normal(jax.random.key(0), (100, 1))
    >>> network, losses = fit(ScoreMLP(1, rngs=nnx.Rngs(0)), points, Schedule.create(), steps=2)
    >>> losses.shape
    (2,)
    """
    points = _checked_points(network, points)
    steps, batch_size = positive_integer("steps", steps), positive_integer("batch_size", batch_size)
    positive_number("learning_rate", learning_rate)
    if not 0 <= second_order_weight < math.inf:
        raise ValueError(
            f"second_order_weight must be finite and >= 0, got {second_order_weight!r}"
        )
    if schedule.prediction_type != "epsilon":
        raise ValueError(
            "prediction_type of the schedule must be 'epsilon', for ScoreMLP predicts the noise, "
            f"got {schedule.prediction_type!r}"
        )
    graph, params = nnx.split(network)
    state = (params, _optimizer(learning_rate, steps).init(params))
    key = jax.random.key(seed)
    losses = []
    traced = (steps, learning_rate, second_order_weight)
    static: Any = {"batch_size": batch_size, "second_order": second_order_weight > 0}
    advance = functools.partial(_advance, graph=graph, **static)
    with progress("fitting", total=steps) as bar:
        for first in range(0, steps, _BLOCK):
            count = min(_BLOCK, steps - first)
            state, block = advance(state, points, schedule, key, first, count, *traced)
            block = np.asarray(block)[:count]
            if not np.isfinite(block).all():
                step = first + int(np.argmin(np.isfinite(block)))
                raise FloatingPointError(
                    f"the loss is not finite at step {step} of {steps}; "
                    f"lower learning_rate={learning_rate!r}"
                )
            losses.append(block)
            bar.advance(count, note=f"loss {block.mean():.4f}")
    return nnx.merge(graph, state[0]), np.concatenate(losses)


def _optimizer(learning_rate: ArrayLike, steps: ArrayLike) -> optax.GradientTransformation:
    # optax's own cosine wants `steps` to be known when it is compiled
    def rate(k: ArrayLike) -> Any:
        return 0.5 * jnp.asarray(learning_rate) * (1 + jnp.cos(math.pi * jnp.asarray(k) / steps))

    return optax.chain(optax.clip_by_global_norm(_CLIP), optax.adam(rate))


@functools.partial(jax.jit, static_argnames=("graph", "batch_size", "second_order"))
def _advance(
    state: Any,
    points: Array,
    schedule: Schedule,
    key: Array,
    first: ArrayLike,
    count: ArrayLike,
    steps: ArrayLike,
    learning_rate: ArrayLike,
    weight: ArrayLike,
    *,
    graph: Any,
    batch_size: int,
    second_order: bool,
) -> Any:
    """`count` of the `steps` steps from `first` on: the state, and a block of losses."""
    optimizer = _optimizer(learning_rate, steps)

    def loss(params: Any, draw: tuple[Array, ...]) -> Array:
        network = nnx.merge(graph, params)

        def one(x0: Array, noise: Array, alpha: Array, sigma: Array) -> Array:
            score = network.score(alpha, sigma)
            value = first_order_loss(score, x0, noise, alpha, sigma)
            if second_order:
                value += weight * second_order_loss(score, x0, noise, alpha, sigma)
            return value

        return jnp.mean(jax.vmap(one)(*draw))

    def step(i: Array, carry: Any) -> Any:
        (params, moments), losses = carry
        draw = _draw(points, schedule, jax.random.fold_in(key, first + i), batch_size)
        value, grads = jax.value_and_grad(loss)(params, draw)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), losses.at[i].set(value)

    # A loop of `count` turns and not a scan over a block: a last, shorter block, or another number
    # of steps, then runs the same program.
    return jax.lax.fori_loop(0, count, step, (state, jnp.zeros(_BLOCK)))


def _draw(points: Array, schedule: Schedule, key: Array, n: int) -> tuple[Array, ...]:
    """`n` points, their noises and their levels."""
    keys = jax.random.split(key, 3)
    x0 = points[jax.random.randint(keys[0], (n,), 0, len(points))]
    t = schedule.stratified_timesteps(keys[1], n)
    noise = jax.random.normal(keys[2], x0.shape, x0.dtype)
    return x0, noise, schedule.alpha(t).astype(x0.dtype), schedule.sigma(t).astype(x0.dtype)


def _checked_points(network: ScoreMLP, points: ArrayLike) -> Array:
    points = jnp.asarray(points)
    if points.ndim != 2 or len(points) == 0 or points.shape[1] != network.dim:
        raise ValueError(
            f"points must have shape (n, {network.dim}) with n >= 1, as the network takes points "
            f"of {network.dim} coordinates, got {points.shape}"
        )
    if not jnp.issubdtype(points.dtype, jnp.floating):
        raise ValueError(f"points must hold real floating numbers, got dtype {points.dtype}")
    check_finite("points", points)
    return points
