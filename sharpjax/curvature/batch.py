"""An estimator at every point of a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sharpjax._checks import one_array, positive_integer, prng_key
from sharpjax._types import Array, ArrayLike, Key, Score
from sharpjax.curvature.programs import as_pytree, compiled
from sharpjax.mesh.loops import (
    automatic_context,
    check_mesh,
    local_map,
    over_points,
    without_explicit_axes,
)


def at_points(
    estimator: Callable[..., Any],
    score: Score,
    points: ArrayLike,
    *,
    key: Key | None = None,
    common_probes: bool = False,
    points_at_once: int = 8,
    mesh: Mesh | None = None,
    **options: Any,
) -> Any:
    """What `estimator(score, x, **options)` returns, for every `x` of a batch.

    Args:
        estimator: any function of this package that takes `(score, x)`.
        score: maps one point to its score; no batch axis.
        points: `(n, *shape)`.
        key: PRNG key, for an estimator that draws. Point i gets `fold_in(key, i)`, so neither the
            number of points nor `points_at_once` changes its draws.
        common_probes: give every point `key` itself instead, so that what the points share
            cancels from their differences.
        points_at_once: by `vmap` on each device, which bounds the memory.
        mesh: devices to use, along an axis "points", which splits the batch, an axis "probes",
            which shares the loops over probes, directions and columns, or both. The numbers are
            those of one device, to rounding. Arrays that were put on devices outside of it must
            be moved first (`jax.device_put`).
        **options: of the estimator. Numbers and arrays are the same for all points.

    Returns:
        The estimator's result with a first axis of n on every array.

    Raises:
        TypeError: `mesh` is not a `jax.sharding.Mesh`.
        ValueError: as the estimator; a mesh with other axes; where a result is not finite, the
            first such point's index is named, with what the estimator says of it alone.

    >>> import jax.numpy as jnp
    >>> from sharpjax.curvature import trace
    >>> at_points(trace, lambda x: -x**3, jnp.array([[1.0], [2.0]]), method="exact").value
    Array([ -3., -12.], dtype=float32)
    """
    check_mesh(mesh)
    given = without_explicit_axes((score, one_array("points", points), key, options))
    with automatic_context():
        return _at_points(estimator, common_probes, points_at_once, mesh, *given)


def _at_points(
    estimator: Callable[..., Any],
    common_probes: bool,
    points_at_once: int,
    mesh: Mesh | None,
    score: Score,
    points: Array,
    key: Key | None,
    options: dict[str, Any],
) -> Any:
    if points.ndim < 1 or len(points) == 0:
        raise ValueError(
            f"points must have shape (n, *shape) with n >= 1, got {points.shape}; "
            "for one point call the estimator itself"
        )
    points_at_once = positive_integer("points_at_once", points_at_once)
    key = None if key is None else prng_key(key, "key draws for every point")
    options = {k: jnp.asarray(v) if isinstance(v, list) else v for k, v in options.items()}

    def drawn(i: ArrayLike) -> dict[str, Array]:
        if key is None:
            return {}
        return {"key": key if common_probes else jax.random.fold_in(key, i)}

    # the estimator looks at its options while their values are known, at no point
    jax.eval_shape(lambda x, keys: estimator(score, x, **options, **keys), points[0], drawn(0))
    # What holds numbers is an argument of the compiled program, the rest a part of it.
    numbers = float | np.floating | jax.Array | np.ndarray
    is_dynamic = {
        name: isinstance(v, numbers) or not jax.tree_util.all_leaves([v])
        for name, v in options.items()
    }
    dynamic = {name: v for name, v in options.items() if is_dynamic[name]}
    static = tuple((name, v) for name, v in options.items() if not is_dynamic[name])
    arguments: Any = (points, key, dynamic)
    settings: Any = (estimator, common_probes, points_at_once, static, mesh)
    results = _run(as_pytree(score, points[0]), *arguments, *settings)
    _name_the_point(
        results, len(points), lambda i: estimator(score, points[i], **options, **drawn(i))
    )
    return results


@compiled(static_argnames=("estimator", "common_probes", "points_at_once", "static", "mesh"))
def _run(
    score: Score,
    points: Array,
    key: Key | None,
    dynamic: dict[str, Any],
    estimator: Callable[..., Any],
    common_probes: bool,
    points_at_once: int,
    static: tuple[tuple[str, Any], ...],
    mesh: Mesh | None,
) -> Any:
    def part(common: tuple[Score, Array | None, dict[str, Any]], batch: tuple[Array, Array]) -> Any:
        score, key, dynamic = common
        points, indices = batch

        def one(j: Array) -> Any:
            options = dynamic | dict(static)
            if key is not None:
                options["key"] = key if common_probes else jax.random.fold_in(key, indices[j])
            return estimator(score, points[j], **options)

        return local_map(one, jnp.arange(len(points)), points_at_once)

    common, batch = (score, key, dynamic), (points, jnp.arange(len(points)))
    return over_points(part, mesh, common, batch)


def _name_the_point(results: Any, count: int, alone: Callable[[int], Any]) -> None:
    leaves = [leaf for leaf in jax.tree.leaves(results) if not isinstance(leaf, jax.core.Tracer)]
    leaves = [np.asarray(x) for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]

    def points_where(test: Callable[[Any], Any]) -> Any:
        each = [test(x).reshape(count, -1).any(axis=1) for x in leaves]
        return np.any(each, axis=0) if each else np.zeros(count, bool)

    bad, is_nan = points_where(lambda x: ~np.isfinite(x)), points_where(np.isnan)
    # What is infinite may be the value (the asymmetry of a rotation): the estimator alone knows.
    for some in (bad, is_nan):
        if not some.any():
            return
        i = int(np.argmax(some))
        try:
            alone(i)
            if not is_nan[i]:
                continue
            said = "the result is not finite"
        except ValueError as error:
            said = str(error)
        raise ValueError(f"Point {i} of {count} ({int(bad.sum())} fail): {said}")
