"""What networks in bfloat16 do to each statistic of prompts, on the bundled drawings.

    python benchmarks/half_precision.py --output runs/half-precision

Every registered statistic of the same captions at the same noises and probes, by the model as it is
and by the same with the networks' weights and activations in bfloat16 (`detect --dtype bfloat16`);
latents, scores, differences, statistics and their sums are float32 in both.  Prints of each:

- the relative error of a caption's mean over its noises, median and 95% of the captions;
- beside it what the noises themselves do: the standard deviation over a caption's noises over its
  mean, the median of the captions (`-` of what is one number a caption);
- Spearman's correlation of both over captions, and the AUC of either with its 95% interval.

Captions are drawn from the test part, as many memorized as clean.  Resumes a run that was stopped.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

import sharpjax as sj
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.detection.calibration import Calibration, scalars
from sharpjax.detection.evaluation import evaluate
from sharpjax.detection.registry import GROUPS, STATISTICS, named
from sharpjax.detection.settings import DetectSettings
from sharpjax.detection.summary import direction
from sharpjax.models.load import find

TYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
QUANTILE = 0.9  # of thresholds, which are not used here: a calibration of few captions has no other


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="drawings")
    parser.add_argument("--output", type=Path, default=Path("runs/half-precision"))
    parser.add_argument("--statistics", default="all", help="names and groups, as of detect")
    parser.add_argument("--captions", type=int, default=24, help="of each verdict")
    parser.add_argument("--noises", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="of whole paths")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the captions")
    arguments = parser.parse_args()
    directory = find(arguments.model)
    captions, memorized = chosen(directory, arguments.captions, arguments.seed)
    print(f"{memorized.sum()} memorized and {(~memorized).sum()} clean captions, "
          f"{arguments.noises} noises, {arguments.steps} steps\n")  # fmt: skip
    print("| statistic | error: median | 95% | noises | Spearman | AUC, float32 | AUC, bfloat16 |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    names = named(arguments.statistics.split(","), num_noises=arguments.noises)
    for group in GROUPS:  # a run each, which is there when the next one begins
        own = [name for name in names if STATISTICS[name].group == group]
        if own:
            settings = DetectSettings(
                statistics=own, num_noises=arguments.noises, num_steps=arguments.steps,
                num_directions=32, trace_timesteps=(800,), path_steps=2,
            )  # fmt: skip
            both = [
                values(directory, captions, ~memorized, settings, arguments, name) for name in TYPES
            ]
            show(*both, memorized)


def values(directory, captions, clean, settings, arguments, type_name):
    """Of each column `(captions, noises)`."""
    own = f"{fingerprint(directory)} in {type_name}"
    group = STATISTICS[settings.statistics[0]].group
    records = sj.runs.detect(
        sj.load(directory, dtype=TYPES[type_name]), captions,
        arguments.output / f"{group}-{type_name}", settings, fingerprint=own,
        batch_size=arguments.batch,
    )  # fmt: skip
    known = [r for r, is_clean in zip(records, clean, strict=True) if is_clean]
    fitted = Calibration.fit(known, settings, fingerprint=own, quantile=QUANTILE)
    rows = [scalars(record["network"], fitted) for record in records]
    return {column: np.array([row[column] for row in rows]) for column in rows[0]}


def chosen(directory, count, seed):
    """Captions, and whether each is memorized."""
    told = [t for t in sj.bench.drawings(directory.path).truths if t.part == "test"]
    rng = np.random.default_rng(seed)
    captions = []
    for verdict in ("memorized", "clean"):
        own = [t.caption for t in told if t.verdict == verdict]
        captions += [own[i] for i in np.sort(rng.permutation(len(own))[:count])]
    return captions, np.arange(len(captions)) < len(captions) / 2


def compared(exact, half):
    """Errors relative to each caption's mean, its noises' spread, Spearman's correlation.

    Args:
        exact: `(captions, noises)`.
        half: the same in bfloat16.
    """
    mean = exact.mean(axis=1)
    errors = np.abs(half.mean(axis=1) - mean) / np.abs(mean)
    several = exact.shape[1] > 1
    spread = np.median(exact.std(axis=1, ddof=1) / np.abs(mean)) if several else np.nan
    return errors, spread, spearmanr(mean, half.mean(axis=1)).statistic


def show(exact, half, memorized):
    """Rows of the table."""
    for name, values in exact.items():
        errors, spread, correlation = compared(values, half[name])
        median, most = np.quantile(errors, [0.5, 0.95])
        aucs = [
            evaluate(direction(name) * one.mean(axis=1), memorized).auc
            for one in (values, half[name])
        ]
        told = "-" if np.isnan(spread) else f"{spread:.1%}"
        print(f"| `{name}` | {median:.2%} | {most:.1%} | {told} | {correlation:.4f} | "
              f"{aucs[0]} | {aucs[1]} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
