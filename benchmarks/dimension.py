"""Four estimators of local dimension on manifolds whose dimension is known.

    python benchmarks/dimension.py [--largest 3072] [--learned] [--json PATH]

Spheres, Gaussians of low rank, a swiss roll, a sphere times a plane, and a mixture of planes of two
dimensions, each in D = 10, 100, 784 and 3,072 coordinates, at clean points of them, seen through
noise of a hundredth of their width.  The scores are exact: of a sphere by Bessel functions, of the
roll by a fine grid of points, the others in closed form.  With `--learned` the same of networks
(`ScoreMLP`, denoising score matching) in D = 10 and 100.

Of FLIPD by 128 products (XTrace), LHSD by 64 probes of 20 products and by all eigenvalues, the loss
of 1,024 noises, and the normal bundle of 4 D scores: the mean absolute error, that relative to the
dimension, and Spearman's rank correlation with it over all points.
"""

import argparse
import functools
import itertools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.stats import spearmanr

from sharpjax import Schedule
from sharpjax.curvature import at_points
from sharpjax.densities import Empirical, LowRankMixture
from sharpjax.dimension import denoising_loss, flipd, lhsd, normal_bundle
from sharpjax.networks.mlp import ScoreMLP
from sharpjax.training.score_matching import fit

SIZES = (10, 100, 784, 3072)
SIGMA, POINTS = 0.01, 6
LEARNED_T = 20  # of the schedule that networks learn: sigma = 0.09
LEARNED_STEPS = 5_000
ESTIMATORS = {
    "flipd": (flipd, {"method": "xtrace", "num_matvecs": 128}),
    "lhsd": (lhsd, {"num_probes": 64}),
    "lhsd, exact": (lhsd, {"method": "exact"}),
    "denoising_loss": (denoising_loss, {"num_samples": 1024}),
    "normal_bundle": (normal_bundle, {}),
}
MOST = {"lhsd, exact": 784, "normal_bundle": 784}  # coordinates: they decompose D x D matrices


def log_bessel(v, k):
    """log I_v(k) by Debye's uniform expansion (DLMF 10.41.3), to 1e-6 for k > 30."""
    z = k / v
    root = jnp.sqrt(1 + z**2)
    t = 1 / root
    terms = (
        (3 * t - 5 * t**3) / 24,
        (81 * t**2 - 462 * t**4 + 385 * t**6) / 1152,
        (30375 * t**3 - 369603 * t**5 + 765765 * t**7 - 425425 * t**9) / 414720,
    )
    series = 1 + sum(u / v ** (n + 1) for n, u in enumerate(terms))
    eta = root + jnp.log(z / (1 + root))
    return v * eta - 0.25 * jnp.log(1 + z**2) - 0.5 * jnp.log(2 * jnp.pi * v) + jnp.log(series)


def sphere_score(m, radius, alpha, sigma, x):
    """Of a uniform sphere in the first m coordinates, noised: log p = -|x|^2/2s^2 + log of the mean
    of exp(alpha y.x/s^2), which is I_v(k)/k^v with v = m/2 - 1 and k = alpha r |x|/s^2."""
    inner, v = x[:m], m / 2 - 1
    length = jnp.linalg.norm(inner)
    k = alpha * radius * length / sigma**2
    slope = jax.grad(lambda k: log_bessel(v, k) - v * jnp.log(k))(k)
    along = alpha * radius / sigma**2 * slope * inner / length
    return -x / sigma**2 + jnp.concatenate([along, jnp.zeros(len(x) - m)])


class Sphere:
    """n dimensions in n + 1 of D coordinates, each of variance 1."""

    def __init__(self, n, D):
        self.m, self.D, self.radius = n + 1, D, np.sqrt(n + 1)

    def sample(self, rng, count):
        z = rng.normal(size=(count, self.m))
        z *= self.radius / np.linalg.norm(z, axis=1, keepdims=True)
        return np.pad(z, ((0, 0), (0, self.D - self.m))), np.full(count, self.m - 1)

    def score(self, alpha, sigma):
        return functools.partial(sphere_score, self.m, self.radius, alpha, sigma)


class Planes:
    """A mixture of Gaussians of these ranks, far from each other; one is a Gaussian of low rank."""

    def __init__(self, ranks, D):
        rng, most = np.random.default_rng(0), max(ranks)
        directions = np.zeros((len(ranks), most, D))
        for own, rank in zip(directions, ranks, strict=True):
            own[:rank] = np.linalg.qr(rng.normal(size=(D, rank)))[0].T
        variances = np.array([[1.0] * r + [0.0] * (most - r) for r in ranks])
        means = 20.0 * np.eye(len(ranks), D) * (len(ranks) > 1)
        self.ranks, self.means, self.directions = ranks, means, directions
        weights, floor = np.full(len(ranks), 1 / len(ranks)), np.zeros(len(ranks))
        self.mixture = LowRankMixture(weights, means, directions, variances, floor)

    def sample(self, rng, count):
        which = np.arange(count) % len(self.ranks)
        own = rng.normal(size=(count, max(self.ranks)))
        points = self.means[which] + np.einsum("nr,nrd->nd", own, self.directions[which])
        return points, np.array(self.ranks)[which]

    def score(self, alpha, sigma):
        return self.mixture.noised(alpha, sigma).score


class Product:
    """A sphere of 3 dimensions times a plane of 4: a vector of both."""

    def __init__(self, D):
        self.sphere, self.plane = Sphere(3, D // 2), Planes((4,), D - D // 2)

    def sample(self, rng, count):
        (a, m), (b, n) = self.sphere.sample(rng, count), self.plane.sample(rng, count)
        return np.concatenate([a, b], axis=1), m + n

    def score(self, alpha, sigma):
        parts = self.sphere.score(alpha, sigma), self.plane.score(alpha, sigma)
        return functools.partial(both, *parts, self.sphere.D)


def both(first, second, cut, x):
    return jnp.concatenate([first(x[:cut]), second(x[cut:])])


class Roll:
    """The swiss roll, 2 dimensions in 3 of D coordinates, as a grid finer than the noise."""

    def __init__(self, D, fine=0.015):
        turn = np.linspace(1.5 * np.pi, 4.5 * np.pi, 4000)
        speed = np.hypot(1, turn) / 8
        along = np.concatenate([[0], np.cumsum(0.5 * (speed[1:] + speed[:-1]) * np.diff(turn))])
        turn = np.interp(np.arange(0, along[-1], fine), along, turn)
        self.turn, self.height, self.D = turn, np.arange(0, 0.6, fine), D

    def points(self, turn, height):
        """On the roll, in D coordinates; the others are 0."""
        xyz = np.stack([turn * np.cos(turn) / 8, height, turn * np.sin(turn) / 8], axis=-1)
        return np.pad(xyz, ((0, 0), (0, self.D - 3)))

    def sample(self, rng, count):
        inner = rng.uniform(2 * np.pi, 4 * np.pi, count), rng.uniform(0.2, 0.4, count)
        return self.points(*inner), np.full(count, 2)

    def score(self, alpha, sigma):
        grid = np.stack([g.ravel() for g in np.meshgrid(self.turn, self.height)])
        three = Empirical(self.points(*grid)[:, :3]).noised(alpha, sigma)
        return functools.partial(padded, three.score, sigma)


def padded(inner, sigma, x):
    return jnp.concatenate([inner(x[:3]), -x[3:] / sigma**2])


def manifolds(D):
    found = {
        "sphere of 4": Sphere(4, D),
        "plane of 5": Planes((5,), D),
        "swiss roll": Roll(D),
        "planes of 2 and 6": Planes((2, 6), D),
    }
    if D >= 16:
        found["sphere of 3 x plane of 4"] = Product(D)
    if D >= 100:
        found["sphere of 40"], found["plane of 30"] = Sphere(40, D), Planes((30,), D)
    if D >= 784:
        found["plane of 200"] = Planes((200,), D)
    return found


def measured(score, points, truth, *, alpha, sigma, key):
    """Of each estimator its values at the points, and the seconds of one."""
    found = {}
    for name, (estimator, options) in ESTIMATORS.items():
        if points.shape[1] > MOST.get(name, np.inf):
            continue
        start = time.perf_counter()
        out = at_points(
            estimator, score, points, key=key, alpha=alpha, sigma=sigma, points_at_once=1,
            **options,
        )  # fmt: skip
        values = np.asarray(out.dimension if name == "normal_bundle" else out.value, float)
        found[name] = values, (time.perf_counter() - start) / len(points)
    return found


def learned(manifold, D, schedule, seed=0):
    """A network that has learnt 50,000 points of it."""
    points, _ = manifold.sample(np.random.default_rng(seed), 50_000)
    network = ScoreMLP(D, width=256, depth=4, rngs=nnx.Rngs(seed))
    network, _ = fit(
        network, points.astype(np.float32), schedule, steps=LEARNED_STEPS, batch_size=256, seed=seed
    )
    return lambda alpha, sigma: network.score(alpha, sigma)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="D at most")
    parser.add_argument(
        "--learned", action="store_true", help="of networks, in D = 10 and 100, beside exact ones"
    )
    parser.add_argument("--json", metavar="PATH", type=Path, help="write the figures there too")
    options = parser.parse_args()
    schedule, rows = Schedule.create(), []
    sizes = [D for D in SIZES if options.largest >= D and (D <= 100 or not options.learned)]
    print(f"{'D':>5} {'manifold':34} {'n':>5}" + "".join(f"{name:>22}" for name in ESTIMATORS))
    for D in sizes:
        for title, manifold in manifolds(D).items():
            points, truth = manifold.sample(np.random.default_rng(1), POINTS)
            sigma, sources = SIGMA, {"": manifold.score}
            if options.learned:  # the exact score of so much noise beside the network's
                sigma = float(schedule.sigma(LEARNED_T))
                sources = {"network": learned(manifold, D, schedule), "exact": manifold.score}
            alpha = float(np.sqrt(1 - sigma**2))
            for source, score_of in sources.items():
                found = measured(
                    score_of(alpha, sigma), jnp.asarray(points, jnp.float32), truth,
                    alpha=alpha, sigma=sigma, key=jax.random.key(0),
                )  # fmt: skip
                cells = ""
                for name in ESTIMATORS:
                    if name not in found:
                        cells += f"{'-':>22}"
                        continue
                    values, seconds = found[name]
                    cells += f"{values.mean():10.2f} ± {values.std():<5.2f}{seconds:4.1f}"
                    about = {"D": D, "manifold": title, "source": source, "estimator": name}
                    rows += [
                        about | {"dimension": int(n), "value": v}
                        for n, v in zip(truth, values.tolist(), strict=True)
                    ]
                told = ", ".join(filter(None, (title, source)))
                print(f"{D:5d} {told:34} {truth.mean():5.1f}{cells}", flush=True)
    print("\n(mean over points ± their spread, seconds a point)\n")
    print(f"{'':26}{'D <=':>6}{'mean |error|':>14}{'relative':>10}{'Spearman':>10}")
    for source, name, most in itertools.product(sources, ESTIMATORS, sizes):
        own = [
            r for r in rows if (r["source"], r["estimator"]) == (source, name) and r["D"] <= most
        ]
        n, v = (np.array([r[k] for r in own], float) for k in ("dimension", "value"))
        error = np.abs(v - n)
        print(
            f"{', '.join(filter(None, (name, source))):26}{most:6d}{error.mean():14.3f}"
            f"{np.mean(error / n):10.3f}{spearmanr(n, v).statistic:10.3f}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
