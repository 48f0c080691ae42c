"""What every density is: a pytree whose constructor validates, with methods of one point."""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from sharpjax._checks import host_value
from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def build(cls: type, **fields: Any) -> Any:
    """An instance from fields that are known to be valid."""
    self: Any = object.__new__(cls)
    assign(self, **fields)
    return self


def assign(self: Any, **fields: Any) -> None:
    """Set fields of a frozen instance, from its `__post_init__`."""
    for name, value in fields.items():
        object.__setattr__(self, name, value)


class point_method:
    """A method of one point `x`, which from an instance reads as `Partial(function, instance)`.

    It checks the shape of `x` and lifts it to the density's precision. Matrix products run at full
    precision: the accelerators' default (TF32, bfloat16) would spoil a closed form.
    """

    def __init__(self, function: Callable[..., Any]):
        @functools.wraps(function)
        def call(self: Any, x: ArrayLike, *args: Any, **kwargs: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return function(self, _as_point(self, x), *args, **kwargs)

        self._call = call
        functools.update_wrapper(cast(Any, self), function)  # a descriptor that looks like it

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self._call if instance is None else Partial(self._call, instance)


class Density:
    """What the densities share: how they print, what one point is, and its p-Laplacian."""

    _points: ClassVar[tuple[str, int]]  # the field that holds some, and its axes before theirs

    __repr__ = one_line

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one point."""
        name, axes = self._points
        return getattr(self, name).shape[axes:]

    @property
    def dtype(self) -> Any:
        """The precision of the parameters."""
        return getattr(self, self._points[0]).dtype

    @point_method
    def p_laplacian(self, x: Array, p: ArrayLike) -> Array:
        r"""`div(|s|^{p-2} s)` at `x`, a scalar, exact; units sigma^{-p}.

        `|s|^{p-2} (tr H + (p-2) u^T H u)` with `u = s/|s|`. Where `s = 0`: NaN for `p < 2`
        (undefined there), `tr H` for `p = 2`, 0 for `p > 2`. O(n d) of a data set.

        Raises:
            ValueError: `p < 1`.

        At radius `r` of an isotropic Gaussian the 1-Laplacian is `-(d - 1)/r`:

        >>> from sharpjax.densities import Gaussian
        >>> p = Gaussian(mean=jnp.zeros(3), covariance=jnp.eye(3))
        >>> print(f"{p.p_laplacian(jnp.array([0.0, 4.0, 0.0]), 1):.4f}")
        -0.5000
        """
        return _p_laplacian(*self._second_order(x), p)

    def _second_order(self, x: Array) -> tuple[Array, Array, Callable[[Array], Array]]:
        """The score, `tr H` and `v -> v^T H v`."""
        raise NotImplementedError


def _as_point(density: Density, x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if x.shape != density.shape:
        raise ValueError(
            f"x has shape {x.shape}, but {type(density).__name__} takes one point of shape "
            f"{density.shape}; use jax.vmap for a batch"
        )
    return x.astype(jnp.promote_types(x.dtype, density.dtype))


def polar(s: Array) -> tuple[Array, Array, Array]:
    """`|s|`, `s/|s|`, and whether s is zero; then they are 1 and zero.

    Dividing by the largest entry first keeps `|s|^2` from over- or underflowing in float32.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(s)))
    is_zero = largest == 0
    scaled = s / jnp.where(is_zero, 1.0, largest)
    length = jnp.sqrt(jnp.where(is_zero, 1.0, jnp.sum(scaled**2)))
    return jnp.where(is_zero, 1.0, largest * length), scaled / length, is_zero


def weighted_square(weights: Array, rows: Array) -> Array:
    """`sum_i w_i v_i v_i^T`, symmetric.

    Without roots of the weights: where one underflows to 0, the derivative of its root is infinite,
    and that times the 0 of the weight's own is NaN.
    """
    half = 0.5 * (weights[:, None] * rows).T @ rows
    return half + half.T


def _p_laplacian(
    score: Array, trace: Array, quadratic: Callable[[Array], Array], p: ArrayLike
) -> Array:
    """The sum over i of d_i (|s|^{p-2} s_i) = |s|^{p-2} d_i s_i + (p-2) |s|^{p-4} s_i (H s)_i."""
    host = host_value(p)
    if np.shape(p) != () or (host is not None and not host >= 1):
        raise ValueError(f"p must be one number >= 1, got {p}")
    p = jnp.asarray(p, score.dtype)
    norm, direction, is_zero = polar(score)
    root = norm ** (0.5 * (p - 2))  # half before, half after: |s|^{p-2} alone may be out of range
    value = root * (trace + (p - 2) * quadratic(direction)) * root
    above: ArrayLike = 0.0  # for p > 2, of which p = 4 alone has a second derivative there, not 0
    if host is None or host == 4:
        small = jnp.where(is_zero, score, 0.0)
        above = jnp.where(p == 4, jnp.sum(small**2) * trace + 2 * quadratic(small), 0.0)
    at_zero = jnp.where(p < 2, jnp.nan, jnp.where(p == 2, trace, above))
    return jnp.where(is_zero, at_zero, value)
