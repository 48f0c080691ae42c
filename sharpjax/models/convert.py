"""A model directory, from anywhere, into a clean one: checked, safetensors only, one type.

Parts go through memory one after the other, so that the peak is the largest of them.
"""

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharpjax.checkpoints.component import from_pretrained, save_pretrained
from sharpjax.checkpoints.configuration import check_channels
from sharpjax.checkpoints.directory import (
    CONDITIONS_NAME,
    CONFIG_NAME,
    GENERATION_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    PICKLED,
    SCHEDULER_NAME,
    Directory,
)
from sharpjax.checkpoints.hub import resolve
from sharpjax.checkpoints.pipeline import (
    CLASSES,
    LATENT,
    THREE,
    XL,
    Pipeline,
    read_guidance,
    read_index,
    write_pipeline,
)
from sharpjax.checkpoints.t5_tokenizer import T5Tokenizer
from sharpjax.checkpoints.tokenizer import Tokenizer
from sharpjax.checkpoints.tokenizer_files import NAMES as TOKENIZER_NAMES
from sharpjax.models.diffusion import read_flow_schedule, read_schedule
from sharpjax.models.latent_diffusion import check_fit
from sharpjax.models.latent_diffusion_3 import check_fit_3
from sharpjax.models.latent_diffusion_xl import check_fit_xl, read_zeros, told_of_zeros
from sharpjax.models.load import find
from sharpjax.models.pixel_diffusion import PixelDiffusion, read_names
from sharpjax.rundir.progress import progress

_LICENSES = ("LICENSE", "LICENSE.md", "LICENSE.txt")  # go where the weights go
_MARK = ".sharpjax-convert"  # in a directory that is being written


@dataclasses.dataclass(frozen=True)
class ConvertedPart:
    """What was written of one part.

    Attributes:
        name: of its folder; empty for a single component.
        class_name: in PyTorch's libraries.
        files: size in bytes of each file, by name.
        num_parameters: if it has any.
        dtype: of its parameters.
    """

    name: str
    class_name: str
    files: dict[str, int]
    num_parameters: int | None = None
    dtype: str | None = None

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What `convert` did.

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
    **files: Any,
) -> Conversion:
    """Read a pipeline or a single component with every check, and write it again.

    What was written is read again, and must give the same parameters bit for bit.  The directory
    appears when all of it is there: until then it is called `destination.part`, and what a kill
    leaves of that is replaced by the next call.

    Args:
        source: a bundled model, a directory, or a hub id; of a pipeline (`model_index.json`) or
            of one component (`config.json`).
        destination: a new or empty directory.
        dtype: of the stored parameters, `float32`, `float16` or `bfloat16`.
        files: `variant`, `revision`, `local_files_only` and `follow_links`, which choose what is
            read, as of `sharpjax.checkpoints.from_pretrained`; what is written has no variant.

    Raises:
        FileNotFoundError: no such source, or a part of it is missing.
        FileExistsError: the destination is a file or not empty.
        ValueError: a part is damaged, not supported or does not fit the others, or its values are
            too large for `dtype`.
        OSError: the destination cannot be written, the disk is full, or what was written reads
            back differently.
    """
    target = Path(os.path.abspath(destination))
    dtype = np.dtype(dtype)
    _check_target(target)
    root = find(source, **files)
    if not root.exists(INDEX_NAME):  # of the hub's files, those of one component
        root = resolve(source, **files)
    pipeline = read_index(root) if root.exists(INDEX_NAME) else None
    if pipeline is None and not root.exists(CONFIG_NAME):
        raise FileNotFoundError(
            f"{root} holds neither {INDEX_NAME} (of a pipeline) nor {CONFIG_NAME} (of a component)"
        )
    if root.path.resolve() in target.resolve().parents:
        raise ValueError(f"{target} lies inside the source {root}: choose a place outside")
    names = [""] if pipeline is None else list(pipeline.networks)
    used: set[str] = set()
    parts, configs = [], {}
    with _staged(target) as staging:
        with progress("converting", total=len(names)) as bar:
            for name in names:
                read, part, configs[name] = _component(root, pipeline, staging, name, dtype=dtype)
                used |= read
                parts.append(part)
                bar.advance(note=name)
        for name in _LICENSES:
            if root.exists(name):
                shutil.copyfile(root.file(name), staging / name)
                used.add(name)
        if pipeline is not None:
            used |= _rest(pipeline, staging, configs)
            for name in pipeline.parts:
                if name.startswith("tokenizer"):
                    parts.append(_part(staging, name, pipeline.parts[name]))
            parts.append(_part(staging, "scheduler", pipeline.parts["scheduler"]))
    return Conversion(target, tuple(parts), tuple(_left_out(root.path, used)))


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
    """A directory that becomes `target` when all went well."""
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


def _component(
    root: Directory, pipeline: Pipeline | None, staging: Path, name: str, *, dtype: Any
) -> tuple[set[str], ConvertedPart, dict[str, Any]]:
    """Files that were read, what was written, and the configuration."""
    folder = root if pipeline is None else pipeline.component(name)
    try:
        module = (
            pipeline.read(name, dtype=dtype) if pipeline else from_pretrained(root, dtype=dtype)
        )
    except FileNotFoundError as error:
        if any(path.name.endswith(PICKLED) for path in folder.path.iterdir()):
            raise FileNotFoundError(
                f"{error}. If you trust its origin, in Python with torch: diffusers' or "
                "transformers' class .from_pretrained(source, use_safetensors=False)"
                ".save_pretrained(destination, safe_serialization=True)"
            ) from error
        raise
    class_name, config = type(module).__name__, module.config
    number = sum(v.size for v in jax.tree.leaves(nnx.state(module, nnx.Param)))
    save_pretrained(module, staging / name)
    digests = _digests(module)
    del module  # before it is read again: only one in memory
    again = from_pretrained(staging / name, dtype=dtype)
    if again.config != config or _digests(again) != digests:
        raise OSError(
            f"{staging / name} reads back differently than it was written: the disk or the memory "
            "is faulty"
        )
    read = {CONFIG_NAME, MANIFEST_NAME, *folder.weight_files()}
    done = _part(staging, name, class_name, num_parameters=number, dtype=dtype.name)
    return {_relative(root, folder, file) for file in read}, done, config


def _relative(root: Directory, folder: Directory, name: str) -> str:
    return str((folder.path / name).relative_to(root.path))


def _rest(pipeline: Pipeline, staging: Path, configs: dict[str, dict[str, Any]]) -> set[str]:
    """Everything of a pipeline that has no weights, and whether its parts fit."""
    root = pipeline.directory
    folder = root.component("scheduler", holding=SCHEDULER_NAME)
    if pipeline.kind is THREE:
        scheduler = read_flow_schedule(pipeline).to_config()
    else:
        _, scheduler = read_schedule(pipeline)
    denoiser = configs[pipeline.kind.denoiser]
    if pipeline.kind not in (CLASSES, THREE):
        check_channels(denoiser, scheduler, folder.path / SCHEDULER_NAME)
    used = {INDEX_NAME, _relative(root, folder, SCHEDULER_NAME)}
    conditions: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    tokenizers = [name for name in pipeline.parts if name.startswith("tokenizer")]
    if tokenizers:
        known: dict[str, Any] = {}
        for name in tokenizers:
            known[name], files = _tokenizer(root, staging, name)
            used |= files
        networks: Any = {k: types.SimpleNamespace(config=v) for k, v in configs.items()}
        try:
            larger = check_fit_xl if pipeline.kind is XL else check_fit_3
            fits: Any = check_fit if pipeline.kind is LATENT else larger
            fits(**networks, **known)
        except ValueError as error:
            raise ValueError(f"{root}: {error}") from error
        options["guidance"] = read_guidance(root, usual=pipeline.kind.guidance)
        used.add(GENERATION_NAME)
        if pipeline.kind is XL:
            options["extra"] = told_of_zeros(read_zeros(root))
    else:
        conditions = read_names(pipeline, denoiser)
        used.add(CONDITIONS_NAME)
    write_pipeline(staging, pipeline.parts, scheduler, conditions, ours=pipeline.parts, **options)
    if not tokenizers:
        PixelDiffusion.from_pretrained(staging)  # do its parts fit?
    return used


def _tokenizer(root: Directory, staging: Path, name: str) -> tuple[Tokenizer, set[str]]:
    """A tokenizer, written anew, and the files that it was read from."""
    reader: Any = T5Tokenizer if name == "tokenizer_3" else Tokenizer
    tokenizer = reader.from_pretrained(root, name)
    probe = ["", "a photo of two cats, 1999; Ünïcödé 🙂"]
    tokenizer.save_pretrained(staging / name)
    again = reader.from_pretrained(Directory(staging), name)
    with warnings.catch_warnings():  # too long for a short tokenizer: cut alike
        warnings.simplefilter("ignore", UserWarning)
        same = np.array_equal(again(probe), tokenizer(probe))
    if not same or again.backend.get_vocab() != tokenizer.backend.get_vocab():
        raise ValueError(f"{root.path / name}: written anew it gives other ids")
    return tokenizer, {f"{name}/{file}" for file in (*TOKENIZER_NAMES, MANIFEST_NAME)}


def _part(staging: Path, name: str, class_name: str, **about: Any) -> ConvertedPart:
    files = {
        path.name: path.stat().st_size
        for path in sorted((staging / name).iterdir())
        if path.name != _MARK
    }
    return ConvertedPart(name, class_name, files, **about)


def _digests(module: nnx.Module) -> dict[tuple[Any, ...], str]:
    """Of every parameter: equal ones are equal bit for bit, and take no memory."""
    return {
        path: hashlib.sha256(
            np.ascontiguousarray(variable[...]).reshape(-1).view(np.uint8).data
        ).hexdigest()
        for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }


def _left_out(root: Path, used: set[str]) -> Iterator[str]:
    """What the source holds beside, hidden files apart."""
    for path in sorted(path for path in root.iterdir() if not path.name.startswith(".")):
        if not path.is_dir():
            yield from {path.name} - used
        elif any(file.startswith(f"{path.name}/") for file in used):
            inside = (f"{path.name}/{file.name}" for file in sorted(path.iterdir()))
            yield from (file for file in inside if file not in used)
        else:
            yield f"{path.name}/"
