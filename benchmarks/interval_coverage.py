"""How often the nominal 95% intervals hold the true figure, and thresholds keep their promise.

    python benchmarks/interval_coverage.py [--repeats 1000]

Of AUC and TPR at FPR <= 1% as `sharpjax detect` prints them, of scores of eight shapes, the clean
ones first: normal of equal spread, of half and of twice the spread; exponential; Student's t of
three degrees of freedom; a share of memorized ones far off and the rest like clean ones ("some");
normal, rounded to five levels; a share of memorized ones below all clean ones and the rest far off
("missed"). Of the difference of two correlated AUCs, and how often its p is below 0.05. Of copy
rates and differences of success, the prompt as the unit. How many of new clean prompts lie beyond a
threshold. Each line has the share that held, and the intervals' mean width.
"""

import argparse
import itertools

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.stats import norm

from sharpjax.detection.calibration import threshold
from sharpjax.detection.evaluation import compare, evaluate
from sharpjax.mitigation.tradeoff import Outcomes, curves, paired

SIZES = ((10, 10), (30, 30), (60, 60), (400, 400), (21, 33), (98, 395))
AUCS = (0.8, 0.95, 0.99)
LEVELS = np.arange(5)  # of rounded scores
SHAPES = ("normal", "wide", "narrow", "exponential", "student", "some", "rounded", "missed")


def levels(shift):
    """Probabilities of rounded scores, normal before."""
    ends = norm.cdf(LEVELS[:-1] + 0.5 - shift)
    return np.diff(np.concatenate([[0], ends, [1]]))


def population(shape, auc):
    """`(draw, tpr)`: scores of so many memorized and clean conditions, and their true TPR."""
    if shape in ("normal", "wide", "narrow"):
        spread = {"normal": 1, "wide": 2, "narrow": 0.5}[shape]
        shift = norm.ppf(auc) * np.hypot(1, spread)
        return lambda rng, m, n: (shift + spread * rng.normal(size=m), rng.normal(size=n)), norm.sf(
            (norm.ppf(0.99) - shift) / spread
        )
    if shape == "exponential":
        scale = auc / (1 - auc)
        return lambda rng, m, n: (
            scale * rng.exponential(size=m),
            rng.exponential(size=n),
        ), 0.01 ** (1 / scale)
    if shape == "student":
        t, places = stats.t(3), (np.arange(4000) + 0.5) / 4000
        quantiles = t.ppf(places)
        shift = brentq(lambda s: t.cdf(quantiles + s).mean() - auc, 0, 50)
        return lambda rng, m, n: (
            shift + rng.standard_t(3, m),
            rng.standard_t(3, n),
        ), t.sf(t.ppf(0.99) - shift)
    if shape == "some":
        far = 2 * auc - 1
        return lambda rng, m, n: (
            9.0 * (rng.random(m) < far) + rng.normal(size=m),
            rng.normal(size=n),
        ), far + (1 - far) * 0.01
    if shape == "missed":
        return lambda rng, m, n: (
            np.where(rng.random(m) < auc, 9.0, -9.0) + rng.normal(size=m),
            rng.normal(size=n),
        ), auc
    clean = levels(0)

    def area(shift):
        return levels(shift) @ (np.cumsum(clean) - clean / 2)

    own = levels(brentq(lambda s: area(s) - auc, 0, 20))
    # the largest level that 1% of the clean ones exceed: a curve of steps
    passing = np.cumsum(clean[::-1]) <= 0.01
    return lambda rng, m, n: (
        rng.choice(LEVELS, m, p=own).astype(float),
        rng.choice(LEVELS, n, p=clean).astype(float),
    ), float(np.sum(own[::-1][passing]))


def held(ends, truth):
    """`(share, mean width)` of intervals `(repeats, 2)`."""
    low, high = np.array(ends).T
    # a limit that is the truth itself holds it, whatever its last bit
    return float(np.mean((low <= truth + 1e-9) & (truth <= high + 1e-9))), np.mean(high - low)


def single(shape, sizes, auc, repeats, rng):
    """Of the AUC and of the TPR, each `(share, width)`."""
    draw, tpr = population(shape, auc)
    ends = []
    for _ in range(repeats):
        found = evaluate(np.concatenate(draw(rng, *sizes)), np.arange(sum(sizes)) < sizes[0])
        ends.append([(one.low, one.high) for one in (found.auc, found.tpr)])
    return [
        held(one, truth) for one, truth in zip(np.swapaxes(ends, 0, 1), (auc, tpr), strict=True)
    ]


def difference(n, aucs, repeats, rng, correlation=0.8):
    """Of n + n conditions: `(share, width, share of p < 0.05)`."""
    memorized = np.arange(2 * n) < n
    ends, below = [], 0
    for _ in range(repeats):
        noise = rng.normal(size=(2, 2 * n))
        noise[1] = correlation * noise[0] + np.sqrt(1 - correlation**2) * noise[1]
        scores = noise + np.sqrt(2) * norm.ppf(aucs)[:, None] * memorized
        found = compare(*scores, memorized)
        ends.append((found.auc.low, found.auc.high))
        below += found.p_value < 0.05
    return *held(ends, aucs[0] - aucs[1]), below / repeats


def prompts(shape, rates, evenness, repeats, rng):
    """Of a copy rate, and of success less that of another method, each `(share, width)`.

    Prompts have copy rates of their own, beta distributed, the smaller `evenness` the further
    apart, and of like rank under both methods.
    """
    ends, shows = [], np.ones(shape)
    marginals = [stats.beta(rate * evenness, (1 - rate) * evenness) for rate in rates]
    for _ in range(repeats):
        rank = rng.random((shape[0], 1))
        methods = [
            Outcomes("m", 1, rng.random(shape) < one.ppf(rank), shows < 0, shows, 1, 1)
            for one in marginals
        ]
        copies = curves(methods[:1])["m"].points[0].copy_rate
        less = paired(*methods).difference
        ends.append([(copies.low, copies.high), (less.low, less.high)])
    truths = rates[0], rates[1] - rates[0]
    return [held(one, truth) for one, truth in zip(np.swapaxes(ends, 0, 1), truths, strict=True)]


def beyond(count, quantile, repeats, rng):
    """Share of new clean prompts beyond a threshold of so many."""
    limits = [
        threshold(rng.exponential(size=count), direction=1, quantile=quantile).value
        for _ in range(repeats)
    ]
    return float(np.mean(np.exp(-np.array(limits))))


def main(repeats):
    rng = np.random.default_rng(0)
    print(f"{repeats} repeats: share that held the true figure, mean width")
    print(f"{'sizes':>9}  {'shape':12} {'AUC':>5}  {'of the AUC':>12}   {'of the TPR':>12}")
    rows = {}
    for sizes, shape, auc in itertools.product(SIZES, SHAPES, AUCS):
        if shape == "rounded" and auc > 0.95:
            continue
        found = single(shape, sizes, auc, repeats, rng)
        rows.setdefault(sizes, []).append([share for share, _ in found])
        told = "   ".join(f"{share:6.1%} {width:.3f}" for share, width in found)
        print(f"{sizes[0]:4} + {sizes[1]:<3} {shape:12} {auc:5}  {told}", flush=True)
    for sizes, shares in rows.items():
        low, middle, high = np.quantile(shares, (0, 0.5, 1), axis=0)
        told = "; ".join(
            f"{name} {low[k]:.1%} to {high[k]:.1%}, half of them above {middle[k]:.1%}"
            for k, name in enumerate(("AUC", "TPR"))
        )
        print(f"{sizes[0]} + {sizes[1]}: {told}")
    print("\nof a difference of AUCs, correlation 0.8")
    for n, aucs in itertools.product((10, 30, 60, 400), ((0.85, 0.85), (0.95, 0.85), (0.95, 0.95))):
        share, width, below = difference(n, aucs, repeats, rng)
        print(f"{n:4} + {n:<3} {aucs}: {share:6.1%} {width:.3f}, p < 0.05 in {below:.1%}")
    print("\nof copy rates and of differences of success; prompts, images of each")
    for shape, rates, evenness in itertools.product(
        ((12, 5), (30, 4)), ((0.5, 0.5), (0.1, 0.5), (0.02, 0.02)), (1, 20)
    ):
        one, less = prompts(shape, rates, evenness, max(repeats // 5, 100), rng)
        print(
            f"{shape} rates {rates}, evenness {evenness:2}: {one[0]:6.1%} {one[1]:.3f}; "
            f"difference {less[0]:6.1%} {less[1]:.3f}"
        )
    print("\nnew clean prompts beyond the threshold")
    for count, quantile in ((19, 0.95), (60, 0.95), (100, 0.95), (400, 0.95), (99, 0.99)):
        print(f"{count:4} prompts, {1 - quantile:.0%}: {beyond(count, quantile, 20_000, rng):.2%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000)
    main(parser.parse_args().repeats)
