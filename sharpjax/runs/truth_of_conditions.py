r"""Ground truth by generation: a condition is memorized if its samples are copies.

**Measure.** The similarity of two images is the Pearson correlation of their pixels; a sample's
similarity to a condition is the largest over the condition's training images.

**Threshold.** Fixed per digit on the 256-image sets alone, before any sample is drawn: the 99%
quantile, over these images, of the similarity of an image to its nearest *other* image in the
set.  Two different people's digits are that alike one time in a hundred; a sample that is more
alike is called a copy.  For a smaller set the nearest of fewer images is less alike by chance, so
there the threshold is the stricter.

**Verdict** (`verdict`).  *Memorized*: at least half of the samples are copies of the condition's
images.  *Clean*: copies are at most a tenth of the samples, or no more than chance explains.
Whatever is left is *between*.  Detection is judged on the first two alone.  Conditions are compared
with their own images only: the digits' sets are disjoint, and samples copy another set's images no
more often than chance (`docs/detection.md`).

**Chance.** A threshold that is a 99% quantile calls 1% of images copies that are none
(`FALSE_ALARM`).  Of n samples of a condition that copies nothing, at least k are called so
with the probability of a binomial tail, $P(X \ge k)$, $X \sim B(n, 0.01)$; a count is
evidence where that is at most `LEVEL`.  Of 8 samples one is none (0.077), two are (0.0027).
Beyond 20 samples the tenth is the wider of the two limits.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from scipy.special import bdtrc

from sharpjax.conditional import ConditionalModel
from sharpjax.detection import intervals
from sharpjax.detection.oracle import TrainingSet
from sharpjax.pictures import read_picture, write_png
from sharpjax.rundir.files import read_csv, write_csv
from sharpjax.rundir.run import Run
from sharpjax.similarity import pixel_correlation

TRUTH_NAME = "ground_truth.csv"
QUANTILE = 0.99
FALSE_ALARM = 1 - QUANTILE  # of the judge, by the choice of its threshold
LEVEL = 0.01  # chance that a condition which copies nothing is not called clean, at most
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
        """Fraction of samples that are copies of its own images."""
        return self.num_copies / self.num_samples

    @property
    def verdict(self) -> str:
        """`memorized`, `clean` or `between`."""
        return verdict(self.num_copies, self.num_samples)


def verdict(num_copies: int, num_samples: int) -> str:
    """`memorized`, `clean` or `between`, as at the head of this module.

    Raises:
        ValueError: a count is negative, or there are more copies than samples.

    >>> [verdict(copies, 8) for copies in (4, 3, 1)]
    ['memorized', 'between', 'clean']
    """
    if not (num_copies >= 0 and 0 < num_samples >= num_copies):
        raise ValueError(
            "copies must be at least 0 and at most the number of samples, got "
            f"{num_copies} of {num_samples}"
        )

    def few(count: int) -> bool:
        by_chance = bdtrc(count - 1, num_samples, FALSE_ALARM)  # P(X >= count)
        return count <= CLEAN_RATE * num_samples or bool(by_chance > LEVEL)

    if num_copies >= MEMORIZED_RATE * num_samples and not few(num_copies):
        return "memorized"
    return "clean" if few(num_copies) else "between"


def copy_threshold(references: np.ndarray) -> float:
    """The `QUANTILE` of the similarity of an image to its nearest other, over a set.

    Raises:
        ValueError: fewer than two images.
    """
    if len(references) < 2:
        raise ValueError("a threshold needs a set of at least two images")
    between = pixel_correlation(references, references)
    np.fill_diagonal(between, -np.inf)
    return float(np.quantile(between.max(axis=1), QUANTILE))


def judge(samples: np.ndarray, name: str, references: np.ndarray, threshold: float) -> Truth:
    """The truth of one condition.

    Raises:
        ValueError: a sample is not finite, and would pass for one that is no copy.
    """
    if not np.isfinite(samples).all():
        raise ValueError(f"samples of {name!r} are NaN or infinite: is the model damaged?")
    nearest = pixel_correlation(samples, references).max(axis=1)
    copies = int(np.sum(nearest > threshold))
    share = intervals.share(copies / len(samples), len(samples))
    similarity = float(nearest.mean())
    return Truth(name, len(references), threshold, len(samples), copies, *share, similarity)


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
    kept as one PNG strip per condition in `samples/`; the table is `ground_truth.csv`.

    Raises:
        ValueError: another measurement is in `directory`, or fewer than 2 samples.
        FileExistsError: something else is in it.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}")
    if training_set.num_conditions != len(names):
        raise ValueError(
            f"the training set has {training_set.num_conditions} conditions, the model {len(names)}"
        )
    run = Run.claim(
        directory,
        "ground-truth",
        {"model": fingerprint, "num_samples": num_samples, "num_steps": num_steps, "seed": seed},
        key=["condition"],
        fields=[field.name for field in dataclasses.fields(Truth)],
    )
    strips = run.make_folder("samples")
    limit = thresholds(training_set, names)
    labels = model.encode(names)

    def sample(_: Any, missing: list[str]) -> Iterator[dict[str, Any]]:
        (name,) = missing
        index = names.index(name)
        key = jax.random.fold_in(jax.random.key(seed), index)
        samples = model.sample(
            labels[np.full(num_samples, index)], key, num_steps=num_steps, batch_size=num_samples
        )
        save_strip(strips / f"{index:03d}.png", samples)
        truth = judge(samples, name, training_set.of(index), limit[name.split()[0]])
        yield dataclasses.asdict(truth)

    def copies(record: dict[str, Any]) -> str:
        return f"{record['condition']}: {record['num_copies']} of {num_samples} are copies"

    run.work("sampling", [[name] for name in names], sample, note=copies)
    truths = [Truth(**run.done[name]) for name in names]
    write_truths(run.folder, truths)
    return truths


def save_strip(path: Path, samples: np.ndarray) -> None:
    """Grey samples `(n, 1, h, w)` in `[-1, 1]` side by side in one PNG."""
    pixels = np.round((np.clip(samples[:, 0], -1, 1) + 1) * 127.5).astype(np.uint8)
    write_png(path, Image.fromarray(np.concatenate(list(pixels), axis=1)))


def load_strip(path: Path) -> np.ndarray:
    """The samples of `save_strip`, square, `(n, 1, h, h)` in `[-1, 1]`."""
    pixels = np.asarray(read_picture(path, "L"), np.float64) / 127.5 - 1
    height = pixels.shape[0]
    return pixels.reshape(height, -1, height).transpose(1, 0, 2)[:, None]


def write_truths(directory: str | Path, truths: Sequence[Truth]) -> Path:
    """Write `ground_truth.csv`: the fields of the records, their copy rates and verdicts."""
    path = Path(directory) / TRUTH_NAME
    columns = [field.name for field in dataclasses.fields(Truth)] + ["copy_rate", "verdict"]

    def rounded(value: Any) -> Any:
        return round(value, 6) if isinstance(value, float) else value

    write_csv(path, [{name: rounded(getattr(one, name)) for name in columns} for one in truths])
    return path


def read_truths(directory: str | Path) -> list[Truth]:
    """Read `ground_truth.csv`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a column is missing or not a number, or the file is not UTF-8.
    """
    path = Path(directory) / TRUTH_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no {TRUTH_NAME} in {directory}")
    rows = read_csv(path)
    types: Any = {field.name: field.type for field in dataclasses.fields(Truth)}  # float, str, int
    if missing := [name for name in types if rows and name not in rows[0]]:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}: it is not of this version of sharpjax, or "
            "of another kind of model; sharpjax ground-truth measures it anew"
        )
    try:
        return [Truth(**{name: types[name](row[name]) for name in types}) for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error


def typical(truths: Sequence[Truth]) -> tuple[str, str]:
    """The condition that is copied most and, of those copied least, that of the largest set."""
    memorized = max(truths, key=lambda truth: (truth.copy_rate, truth.mean_similarity))
    kind = memorized.condition.split()[0]  # of the same digit, where the names say so

    def preference(truth: Truth) -> Any:
        return truth.copy_rate, -truth.set_size, truth.condition.split()[0] != kind

    return memorized.condition, min(truths, key=preference).condition
