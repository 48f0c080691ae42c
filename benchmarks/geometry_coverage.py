"""The estimators of local geometry against closed forms: z-scores, and coverage of 95% intervals.

    python benchmarks/geometry_coverage.py [--repeats 1000]

Three densities of 40 dimensions whose scores and Hessians are closed forms, in float64: a Gaussian
of 12 wide directions, a mixture of Gaussians, and a mixture of low-rank Gaussians, each at alpha =
.8, sigma = .6 (sigma = .02 where a dimension is asked for) and a point drawn from it.  Each
estimator is run with so many keys; of z = (value - truth)/standard error the mean (0 without bias;
its own standard error is 1/sqrt(repeats)) and the standard deviation, and the share of t-intervals
that hold the truth (its standard error is 0.7 points for 1,000 repeats).  Truths are the densities'
Hessians, dense, and formulas written out here; of LHSD the exact sum over all eigenvalues, of the
loss at one point of a Gaussian tr K^2 + sigma^2 |s|^2.
"""

import argparse

import jax
import numpy as np
import scipy.special

from sharpjax.curvature import posterior_covariance
from sharpjax.curvature.plaplacian import p_laplacian
from sharpjax.densities import Gaussian, GaussianMixture, LowRankMixture
from sharpjax.dimension import denoising_loss, flipd, lhsd, transition_mass

D, WIDE, SAMPLES = 40, 12, 64
OPEN, CLEAN = {"alpha": 0.8, "sigma": 0.6}, {"alpha": 1.0, "sigma": 0.02}
jax.config.update("jax_enable_x64", True)


def densities():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(D, D)))[0]
    spectrum = np.r_[np.linspace(0.5, 2, WIDE), np.full(D - WIDE, 1e-6)]
    covariance = (basis * spectrum) @ basis.T
    means = rng.normal(size=(3, D)) / 4
    turned = np.stack([np.linalg.qr(rng.normal(size=(D, D)))[0] for _ in range(3)])
    several = np.einsum("kij,j,klj->kil", turned, spectrum, turned)
    weights = np.full(3, 1 / 3)
    return {
        "Gaussian": Gaussian(np.zeros(D), covariance),
        "mixture": GaussianMixture(weights, means, several),
        "low-rank mixture": LowRankMixture(
            weights, means, turned[:, :WIDE], np.tile(spectrum[:WIDE], (3, 1)), np.full(3, 1e-6)
        ),
    }


def estimators(density, name):
    """Name -> `(key) -> Estimate` and its truth."""
    x = density.noised(**OPEN).sample(jax.random.key(7), 1)[0]
    x0 = density.sample(jax.random.key(8), 1)[0]
    noised, clean = density.noised(**OPEN), density.noised(**CLEAN)
    alpha, sigma = OPEN.values()
    H = np.asarray(noised.hessian(x))
    C = (sigma / alpha) ** 2 * (np.eye(D) + sigma**2 * H)
    posterior = posterior_covariance(noised.score, x, **OPEN)
    at = CLEAN["alpha"] * x0
    s, G = np.asarray(clean.score(at)), np.asarray(clean.hessian(at))
    K = np.eye(D) + CLEAN["sigma"] ** 2 * G
    length = CLEAN["sigma"] ** 2 * s @ s
    found = {
        "posterior trace": (lambda key: posterior.trace(key=key, num_matvecs=SAMPLES), np.trace(C)),
        "posterior diagonal": (
            lambda key: posterior.diagonal(key=key, num_matvecs=SAMPLES), np.diag(C),
        ),
        "standard deviation": (
            lambda key: posterior.standard_deviation(key=key, num_matvecs=16 * SAMPLES),
            np.sqrt(np.diag(C)),
        ),
        "flipd": (
            lambda key: flipd(clean.score, x0, **CLEAN, key=key, num_matvecs=SAMPLES),
            np.trace(K) + length,
        ),
        "lhsd": (
            lambda key: lhsd(clean.score, x0, **CLEAN, key=key, num_probes=SAMPLES, num_matvecs=40),
            lhsd(clean.score, x0, **CLEAN, method="exact").value,
        ),
        "transition mass": (
            lambda key: transition_mass(
                clean.score, x0, **CLEAN, key=key, num_probes=SAMPLES, num_matvecs=40
            ),
            transition_mass(clean.score, x0, **CLEAN, method="exact").value,
        ),
        "1-Laplacian, probes": (
            lambda key: p_laplacian(noised.score, x, p=1.0, key=key, num_matvecs=SAMPLES),
            one_laplacian(np.asarray(noised.score(x)), H),
        ),
    }  # fmt: skip
    if name == "Gaussian":
        found["denoising loss"] = (
            lambda key: denoising_loss(clean.score, x0, **CLEAN, key=key, num_samples=SAMPLES),
            np.trace(K @ K) + length,
        )
    return found


def one_laplacian(s, H):
    u = s / np.linalg.norm(s)
    return (np.trace(H) - u @ H @ u) / np.linalg.norm(s)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=1000)
    repeats = parser.parse_args().repeats
    keys = jax.random.split(jax.random.key(0), repeats)
    print(f"{repeats} repeats, d = {D}, {SAMPLES} samples\n")
    print("| density | estimator | truth | mean z | sd of z | coverage of 95% |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, density in densities().items():
        for what, (estimator, truth) in estimators(density, name).items():

            def one(key, estimator=estimator):
                found = estimator(key)
                return found.value, found.standard_error

            value, error = map(np.asarray, jax.jit(lambda keys, f=one: jax.lax.map(f, keys))(keys))
            truth = np.asarray(truth)
            count = 16 * SAMPLES if what == "standard deviation" else SAMPLES
            z = (value - truth) / np.where(error > 0, error, np.nan)
            bound = scipy.special.stdtrit(count - 1, 0.975)
            covered = 100 * np.mean(np.abs(z) <= bound)
            shown = f"{truth:.4g}" if truth.ndim == 0 else f"{truth.mean():.4g} on average"
            print(f"| {name} | {what} | {shown} | {np.nanmean(z):.3f} | {np.nanstd(z):.3f} "
                  f"| {covered:.1f}% |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
