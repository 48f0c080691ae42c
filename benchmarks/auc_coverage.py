"""How often the nominal 95% intervals of detection figures hold the true figure.

    python benchmarks/auc_coverage.py [--repeats 1000]

Clean scores are N(0, 1), memorized ones normal with another mean, which sets the AUC, and 1, 2 or
1/2 times the spread.  First five intervals of an AUC, share that held it and mean width:

- *bootstrap*: percentiles of resamples within each class;
- *DeLong*: the AUC +- 1.96 of DeLong's standard errors (doi:10.2307/2531595);
- *logit*: the same on the scale log(AUC / (1 - AUC)), which has no such interval of a perfect AUC;
- *Newcombe*: his method 5 (doi:10.1002/sim.2324), a score interval;
- *evaluate*: what `sharpjax.detection.evaluation.evaluate` gives, which is Newcombe's, or wider
  where DeLong's variance is larger.

The rule, fixed beforehand: of the intervals that hold the AUC in at least 94% in every row, less
two standard errors of the measurement, that of the smallest mean width.  None of the first four
does; the fifth joins two of them, and was made on other draws than these.

Then the intervals of the TPR at FPR <= 1% that `evaluate` gives, and of the difference of two
correlated AUCs: percentiles of paired resamples, and what `compare` gives, with how often its p is
below 0.05.
"""

import argparse
import itertools

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from sharpjax.detection.evaluation import compare, evaluate

SIZES = ((6, 6), (12, 12), (30, 30), (100, 100), (6, 60), (21, 33), (60, 20))
AUCS, SPREADS = (0.6, 0.856, 0.95, 0.99, 0.999), (1.0, 2.0, 0.5)
PAIRS = ((0.856, 0.856), (0.95, 0.8), (0.95, 0.95), (0.99, 0.95))
RESAMPLES, Z = 200, norm.ppf(0.975)


def draw(rng, sizes, auc, spread):
    memorized = np.arange(sum(sizes)) < sizes[0]
    shift = norm.ppf(auc) * np.sqrt(1 + spread**2)
    noise = rng.normal(size=memorized.size)
    return np.where(memorized, shift + spread * noise, noise), memorized


def better(scores, memorized):
    """``(memorized, clean)``: which of each pair is larger; continuous scores have no ties."""
    return (scores[memorized][:, None] > scores[~memorized]).astype(float)


def resamples(rng, memorized):
    m, n = memorized.sum(), (~memorized).sum()
    return rng.multinomial(m, np.ones(m) / m, RESAMPLES), rng.multinomial(
        n, np.ones(n) / n, RESAMPLES
    )


def resampled(wins, drawn):
    return np.sum(drawn[0] @ wins * drawn[1], axis=1) / wins.size


def newcombe(auc, m, n):
    extra = (m + n) / 2 - 1

    def outside(x):
        tails = 1 + extra * ((1 - x) / (2 - x) + x / (1 + x))
        return (x - auc) ** 2 - Z**2 * x * (1 - x) * tails / (m * n)

    return (
        0.0 if auc == 0 else brentq(outside, 0, auc - 1e-9),
        1.0 if auc == 1 else brentq(outside, auc + 1e-9, 1),
    )


def intervals(rng, scores, memorized):
    wins = better(scores, memorized)
    (m, n), auc = wins.shape, wins.mean()
    error = np.sqrt(wins.mean(1).var(ddof=1) / m + wins.mean(0).var(ddof=1) / n)
    found = {"bootstrap": np.quantile(resampled(wins, resamples(rng, memorized)), (0.025, 0.975))}
    found["DeLong"] = auc - Z * error, auc + Z * error
    found["logit"] = auc, auc
    if 0 < auc < 1:
        logit, scale = np.log(auc / (1 - auc)), Z * error / (auc * (1 - auc))
        found["logit"] = tuple(1 / (1 + np.exp(-(logit + d * scale))) for d in (-1, 1))
    found["Newcombe"] = newcombe(auc, m, n)
    figures = evaluate(scores, memorized, num_bootstrap=RESAMPLES)
    found["evaluate"] = figures.auc.low, figures.auc.high
    return found, (figures.tpr.low, figures.tpr.high)


def held(ends, truth):
    return float(np.mean([low <= truth <= high for low, high in ends]))


def single(repeats):
    rng, rows = np.random.default_rng(0), {}
    print(f"of an AUC, {repeats} repeats: share that held it, mean width; and of the TPR")
    for spread, sizes, auc in itertools.product(SPREADS, SIZES, AUCS):
        cells, tprs = {}, []
        for _ in range(repeats):
            found, tpr = intervals(rng, *draw(rng, sizes, auc, spread))
            tprs.append(tpr)
            for name, ends in found.items():
                cells.setdefault(name, []).append(ends)
        if not rows:
            names = "".join(f"{name:>14}" for name in cells)
            print(f"{'sizes':>9} spread   AUC {names}    TPR")
        for name, ends in cells.items():
            rows.setdefault(name, []).append((held(ends, auc), np.mean(np.diff(ends))))
        shift = norm.ppf(auc) * np.sqrt(1 + spread**2)
        told = "".join(f"{rows[name][-1][0]:8.1%} {rows[name][-1][1]:.3f}" for name in cells)
        tpr = held(tprs, norm.sf((norm.ppf(0.99) - shift) / spread))
        print(f"{sizes[0]:4} + {sizes[1]:<3}{spread:6} {auc:6} {told} {tpr:6.1%}", flush=True)
    least = 0.94 - 2 * np.sqrt(0.94 * 0.06 / repeats)
    for name, values in rows.items():
        shares, widths = np.array(values).T
        print(
            f"{name}: {shares.min():.1%} to {shares.max():.1%}, mean width {widths.mean():.3f}"
            + ("; holds" if shares.min() >= least else "")
        )


def paired(repeats):
    rng = np.random.default_rng(1)
    print(f"\nof a difference of AUCs, correlation 0.8, {repeats} repeats; share of p < 0.05")
    for n, aucs in itertools.product((6, 12, 30, 100), PAIRS):
        drawn, ours, p_values = [], [], []
        for _ in range(repeats):
            memorized = np.arange(2 * n) < n
            noise = rng.normal(size=(2, 2 * n))
            noise[1] = 0.8 * noise[0] + 0.6 * noise[1]
            scores = noise + np.sqrt(2) * norm.ppf(aucs)[:, None] * memorized
            same = resamples(rng, memorized)
            one, other = (resampled(better(each, memorized), same) for each in scores)
            drawn.append(np.quantile(one - other, (0.025, 0.975)))
            found = compare(*scores, memorized, num_bootstrap=RESAMPLES)
            ours.append((found.auc.low, found.auc.high))
            p_values.append(found.p_value)
        truth = aucs[0] - aucs[1]
        told = "".join(
            f"{name:>11} {held(ends, truth):6.1%} {np.mean(np.diff(ends)):.3f}"
            for name, ends in (("bootstrap", drawn), ("compare", ours))
        )
        rejected = np.mean(np.array(p_values) < 0.05)
        print(f"{n:4} + {n:<3} {aucs}{told}   p {rejected:.1%}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000)
    options = parser.parse_args()
    single(options.repeats)
    paired(options.repeats)
