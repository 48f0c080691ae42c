"""What belongs to a whole pipeline's directory: its `model_index.json` and its scheduler.

Three kinds are read: latents conditioned on texts (Stable Diffusion 1.x and 2.x); images, or
latents, conditioned on classes or on nothing; and latents by a transformer, conditioned on classes.
"""

import dataclasses
import json
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from sharpjax.checkpoints.component import from_pretrained
from sharpjax.checkpoints.configuration import LEARNED_VARIANCES
from sharpjax.checkpoints.directory import (
    CONDITIONS_NAME,
    CONFIG_NAME,
    FROM_FLAX,
    GENERATION_NAME,
    INDEX_NAME,
    SCHEDULER_NAME,
    Directory,
)
from sharpjax.checkpoints.hub import no_pipeline
from sharpjax.rundir.files import write_text

_OURS = "sharpjax"  # the library of networks that diffusers does not have
USUAL_GUIDANCE = 7.5  # Stable Diffusion's, of a model that does not say
_GUIDANCE = "guidance_scale"  # as diffusers calls it
ID2LABEL = "id2label"  # where the index of a DiTPipeline names the classes
VQVAE = "vqvae"  # what diffusers' LDMPipeline calls its autoencoder, of any class


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of pipeline.

    Attributes:
        class_names: that diffusers gives it; the first is written.
        parts: of each its library, and the classes that are read; none: any that can be read.
        denoiser: the part that denoises, by which a kind is known.
        guidance: of its models, where a directory does not say.
        own: classes of sharpjax that may stand there instead.
        optional: parts that may be missing.
        ignored: parts that judge or describe finished images, and what says whether one is there.
    """

    class_names: tuple[str, ...]
    parts: dict[str, tuple[str, tuple[str, ...]]]
    denoiser: str = "unet"
    guidance: float = USUAL_GUIDANCE
    optional: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    own: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def reads(self, part: str, entry: Any) -> bool:
        """Whether `[library, class]` is one of this part."""
        own = self.own.get(part, ())
        return _fits(entry, self.parts[part]) or (bool(own) and _fits(entry, (_OURS, own)))

    @property
    def networks(self) -> tuple[str, ...]:
        """Parts with weights."""
        return tuple(
            part for part in self.parts if part != "scheduler" and not part.startswith("tokenizer")
        )


LATENT = Kind(
    class_names=("StableDiffusionPipeline",),
    parts={
        "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
        "text_encoder": ("transformers", ("CLIPTextModel",)),
        "vae": ("diffusers", ("AutoencoderKL",)),
        "unet": ("diffusers", ("UNet2DConditionModel",)),
        "scheduler": ("diffusers", ()),
    },
    ignored=("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker"),
)
XL = Kind(
    class_names=("StableDiffusionXLPipeline",),
    parts={
        "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
        "tokenizer_2": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
        "text_encoder": ("transformers", ("CLIPTextModel",)),
        "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
        "vae": ("diffusers", ("AutoencoderKL",)),
        "unet": ("diffusers", ("UNet2DConditionModel",)),
        "scheduler": ("diffusers", ()),
    },
    ignored=(
        "feature_extractor", "image_encoder", "force_zeros_for_empty_prompt", "add_watermarker",
    ),
    guidance=5.0,
)  # fmt: skip
THREE = Kind(
    class_names=("StableDiffusion3Pipeline",),
    parts={
        "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
        "tokenizer_2": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
        "tokenizer_3": ("transformers", ("T5TokenizerFast", "T5Tokenizer")),
        "text_encoder": ("transformers", ("CLIPTextModelWithProjection",)),
        "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
        "text_encoder_3": ("transformers", ("T5EncoderModel",)),
        "vae": ("diffusers", ("AutoencoderKL",)),
        "transformer": ("diffusers", ("SD3Transformer2DModel",)),
        "scheduler": ("diffusers", ("FlowMatchEulerDiscreteScheduler",)),
    },
    denoiser="transformer",
    guidance=7.0,
    optional=("tokenizer_3", "text_encoder_3"),
    ignored=("feature_extractor", "image_encoder"),
)
PIXEL = Kind(
    class_names=("DDIMPipeline", "DDPMPipeline", "LDMPipeline"),
    parts={
        "unet": ("diffusers", ("UNet2DModel",)),
        VQVAE: ("diffusers", ("AutoencoderKL",)),
        "scheduler": ("diffusers", ()),
    },
    optional=(VQVAE,),
    own={"unet": ("CaptionMLP",), VQVAE: ("LinearCodec",)},
)
CLASSES = Kind(
    class_names=("DiTPipeline",),
    parts={
        "transformer": ("diffusers", ("DiTTransformer2DModel",)),
        "vae": ("diffusers", ("AutoencoderKL",)),
        "scheduler": ("diffusers", ()),
    },
    denoiser="transformer",
    ignored=(ID2LABEL,),
)
KINDS = (XL, LATENT, PIXEL, THREE, CLASSES)  # the first that reads an index: XL has a part more
FOLDERS = tuple(dict.fromkeys(part for kind in KINDS for part in kind.parts))  # for the hub
_ABSENT = (None, [None, None])  # how an index says that there is no such part


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A pipeline's directory whose index was read and checked."""

    directory: Directory
    kind: Kind
    parts: dict[str, str]  # the class of each that is there
    mesh: Mesh | None = None  # that the networks are read onto

    @property
    def networks(self) -> tuple[str, ...]:
        """Parts with weights that are there."""
        return tuple(part for part in self.kind.networks if part in self.parts)

    def component(self, part: str) -> Directory:
        """The folder of a network, or the pipeline's own where all files are in one."""
        return self.directory.component(part, holding=CONFIG_NAME)

    def read(self, part: str, *, dtype: Any = "float32") -> Any:
        """A network, which must be of the class that the index names."""
        folder = self.component(part)
        module = from_pretrained(folder, dtype=dtype, mesh=self.mesh)
        if type(module).__name__ != self.parts[part]:
            raise ValueError(
                f"{folder}: must hold a {self.parts[part]}, got {type(module).__name__}"
            )
        return module


def read_index(directory: Directory, *kinds: Kind) -> Pipeline:
    """What a `model_index.json` describes: one of these kinds, or of any that is read.

    Raises:
        FileNotFoundError: there is none; says what is there instead.
        ValueError: it describes no such pipeline.
    """
    where = directory.path / INDEX_NAME
    if not directory.exists(INDEX_NAME):
        raise FileNotFoundError(f"no {INDEX_NAME} in {directory}: {no_pipeline(directory.path)}")
    index = directory.json(INDEX_NAME)
    kinds = kinds or KINDS

    def require(holds: bool, told: str) -> None:
        if not holds:
            raise ValueError(f"{where}: {told}. {_unread(index)}")

    found = [
        kind
        for kind in kinds
        if kind.reads(kind.denoiser, index.get(kind.denoiser))
        and (kind is not XL or index.get("text_encoder_2") not in _ABSENT)
    ]
    # of what the index says that it is, if that is read; else of all that have such a part
    meant = [kind for kind in kinds if index.get("_class_name") in kind.class_names] or kinds
    there = "transformer" if "unet" not in index and "transformer" in index else "unet"
    there = meant[0].denoiser if len(meant) == 1 else there
    allowed_here = (kind.parts[there][1][0] for kind in meant if kind.denoiser == there)
    choices = " or ".join(f"['diffusers', {name!r}]" for name in dict.fromkeys(allowed_here))
    require(bool(found), f"{there!r} must be {choices}, got {index.get(there)!r:.80}")
    kind = found[0]
    for part, (library, classes) in kind.parts.items():
        entry, allowed = index.get(part), " or ".join(classes) or "a scheduler"
        require(
            kind.reads(part, entry) or (part in kind.optional and entry in _ABSENT),
            f"{part!r} must be [{library!r}, {allowed}], got {entry!r:.80}",
        )
    known = (*kind.parts, *kind.ignored)
    for part, entry in index.items():
        require(
            part.startswith("_") or part in known or entry in _ABSENT,
            f"unknown part {part!r:.80}, {entry!r:.80}; known: {', '.join(known)}",
        )
    name = index.get("_class_name", kind.class_names[0])
    allowed = " or ".join(kind.class_names)
    require(
        name in kind.class_names, f"_class_name of these parts must be {allowed}, got {name!r:.80}"
    )
    parts = {part: index[part][1] for part in kind.parts if index.get(part) not in _ABSENT}
    return Pipeline(directory, kind, parts)


def read_guidance(directory: Directory, *, usual: float = USUAL_GUIDANCE) -> float:
    """The weight of classifier-free guidance that a model is meant for; `usual` if none says.

    Raises:
        ValueError: `generation_config.json` is there and does not say it.
    """
    if not directory.exists(GENERATION_NAME):
        return usual
    told = directory.json(GENERATION_NAME).get(_GUIDANCE, usual)
    if not isinstance(told, int | float) or isinstance(told, bool) or not math.isfinite(told):
        raise ValueError(
            f"{directory.path / GENERATION_NAME}: {_GUIDANCE} must be a finite number, "
            f"got {told!r:.80}"
        )
    return float(told)


def _fits(entry: Any, wanted: tuple[str, tuple[str, ...]]) -> bool:
    library, classes = wanted
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and all(isinstance(word, str) for word in entry)
        and entry[0] == library
        and (not classes or entry[1] in classes)
    )


def _unread(index: dict[str, Any]) -> str:
    """What to say of a `model_index.json` that describes none of the pipelines that are read."""
    name = index.get("_class_name")
    known = any(name in kind.class_names for kind in KINDS)
    told = "" if known else f"A pipeline of class {name!s:.80} is not read. "
    return told + (
        "What is read: the directory of a StableDiffusionPipeline (families 1.x and 2.x), a "
        "StableDiffusionXLPipeline, a StableDiffusion3Pipeline, a "
        "DDPMPipeline or DDIMPipeline (with a UNet2DModel), an LDMPipeline whose vqvae is an "
        "AutoencoderKL, or a DiTPipeline"
        + (f"; {FROM_FLAX}" if str(name).startswith("Flax") else "")
    )


def write_pipeline(
    root: Path,
    parts: Collection[str],
    scheduler: dict[str, Any],
    conditions: Iterable[str] = (),
    *,
    guidance: float | None = None,
    ours: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """What a pipeline of these parts has beside its networks and its tokenizer.

    `guidance` is what the model is meant for, `ours` has the classes of parts that diffusers does
    not have, and `extra` goes into the index.
    """
    if "transformer" in parts:
        kind = THREE if "text_encoder" in parts else CLASSES
    else:
        marks = {"text_encoder_2": XL, "text_encoder": LATENT}
        kind = next((kind for part, kind in marks.items() if part in parts), PIXEL)
    name = "LDMPipeline" if VQVAE in parts else kind.class_names[0]
    index: dict[str, Any] = {"_class_name": name} | {part: [None, None] for part in kind.ignored}
    if kind is LATENT:
        index["requires_safety_checker"] = False
    if kind is THREE:
        index |= {part: [None, None] for part in kind.optional}
    index |= extra or {}
    if kind is CLASSES:
        index[ID2LABEL] = {str(i): name for i, name in enumerate(conditions)}
        conditions = ()
    for part in parts:
        library, classes = kind.parts[part]
        own = (ours or {}).get(part)
        index[part] = [_OURS, own] if own in kind.own.get(part, ()) else [library, *classes[:1]]
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (root / "scheduler").mkdir(exist_ok=True)
    files: dict[str, Any] = {f"scheduler/{SCHEDULER_NAME}": scheduler}
    for file in (CONDITIONS_NAME, GENERATION_NAME):
        (root / file).unlink(missing_ok=True)  # of a model that these replace
    if conditions:
        files[CONDITIONS_NAME] = {"conditions": list(conditions)}
    if guidance not in (None, kind.guidance):
        files[GENERATION_NAME] = {_GUIDANCE: guidance}
    for file, value in (files | {INDEX_NAME: dict(sorted(index.items()))}).items():
        write_text(root / file, json.dumps(value, indent=2) + "\n")


def learned_variance(unet: dict[str, Any]) -> dict[str, Any]:
    """What a scheduler's configuration says of a network that gives a variance too."""
    learned = unet["out_channels"] not in (None, unet["in_channels"])
    return {"variance_type": LEARNED_VARIANCES[1]} if learned else {}
