"""Images that are no copies: SAIL, its rivals, screened sampling, and how they compare."""

from sharpjax.mitigation.copies_bound import copies_bound, miss_rate, pass_rate
from sharpjax.mitigation.descent import Descent, descend
from sharpjax.mitigation.levels import Levels, calibrate
from sharpjax.mitigation.methods import METHODS, treat
from sharpjax.mitigation.optimizers import adam, adam_on_sphere
from sharpjax.mitigation.plausibility import Plausibility, plausibility
from sharpjax.mitigation.problem import Problem, Treatment
from sharpjax.mitigation.reference_judge import ReferenceJudge
from sharpjax.mitigation.sail import Sailed, sail
from sharpjax.mitigation.sail_official import sail_official
from sharpjax.mitigation.screen import Look, Screened, ranked, screened
from sharpjax.mitigation.sharpness import FORMS, sharpness
from sharpjax.mitigation.tradeoff import curves, hypervolume, paired

__all__ = [
    "FORMS",
    "METHODS",
    "Descent",
    "Levels",
    "Look",
    "Plausibility",
    "Problem",
    "ReferenceJudge",
    "Sailed",
    "Screened",
    "Treatment",
    "adam",
    "adam_on_sphere",
    "calibrate",
    "copies_bound",
    "curves",
    "descend",
    "hypervolume",
    "miss_rate",
    "paired",
    "pass_rate",
    "plausibility",
    "ranked",
    "sail",
    "sail_official",
    "screened",
    "sharpness",
    "treat",
]
