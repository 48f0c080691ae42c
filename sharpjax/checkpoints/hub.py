"""Where a model is: a directory, or the snapshot of a Hugging Face hub repository."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharpjax.checkpoints.directory import (
    CONDITIONS_NAME,
    CONFIG_NAME,
    FLAX,
    FROM_FLAX,
    INDEX_NAME,
    PICKLED,
    SCHEDULER_NAME,
    STEMS,
    Directory,
    others,
    variant_mark,
    weights_name,
)

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_./-]*")


def resolve(
    name: str | Path | Directory,
    *,
    folders: Sequence[str] | None = None,
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    follow_links: bool = False,
) -> Directory:
    """The local directory of a model: itself, or the snapshot of a Hugging Face hub repository.

    Args:
        name: a directory, or, if there is none of that name, a hub id `"owner/name"`; one that
            was resolved before stays what it is.
        folders: the folders of a pipeline to fetch from the hub, beside its own JSON files;
            `None` for a repository that is one component itself.
        variant: of the weights, such as `"fp16"`. A part of a pipeline that has none is read
            from its plain files, with a warning, as by diffusers.
        revision: branch, tag or commit of the hub repository.
        local_files_only: take what the hub's cache holds and do not connect (the environment
            variable `HF_HUB_OFFLINE=1` does the same).
        follow_links: whether links in it may lead out of it, for a directory that you made.

    Raises:
        FileNotFoundError: no such directory, and nothing that the hub or its cache can give, or no
            part of it with such a variant.
        ValueError: a variant or revision that is not a plain name.
    """
    if isinstance(name, Directory):
        return name
    path = Path(name)
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
        without = [folder for folder in folders or () if not _has(path, folder, variant)]
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
    mark = variant_mark(variant)
    patterns = [INDEX_NAME, CONFIG_NAME, SCHEDULER_NAME, CONDITIONS_NAME]
    for prefix in ["", *(f"{folder}/" for folder in folders or ())]:
        if prefix or not folders:
            patterns += [prefix + "*.json", prefix + "*.txt"]
        for stem in STEMS[:1] if folders and not prefix else STEMS:
            weights = f"{prefix}{stem}{mark}"
            patterns += [f"{weights}.safetensors", f"{weights}-?????-of-?????.safetensors"]
    return patterns


def _chosen(
    path: Path, folders: Sequence[str] | None, variant: str | None, follow_links: bool
) -> Directory:
    """The directory with its choice of files, which some part that is read must have."""
    if variant is not None:
        parts = [part for part in ("", *(folders or ())) if (path / part).is_dir()]
        plain = [part for part in parts if _has(path, part, None) and not _has(path, part, variant)]
        if plain and not any(_has(path, part, variant) for part in parts):
            raise FileNotFoundError(
                f"no {weights_name(STEMS[0], variant)} or {weights_name(STEMS[1], variant)} in any "
                f"part of {path}{others(*(path / part for part in parts))}"
            )
        if plain:
            warnings.warn(
                f"{path} has no variant {variant!r} of {', '.join(plain)}: the plain files are "
                "read",
                stacklevel=3,
            )
    return Directory(path, variant, follow_links)


def _has(path: Path, part: str, variant: str | None) -> bool:
    return (path / part).is_dir() and Directory(path / part).has_weights(variant)


def no_pipeline(path: Path) -> str:
    """What to say of a directory, or a file in a directory's place, without an index."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if path.is_dir() and (path / CONFIG_NAME).is_file():
        flax = [p.name for p in files if p.suffix == FLAX]
        if flax and not any(p.suffix == ".safetensors" for p in files):
            return f"{flax[0]}: {FROM_FLAX}"
        return "it is a single network, which sharpjax.checkpoints.from_pretrained reads"
    if single := [p for p in files if p.is_file() and p.suffix in (*PICKLED, ".safetensors")]:
        return (
            f"{single[0].name} is a checkpoint in a single file, a model is read from a directory "
            "of diffusers. To make one, in Python with torch: diffusers.StableDiffusionPipeline"
            f".from_single_file({str(single[0])!r}).save_pretrained(DIRECTORY)"
        )
    return f"a model is a directory of diffusers, with {INDEX_NAME} and a folder for each part"
