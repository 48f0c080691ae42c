"""Extreme eigenpairs of the symmetric part of a score's Jacobian, to a tolerance."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._checks import positive_integer, positive_number, prng_key
from sharpjax._linalg import eigh, safe_norm
from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike, Key, Score
from sharpjax.curvature.krylov import breakdown_level, flat_matvec, orthogonalise
from sharpjax.curvature.operators import Jacobian, jacobian
from sharpjax.curvature.programs import compiled
from sharpjax.mesh.loops import varying_as

_ENDS: dict[str, Callable[[int], int]] = {  # how many of k pairs come from the lower end
    "largest": lambda k: 0,
    "smallest": lambda k: k,
    "both": lambda k: k // 2,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Some eigenpairs of `A`, how good they are, and what they cost.

    Attributes:
        values: ascending, `(k,)`, units 1/sigma^2.
        vectors: unit vectors, `(k, *shape)`.
        residuals: `||A y - theta y||` of each pair, units 1/sigma^2. An eigenvalue lies within
            the residual (and rounding, `10 sqrt(d) eps ||A||`) of the value.
        converged: whether each residual is within the tolerance, `(k,)`.
        complete: whether a search from a fresh random vector, orthogonal to the pairs, converged
            too and found nothing further out. False where the products did not suffice for it.
        num_matvecs: products with A that were spent.
    """

    values: Array
    vectors: Array
    residuals: Array
    converged: Array
    complete: Array
    num_matvecs: Array

    __repr__ = one_line


def extreme_eigenpairs(
    score: Score,
    x: ArrayLike,
    *,
    key: Key,
    k: int = 6,
    which: str = "largest",
    rtol: ArrayLike = 1e-4,
    max_matvecs: int = 400,
    basis_size: int | None = None,
    symmetric: bool = False,
) -> Eigenpairs:
    r"""The k extreme eigenpairs of `A = (J + J^T)/2` at `x`, by thick-restart Lanczos.

    A Lanczos basis is grown to `basis_size` vectors, shrunk to the best half of its Ritz vectors,
    and grown again from a residual, until every residual is at most `rtol max |theta|`. The
    products `A q` are kept beside the basis, so residuals are computed and not inferred.

    **Multiplicities.** One Krylov space holds one eigenvector of each eigenspace. So where the
    space is exhausted, and again whenever all k pairs have converged, the search goes on from a
    fresh random vector orthogonal to the basis, until such a search has converged on the next
    pair and found nothing further out (`complete`). A random vector has a part in every
    eigenspace with probability 1, so a copy is missed only if the search stops before that part
    has grown: likely only for eigenvalues closer together than the tolerance. It is not proved.

    Not converging is not an error: look at `converged` and `complete`.

    Args:
        score: maps one point to its score, same shape out.
        x: the point, any shape; `d = x.size`.
        key: PRNG key of the random vectors.
        k: how many pairs, at most d.
        which: "largest", "smallest" (algebraically, that is, most negative), or "both": `k // 2`
            smallest and the rest largest.
        rtol: tolerance of the residuals, relative to the largest |Ritz value|, > 0. The error of
            a value is at most the residual and mostly its square over the gap. Rounding may keep
            residuals from going below `10 sqrt(d) eps`, which is 3e-5 for d = 784 in float32.
        max_matvecs: products with A at most, one tangent and one cotangent each.
        basis_size: vectors in the basis, at least `k + 3` (or d); `max(2k + 2, 20)` by default.
            More converge in fewer products.
        symmetric: take J for symmetric: tangents alone, half the cost, as in `lanczos`.

    Returns:
        An `Eigenpairs`. Under `jit` and `vmap` a product that is not finite leaves NaN.

    Raises:
        ValueError: `which` unknown; `k`, `max_matvecs` or `basis_size` not a positive integer or
            too small (what is needed is named); k above d; `rtol <= 0`; a
            product that is not finite; and as `jacobian`.

    References:
        K. Wu, H. Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems,
        SIAM J. Matrix Anal. Appl. 22 (2000), doi:10.1137/S0895479898334605.

    A double eigenvalue is found twice:

    >>> import jax, jax.numpy as jnp
    >>> spectrum = jnp.append(-jnp.arange(2.0, 98.0), jnp.array([-1.0, -1.0]))
    >>> pairs = extreme_eigenpairs(
    ...     lambda x: spectrum * x, jnp.zeros(98), key=jax.random.key(0), k=3
    ... )
    >>> print(pairs.values.round(3), pairs.complete)
    [-2. -1. -1.] True
    """
    if which not in _ENDS:
        raise ValueError(f"which must be one of {list(_ENDS)}, got {which!r}")
    k = positive_integer("k", k)
    max_matvecs = positive_integer("max_matvecs", max_matvecs)
    key = prng_key(key, "The start is random")
    J = jacobian(score, x)
    rtol = positive_number("rtol", rtol, J.point.dtype)
    size = _basis_size(k, J.point.size, basis_size)
    if max_matvecs < size:
        raise ValueError(
            f"max_matvecs must be at least {size}, which fill the basis once, got {max_matvecs}; "
            f"give as many, or fewer pairs than k={k}"
        )
    low = _ENDS[which](k)
    options = {"low": low, "high": k - low, "size": size, "symmetric": symmetric}
    pairs: Eigenpairs = _restarted(J, key, rtol, max_matvecs, **options)
    values = pairs.values
    if not isinstance(values, jax.core.Tracer) and np.isnan(np.asarray(values)).any():
        raise ValueError(
            f"One of the first {int(pairs.num_matvecs)} products with the Jacobian is not finite, "
            "though the score is: look for a derivative that x does not have or that overflows"
        )
    return pairs


def _basis_size(k: int, d: int, basis_size: int | None) -> int:
    if k > d:
        raise ValueError(f"k must be at most the dimension {d}, got {k}")
    if basis_size is None:
        return min(d, max(2 * k + 2, 20))
    return min(d, positive_integer("basis_size", basis_size, least=min(k + 3, d)))


@compiled(static_argnames=("low", "high", "size", "symmetric"))
def _restarted(
    J: Jacobian,
    key: Key,
    rtol: ArrayLike,
    max_matvecs: int,
    *,
    low: int,
    high: int,
    size: int,
    symmetric: bool,
) -> Eigenpairs:
    matvec, d, dtype = flat_matvec(J, symmetric=symmetric), J.point.size, J.point.dtype
    k, is_whole = low + high, size == d
    key = varying_as(key, J)

    # What a restart keeps of the Ritz pairs in ascending order, as indices: the k wanted, behind
    # them one guard at each end in question (the pair that a missed copy would push out), and of
    # the rest the outer half.
    keep = size if is_whole else max(k + 2, (size + k) // 2)
    keep_low = 0 if low == 0 else keep if high == 0 else keep // 2
    kept = jnp.array([*range(keep_low), *range(size - keep + keep_low, size)])
    wanted = jnp.array([*range(low), *range(keep - high, keep)])
    guards = jnp.array([low] * (low > 0) + [keep - high - 1] * (high > 0)) % keep

    def random(count: ArrayLike) -> Array:
        return jax.random.normal(jax.random.fold_in(key, count), (d,), dtype)

    def fresh(Q: Array, count: ArrayLike) -> Array:
        # A second time, so that a vector with little outside the basis is orthogonal as well.
        remainder, _ = orthogonalise(Q, random(count))
        return orthogonalise(Q, remainder / safe_norm(remainder))[0]

    def grow(j: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        """Add `direction` to the basis, or a random vector if the basis holds it already."""
        Q, AQ, direction, scale, spent = state
        remainder, _ = orthogonalise(Q, direction)
        is_exhausted = safe_norm(remainder) <= breakdown_level(scale, d)
        remainder = jax.lax.cond(is_exhausted, fresh, lambda Q, _: remainder, Q, spent)
        q = remainder / safe_norm(remainder)
        Aq = matvec(q)
        scale = jnp.maximum(scale, safe_norm(Aq))
        return Q.at[j].set(q), AQ.at[j].set(Aq), Aq, scale, spent + 1

    def cycle(state: dict[str, Array]) -> dict[str, Array]:
        grown = tuple(state[name] for name in ("Q", "AQ", "direction", "scale", "spent"))
        first = jnp.where(state["spent"] == 0, 0, keep)
        Q, AQ, _, scale, spent = jax.lax.fori_loop(first, size, grow, grown)
        with jax.default_matmul_precision("highest"):
            T = Q @ AQ.T
            unit = jnp.where(scale > 0, scale, 1.0)
            theta, S = eigh(0.5 * (T + T.T) / unit)
            Y, AY = S[:, kept].T @ Q, S[:, kept].T @ AQ
        largest, theta = unit * jnp.max(jnp.abs(theta)), unit * theta[kept]
        R = AY - theta[:, None] * Y
        residuals = jax.vmap(safe_norm)(R)

        tolerance = rtol * largest
        is_done = jnp.all(residuals[wanted] <= tolerance)
        is_guarded = jnp.all(residuals[guards] <= tolerance)
        is_new = jnp.any(jnp.abs(theta[wanted] - state["reference"]) > 2 * tolerance)
        # Searched with a random vector since the wanted values last changed?
        was_searched = state["is_searching"] & ~is_new
        start_search = is_done & ~was_searched
        # On from the worst residual, of the guards too while they are what is awaited; or from
        # nothing at all, which `grow` replaces by a random vector.
        awaited = jnp.zeros(keep, bool).at[wanted].set(True)
        awaited = awaited | (was_searched & jnp.zeros(keep, bool).at[guards].set(True))
        worst = jnp.argmax(jnp.where(awaited, residuals, -1.0))
        return {
            "Q": jnp.zeros_like(Q).at[:keep].set(Y),
            "AQ": jnp.zeros_like(AQ).at[:keep].set(AY),
            "direction": jnp.where(start_search, 0.0, R[worst]),
            "scale": scale,
            "spent": spent,
            "theta": theta,
            "residuals": residuals,
            "tolerance": tolerance,
            "reference": jnp.where(start_search, theta[wanted], state["reference"]),
            "is_searching": start_search | was_searched,
            "complete": is_whole | (is_done & is_guarded & was_searched),
        }

    def go_on(state: dict[str, Array]) -> Array:
        is_affordable = state["spent"] + size - keep <= max_matvecs
        is_finite = jnp.all(jnp.isfinite(state["residuals"]))
        return (state["spent"] == 0) | (is_affordable & is_finite & ~state["complete"])

    zero = jnp.zeros((), dtype)
    initial = {
        "Q": jnp.zeros((size, d), dtype),
        "AQ": jnp.zeros((size, d), dtype),
        "direction": random(0),
        "scale": zero,
        "spent": jnp.zeros((), jnp.int32),
        "theta": jnp.zeros(keep, dtype),
        "residuals": jnp.zeros(keep, dtype),
        "tolerance": zero,
        "reference": jnp.full(k, jnp.nan, dtype),
        "is_searching": jnp.zeros((), bool),
        "complete": jnp.zeros((), bool),
    }
    initial = varying_as(initial, J)
    final = jax.lax.while_loop(go_on, cycle, initial)
    residuals = final["residuals"][wanted]
    return Eigenpairs(
        values=jnp.where(jnp.all(jnp.isfinite(residuals)), final["theta"][wanted], jnp.nan),
        vectors=final["Q"][wanted].reshape(k, *J.point.shape),
        residuals=residuals,
        converged=residuals <= final["tolerance"],
        complete=final["complete"],
        num_matvecs=final["spent"],
    )
