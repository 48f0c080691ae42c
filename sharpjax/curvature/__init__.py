"""Curvature of `log p` from its score: Jacobians, traces, spectra, p-Laplacians.

Everything here takes `(score, x)`: a function of one point and the point. It knows nothing about
networks, noise schedules or prompts. Units: `H` is 1/sigma^2, `K = I + sigma^2 H` has none.
"""

from sharpjax.curvature.batch import at_points
from sharpjax.curvature.density import SpectralDensity, spectral_density
from sharpjax.curvature.eigenpairs import Eigenpairs, extreme_eigenpairs
from sharpjax.curvature.estimate import Estimate
from sharpjax.curvature.krylov import Ritz, arnoldi, lanczos
from sharpjax.curvature.methods import Exact, Hutchinson, HutchPP, XTrace
from sharpjax.curvature.norms import diagonal, frobenius_norm
from sharpjax.curvature.operators import Jacobian, asymmetry, hessian, jacobian
from sharpjax.curvature.plaplacian import p_laplacian
from sharpjax.curvature.plaplacian_bounds import (
    radius_bias_bound,
    sampling_bound,
    score_error_bound,
)
from sharpjax.curvature.posterior import PosteriorCovariance, posterior_covariance
from sharpjax.curvature.spectra import Inertia, eigenvalues, inertia, stochastic_asymmetry
from sharpjax.curvature.traces import (
    effective_dimension,
    trace,
    trace_of_difference,
    trace_of_power,
)

__all__ = [
    "Eigenpairs",
    "Estimate",
    "Exact",
    "HutchPP",
    "Hutchinson",
    "Inertia",
    "Jacobian",
    "PosteriorCovariance",
    "Ritz",
    "SpectralDensity",
    "XTrace",
    "arnoldi",
    "asymmetry",
    "at_points",
    "diagonal",
    "effective_dimension",
    "eigenvalues",
    "extreme_eigenpairs",
    "frobenius_norm",
    "hessian",
    "inertia",
    "jacobian",
    "lanczos",
    "p_laplacian",
    "posterior_covariance",
    "radius_bias_bound",
    "sampling_bound",
    "score_error_bound",
    "spectral_density",
    "stochastic_asymmetry",
    "trace",
    "trace_of_difference",
    "trace_of_power",
]
