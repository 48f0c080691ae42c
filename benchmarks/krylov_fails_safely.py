"""Silent failures of Lanczos and Arnoldi on matrices of known spectrum, ours and matfree's.

    python benchmarks/krylov_fails_safely.py [--seeds 12] [--json PATH]

Dense matrices with prescribed spectra in a random orthogonal basis, n = 64 and n = 12 (fewer than
the 24 products allowed), float32 and float64; the truth is NumPy's eigvalsh in float64 of the
matrix as stored.  tol = 10 sqrt(n) eps ||A||.  A case fails silently if, without an error,

- wrong: a value claimed valid is further than its residual + tol from every eigenvalue (Arnoldi on
  nonsymmetric A, where the residual is a backward error: sigma_min(A - theta I) > residual + tol);
- invented: an entry that pads the result is not the copy of a valid one;
- premature: the process ended early, and an eigenvalue with component c in the start vector is
  further than 2 tol/|c| from every value (an invariant subspace of A + E that holds the start has
  one within ||E||/|c|);
- not finite: any value or residual is.

matfree's `tridiag_sym` pads nothing and claims every value; its residuals are those of its own
decomposition, and it is asked for min(n, 24) products.  "worst" is the largest
(distance - residual)/tol of a value of `lanczos`.
"""

import argparse
import collections
import importlib.metadata
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from matfree import decomp

from sharpjax.curvature.krylov import Ritz, arnoldi, lanczos

NUM_MATVECS = 24
SIZES = (64, 12)
DTYPES = ("float32", "float64")
METHODS = ("lanczos", "arnoldi", "matfree")
COLUMNS = ("cases", "lanczos", "arnoldi", "worst", "wrong", "not finite")


def low_rank(rng, n):
    rank = min(rng.integers(1, 6), n)
    return -1.0 + np.append(rng.uniform(0.1, 1.0, rank), np.zeros(n - rank))


def clustered(rng, n):
    return rng.choice([-1.0, 0.5, 2.0], n) + 10.0 ** -rng.integers(3, 9) * rng.normal(size=n)


def two_valued(rng, n):
    return np.where(np.arange(n) < max(1, n // 3), rng.uniform(-2, 2, 2)[0], 1.0)


SPECTRA = {
    "zero": lambda rng, n: np.zeros(n),
    "isotropic": lambda rng, n: np.full(n, rng.choice([-4.0, 1.0, -0.3])),
    "low rank - identity": low_rank,
    "two-valued": two_valued,
    "clustered": clustered,
    "geometric": lambda rng, n: np.geomspace(1.0, 10.0 ** -rng.integers(2, 13), n),
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "one outlier": lambda rng, n: np.append(10.0 ** rng.integers(2, 7), rng.normal(size=n - 1)),
    "low rank, times 1e-8": lambda rng, n: 1e-8 * low_rank(rng, n),
    "low rank, times 1e8": lambda rng, n: 1e8 * low_rank(rng, n),
    "isotropic, times 1e8": lambda rng, n: np.full(n, -1e8),
    "uniform, times 1e-25": lambda rng, n: 1e-25 * rng.uniform(-1, 1, n),
}


def symmetric(spectrum, rng):
    basis, _ = np.linalg.qr(rng.normal(size=2 * spectrum.shape))
    matrix = (basis * spectrum) @ basis.T
    return 0.5 * (matrix + matrix.T)


MATRICES = {
    "-4 I": lambda rng, n: -4.0 * np.eye(n),
    **{
        name: lambda rng, n, spectrum=spectrum: symmetric(spectrum(rng, n), rng)
        for name, spectrum in SPECTRA.items()
    },
    "nonsymmetric, random": lambda rng, n: rng.normal(size=(n, n)),
    "nonsymmetric, nilpotent": lambda rng, n: np.diag(np.ones(n - 1), rng.choice([-1, 1])),
    "I + nonsymmetric rank 2": lambda rng, n: (
        np.eye(n) + rng.normal(size=(n, 2)) @ rng.normal(size=(2, n))
    ),
}


def linear(matrix, x):
    return matrix @ x


@jax.jit
@jax.vmap
def ours(matrix, start):
    score, x = Partial(linear, matrix), jnp.zeros_like(start)
    options = {"num_matvecs": NUM_MATVECS, "start": start}
    return lanczos(score, x, **options), arnoldi(score, x, **options)


@jax.jit
@jax.vmap
def matfree_ritz(matrix, start):
    part = 0.5 * (matrix + matrix.T)
    k = min(NUM_MATVECS, len(start))
    result = decomp.tridiag_sym(k, reortho="full")(lambda v: part @ v, start)
    values, vectors = jnp.linalg.eigh(result.J_small)
    residuals = jnp.linalg.norm(result.residual) * jnp.abs(vectors[-1])
    return Ritz(values, residuals, num_valid=k)


def excess(matrix, values, residuals):
    """How much further than its residual each value is from the spectrum."""
    eigenvalues = np.linalg.eigvals(matrix) if np.iscomplexobj(values) else None
    if eigenvalues is None or np.array_equal(matrix, matrix.T):
        eigenvalues = np.linalg.eigvalsh(matrix)
        return np.min(np.abs(values[:, None] - eigenvalues), axis=1) - residuals
    shifted = matrix - values[:, None, None] * np.eye(len(matrix))
    return np.linalg.svd(shifted, compute_uv=False)[:, -1] - residuals


def judge(matrix, start, values, residuals, num_valid, tol):
    """The kind of failure of one result, or "none", and the largest excess in units of tol."""
    values, residuals = (np.asarray(a, np.result_type(a, np.float64)) for a in (values, residuals))
    if not (np.isfinite(values).all() and np.isfinite(residuals).all()) or num_valid < 1:
        return "not finite", np.nan
    valid = slice(0, num_valid)
    over = excess(matrix, values[valid], residuals[valid])
    worst = np.max(over / tol) if tol else np.sign(over.max())
    if (over > tol).any():
        return "wrong", worst
    if not np.isin(values[num_valid:], values[valid]).all():
        return "invented", worst
    if num_valid < len(values) and np.array_equal(matrix, matrix.T):
        eigenvalues, vectors = np.linalg.eigh(matrix)
        part = np.abs(start @ vectors) / np.linalg.norm(start)
        distance = np.min(np.abs(eigenvalues[:, None] - values[valid]), axis=1)
        if (distance * part > 2 * tol).any():
            return "premature", worst
    return "none", worst


def run(seeds, sizes=SIZES, dtypes=DTYPES):
    """Per family: how often each method failed in each way, and the worst excess of `lanczos`."""
    table = {name: collections.Counter() for name in MATRICES}
    worst = dict.fromkeys(MATRICES, -np.inf)
    for n in sizes:
        rng = np.random.default_rng(n)
        names = [name for name in MATRICES for _ in range(seeds)]
        matrices = np.stack([MATRICES[name](rng, n) for name in names])
        starts = rng.normal(size=(len(names), n))
        for dtype in dtypes:
            stored, start = matrices.astype(dtype), starts.astype(dtype)
            with jax.enable_x64(dtype == "float64"):
                results = (*ours(stored, start), matfree_ritz(stored, start))
                results = [jax.device_get(leaves) for leaves in results]
            for i, name in enumerate(names):
                exact = stored[i].astype(np.float64)
                part = 0.5 * (exact + exact.T)
                table[name]["cases"] += 1
                for method, matrix, ritz in zip(METHODS, (part, exact, part), results, strict=True):
                    tol = 10 * np.sqrt(n) * np.finfo(dtype).eps * np.linalg.norm(matrix, 2)
                    found = (ritz.values[i], ritz.residuals[i], int(ritz.num_valid[i]))
                    kind, over = judge(matrix, start[i].astype(np.float64), *found, tol)
                    table[name][method, kind] += 1
                    if method == "lanczos":
                        worst[name] = max(worst[name], over)
    return table, worst


def counts(entry):
    """Cases, silent failures of lanczos and arnoldi, and matfree's: wrong, not finite."""
    ours = [
        sum(entry[method, kind] for kind in ("wrong", "invented", "premature", "not finite"))
        for method in ("lanczos", "arnoldi")
    ]
    return [entry["cases"], *ours, entry["matfree", "wrong"], entry["matfree", "not finite"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12, help="matrices per family, size and dtype")
    parser.add_argument("--json", help="write the counts here")
    options = parser.parse_args()
    table, worst = run(options.seeds)
    table["all"] = sum(table.values(), collections.Counter())
    worst["all"] = max(worst.values())
    version = importlib.metadata.version("matfree")
    print(f"{'':34}{'silent failures':>18}{'':>8}   matfree {version}")
    print("{:26}{:>8}{:>9}{:>9}{:>8}{:>8}{:>12}".format("family", *COLUMNS))
    for name, entry in table.items():
        row = counts(entry)
        row.insert(3, round(float(worst[name]), 2))
        print("{:26}{:8}{:9}{:9}{:8.2f}{:8}{:12}".format(name, *row))
    if options.json:
        columns = ("cases", "lanczos", "arnoldi", "matfree_wrong", "matfree_not_finite")
        rows = {
            name: dict(zip(columns, counts(entry), strict=True)) | {"worst": float(worst[name])}
            for name, entry in table.items()
        }
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
