r"""Thresholds from prompts that are known to be clean, for a model whose memories are not known.

A statistic's threshold is a quantile of its values on such prompts: the fraction of clean prompts
above it is then the false-positive rate.  How sure it is follows without any assumption on their
distribution: of ``n`` values the number below the true quantile ``q`` is binomial, so that the
order statistics of ranks ``l`` and ``u`` bracket it with probability

.. math:: P(X_{(l)} \le x_q < X_{(u)}) = \sum_{k=l}^{u-1} \binom{n}{k} q^k (1-q)^{n-k} .

(H. A. David & H. N. Nagaraja, Order Statistics, 2003, section 7.1, doi:10.1002/0471722162.)
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpjax.curvature.validation import number
from sharpjax.detection.evaluation import fraction
from sharpjax.detection.settings import DetectSettings, ImageSettings
from sharpjax.detection.statistics import STATISTICS, combined_alignment, largest_step
from sharpjax.prompts import distinct
from sharpjax.reprs import one_line
from sharpjax.rundir import write_text

QUANTILE = 0.95  # its interval is closed from 72 prompts on; that of 99% from 368
CALIBRATION_NAME = "calibration.json"
# settings that everything depends on, and those that only statistics of some places do
_COMMON = ("num_noises", "independent", "num_steps")
_OWN: dict[str, tuple[str, ...]] = {
    "level": ("trace_noises", "trace_timesteps", "num_probes", "path_steps"),
    "path": ("guidance",),
    "end": ("guidance", "num_probes"),
    "images": ("guidance",),
    "latent": ("guidance", "num_directions"),
}


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Beyond which a value says *memorized*.

    Attributes:
        value: in the statistic's units.
        low: lower end of the 95% interval of the true quantile; -inf where there are too few
            prompts to say.
        high: upper end; inf likewise.
        direction: ``+1`` if larger values say memorized, ``-1`` if smaller ones do.
        quantile: fraction of clean prompts on this side.
        num_prompts: that it was fixed on, all different.
    """

    value: float
    low: float
    high: float
    direction: int
    quantile: float
    num_prompts: int

    __repr__ = one_line

    def margin(self, value: float) -> float:
        """How far a value is beyond it: positive says memorized.

        Raises:
            ValueError: not one finite number: of NaN nothing can be said.
        """
        if np.shape(value) or not math.isfinite(number(value)):
            raise ValueError(f"a value must be one finite number to be judged, got {value!r:.80}")
        return self.direction * (value - self.value)

    def verdict(self, value: float) -> str:
        """``memorized`` or ``clean``, with ``(unsure)`` where a value lies within the interval.

        Raises:
            ValueError: as :meth:`margin`.
        """
        beyond = self.margin(value)
        unsure = " (unsure)" if self.low <= value <= self.high else ""
        return ("memorized" if beyond > 0 else "clean") + unsure


def threshold(
    values: np.ndarray, *, direction: int, quantile: float = QUANTILE, level: float = 0.95
) -> Threshold:
    """The quantile of clean prompts' values, on the side that says memorized.

    Args:
        values: ``(n,)``, of prompts known to be clean.
        direction: of the statistic, 1 or -1.
        quantile: fraction of clean prompts that may not be called memorized.
        level: of the interval.

    Raises:
        ValueError: fewer than two values, one that is not finite, another direction, or a quantile
            or level outside (0, 1).

    >>> print(f"{threshold(np.arange(1000.0), direction=+1).value:.2f}")
    949.05
    >>> print(f"{threshold(np.arange(1000.0), direction=-1).value:.2f}")
    49.95
    """
    from scipy.stats import binom  # a second, which most uses do not need

    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"a threshold needs at least two clean prompts, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values of clean prompts contain NaN or infinite ones")
    if direction not in (1, -1):
        raise ValueError(
            "direction must be 1 (larger values say memorized) or -1 (smaller ones do), got "
            f"{direction!r}"
        )
    fraction("quantile", quantile)
    ordered = np.sort(direction * values)
    n = len(ordered)
    below = binom(n, quantile)
    # the narrowest ranks whose tails hold no more than (1 - level)/2 each; rank 0 and n + 1 are
    # beyond all values
    tail = (1 - fraction("level", level)) / 2
    lower = int(below.ppf(tail))
    upper = int(below.isf(tail)) + 1
    padded = np.concatenate([[-math.inf], ordered, [math.inf]])
    low, high = padded[lower], padded[min(upper, n + 1)]
    if direction < 0:
        low, high = -high, -low
    value = direction * float(np.quantile(ordered, quantile))
    return Threshold(value, float(low), float(high), direction, quantile, n)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What prompts that are known to be clean say of a model's statistics.

    Attributes:
        model: fingerprint of its weights.
        settings: of the run.
        alignment: mean and standard deviation of the two terms of ``guidance_alignment`` over
            prompts, each averaged over its noises: ``(2, 2)``, or None.
        displacement: mean and standard deviation of the length of every step, over prompts and
            noises: ``(2, num_steps)``, or None.
        thresholds: by column.
    """

    model: str
    settings: dict[str, Any]
    alignment: np.ndarray | None
    displacement: np.ndarray | None
    thresholds: dict[str, Threshold]

    __repr__ = one_line

    @classmethod
    def fit(
        cls,
        records: Sequence[Mapping[str, Any]],
        settings: DetectSettings | ImageSettings,
        *,
        fingerprint: str,
        quantile: float = QUANTILE,
    ) -> "Calibration":
        """From the records of a detection run on prompts, or images, that are known to be clean.

        Each counts once, however often it stands there, and blank prompts do not.

        Raises:
            ValueError: fewer than two different prompts that did not fail.
        """
        done = [record for record in records if "network" in record]
        found = [done[place]["network"] for place in distinct([r["condition"] for r in done])]
        if len(found) < 2:
            raise ValueError(f"a calibration needs at least two clean prompts, got {len(found)}")
        parts: dict[str, np.ndarray | None] = {"alignment": None, "displacement": None}
        for name in found[0]:
            if name.startswith("guidance_alignment"):
                terms = np.array([np.mean(one[name], axis=0) for one in found])
                parts["alignment"] = np.stack([terms.mean(axis=0), terms.std(axis=0, ddof=1)])
            elif name == "step_displacement":
                steps = np.concatenate([one[name] for one in found])
                parts["displacement"] = np.stack([steps.mean(axis=0), steps.std(axis=0, ddof=1)])
        fitted = cls(fingerprint, _as_json(settings), **parts, thresholds={})
        scalars = [fitted.scalars(one) for one in found]
        thresholds = {
            name: threshold(
                np.array([np.mean(one[name]) for one in scalars]),
                direction=STATISTICS[name.split("@")[0]].direction,
                quantile=quantile,
            )
            for name in scalars[0]
        }
        return dataclasses.replace(fitted, thresholds=thresholds)

    def scalars(self, values: Mapping[str, Any]) -> dict[str, list[float]]:
        """The columns of a record as one number a noise, those made of parts too."""
        return scalars(values, self)

    def check(self, settings: DetectSettings | ImageSettings, *, fingerprint: str) -> None:
        """See that it was made for this model, and with these settings, as far as they matter.

        Raises:
            ValueError: it was not; the message says what differs.
        """
        if self.model != fingerprint:
            raise ValueError(
                f"the calibration is of another model or dtype ({self.model} there, {fingerprint} "
                "now); make one by sharpjax calibrate"
            )
        ours = _as_json(settings)
        changed = [k for k in _relevant(settings) if ours[k] != self.settings.get(k)]
        if changed:
            told = "; ".join(f"{k}: {self.settings.get(k)} there, {ours[k]} now" for k in changed)
            raise ValueError(
                f"the calibration was made with other settings ({told}); make one with these by "
                "sharpjax calibrate"
            )

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        path = Path(path)
        document = {
            "model": self.model,
            "settings": self.settings,
            "alignment": None if self.alignment is None else self.alignment.tolist(),
            "displacement": None if self.displacement is None else self.displacement.tolist(),
            # JSON has no infinities: an end that cannot be told is null
            "thresholds": {
                name: {
                    k: None if isinstance(v, float) and not math.isfinite(v) else v
                    for k, v in dataclasses.asdict(one).items()
                }
                for name, one in self.thresholds.items()
            },
        }
        write_text(path, json.dumps(document, indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: something else is in it.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no calibration {path}; sharpjax calibrate writes one")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            parts = {
                name: None if document[name] is None else np.array(document[name], np.float64)
                for name in ("alignment", "displacement")
            }
            thresholds = {
                str(name): _threshold(one) for name, one in dict(document["thresholds"]).items()
            }
            if not isinstance(document["settings"], dict):
                raise ValueError("its settings are not an object")
            return cls(document["model"], document["settings"], **parts, thresholds=thresholds)
        except KeyError as error:
            raise ValueError(f"{path} is not a calibration by sharpjax: no {error}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a calibration by sharpjax: {error}") from error


def _threshold(entry: Mapping[str, Any]) -> Threshold:
    """Of a file, where an open end of the interval is null."""
    ends: dict[str, Any] = {"low": -math.inf, "high": math.inf}
    one = Threshold(**{k: ends[k] if v is None and k in ends else v for k, v in entry.items()})
    numbers = (one.value, one.low, one.high, one.quantile)
    if not all(type(v) in (int, float) and not math.isnan(v) for v in numbers):
        raise ValueError(f"a threshold of {numbers}")
    if not math.isfinite(one.value) or one.direction not in (1, -1):
        raise ValueError(f"a threshold of {one.value} in direction {one.direction}")
    return one


def scalars(values: Mapping[str, Any], calibration: Calibration | None) -> dict[str, list[float]]:
    """The columns of a record as one number a noise.

    ``guidance_alignment`` and ``step_displacement`` are standardised on clean prompts, and left
    out without a calibration that knows of them.
    """
    found = {}
    for name, column in values.items():
        if name.startswith("guidance_alignment"):
            if calibration is None or calibration.alignment is None:
                continue
            mean, spread = calibration.alignment
            column = combined_alignment(np.asarray(column), mean, spread).tolist()
        elif name == "step_displacement":
            if calibration is None or calibration.displacement is None:
                continue
            mean, spread = calibration.displacement
            column = largest_step(np.asarray(column), mean=mean, std=spread).tolist()
        found[name] = column
    return found


def _as_json(settings: DetectSettings | ImageSettings) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return document


def _relevant(settings: DetectSettings | ImageSettings) -> list[str]:
    """Settings that the statistics asked for depend on; the seed is for both runs to choose."""
    if isinstance(settings, ImageSettings):
        return ["p", "num_directions", "timestep"]
    places = {STATISTICS[name].where for name in settings.statistics}
    own = dict.fromkeys(k for place in places for k in _OWN.get(place, ()))
    if "hessian_score_difference" in settings.statistics:
        own["squared"] = None
    return [*_COMMON, *own]
