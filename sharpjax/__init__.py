"""sharpjax: the curvature of diffusion models, and what it says about memorization.

The central idea: a *score* is a function of one example, ``x -> grad log p_t(x)``, with the noise
level and the condition already bound.  Everything in :mod:`sharpjax.curvature` takes
``(score, x)``; everything in :mod:`sharpjax.detection` takes a pair of them, with and without
the condition.
"""

from sharpjax import curvature, detection, identities, mitigation, models
from sharpjax.densities import Empirical, Gaussian, GaussianMixture
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.models.load import load
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.sampling import sample
from sharpjax.schedules import Schedule
from sharpjax.score import ScorePair, score_from_prediction

__version__ = "0.1.0"

__all__ = [
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "LatentDiffusion",
    "PixelDiffusion",
    "Schedule",
    "ScorePair",
    "curvature",
    "detection",
    "identities",
    "load",
    "mitigation",
    "models",
    "sample",
    "score_from_prediction",
]
