"""What `sharpjax detect --until-sure` saves, and what it costs: 1,000 runs resampled from one.

    python benchmarks/sequential_verdicts.py --output runs/sequential-verdicts

`score_difference` of all measured captions of the drawings at 16 noises.  A run is four of these,
drawn in a random order, a threshold set on the clean captions of the tuning part at four others,
themselves drawn with replacement, and the verdicts of the test part: by all four noises, and by
the rule of `sharpjax.detection.sequential`, which stops where further ones are not to change the
verdict.  Prints means over the runs and the range of 95% of them.  The tuning captions set
threshold and rule; the test captions set nothing.  Resumes a run that was stopped.
"""

import argparse
from pathlib import Path

import numpy as np

import sharpjax as sj
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.detection.calibration import Calibration
from sharpjax.detection.sequential import ERROR, UntilSure
from sharpjax.detection.settings import DetectSettings

POOL, FIXED = 16, 4


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="drawings")
    parser.add_argument("--output", type=Path, default=Path("runs/sequential-verdicts"))
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--captions", type=int, help="only so many of each part and verdict")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    bench = sj.bench.drawings(None if arguments.model == "drawings" else arguments.model)
    told = [t for t in bench.truths if t.verdict in ("memorized", "clean")]
    if arguments.captions:
        groups = {}
        for t in told:
            groups.setdefault((t.part, t.verdict), []).append(t)
        told = [t for group in groups.values() for t in group[: arguments.captions]]
    settings = DetectSettings(statistics=("score_difference",), num_noises=POOL)
    records = sj.runs.detect(
        sj.load(bench.directory), [t.caption for t in told], arguments.output, settings,
        fingerprint=fingerprint(bench.directory), batch_size=8,
    )  # fmt: skip
    (column,) = records[0]["network"]
    values = np.array([r["network"][column] for r in records])
    memorized = np.array([t.verdict == "memorized" for t in told])
    test = np.array([t.part == "test" for t in told])
    clean = np.flatnonzero(~memorized & ~test)
    print(
        f"{len(clean)} clean captions set the threshold; judged: {np.sum(memorized & test)} "
        f"memorized, {np.sum(~memorized & test)} clean. {arguments.runs} runs."
    )
    rng = np.random.default_rng(arguments.seed)
    rows = [one_run(rng, values, column, clean, memorized, test) for _ in range(arguments.runs)]
    print("\n| | mean | 95% of the runs |\n| --- | --- | --- |")
    for name in rows[0]:
        some = np.array([row[name] for row in rows])
        low, high = np.quantile(some, [0.025, 0.975])
        print(f"| {name} | {some.mean():.4f} | {low:.4f} to {high:.4f} |")


def one_run(rng, values, column, clean, memorized, test):
    """Rates and noises of one resampled run."""
    order = rng.permutation(POOL)
    mine, theirs = order[:FIXED], order[FIXED : 2 * FIXED]
    again = rng.choice(clean, len(clean))
    known = [
        {"condition": str(k), "network": {column: values[i, theirs].tolist()}}
        for k, i in enumerate(again)
    ]
    settings = DetectSettings(statistics=("score_difference",), num_noises=FIXED)
    limit = Calibration.fit(known, settings, fingerprint="").thresholds[column]
    rule = UntilSure.of(column, limit, most=FIXED)
    seen = values[np.ix_(test, mine)]
    # means after 1, 2, ... noises; the rule looks at each
    means = np.cumsum(seen, axis=1) / np.arange(1, FIXED + 1)
    sure = np.array([[rule.sure(row[:n]) for n in range(1, FIXED + 1)] for row in seen])
    stop = sure.argmax(axis=1)
    fixed = means[:, -1] > limit.value
    early = means[np.arange(len(means)), stop] > limit.value
    mem = memorized[test]
    return {
        "noises a caption": float(np.mean(stop + 1)),
        f"the same verdict as of {FIXED} noises (promised {1 - ERROR:g})": np.mean(fixed == early),
        f"TPR, {FIXED} noises": np.mean(fixed[mem]),
        "TPR, until sure": np.mean(early[mem]),
        "TPR, difference": np.mean(early[mem]) - np.mean(fixed[mem]),
        f"FPR, {FIXED} noises": np.mean(fixed[~mem]),
        "FPR, until sure": np.mean(early[~mem]),
        "FPR, difference": np.mean(early[~mem]) - np.mean(fixed[~mem]),
    }


if __name__ == "__main__":
    main()
