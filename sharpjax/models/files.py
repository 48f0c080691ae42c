"""Which file of a model directory is it, and may it be trusted.

A model directory comes from anywhere: no name read from it leads out of it, no link is followed
out of it (except into the same hub cache's ``blobs/``, or if the user says so), no pickle is
opened, and nothing is allocated because a file says so.  What tensors mean is the business of
``checkpoints.py``.
"""

import dataclasses
import hashlib
import json
import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

CONFIG_NAME = "config.json"
SCHEDULER_NAME = "scheduler_config.json"
INDEX_NAME = "model_index.json"
MANIFEST_NAME = "manifest.sha256.json"

MAX_JSON_BYTES = 64 * 2**20  # a tokenizer's vocabulary takes a few
MAX_TENSORS = 10_000  # Stable Diffusion's largest network has 686
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_FLAX = ".msgpack"
STEMS = ("diffusion_pytorch_model", "model")  # of weight files, by diffusers and transformers

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # a name that cannot lead anywhere
_VARIANT = re.compile(r"[A-Za-z0-9_-]+")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_./-]*")


# --- where the directory is --------------------------------------------------------------------


class ModelDirectory(type(Path())):  # type: ignore[misc]  # the class of paths of this system
    """A model's directory, which knows which of its files are to be read; made by :func:`resolve`.

    It goes where a path goes, so that what reads a part need not be told again.  A path that is
    made from it is an ordinary one.

    Attributes:
        variant: of the weights, where a part has it.
        follow_links: whether links may lead out of the directory.
    """

    variant: str | None = None
    follow_links: bool = False


def resolve(
    name: str | Path,
    *,
    folders: Sequence[str] | None = None,
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    follow_links: bool = False,
) -> ModelDirectory:
    """The local directory of a model: itself, or the snapshot of a Hugging Face hub repository.

    Args:
        name: a directory, or, if there is none of that name, a hub id ``"owner/name"``.
        folders: the folders of a pipeline to fetch from the hub, beside its own JSON files;
            ``None`` for a repository that is one component itself.
        variant: of the weights, such as ``"fp16"``. A part of a pipeline that has none is read
            from its plain files, with a warning, as by diffusers.
        revision: branch, tag or commit of the hub repository.
        local_files_only: take what the hub's cache holds and do not connect (the environment
            variable ``HF_HUB_OFFLINE=1`` does the same).
        follow_links: whether links in it may lead out of it, for a directory that you made.

    Raises:
        FileNotFoundError: no such directory, and nothing that the hub or its cache can give, or no
            part of it with such a variant.
        ValueError: a variant or revision that is not a plain name.
    """
    path = Path(name)
    if isinstance(name, ModelDirectory):
        variant, follow_links = variant or name.variant, follow_links or name.follow_links
        if (variant, follow_links) == (name.variant, name.follow_links):
            return name
    if path.is_dir():
        return _chosen(path, folders, variant, follow_links)
    if not isinstance(name, str) or path.exists() or not _HUB_ID.fullmatch(name):
        what = f"is not a directory; {no_pipeline(path)}" if path.exists() else "does not exist"
        raise FileNotFoundError(f"no model directory {path}: it {what}")
    if revision is not None and not _REVISION.fullmatch(revision):
        raise ValueError(f"revision must be a branch, tag or commit, got {revision!r}")
    options: Any = {"revision": revision, "local_files_only": local_files_only}
    patterns = _patterns(folders, variant)
    try:
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(name, allow_patterns=patterns, **options))
        without = [folder for folder in folders or () if not _has(path / folder, variant)]
        if variant is not None and without:  # which of them have weights is known now
            patterns = _patterns(without, None)
            path = Path(snapshot_download(name, allow_patterns=patterns, **options))
    except Exception as error:  # connection, permission, cache: a dozen classes of three libraries
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"no local directory {name!r}, and the Hugging Face hub gives no model {name!r} at "
            f"revision {revision or 'main'!r} ({type(error).__name__}: {reason}). Check the "
            "spelling; without a connection only a model in the hub's cache can be read; a gated "
            "model needs `hf auth login`; or pass a directory that you downloaded"
        ) from error
    return _chosen(path, folders, variant, follow_links)


def _patterns(folders: Sequence[str] | None, variant: str | None) -> list[str]:
    """Names of what is fetched from the hub.

    A pipeline of one network may have all of its files in the repository's own folder.
    """
    mark = _mark(variant)
    patterns = [INDEX_NAME, CONFIG_NAME, SCHEDULER_NAME, "conditions.json"]
    for prefix in ["", *(f"{folder}/" for folder in folders or ())]:
        if prefix or not folders:
            patterns += [prefix + "*.json", prefix + "*.txt"]
        for stem in STEMS[:1] if folders and not prefix else STEMS:
            patterns += [f"{prefix}{stem}{mark}{shard}.safetensors"
                         for shard in ("", "-?????-of-?????")]  # fmt: skip
    return patterns


def _chosen(
    path: Path, folders: Sequence[str] | None, variant: str | None, follow_links: bool
) -> ModelDirectory:
    """The directory with its choice of files, which some part that is read must have."""
    root = ModelDirectory(path)
    root.variant, root.follow_links = variant, follow_links
    if variant is None:
        return root
    parts = [part for f in ("", *(folders or ())) if (part := path / f).is_dir()]
    if not any(_has(part, variant) for part in parts) and any(_has(part, None) for part in parts):
        raise FileNotFoundError(
            f"no {weights_name(STEMS[0], variant)} or {weights_name(STEMS[1], variant)} in any "
            f"part of {path}{_others(*parts)}"
        )
    if plain := [part.name for part in parts if _has(part, None) and not _has(part, variant)]:
        warnings.warn(
            f"{path} has no variant {variant!r} of {', '.join(plain)}: the plain files are read",
            stacklevel=3,
        )
    return root


def _has(folder: Path, variant: str | None) -> bool:
    """Whether there are weights of this variant."""
    names = [name(stem, variant) for stem in STEMS for name in (weights_name, index_name)]
    return any((folder / name).is_file() for name in names)


_PIPELINES = ("StableDiffusionPipeline", "DDPMPipeline", "DDIMPipeline", "LDMPipeline")
_FROM_FLAX = (
    "diffusers' former Flax models are not read: in PyTorch, with diffusers < 0.40 and "
    "transformers < 5, StableDiffusionPipeline.from_pretrained(SOURCE, from_flax=True)"
    ".save_pretrained(DESTINATION) writes safetensors"
)


def unread(index: dict[str, Any]) -> str:
    """What to say of a ``model_index.json`` that describes none of the pipelines that are read."""
    name = index.get("_class_name")
    told = "" if name in _PIPELINES else f"A pipeline of class {name!s:.80} is not read. "
    return told + (
        "What is read: the directory of a StableDiffusionPipeline (families 1.x and 2.x), a "
        "DDPMPipeline or DDIMPipeline (with a UNet2DModel), or an LDMPipeline whose vqvae is an "
        "AutoencoderKL" + (f"; {_FROM_FLAX}" if str(name).startswith("Flax") else "")
    )


def no_pipeline(path: Path) -> str:
    """What to say of a directory, or a file in a directory's place, without an index."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if path.is_dir() and (path / CONFIG_NAME).is_file():
        flax = [p.name for p in files if p.suffix == _FLAX]
        if flax and not any(p.suffix == ".safetensors" for p in files):
            return f"{flax[0]}: {_FROM_FLAX}"
        return "it is a single network, which sharpjax.models.from_pretrained reads"
    if single := [p for p in files if p.is_file() and p.suffix in (*PICKLED, ".safetensors")]:
        return (
            f"{single[0].name} is a checkpoint in a single file, a model is read from a directory "
            "of diffusers. To make one, in Python with torch: diffusers.StableDiffusionPipeline"
            f".from_single_file({str(single[0])!r}).save_pretrained(DIRECTORY)"
        )
    return f"a model is a directory of diffusers, with {INDEX_NAME} and a folder for each part"


def part_folder(root: Path, part: str, name: str) -> str | None:
    """The subfolder of a pipeline's part; ``None`` where its file ``name`` lies in the root.

    Pipelines of one network are published so, and diffusers reads them.
    """
    return None if not (root / part).exists() and (root / name).is_file() else part


def checked_subfolder(directory: str | Path, subfolder: str | None) -> Path:
    """``directory / subfolder``, refusing names that lead outside the directory."""
    root = directory if isinstance(directory, Path) else Path(directory)
    if not root.is_dir():
        raise FileNotFoundError(f"no model directory {root}")
    if subfolder is None:
        return root
    if not isinstance(subfolder, str) or not _PLAIN.fullmatch(subfolder):
        raise ValueError(f"subfolder must be a plain name inside {root}, got {subfolder!r}")
    folder = root / subfolder
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {subfolder!r} in {root}")
    if not _follows(root) and root.resolve() not in folder.resolve().parents:
        raise ValueError(f"{folder} is a link that leads outside {root}{_FOLLOW}")
    return folder


def checked_file(directory: str | Path, path: Path) -> Path:
    """``path``, refusing a link out of ``directory`` except into ``blobs/`` of its hub cache."""
    root = Path(directory).resolve()
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise ValueError(f"{path} is a link that leads nowhere: {error}") from error
    # hub cache: models--owner--name/snapshots/<revision>/<folder>/<file> links to
    # models--owner--name/blobs/<digest>
    blobs = [
        p.with_name("blobs")
        for p in (root, *root.parents)
        if p.name == "snapshots" and p.parent.name.startswith("models--")
    ]
    if not _follows(directory) and root not in target.parents and target.parent not in blobs:
        raise ValueError(f"{path} is a link that leads outside {directory}{_FOLLOW}")
    return path


_FOLLOW = (
    "; if you made it, or trust who did, follow_links=True (--follow-links) allows such links in "
    "this model"
)


def _follows(directory: str | Path) -> bool:
    return isinstance(directory, ModelDirectory) and directory.follow_links


# --- JSON and digests --------------------------------------------------------------------------


def read_json(path: Path, *, constants: bool = False) -> dict[str, Any]:
    """A JSON object from a file, with errors that name the file.

    Stricter than Python's reader: no key twice, no ``NaN`` or infinite number; with ``constants``
    these pass, for a caller that judges them by key (diffusers writes ``-Infinity`` for a setting
    of its solvers).
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} is not valid JSON of a model: over {MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(
            path.read_bytes(),
            object_pairs_hook=_without_duplicates,
            parse_constant=float if constants else _not_a_number,
            parse_float=float if constants else _finite,
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"key {twice!r:.80} stands there twice")
    return result


def _not_a_number(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) < float("inf") else _not_a_number(text)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_manifest(root: str | Path, folder: Path, names: Sequence[str]) -> None:
    """A manifest is optional; one that is present must be right about the files ``names``.

    It may name others too, such as another variant that was not downloaded.
    """
    path = checked_file(root, folder / MANIFEST_NAME)
    if not path.exists():
        return
    digests = read_json(path)
    for name in digests:
        if not _PLAIN.fullmatch(name):
            raise ValueError(f"{path}: {name!r} is not a plain file name")
    for name in names:
        if name not in digests:
            raise ValueError(f"{path} does not name {name}, so {name} was added or changed later")
        if sha256(folder / name) != digests[name]:
            raise ValueError(
                f"{folder / name} does not match its digest in {MANIFEST_NAME}: the file is "
                "damaged, was edited, or writing it was interrupted (delete the manifest only if "
                "you edited it yourself)"
            )


# --- weights -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of a file that has not been read yet."""

    path: Path
    key: str
    dtype: str  # as safetensors writes it: F32, BF16, I64
    shape: tuple[int, ...]


def weights_name(stem: str, variant: str | None = None, shard: str = "") -> str:
    """``diffusion_pytorch_model.safetensors``, ``model.fp16-00001-of-00002.safetensors``."""
    return f"{stem}{_mark(variant)}{shard}.safetensors"


def index_name(stem: str, variant: str | None = None) -> str:
    """``model.safetensors.index.json``, ``model.safetensors.index.fp16.json``."""
    return f"{stem}.safetensors.index{_mark(variant)}.json"


def find_weights(
    root: str | Path, folder: Path, stem: str, variant: str | None = None
) -> tuple[dict[str, Stored], list[str]]:
    """The tensors of a component by their headers, and the files that hold them.

    Args:
        root: directory that links may not leave.
        folder: the component's, inside it or the same.
        stem: ``"diffusion_pytorch_model"`` or ``"model"``.
        variant: such as ``"fp16"``; the plain files are taken where only they are there.

    Raises:
        FileNotFoundError: no safetensors of this variant; says which variants and pickles there
            are.
        ValueError: a damaged file, or an index that its shards contradict.
    """
    if not _has(folder, variant) and _has(folder, None):
        variant = None
    single, index = folder / weights_name(stem, variant), folder / index_name(stem, variant)
    checked_file(root, single), checked_file(root, index)
    if single.is_file() and index.is_file():
        raise ValueError(f"{folder} holds both {single.name} and {index.name}: remove one")
    if single.is_file():
        return _header(single), [single.name]
    if not index.is_file():
        raise FileNotFoundError(f"no {single.name} in {folder}{_others(folder)}")

    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{index}: 'weight_map' must be an object of tensor and file names")
    for key, name in listed.items():
        if not isinstance(name, str) or not re.fullmatch(_PLAIN.pattern + r"\.safetensors", name):
            raise ValueError(
                f"{index}: {key!r} must be in a plain *.safetensors file, got {name!r}"
            )
    tensors: dict[str, Stored] = {}
    names = sorted(set(listed.values()))
    shards = [checked_file(root, folder / name) for name in names]
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{index} names {shard.name}, which is missing")
    for name, shard in zip(names, shards, strict=True):
        for key, stored in _header(shard).items():
            if listed.get(key) != name:
                raise ValueError(f"{shard}: tensor {key!r} is not listed for it in {index.name}")
            tensors[key] = stored
    absent = sorted(listed.keys() - tensors.keys())
    if absent:
        raise ValueError(f"{index}: tensor {absent[0]!r} is not in {listed[absent[0]]}")
    return tensors, [index.name, *names]


def _header(path: Path) -> dict[str, Stored]:
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


def _mark(variant: str | None) -> str:
    if variant is None:
        return ""
    if not isinstance(variant, str) or not _VARIANT.fullmatch(variant):
        raise ValueError(f"variant must be a plain name such as 'fp16', got {variant!r}")
    return f".{variant}"


def _others(*folders: Path) -> str:
    """What to try when the weights asked for are not there."""
    mark = re.compile(
        rf"(?:{'|'.join(STEMS)})(?:(?:\.({_VARIANT.pattern}?))?(?:-\d{{5}}-of-\d{{5}})?\.safetensors"
        rf"|\.safetensors\.index(?:\.({_VARIANT.pattern}))?\.json)"
    )
    names = sorted(p.name for folder in folders for p in folder.iterdir())
    variants = {m[1] or m[2] for m in map(mark.fullmatch, names) if m}
    choices = (f"variant={v!r} ({f'--variant {v}' if v else 'no --variant'})" for v in variants)
    hint = f"; name {' or '.join(sorted(choices))}" if variants else ""
    if pickled := [name for name in names if name.endswith(PICKLED)]:
        hint += f" ({pickled[0]} is pickle, which is never read: convert it to safetensors with "
        hint += "PyTorch)"
    if flax := [name for name in names if name.endswith(_FLAX)]:
        hint += f" ({flax[0]}: {_FROM_FLAX})"
    return hint


# --- writing -----------------------------------------------------------------------------------


def replace_files(
    directory: str | Path,
    writers: Mapping[str, Callable[[Path], object]],
    *,
    stale: re.Pattern[str] | None = None,
) -> Path:
    """Write files into a directory, and the manifest that covers them, all or nothing.

    The files are written beside the directory first.  A new directory then appears by one rename.
    In one that exists, files are renamed into place one by one, after the manifest: were the
    process killed among those renames, the manifest contradicts what is left of the old files,
    and the half-replaced directory is refused, not read.

    Args:
        directory: made if missing.
        writers: file name -> function that writes the file to the path given to it.
        stale: files that these replace under another name, to be removed.

    Raises:
        FileExistsError: a file stands where the directory, or a directory where a file shall be.
    """
    folder = Path(directory)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"cannot write into {folder}: {path} is a file")
    for name in (*writers, MANIFEST_NAME):
        if (folder / name).is_dir():
            raise FileExistsError(f"cannot write {folder / name}: a directory is in the way")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder if folder.exists() else folder.parent
    with tempfile.TemporaryDirectory(dir=beside, prefix=".writing-") as temporary:
        staged = Path(temporary) / "new"
        staged.mkdir()
        for name, write in writers.items():
            write(staged / name)
        digests = {name: sha256(staged / name) for name in writers}
        if (folder / MANIFEST_NAME).is_file():  # another variant's files stay what they are
            for name, digest in read_json(folder / MANIFEST_NAME).items():
                left = _PLAIN.fullmatch(name) and not (stale and stale.fullmatch(name))
                if left and (folder / name).is_file():
                    digests.setdefault(name, digest)
        (staged / MANIFEST_NAME).write_text(json.dumps(digests, indent=2, sort_keys=True) + "\n")
        if not folder.exists():
            os.rename(staged, folder)
            return folder
        for name in (MANIFEST_NAME, *writers):
            os.replace(staged / name, folder / name)
        for path in folder.iterdir():
            if stale and stale.fullmatch(path.name) and path.name not in writers:
                path.unlink()
    return folder
