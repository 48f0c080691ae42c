r"""Spectra of the Hessian along the sampling path: the landscape that a sample rolls down.

For every condition and initial noise the DDIM path is followed, and at some of its steps all
eigenvalues of the symmetric part of the score's Jacobian are computed exactly, with Lanczos and
Arnoldi values beside them, and the exact-score oracle's where the training set is known.  A
memorized condition leaves nothing open: all eigenvalues stand at `-1/sigma^2`, at the first step
already (Jeon, Kim & No, ICML 2025, compare first, middle and last steps).

Eigenvalues are stored as those of `sigma^2 H`, without units: -1 is pure noise, 0 a flat
direction, positive a valley between modes.  Results go to `results.jsonl`, one fsynced line per
spectrum, so a killed run goes on where it stopped.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from sharpjax import curvature
from sharpjax._linalg import eigvalsh
from sharpjax._types import Array, ArrayLike
from sharpjax.conditional import ConditionalModel, digest, unconditional_pair
from sharpjax.detection.oracle import TrainingSet
from sharpjax.rundir.files import write_csv
from sharpjax.rundir.run import Run
from sharpjax.sampling import sample
from sharpjax.score import ScorePair

SPECTRA_NAME = "spectra"  # in a detection run: its own, a directory for the column that chose them
_FIELDS = ("t", "sigma", "exact", "asymmetry", "lanczos", "arnoldi", "oracle")
UNCONDITIONAL = "unconditional"
TOLERANCE = 0.05  # of sigma^2 H: what counts as zero
SCORES = ("conditional", UNCONDITIONAL, "difference")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectrumSettings:
    """What defines the numbers of a run.

    Attributes:
        num_noises: sampling paths a condition; the noises are shared by all conditions.
        num_stages: steps of the path that are analysed, evenly spaced from first to last.
        num_steps: of the DDIM path.
        num_matvecs: of Lanczos and of Arnoldi.
        score: whose Jacobian: "conditional", "unconditional" or their "difference".
        seed: of noises and start vectors.
    """

    num_noises: int = 1
    num_stages: int = 3
    num_steps: int = 50
    num_matvecs: int = 48
    score: str = "conditional"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_noises", "num_stages", "num_steps", "num_matvecs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_stages > self.num_steps:
            raise ValueError(
                f"num_stages must be at most num_steps = {self.num_steps}, got {self.num_stages}"
            )
        if self.score not in SCORES:
            raise ValueError(f"unknown score {self.score!r}; choose one of {', '.join(SCORES)}")

    @property
    def stages(self) -> list[int]:
        """Indices of the analysed steps: the first, the last, and what lies evenly between."""
        return np.linspace(0, self.num_steps - 1, self.num_stages).round().astype(int).tolist()


def counts(values: Sequence[float]) -> dict[str, Any]:
    """Number and size of the eigenvalues of `sigma^2 H`.

    `negative`, `near_zero` and `positive` are how many lie below `-TOLERANCE`, within it and above;
    `sum_negative` and `sum_positive` are of all below and above 0; `effective_dimension` is `tr K`,
    the sum of one plus each.

    >>> counts([-1.0, -0.01, 0.5])["near_zero"]
    1
    """
    data = np.asarray(values, np.float64)
    negative, positive = int(np.sum(data < -TOLERANCE)), int(np.sum(data > TOLERANCE))
    return {
        "negative": negative,
        "near_zero": len(data) - negative - positive,
        "positive": positive,
        "sum_negative": float(data[data < 0].sum()),
        "sum_positive": float(data[data > 0].sum()),
        "smallest": float(data.min()),
        "largest": float(data.max()),
        "effective_dimension": float(np.sum(1 + data)),
    }


def spectrum(
    model: ConditionalModel,
    conditions: Sequence[str],
    directory: str | Path,
    settings: SpectrumSettings,
    *,
    fingerprint: str | None = None,
    training_set: TrainingSet | None = None,
    labels: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Spectra of `conditions` along their sampling paths, or the rest of a stopped run.

    Args:
        model: any conditional model.
        conditions: distinct names that the model can encode; none of a model without conditions,
            whose records call it "unconditional".
        directory: of the run.
        settings: what to compute.
        fingerprint: of the model, which a run goes on with alone; `None`: a digest of its arrays.
        training_set: if the model's is known, the exact score's spectra at the same states.
        labels: the training set's number of each of `conditions`; needed with it.

    Returns:
        One record per condition, noise and stage: `condition`, `noise`, `step`, `t`,
        `sigma`; `exact`, all eigenvalues of `sigma^2 (J + J^T)/2`, ascending;
        `asymmetry`, `||J - J^T|| / ||J + J^T||`; `lanczos` and `arnoldi` with `values`
        (for Arnoldi the real parts, and `imaginary`) and `residuals`; `oracle` like
        `exact`, or None.

    Raises:
        ValueError: duplicate or unknown conditions, a score that the model does not have or that
            is not finite, a directory with another run in it.
        FileExistsError: the directory holds something else.
    """
    fingerprint = fingerprint or digest(model)
    if len(set(conditions)) != len(conditions):
        raise ValueError("conditions must be distinct")
    if (training_set is None) != (labels is None):
        raise ValueError("training_set and labels go together")
    encoded: Any = [None]
    if model.has_conditions or conditions:
        encoded = model.encode(conditions)
    elif settings.score != UNCONDITIONAL:
        raise ValueError(
            f"this model has no conditions: its score is {UNCONDITIONAL!r}, got {settings.score!r}"
        )
    conditions = conditions if model.has_conditions else [UNCONDITIONAL]
    grid = model.schedule.timesteps(settings.num_steps)
    run = Run.claim(
        directory,
        "spectrum",
        {
            "model": fingerprint,
            "conditions": list(conditions),
            "oracle": training_set is not None,
            **dataclasses.asdict(settings),
        },
        key=["condition", "noise", "step"],
        fields=_FIELDS,
    )
    place = {name: i for i, name in enumerate(conditions)}
    key = jax.random.key(settings.seed)

    def along_a_path(_: Any, missing: list[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
        name, noise, _ = missing[0]
        i = place[name]
        unit = jax.random.normal(jax.random.fold_in(key, 2 * noise), model.shape)
        x_T = model.schedule.first_sigma * unit
        states = _path(model, encoded[i], x_T, num_steps=settings.num_steps)
        for _, _, step in missing:
            t, x = grid[step].item(), states[step]
            start = jax.random.fold_in(key, 2 * noise + 1)
            record = {"condition": name, "noise": noise, "step": step, "t": t}
            pair = _pair(model, encoded[i], t)
            record |= _spectra(pair, x, start, settings)
            record["oracle"] = None
            if training_set is not None:
                level = {"alpha": pair.alpha, "sigma": pair.sigma}
                label = np.asarray(labels)[i]  # which go with the training set
                values = _oracle(training_set, label, x, **level, which=settings.score)
                record["oracle"] = _rounded(values)
            yield record

    paths = [
        [(name, noise, step) for step in settings.stages]
        for name in conditions
        for noise in range(settings.num_noises)
    ]
    run.work("spectra", paths, along_a_path, note=lambda r: f"{r['condition']}, t = {r['t']}")
    return [run.done[key] for path in paths for key in path]


def _spectra(pair: ScorePair, x: Array, key: Array, settings: SpectrumSettings) -> dict[str, Any]:
    unit = float(pair.sigma) ** 2
    score = getattr(pair, settings.score)
    if settings.score == "difference":
        score = Partial(ScorePair.difference, pair)  # a method is no pytree
    J = np.asarray(curvature.hessian(score, x), np.float64)
    krylov: Any = {"key": key, "num_matvecs": min(settings.num_matvecs, x.size)}
    lanczos = curvature.lanczos(score, x, **krylov)
    arnoldi = curvature.arnoldi(score, x, **krylov)
    m, n = int(lanczos.num_valid), int(arnoldi.num_valid)
    return {
        "sigma": float(pair.sigma),
        "exact": _rounded(unit * np.linalg.eigvalsh(0.5 * (J + J.T))),
        "asymmetry": float(np.linalg.norm(J - J.T) / np.linalg.norm(J + J.T)),
        "lanczos": {
            "values": _rounded(unit * lanczos.values[:m]),
            "residuals": _rounded(unit * lanczos.residuals[:m]),
        },
        "arnoldi": {
            "values": _rounded(unit * np.real(arnoldi.values[:n])),
            "imaginary": _rounded(unit * np.imag(arnoldi.values[:n])),
            "residuals": _rounded(unit * arnoldi.residuals[:n]),
        },
    }


@jax.jit(static_argnames="num_steps")
def _path(model: ConditionalModel, condition: Array | None, x_T: Array, *, num_steps: int) -> Array:
    """States of the DDIM path under the condition, if there is one, noise first."""

    def score_at(x: Array, t: Array) -> Array:
        return _pair(model, condition, t).conditional(x)

    return sample(score_at, x_T, model.schedule, num_steps=num_steps, trajectory=True)


def _pair(model: ConditionalModel, condition: Array | None, t: ArrayLike) -> ScorePair:
    return unconditional_pair(model, t) if condition is None else model.scores(condition, t)


@jax.jit(static_argnames="which")
def _oracle(
    training_set: TrainingSet, label: Array, x: Array, *, alpha: Array, sigma: Array, which: str
) -> Array:
    """All eigenvalues of `sigma^2 H` of the exact score, ascending."""
    unconditional, conditional = training_set.densities(label, alpha=alpha, sigma=sigma)
    if which == "difference":
        H = conditional.hessian(x) - unconditional.hessian(x)
    else:
        H = {"unconditional": unconditional, "conditional": conditional}[which].hessian(x)
    return sigma**2 * eigvalsh(H)


def _rounded(values: Array | np.ndarray) -> list[float]:
    """As a list of floats of 7 digits: what float32 holds, without a tail of noise."""
    return [float(f"{value:.7g}") for value in np.asarray(values, np.float64)]


def write_table(path: Path, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`spectrum.csv`: a row per record and source; returned as well.

    Sources are the exact spectra of `network` and `oracle`, and `lanczos` and `arnoldi`,
    which know the ends of a spectrum and not its counts: those are left empty.
    """
    rows = []
    for record in records:
        head = {name: record[name] for name in ("condition", "noise", "t", "sigma")}
        for who in ("network", "lanczos", "arnoldi", "oracle"):
            values = record["exact" if who == "network" else who]
            if values is None:
                continue
            is_exact = isinstance(values, list)
            found = counts(values if is_exact else values["values"])
            if not is_exact:
                ends = ("smallest", "largest")
                found = {name: found[name] if name in ends else "" for name in found}
            asymmetry = {"network": record["asymmetry"], "oracle": 0.0}.get(who, "")
            rows.append(head | {"source": who, "asymmetry": asymmetry} | found)
    write_csv(path, rows)
    return rows
