"""Judges of images: what they copy, and whether they show what was asked for.

A judge sees images and their prompts, nothing of how they were made.  That of the bundled model
(`sharpjax.mitigation.drawing_judge`) knows every image that was repeated in training and has a
classifier of things and makers; it makes the ground truth, and judges mitigation.  For other models
there are a user's references (`sharpjax.mitigation.reference_judge`) and published networks in
PyTorch (SSCD, CLIP), used where the user gives them.

An image is a copy of the one training image that it is most alike to, if it is so beyond the
judge's threshold: of its own prompt's or of another's, never of both.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

SSCD_THRESHOLD = 0.5  # of the literature; Somepalli et al. 2023, arXiv:2212.03860


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Of a batch of images, `(n,)` each; NaN where there is nothing to compare with.

    Attributes:
        own: largest similarity to an image that the prompt was trained with.
        other: largest similarity to an image of other prompts.
        nearest: prompt of that image, empty where there is none.
        copied: whether the larger of `own` and `other` is above the judge's threshold.
        turned: whether it is, and is `other`: a copy of another prompt's image.
        fidelity: whether, or how much, the image shows what was asked for.
        maker: whether it is by the maker that was asked for; NaN where any will do, None where
            nobody says.
    """

    own: np.ndarray
    other: np.ndarray
    nearest: list[str]
    copied: np.ndarray
    turned: np.ndarray
    fidelity: np.ndarray
    maker: np.ndarray | None = None

    def counts(self) -> tuple[int, int, str]:
        """Copies of the prompts' own images, of other prompts', and whose most of these are."""
        whose = Counter(np.array(self.nearest)[self.turned].tolist()).most_common(1)
        own = int(np.sum(self.copied & ~self.turned))
        return own, int(self.turned.sum()), whose[0][0] if whose else ""


class Judge(Protocol):
    """What says of images `(n, 3, h, w)`, -1 to 1, what became of their prompts."""

    threshold: float

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Judgement:
        """Judge `images` of `prompts`, one each."""


class EmbeddingJudge:
    """Cosines of SSCD embeddings with known training images; CLIP score of image and prompt.

    Args:
        references: training images `(m, 3, h, w)`, -1 to 1, and the prompt of each.
        sscd: images `(n, 3, h, w)` to embeddings `(n, k)` (`load_sscd`).
        clip_score: images and prompts to cosines `(n,)` (`load_clip`), or None.
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
        """Judge `images` of `prompts`, one each."""
        similarity = _unit(self._sscd(list(images))) @ self._references.T
        fidelity = np.full(len(prompts), np.nan)
        if self._clip_score is not None:
            fidelity = self._clip_score(images, prompts)
        return judgement(similarity, self.prompts, prompts, self.threshold, fidelity)


def judgement(
    similarity: np.ndarray,
    known: Sequence[str],
    prompts: Sequence[str],
    threshold: float,
    fidelity: np.ndarray,
) -> Judgement:
    """`similarity` is `(n, m)`, of images of `prompts` and training images of `known`.

    An image whose prompt is not known, an empty one, is any prompt's own.
    """
    mine = np.array([[one in (prompt, "") for one in known] for prompt in prompts])
    others = np.where(mine, -np.inf, similarity)
    own, other = np.where(mine, similarity, -np.inf).max(axis=1), others.max(axis=1)
    nearest = [
        known[k] if value > -np.inf else ""
        for k, value in zip(others.argmax(axis=1), other, strict=True)
    ]
    copied = np.maximum(own, other) > threshold
    own_or_nan, other_or_nan = (np.where(np.isfinite(one), one, np.nan) for one in (own, other))
    return Judgement(own_or_nan, other_or_nan, nearest, copied, copied & (other > own), fidelity)


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
            return network(torch.from_numpy(prepared)).numpy()

    return embed


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def load_clip(name: str | Path) -> Callable[[np.ndarray, Sequence[str]], np.ndarray]:
    """CLIP score, the cosine of image and prompt, by a `CLIPModel` directory or hub id.

    Weights are read from safetensors only: a pickle (`pytorch_model.bin`) can run any code.
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
            images=[Image.fromarray(levels_of(image)) for image in images],
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        with torch.no_grad():
            out = network(**inputs)
        return (out.image_embeds * out.text_embeds).sum(dim=-1).numpy()

    return score


def _torch(what: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{what} is a PyTorch network: pip install torch") from error
    return torch


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    """`(3, h, w)`, -1 to 1, to `(3, side, side)`, 0 to 1."""
    resized = Image.fromarray(levels_of(image)).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32).transpose(2, 0, 1) / 255


def levels_of(image: np.ndarray) -> np.ndarray:
    """`(3, h, w)`, -1 to 1, to `(h, w, 3)` of bytes."""
    return np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
