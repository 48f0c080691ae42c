r"""The p-Laplacian of `log p`, `div(|s|^{p-2} s)`, from its score: at a point, or over a ball.

`docs/p_laplacian.md` derives the formulas; `plaplacian_bounds` says how far the flux may be off.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._checks import check_finite, number, positive_integer, positive_number, prng_key
from sharpjax._checks import point as checked_point
from sharpjax._types import Array, ArrayLike, Key, Matvec, Score
from sharpjax.curvature.estimate import Estimate
from sharpjax.curvature.operators import Jacobian, jacobian
from sharpjax.curvature.programs import as_pytree, compiled
from sharpjax.densities.base import polar
from sharpjax.mesh.loops import chunked_map, without_explicit_axes
from sharpjax.score import score_at

_Sample = Callable[..., tuple[Array, Array]]  # a value, and whether its scores are finite

_METHODS = ("exact", "flux", "ball")
_DEFAULT_BATCH = 32


def p_laplacian(
    score: Score,
    x: ArrayLike,
    *,
    p: ArrayLike = 1.0,
    method: str = "exact",
    radius: ArrayLike | None = None,
    key: Key | None = None,
    num_directions: int = 128,
    antithetic: bool = False,
    num_matvecs: int | None = None,
    batch_size: int | None = None,
) -> Estimate:
    r"""The p-Laplacian `div F` of `log p`, `F = |s|^{p-2} s`; units sigma^{-p}.

    * "exact": at `x`. With `u = s/|s|` and `P = I - u u^T`,
      `div F = |s|^{p-2} (tr H + (p-2) u^T H u) = |s|^{p-2} (tr PHP + (p-1) u^T H u)`,
      from one evaluation of the score and its tangents. The second form is what is computed: at
      p = 1 it holds no part of `u^T H u`, which would have to cancel.
    * "flux": the mean over the ball of this radius, by the divergence theorem the mean over its
      sphere, `(d/R) E_n[F(x + R n) . n]`, n uniform on the unit sphere; no tangents.
    * "ball": the same mean, of "exact" at points uniform in the ball.

    Flux and ball agree if F is C^1 on the ball. At p = 1 an isolated zero of the score inside does
    no harm for d >= 2; for d = 1 the flux also counts the jump of `s/|s|` there, the ball cannot,
    and for d = 2 the ball's samples have infinite variance, so its standard error is no guide.

    Args:
        score: maps one point to its score, same shape out.
        x: the point, any shape; `d = x.size`.
        p: any number >= 1. It may be traced: another p does not compile again.
        method: "exact", "flux" or "ball".
        radius: of the ball, > 0, in the units of x; for flux and ball. Brokman et al. take
            `sigma sqrt(d)` for some small sigma. In float32 a pair's rounding is about
            `eps |s|^{p-1} sqrt(d)/radius`, and below `eps |x|` nothing is left of the flux.
        key: PRNG key; for flux, ball, and exact with `num_matvecs`. Direction, point or probe i
            depends on `(key, i)` only: neither their number nor `batch_size` changes it.
        num_directions: evaluations of the score on the sphere, or points in the ball.
        antithetic: flux only: directions in pairs n and -n (so `num_directions` must be even),
            the mean over a pair being one sample. `F(x) . n` cancels from it; without this the
            standard error grows as `1/R` when the radius shrinks. Near a mode, where
            `F(x + R n) . n` is even in n, nothing cancels and a pair is worth one direction.
        num_matvecs: probes for `tr PHP` at `x`, or at each point of the ball; None for all d
            directions, without error. Probes are uniform on the sphere of radius `sqrt(d-1)` in
            the space orthogonal to s: as their length is fixed, the part `-I/sigma^2` of H adds
            no variance, and the samples are those that K = I + sigma^2 H would give.
        batch_size: evaluations or tangents at once by `vmap`, which bounds the memory; 32 by
            default.

    Returns:
        An `Estimate`. `num_samples` is the number of independent samples: directions, pairs,
        points or probes; 0 if exact. `num_matvecs` counts products with the Jacobian: d, or one
        more than the probes, at each point; 0 for the flux, whose cost is its `num_directions`
        evaluations of the score.

    Raises:
        ValueError: `p < 1`; an unknown method; no radius or no key where one is needed, a radius
            or `num_matvecs` where there is no use for it; `radius <= 0`; counts that are not
            positive integers; an odd `num_directions` or another method with `antithetic`;
            `s(x) = 0` for "exact" with `p < 2`, where `|s|^{p-2}` has no limit (NaN under a trace;
            for p = 2 the value is `tr H`, beyond it 0); a direction whose score or sample is not
            finite (named); and as `jacobian`. The flux takes `F = 0` where `s = 0`, its limit for
            p > 1 and a convention for p = 1.

    References:
        J. Brokman et al., Identifying memorization of diffusion models through p-Laplace analysis,
        SSVM 2025, arXiv:2505.08246 (flux and ball; the exact form is ours).

    On an isotropic Gaussian at distance r from the mode the 1-Laplacian is `-(d-1)/r`:

    >>> import jax, jax.numpy as jnp
    >>> p_laplacian(lambda x: -x, jnp.array([0.0, 4.0, 0.0]))
    Estimate(-0.5 ± 0, num_samples=0, num_matvecs=3)

    At the mode it has no value, but a mean over the ball, `-d/R`:

    >>> options = {"method": "flux", "radius": 0.5, "key": jax.random.key(0)}
    >>> print(f"{p_laplacian(lambda x: -x, jnp.zeros(3), **options).value:.4f}")
    -6.0000
    """
    p = _exponent(p)
    key = _check(method, radius, key, num_directions, antithetic, num_matvecs, batch_size)
    batch_size = _DEFAULT_BATCH if batch_size is None else batch_size
    if method == "exact":
        J = jacobian(score, x)
        _check_direction(J.value, p)
        samples = _at_the_point(J, p, key, num_matvecs=num_matvecs, batch_size=batch_size)
        check_finite("The p-Laplacian at x", samples)
        if num_matvecs is None:
            return Estimate(samples, jnp.zeros_like(samples), 0, J.point.size)
        return Estimate.from_samples(samples, num_matvecs=1 + num_matvecs)

    x = without_explicit_axes(checked_point(x), replicate=True)
    radius = positive_number("radius", cast(ArrayLike, radius), x.dtype)  # there is one: `_check`
    count, products = num_directions, 0
    if method == "ball":
        sample = _point
        products = count * (x.size if num_matvecs is None else 1 + num_matvecs)
    elif antithetic:
        sample, count = _pair, count // 2
    else:
        sample = _direction
    settings: Any = {"num_matvecs": num_matvecs, "batch_size": batch_size}
    arguments: Any = (x, p, radius, key)
    score = as_pytree(score, x)
    samples, is_finite = _samples(sample, count, score, *arguments, **settings)
    _name_the_direction(samples, is_finite)
    return Estimate.from_samples(samples, num_matvecs=products)


# --- The divergence at a point ----------------------------------------------------------------


def _divergence(
    tangent_map: Matvec,
    x: Array,
    s: Array,
    p: ArrayLike,
    key: Key | None,
    *,
    num_matvecs: int | None,
    batch_size: int,
) -> Array:
    r"""`div F` from s and its tangents: exact, a scalar, or `num_matvecs` samples of it.

    `d_i (|s|^{p-2} s_i) = |s|^{p-2} d_i s_i + (p-2) |s|^{p-4} s_i (H s)_i`, summed over i, is
    `|s|^{p-2} (tr H + (p-2) u^T H u)`. In an orthonormal basis u, h_1, ..., h_{d-1} the trace is
    `u^T H u + sum_i h_i^T H h_i`: so u counts `p - 1` times, and each h_i once.
    """
    p = jnp.asarray(p, s.dtype)
    norm, u, is_zero = polar(s)
    # Without a direction any basis will do, as only the trace is left (p = 2) or nothing is.
    u = jnp.where(is_zero, jax.nn.one_hot(0, s.size, dtype=s.dtype).reshape(s.shape), u)

    def quadratic_form(v: Array) -> Array:
        return jnp.sum(v * tangent_map(v.astype(x.dtype)))

    if num_matvecs is None:
        terms = chunked_map(lambda i: quadratic_form(_basis(u, i)), jnp.arange(s.size), batch_size)
        normal, tangential = terms[0], jnp.sum(terms[1:])
    else:
        normal = quadratic_form(u)
        keys = cast(Array, key)  # drawing needs one: `_check`

        def probe(i: Array) -> Array:
            return quadratic_form(_orthogonal_probe(u, jax.random.fold_in(keys, i)))

        tangential = chunked_map(probe, jnp.arange(num_matvecs), batch_size)
    at_zero = jnp.where(p < 2, jnp.nan, jnp.where(p == 2, 1.0, 0.0))
    root = norm ** (0.5 * (p - 2))  # half before, half after: |s|^{p-2} alone may be out of range
    return jnp.where(is_zero, at_zero, root) * (tangential + (p - 1) * normal) * root


def _basis(u: Array, i: Array) -> Array:
    """The i-th vector of an orthonormal basis whose vector 0 is u.

    The Householder reflection `I - 2 w w^T/|w|^2`, `w = u + sign(u_0) e_0`, takes e_0 to -+u, and
    its other columns are `e_i - w_i w/(1 + |u_0|)`. (That sign adds where the other one cancels.)
    """
    flat = u.ravel()
    sign = jnp.where(flat[0] < 0, -1.0, 1.0).astype(u.dtype)
    w = flat.at[0].add(sign)
    column = jax.nn.one_hot(i, u.size, dtype=u.dtype) - w[i] / (1.0 + jnp.abs(flat[0])) * w
    return jnp.where(i == 0, flat, column).reshape(u.shape)


def _orthogonal_probe(u: Array, key: Key) -> Array:
    """Uniform on the sphere of radius sqrt(d - 1) in the space orthogonal to u: E v v^T = P."""
    v = jax.random.normal(key, u.shape, u.dtype)
    v = v - jnp.sum(u * v) * u
    return math.sqrt(u.size - 1) * polar(v)[1]


@compiled(static_argnames=("num_matvecs", "batch_size"))
def _at_the_point(
    J: Jacobian, p: ArrayLike, key: Key | None, *, num_matvecs: int | None, batch_size: int
) -> Array:
    options: Any = {"num_matvecs": num_matvecs, "batch_size": batch_size}
    return _divergence(J.tangent_map, J.point, J.value, p, key, **options)


# --- One sample each: the value, and whether the score was finite -------------------------------


def _unit_vector(x: Array, key: Key) -> Array:
    """Uniform on the unit sphere."""
    return polar(jax.random.normal(key, x.shape, x.dtype))[1]


def _field(score: Score, y: Array, p: ArrayLike) -> tuple[Array, Array]:
    """`F(y) = |s|^{p-1} u`, 0 where s = 0, and whether s is finite."""
    s = score_at(score, y)
    norm, u, _ = polar(s)
    return norm ** (jnp.asarray(p, s.dtype) - 1) * u, jnp.all(jnp.isfinite(s))


def _direction(
    score: Score, x: Array, p: ArrayLike, radius: Array, key: Key, **_: Any
) -> tuple[Array, Array]:
    n = _unit_vector(x, key)
    F, is_finite = _field(score, x + radius * n, p)
    return x.size / radius * jnp.sum(F * n), is_finite


def _pair(
    score: Score, x: Array, p: ArrayLike, radius: Array, key: Key, **_: Any
) -> tuple[Array, Array]:
    n = _unit_vector(x, key)
    ahead, is_finite = _field(score, x + radius * n, p)
    behind, also_finite = _field(score, x - radius * n, p)
    # The fields before their fluxes: entry by entry, what cancels leaves no rounding of a sum.
    return 0.5 * x.size / radius * jnp.sum((ahead - behind) * n), is_finite & also_finite


def _point(
    score: Score, x: Array, p: ArrayLike, radius: Array, key: Key, **options: Any
) -> tuple[Array, Array]:
    point_key, probe_key = jax.random.split(key)
    # Any d of the d + 2 coordinates of a uniform point of the unit sphere are uniform in the unit
    # ball: the density of k of m coordinates is proportional to (1 - r^2)^((m-k-2)/2).
    z = polar(jax.random.normal(point_key, (x.size + 2,), x.dtype))[1]
    y = x + radius * z[2:].reshape(x.shape)
    s, tangent_map = jax.linearize(functools.partial(score_at, score), y)
    samples = _divergence(tangent_map, y, s, p, probe_key, **options)
    return jnp.mean(samples), jnp.all(jnp.isfinite(s))


@compiled(static_argnames=("sample", "count", "num_matvecs", "batch_size"))
def _samples(
    sample: _Sample,
    count: int,
    score: Score,
    x: Array,
    p: ArrayLike,
    radius: Array,
    key: Key,
    *,
    num_matvecs: int | None,
    batch_size: int,
) -> tuple[Array, Array]:
    """`sample` for each of `count` keys: their values, and whether their scores are finite."""
    inner = 1  # tangents at once, at one point of a batch
    if sample is _point:
        inner = min(batch_size, x.size if num_matvecs is None else num_matvecs)
    options = {"num_matvecs": num_matvecs, "batch_size": inner}

    def one(i: Array) -> tuple[Array, Array]:
        return sample(score, x, p, radius, jax.random.fold_in(key, i), **options)

    return chunked_map(one, jnp.arange(count), max(1, batch_size // inner))


# --- Checks -------------------------------------------------------------------------------------


def _exponent(p: ArrayLike) -> ArrayLike:
    valid = np.shape(p) == () and (isinstance(p, jax.core.Tracer) or 1 <= number(p) < math.inf)
    if not valid:
        raise ValueError(f"p must be one finite number >= 1, got {p!r}; use jax.vmap for more")
    return p


def _check(
    method: str,
    radius: ArrayLike | None,
    key: Key | None,
    num_directions: int,
    antithetic: bool,
    num_matvecs: int | None,
    batch_size: int | None,
) -> Array | None:
    """The key, once it and all the rest are known to be valid."""
    known = None
    if method not in _METHODS:
        raise ValueError(f"method must be one of {list(_METHODS)}, got {method!r}")
    if num_matvecs is not None:
        positive_integer("num_matvecs", num_matvecs)
    if batch_size is not None:
        positive_integer("batch_size", batch_size)
    if method != "exact" or num_matvecs is not None:
        drawn = {"exact": "probes with num_matvecs", "flux": "directions", "ball": "points"}
        known = prng_key(key, f"method={method!r} draws random {drawn[method]}")
    if antithetic and method != "flux":
        raise ValueError(
            f"antithetic directions belong to method='flux', got method={method!r}; leave it out"
        )
    if method == "exact":
        if radius is not None:
            raise ValueError(
                "radius belongs to method='flux' or 'ball', a mean over a ball; method='exact' is "
                "the value at x itself: choose one of the others or leave the radius out"
            )
        return known
    if method == "flux" and num_matvecs is not None:
        raise ValueError("method='flux' takes no products: num_matvecs is for 'exact' and 'ball'")
    if radius is None:
        raise ValueError(f"method={method!r} is a mean over a ball: pass its radius=, > 0")
    positive_integer("num_directions", num_directions)
    if antithetic and num_directions % 2:
        raise ValueError(
            f"antithetic directions come in pairs: num_directions must be even, got "
            f"{num_directions}; {num_directions + 1} would do"
        )
    return known


def _check_direction(s: Array, p: ArrayLike) -> None:
    """A ValueError where the exact form has no value, if that is known."""
    if isinstance(s, jax.core.Tracer) or isinstance(p, jax.core.Tracer):
        return
    if number(p) < 2 and not np.any(np.asarray(s)):
        raise ValueError(
            f"The p-Laplacian for p={number(p):g} < 2 is undefined at x: the score is zero there, "
            "and |s|^(p-2) has no limit; use method='flux', its mean over a ball"
        )


def _name_the_direction(samples: Array, is_finite: Array) -> None:
    """A ValueError that names the first direction (pair, point) without a finite sample."""
    if isinstance(samples, jax.core.Tracer):
        return
    bad = ~np.isfinite(np.asarray(samples))
    if not bad.any():
        return
    i = int(np.argmax(bad))
    if is_finite[i]:
        what = f"The sample (a power of |s|, out of the range of {samples.dtype}, or s = 0)"
    else:
        what = "The score"
    raise ValueError(
        f"{what} is not finite at direction {i} of {len(bad)}; {int(bad.sum())} of them fail"
    )
