"""A model's directory: the only way to its files, which checks each on the way.

A model directory comes from anywhere: no name read from it leads out of it, no link is followed
out of it (except into the same hub cache's `blobs/`, or if the user says so), no pickle is
opened, and nothing is allocated because a file says so.  What tensors mean is the business of
`component.py`, what a pipeline's parts are that of `pipeline.py`.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharpjax.checkpoints.tensors import Stored, read_header

CONFIG_NAME = "config.json"
MANIFEST_NAME = "manifest.sha256.json"
INDEX_NAME = "model_index.json"  # of a pipeline, as the next two
SCHEDULER_NAME = "scheduler_config.json"
CONDITIONS_NAME = "conditions.json"  # names of a network's classes; ours alone
GENERATION_NAME = "generation_config.json"  # which guidance a model is meant for; ours alone

MAX_JSON_BYTES = 64 * 2**20  # a tokenizer's vocabulary takes a few
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
FLAX = ".msgpack"
STEMS = ("diffusion_pytorch_model", "model")  # of weight files, by diffusers and transformers
FROM_FLAX = (
    "diffusers' former Flax models are not read: in PyTorch, with diffusers < 0.40 and "
    "transformers < 5, StableDiffusionPipeline.from_pretrained(SOURCE, from_flax=True)"
    ".save_pretrained(DESTINATION) writes safetensors"
)

PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # a name that cannot lead anywhere
_SHARD = re.compile(PLAIN.pattern + r"\.safetensors")
_VARIANT = re.compile(r"[A-Za-z0-9_-]+")
_FOLLOW = (
    "; if you made it, or trust who did, follow_links=True (--follow-links) allows such links in "
    "this model"
)


@dataclasses.dataclass(frozen=True)
class Directory:
    """A model's directory, or the folder of one of its parts; made by `hub.resolve`.

    Attributes:
        path: where it is.
        variant: of the weights, where a part has it, such as `"fp16"`.
        follow_links: whether links may lead out of the model's directory.
        top: the model's directory; `path` itself, unless this is a part.
    """

    path: Path
    variant: str | None = None
    follow_links: bool = False
    top: Path = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise FileNotFoundError(f"no model directory {self.path}")
        if self.top is None:
            object.__setattr__(self, "top", self.path)

    def __str__(self) -> str:
        return str(self.path)

    def component(self, name: str | None, *, holding: str | None = None) -> "Directory":
        """The folder of a part, this one for `None`, refusing names and links that lead outside.

        Pipelines of one network are published with all files in one folder: where there is no
        folder of the name, but a file that is `holding` the part, it is that.
        """
        flat = holding and name and not (self.path / name).exists() and self.exists(holding)
        if name is None or flat:
            return self
        if not isinstance(name, str) or not PLAIN.fullmatch(name):
            raise ValueError(f"subfolder must be a plain name inside {self.path}, got {name!r}")
        folder = self.path / name
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {name!r} in {self.path}")
        if not self.follow_links and self.top.resolve() not in folder.resolve().parents:
            raise ValueError(f"{folder} is a link that leads outside {self.top}{_FOLLOW}")
        return dataclasses.replace(self, path=folder)

    def file(self, name: str) -> Path:
        """Path of a file, which may be missing; a link out of the model's directory is refused.

        Except into `blobs/` of its hub cache, where `models--owner--name/snapshots/<revision>/
        <folder>/<file>` links to `models--owner--name/blobs/<digest>`.
        """
        if not PLAIN.fullmatch(name):
            raise ValueError(f"file must be a plain name inside {self.path}, got {name!r}")
        path, top = self.path / name, self.top.resolve()
        try:
            target = path.resolve()
        except (OSError, RuntimeError) as error:  # a link to itself
            raise ValueError(f"{path} is a link that leads nowhere: {error}") from error
        blobs = [
            p.with_name("blobs")
            for p in (top, *top.parents)
            if p.name == "snapshots" and p.parent.name.startswith("models--")
        ]
        if not self.follow_links and top not in target.parents and target.parent not in blobs:
            raise ValueError(f"{path} is a link that leads outside {self.top}{_FOLLOW}")
        return path

    def exists(self, name: str) -> bool:
        """Whether there is such a file; a link out of the model's directory is refused."""
        return self.file(name).exists()

    def json(self, name: str, *, constants: bool = False) -> dict[str, Any]:
        """The object in a JSON file; see `read_json`."""
        return read_json(self.file(name), constants=constants)

    def verify_manifest(self, names: Sequence[str]) -> None:
        """A manifest is optional; one that is present must be right about the files `names`.

        It may name others too, such as another variant that was not downloaded.
        """
        if not self.exists(MANIFEST_NAME):
            return
        digests, path = self.json(MANIFEST_NAME), self.path / MANIFEST_NAME
        for name in digests:
            if not PLAIN.fullmatch(name):
                raise ValueError(f"{path}: {name!r} is not a plain file name")
        for name in names:
            if name not in digests:
                raise ValueError(
                    f"{path} does not name {name}, so {name} was added or changed later"
                )
            if sha256(self.file(name)) != digests[name]:
                raise ValueError(
                    f"{self.path / name} does not match its digest in {MANIFEST_NAME}: the file "
                    "is damaged, was edited, or writing it was interrupted (delete the manifest "
                    "only if you edited it yourself)"
                )

    def has_weights(self, variant: str | None, stems: Sequence[str] = STEMS) -> bool:
        """Whether there are weights of this variant."""
        names = [name(stem, variant) for stem in stems for name in (weights_name, index_name)]
        return any((self.path / name).is_file() for name in names)

    def weight_files(self) -> list[str]:
        """Names of the files that hold a part's weights: one file, or an index and its shards."""
        for variant in (self.variant, None):
            for stem in STEMS:
                if self.has_weights(variant, [stem]):
                    return dataclasses.replace(self, variant=variant).tensors(stem)[1]
        return self.tensors(STEMS[0])[1]  # tells what is there instead

    def tensors(self, stem: str) -> tuple[dict[str, Stored], list[str]]:
        """The tensors of a part by their headers, and the files that hold them.

        The plain files are taken where there are none of the variant.

        Raises:
            FileNotFoundError: no safetensors of this variant; says which variants and pickles
                there are.
            ValueError: a damaged file, or an index that its shards contradict.
        """
        plain = not self.has_weights(self.variant) and self.has_weights(None)
        variant = None if plain else self.variant
        single = self.file(weights_name(stem, variant))
        index = self.file(index_name(stem, variant))
        if single.is_file() and index.is_file():
            raise ValueError(f"{self.path} holds both {single.name} and {index.name}: remove one")
        if single.is_file():
            return read_header(single), [single.name]
        if not index.is_file():
            raise FileNotFoundError(f"no {single.name} in {self.path}{others(self.path)}")

        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ValueError(f"{index}: 'weight_map' must be an object of tensor and file names")
        for key, name in listed.items():
            if not isinstance(name, str) or not _SHARD.fullmatch(name):
                raise ValueError(
                    f"{index}: {key!r} must be in a plain *.safetensors file, got {name!r}"
                )
        names = sorted(set(listed.values()))
        shards = {name: self.file(name) for name in names}
        for name, shard in shards.items():
            if not shard.is_file():
                raise FileNotFoundError(f"{index} names {name}, which is missing")
        tensors: dict[str, Stored] = {}
        for name, shard in shards.items():
            for key, stored in read_header(shard).items():
                if listed.get(key) != name:
                    raise ValueError(
                        f"{shard}: tensor {key!r} is not listed for it in {index.name}"
                    )
                tensors[key] = stored
        if absent := sorted(listed.keys() - tensors.keys()):
            raise ValueError(f"{index}: tensor {absent[0]!r} is not in {listed[absent[0]]}")
        return tensors, [index.name, *names]


def read_json(path: Path, *, constants: bool = False) -> dict[str, Any]:
    """A JSON object from a file, with errors that name the file.

    Stricter than Python's reader: no key twice, no `NaN` or infinite number; with `constants`
    these pass, for a caller that judges them by key (diffusers writes `-Infinity` for a setting
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
    """Hexadecimal SHA-256 of a file, read in pieces.

    Raises:
        FileNotFoundError: no such file, or something else by its name: a pipe would be waited for.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, or no regular file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_name(stem: str, variant: str | None = None, shard: str = "") -> str:
    """`diffusion_pytorch_model.safetensors`, `model.fp16-00001-of-00002.safetensors`."""
    return f"{stem}{variant_mark(variant)}{shard}.safetensors"


def index_name(stem: str, variant: str | None = None) -> str:
    """`model.safetensors.index.json`, `model.safetensors.index.fp16.json`."""
    return f"{stem}.safetensors.index{variant_mark(variant)}.json"


def variant_mark(variant: str | None) -> str:
    """What a variant puts into the names of files."""
    if variant is None:
        return ""
    if not isinstance(variant, str) or not _VARIANT.fullmatch(variant):
        raise ValueError(f"variant must be a plain name such as 'fp16', got {variant!r}")
    return f".{variant}"


def others(*folders: Path) -> str:
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
    if flax := [name for name in names if name.endswith(FLAX)]:
        hint += f" ({flax[0]}: {FROM_FLAX})"
    return hint
