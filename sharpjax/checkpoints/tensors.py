"""safetensors files: what is in one by its header, and tensors read and written one by one."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding
from safetensors import SafetensorError, safe_open

MAX_TENSORS = 10_000  # Stable Diffusion's largest network has 686
# a file's floating types, and the types that parameters can have
STORED_FLOATS = {"F64", "F32", "F16", "BF16"}
PARAMETER_TYPES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of a file that has not been read yet."""

    path: Path
    key: str
    dtype: str  # as safetensors writes it: F32, BF16, I64
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Stored]:
    """What a file holds; safetensors checks that types, shapes and offsets fill it exactly."""
    try:
        with safe_open(path, framework="numpy", backend="pread") as file:
            keys = file.keys()
            if len(keys) > MAX_TENSORS:
                raise ValueError(f"{path} has {len(keys)} tensors, more than {MAX_TENSORS}")
            slices = {key: file.get_slice(key) for key in keys}
            return {
                key: Stored(path, key, s.get_dtype(), tuple(s.get_shape()))
                for key, s in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def checked_dtype(dtype: Any) -> np.dtype:
    """A type that parameters can have; `ValueError` names them."""
    try:
        known = np.dtype(dtype)
    except TypeError:
        known = None
    if known not in PARAMETER_TYPES:
        names = ", ".join(known.name for known in PARAMETER_TYPES)
        raise ValueError(f"dtype must be one of {names}, got {dtype!r}")
    return known


def torch_shape(shape: Sequence[Any], axes: tuple[int, ...] | None) -> tuple[Any, ...]:
    """PyTorch's shape, or index, of a parameter whose axes are `axes` of PyTorch's."""
    return tuple(shape) if axes is None else tuple(shape[i] for i in np.argsort(axes))


def read_tensor(
    file: Any,
    stored: Stored,
    shape: Sequence[int],
    axes: tuple[int, ...] | None,
    dtype: np.dtype,
    *,
    index: Sequence[slice] | None = None,
    device: jax.Device | None = None,
) -> jax.Array:
    """A tensor of an open file, or a part of it, as a parameter of this shape and type, finite."""
    where = f"{stored.path}: tensor {stored.key!r}"
    try:
        if index is None:
            value = file.get_tensor(stored.key)
        else:
            value = file.get_slice(stored.key)[torch_shape(index, axes)]
    except SafetensorError as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    value = value.reshape(torch_shape(shape, axes))
    value = _finite(value if axes is None else value.transpose(axes), dtype, where)
    # waited for: jax keeps what it copies alive until a later call, and jnp.asarray several of them
    return jax.device_put(value, device).block_until_ready()


def read_sharded(
    stored: Stored,
    shape: tuple[int, ...],
    axes: tuple[int, ...] | None,
    dtype: np.dtype,
    sharding: NamedSharding,
) -> jax.Array:
    """As `read_tensor`, of its parts those that this process's devices hold.

    The file is mapped, so that nothing else of it is read, and for this tensor alone: until it is
    closed, what was read is memory of this process.
    """
    part, where = sharding.shard_shape(shape), sharding.addressable_devices_indices_map(shape)
    with safe_open(stored.path, "numpy", backend="mmap") as file:
        parts = [
            read_tensor(file, stored, part, axes, dtype, index=index, device=device)
            for device, index in where.items()
        ]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _finite(value: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    """`value` as a contiguous array of `dtype`."""
    with np.errstate(over="ignore", invalid="ignore"):  # becomes infinite, and an error below
        converted = np.ascontiguousarray(value.astype(dtype, order="C", copy=False))
    if not np.isfinite(converted).all():
        too_large = f"values too large for {dtype.name}"
        what = too_large if np.isfinite(value).all() else "NaN or infinite values"
        raise ValueError(f"{where} contains {what}")
    return converted


_Entry = tuple[Any, tuple[int, ...] | None, np.dtype]  # variable, axes, type in the file


def split_into_shards(
    leaves: Any, dtype: np.dtype | None, max_size: int | None
) -> list[dict[str, _Entry]]:
    """The tensors in order, cut where the next one would exceed `max_size` bytes."""
    shards: list[dict[str, _Entry]] = [{}]
    size = 0
    for name, variable, axes in leaves:
        entry = (variable, axes, checked_dtype(dtype or variable.dtype))
        if max_size is not None and shards[-1] and size + nbytes(*entry) > max_size:
            shards.append({})
            size = 0
        shards[-1][name] = entry
        size += nbytes(*entry)
    return shards


def nbytes(variable: Any, axes: tuple[int, ...] | None, dtype: np.dtype) -> int:
    """Bytes of a parameter in a file."""
    return int(np.prod(variable.shape, dtype=np.int64)) * dtype.itemsize


def write_tensors(path: Path, tensors: dict[str, _Entry]) -> None:
    """The format: length of the header, header (JSON), then the tensors without gaps.

    safetensors' own writer wants all of them in memory at once.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in tensors.items():
        start, end = end, end + nbytes(*entry)
        header[name] = {
            "dtype": PARAMETER_TYPES[entry[2]],
            "shape": torch_shape(entry[0].shape, entry[1]),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (variable, axes, dtype) in tensors.items():
            value = np.asarray(variable[...])
            if axes is not None:
                value = value.transpose(np.argsort(axes))
            file.write(_finite(value, dtype, f"parameter {name!r}").view(np.uint8).data)
