"""Random densities to try an identity on, and draws from them: by NumPy, nothing to compile."""

from typing import Any

import numpy as np

from sharpjax.densities import Empirical, Gaussian, GaussianMixture

# Of the three components of every mixture.
WEIGHTS = np.array([0.5, 0.3, 0.2])


def random_direction(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Uniform on the unit sphere; the last axis is that of the coordinates."""
    z = rng.normal(size=shape)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def random_basis(rng: np.random.Generator, dim: int) -> np.ndarray:
    """An orthogonal matrix."""
    return np.linalg.qr(rng.normal(size=(dim, dim)))[0]


def random_covariance(
    rng: np.random.Generator, dim: int, eigenvalues: tuple[float, float], basis: Any = None
) -> np.ndarray:
    """A covariance with eigenvalues from this range, in this basis or a random one."""
    basis = random_basis(rng, dim) if basis is None else basis
    matrix = (basis * rng.uniform(*eigenvalues, size=dim)) @ basis.T
    return 0.5 * (matrix + matrix.T)


def random_data_set(rng: np.random.Generator, dim: int) -> Empirical:
    """Four points, noised until they overlap: the posterior over them varies with x."""
    return Empirical(1.5 * random_direction(rng, 4, dim), alpha=0.8, sigma=0.6)


def from_density(
    density: Gaussian | GaussianMixture | Empirical, rng: np.random.Generator, num: int
) -> np.ndarray:
    """`num` points of a density, `(num, d)`: each from a normal component drawn by weight."""
    weights, means, factors = _components(density)
    component = rng.choice(len(weights), size=num, p=weights)
    z = rng.normal(size=(num, means.shape[1]))
    return means[component] + np.einsum("nij,nj->ni", factors[component], z)


def _components(
    density: Gaussian | GaussianMixture | Empirical,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and Cholesky factors of the covariances."""
    weights: Any
    means: Any
    covariances: Any
    if isinstance(density, Gaussian):
        weights, means, covariances = [1.0], [density.mean], [density.covariance]
    elif isinstance(density, GaussianMixture):
        weights, means, covariances = density.weights, density.means, density.covariances
    else:
        weights, means = density.weights, density.alpha * density.points
        covariances = [np.square(np.asarray(density.sigma)) * np.eye(means.shape[1])] * len(means)
    return np.asarray(weights), np.asarray(means), np.linalg.cholesky(np.asarray(covariances))
