"""How many noises a verdict needs: rates, AUC and cost over 1, 2, 4, 8, 16, and until it is sure.

    python benchmarks/noises.py --output runs/noises

The three statistics of the first step at t = 981, at 16 noises, of the captions that
`sharpjax detect` judges and of the clean ones that `sharpjax calibrate` sets thresholds on, which
are others.  A row of `n` noises is what both commands give with `--noises n`: noises depend on
their number alone, so its values are the first `n` of the 16, and its threshold is that of the
clean captions' first `n`.  Prints, as
Markdown, of every statistic:

1. rates at its threshold with Wilson's 95% intervals, AUC, how often other noises give the same
   verdict, evaluations of the network (F forward passes, T tangents) a caption, and of
   `score_difference` seconds of processor time a caption;
2. the same of `--until-sure`, with the noises that it takes;
3. the difference of AUCs to one noise, and to `score_difference` at the same noises, paired.

Nothing is chosen by these figures.  Seconds are of a batch of four captions, the median of five,
compiled, of the statistic alone, summed over the cores; what else the machine does is not in them.
Resumes a run that was stopped.
"""

import argparse
import time
from itertools import combinations
from pathlib import Path

import jax
import numpy as np

import sharpjax as sj
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.detection import intervals
from sharpjax.detection.calibration import Calibration, scalars
from sharpjax.detection.compute import Columns, evaluations
from sharpjax.detection.evaluation import compare, evaluate
from sharpjax.detection.sequential import UntilSure
from sharpjax.detection.settings import FIRST_STEP, DetectSettings
from sharpjax.detection.summary import direction
from sharpjax.models.load import find
from sharpjax.runs.cases import clean_prompts, own_cases

NOISES = (1, 2, 4, 8, 16)
REFERENCE = "score_difference"
BATCH, ROUNDS = 4, 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="drawings")
    parser.add_argument("--output", type=Path, default=Path("runs/noises"))
    parser.add_argument("--without-seconds", action="store_true", help="rates and AUCs alone")
    arguments = parser.parse_args()
    directory = find(arguments.model)
    model = sj.load(arguments.model)
    cases = [c for c in own_cases(model, directory.path, []) if c.verdict in ("memorized", "clean")]
    clean = clean_prompts(directory.path)
    settings = DetectSettings(statistics=FIRST_STEP, num_noises=max(NOISES))
    names = [*clean, *(case.condition for case in cases)]
    records = sj.runs.detect(
        model, names, arguments.output, settings, fingerprint=fingerprint(directory),
        batch_size=BATCH,
    )  # fmt: skip
    known, judged = records[: len(clean)], records[len(clean) :]
    memorized = np.array([case.verdict == "memorized" for case in cases])
    print(
        f"{len(known)} clean captions set the thresholds; judged: {memorized.sum()} memorized and "
        f"{(~memorized).sum()} clean ones."
    )
    for name in FIRST_STEP:
        timed = name == REFERENCE and not arguments.without_seconds
        of_statistic(name, model, known, judged, memorized, timed=timed)


def of_statistic(name, model, known, judged, memorized, *, timed):
    """The rows of one statistic."""
    (column,) = (c for c in judged[0]["network"] if c.split("@")[0] == name)
    print(f"\n### `{column}`\n")
    heads = ["noises", "TPR", "FPR", "AUC", "same verdict by other noises",
             "evaluations a caption", "CPU seconds"]  # fmt: skip
    print("| " + " | ".join(heads) + " |\n" + "| --- " * len(heads) + "|")
    means, seconds = {}, {}
    for n in NOISES:
        limit, values = fitted(known, judged, column, range(n))
        means[n] = direction(column) * values.mean(axis=1)
        called = beyond(limit, values.mean(axis=1))
        cost, seconds[n] = costs(model, name, n, timed=timed)
        row = [n, *rates(called, memorized), auc(means[n], memorized),
               again(known, judged, column, n), spelled(cost), in_seconds(seconds[n])]  # fmt: skip
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
    for most in NOISES[2:]:
        limit, values = fitted(known, judged, column, range(most))
        mean, taken = stopped(UntilSure.of(column, limit, most=most), values)
        called, every = beyond(limit, mean), beyond(limit, values.mean(axis=1))
        each = [c * taken.mean() for c in costs(model, name, 1, timed=False)[0]]
        row = [
            f"until sure, at most {most}: {taken.mean():.2f} in the mean",
            *rates(called, memorized), auc(direction(column) * mean, memorized),
            f"as of all {most}: {share(called == every)}", spelled(each),
            in_seconds(seconds[1] and seconds[1] * taken.mean()),
        ]  # fmt: skip
        print("| " + " | ".join(row) + " |", flush=True)
    first, last = NOISES[0], NOISES[-1]
    gained = less(means[last], means[first], memorized)
    print(f"\nAUC of {last} noises less that of {first}: {gained}")
    if name != REFERENCE:
        (reference,) = (c for c in judged[0]["network"] if c.split("@")[0] == REFERENCE)
        for n in NOISES:
            there = fitted(known, judged, reference, range(n))[1].mean(axis=1)
            by = less(means[n], there, memorized)
            print(f"AUC less {REFERENCE}'s, {n} noise{'s' * (n > 1)}: {by}")


def fitted(known, judged, column, which):
    """The threshold of these noises of the clean captions, and their values of the judged ones.

    As `sharpjax calibrate` and `sharpjax detect` make them of as many noises.
    """
    which = list(which)

    def some(record):
        values = [record["network"][column][i] for i in which]
        return {"condition": record["condition"], "network": {column: values}}

    settings = DetectSettings(statistics=FIRST_STEP, num_noises=len(which))
    calibration = Calibration.fit([some(r) for r in known], settings, fingerprint="")
    values = [scalars(some(r)["network"], calibration)[column] for r in judged]
    return calibration.thresholds[column], np.array(values)


def beyond(limit, means):
    return limit.direction * (means - limit.value) > 0


def stopped(rule, values):
    """Means of the noises that the rule takes of each caption, and how many these are."""
    taken = np.array(
        [next(n for n in range(1, rule.most + 1) if rule.sure(row[:n])) for row in values]
    )
    return np.array([row[:n].mean() for row, n in zip(values, taken, strict=True)]), taken


def again(known, judged, column, n):
    """Share of captions of which two sets of `n` noises, each with its threshold, say the same."""
    sets = [range(start, start + n) for start in range(0, max(NOISES), n)]
    called = []
    for one in sets:
        limit, values = fitted(known, judged, column, one)
        called.append(beyond(limit, values.mean(axis=1)))
    pairs = [np.mean(a == b) for a, b in combinations(called, 2)]
    return f"{np.mean(pairs):.3f}" if pairs else "-"


def rates(called, memorized):
    return share(called[memorized]), share(called[~memorized])


def share(hits):
    low, high = intervals.share(float(np.mean(hits)), len(hits))
    return f"{np.mean(hits):.3f} [{low:.3f}, {high:.3f}]"


def auc(scores, memorized):
    found = evaluate(scores, memorized).auc
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def less(scores, others, memorized):
    found = compare(scores, others, memorized)
    by = found.auc
    return f"{by.value:+.3f} [{by.low:+.3f}, {by.high:+.3f}], p = {found.p_value:.2g}"


def costs(model, name, n, *, timed):
    """Forward passes and tangents a caption of a statistic alone, and seconds."""
    settings = DetectSettings(statistics=(name,), num_noises=n)
    ((_, forwards, tangents),) = evaluations(settings).values()
    if not timed:
        return (forwards, tangents), None
    columns, text = Columns(model, settings), model.encode(["elephant"] * BATCH)
    taken = []
    for _ in range(1 + ROUNDS):  # the first compiles
        start = time.process_time()
        jax.block_until_ready(columns(text))
        taken.append((time.process_time() - start) / BATCH)
    return (forwards, tangents), float(np.median(taken[1:]))


def spelled(cost):
    forwards, tangents = (f"{count:.3g}" for count in cost)
    return f"{forwards}F" + (f" + {tangents}T" if cost[1] else "")


def in_seconds(value):
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
