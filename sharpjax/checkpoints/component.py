"""diffusers and transformers model directories <-> NNX modules.

A directory holds `config.json` and safetensors weights, in one file or in shards.  It is
untrusted input: every tensor is used exactly once or listed as ignorable, every parameter is
filled exactly once, nothing is allocated before the names, types and shapes of all tensors fit,
and there is one error naming the file and the key otherwise.  `directory.py` finds the files.

The mapping is the module tree itself, whose attribute names are PyTorch's; only the leaf names
and memory layouts differ, and those are the table `_LEAVES`.
"""

import functools
import importlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import safe_open

from sharpjax._reprs import network
from sharpjax.checkpoints.configuration import check_size, checked_settings
from sharpjax.checkpoints.directory import CONFIG_NAME, Directory, index_name, weights_name
from sharpjax.checkpoints.hub import resolve
from sharpjax.checkpoints.sharding import checked_mesh, sharding_of
from sharpjax.checkpoints.tensors import (
    STORED_FLOATS,
    Stored,
    checked_dtype,
    nbytes,
    read_sharded,
    read_tensor,
    split_into_shards,
    torch_shape,
    write_tensors,
)
from sharpjax.checkpoints.writing import replace_files

logger = logging.getLogger(__name__)

# class of a configuration -> the module that defines it here, imported when it is met
MODEL_CLASSES = {
    "UNet2DModel": "sharpjax.networks.unet_2d",
    "UNet2DConditionModel": "sharpjax.networks.unet_2d_condition",
    "DiTTransformer2DModel": "sharpjax.networks.dit_transformer_2d",
    "SD3Transformer2DModel": "sharpjax.networks.sd3_transformer_2d",
    "AutoencoderKL": "sharpjax.networks.autoencoder_kl",
    "CLIPTextModel": "sharpjax.networks.clip_text",
    "CLIPTextModelWithProjection": "sharpjax.networks.clip_text",
    "T5EncoderModel": "sharpjax.networks.t5_encoder",
    # ours alone
    "ConceptClassifier": "sharpjax.networks.concept_classifier",
    "CaptionMLP": "sharpjax.networks.caption_mlp",
    "LinearCodec": "sharpjax.networks.linear_codec",
}
# transformers' classes -> model_type in their configuration
TRANSFORMERS = {
    "CLIPTextModel": "clip_text_model",
    "CLIPTextModelWithProjection": "clip_text_model",
    "T5EncoderModel": "t5",
}

# flax leaf name -> (PyTorch leaf name, axes from PyTorch to flax by number of dimensions)
_LEAVES: dict[str, tuple[str, dict[int, tuple[int, ...]]]] = {
    "kernel": ("weight", {2: (1, 0), 4: (2, 3, 1, 0)}),  # linear; convolution OIHW -> HWIO
    "scale": ("weight", {}),  # group and layer norm
    "embedding": ("weight", {}),
    "bias": ("bias", {}),
    "pos_embed": ("pos_embed", {}),  # a table of places
}

# other spellings in published files: tried where a key is not a parameter as it stands
_ALIASES = (
    # attention of checkpoints written before diffusers 0.15
    (re.compile(r"(attentions\.\d+)\.query\."), r"\1.to_q."),
    (re.compile(r"(attentions\.\d+)\.key\."), r"\1.to_k."),
    (re.compile(r"(attentions\.\d+)\.value\."), r"\1.to_v."),
    (re.compile(r"(attentions\.\d+)\.proj_attn\."), r"\1.to_out.0."),
    # CLIPTextModel as transformers 5 writes it
    (re.compile(r"^(embeddings|encoder(?=\.layers)|final_layer_norm)\."), r"text_model.\1."),
)
# tensors that some published files carry and no model here needs: 0, 1, 2, ..., in any type
_IGNORED_TENSORS = {
    "text_model.embeddings.position_ids": TRANSFORMERS.keys(),
    "embeddings.position_ids": TRANSFORMERS.keys(),
}
# tensors that are another one, where that is there too
_TIED = {"encoder.embed_tokens.weight": "shared.weight"}
# config.json keys that do not change the mathematics
_IGNORED_CONFIG = frozenset({
    "_class_name", "_diffusers_version", "_name_or_path",
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "attn_implementation",
    # what diffusers' EMAModel adds to the network's
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step",
    "use_ema_warmup",
})  # fmt: skip


def from_pretrained(
    name: str | Path | Directory,
    subfolder: str | None = None,
    *,
    dtype: Any = jnp.float32,
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    follow_links: bool = False,
    mesh: Mesh | None = None,
) -> Any:
    """Read a component of a model into the NNX module that its `config.json` names.

    Tensors are read one by one: memory peaks at little more than the parameters themselves.

    Args:
        name: a local directory, or a Hugging Face hub id such as `"owner/name"` if there is no
            such directory.
        subfolder: a folder inside it, such as `"unet"`; it may not lead outside.
        dtype: of the parameters, `float32`, `bfloat16` or `float16`, whatever the file's.
        variant: of the weights: `"fp16"` reads `model.fp16.safetensors`.
        revision: branch, tag or commit, for the hub.
        local_files_only: take what the hub's cache holds, do not connect.
        follow_links: whether links may lead out of the directory.
        mesh: devices, also of other processes, along an axis "weights", that the parameters are
            sharded over: each along its longest axis that their number divides. Small tensors, and
            those that it does not divide, are whole on every device. A process reads what its own
            devices hold, and holds no more at any time than that and one tensor.

    Returns:
        The module; all parameters have type `dtype`.

    Raises:
        FileNotFoundError: no such directory or hub model, `config.json` or safetensors file.
        ValueError: an unknown class or configuration key, a missing, extra, misshaped, non-finite
            or truncated tensor, a file that contradicts its manifest, or a mesh with other axes
            or of one device.
        TypeError: `mesh` is none.
    """
    dtype, mesh = checked_dtype(dtype), checked_mesh(mesh)
    directory = resolve(
        name,
        folders=None if subfolder is None else [subfolder],
        variant=variant,
        revision=revision,
        local_files_only=local_files_only,
        follow_links=follow_links,
    )
    directory = directory.component(subfolder)
    config, path = directory.json(CONFIG_NAME), directory.path / CONFIG_NAME
    module_class = _model_class(config, path)
    settings = checked_settings(config, module_class, path, ignored=_ignored(module_class))
    tensors, names = directory.tensors(_stem(module_class))
    check_size(settings, path, num_tensors=len(tensors))
    module = _abstract_module(module_class, settings, path)
    state = nnx.state(module, nnx.Param)
    places = _matched(state, tensors, module_class, path)
    directory.verify_manifest([CONFIG_NAME, *names])
    _fill(places, dtype, mesh)
    nnx.update(module, state)
    logger.info("read %s: %s from %s", directory, network(module), ", ".join(names))
    return module


def save_pretrained(
    module: Any,
    directory: str | Path,
    *,
    dtype: Any = None,
    variant: str | None = None,
    max_shard_size: int | None = None,
) -> Path:
    """Write a directory that the PyTorch class and `from_pretrained` both load.

    Tensors are converted and written one by one.  A process killed on the way leaves no directory
    where there was none, and otherwise the old one, the new one, or, for the instant in which
    files are renamed, one that `from_pretrained` refuses.

    Args:
        module: one of the ported networks.
        directory: made if missing; a model's files of the same variant are replaced.
        dtype: store the tensors in this type, for example `numpy.float16`.
        variant: goes into the file names, as in `model.fp16.safetensors`.
        max_shard_size: bytes; a larger model is written in several files and an index.

    Returns:
        The directory, which also holds `manifest.sha256.json`.

    Raises:
        FileExistsError: a file stands where the directory shall be.
        ValueError: not a network that PyTorch has, a type that is not offered, or parameters that
            are not finite (or too large for `dtype`).
    """
    name = type(module).__name__
    if name not in MODEL_CLASSES:
        raise ValueError(f"{name} has no PyTorch counterpart; known: {', '.join(MODEL_CLASSES)}")
    dtype = None if dtype is None else checked_dtype(dtype)
    if max_shard_size is not None and max_shard_size < 1:
        raise ValueError(f"max_shard_size must be at least 1 byte, got {max_shard_size}")
    head: dict[str, Any] = {"_class_name": name}
    if name in TRANSFORMERS:
        head = {"architectures": [name], "model_type": TRANSFORMERS[name]}
    config = json.dumps({**head, **module.config}, indent=2) + "\n"
    writers = {CONFIG_NAME: lambda path: path.write_text(config)}

    stem = _stem(type(module))
    leaves = list(_leaves(nnx.state(module, nnx.Param)))
    shards = split_into_shards(leaves, dtype, max_shard_size)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        place = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = weights_name(stem, variant, place)
        weight_map |= dict.fromkeys(shard, file)
        writers[file] = functools.partial(write_tensors, tensors=shard)
    if len(shards) > 1:
        size = sum(nbytes(*entry) for shard in shards for entry in shard.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        writers[index_name(stem, variant)] = lambda path: path.write_text(text)
    single = re.escape(weights_name(stem, variant)).removesuffix(r"\.safetensors")
    stale = rf"{single}(-\d{{5}}-of-\d{{5}})?\.safetensors|{re.escape(index_name(stem, variant))}"
    return replace_files(directory, writers, stale=re.compile(stale))


# --- configuration -----------------------------------------------------------------------------


def _stem(module_class: type[nnx.Module]) -> str:
    return "model" if module_class.__name__ in TRANSFORMERS else "diffusion_pytorch_model"


def _model_class(config: dict[str, Any], path: Path) -> type[nnx.Module]:
    key, name = "_class_name", config.get("_class_name")
    if key not in config and "architectures" in config:
        key, name = "architectures", config["architectures"]
        name = name[0] if isinstance(name, list) and len(name) == 1 else name
        if (
            name in (None, "CLIPModel")
            and config.get("model_type") == TRANSFORMERS["CLIPTextModel"]
        ):
            name = "CLIPTextModel"  # written by hand, or of the pair that it was cut from
    known = TRANSFORMERS if key == "architectures" else MODEL_CLASSES.keys() - TRANSFORMERS
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"{path}: {key} must be one of {', '.join(sorted(known))}, got {name!r:.80}"
        )
    found = config.get("model_type", TRANSFORMERS.get(name))
    if name in TRANSFORMERS and found != TRANSFORMERS[name]:
        raise ValueError(f"{path}: model_type must be {TRANSFORMERS[name]!r}, got {found!r:.80}")
    return getattr(importlib.import_module(MODEL_CLASSES[name]), name)


def _ignored(module_class: type[nnx.Module]) -> frozenset[str]:
    named = {"architectures"} if module_class.__name__ in TRANSFORMERS else set()
    return _IGNORED_CONFIG | getattr(module_class, "IGNORED_CONFIG", frozenset()) | named


class _OneKey:
    """Stands for `nnx.Rngs` while shapes are traced: every stream gives the same key.

    The counters of `nnx.Rngs` make flax's tracing quadratic in the number of parameters.
    """

    def __init__(self) -> None:
        self.key = jax.random.key(0)

    def __getattr__(self, stream: str) -> Any:
        return lambda: self.key


def _abstract_module(module_class: Any, settings: dict[str, Any], path: Path) -> nnx.Module:
    """The module with shapes for parameters: no random initialisation is ever computed."""
    try:
        return nnx.eval_shape(lambda: module_class(**settings, rngs=_OneKey()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # sizes that contradict each other fail in many ways
        raise ValueError(
            f"{path}: values that make no {module_class.__name__} ({type(error).__name__}: {error})"
        ) from error


# --- tensors -----------------------------------------------------------------------------------


def _leaves(parameters: nnx.State[Any, Any]) -> Iterator[tuple[str, Any, tuple[int, ...] | None]]:
    """`(PyTorch tensor name, variable, axes or None)` of every parameter."""
    for path, variable in nnx.to_flat_state(parameters):
        leaf, axes = _LEAVES[str(path[-1])]
        name = ".".join([*map(str, path[:-1]), leaf])
        yield name, variable, axes.get(len(variable.shape))


def _matched(
    state: nnx.State[Any, Any],
    tensors: dict[str, Stored],
    module_class: type[nnx.Module],
    path: Path,
) -> Any:
    """`(stored tensor, variable, axes)` of every parameter, all names, types, shapes checked."""
    wanted = {name: (variable, axes) for name, variable, axes in _leaves(state)}
    places: dict[str, tuple[Stored, Any, tuple[int, ...] | None]] = {}
    for key, stored in tensors.items():
        where = f"{stored.path}: tensor {key!r}"
        tied = _TIED.get(key)
        if module_class.__name__ in _IGNORED_TENSORS.get(key, ()) or tied in tensors:
            continue
        name = key if tied is None else tied
        for pattern, replacement in () if key in wanted else _ALIASES:
            name = pattern.sub(replacement, name)
        if name not in wanted:
            raise ValueError(f"{where} has no place in this model")
        if name in places:
            raise ValueError(f"{where} fills {name!r} a second time")
        if stored.dtype not in STORED_FLOATS:
            types = ", ".join(sorted(STORED_FLOATS))
            raise ValueError(f"{where} must be floating point ({types}), got {stored.dtype}")
        variable, axes = wanted[name]
        shape = torch_shape(variable.shape, axes)
        # attention under its old name may still be the 1 x 1 convolution that it began as
        legacy = name != key and ".attentions." in key and axes == (1, 0)
        once = (*shape, 1, 1) if legacy else shape
        if stored.shape not in (shape, once):
            raise ValueError(f"{where} must have shape {shape}, got {stored.shape}")
        places[name] = stored, variable, axes
    missing = sorted(wanted.keys() - places)
    if missing:
        paths = sorted({stored.path for stored in tensors.values()})
        where = str(paths[0]) if len(paths) == 1 else f"{len(paths)} files of {path.parent}"
        raise ValueError(f"{where}: {len(missing)} tensor(s) missing, the first is {missing[0]!r}")
    return list(places.values())


def _fill(places: Any, dtype: np.dtype, mesh: Mesh | None) -> None:
    """Read the tensors into their variables, which are sharded over the mesh if there is one.

    Largest first: what a tensor needs beside its result is least when little has been read.
    """
    places = sorted(places, key=lambda place: (-np.prod(place[0].shape), place[0].path))
    file, opened = None, None
    for stored, variable, axes in places:
        if mesh is not None:
            order = torch_shape(range(len(variable.shape)), axes)
            sharding = sharding_of(variable.shape, mesh, order)
            variable.set_value(read_sharded(stored, variable.shape, axes, dtype, sharding))
            continue
        if stored.path != opened:  # pread: the pages of a mapped file are memory of this process
            file, opened = safe_open(stored.path, "numpy", backend="pread"), stored.path
        variable.set_value(read_tensor(file, stored, variable.shape, axes, dtype))
