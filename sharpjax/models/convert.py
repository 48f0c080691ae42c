"""A model directory, from anywhere, into a clean one: checked, safetensors only, one type.

Parts go through memory one after the other, so that the peak is the largest of them.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharpjax.models import tokenizer as tokenizers
from sharpjax.models.checkpoints import from_pretrained, save_pretrained
from sharpjax.models.configuration import check_channels
from sharpjax.models.files import (
    CONFIG_NAME,
    MANIFEST_NAME,
    PICKLED,
    ModelDirectory,
    checked_file,
    checked_subfolder,
    part_folder,
    read_json,
    resolve,
    unread,
)
from sharpjax.models.fingerprint import weight_files
from sharpjax.models.latent_diffusion import PARTS, check_fit, check_index, read_schedule
from sharpjax.models.load import find
from sharpjax.models.pixel_diffusion import (
    CONDITIONS_NAME,
    VQVAE,
    PixelDiffusion,
    check_pixel_index,
    read_scheduler,
)
from sharpjax.models.tokenizer import Tokenizer
from sharpjax.progress import progress
from sharpjax.rundir import write_text
from sharpjax.schedules import Schedule

_INDEX, _SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
# kind of pipeline, by the class of its unet -> parts with weights, and their classes
_CLASSES: dict[str, dict[str, tuple[str, ...]]] = {
    "UNet2DConditionModel": {part: PARTS[part] for part in ("text_encoder", "vae", "unet")},
    "UNet2DModel": {"unet": ("UNet2DModel",), VQVAE: ("AutoencoderKL",)},
}
_LICENSES = ("LICENSE", "LICENSE.md", "LICENSE.txt")  # go where the weights go
_MARK = ".sharpjax-convert"  # in a directory that is being written
_SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclasses.dataclass(frozen=True)
class ConvertedPart:
    """What was written of one part.

    Attributes:
        name: of its folder; empty for a single component.
        class_name: in PyTorch's libraries.
        num_parameters: if it has any.
        dtype: of its parameters.
        files: size in bytes of each file, by name.
    """

    name: str
    class_name: str
    num_parameters: int | None
    dtype: str | None
    files: dict[str, int]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What :func:`convert` did.

    Attributes:
        directory: that was written.
        parts: of it.
        left_out: files and folders of the source that the model does not need.
    """

    directory: Path
    parts: tuple[ConvertedPart, ...]
    left_out: tuple[str, ...]


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: Any = jnp.float32,
    variant: str | None = None,
    revision: str | None = None,
    follow_links: bool = False,
    max_shard_size: int | None = None,
) -> Conversion:
    """Read a pipeline or a single component with every check, and write it again.

    What was written is read again, and must give the same parameters bit for bit.  The directory
    appears when all of it is there: until then it is called ``destination.part``, and what a kill
    leaves of that is replaced by the next call.

    Args:
        source: a bundled model, a directory, or a hub id; of a pipeline (``model_index.json``) or
            of one component (``config.json``).
        destination: a new or empty directory.
        dtype: of the stored parameters, ``float32``, ``float16`` or ``bfloat16``.
        variant: of the weights to read, such as ``"fp16"``; what is written has none.
        revision: of a hub id: branch, tag or commit.
        follow_links: whether links may lead out of the source.
        max_shard_size: bytes of a weight file; larger parts are split.

    Raises:
        FileNotFoundError: no such source, or a part of it is missing.
        FileExistsError: the destination is a file or not empty.
        ValueError: a part is damaged, not supported or does not fit the others, or its values are
            too large for ``dtype``.
        OSError: the destination cannot be written, the disk is full, or what was written reads
            back differently.
    """
    target = Path(os.path.abspath(destination))
    dtype = np.dtype(dtype)
    _check_target(target)
    files: Any = {"variant": variant, "revision": revision, "follow_links": follow_links}
    root = find(source, **files)
    if not (root / _INDEX).exists():  # of the hub's files, those of one component
        root = resolve(source, **files)
    if not (root / _INDEX).exists() and not (root / CONFIG_NAME).exists():
        raise FileNotFoundError(
            f"{root} holds neither {_INDEX} (of a pipeline) nor {CONFIG_NAME} (of a component)"
        )
    if root.resolve() in target.resolve().parents:
        raise ValueError(f"{target} lies inside the source {root}: choose a place outside")
    names = _networks(root)
    used: set[str] = set()
    parts, configs = [], {}
    left_out = _contents(root)
    with _staged(target) as staging:
        with progress("converting", total=len(names)) as bar:
            for name in names:
                read, part, configs[name] = _component(
                    root, staging, name, dtype=dtype, max_shard_size=max_shard_size
                )
                used |= read
                parts.append(part)
                bar.advance(note=name or "")
        for name in _LICENSES:
            if (root / name).is_file():
                shutil.copyfile(checked_file(root, root / name), staging / name)
                used.add(name)
        if names != [None]:
            named = {name: config for name, config in configs.items() if name is not None}
            used |= _rest(root, staging, named)
            parts += [_part(staging, name) for name in ("tokenizer", "scheduler")
                      if (staging / name).is_dir()]  # fmt: skip
    return Conversion(target, tuple(parts), tuple(_left_out(left_out, used)))


def parse_size(text: str) -> int:
    """Bytes: ``2GB``, ``500 MB``, ``1.5GiB`` or a plain number.

    >>> parse_size("2GB"), parse_size("1KiB")
    (2000000000, 1024)

    Raises:
        ValueError: anything else, or less than one byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]I?B|)", text.strip().upper())
    size = int(float(match[1]) * _SIZES[match[2]]) if match else 0
    if size < 1:
        raise ValueError(f"a size must be a number and KB, MB, GB, KiB, MiB or GiB, got {text!r}")
    return size


def _check_target(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise FileExistsError(f"{target} is a file or a link; convert writes a new directory")
    if target.is_dir() and any(target.iterdir()):
        raise FileExistsError(
            f"{target} is not empty; convert writes a new directory: choose another name"
        )
    staging = _staging(target)
    if (
        staging.is_symlink()
        or (staging.exists() and not staging.is_dir())
        or (staging / _MARK).is_symlink()
        or (_left(staging) and not (staging / _MARK).is_file())
    ):
        raise FileExistsError(
            f"{staging} is in the way, and no interrupted convert left it: move it, or choose "
            "another destination"
        )


def _staging(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _left(staging: Path) -> list[Path]:
    """What a killed call left."""
    return [p for p in staging.iterdir() if p.name != _MARK] if staging.is_dir() else []


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A directory that becomes ``target`` when all went well."""
    staging = _staging(target)
    try:
        staging.mkdir(parents=True, exist_ok=True)
        (staging / _MARK).touch()
        for path in _left(staging):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield staging
        os.rename(staging, target)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(f"cannot write {target}: {error.strerror}") from error
        raise
    (target / _MARK).unlink()


def _networks(root: Path) -> list[str | None]:
    """Folders of a pipeline's networks, or ``[None]`` for a single component."""
    if not (root / _INDEX).exists():
        return [None]
    path = checked_file(root, root / _INDEX)
    index = read_json(path)
    unet = index.get("unet")
    kind = unet[1] if isinstance(unet, list) and len(unet) == 2 else unet
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise ValueError(
            f"{path}: 'unet' must be ['diffusers', class] with one of the classes "
            f"{', '.join(_CLASSES)}, got {unet!r:.80}. {unread(index)}"
        )
    if kind == "UNet2DConditionModel":
        check_index(index, root)
        return list(_CLASSES[kind])
    return ["unet", *([vae] if (vae := check_pixel_index(root)) else [])]


def _component(
    root: ModelDirectory,
    staging: Path,
    name: str | None,
    *,
    dtype: Any,
    max_shard_size: int | None,
) -> tuple[set[str], ConvertedPart, dict[str, Any]]:
    """Files that were read, what was written, and the configuration."""
    part = name if name is None else part_folder(root, name, CONFIG_NAME)
    folder = checked_subfolder(root, part)
    try:
        module = from_pretrained(root, part, dtype=dtype)
    except FileNotFoundError as error:
        if any(path.name.endswith(PICKLED) for path in folder.iterdir()):
            raise FileNotFoundError(
                f"{error}. If you trust its origin, in Python with torch: diffusers' or "
                "transformers' class .from_pretrained(source, use_safetensors=False)"
                ".save_pretrained(destination, safe_serialization=True)"
            ) from error
        raise
    class_name, config = type(module).__name__, module.config
    if name is not None:
        kind = "UNet2DConditionModel" if "text_encoder" in _networks(root) else "UNet2DModel"
        allowed = _CLASSES[kind][name]
        if class_name not in allowed:
            raise ValueError(f"{folder}: must hold a {allowed[0]}, got {class_name}")
    number = sum(int(np.prod(v.shape)) for v in _parameters(module).values())
    save_pretrained(module, staging / (name or ""), max_shard_size=max_shard_size)
    digests = _digests(module)
    del module  # before it is read again: only one in memory
    again = from_pretrained(staging, name, dtype=dtype)
    if again.config != config or _digests(again) != digests:
        raise OSError(
            f"{staging / (name or '')} reads back differently than it was written: the disk or "
            "the memory is faulty"
        )
    prefix = f"{part}/" if part else ""
    read = {CONFIG_NAME, MANIFEST_NAME, *weight_files(root, folder)}
    done = _part(staging, name, class_name=class_name, num_parameters=number, dtype=dtype.name)
    return {prefix + file for file in read}, done, config


def _rest(root: Path, staging: Path, configs: dict[str, dict[str, Any]]) -> set[str]:
    """Everything of a pipeline that has no weights, and whether its parts fit."""
    config, path = read_scheduler(root)
    used = {_INDEX, str(path.relative_to(root))}
    check_channels(configs["unet"], config, path)
    is_latent = "text_encoder" in configs
    if is_latent:
        class_name = read_json(root / _INDEX)["scheduler"][1]
        read_schedule(root, class_name)
        config |= {"_class_name": class_name}  # the index decides
    else:
        Schedule.from_config(config, where=path)
        config = {"_class_name": "DDIMScheduler"} | config
    index: dict[str, Any] = {
        "_class_name": "DDIMPipeline",
        "scheduler": ["diffusers", config["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (staging / "scheduler").mkdir()
    files = {_SCHEDULER: config}
    if is_latent:
        used |= _tokenizer(root, staging, configs)
        index |= {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
    else:
        path = checked_file(root, root / CONDITIONS_NAME)
        if path.exists():
            used.add(CONDITIONS_NAME)
            files[CONDITIONS_NAME] = read_json(path)
        if VQVAE in configs:
            index |= {"_class_name": "LDMPipeline", VQVAE: ["diffusers", "AutoencoderKL"]}
    for name, value in (files | {_INDEX: index}).items():
        write_text(staging / name, json.dumps(value, indent=2) + "\n")
    if not is_latent:
        PixelDiffusion.from_pretrained(staging)  # do names and network fit?
    return used


def _tokenizer(root: Path, staging: Path, configs: dict[str, dict[str, Any]]) -> set[str]:
    tokenizer = Tokenizer.from_pretrained(root, "tokenizer")
    try:
        networks: Any = {k: types.SimpleNamespace(config=v) for k, v in configs.items()}
        check_fit(**networks, tokenizer=tokenizer)
    except ValueError as error:
        raise ValueError(f"{root}: {error}") from error
    probe = ["", "a photo of two cats, 1999; Ünïcödé 🙂"]
    tokenizer.save_pretrained(staging / "tokenizer")
    again = Tokenizer.from_pretrained(staging, "tokenizer")
    with warnings.catch_warnings():  # too long for a short tokenizer: cut alike
        warnings.simplefilter("ignore", UserWarning)
        same = np.array_equal(again(probe), tokenizer(probe))
    if not same or again.backend.get_vocab() != tokenizer.backend.get_vocab():
        raise ValueError(f"{root / 'tokenizer'}: written anew it gives other ids")
    names = [getattr(tokenizers, k) for k in ("CONFIG", "SPECIAL", "ADDED", "VOCAB", "MERGES")]
    return {f"tokenizer/{name}" for name in (*names, tokenizers.FULL, MANIFEST_NAME)}


def _part(staging: Path, name: str | None, **about: Any) -> ConvertedPart:
    files = {
        path.name: path.stat().st_size
        for path in sorted((staging / (name or "")).iterdir())
        if path.name != _MARK
    }
    if not about:
        class_name = "CLIPTokenizer"
        if name == "scheduler":
            class_name = read_json(staging / _SCHEDULER, constants=True)["_class_name"]
        about = {"class_name": class_name, "num_parameters": None, "dtype": None}
    return ConvertedPart(name or "", files=files, **about)


def _parameters(module: nnx.Module) -> dict[tuple[Any, ...], Any]:
    return dict(nnx.to_flat_state(nnx.state(module, nnx.Param)))


def _digests(module: nnx.Module) -> dict[tuple[Any, ...], str]:
    """Of every parameter: equal ones are equal bit for bit, and take no memory."""
    return {
        path: hashlib.sha256(
            np.ascontiguousarray(variable[...]).reshape(-1).view(np.uint8).data
        ).hexdigest()
        for path, variable in _parameters(module).items()
    }


def _contents(root: Path) -> dict[str, list[str] | None]:
    """Names in a directory, hidden ones apart, and what is in each folder."""
    return {
        path.name: sorted(p.name for p in path.iterdir()) if path.is_dir() else None
        for path in sorted(root.iterdir())
        if not path.name.startswith(".")
    }


def _left_out(contents: dict[str, list[str] | None], used: set[str]) -> Iterator[str]:
    for name, inside in contents.items():
        if inside is None:
            yield from {name} - used
        elif any(file.startswith(f"{name}/") for file in used):
            yield from (f"{name}/{file}" for file in inside if f"{name}/{file}" not in used)
        else:
            yield f"{name}/"
