r"""Loops over independent work: chunk after chunk, and spread over the devices of a mesh.

Every estimator is a loop over probes, directions or columns, written with `chunked_map`. Inside a
`shard_map` whose mesh has an axis "probes" that loop is shared: each device runs its part in chunks
of its own, and one all-reduce puts the results together. Nothing else of an estimator knows about
devices. (A sharded `lax.map` over all probes would not do: XLA gathers them on every device.)
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sharpjax._types import Array

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
    return jax.tree.map(lambda leaf: leaf[:count], whole)


def local_map(function: Callable[[Array], _T], indices: Array, chunk_size: int) -> _T:
    """`chunked_map` on this device alone, whatever the mesh."""
    count = len(indices)
    num_chunks = -(-count // chunk_size)
    chunk_size = -(-count // num_chunks)
    padded = jnp.pad(indices, (0, num_chunks * chunk_size - count), constant_values=count)
    out = jax.lax.map(jax.vmap(function), padded.reshape(num_chunks, chunk_size))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], out)


def varying_as(tree: _T, *likes: Any) -> _T:
    """The arrays, which may differ between devices along the axes that those of `likes` do.

    Inside a `jax.shard_map` with `check_vma=True` types say along which axes that is, and a probe
    or the first state of a loop, the same everywhere, must be brought to the type of what it meets.
    """

    def varying(leaf: Any) -> frozenset[str]:
        return jax.typeof(leaf).manual_axis_type.varying

    axes = frozenset[str]().union(*map(varying, jax.tree.leaves(likes)))

    def cast(leaf: Any) -> Any:
        missing = tuple(sorted(axes - varying(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree) if axes else tree


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
            f"jax.make_mesh((jax.device_count(),), ({POINTS!r},)) makes one of all"
        )
    if "weights" in mesh.axis_names:
        raise ValueError(
            "an axis 'weights' is for reading: sharpjax.load(DIRECTORY, mesh=mesh) shards the "
            "weights, those of a model in memory stay as they are; leave mesh out here"
        )
    if not mesh.axis_names or set(mesh.axis_names) - {POINTS, PROBES}:
        raise ValueError(
            f"The mesh must have an axis {POINTS!r} or {PROBES!r} or both, and no other, got axes "
            f"{tuple(mesh.axis_names)}; jax.make_mesh((4, 2), ({POINTS!r}, {PROBES!r})) makes one"
        )


def automatic_axes(mesh: Mesh) -> Mesh:
    """The mesh with its axes left to XLA, whatever types the user's have.

    `jax.make_mesh` makes axes whose sharding is part of an array's type and must be spelt out at
    each operation that does not determine it. That is for who writes a program, not for who passes
    an array to one.
    """
    return Mesh(mesh.devices, mesh.axis_names)


@contextlib.contextmanager
def automatic_context() -> Iterator[None]:
    """A mesh that was set by `jax.set_mesh` has automatic axes in here.

    Inside a user's `jit` it is left as it is: it belongs to the program around us.
    """
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError:  # inside jit
        mesh = None
    if mesh is None or AxisType.Explicit not in mesh.axis_types:
        yield
    else:
        with jax.set_mesh(automatic_axes(mesh)):
            yield


def without_explicit_axes(tree: _T, *, replicate: bool = False) -> _T:
    """Arrays whose sharding was part of their type: now it is XLA's business, or there is none."""

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        is_traced = isinstance(leaf, jax.core.Tracer)
        placed = jax.typeof(leaf).sharding if is_traced else leaf.sharding
        if not isinstance(placed, NamedSharding) or AxisType.Explicit not in placed.mesh.axis_types:
            return leaf
        if is_traced:
            everywhere = NamedSharding(placed.mesh, PartitionSpec())
            return jax.sharding.reshard(leaf, everywhere) if replicate else leaf
        if replicate:
            return jax.device_put(leaf, NamedSharding(placed.mesh, PartitionSpec()))
        mesh = cast(Mesh, placed.mesh)  # and no abstract one: the array is there
        return jax.device_put(leaf, NamedSharding(automatic_axes(mesh), placed.spec))

    return jax.tree.map(moved, tree)


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
    mesh = automatic_axes(mesh)
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
