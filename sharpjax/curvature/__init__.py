"""Curvature of `log p` from its score: Jacobians, traces, spectra.

Everything here takes `(score, x)`: a function of one point and the point. It knows nothing about
networks, noise schedules or prompts. Units: `H` is 1/sigma^2, `K = I + sigma^2 H` has none.
"""

from sharpjax.curvature.batch import at_points
from sharpjax.curvature.estimate import Estimate
from sharpjax.curvature.operators import Jacobian, asymmetry, hessian, jacobian
from sharpjax.curvature.spectra import eigenvalues
from sharpjax.curvature.traces import effective_dimension, trace

__all__ = [
    "Estimate",
    "Jacobian",
    "asymmetry",
    "at_points",
    "effective_dimension",
    "eigenvalues",
    "hessian",
    "jacobian",
    "trace",
]
