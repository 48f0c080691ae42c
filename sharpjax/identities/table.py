"""All identities, and what checks them."""

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from scipy.special import ndtri

from sharpjax._checks import positive_integer
from sharpjax.identities import denoising, moments, plaplacian
from sharpjax.identities.identity import Identity, Row, evaluate
from sharpjax.rundir.progress import progress

IDENTITIES = moments.IDENTITIES + plaplacian.IDENTITIES + denoising.IDENTITIES
"""L1 to L5, P1 to P4 and D1, as `verify` takes them."""

# The chance that some row of a correct table fails.
FALSE_ALARM = 1e-3
LEAST_SAMPLES = 1000
LARGEST_DIM = 32
# Numbers in a batch's d x d matrices: half a megabyte stays in the cache.
BATCH_NUMBERS = 2**16


def verify(*, dim: int = 5, num_samples: int = 50_000, seed: int = 0) -> list[Row]:
    """Check every identity by numbers, on densities drawn from the seed.

    In float64, whatever the caller's setting, which is restored. Means over draws are compared by
    their z-score, which may reach what the largest of as many independent normal numbers as there
    are rows exceeds with probability 0.001 (Sidak): about 4.

    Args:
        dim: d, from 2 (in one dimension all covariances commute) to 32.
        num_samples: draws a mean, at least 1,000. P1, P3 and P4 compare a fixed number of draws.
        seed: of the densities and the draws, from 0 to 2^32 - 1.

    Returns:
        A row for each identity and setting, in the order of `IDENTITIES`.

    Raises:
        ValueError: an argument that is not an integer in its range.

    >>> rows = verify(dim=2, num_samples=2000)
    >>> sum(row.verdict == "fails" for row in rows)
    0
    """
    dim = positive_integer("dim", dim, least=2, largest=LARGEST_DIM)
    num_samples = positive_integer("num_samples", num_samples, least=LEAST_SAMPLES)
    seed = positive_integer("seed", seed, least=0, largest=2**32 - 1)
    with jax.enable_x64(True):
        tasks = [
            (identity, name, setting)
            for identity in IDENTITIES
            for name, setting in identity.settings(_settings_rng(seed, identity), dim).items()
        ]
        limit = float(-ndtri(0.5 * (1 - (1 - FALSE_ALARM) ** (1 / len(tasks)))))
        rows = []
        with progress("verify", total=len(tasks)) as bar:
            for index, (identity, name, setting) in enumerate(tasks):
                rng = np.random.default_rng([seed, index])
                num_draws = identity.num_draws or num_samples
                found = identity.compare(_batches(identity, setting, rng, num_draws, dim), limit)
                fields = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
                if printed := identity.printed:
                    fields |= {
                        "printed_statement": printed.statement,
                        "printed_source": printed.source,
                        "printed_verdict": printed.verdict(name, found.printed_verdict),
                    }
                rows.append(
                    Row(name=identity.name, setting=name, statement=identity.statement, **fields)
                )
                bar.advance(note=f"{identity.name}, {name}")
    return rows


def _batches(
    identity: Identity, setting: Any, rng: np.random.Generator, num_draws: int, dim: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """The sides at all draws. All batches have one size, so that one program serves them all."""
    largest = max(1, BATCH_NUMBERS // (dim**2 * identity.points_per_draw(dim)))
    num_batches = -(-num_draws // largest)
    size = -(-num_draws // num_batches)
    for start in range(0, num_batches * size, size):
        sides = evaluate(identity, setting, identity.draw(setting, rng, size))
        yield tuple(np.asarray(side)[: num_draws - start] for side in sides)


def _settings_rng(seed: int, identity: Identity) -> np.random.Generator:
    """Rows of one name draw from the same stream: the same densities where they ask for them."""
    return np.random.default_rng([seed, zlib.crc32(identity.name.encode())])
