r"""What a screen is set by, and what it misses: values at a look, of clean prompts and of copies.

Of every clean prompt one path is looked at: a threshold is a quantile of these values.  Of prompts
that are known to be memorized several paths are looked at and then followed to their end, where a
judge says which are copies: a threshold's *miss rate* of a prompt is the share of its copies that
pass, that of a rank the probability that a copy is the best of n of the prompt's paths,

$$
m = \frac{1}{\#\text{copies}} \sum_{\text{copies } c} \binom{\#\text{worse than } c}{n - 1} \Big/
\binom{N - 1}{n - 1},
$$

over all choices of n of its N paths.  A path is the best of n with probability 1/n, so that the
bound of `sharpjax.mitigation.copies_bound` is `n m` there.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from sharpjax._reprs import one_line
from sharpjax.detection.calibration import Threshold, threshold
from sharpjax.mitigation.copies_bound import MissRate, mean_rate, miss_rate
from sharpjax.mitigation.screen import QUANTITIES, Look, Quantity
from sharpjax.rundir.files import write_text
from sharpjax.rundir.run import FORMAT, check_format

SCREEN_NAME = "screen.json"
SCREENED = ("screened", "ranked")  # methods that take one
_ANEW = "set one anew by sharpjax screen"
_SETTINGS = ("quantity", "step", "num_probes", "num_steps", "guidance", "free")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScreenCalibration:
    """Of one look of one sampler.

    Attributes:
        model: fingerprint of its weights.
        quantity: that is looked at.
        step: before which.
        num_probes: of the effective dimension.
        num_steps: of the sampler.
        guidance: after the free steps.
        free: share of the steps without guidance.
        clean: `(n,)` values of clean prompts, one path each.
        memorized: of every memorized prompt the values of its paths, and which ended as copies.
    """

    model: str
    quantity: Quantity
    step: int
    num_probes: int
    num_steps: int
    guidance: float
    free: float
    clean: np.ndarray
    memorized: Mapping[str, tuple[np.ndarray, np.ndarray]]

    __repr__ = one_line

    def threshold(self, dropped: float) -> Threshold:
        """That drops this share of clean prompts' paths.

        Raises:
            ValueError: a share outside (0, 1), or so small that no threshold of so few promises it.
        """
        return threshold(self.clean, direction=-self._sign, quantile=1 - dropped)

    def look(self, dropped: float | None = None) -> Look:
        """With the threshold that drops so many; without one to rank by."""
        limit = None if dropped is None else self.threshold(dropped).value
        return Look(
            quantity=self.quantity, step=self.step, threshold=limit, num_probes=self.num_probes
        )

    def missed(self, dropped: float) -> MissRate | None:
        """By that threshold; None of fewer than two prompts with copies."""
        look = self.look(dropped)
        counts = [
            (sum(map(look.passes, values[copied])), int(copied.sum()))
            for values, copied in self._known
        ]
        return None if len(counts) < 2 else miss_rate(*np.array(counts).T)

    def missed_by_rank(self, num_tries: int) -> MissRate | None:
        """By the best of so many; None of fewer than two prompts with copies and so many paths."""
        rates = []
        for values, copied in self._known:
            openness = self._sign * values
            if len(values) < num_tries:
                continue
            worse = (openness[:, None] > openness).sum(axis=1)
            wins = [math.comb(int(w), num_tries - 1) for w in worse[copied]]
            rates.append(np.mean(wins) / math.comb(len(values) - 1, num_tries - 1))
        return None if len(rates) < 2 else mean_rate(np.array(rates))

    def missed_by(self, method: str, strength: float) -> MissRate | None:
        """By the method `screened` or `ranked` at its strength."""
        screens = method == SCREENED[0]
        return self.missed(strength) if screens else self.missed_by_rank(int(strength))

    @property
    def digest(self) -> str:
        """Of all of it."""
        told = json.dumps(self._document())
        return hashlib.sha256(told.encode()).hexdigest()

    def check(self, fingerprint: str, num_steps: int, guidance: float) -> None:
        """See that it was made for this model and this sampler.

        Raises:
            ValueError: it was not; the message says what differs.
        """
        there = {"model": self.model, "num_steps": self.num_steps, "guidance": self.guidance}
        now = {"model": fingerprint, "num_steps": num_steps, "guidance": guidance}
        if changed := [name for name in now if there[name] != now[name]]:
            told = "; ".join(f"{name}: {there[name]} there, {now[name]} now" for name in changed)
            raise ValueError(
                f"the screen was set for another model or sampler ({told}); set one by sharpjax "
                "screen, or give its --steps and --guidance"
            )

    def save(self, path: str | Path) -> Path:
        """As JSON."""
        write_text(Path(path), json.dumps(self._document(), indent=1) + "\n")
        return Path(path)

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = {"format": FORMAT, "model": self.model}
        document |= {name: getattr(self, name) for name in _SETTINGS}
        document["clean"] = self.clean.tolist()
        document["memorized"] = {
            prompt: {"values": values.tolist(), "copied": copied.tolist()}
            for prompt, (values, copied) in self.memorized.items()
        }
        return document

    @classmethod
    def load(cls, path: str | Path) -> "ScreenCalibration":
        """What `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is of another version, or no screen.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no screen {path}; sharpjax screen writes one")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(document, dict) or "clean" not in document:
                raise TypeError("no clean values")
            check_format(str(path), document, instead=_ANEW)
            try:
                memorized = {
                    prompt: (np.array(one["values"], float), np.array(one["copied"], bool))
                    for prompt, one in document["memorized"].items()
                }
                clean = np.array(document["clean"], float)
                numbers = {name: float(document[name]) for name in ("guidance", "free")}
            except ValueError as error:
                raise TypeError("values that are no numbers") from error
            settings = {name: document[name] for name in _SETTINGS} | numbers
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON ({error}); {_ANEW}") from error
        except (AttributeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no screen of sharpjax; {_ANEW}") from error
        found = cls(model=str(document["model"]), clean=clean, memorized=memorized, **settings)
        if fault := found._fault():
            raise ValueError(f"{path} is no screen of sharpjax: {fault}; {_ANEW}")
        return found

    def _fault(self) -> str | None:
        """What cannot be of a screen that was set: a NaN would count as a copy that is dropped."""
        known = self.memorized.values()
        if self.quantity not in get_args(Quantity):
            return f"quantity is {self.quantity!r}"
        if self.clean.ndim != 1 or any(a.shape != b.shape or a.ndim != 1 for a, b in known):
            return "its values do not fit each other"
        if not len(self.clean) or not all(
            np.isfinite(values).all() for values in (self.clean, *(a for a, _ in known))
        ):
            return "it lacks clean values, or has some that are NaN or infinite"
        whole = (self.step, self.num_probes, self.num_steps)
        if not all(isinstance(one, int) for one in whole) or not (
            1 <= self.step < self.num_steps and self.num_probes >= 1
        ):
            return f"step {self.step} of {self.num_steps} with {self.num_probes} probes"
        if not (0 <= self.free <= 1 and math.isfinite(self.guidance)):
            return f"free is {self.free}, guidance {self.guidance}"
        return None

    @property
    def _sign(self) -> int:
        return QUANTITIES[self.quantity]

    @property
    def _known(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(values, copied) for values, copied in self.memorized.values() if copied.any()]


def screen_for(
    asked: ScreenCalibration | None,
    own: Path | None,
    *,
    fingerprint: str,
    num_steps: int,
    guidance: float,
) -> ScreenCalibration | None:
    """The screen that is asked for; or the model's own, if it has one and it is for this sampler.

    Raises:
        ValueError: of one that is asked for, that it is for another; of the model's, that it is
            damaged.
    """
    found = asked
    if found is None:
        if own is None or not own.is_file():
            return None
        found = ScreenCalibration.load(own)
    try:
        found.check(fingerprint, num_steps, guidance)
    except ValueError:
        if asked is not None:
            raise
        return None
    return found
