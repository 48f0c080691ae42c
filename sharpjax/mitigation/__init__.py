"""Noises that sampling does not copy from: SAIL, its rivals, and how they compare."""

from sharpjax.mitigation.calibration import Levels, calibrate
from sharpjax.mitigation.descent import Descent, adam, descend
from sharpjax.mitigation.methods import METHODS, treat
from sharpjax.mitigation.plausibility import Plausibility, plausibility
from sharpjax.mitigation.problem import Problem, Treatment
from sharpjax.mitigation.run import MitigationSettings, jobs, mitigate
from sharpjax.mitigation.sail import Sailed, sail
from sharpjax.mitigation.sharpness import FORMS, sharpness
from sharpjax.mitigation.tradeoff import curves, hypervolume, paired

__all__ = [
    "FORMS",
    "METHODS",
    "Descent",
    "Levels",
    "MitigationSettings",
    "Plausibility",
    "Problem",
    "Sailed",
    "Treatment",
    "adam",
    "calibrate",
    "curves",
    "descend",
    "hypervolume",
    "jobs",
    "mitigate",
    "paired",
    "plausibility",
    "sail",
    "sharpness",
    "treat",
]
