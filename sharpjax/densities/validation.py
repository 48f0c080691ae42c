"""What the densities check of their parameters, where the numbers are known (not under a trace)."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from sharpjax._checks import host_value
from sharpjax._types import Array, ArrayLike


def _range(dtype: Any) -> tuple[float, str]:
    """The least number that a type holds in full, and what to do about others."""
    tiny = float(jnp.finfo(dtype).tiny)
    advice = f"{np.dtype(dtype).name}, which computes here"
    return tiny, f"{advice}; change the units, or compute in float64 (jax_enable_x64)"


def floats(owner: str, **values: Any) -> list[Array]:
    """The values as arrays of one real floating dtype, at least float32, finite in that dtype."""
    with np.errstate(over="ignore"):  # what overflows is refused below
        arrays = [jnp.asarray(value) for value in values.values()]
    dtype = jnp.promote_types(jnp.result_type(*arrays, float), jnp.float32)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{owner} needs real numbers, got dtype {dtype} among {list(values)}")
    for name, value in values.items():
        host = host_value(value)
        if host is None:
            continue
        host = host.astype(np.float64)
        if not np.isfinite(host).all():
            raise ValueError(f"{owner}: {name} holds NaN or infinite numbers; remove them first")
        if np.abs(host).max(initial=0.0) > float(jnp.finfo(dtype).max):
            raise ValueError(
                f"{owner}: {name} holds numbers as large as {np.abs(host).max():.6g}, beyond "
                + _range(dtype)[1]
            )
    return [array.astype(dtype) for array in arrays]


def rounding_unit(value: Any, stored: Array) -> float:
    """The rounding unit of the numbers as given or as stored, whichever is coarser."""
    own = getattr(value, "dtype", stored.dtype)
    own = own if jnp.issubdtype(own, jnp.floating) else stored.dtype
    return max(float(jnp.finfo(own).eps), float(jnp.finfo(stored.dtype).eps))


def check_weights(owner: str, weights: ArrayLike, stored: Array, count: int, of: str) -> None:
    """Weights of a mixture: one each, non-negative, summing to one."""
    if stored.shape != (count,):
        raise ValueError(
            f"{owner}: weights have shape {stored.shape}, but there are {count} {of}; "
            f"give weights of shape ({count},)"
        )
    host = host_value(weights)
    if host is None:
        return
    host = host.astype(np.float64)
    if (host < 0).any():
        raise ValueError(f"{owner}: weights must be >= 0, the smallest is {host.min():.6g}")
    tiny, advice = _range(stored.dtype)
    if ((host > 0) & (host < tiny)).any():
        raise ValueError(
            f"{owner}: a weight must be 0 or at least {tiny:.6g}, got {host[host > 0].min():.6g}, "
            f"which is no number in {advice}"
        )
    tolerance = (count + 8) * rounding_unit(weights, stored)
    if abs(host.sum() - 1.0) > tolerance:
        raise ValueError(
            f"{owner}: weights must sum to 1 (within {tolerance:.1e}), they sum to "
            f"{host.sum():.9g}; divide them by their sum"
        )


def check_covariance(owner: str, covariance: ArrayLike, stored: Array) -> None:
    """Symmetric and positive definite, to the precision in which it is used."""
    host = host_value(covariance)
    if host is None:
        return
    host, eps = host.astype(np.float64), rounding_unit(covariance, stored)
    tiny, advice = _range(stored.dtype)
    variances = np.diag(host)
    if ((variances > 0) & ((variances < tiny) | (variances * tiny > 1))).any():
        raise ValueError(
            f"{owner} has variances from {variances.min():.6g} to {variances.max():.6g}; they and "
            f"their inverses must be at least {tiny:.6g}, the least number of {advice}"
        )
    asymmetry = np.abs(host - host.T)
    if asymmetry.max() > 100 * eps * np.abs(host).max():
        i, j = np.unravel_index(asymmetry.argmax(), host.shape)
        raise ValueError(
            f"{owner} is not symmetric: entries [{i}, {j}] and [{j}, {i}] differ by "
            f"{asymmetry.max():.6g}; pass (C + C.T) / 2 if that is meant"
        )
    try:
        # 1 - pivot/diagonal is the share of a coordinate explained by those before it: the test
        # is blind to the units of the coordinates, as the factorisation itself is. What entries
        # rounded to eps leave in the pivots of a singular matrix is about sqrt(d) eps.
        pivots = np.diag(np.linalg.cholesky(host)) ** 2 / np.diag(host)
        positive = bool((pivots > 4 * math.sqrt(len(host)) * eps).all())
        positive &= bool((pivots * variances >= tiny).all())
    except np.linalg.LinAlgError:
        positive = False
    if not positive:
        smallest = np.linalg.eigvalsh(host)[0]
        raise ValueError(
            f"{owner} is not positive definite in {stored.dtype}: its smallest eigenvalue is "
            f"{smallest:.6g} (the largest entry is {np.abs(host).max():.6g}); remove the "
            "degenerate directions or add a multiple of the identity, as noised(1, sigma) does"
        )
