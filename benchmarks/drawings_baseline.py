"""An earlier checkpoint in place of the unconditional score: what it tells, and which one.

    python benchmarks/drawings_audit.py       # trains the quick world, and keeps its checkpoints
    python benchmarks/drawings_baseline.py [--models runs/drawings-audit/models]

The last checkpoint is judged: eight samples of every caption under guidance 3 say which captions it
has memorized.  Statistics of a difference are then taken of `s_c - s_u`, and of the score under the
same caption less that of each earlier checkpoint.  Of every statistic the baseline is chosen on the
tuning captions, by the AUC of all memorized captions against all clean ones; on the *test* captions
its AUC stands beside the unconditional score's, and the difference of both with its interval and
p-value, which Holm's procedure corrects for the number of statistics.
"""

import argparse
from pathlib import Path

import numpy as np
from drawings_quick import copies

import sharpjax as sj
from sharpjax.datasets.planted_drawings import planted_drawings
from sharpjax.detection.baseline import Baseline
from sharpjax.detection.evaluation import compare, evaluate, holm
from sharpjax.detection.settings import DetectSettings
from sharpjax.detection.summary import direction
from sharpjax.mitigation.drawing_judge import DrawingJudge, control
from sharpjax.runs.truth_of_drawings import measured

STATISTICS = (
    "score_difference", "hessian_score_difference", "path_score_difference",
    "last_step_difference", "diagonal_distance",
)  # fmt: skip
MOST, NOISES, STEPS, BATCH = 24, 4, 20, 16


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("runs/drawings-audit/models"))
    parser.add_argument("--output", type=Path, default=Path("runs/drawings-baseline"))
    arguments = parser.parse_args()
    folders = sorted(path for path in arguments.models.iterdir() if path.is_dir())
    model, planted = sj.load(folders[-1]), planted_drawings()

    def seen(images):
        return np.clip(model.decode(model.encode_image(images)), -1, 1)

    limits = control(planted, seen)
    judge = DrawingJudge(planted, seen, limits.threshold)
    chosen = measured(planted, most=MOST)
    truths, table = copies(model, planted, judge, chosen, limits.high)
    for kind, (count, rates) in table.items():
        print(f"{kind:22} {count:4} captions, copied {rates[1]:.2f}")
    told = [t for t in truths if t.verdict in ("memorized", "clean")]
    memorized = np.array([t.verdict == "memorized" for t in told])
    tuning = np.array([t.part == "tuning" for t in told])
    print(f"\n{memorized.sum()} memorized, {(~memorized).sum()} clean captions")

    settings = DetectSettings(
        statistics=STATISTICS, num_noises=NOISES, num_steps=STEPS, guidance=3.0
    )
    values = {}
    for folder in [None, *folders[:-1]]:
        name = "unconditional" if folder is None else f"step {int(folder.name)}"
        pair = model if folder is None else Baseline.of(model, sj.load(folder))
        records = sj.runs.detect(
            pair, [t.caption for t in told], arguments.output / name.replace(" ", "-"), settings,
            batch_size=BATCH,
        )  # fmt: skip
        for column in records[0]["network"]:
            own = np.array([np.mean(record["network"][column]) for record in records])
            values.setdefault(column, {})[name] = direction(column) * own

    print("\n| statistic | unconditional | baseline chosen | its AUC | less the former | p, Holm |")
    print("| --- " * 6 + "|")
    rows = []
    for column, by in values.items():
        tried = {
            name: evaluate(own[tuning], memorized[tuning]).auc.value
            for name, own in by.items() if name != "unconditional"
        }  # fmt: skip
        best = max(tried, key=tried.get)
        rows.append((column, best, by[best][~tuning], by["unconditional"][~tuning], tried))
    labels = memorized[~tuning]
    differences = [compare(ours, theirs, labels) for _, _, ours, theirs, _ in rows]
    corrected = holm([one.p_value for one in differences])
    for (column, best, ours, theirs, _), difference, p in zip(
        rows, differences, corrected, strict=True
    ):
        print(
            f"| `{column}` | {evaluate(theirs, labels).auc} | {best} | "
            f"{evaluate(ours, labels).auc} | {difference.auc} | {p:.2g} |"
        )
    print("\nAUC on the tuning captions, by the baseline\n")
    names = list(rows[0][-1])
    print(f"| statistic | {' | '.join(names)} |\n{'| --- ' * (len(names) + 1)}|")
    for column, *_, tried in rows:
        print(f"| `{column}` | {' | '.join(f'{tried[name]:.3f}' for name in names)} |")


if __name__ == "__main__":
    main()
