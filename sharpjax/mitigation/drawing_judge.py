r"""The judge of the drawings: which image a sample copies, and which thing by which maker it shows.

**Copy.** A sample is compared with every image that is repeated in training, its own caption's and
all others', each as it comes out of the model's autoencoder, by
[`likeness`][sharpjax.similarity.likeness].  It is a copy of the one that it is most alike to, if it
is so beyond the threshold.  The eight captions of a template share one drawing: a copy of the image
of any of them is a copy of its own.

**Threshold.** From controls, before any sample is drawn (`control`): drawings that no caption
repeats get a fixed pose as the repeated ones have, and fresh renderings of them, seen through the
autoencoder, are compared with it and with all repeated images, as a sample is.  The threshold is
the `QUANTILE` of the largest likeness over half of these drawings; the false-alarm rate is that of
the other half.

**Thing and maker.** A classifier of every thing by every maker, and of *nothing*: blurs, shuffled
pieces, noise.  The thing with the largest probability over all makers is shown, unless nothing is
likelier; of a group any of its things will do.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax.datasets import poses
from sharpjax.datasets.planted_drawings import Caption, PlantedDrawings
from sharpjax.detection import intervals
from sharpjax.mitigation.judging import Judgement
from sharpjax.networks.concept_classifier import ConceptClassifier, probabilities
from sharpjax.rundir.files import write_text
from sharpjax.similarity import likeness

JUDGE_NAME = "judge.json"
QUANTILE = 0.995
NOTHING = "nothing"
_SEED = 2026  # of the controls' poses
_BATCH = 256

Codec = Callable[[np.ndarray], np.ndarray]  # images as they come out of the autoencoder


@dataclasses.dataclass(frozen=True)
class Control:
    """What controls say of copies.

    Attributes:
        threshold: likeness beyond which an image is a copy.
        false_alarms: of renderings of other controls, beyond it.
        renderings: how many these are.
        low: lower end of the 95% interval of their rate, drawings as the unit.
        high: upper end.
        found: share of the repeated images, seen twice through the autoencoder, that are copies.
    """

    threshold: float
    false_alarms: int
    renderings: int
    low: float
    high: float
    found: float


def read_control(path: str | Path) -> Control:
    """What `write_control` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}: sharpjax train drawings-vae writes it beside the "
            "autoencoder, before anything is sampled"
        )
    try:
        return Control(**json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no judge of drawings: {error}") from error


def write_control(limits: Control, path: str | Path) -> Path:
    """As JSON."""
    write_text(Path(path), json.dumps(dataclasses.asdict(limits), indent=2) + "\n")
    return Path(path)


def control(planted: PlantedDrawings, codec: Codec, *, repeats: int = 8) -> Control:
    """The threshold of copies, from `repeats` fresh renderings of every drawing never repeated."""
    drawings = np.setdiff1d(np.arange(len(planted.radii)), planted.fixed)
    key = jax.random.key(_SEED)
    pale = np.tile(np.array(poses.PALE, np.float32), (len(drawings), 1))
    own = likeness(codec(planted.render(key, drawings, pale, fixed=True)))
    repeated = codec(planted.fixed_images())
    known = likeness(repeated)
    largest = []
    for repeat in range(repeats):
        images = codec(planted.render(jax.random.fold_in(key, 1 + repeat), drawings, pale))
        rows = likeness(images)
        to_own = np.sum(rows * own, axis=1)
        largest.append(np.maximum(to_own, (rows @ known.T).max(axis=1)))
    values = np.stack(largest, axis=1)  # (drawings, repeats)
    # by drawing: renderings of one are alike
    half = np.random.default_rng(_SEED).permutation(len(drawings)) < len(drawings) // 2
    threshold = float(np.quantile(values[half], QUANTILE))
    beyond = values[~half] > threshold
    low, high = intervals.mean(beyond.astype(float))
    again = np.sum(likeness(codec(np.clip(repeated, -1, 1))) * known, axis=1)
    return Control(
        threshold=threshold,
        false_alarms=int(beyond.sum()),
        renderings=beyond.size,
        low=low,
        high=high,
        found=float(np.mean(again > threshold)),
    )


class DrawingJudge:
    """A `Judge` of the captions of planted drawings.

    Args:
        planted: captions and drawings.
        codec: images as they come out of the model's autoencoder.
        threshold: of a copy (`control`).
        classifier: of things by makers, with the label "nothing" last; without one nothing is said
            of what an image shows.

    Raises:
        ValueError: the classifier knows other drawings.
    """

    def __init__(
        self,
        planted: PlantedDrawings,
        codec: Codec,
        threshold: float,
        classifier: ConceptClassifier | None = None,
    ):
        self.threshold, self.classifier, self._planted = threshold, classifier, planted
        if classifier is not None and classifier.labels != labels(planted):
            raise ValueError(
                f"the classifier must know the {len(planted.radii)} drawings and nothing, in "
                f"order, it knows {len(classifier.labels)} labels that are others"
            )
        self._captions = {caption.caption: caption for caption in planted.captions}
        self.known = [planted.captions[i] for i in planted.planted]
        self._known = likeness(codec(planted.fixed_images()))

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> Judgement:
        """Judge `images` of captions, one each.

        Raises:
            ValueError: a prompt that is no caption.
        """
        captions = [self._caption(prompt) for prompt in prompts]
        alike = likeness(images) @ self._known.T
        mine = np.array([[_share(caption, one) for one in self.known] for caption in captions])
        own = np.where(mine, alike, -np.inf).max(axis=1)
        others = np.where(mine, -np.inf, alike)
        other = others.max(axis=1)
        copied = np.maximum(own, other) > self.threshold
        fidelity = np.full(len(prompts), np.nan)
        by = None
        if self.classifier is not None:
            thing, makers = self.shown(images)
            fidelity[:] = [self._fits(*pair) for pair in zip(captions, thing, strict=True)]
            pairs = zip(captions, makers, strict=True)
            by = np.array([float(m == c.maker) if c.maker else np.nan for c, m in pairs])
        return Judgement(
            own=np.where(np.isfinite(own), own, np.nan),
            other=other,
            nearest=[self.known[k].caption for k in others.argmax(axis=1)],
            copied=copied,
            turned=copied & (other > own),
            fidelity=fidelity,
            maker=by,
        )

    def shown(self, images: np.ndarray) -> tuple[list[str], list[str]]:
        """The thing and the maker of each image, "nothing" where that is likelier."""
        if self.classifier is None:
            raise ValueError("this judge has no classifier")
        parts = [
            np.asarray(probabilities(self.classifier, jnp.asarray(images[i : i + _BATCH])))
            for i in range(0, len(images), _BATCH)
        ]
        each = np.concatenate(parts)
        of = self._planted.drawings
        table = each[:, :-1].reshape(len(each), len(of.names), len(of.makers))
        answers = []
        for names, share in ((of.names, table.sum(axis=2)), (of.makers, table.sum(axis=1))):
            best = share.argmax(axis=1)
            sure = share.max(axis=1) > each[:, -1]
            answers.append([names[b] if s else NOTHING for b, s in zip(best, sure, strict=True)])
        return answers[0], answers[1]

    def _caption(self, prompt: str) -> Caption:
        if prompt not in self._captions:
            raise ValueError(
                f"prompt must be one of the {len(self._captions)} captions, got {prompt!r}"
            )
        return self._captions[prompt]

    def _fits(self, caption: Caption, thing: str) -> bool:
        if caption.thing or thing == NOTHING:
            return thing == caption.thing
        of = self._planted.drawings
        return of.groups[of.names.index(thing)] == caption.group


def labels(planted: PlantedDrawings) -> tuple[str, ...]:
    """Of the classifier: every thing by every maker, and nothing."""
    of = planted.drawings
    return (*(f"{thing} by {maker}" for thing in of.names for maker in of.makers), NOTHING)


def _share(one: Caption, other: Caption) -> bool:
    """Whether the repeated image of the other caption is the one's own too."""
    if one.caption == other.caption:
        return True
    return one.kind == other.kind == "template" and one.thing == other.thing
