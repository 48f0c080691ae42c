r"""The Jacobian of a score at a point, as an operator.

`jax.linearize` runs the score once and keeps what its tangents need; each product with the Jacobian
then costs about one forward pass. For an exact score `J = H = grad^2 log p` is symmetric. A learned
score is not exactly a gradient, so `J` and `J^T` differ, and `asymmetry` says by how much.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from sharpjax._checks import check_finite, one_array, positive_integer
from sharpjax._checks import point as checked_point
from sharpjax._linalg import safe_norm, scale_of
from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike, Matvec, Score
from sharpjax.curvature.layout import channels_last
from sharpjax.curvature.programs import as_pytree, compiled
from sharpjax.mesh.loops import chunked_map, varying_as, without_explicit_axes
from sharpjax.score import score_at

# Tangents at once: on accelerators enough to fill matrix units, at 64 times a forward's memory; on
# a CPU no more than its caches hold.
_DEFAULT_CHUNK = 64
_DEFAULT_CHUNK_ON_CPU = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Jacobian:
    """`J[i, j] = d s_i / d x_j` of a score at one point; build it with `jacobian(score, x)`.

    A pytree: it can leave `jit`, be kept, be passed to another `jit`, and be batched by `vmap`.
    Vectors have the shape of the point. Units of `J`: 1/sigma^2.

    Attributes:
        point: where, any shape; `d = point.size`.
        value: the score there, of the same shape.
        tangent_map: the linear map `v -> J v`.
    """

    point: Array
    value: Array
    tangent_map: Matvec

    __repr__ = one_line

    def mv(self, v: ArrayLike) -> Array:
        """`J v`: one tangent of the score.

        Raises:
            ValueError: `v` has not the shape of the point (also in `rmv` and `symmetric_mv`).
        """
        return _forward(self.tangent_map, self._vector(v, self.point))

    def rmv(self, v: ArrayLike) -> Array:
        """`J^T v`: one cotangent."""
        return _transposed(self.tangent_map, self.point, self._vector(v, self.value))

    def symmetric_mv(self, v: ArrayLike) -> Array:
        """`(J + J^T) v / 2`: one tangent and one cotangent."""
        return 0.5 * (self.mv(v) + self.rmv(v))

    def dense(self, *, chunk_size: int | None = None) -> Array:
        """The matrix `J` on the flattened coordinates, `(d, d)`: d tangents.

        Args:
            chunk_size: tangents computed at once, which bounds the memory; 64 by default, 8 on a
                CPU. It need not divide d.

        Raises:
            ValueError: `chunk_size` not a positive integer; a tangent that is not finite.
        """
        size = _chunk(chunk_size)
        matrix: Array = _dense(self.tangent_map, self.point, chunk_size=size)
        check_finite("The Jacobian", matrix)
        return matrix

    def diagonal(self, *, chunk_size: int | None = None) -> Array:
        """The diagonal of `dense()`, `(d,)`, without storing the matrix: d tangents."""
        size = _chunk(chunk_size)
        entries: Array = _diagonal(self.tangent_map, self.point, chunk_size=size)
        check_finite("The Jacobian's diagonal", entries)
        return entries

    def _vector(self, v: ArrayLike, like: Array) -> Array:
        v = one_array("The vector", v)
        if v.shape != like.shape:
            raise ValueError(
                f"The vector has shape {v.shape}, but the point has shape {like.shape}; "
                "use jax.vmap for a batch of vectors"
            )
        return varying_as(v.astype(like.dtype), like)


def _chunk(size: int | None) -> int:
    on_cpu = jax.default_backend() == "cpu"
    default = _DEFAULT_CHUNK_ON_CPU if on_cpu else _DEFAULT_CHUNK
    return positive_integer("chunk_size", default if size is None else size)


def jacobian(score: Score, x: ArrayLike) -> Jacobian:
    """The Jacobian of `score` at `x`, from one evaluation of the score.

    Compiled once for all values of its arrays if `score` is a pytree callable such as
    `jax.tree_util.Partial(function, *arrays)` (see `Score`). Any other callable is traced at each
    call, so that one which reads something that changes is never answered from a stale program, and
    compiled once for all that compute alike (see `sharpjax.curvature.programs`).

    Args:
        score: maps one point to its score, same shape out.
        x: the point, any shape, real floating dtype.

    Raises:
        ValueError: `x` is empty or not float32 or float64; `score(x)` has another shape than `x`,
            or is of less than single precision; either is not finite (where it is known: not under
            `jit` or `vmap`).

    >>> import jax.numpy as jnp
    >>> J = jacobian(lambda x: jnp.array([[0.0, 2.0], [1.0, 0.0]]) @ x, jnp.ones(2))
    >>> J.mv(jnp.array([1.0, 0.0])), J.rmv(jnp.array([1.0, 0.0]))
    (Array([0., 1.], dtype=float32), Array([0., 2.], dtype=float32))
    """
    x = without_explicit_axes(checked_point(x), replicate=True)
    value, tangent_map = _linearize(as_pytree(score, x), x)
    check_finite("score(x)", value)
    return Jacobian(x, value, tangent_map)


def hessian(score: Score, x: ArrayLike, *, chunk_size: int | None = None) -> Array:
    """The dense Jacobian of the score, `(d, d)` on the flattened coordinates, units 1/sigma^2.

    For an exact score this is the Hessian of `log p`; that of a learned score is returned as it is,
    not symmetrised.

    The arguments are those of `jacobian` and `Jacobian.dense`, and so are the errors.

    >>> import jax.numpy as jnp
    >>> hessian(lambda x: -x * x, jnp.array([1.0, 3.0]))
    Array([[-2.,  0.],
           [ 0., -6.]], dtype=float32)
    """
    return jacobian(score, x).dense(chunk_size=chunk_size)


def asymmetry(J: Jacobian | ArrayLike) -> Array:
    """`||J - J^T||_F / ||J + J^T||_F`: 0 for a gradient's Jacobian, near 1 for a random one.

    Takes a `Jacobian` (which it makes dense) or a square matrix. Infinite for `J = -J^T != 0`, and
    0 for `J = 0`.

    Raises:
        ValueError: not a square matrix.

    >>> import jax.numpy as jnp
    >>> print(asymmetry(jnp.array([[1.0, 1.0], [0.0, 1.0]])).round(4))
    0.4472
    """
    J = J.dense() if isinstance(J, Jacobian) else jnp.asarray(J)
    if J.ndim != 2 or J.shape[0] != J.shape[1]:
        raise ValueError(f"J must be a square matrix or a Jacobian, got shape {J.shape}")
    J = J / scale_of(J)
    odd, even = safe_norm(J - J.T), safe_norm(J + J.T)
    return jnp.where(odd == 0, 0.0, odd / jnp.where(odd == 0, 1.0, even))


# Compiled here once: a Jacobian is an argument, so another point, another prompt or another set of
# weights (of the same score function) reuses the program.


@compiled
def _linearize(score: Score, x: Array) -> tuple[Array, Matvec]:
    return jax.linearize(functools.partial(score_at, score), x)


@compiled
def _forward(tangent_map: Matvec, v: Array) -> Array:
    return channels_last(tangent_map, v)(v)


@compiled
def _transposed(tangent_map: Matvec, point: Array, w: Array) -> Array:
    transpose = jax.linear_transpose(tangent_map, point)
    out: list[Array] = channels_last(transpose, w)(w)
    return out[0]


def _column(tangent_map: Matvec, point: Array, j: Array) -> Array:
    """`J e_j`, flattened."""
    basis = jax.nn.one_hot(j, point.size, dtype=point.dtype)
    return tangent_map(varying_as(basis.reshape(point.shape), point)).ravel()


@compiled(static_argnames=("chunk_size",))
def _dense(tangent_map: Matvec, point: Array, *, chunk_size: int) -> Array:
    def column(j: Array) -> Array:
        return _column(tangent_map, point, j)

    return chunked_map(column, jnp.arange(point.size), chunk_size).T


@compiled(static_argnames=("chunk_size",))
def _diagonal(tangent_map: Matvec, point: Array, *, chunk_size: int) -> Array:
    def entry(j: Array) -> Array:
        return _column(tangent_map, point, j)[j]

    return chunked_map(entry, jnp.arange(point.size), chunk_size)
