r"""Ground truth by generation: a condition is memorized if its samples are copies.

**Measure.** The similarity of two images is the Pearson correlation of their pixels; a sample's
similarity to a condition is the largest over the condition's training images.

**Threshold.** Fixed per digit on the 256-image sets alone, before any sample is drawn: the 99%
quantile, over these images, of the similarity of an image to its nearest *other* image in the
set.  Two different people's digits are that alike one time in a hundred; a sample that is more
alike is called a copy.  For a smaller set the nearest of fewer images is less alike by chance, so
there the threshold is the stricter.

**Verdict.** Memorized: at least half of the samples are copies.  Not memorized: at most a tenth.
Conditions in between are kept apart: detection is not judged on them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from sharpjax.conditional import ConditionalModel
from sharpjax.detection.evaluation import wilson
from sharpjax.detection.oracle import TrainingSet
from sharpjax.pictures import read_picture, write_png
from sharpjax.progress import progress
from sharpjax.rundir import append_lines, claim, make_folder, read_csv, read_lines, write_csv
from sharpjax.similarity import pixel_correlation

TRUTH_NAME = "ground_truth.csv"
QUANTILE = 0.99
MEMORIZED_RATE = 0.5
CLEAN_RATE = 0.1


@dataclasses.dataclass(frozen=True)
class Truth:
    """What generation says of one condition.

    Attributes:
        condition: its name.
        set_size: number of its training images.
        threshold: similarity above which a sample counts as a copy.
        num_samples: samples drawn.
        num_copies: copies among them.
        low: lower end of the 95% (Wilson) interval of the copy rate.
        high: upper end.
        mean_similarity: of the samples to their nearest training image.
    """

    condition: str
    set_size: int
    threshold: float
    num_samples: int
    num_copies: int
    low: float
    high: float
    mean_similarity: float

    @property
    def copy_rate(self) -> float:
        """Fraction of samples that are copies."""
        return self.num_copies / self.num_samples

    @property
    def verdict(self) -> str:
        """``memorized``, ``clean`` or ``between``."""
        return verdict(self.copy_rate)


def verdict(copy_rate: float) -> str:
    """``memorized``, ``clean`` or ``between``.

    Raises:
        ValueError: the rate is outside [0, 1], or NaN.
    """
    if not 0 <= copy_rate <= 1:
        raise ValueError(f"copy_rate must lie in [0, 1], got {copy_rate}")
    if copy_rate >= MEMORIZED_RATE:
        return "memorized"
    return "clean" if copy_rate <= CLEAN_RATE else "between"


def copy_threshold(references: np.ndarray) -> float:
    """The ``QUANTILE`` of the similarity of an image to its nearest other, over a set.

    Raises:
        ValueError: fewer than two images.
    """
    if len(references) < 2:
        raise ValueError("a threshold needs a set of at least two images")
    between = pixel_correlation(references, references)
    np.fill_diagonal(between, -np.inf)
    return float(np.quantile(between.max(axis=1), QUANTILE))


def judge(
    samples: np.ndarray, name: str, references: np.ndarray, threshold: float
) -> tuple[Truth, np.ndarray]:
    """The truth of one condition, and the index of each sample's nearest training image.

    Raises:
        ValueError: a sample is not finite, and would pass for one that is no copy.
    """
    if not np.isfinite(samples).all():
        raise ValueError(f"samples of {name!r} are NaN or infinite: is the model damaged?")
    between = pixel_correlation(samples, references)
    nearest = between.max(axis=1)
    copies = int(np.sum(nearest > threshold))
    low, high = wilson(copies, len(samples))
    truth = Truth(
        name, len(references), threshold, len(samples), copies, low, high, float(nearest.mean())
    )
    return truth, between.argmax(axis=1)


def thresholds(training_set: TrainingSet, names: tuple[str, ...]) -> dict[str, float]:
    """The copy threshold of each digit (the first word of a name), from its largest set."""
    sizes = np.asarray(training_set.set_sizes)
    largest: dict[str, int] = {}
    for index, name in enumerate(names):
        group = name.split()[0]
        if group not in largest or sizes[index] > sizes[largest[group]]:
            largest[group] = index
    return {group: copy_threshold(training_set.of(index)) for group, index in largest.items()}


def measure_truth(
    model: ConditionalModel,
    names: tuple[str, ...],
    training_set: TrainingSet,
    directory: str | Path,
    *,
    fingerprint: str,
    num_samples: int = 32,
    num_steps: int = 50,
    seed: int = 0,
) -> list[Truth]:
    """Sample every condition and count copies, or finish a measurement that was stopped.

    Samples are DDIM without guidance: the conditional distribution that was learned.  They are
    kept as one PNG strip per condition in ``samples/``; the table is ``ground_truth.csv``.

    Raises:
        ValueError: another measurement is in ``directory``, or fewer than 2 samples.
        FileExistsError: something else is in it.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}")
    if training_set.num_conditions != len(names):
        raise ValueError(
            f"the training set has {training_set.num_conditions} conditions, the model {len(names)}"
        )
    folder = claim(
        directory,
        {
            "run": "ground-truth",
            "model": fingerprint,
            "num_samples": num_samples,
            "num_steps": num_steps,
            "seed": seed,
        },
        what="ground-truth",
    )
    make_folder(folder / "samples")
    path = folder / "results.jsonl"
    limit = thresholds(training_set, names)
    fields = {field.name for field in dataclasses.fields(Truth)}
    done = {line["condition"]: Truth(**line) for line in read_lines(path, fields)}
    labels = model.encode(names)
    with progress("sampling", total=len(names), done=len(done)) as bar:
        for index, name in enumerate(names):
            if name in done:
                continue
            key = jax.random.fold_in(jax.random.key(seed), index)
            samples = model.sample(
                labels[np.full(num_samples, index)], key, num_steps=num_steps,
                batch_size=num_samples,
            )  # fmt: skip
            save_strip(folder / "samples" / f"{index:03d}.png", samples)
            truth, _ = judge(samples, name, training_set.of(index), limit[name.split()[0]])
            append_lines(path, [dataclasses.asdict(truth)])
            done[name] = truth
            bar.advance(note=f"{name}: {truth.copy_rate:.0%} copies")
    truths = [done[name] for name in names]
    write_truths(folder, truths)
    return truths


def save_strip(path: Path, samples: np.ndarray) -> None:
    """Grey samples ``(n, 1, h, w)`` in ``[-1, 1]`` side by side in one PNG."""
    pixels = np.round((np.clip(samples[:, 0], -1, 1) + 1) * 127.5).astype(np.uint8)
    write_png(path, Image.fromarray(np.concatenate(list(pixels), axis=1)))


def load_strip(path: Path) -> np.ndarray:
    """The samples of :func:`save_strip`, square, ``(n, 1, h, h)`` in ``[-1, 1]``."""
    pixels = np.asarray(read_picture(path, "L"), np.float64) / 127.5 - 1
    height = pixels.shape[0]
    return pixels.reshape(height, -1, height).transpose(1, 0, 2)[:, None]


def write_truths(directory: str | Path, truths: Sequence[Any]) -> Path:
    """Write ``ground_truth.csv``: the fields of the records, their copy rates and verdicts."""
    path = Path(directory) / TRUTH_NAME
    columns = [field.name for field in dataclasses.fields(truths[0])] + ["copy_rate", "verdict"]
    rows = [{column: getattr(truth, column) for column in columns} for truth in truths]
    write_csv(
        path,
        [{k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
    )
    return path


def read_truths(directory: str | Path, kind: type[Any] = Truth) -> list[Any]:
    """Read ``ground_truth.csv``, whose records are of this ``kind``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a column is missing or not a number, or the file is not UTF-8.
    """
    path = Path(directory) / TRUTH_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no {TRUTH_NAME} in {directory}")
    rows = read_csv(path)
    fields = dataclasses.fields(kind)
    try:
        types: Any = {field.name: field.type for field in fields}  # float, str, int
        return [kind(**{name: types[name](row[name]) for name in types}) for row in rows]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def select_truths(truths: Sequence[Truth], names: Sequence[str]) -> list[Truth]:
    """The rows of these conditions, in their order.

    Raises:
        ValueError: there is none for one of them.
    """
    by_name = {truth.condition: truth for truth in truths}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(f"{TRUTH_NAME} has no row for condition {missing[0]!r}")
    return [by_name[name] for name in names]


def typical(truths: Sequence[Truth]) -> tuple[str, str]:
    """The condition that is copied most and, of those copied least, that of the largest set."""
    memorized = max(truths, key=lambda truth: (truth.copy_rate, truth.mean_similarity))
    kind = memorized.condition.split()[0]  # of the same digit, where the names say so

    def preference(truth: Truth) -> Any:
        return truth.copy_rate, -truth.set_size, truth.condition.split()[0] != kind

    return memorized.condition, min(truths, key=preference).condition
