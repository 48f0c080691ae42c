"""Which conditions are memorized: statistics of a pair of scores, and how well they tell."""

from sharpjax.detection.evaluation import Evaluation, evaluate
from sharpjax.detection.oracle import TrainingSet
from sharpjax.detection.run import detect
from sharpjax.detection.settings import DetectSettings
from sharpjax.detection.statistics import (
    STATISTICS,
    effective_dimension,
    hessian_score,
    hessian_score_difference,
    score_difference,
    trace_difference,
)

__all__ = [
    "STATISTICS",
    "DetectSettings",
    "Evaluation",
    "TrainingSet",
    "detect",
    "effective_dimension",
    "evaluate",
    "hessian_score",
    "hessian_score_difference",
    "score_difference",
    "trace_difference",
]
