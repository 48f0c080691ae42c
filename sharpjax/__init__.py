"""sharpjax: the curvature of diffusion models, and what it says about memorization.

The central idea: a *score* is a function of one example, `x -> grad log p_t(x)`, with the noise
level and the condition already bound.  Everything in `sharpjax.curvature` takes
`(score, x)`; everything in `sharpjax.detection` takes a pair of them, with and without
the condition.

Names are imported when they are first asked for: the command line tells mistakes before JAX is
loaded, which takes a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sharpjax._jaxlib import leave_out_wrong_sums

if TYPE_CHECKING:
    from sharpjax import bench as bench
    from sharpjax import checkpoints as checkpoints
    from sharpjax import curvature, detection, identities, mitigation, models, runs
    from sharpjax import densities as densities
    from sharpjax import dimension as dimension
    from sharpjax import networks as networks
    from sharpjax import report as report
    from sharpjax import schedules as schedules
    from sharpjax import training as training
    from sharpjax.densities import Empirical, Gaussian, GaussianMixture
    from sharpjax.models.latent_diffusion import LatentDiffusion
    from sharpjax.models.load import load
    from sharpjax.models.pixel_diffusion import PixelDiffusion
    from sharpjax.sampling import sample
    from sharpjax.schedules import Schedule
    from sharpjax.score import ScorePair, score_from_prediction
    from sharpjax.torch_scores import from_torch

__version__ = "0.2.0"

leave_out_wrong_sums()

_PLACES = {
    "densities": ("Empirical", "Gaussian", "GaussianMixture"),
    "models": ("LatentDiffusion", "PixelDiffusion", "load"),
    "sampling": ("sample",),
    "schedules": ("Schedule",),
    "score": ("ScorePair", "score_from_prediction"),
    "torch_scores": ("from_torch",),
}
_WHERE = {name: module for module, names in _PLACES.items() for name in names}
_PACKAGES = (
    "bench", "checkpoints", "curvature", "densities", "detection", "dimension", "identities",
    "mitigation", "models", "networks", "report", "runs", "schedules", "training",
)  # fmt: skip

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
    "from_torch",
    "identities",
    "load",
    "mitigation",
    "models",
    "runs",
    "sample",
    "score_from_prediction",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"sharpjax.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'sharpjax' has no attribute {name!r}")
    value = getattr(import_module(f"sharpjax.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES, "__version__"})
