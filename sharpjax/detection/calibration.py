r"""Thresholds from prompts that are known to be clean, for a model whose memories are not known.

A statistic's threshold is one of its values on such prompts, that of rank $k = \lceil (n + 1)
q \rceil$ of `n`: a new clean prompt is equally likely to fall into each of the `n + 1` gaps
between them, so that it lies beyond with probability $1 - k / (n + 1) \le 1 - q$, whatever
the distribution (split conformal prediction: H. Papadopoulos et al., ECML 2002, 345,
doi:10.1007/3-540-36755-1_29).  Of fewer than $q / (1 - q)$ prompts, 19 for 95% and 99 for
99%, none promises that.  How sure it is, as the quantile $x_q$ of all clean prompts: of `n`
values the number below it is binomial, so that those of ranks `l` and `u` bracket it with
probability

$$P(X_{(l)} \le x_q < X_{(u)}) = \sum_{k=l}^{u-1} \binom{n}{k} q^k (1-q)^{n-k} .$$
(H. A. David & H. N. Nagaraja, Order Statistics, 2003, section 7.1, doi:10.1002/0471722162.)
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpjax._checks import number
from sharpjax._reprs import one_line
from sharpjax.detection.evaluation import fraction
from sharpjax.detection.registry import STATISTICS, Parts
from sharpjax.detection.settings import DetectSettings, ImageSettings
from sharpjax.prompts import distinct
from sharpjax.rundir.files import write_text
from sharpjax.rundir.run import FORMAT, check_format

_ROUNDING = 1e-6  # of a statistic in float32
QUANTILE = 0.95  # its interval is closed from 72 prompts on; that of 99% from 368
CALIBRATION_NAME = "calibration.json"
# settings that everything depends on, and those that only statistics of some places do
_COMMON = ("num_noises", "num_steps")
_OF_GROUPS = {
    "first": (),
    "traces": ("trace_noises", "trace_timesteps", "path_steps"),
    "paths": ("guidance",),
    "gap": ("trace_noises", "trace_timesteps", "path_steps", "guidance"),
}


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Beyond which a value says *memorized*.

    Attributes:
        value: in the statistic's units.
        low: lower end of the 95% interval of the true quantile; -inf where there are too few
            prompts to say.
        high: upper end; inf likewise.
        direction: `+1` if larger values say memorized, `-1` if smaller ones do.
        quantile: fraction of new clean prompts that, on average over such thresholds, are on this
            side at least.
        num_prompts: that it was fixed on, all different.
        noise: standard deviation of one noise's value about its prompt's mean, of the half of these
            prompts that is nearest to the threshold; None where a prompt has one value.
    """

    value: float
    low: float
    high: float
    direction: int
    quantile: float
    num_prompts: int
    noise: float | None = None

    __repr__ = one_line

    def margin(self, value: float) -> float:
        """How far a value is beyond it: positive says memorized.

        A value that differs by rounding alone lies on it: the same prompt computed again, beside
        other prompts, differs so.

        Raises:
            ValueError: not one finite number: of NaN nothing can be said.
        """
        if np.shape(value) or not math.isfinite(number(value)):
            raise ValueError(f"a value must be one finite number to be judged, got {value!r:.80}")
        if math.isclose(value, self.value, rel_tol=_ROUNDING):
            return 0.0
        return self.direction * (value - self.value)

    def verdict(self, value: float) -> str:
        """`memorized` or `clean`, with `(unsure)` where a value lies within the interval.

        Raises:
            ValueError: as `margin`.
        """
        beyond = self.margin(value)
        unsure = " (unsure)" if self.low <= value <= self.high else ""
        return ("memorized" if beyond > 0 else "clean") + unsure


def fewest(quantile: float) -> int:
    """Clean prompts that a threshold needs to promise this.

    >>> fewest(0.95), fewest(0.99), fewest(0.5)
    (19, 99, 1)
    """
    return math.ceil(fraction("quantile", quantile) / (1 - quantile) - 1e-9)


def check_count(count: int, quantile: float) -> None:
    """See that so many clean prompts are enough.

    Raises:
        ValueError: they are not; the message says how many are.
    """
    if count < (needed := max(fewest(quantile), 2)):
        raise ValueError(
            f"no threshold of {count} clean prompts promises that {quantile:g} of new ones are "
            f"not called memorized: that needs {needed} different ones"
            + (f", or a quantile of at most {count / (count + 1):.3g}" if count > 1 else "")
        )


def threshold(
    values: np.ndarray, *, direction: int, quantile: float = QUANTILE, level: float = 0.95
) -> Threshold:
    """The value of clean prompts beyond which a new one lies with at most `1 - quantile`.

    Args:
        values: `(n,)`, of prompts known to be clean.
        direction: of the statistic, 1 or -1.
        quantile: fraction of clean prompts that may not be called memorized.
        level: of the interval.

    Raises:
        ValueError: too few values, one that is not finite, another direction, or a quantile or
            level outside (0, 1).

    >>> [threshold(np.arange(999.0), direction=sign).value for sign in (+1, -1)]
    [949.0, 49.0]
    """
    from scipy.stats import binom  # a second, which most uses do not need

    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ValueError(f"values of clean prompts must be a vector, got shape {values.shape}")
    check_count(len(values), quantile)
    if not np.isfinite(values).all():
        raise ValueError("values of clean prompts contain NaN or infinite ones")
    if direction not in (1, -1):
        raise ValueError(
            "direction must be 1 (larger values say memorized) or -1 (smaller ones do), got "
            f"{direction!r}"
        )
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
    rank = math.ceil((n + 1) * quantile - 1e-9)
    value = direction * float(ordered[rank - 1])
    return Threshold(value, float(low), float(high), direction, quantile, n)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What prompts that are known to be clean say of a model's statistics.

    Attributes:
        model: fingerprint of its weights.
        settings: of the run.
        standards: mean and standard deviation over clean prompts, `(2, n)`, of what the statistics
            with `parts` are made of, by the `key` of these: two terms of `alignment`, each averaged
            over a prompt's noises; of `displacement` every step, over noises too.
        thresholds: by column.
        prompts: digests of those that they were set on, sorted; none where these are not known, and
            of images, whose names say nothing.
    """

    model: str
    settings: dict[str, Any]
    standards: dict[str, np.ndarray]
    thresholds: dict[str, Threshold]
    prompts: tuple[str, ...] = ()

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
            ValueError: too few different prompts that did not fail.
        """
        done = [record for record in records if "network" in record]
        found = [done[place]["network"] for place in distinct([r["condition"] for r in done])]
        check_count(len(found), quantile)
        standards = {}
        for name in found[0]:
            if (parts := _parts(name)) is not None:
                each = [np.asarray(one[name]) for one in found]
                if parts.over_noises:
                    terms = np.concatenate(each)
                else:
                    terms = np.array([one.mean(axis=0) for one in each])
                standards[parts.key] = np.stack([terms.mean(axis=0), terms.std(axis=0, ddof=1)])
        fitted = cls(fingerprint, _as_json(settings), standards, thresholds={})
        columns = [scalars(one, fitted) for one in found]
        thresholds = {}
        for name in columns[0]:
            sign = STATISTICS[name.split("@")[0]].direction
            values = np.array([one[name] for one in columns])
            limit = threshold(values.mean(axis=1), direction=sign, quantile=quantile)
            thresholds[name] = dataclasses.replace(limit, noise=_noise(sign * values))
        of_prompts = isinstance(settings, DetectSettings)
        told = sorted({_digest(one["condition"]) for one in done}) if of_prompts else []
        return dataclasses.replace(fitted, thresholds=thresholds, prompts=tuple(told))

    def set_on(self, conditions: Sequence[str]) -> list[str]:
        """Of these the ones that the thresholds were set on.

        How often clean prompts are called memorized they cannot say: the thresholds lie where at
        most so many of them are.
        """
        known = set(self.prompts)
        return [text for text in conditions if _digest(text) in known]

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
        if (of_prompts := "num_noises" in self.settings) != ("num_noises" in ours):
            theirs, mine = ("prompts", "images") if of_prompts else ("images", "prompts")
            raise ValueError(
                f"the calibration is of {theirs}, not of {mine}; make one by sharpjax calibrate "
                f"--{mine}"
            )
        changed = [k for k in _relevant(settings) if ours[k] != self.settings.get(k)]
        plugins = dict(self.settings.get("plugins") or ())
        if any(plugins.get(name, digest) != digest for name, digest in ours.get("plugins") or ()):
            changed.append("plugins")
        if changed:
            there = {k: self.settings.get(k, "not known to its version") for k in changed}
            told = "; ".join(f"{k}: {there[k]} there, {ours[k]} now" for k in changed)
            raise ValueError(
                f"the calibration was made with other settings ({told}); make one with these by "
                "sharpjax calibrate"
            )

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        path = Path(path)
        document: dict[str, Any] = {
            "format": FORMAT,
            "model": self.model,
            "settings": self.settings,
        }
        for key in _keys():
            document[key] = self.standards[key].tolist() if key in self.standards else None
        thresholds = {name: dataclasses.asdict(one) for name, one in self.thresholds.items()}
        for one in thresholds.values():  # JSON has no infinities: an open end is null
            one |= {end: None for end in ("low", "high") if not math.isfinite(one[end])}
        document |= {"thresholds": thresholds, "prompts": list(self.prompts)}
        write_text(path, json.dumps(document, indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: something else is in it, or it is of another version.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no calibration {path}; sharpjax calibrate writes one")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not a calibration by sharpjax: {error}") from error
        if isinstance(document, dict) and {"model", "thresholds"} <= document.keys():
            check_format(str(path), document, instead="make one by sharpjax calibrate")
        try:
            standards = {
                key: np.array(document[key], np.float64)
                for key in _keys()
                if document[key] is not None
            }
            thresholds = {
                str(name): _threshold(one) for name, one in dict(document["thresholds"]).items()
            }
            if not isinstance(document["settings"], dict):
                raise ValueError("its settings are not an object")
            prompts = tuple(map(str, document.get("prompts", ())))
            return cls(document["model"], document["settings"], standards, thresholds, prompts)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            told = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path} is not a calibration by sharpjax: {told}") from error


def _digest(prompt: str) -> str:
    """That prompts can be found again in a file that need not say what they are."""
    return hashlib.sha256(prompt.strip().encode()).hexdigest()[:16]


def _noise(values: np.ndarray) -> float | None:
    """Of the half of the prompts with the largest means; `(prompts, noises)`."""
    if values.shape[1] < 2:
        return None
    upper = values[np.argsort(values.mean(axis=1))[len(values) // 2 :]]
    return float(np.sqrt(upper.var(axis=1, ddof=1).mean()))


def _threshold(entry: Mapping[str, Any]) -> Threshold:
    """Of a file, where an open end of the interval is null."""
    ends: dict[str, Any] = {"low": -math.inf, "high": math.inf}
    one = Threshold(**{k: ends[k] if v is None and k in ends else v for k, v in entry.items()})
    numbers = (one.value, one.low, one.high, one.quantile)
    if not all(type(v) in (int, float) and not math.isnan(v) for v in numbers):
        raise ValueError(f"a threshold of {numbers}")
    if not math.isfinite(one.value) or one.direction not in (1, -1):
        raise ValueError(f"a threshold of {one.value} in direction {one.direction}")
    noise = one.noise
    if noise is not None and not (type(noise) in (int, float) and 0 <= noise < math.inf):
        raise ValueError(f"noises that differ by {one.noise}")
    return one


def scalars(values: Mapping[str, Any], calibration: Calibration | None) -> dict[str, list[float]]:
    """The columns of a record as one number a noise.

    What is recorded in parts is combined by what clean prompts have, and left out without a
    calibration that knows of it.
    """
    found = {}
    for name, column in values.items():
        if (parts := _parts(name)) is not None:
            if calibration is None or parts.key not in calibration.standards:
                continue
            mean, spread = calibration.standards[parts.key]
            column = parts.combine(np.asarray(column), mean=mean, std=spread).tolist()
        found[name] = column
    return found


def _parts(column: str) -> Parts | None:
    entry = STATISTICS.get(column.split("@")[0])
    return None if entry is None else entry.parts


def _keys() -> list[str]:
    return [entry.parts.key for entry in STATISTICS.values() if entry.parts is not None]


def _as_json(settings: DetectSettings | ImageSettings) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def _relevant(settings: DetectSettings | ImageSettings) -> list[str]:
    """Settings that the statistics asked for depend on; the seed is for both runs to choose."""
    if isinstance(settings, ImageSettings):
        return ["p", "num_directions", "timestep"]
    entries = [STATISTICS[name] for name in settings.statistics]
    own = [k for one in entries for k in (*_OF_GROUPS[one.group], *one.options)]
    return list(dict.fromkeys([*_COMMON, *own]))
