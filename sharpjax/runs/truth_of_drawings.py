r"""Ground truth of a model of the drawings by generation: whose samples copy a repeated image?

**Copy.** As the judge says (`sharpjax.mitigation.drawing_judge`), whose threshold and false-alarm
rate are of controls and were fixed before any sample was drawn.

**Verdict.** A caption is *memorized* if the lower 95% limit of its copy rate is above the judge's
false-alarm rate; *another* if this holds for copies of other captions' images alone.  The limit is
Clopper & Pearson's, which is exact: of 8 samples one copy is chance (.003), two are not (.032).
A caption that repeats no image and is neither is *clean*; one that does and is not found out is
*between*: 0 of 8 still allows a copy rate of .37.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from scipy.special import betaincinv

from sharpjax.checkpoints.component import from_pretrained
from sharpjax.datasets.planted_drawings import CAPTIONS_NAME, SPLIT_PATH, PlantedDrawings
from sharpjax.mitigation.drawing_judge import JUDGE_NAME, Control, DrawingJudge, read_control
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.pictures import read_images
from sharpjax.recipes.drawings_vae import through
from sharpjax.rundir.files import read_csv, within, write_csv
from sharpjax.rundir.run import Run
from sharpjax.runs.sample import GenerationSettings, Model, generate

TRUTH_NAME = "truth.csv"
FEW, MANY = 8, 32  # samples of a caption; of those that later judge mitigation
_MAKERS = 160  # captions of one maker that are measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawingTruth:
    """What generation says of one caption.

    Attributes:
        caption: the prompt.
        kind: as planted.
        q: planned share of the repeated image.
        level: its planned draws; of a hot caption those of the captions that it is like.
        breadth: group, name or maker.
        samples: drawn.
        copies: of its own repeated image among them.
        low: lower end of the exact 95% interval of the copy rate.
        high: upper end.
        verdict: memorized, another, clean or between.
        ground: colour that the caption names.
        like: of a hot caption, the kind that it is as broad as.
        part: tuning or test.
        others: copies of other captions' images.
        copies_of: whose image most of these are.
        likeness: to its own repeated image, mean; NaN where it has none.
        right: share of samples that show the thing.
        right_no_copy: share that shows it and copies nothing.
        made: share that is by the caption's only maker; NaN where any will do.
    """

    caption: str
    kind: str
    q: float
    level: int
    breadth: str
    samples: int
    copies: int
    low: float
    high: float
    verdict: str
    ground: str
    like: str
    part: str
    others: int
    copies_of: str
    likeness: float
    right: float
    right_no_copy: float
    made: float


def knows_drawings(directory: Path) -> bool:
    """Whether a model was trained on the captions of the drawings, as they are here."""
    path = directory / CAPTIONS_NAME
    return path.is_file() and path.read_bytes() == SPLIT_PATH.read_bytes()


def load_judge(
    directory: Path, planted: PlantedDrawings, vae: AutoencoderKL
) -> tuple[DrawingJudge, Control]:
    """The judge that stands in a model's directory, `judge.json` and `classifier`.

    Raises:
        FileNotFoundError: there is no `judge.json`.
        ValueError: it is damaged, or the classifier knows other drawings.
    """
    limits = read_control(directory / JUDGE_NAME)
    classifier = directory / "classifier"
    known = from_pretrained(classifier) if classifier.is_dir() else None
    return DrawingJudge(planted, through(vae), limits.threshold, known), limits


def exact_interval(count: int, trials: int) -> tuple[float, float]:
    """Clopper & Pearson's 95% interval of a share (Biometrika 26 (1934) 404).

    >>> [round(end, 4) for end in exact_interval(1, 8)], [round(e, 4) for e in exact_interval(2, 8)]
    ([0.0032, 0.5265], [0.0319, 0.6509])
    """
    low = float(betaincinv(count, trials - count + 1, 0.025)) if count else 0.0
    high = float(betaincinv(count + 1, trials - count, 0.975)) if count < trials else 1.0
    return low, high


def verdict(copies: int, others: int, samples: int, *, planted: bool, false_alarm: float) -> str:
    """`memorized`, `another`, `clean` or `between`, as at the head of this module.

    >>> [verdict(c, 0, 8, planted=True, false_alarm=0.005) for c in (2, 1)]
    ['memorized', 'between']
    >>> [verdict(0, c, 8, planted=False, false_alarm=0.005) for c in (2, 1)]
    ['another', 'clean']
    """
    if exact_interval(copies, samples)[0] > false_alarm:
        return "memorized"
    if exact_interval(others, samples)[0] > false_alarm:
        return "another"
    return "between" if planted else "clean"


def measured(planted: PlantedDrawings, *, most: int | None = None) -> dict[int, int]:
    """The captions that are measured, and how many samples of each.

    All but some of those of one maker; at most `most` of every kind, level and breadth.
    """
    counts: Counter[tuple[Any, ...]] = Counter()
    chosen = {}
    for i, c in enumerate(planted.captions):
        cell = (c.kind, c.like, c.q, c.level, c.breadth, bool(c.ground))
        plain = c.kind == "general" and c.breadth == "maker" and not c.ground
        limit = min(_MAKERS if plain else len(planted.captions), most or len(planted.captions))
        if counts[cell] < limit:
            counts[cell] += 1
            chosen[i] = MANY if c.kind in ("verbatim", "mixed", "template", "hot") else FEW
    return chosen


def measure(
    model: Model,
    planted: PlantedDrawings,
    judge: DrawingJudge,
    directory: str | Path,
    *,
    fingerprint: str,
    false_alarm: float,
    most: int | None = None,
    num_samples: int | None = None,
    num_steps: int = 25,
    guidance: float | None = None,
    seed: int = 0,
    batch_size: int = 32,
    mesh: Mesh | None = None,
) -> list[DrawingTruth]:
    """Sample captions and count copies, or finish a measurement that was stopped.

    Writes the samples (one PNG each) in a folder for each number of them, and `truth.csv`.

    Args:
        model: whose captions these are.
        planted: captions and drawings.
        judge: of copies and things.
        directory: of the run.
        fingerprint: of the model.
        false_alarm: rate of the judge, of controls.
        most: captions of every kind, level and breadth.
        num_samples: of every caption, instead of 8 and 32.
        num_steps: of the sampler.
        guidance: of the sampler; the model's own when left out.
        seed: of the noise.
        batch_size: images at a time.
        mesh: devices that share a batch.

    Raises:
        ValueError: another measurement is in `directory`.
        FileExistsError: something else is in it.
    """
    guidance = model.default_guidance if guidance is None else guidance
    settings = GenerationSettings(num_steps=num_steps, guidance=guidance, seed=seed)
    about = {"num_steps": num_steps, "guidance": guidance, "seed": seed, "num_samples": num_samples}
    judged = {"captions": most, "threshold": judge.threshold, "false_alarm": false_alarm}
    Run.claim(directory, "ground-truth", {"model": fingerprint} | about | judged)
    counts = measured(planted, most=most)
    truths: dict[int, DrawingTruth] = {}
    for count in sorted({num_samples or n for n in counts.values()}):
        index = [i for i, n in counts.items() if (num_samples or n) == count]
        folder = Path(directory) / f"samples-{count}"
        records = generate(
            model,
            [planted.captions[i].caption for i in index],
            folder,
            settings,
            fingerprint=fingerprint,
            num_images=count,
            batch_size=batch_size,
            mesh=mesh,
        )
        for place, i in enumerate(index):
            files = [record["file"] for record in records if record["index"] == place]
            images = read_images([within(folder, file) for file in files])
            truths[i] = truth(images, i, planted, judge, false_alarm=false_alarm)
    rows = [truths[i] for i in counts]
    write_csv(Path(directory) / TRUTH_NAME, [dataclasses.asdict(row) for row in rows])
    return rows


def truth(
    images: np.ndarray,
    index: int,
    planted: PlantedDrawings,
    judge: DrawingJudge,
    *,
    false_alarm: float,
) -> DrawingTruth:
    """What samples `(n, 3, h, w)` of one caption say of it."""
    caption, n = planted.captions[index], len(images)
    found = judge(images, [caption.caption] * n)
    copies, others, copies_of = found.counts()
    # the judgement says it of every image; it is NaN where any maker will do
    made = float("nan") if found.maker is None else float(found.maker.mean())
    low, high = exact_interval(copies, n)
    is_planted = bool(caption.fixed)
    return DrawingTruth(
        caption=caption.caption,
        kind=caption.kind,
        q=caption.q,
        level=caption.level,
        breadth=caption.breadth,
        samples=n,
        copies=copies,
        low=low,
        high=high,
        verdict=verdict(copies, others, n, planted=is_planted, false_alarm=false_alarm),
        ground=caption.ground,
        like=caption.like,
        part=caption.part,
        others=others,
        copies_of=copies_of,
        likeness=float(found.own.mean()),
        right=float(found.fidelity.mean()),
        right_no_copy=float(np.mean(np.where(found.copied, 0.0, found.fidelity))),
        made=made,
    )


def typical(truths: Sequence[DrawingTruth]) -> tuple[str, ...]:
    """Of every planted kind the caption that is copied most, and a hot and a general one.

    The general one is a name, of which nothing is copied and most samples show the thing.
    """
    chosen = []
    for kind in ("verbatim", "mixed", "template", "hot", "general"):
        clean = kind in ("hot", "general")
        own = [t for t in truths if t.kind == kind and (kind != "general" or t.breadth == "name")]
        if own:
            best = max(
                own, key=lambda t: (-t.others, t.right) if clean else (t.copies / t.samples, 0)
            )
            chosen.append(best.caption)
    return tuple(chosen)


def read_truth(path: str | Path) -> list[DrawingTruth]:
    """The rows of `truth.csv`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: other columns, or a number that is none.
    """
    path, types = Path(path), {f.name: f.type for f in dataclasses.fields(DrawingTruth)}
    rows = read_csv(path)
    if not rows or list(rows[0]) != list(types):
        raise ValueError(f"{path} must have the columns {', '.join(types)}")
    read = {"int": int, "float": float, int: int, float: float}
    try:
        return [
            DrawingTruth(**{k: read.get(types[k], str)(v) for k, v in row.items()}) for row in rows
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
