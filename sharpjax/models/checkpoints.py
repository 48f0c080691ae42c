"""diffusers model directories <-> NNX modules.

A directory holds ``config.json`` and ``diffusion_pytorch_model.safetensors``.  It is untrusted
input: safetensors only (never pickle), every tensor used exactly once or listed as ignorable,
every parameter filled exactly once, and one error naming the file and the key otherwise.

The mapping is the module tree itself, whose attribute names are diffusers'; only the leaf names
and memory layouts differ, and those are the table ``_LEAVES``.
"""

import hashlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sharpjax.models.unet_2d import UNet2DModel

MODEL_CLASSES: dict[str, type[nnx.Module]] = {"UNet2DModel": UNet2DModel}
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
MANIFEST_NAME = "manifest.sha256.json"

# flax leaf name -> (PyTorch leaf name, axes from PyTorch to flax by number of dimensions)
_LEAVES: dict[str, tuple[str, dict[int, tuple[int, ...]]]] = {
    "kernel": ("weight", {2: (1, 0), 4: (2, 3, 1, 0)}),  # linear; convolution OIHW -> HWIO
    "scale": ("weight", {}),  # group and layer norm
    "embedding": ("weight", {}),
    "weight": ("weight", {}),  # Fourier features
    "bias": ("bias", {}),
}

# attention of checkpoints written before diffusers 0.15
_ALIASES = (
    (re.compile(r"(attentions\.\d+)\.query\."), r"\1.to_q."),
    (re.compile(r"(attentions\.\d+)\.key\."), r"\1.to_k."),
    (re.compile(r"(attentions\.\d+)\.value\."), r"\1.to_v."),
    (re.compile(r"(attentions\.\d+)\.proj_attn\."), r"\1.to_out.0."),
)

# config.json keys that do not change the mathematics
_IGNORED_CONFIG = {"_class_name", "_diffusers_version", "_name_or_path"}


def from_pretrained(directory: str | Path, subfolder: str | None = None) -> nnx.Module:
    """Read a diffusers model directory into the NNX module that its ``config.json`` names.

    Args:
        directory: a local directory.
        subfolder: a folder inside it, such as ``"unet"``; it may not lead outside.

    Returns:
        The module with float32 parameters (half-precision files are widened).

    Raises:
        FileNotFoundError: no such directory, ``config.json`` or safetensors file.
        ValueError: an unknown class or configuration key, a missing, extra, misshaped, non-finite
            or truncated tensor, or a file that contradicts its manifest.
    """
    folder = checked_subfolder(directory, subfolder)
    for name in (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME):
        checked_file(directory, folder / name)
    config = read_json(folder / CONFIG_NAME)
    module_class, settings = _model_class(config, folder / CONFIG_NAME)
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        hint = f" ({pickled[0]} is pickle, which is never read)" if pickled else ""
        raise FileNotFoundError(f"no {WEIGHTS_NAME} in {folder}{hint}")
    _verify_manifest(folder)
    try:
        # shapes only: no random initialisation is computed for weights about to be overwritten
        module = nnx.eval_shape(lambda: module_class(**settings, rngs=nnx.Rngs(0)))
    except Exception as error:  # values of a wrong type fail in many ways
        raise ValueError(f"{folder / CONFIG_NAME}: {error}") from error
    _fill(module, weights)
    return module


def save_pretrained(module: nnx.Module, directory: str | Path, *, dtype: Any = None) -> Path:
    """Write a directory that diffusers' PyTorch class and :func:`from_pretrained` both load.

    Args:
        module: one of the ported networks.
        directory: made if missing; files of the same names are replaced.
        dtype: store floating tensors in this type, for example ``numpy.float16``.

    Returns:
        The directory, which also holds ``manifest.sha256.json``.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": type(module).__name__, **module.config}
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    tensors = {}
    for name, variable, axes in _leaves(nnx.state(module, nnx.Param)):
        value = np.asarray(variable[...])
        if axes is not None:
            value = value.transpose(np.argsort(axes))
        tensors[name] = np.ascontiguousarray(value if dtype is None else value.astype(dtype))
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    write_manifest(folder, [CONFIG_NAME, WEIGHTS_NAME])
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, with errors that name the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def checked_subfolder(directory: str | Path, subfolder: str | None) -> Path:
    """``directory / subfolder``, refusing names that lead outside the directory."""
    root = Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(f"no model directory {root}")
    if subfolder is None:
        return root
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", subfolder):
        raise ValueError(f"subfolder must be a plain name inside {root}, got {subfolder!r}")
    folder = root / subfolder
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {subfolder!r} in {root}")
    if root.resolve() not in folder.resolve().parents:
        raise ValueError(f"{folder} is a link that leads outside {root}")
    return folder


def checked_file(directory: str | Path, path: Path) -> Path:
    """``path``, refusing a link out of ``directory`` except into ``blobs/`` of its hub cache."""
    root, target = Path(directory).resolve(), path.resolve()
    # hub cache: snapshots/<revision>/<folder>/<file> links to blobs/<digest> beside snapshots/
    blobs = [p.with_name("blobs") for p in (root, *root.parents) if p.name == "snapshots"]
    if root not in target.parents and target.parent not in blobs:
        raise ValueError(f"{path} is a link that leads outside {directory}")
    return path


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, names: list[str]) -> None:
    """Record the digests of ``names`` in ``manifest.sha256.json``."""
    digests = {name: sha256(folder / name) for name in sorted(names)}
    (folder / MANIFEST_NAME).write_text(json.dumps(digests, indent=2) + "\n")


def _verify_manifest(folder: Path) -> None:
    """A manifest is optional; one that is present must be right about every file it names."""
    path = folder / MANIFEST_NAME
    if not path.exists():
        return
    for name, digest in read_json(path).items():
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            raise ValueError(f"{path}: {name!r} is not a plain file name")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{path} names {name}, which is missing")
        if sha256(folder / name) != digest:
            raise ValueError(
                f"{folder / name} does not match its digest in {MANIFEST_NAME}: the file is "
                "damaged or was edited (delete the manifest only if you edited it yourself)"
            )


def _model_class(config: dict[str, Any], path: Path) -> tuple[type[nnx.Module], dict[str, Any]]:
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in MODEL_CLASSES:
        raise ValueError(
            f"{path}: _class_name {name!r} is not supported; known: {', '.join(MODEL_CLASSES)}"
        )
    allowed = set(inspect.signature(MODEL_CLASSES[name].__init__).parameters) - {"self", "rngs"}
    settings = {k: v for k, v in config.items() if k not in _IGNORED_CONFIG}
    unknown = sorted(set(settings) - allowed)
    if unknown:
        raise ValueError(
            f"{path}: unknown configuration key {unknown[0]!r}; it may change the mathematics, "
            f"so it is not ignored (known keys: {', '.join(sorted(allowed))})"
        )
    return MODEL_CLASSES[name], settings


def _leaves(parameters: nnx.State):
    """``(diffusers tensor name, variable, axes or None)`` of every parameter."""
    for path, variable in nnx.to_flat_state(parameters):
        leaf, axes = _LEAVES[path[-1]]
        name = ".".join([*map(str, path[:-1]), leaf])
        yield name, variable, axes.get(len(variable.shape))


def _fill(module: nnx.Module, path: Path) -> None:
    """Read ``path`` tensor by tensor into the parameters of ``module``."""
    state = nnx.state(module, nnx.Param)
    wanted = {name: (variable, axes) for name, variable, axes in _leaves(state)}
    filled: dict[str, Any] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                name = _current_name(key)
                if name not in wanted:
                    raise ValueError(f"{path}: tensor {key!r} has no place in this model")
                if name in filled:
                    raise ValueError(f"{path}: tensor {key!r} fills {name!r} a second time")
                variable, axes = wanted[name]
                filled[name] = _converted(file.get_tensor(key), variable.shape, axes, path, key)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error
    missing = sorted(set(wanted) - set(filled))
    if missing:
        raise ValueError(f"{path}: {len(missing)} tensor(s) missing, the first is {missing[0]!r}")
    for name, (variable, _) in wanted.items():
        variable.set_value(filled[name])
    nnx.update(module, state)


def _current_name(key: str) -> str:
    for pattern, replacement in _ALIASES:
        key = pattern.sub(replacement, key)
    return key


def _converted(value, shape, axes, path: Path, key: str):
    if not jnp.issubdtype(value.dtype, jnp.floating):  # jnp, because bfloat16 is not numpy's
        raise ValueError(f"{path}: tensor {key!r} must be floating point, got {value.dtype}")
    torch_shape = tuple(shape) if axes is None else tuple(shape[i] for i in np.argsort(axes))
    if value.shape != torch_shape:
        raise ValueError(
            f"{path}: tensor {key!r} has shape {value.shape}, this model needs {torch_shape}"
        )
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and an error below
        value = jnp.asarray(value if axes is None else value.transpose(axes), jnp.float32)
    if not jnp.isfinite(value).all():
        raise ValueError(f"{path}: tensor {key!r} contains NaN or infinite values")
    return value
