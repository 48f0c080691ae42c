"""The point and the noise level that every estimator of dimension starts from."""

from sharpjax._checks import check_signal, level
from sharpjax._checks import point as checked_point
from sharpjax._types import Array, ArrayLike
from sharpjax.mesh.loops import without_explicit_axes


def at_level(
    what: str, x0: ArrayLike, alpha: ArrayLike, sigma: ArrayLike
) -> tuple[Array, Array, Array]:
    """The clean point and its level in one type.

    Raises:
        ValueError: a point that is not finite, or of another type than float32 and float64; no
            level; `alpha = 0`, where the point counts for nothing.
    """
    x0 = without_explicit_axes(checked_point(x0), replicate=True)
    check_signal(alpha, f"{what}: dimension")
    return x0, *level(what, alpha, sigma, x0.dtype)
