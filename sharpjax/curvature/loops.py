r"""Loops over independent work: chunk after chunk, and spread over the devices of a mesh.

Every estimator is a loop over probes, directions or columns, written with `chunked_map`. Inside a
`shard_map` whose mesh has an axis "probes" that loop is shared: each device runs its part in chunks
of its own, and one all-reduce puts the results together. Nothing else of an estimator knows about
devices. (A sharded `lax.map` over all probes would not do: XLA gathers them on every device.)
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from sharpjax._types import Array

__all__ = [
    "POINTS",
    "PROBES",
    "check_mesh",
    "chunked_map",
    "local_map",
    "num_shares",
    "over_points",
]

_T = TypeVar("_T")  # any pytree

POINTS = "points"  # the mesh axis that batches of points are split over
PROBES = "probes"  # the one that loops are shared over

# Whether we are inside a shared loop: a loop in it belongs to one device already. A context of
# JAX's own, which its caches of traced functions know of.
_is_shared = jax.make_user_context(False)


def chunked_map(function: Callable[[Array], _T], indices: Array, chunk_size: int) -> _T:
    """`stack([function(i) for i in indices])`, `chunk_size` at once by `vmap`, chunk after chunk.

    The chunks are evened out (10 in chunks of at most 8 are 5 and 5), and what the last one lacks
    is filled with an index past the end, computed and thrown away.

    Under a mesh with an axis "probes" of n devices each of them does a share of `len(indices)/n`,
    rounded up, and every one gets all results, by a sum of arrays that are zero elsewhere.
    """
    num_devices = num_shares()
    if num_devices == 1:
        return local_map(function, indices, chunk_size)
    count = len(indices)
    share = -(-count // num_devices)
    padded = jnp.pad(indices, (0, share * num_devices - count), mode="edge")
    first = share * jax.lax.axis_index(PROBES)
    with _is_shared(True):
        ours = local_map(function, jax.lax.dynamic_slice_in_dim(padded, first, share), chunk_size)

    def placed(leaf: Array) -> Array:
        empty = jnp.zeros((share * num_devices, *leaf.shape[1:]), leaf.dtype)
        return jax.lax.dynamic_update_slice_in_dim(empty, leaf, first, axis=0)

    whole = jax.lax.psum(jax.tree.map(placed, ours), PROBES)
    results: _T = jax.tree.map(lambda leaf: leaf[:count], whole)
    return results


def local_map(function: Callable[[Array], _T], indices: Array, chunk_size: int) -> _T:
    """`chunked_map` on this device alone, whatever the mesh."""
    count = len(indices)
    num_chunks = -(-count // chunk_size)
    chunk_size = -(-count // num_chunks)
    padded = jnp.pad(indices, (0, num_chunks * chunk_size - count), constant_values=count)
    out = jax.lax.map(jax.vmap(function), padded.reshape(num_chunks, chunk_size))
    results: _T = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], out)
    return results


def num_shares() -> int:
    """How many devices share a `chunked_map` that starts here; 1 outside of a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[PROBES] if PROBES in mesh.manual_axes and not _is_shared.value else 1


def check_mesh(mesh: Mesh | None) -> None:
    """Let a mesh pass whose axes are ours, or none at all.

    Raises:
        TypeError: something else than a mesh.
        ValueError: a mesh with an axis of another name.
    """
    if mesh is None:
        return
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh must be a jax.sharding.Mesh of devices, got {type(mesh).__name__}; "
            f"jax.make_mesh((jax.device_count(),), ({POINTS!r},)) makes one of all."
        )
    if not mesh.axis_names or set(mesh.axis_names) - {POINTS, PROBES}:
        raise ValueError(
            f"The mesh must have an axis {POINTS!r} or {PROBES!r} or both, and no other, got axes "
            f"{tuple(mesh.axis_names)}; jax.make_mesh((4, 2), ({POINTS!r}, {PROBES!r})) makes one."
        )


def over_points(
    function: Callable[[Any, Any], Any], mesh: Mesh | None, common: Any, batch: Any
) -> Any:
    """`function(common, batch)`, the first axis of the batch split over the mesh's "points".

    What is common is on every device. A batch that the axis does not divide is filled up with its
    last entries, and what they give is dropped. Loops inside are shared over "probes".

    Raises:
        TypeError, ValueError: as `check_mesh`.
    """
    if mesh is None:
        return function(common, batch)
    check_mesh(mesh)
    # The sharding of what comes in is XLA's business, whatever axis types the user's mesh has.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    split = PartitionSpec(POINTS) if POINTS in mesh.axis_names else PartitionSpec()
    count = len(jax.tree.leaves(batch)[0])
    missing = -count % mesh.shape.get(POINTS, 1)

    def filled(leaf: Array) -> Array:
        return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf

    out = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(), split),
        out_specs=split,
        check_vma=False,  # that all devices along "probes" return the same is chunked_map's doing
    )(common, jax.tree.map(filled, batch))
    return jax.tree.map(lambda leaf: leaf[:count], out)
