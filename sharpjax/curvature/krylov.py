r"""Lanczos and Arnoldi processes that survive breakdown.

Both build an orthonormal basis `q_1, q_2, ...` of the Krylov space `span(v, A v, A^2 v, ...)`. Once
the space is invariant there is no next vector: what is left of `A q_j` is rounding, and to
normalise it invents eigenvalues. This is no rare accident here: the Hessian of pure noise is
`-I/sigma^2`, for which every start breaks down at once, and one of low rank plus that soon after.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._checks import check_finite, one_array, positive_integer, prng_key
from sharpjax._linalg import eig, eigh, safe_norm
from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike, Key, Score
from sharpjax.curvature.operators import Jacobian, jacobian
from sharpjax.curvature.programs import compiled
from sharpjax.mesh.loops import varying_as

_State = tuple[Any, Array, Array, Array, Array, Array]  # of the loop over products


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Ritz:
    """What a Krylov space knows of the eigenvalues of `A`.

    All arrays have one entry for each product that was allowed. The first `num_valid` entries are
    Ritz pairs; the others repeat the last of these (with weight 0), so that every entry is finite
    and true and none is invented.

    Attributes:
        values: Ritz values `theta`, ascending, units 1/sigma^2. Those of `arnoldi` are complex, in
            ascending order of the real part.
        residuals: `||A y - theta y||` for the unit Ritz vector `y` of each, same units. For a
            symmetric `A`, an eigenvalue lies within the residual (and rounding,
            `10 sqrt(d) eps ||A||`) of the value.
        num_valid: how many entries are pairs of their own: the products spent, below those
            allowed if the space became invariant; 0 if a product was not finite.
        weights: squared components of the start along the Ritz vectors, summing to 1: the weights
            of the Gauss quadrature `v^T f(A) v / v^T v = sum_i weights_i f(values_i)`. None from
            `arnoldi`.
        vectors: the Ritz vectors, `(num_matvecs, *shape)`, or None if they were not asked for.
    """

    values: Array
    residuals: Array
    num_valid: Array
    weights: Array | None = None
    vectors: Array | None = None

    __repr__ = one_line


def lanczos(
    score: Score,
    x: ArrayLike,
    *,
    num_matvecs: int = 40,
    key: Key | None = None,
    start: ArrayLike | None = None,
    symmetric: bool = False,
    vectors: bool = False,
) -> Ritz:
    r"""Ritz values of the symmetric part `A = (J + J^T)/2` of the score's Jacobian at `x`.

    After m products `A Q = Q T + beta q_{m+1} e_m^T` with an orthonormal `Q` and a tridiagonal
    `T`. With `T s = theta s` and `y = Q s` this gives `||A y - theta y|| = beta |s_m|`, the
    residual. The extremes of the spectrum converge first.

    The basis is orthogonalised twice at each step. The process ends where
    `beta <= 10 sqrt(d) eps max_j ||A q_j||`. Both together make the residuals true of every
    matrix, to rounding. One start sees one eigenvector of each eigenspace: multiplicities are not
    seen (`extreme_eigenpairs` looks for them).

    The spectrum of `K = I + sigma^2 H` is `1 + sigma^2 values`: both have the same Krylov spaces,
    and a sigma is not needed.

    Args:
        score: maps one point to its score, same shape out.
        x: the point, any shape; `d = x.size`.
        num_matvecs: products with A at most, one tangent and one cotangent each. More than d are
            allowed and not spent.
        key: PRNG key of a normal start vector.
        start: the start vector instead, of the shape of `x`, not 0; its length does not matter.
        symmetric: take J for symmetric, as it is for an exact score: tangents alone, half the
            cost. If it is not so, the residuals mean nothing.
        vectors: return the Ritz vectors too.

    Returns:
        A `Ritz`. Under `jit` and `vmap`, where a product that is not finite cannot raise, its
        values are then NaN and `num_valid` is 0.

    Raises:
        ValueError: both or neither of `key` and `start`; a start of another shape, not finite or
            zero; `num_matvecs` not a positive integer; a product that is not finite (the step is
            named); and as `jacobian`.

    References:
        C. Lanczos, J. Res. Natl. Bur. Stand. 45 (1950), doi:10.6028/jres.045.026. The residual
        bound: B. N. Parlett, The symmetric eigenvalue problem, SIAM 1998,
        doi:10.1137/1.9781611971163. Twice is enough: L. Giraud et al., Numer. Math. 101 (2005),
        doi:10.1007/s00211-005-0615-4.

    The score of pure noise has one eigenvalue, and one product finds that out:

    >>> import jax, jax.numpy as jnp
    >>> ritz = lanczos(lambda x: -4.0 * x, jnp.ones(64), num_matvecs=3, key=jax.random.key(0))
    >>> print(ritz.values.round(4), ritz.num_valid)
    [-4. -4. -4.] 1
    """
    process = functools.partial(_lanczos, symmetric=symmetric, vectors=vectors)
    return _run(process, score, x, num_matvecs, key, start)


def arnoldi(
    score: Score,
    x: ArrayLike,
    *,
    num_matvecs: int = 40,
    key: Key | None = None,
    start: ArrayLike | None = None,
) -> Ritz:
    r"""Complex Ritz values of the score's Jacobian `J` itself, which need not be symmetric.

    After m products `J Q = Q G + h q_{m+1} e_m^T` with an upper Hessenberg `G`. With
    `G s = theta s`, `||s|| = 1` and `y = Q s`, `||J y - theta y|| = h |s_m|`, the residual.

    **The residual is a backward error:** `theta` is an eigenvalue of some `J + E` with `||E||` the
    residual. Only for a normal J does it bound the distance to an eigenvalue of J itself; a
    matrix far from normal may have eigenvalues that move much further.

    Orthogonalisation and breakdown are as in `lanczos`. The m x m eigenproblem runs where
    `jnp.linalg.eig` does: on CPU, and under CUDA and ROCm on the host; TPU has none.

    The arguments are those of `lanczos`; a product with J is one tangent.

    Returns:
        A `Ritz` without weights and vectors.

    Raises:
        ValueError: as `lanczos`.

    References:
        W. E. Arnoldi, Quart. Appl. Math. 9 (1951), doi:10.1090/qam/42792. Y. Saad, Numerical
        methods for large eigenvalue problems, SIAM 2011, doi:10.1137/1.9781611970739.

    >>> import jax, jax.numpy as jnp
    >>> rotation = jnp.array([[0.0, -2.0], [2.0, 0.0]])
    >>> ritz = arnoldi(lambda x: rotation @ x, jnp.ones(2), num_matvecs=2, key=jax.random.key(0))
    >>> print(ritz.values.imag.round(4))
    [-2.  2.]
    """
    return _run(_arnoldi, score, x, num_matvecs, key, start)


def flat_matvec(J: Jacobian, *, symmetric: bool) -> Callable[[Array], Array]:
    """`(J + J^T)/2` on flattened vectors; by a tangent alone if J is known to be symmetric."""
    product = J.mv if symmetric else J.symmetric_mv
    return lambda v: product(v.reshape(J.point.shape)).ravel()


def orthogonalise(basis: Array, v: Array) -> tuple[Array, Array]:
    """`v` less its components along the basis (rows; rows of zeros do nothing), and these.

    Gram and Schmidt's classical way, twice. The first pass leaves an error of `eps ||v||` along
    the basis, which is large beside a small remainder; the second is relative to the remainder.
    Full precision, whatever the network's: TF32 or bfloat16 would lose the orthogonality.
    """
    with jax.default_matmul_precision("highest"):
        first = basis @ v
        v = v - first @ basis
        second = basis @ v
        return v - second @ basis, first + second


def breakdown_level(scale: Array, size: int) -> Array:
    """What a remainder must exceed to be more than the rounding of a product of norm `scale`."""
    return jnp.sqrt(float(size)) * (10.0 * float(jnp.finfo(scale.dtype).eps)) * scale


def krylov_basis(
    matvec: Callable[[Array], Array], start: Array, num_steps: int
) -> tuple[Array, Array, Array, Array, Array]:
    """The orthonormal basis of a Krylov space and the operator on it.

    Returns `Q` (rows, zero from step `steps` on), `H = Q A Q^T` (upper Hessenberg, likewise), the
    norm `beta` of what the last product left outside, the number of `steps` and whether all was
    finite. A space that is exhausted ends the loop, so the products that were not needed are not
    spent; a number that is not finite ends it too.
    """

    def go_on(state: _State) -> Any:
        j, *_, beta, scale = state
        exhausted = (j > 0) & (beta <= breakdown_level(scale, start.size))
        return (j < num_steps) & jnp.isfinite(beta) & ~exhausted

    def step(state: _State) -> _State:
        j, Q, H, remainder, beta, scale = state
        q = remainder / beta
        # The coupling of this vector with the one before; the first has none.
        H = H.at[j, jnp.maximum(j - 1, 0)].set(jnp.where(j > 0, beta, 0.0))
        Q = Q.at[j].set(q)
        Aq = matvec(q)
        remainder, column = orthogonalise(Q, Aq)
        scale = jnp.maximum(scale, safe_norm(Aq))
        return j + 1, Q, H.at[:, j].set(column), remainder, safe_norm(remainder), scale

    Q = jnp.zeros((num_steps, start.size), start.dtype)
    H = jnp.zeros((num_steps, num_steps), start.dtype)
    zero = jnp.zeros((), start.dtype)
    state: _State = (jnp.zeros((), int), Q, H, start, safe_norm(start), zero)
    state = varying_as(state, start)
    steps, Q, H, _, beta, _ = jax.lax.while_loop(go_on, step, state)
    return Q, H, beta, steps, jnp.isfinite(beta) & (steps > 0)


def symmetric_ritz(
    matvec: Callable[[Array], Array], start: Array, num_matvecs: int, *, vectors: bool
) -> tuple[Ritz, Array, Array]:
    """`lanczos` on a flat operator and start; returns `(Ritz, steps, finite)`."""
    size = min(num_matvecs, start.size)
    Q, H, beta, steps, finite = krylov_basis(matvec, start, size)
    coupling = jnp.diagonal(H, -1)
    T = jnp.diag(jnp.diagonal(H)) + jnp.diag(coupling, -1) + jnp.diag(coupling, 1)
    T, scale, is_used = _scaled(T, steps, finite)
    # Entries are at most 1 now, so by Gershgorin every eigenvalue lies in [-3, 3]. With a 4 in
    # the unused places of the diagonal those come last, and mix with none that is used.
    theta, S = eigh(T + jnp.diag(jnp.where(is_used, 0.0, 4.0)))
    residuals = beta * jnp.abs(S[jnp.maximum(steps - 1, 0)])
    ritz_vectors = None
    if vectors:
        with jax.default_matmul_precision("highest"):
            ritz_vectors = S.T @ Q
    weights = jnp.where(is_used, S[0] ** 2, 0.0)
    ritz = Ritz(scale * theta, residuals, jnp.where(finite, steps, 0), weights, ritz_vectors)
    return _padded(ritz, num_matvecs, finite), steps, finite


def _scaled(H: Array, steps: Array, finite: Array) -> tuple[Array, Array, Array]:
    """H with entries of at most 1 (0 if it is not finite), its scale, and which rows are used."""
    is_used = jnp.arange(len(H)) < steps
    H = jnp.where(finite & is_used & is_used[:, None], H, 0.0)
    largest = jnp.max(jnp.abs(H))
    scale = jnp.where(largest > 0, largest, 1.0)
    return H / scale, scale, is_used


def _padded(ritz: Ritz, length: int, finite: Array) -> Ritz:
    """The first `num_valid` entries, then the last of them again, or NaN if it is not finite."""
    source = jnp.minimum(jnp.arange(length), jnp.maximum(ritz.num_valid - 1, 0))

    def pad(entries: Array) -> Array:
        return jnp.where(finite, entries[source].T, jnp.nan).T

    weights = ritz.weights
    if weights is not None:
        is_copy = jnp.arange(length) >= ritz.num_valid
        weights = jnp.where(finite, jnp.where(is_copy, 0.0, weights[source]), jnp.nan)
    vectors = None if ritz.vectors is None else pad(ritz.vectors)
    return Ritz(pad(ritz.values), pad(ritz.residuals), ritz.num_valid, weights, vectors)


@compiled(static_argnames=("num_matvecs", "symmetric", "vectors"))
def _lanczos(
    J: Jacobian, start: Array, *, num_matvecs: int, symmetric: bool, vectors: bool
) -> tuple[Ritz, Array, Array]:
    matvec = flat_matvec(J, symmetric=symmetric)
    ritz, steps, finite = symmetric_ritz(matvec, start.ravel(), num_matvecs, vectors=vectors)
    if ritz.vectors is not None:
        shaped = ritz.vectors.reshape(num_matvecs, *J.point.shape)
        ritz = dataclasses.replace(ritz, vectors=shaped)
    return ritz, steps, finite


@compiled(static_argnames=("num_matvecs",))
def _arnoldi(J: Jacobian, start: Array, *, num_matvecs: int) -> tuple[Ritz, Array, Array]:
    matvec = flat_matvec(J, symmetric=True)  # that is: the tangent alone
    size = min(num_matvecs, start.size)
    _, H, beta, steps, finite = krylov_basis(matvec, start.ravel(), size)
    G, scale, is_used = _scaled(H, steps, finite)
    # As in `symmetric_ritz`: no eigenvalue exceeds the Frobenius norm, the unused are twice it.
    bound = jnp.maximum(jnp.linalg.norm(G), 1.0)
    theta, S = eig(G + jnp.diag(jnp.where(is_used, 0.0, 2.0 * bound)))
    order = jnp.lexsort((theta.imag, theta.real, jnp.abs(theta) > 1.5 * bound))
    residuals = beta * jnp.abs(S[jnp.maximum(steps - 1, 0)])
    ritz = Ritz(scale * theta[order], residuals[order], jnp.where(finite, steps, 0))
    return _padded(ritz, num_matvecs, finite), steps, finite


def _run(
    process: Callable[..., Any],
    score: Score,
    x: ArrayLike,
    num_matvecs: int,
    key: Key | None,
    start: ArrayLike | None,
) -> Ritz:
    num_matvecs = positive_integer("num_matvecs", num_matvecs)
    J = jacobian(score, x)
    ritz: Ritz
    ritz, steps, finite = process(J, _start_vector(J, key, start), num_matvecs=num_matvecs)
    if not isinstance(finite, jax.core.Tracer) and not finite:
        raise ValueError(
            f"The product with the Jacobian at step {max(int(steps), 1)} of {num_matvecs} is not "
            "finite, though the score is: look for a derivative that x does not have (as that of a "
            "norm or square root at 0) or that overflows in this precision"
        )
    return ritz


def _start_vector(J: Jacobian, key: Key | None, start: ArrayLike | None) -> Array:
    if (key is None) == (start is None):
        raise ValueError(
            "Give either a random start, key=jax.random.key(seed), or start=vector, "
            f"got {'neither' if key is None else 'both'}"
        )
    if key is not None:
        key = prng_key(key, "The start is random")
        return varying_as(jax.random.normal(key, J.point.shape, J.point.dtype), J)
    given: Any = start
    start = one_array("start", given)
    if start.shape != J.point.shape:
        raise ValueError(
            f"start has shape {start.shape}, but the point has shape {J.point.shape}; "
            "use jax.vmap for a batch of starts"
        )
    check_finite("start", start)
    if isinstance(start, jax.core.Tracer):
        return varying_as(start.astype(J.point.dtype), J)
    # Its length does not matter, so neither may that numbers below 1e-38 count as zero.
    known = np.asarray(given, np.float64)
    largest = np.abs(known).max()
    if largest == 0:
        raise ValueError("start must not be zero; key=jax.random.key(seed) draws one")
    return varying_as(jnp.asarray(known / largest, J.point.dtype), J)
