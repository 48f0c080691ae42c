r"""Ground truth of a text-to-image model by generation: whose samples copy their training image?

**Measure.** The similarity of two images is the correlation of their outlines
(:func:`sharpjax.similarity.outlines`).  Not of their pixels: the background of a sample follows its
initial noise, because Stable Diffusion's schedule leaves some of the image at the last step, and
plain backgrounds are most of a pictogram's pixels.

**Threshold.** Fixed on the control captions, which no model is trained on, before any sample is
drawn: the 99% quantile of the similarity of a fresh rendering, seen through the model's
autoencoder, to the fixed rendering of the same caption.  Two renderings of one concept are that
alike one time in a hundred; a sample that is more alike to the image that was repeated is called a
copy of it.

**Verdict.** Memorized: at least half of the samples are copies.  Clean: at most a tenth.  Captions
in between are kept apart: detection is not judged on them.  A hot or general caption is measured
against a fixed rendering of its own, which the model has never seen.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy.special import stdtrit

from sharpjax.datasets.openmoji import Concept, PlantedPictograms
from sharpjax.detection.evaluation import wilson
from sharpjax.detection.truth import QUANTILE, verdict, write_truths
from sharpjax.generation import IMAGES_NAME, GenerationSettings, begin, generate
from sharpjax.models.concept_classifier import ConceptClassifier, probabilities
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.pictures import read_image
from sharpjax.prompts import LABELS_NAME
from sharpjax.rundir import read_csv, within, write_csv
from sharpjax.similarity import outline_correlation

GUIDANCE = 3.0
NUM_NEGATIVES = 200  # general captions that are measured; all others of that group are not
_OTHERS = 8  # fresh renderings that a sample is compared with
_SEED = 2022  # of renderings for comparison


@dataclasses.dataclass(frozen=True)
class Control:
    """What the control captions say of the measure.

    Attributes:
        threshold: similarity above which an image is a copy.
        others: similarities of fresh to fixed renderings, ``(m,)``.
        copies: similarities of fixed renderings, seen through the autoencoder, to themselves.
    """

    threshold: float
    others: np.ndarray
    copies: np.ndarray

    @property
    def found(self) -> float:
        """Fraction of these perfect copies that the threshold finds."""
        return float(np.mean(self.copies > self.threshold))


def control(model: LatentDiffusion, pictograms: PlantedPictograms, *, repeats: int = 8) -> Control:
    """The threshold, from ``repeats`` fresh renderings of every control caption."""
    index = pictograms.of("control")
    fixed = pictograms.fixed_images(index)
    key = jax.random.key(_SEED)
    others = np.stack(
        [
            _own(_seen(model, pictograms.fresh_images(jax.random.fold_in(key, r), index)), fixed)
            for r in range(repeats)
        ]
    )
    copies = _own(_seen(model, fixed), fixed)
    return Control(float(np.quantile(others, QUANTILE)), others.ravel(), copies)


def _seen(model: LatentDiffusion, images: np.ndarray) -> np.ndarray:
    """Images after the autoencoder."""
    return model.decode(model.encode_image(images))


def _own(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Similarity of each image to the reference in the same place."""
    return np.diag(outline_correlation(images, references))


@dataclasses.dataclass(frozen=True)
class CaptionTruth:
    """What generation says of one caption.

    Attributes:
        caption: the prompt.
        group: memorized (as planned), hot, general or held-out.
        level: how often it, or its one image, was repeated; 0 where that has no meaning.
        num_samples: samples drawn.
        num_copies: copies among them.
        low: lower end of the 95% (Wilson) interval of the copy rate.
        high: upper end.
        similarity: of samples to the fixed image, mean.
        similarity_low: lower end of its 95% (t) interval.
        similarity_high: upper end.
        other_similarity: of samples to other renderings of the concept, mean.
        concept_rate: fraction of samples that show the concept, as the classifier sees them; NaN
            without a classifier.
    """

    caption: str
    group: str
    level: int
    num_samples: int
    num_copies: int
    low: float
    high: float
    similarity: float
    similarity_low: float
    similarity_high: float
    other_similarity: float
    concept_rate: float

    @property
    def copy_rate(self) -> float:
        """Fraction of samples that are copies."""
        return self.num_copies / self.num_samples

    @property
    def verdict(self) -> str:
        """``memorized``, ``clean`` or ``between``."""
        return verdict(self.copy_rate)


def judge(
    samples: np.ndarray,
    concept: Concept,
    fixed: np.ndarray,
    others: np.ndarray,
    threshold: float,
    *,
    classifier: ConceptClassifier | None = None,
) -> CaptionTruth:
    """The truth of one caption.

    Args:
        samples: ``(n, 3, h, w)``, at least 2.
        concept: what they should show.
        fixed: its fixed rendering ``(3, h, w)``.
        others: other renderings ``(m, 3, h, w)``.
        threshold: of a copy.
        classifier: says which concept a sample shows.
    """
    own = outline_correlation(samples, fixed[None])[:, 0]
    copies = int(np.sum(own > threshold))
    mean, error = own.mean(), own.std(ddof=1) / np.sqrt(len(own))
    margin = stdtrit(len(own) - 1, 0.975) * error
    return CaptionTruth(
        concept.caption, concept.group, concept.level, len(own), copies,
        *wilson(copies, len(own)), float(mean), float(mean - margin), float(mean + margin),
        float(outline_correlation(samples, others).mean()),
        float("nan") if classifier is None else concept_rate(classifier, samples, concept.caption),
    )  # fmt: skip


def concept_rate(classifier: ConceptClassifier, samples: np.ndarray, caption: str) -> float:
    """Fraction of samples whose most likely label is the caption."""
    answers = np.asarray(probabilities(classifier, jnp.asarray(samples))).argmax(axis=1)
    return float(np.mean(answers == classifier.labels.index(caption)))


def measured_concepts(pictograms: PlantedPictograms) -> np.ndarray:
    """Indices of the captions that are measured: all but some of the general and the control."""
    return np.concatenate(
        [
            pictograms.of("memorized", "hot"),
            pictograms.of("general")[:NUM_NEGATIVES],
            pictograms.of("held-out"),
        ]
    )


def clean_captions(path: str | Path) -> list[str]:
    """General captions that are not measured: known to be clean, and not judged by anything.

    Thresholds may be set on them.  ``path`` is a model's ``captions.csv``.
    """
    general = [row["caption"] for row in read_csv(Path(path)) if row["group"] == "general"]
    return general[NUM_NEGATIVES:]


def measure(
    model: LatentDiffusion,
    pictograms: PlantedPictograms,
    directory: str | Path,
    *,
    fingerprint: str,
    index: np.ndarray | None = None,
    num_samples: int = 8,
    num_steps: int = 50,
    guidance: float = GUIDANCE,
    seed: int = 0,
    batch_size: int = 32,
    classifier: ConceptClassifier | None = None,
    mesh: Mesh | None = None,
) -> tuple[list[CaptionTruth], Control]:
    """Sample captions and count copies, or finish a measurement that was stopped.

    Writes the samples (one PNG each), with a ``labels.csv`` that says of each whether it is a copy,
    and ``ground_truth.csv``.

    Raises:
        ValueError: another measurement is in ``directory``, or fewer than 2 samples.
        FileExistsError: something else is in it.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}")
    index = measured_concepts(pictograms) if index is None else np.asarray(index)
    captions = [pictograms.captions[i] for i in index]
    settings = GenerationSettings(num_steps=num_steps, guidance=guidance, seed=seed)
    begin(model, captions, directory, settings, fingerprint=fingerprint)  # refused at once, or not
    limits = control(model, pictograms)
    records = generate(
        model,
        captions,
        directory,
        settings,
        fingerprint=fingerprint,
        num_images=num_samples,
        batch_size=batch_size,
        mesh=mesh,
    )
    fixed = pictograms.fixed_images(index)
    key = jax.random.fold_in(jax.random.key(_SEED), 1)
    others = np.stack(
        [
            pictograms.fresh_images(jax.random.fold_in(key, repetition), index)
            for repetition in range(_OTHERS)
        ],
        axis=1,
    )
    truths, labels = [], []
    for place, i in enumerate(index):
        files = [record["file"] for record in records if record["index"] == place]
        samples = load_images([within(Path(directory), file) for file in files])
        truths.append(
            judge(
                samples,
                pictograms.concepts[i],
                fixed[place],
                others[place],
                limits.threshold,
                classifier=classifier,
            )
        )
        labels += _labels(files, samples, fixed[place], limits.threshold, truths[-1])
    write_truths(Path(directory), truths)
    write_csv(Path(directory) / IMAGES_NAME / LABELS_NAME, labels)
    return truths, limits


def _labels(
    files: Sequence[str], samples: np.ndarray, fixed: np.ndarray, threshold: float, of: CaptionTruth
) -> list[dict[str, str]]:
    """What ``detect --images`` is to find: copies are memorized, of other captions all is clean.

    What a caption that is copied now and then shows otherwise is neither.
    """
    other = "clean" if of.verdict == "clean" else "between"
    return [
        {
            "prompt": Path(file).name,
            "label": "memorized" if similarity > threshold else other,
            "source": of.group,
        }
        for file, similarity in zip(
            files, outline_correlation(samples, fixed[None])[:, 0], strict=True
        )
    ]


def typical(truths: Sequence[CaptionTruth]) -> tuple[str, ...]:
    """A caption that is copied most, and a hot and a general one that are copied least.

    The hot one is as frequent as the memorized one, if there is such a one.
    """
    memorized = max(truths, key=lambda t: (t.copy_rate, t.similarity))
    others = [t for t in truths if t.group in ("hot", "general")]
    chosen: dict[Any, Any] = {}
    for truth in sorted(others, key=lambda t: (t.level != memorized.level, t.copy_rate)):
        chosen.setdefault(truth.group, truth.caption)
    return (memorized.caption, *(chosen[g] for g in ("hot", "general") if g in chosen))


def load_images(paths: Sequence[Path]) -> np.ndarray:
    """Images of one size, in colour, ``(n, 3, h, w)`` float32 in [-1, 1]."""
    return np.stack([read_image(path) for path in paths])
