"""Claims on first-step statistics, on every data set and corrected for their number.

Two claims of Jeon et al. (arXiv:2412.04140): that another statistic detects better than the score
difference, and that four noises detect better than one. Each is asked of every statistic of the
first step, of both bundled models and of the exact score of what they were trained on, by the
paired comparison of `sharpjax.detection.evaluation.compare`. All of these comparisons are printed,
none is chosen, and their p-values are corrected for their number by S. Holm's step-down procedure
(Scand. J. Statist. 6 (1979) 65): with probability 95% not one verdict other than "not told
apart" is false.

`python benchmarks/claims.py [--output runs/claims]`; prints Markdown. Resumes a run that was
stopped; needs the `datasets` extra.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import sharpjax as sj
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.detection.evaluation import Comparison, compare, evaluate, holm
from sharpjax.detection.oracle import TrainingSet
from sharpjax.detection.settings import FIRST_STEP, DetectSettings
from sharpjax.detection.summary import REFERENCE, Judged, direction
from sharpjax.models.load import find
from sharpjax.prompts import Case
from sharpjax.recipes.drawings_quick import latent_world
from sharpjax.runs.truth_of_conditions import read_truths

NUM_NOISES = 4
LEVEL, UNDECIDED = 0.05, "not told apart"
KINDS = ("memorized", "clean")  # every other verdict is left out


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Conditions that are memorized or not, and `(conditions, noises)` values of each statistic."""

    name: str
    memorized: np.ndarray
    values: dict[str, np.ndarray]

    @classmethod
    def of(cls, name: str, judged: Judged, who: str) -> "DataSet":
        """Values of the network or the oracle, larger for memorized; the others are left out."""
        rows = np.isin(judged.verdicts, KINDS)
        values = {
            column: direction(column) * np.array([r[who][column] for r in judged.records])[rows]
            for column in judged.names(who)
        }
        return cls(name, judged.verdicts[rows] == "memorized", values)

    def __str__(self) -> str:
        return f"{self.name} ({self.memorized.sum()} + {(~self.memorized).sum()})"


@dataclasses.dataclass(frozen=True)
class Row:
    """A comparison, and the two AUCs that it compares."""

    data: str
    statistic: str
    first: str
    second: str
    found: Comparison

    @classmethod
    def of(cls, data: DataSet, name: str, first: np.ndarray, second: np.ndarray) -> "Row":
        aucs = (evaluate(v, data.memorized).auc.value for v in (first, second))
        found = compare(first, second, data.memorized)
        return cls(str(data), f"`{name}`", *(f"{auc:.3f}" for auc in aucs), found)


def measured(folder: Path) -> Iterator[DataSet]:
    """Both models, and the exact score of both, at the same noises."""
    settings = DetectSettings(statistics=FIRST_STEP, num_noises=NUM_NOISES)
    model, directory = sj.load("drawings"), find("drawings")
    truths = [t for t in sj.bench.drawings().truths if t.verdict in KINDS and t.kind != "held-out"]
    cases = [Case(t.caption, t.verdict) for t in truths]
    judged = run(model, fingerprint(directory), cases, folder / "drawings", settings)
    yield DataSet.of("drawings, network", judged, "network")
    exact, who = latent_world(model.vae).exact(), f"exact score of {fingerprint(directory)}"
    judged = run(exact, who, cases, folder / "drawings-exact", settings)
    yield DataSet.of("drawings, exact score", judged, "network")

    model, directory = sj.load("mnist"), find("mnist")
    cases = [Case(t.condition, t.verdict) for t in read_truths(directory.path)]
    labels = np.asarray(model.encode([c.condition for c in cases]))
    known = TrainingSet.load(directory.path)
    judged = run(model, fingerprint(directory), cases, folder / "mnist", settings, known, labels)
    yield DataSet.of("digits, network", judged, "network")
    yield DataSet.of("digits, exact score", judged, "oracle")


def run(model, who, cases, folder, settings, known=None, labels=None) -> Judged:
    records = sj.runs.detect(
        model, [case.condition for case in cases], folder, settings,
        fingerprint=who, training_set=known, labels=labels, batch_size=16,
    )  # fmt: skip
    return Judged.of(records, cases)


def comparisons(data: list[DataSet]) -> tuple[list[Row], list[Row]]:
    """Each statistic against the reference, all noises; and all noises against the first."""
    against, noises = [], []
    for one in data:
        reference = next(name for name in one.values if name.split("@")[0] == REFERENCE)
        means = {name: values.mean(axis=1) for name, values in one.values.items()}
        for name, mean in means.items():
            if name != reference:
                against.append(Row.of(one, name, mean, means[reference]))
            noises.append(Row.of(one, name, mean, one.values[name][:, 0]))
    return against, noises


def tables(against: list[Row], noises: list[Row]) -> str:
    """Both, as Markdown."""
    rows = against + noises
    corrected = holm(np.array([row.found.p_value for row in rows]))
    lines = []
    for part, first, second in (
        (slice(len(against)), "AUC", f"of `{REFERENCE}`"),
        (slice(len(against), None), f"AUC, {NUM_NOISES} noises", "1 noise"),
    ):
        lines += [
            f"| data set (memorized + clean) | statistic | {first} | {second} | difference | p "
            f"| p, corrected for {len(rows)} | verdict |",
            "| --- " * 8 + "|",
        ]
        for row, p in zip(rows[part], corrected[part], strict=True):
            sign = "better" if row.found.auc.value > 0 else "worse"
            lines.append(
                f"| {row.data} | {row.statistic} | {row.first} | {row.second} | {row.found.auc} "
                f"| {number(row.found.p_value, 4)} | {number(p, 3)} "
                f"| {sign if p < LEVEL else UNDECIDED} |"
            )
        lines.append("")
    return "\n".join(lines)


def number(value: float, digits: int) -> str:
    """A p-value; none is 0."""
    least = 10.0**-digits
    return f"< {least:.{digits}f}" if value < least else f"{value:.{digits}f}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/claims"))
    options = parser.parse_args()
    print(tables(*comparisons(list(measured(options.output)))))


if __name__ == "__main__":
    main()
