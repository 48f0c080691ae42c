"""Weights larger than a device: each parameter's place on a mesh with the axis "weights".

Parameters are arguments of every program, and their sharding is all that XLA must be told: each
device holds its part, and the collectives that put results together are XLA's business.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_T = TypeVar("_T")  # any pytree

WEIGHTS = "weights"  # the mesh axis
SMALL = 2**12  # entries: a tensor of fewer, as most biases and norms are, is on every device


def checked_mesh(mesh: Any) -> Mesh | None:
    """A mesh that weights can be sharded over, with its axis left to XLA; None stays None.

    Raises:
        TypeError: something else than a mesh.
        ValueError: other axes than "weights" alone, or a single device.
    """
    if mesh is None:
        return None
    make = f"jax.make_mesh((jax.device_count(),), ({WEIGHTS!r},)) makes one of all"
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh must be a jax.sharding.Mesh of devices, got {type(mesh).__name__}; {make}"
        )
    if mesh.axis_names != (WEIGHTS,) or mesh.size < 2:
        raise ValueError(
            f"The mesh that weights are sharded over must have an axis {WEIGHTS!r} of two devices "
            f"or more, and no other, got {dict(mesh.shape)}; {make}"
        )
    return Mesh(mesh.devices, mesh.axis_names)


def sharding_of(shape: Sequence[int], mesh: Mesh, order: Sequence[int]) -> NamedSharding:
    """Of a parameter: along its longest axis that the devices divide, or whole on each of them.

    Args:
        shape: of the parameter.
        mesh: with the axis "weights".
        order: the parameter's axes as they lie in the file; of equally long ones the first is
            taken, whose parts lie there in one piece.
    """
    fit = [axis for axis in order if shape[axis] % mesh.size == 0]
    if math.prod(shape) < SMALL or not fit:
        return NamedSharding(mesh, PartitionSpec())
    longest = max(fit, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, WEIGHTS))


def placement(model: Any) -> dict[str, Any]:
    """What lies where of a model, or a network, that was read onto a mesh.

    Returns:
        `devices`; `sharded_bytes`, of all sharded parameters together, and `bytes_a_device` of
        them; `replicated_bytes`, and `replicated`, the names of the parameters that are whole on
        every device.
    """
    found: dict[str, Any] = {"devices": 1, "sharded_bytes": 0, "bytes_a_device": 0}
    found |= {"replicated_bytes": 0, "replicated": []}
    for where, module in jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_module):
        state = nnx.state(module, nnx.Param) if _is_module(module) else nnx.State({})
        for path, variable in nnx.to_flat_state(state):
            array = variable[...]
            found["devices"] = max(found["devices"], array.sharding.num_devices)
            if array.sharding.is_fully_replicated:
                part = jax.tree_util.keystr(where, simple=True, separator=".")
                found["replicated"].append(".".join([*filter(None, [part]), *map(str, path)]))
                found["replicated_bytes"] += array.nbytes
            else:
                found["sharded_bytes"] += array.nbytes
                found["bytes_a_device"] += array.addressable_shards[0].data.nbytes
    return found


def _is_module(node: Any) -> bool:
    return isinstance(node, nnx.Module)


def is_sharded(tree: Any) -> bool:
    """Whether weights in here were read onto a mesh."""
    placed = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree)]
    return any(isinstance(one, NamedSharding) and WEIGHTS in one.mesh.axis_names for one in placed)


def replicated(tree: _T, mesh: Mesh) -> _T:
    """All arrays whole on every device of a mesh that work is spread over.

    Raises:
        ValueError: weights that are sharded, which would be put together on every device.
    """
    if is_sharded(tree):
        raise ValueError(
            "mesh must be None: the model's weights are sharded over devices already, and these "
            f"compute together, got a mesh {dict(mesh.shape)} to spread work over"
        )
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
