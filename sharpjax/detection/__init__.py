"""Which conditions are memorized: statistics of a pair of scores, and how well they tell."""

from sharpjax.detection.calibration import Calibration
from sharpjax.detection.evaluation import Comparison, Evaluation, compare, evaluate
from sharpjax.detection.maps import memorization_map, pixel_auc, pixel_iou
from sharpjax.detection.oracle import TrainingSet
from sharpjax.detection.plugins import load_plugins
from sharpjax.detection.registry import STATISTICS, register
from sharpjax.detection.settings import DetectSettings
from sharpjax.detection.statistics import (
    effective_dimension,
    hessian_score,
    hessian_score_difference,
    score_difference,
    trace_difference,
)
from sharpjax.prompts import Case

__all__ = [
    "STATISTICS",
    "Calibration",
    "Case",
    "Comparison",
    "DetectSettings",
    "Evaluation",
    "TrainingSet",
    "compare",
    "effective_dimension",
    "evaluate",
    "hessian_score",
    "hessian_score_difference",
    "load_plugins",
    "memorization_map",
    "pixel_auc",
    "pixel_iou",
    "register",
    "score_difference",
    "trace_difference",
]
