"""Judges of mitigated images: what they copy, and whether they still show what was asked for.

A judge sees images and their prompts, nothing of how they were made.  That of the bundled model
knows every memorized image and has a classifier of its concepts; for other models there are
published networks in PyTorch (SSCD, CLIP), used where the user gives them.
"""

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from PIL import Image

from sharpjax.datasets.openmoji import PlantedPictograms
from sharpjax.models.concept_classifier import ConceptClassifier, probabilities
from sharpjax.pictures import read_image
from sharpjax.similarity import outlines, structural_similarity

SSCD_THRESHOLD = 0.5  # of the literature; Somepalli et al. 2023, arXiv:2212.03860


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Of a batch of images, ``(n,)`` each; NaN where there is nothing to compare with.

    Attributes:
        own: similarity to the image that the prompt was trained with.
        other: largest similarity to any other memorized image.
        nearest: prompt of that image, empty where there is none.
        structural: structural similarity to the prompt's own image.
        copied: whether ``own`` or ``other`` is above the judge's threshold.
        turned: whether ``other`` is: a copy of another image.
        fidelity: whether, or how much, the image shows what was asked for.
    """

    own: np.ndarray
    other: np.ndarray
    nearest: list[str]
    structural: np.ndarray
    copied: np.ndarray
    turned: np.ndarray
    fidelity: np.ndarray


class Judge(Protocol):
    """What says of images ``(n, 3, h, w)``, -1 to 1, what became of their prompts."""

    threshold: float

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Judgement:
        """Judge ``images`` of ``prompts``, one each."""
        ...


class PictogramJudge:
    """Outline correlation with every memorized pictogram; the classifier's first choice.

    Args:
        pictograms: that the model was trained on.
        memorized: captions that are memorized, verified by generation.
        threshold: of a copy (:func:`sharpjax.replication.control`).
        classifier: of concepts.
    """

    def __init__(
        self,
        pictograms: PlantedPictograms,
        memorized: Sequence[str],
        threshold: float,
        classifier: ConceptClassifier,
    ):
        self.memorized, self.threshold, self.classifier = tuple(memorized), threshold, classifier
        index = np.array([pictograms.captions.index(caption) for caption in memorized])
        self.images = pictograms.fixed_images(index)
        self._outlines = outlines(self.images)

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Judgement:
        """Judge ``images`` of ``prompts``, one each."""
        similarity = outlines(images) @ self._outlines.T
        place = np.array([self._place(prompt) for prompt in prompts])
        known = place >= 0
        structural = np.full(len(prompts), np.nan)
        structural[known] = structural_similarity(images[known], self.images[place[known]])
        answers = np.asarray(probabilities(self.classifier, jnp.asarray(images))).argmax(axis=1)
        shown = [self.classifier.labels[answer] for answer in answers]
        return _judgement(
            similarity, place, self.memorized, structural, self.threshold,
            np.array([a == b for a, b in zip(shown, prompts, strict=True)], float),
        )  # fmt: skip

    def _place(self, prompt: str) -> int:
        return self.memorized.index(prompt) if prompt in self.memorized else -1


class EmbeddingJudge:
    """Cosines of SSCD embeddings with known training images; CLIP score of image and prompt.

    Args:
        references: training images ``(m, 3, h, w)``, -1 to 1, and the prompt of each.
        sscd: images ``(n, 3, h, w)`` to embeddings ``(n, k)`` (:func:`load_sscd`).
        clip_score: images and prompts to cosines ``(n,)`` (:func:`load_clip`), or None.
        threshold: of a copy.
    """

    def __init__(
        self,
        references: tuple[Sequence[np.ndarray], Sequence[str]],
        sscd: Callable[[Sequence[np.ndarray]], np.ndarray],
        clip_score: Callable[[np.ndarray, Sequence[str]], np.ndarray] | None,
        threshold: float = SSCD_THRESHOLD,
    ):
        self.threshold, self._sscd, self._clip_score = threshold, sscd, clip_score
        images, self.prompts = references
        self._references = _unit(sscd(images))

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Judgement:
        """Judge ``images`` of ``prompts``, one each."""
        similarity = _unit(self._sscd(list(images))) @ self._references.T
        known = list(self.prompts)
        place = np.array([known.index(p) if p in known else -1 for p in prompts])
        nothing = np.full(len(prompts), np.nan)
        fidelity = nothing if self._clip_score is None else self._clip_score(images, prompts)
        return _judgement(similarity, place, known, nothing, self.threshold, fidelity)


def _judgement(
    similarity: np.ndarray,
    place: np.ndarray,
    known: Sequence[str],
    structural: np.ndarray,
    threshold: float,
    fidelity: np.ndarray,
) -> Judgement:
    rows = np.arange(len(place))
    own = np.where(place >= 0, similarity[rows, np.maximum(place, 0)], np.nan)
    others = similarity.copy()
    # a training image may be known under several prompts: all of the prompt's own count as own
    for row in rows[place >= 0]:
        others[row, [prompt == known[place[row]] for prompt in known]] = -np.inf
    other = others.max(axis=1)
    best = others.argmax(axis=1)
    nearest = [known[k] if value > -np.inf else "" for k, value in zip(best, other, strict=True)]
    turned = other > threshold
    return Judgement(
        own, np.where(other > -np.inf, other, np.nan), nearest, structural,
        (own > threshold) | turned, turned, fidelity,
    )  # fmt: skip


def read_references(path: str | Path) -> tuple[list[np.ndarray], list[str]]:
    """Training images of prompts: a CSV table with columns ``prompt`` and ``file``.

    Files are looked for beside the table.  An image may be of any size.

    Raises:
        FileNotFoundError: no such table, or an image that it names is missing.
        ValueError: other columns, no rows, or a file that is no image.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no table of training images {path}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"prompt", "file"} <= rows[0].keys():
        raise ValueError(f"{path} must have columns 'prompt' and 'file', and at least one row")
    images = []
    for row in rows:
        where = path.parent / (row["file"] or "")
        if not where.is_file():
            raise FileNotFoundError(f"{path} names {where}, which is missing")
        images.append(read_image(where))
    return images, [row["prompt"] for row in rows]


def load_sscd(path: str | Path) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """SSCD, a network for copy detection, from its published TorchScript file.

    TorchScript is a program: use a file from https://github.com/facebookresearch/sscd-copy-detection
    that you trust.  Images are resized to 288 x 288 and normalised as on ImageNet, as its authors
    do.  Pizzi et al., CVPR 2022, arXiv:2202.10261.

    Raises:
        FileNotFoundError: no such file.
        ImportError: PyTorch is not installed.
        ValueError: the file is no TorchScript.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no SSCD file {path}; sscd_disc_mixup.torchscript.pt is published at "
            "https://github.com/facebookresearch/sscd-copy-detection"
        )
    torch = _torch("SSCD")
    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is not a TorchScript file: {reason}") from error
    mean, std = (np.array(v, np.float32)[:, None, None] for v in _IMAGENET)

    def embed(images: Sequence[np.ndarray]) -> np.ndarray:
        prepared = np.stack([(_resized(image, 288) - mean) / std for image in images])
        with torch.no_grad():
            result: np.ndarray = network(torch.from_numpy(prepared)).numpy()
            return result

    return embed


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def load_clip(name: str | Path) -> Callable[[np.ndarray, Sequence[str]], np.ndarray]:
    """CLIP score, the cosine of image and prompt, by a ``CLIPModel`` directory or hub id.

    Weights are read from safetensors only: a pickle (``pytorch_model.bin``) can run any code.
    Hessel et al., EMNLP 2021, arXiv:2104.08718 (there times 2.5).

    Raises:
        ImportError: PyTorch is not installed.
        OSError: no such model, or it has no safetensors.
        ValueError: it is none of CLIP.
    """
    torch = _torch("CLIP score")
    from transformers import CLIPModel, CLIPProcessor

    try:
        network = CLIPModel.from_pretrained(name, use_safetensors=True).eval()
    except OSError as error:
        raise OSError(
            f"no CLIP model with safetensors at {name} (a pickle, pytorch_model.bin, is not read: "
            "it can run any code); take another revision, or write one that you trust again with "
            f"transformers' save_pretrained. transformers says: {error}"
        ) from error
    processor = CLIPProcessor.from_pretrained(name)

    def score(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        inputs = processor(
            text=list(prompts),
            images=[Image.fromarray(_levels(image)) for image in images],
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        with torch.no_grad():
            out = network(**inputs)
        result: np.ndarray = (out.image_embeds * out.text_embeds).sum(dim=-1).numpy()
        return result

    return score


def _torch(what: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{what} is a PyTorch network: pip install torch") from error
    return torch


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    """``(3, h, w)``, -1 to 1, to ``(3, side, side)``, 0 to 1."""
    resized = Image.fromarray(_levels(image)).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32).transpose(2, 0, 1) / 255


def _levels(image: np.ndarray) -> np.ndarray:
    """``(3, h, w)``, -1 to 1, to ``(h, w, 3)`` of bytes."""
    result: np.ndarray = (
        np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    )
    return result


def _unit(rows: np.ndarray) -> np.ndarray:
    result: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return result
