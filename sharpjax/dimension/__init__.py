r"""Local intrinsic dimension: how many directions of the data a clean point has about it.

Four estimators from a score at one noise level, each `(score, x0, alpha=, sigma=, key=)` with the
score that of $\alpha x_0 + \sigma\varepsilon$, and the curve of two of them over levels:

* [`flipd`][sharpjax.dimension.flipd.flipd], one trace;
* [`lhsd`][sharpjax.dimension.lhsd.lhsd], the small eigenvalues of the Hessian, by Lanczos
  quadrature;
* [`normal_bundle`][sharpjax.dimension.normal_bundle.normal_bundle], the rank of scores around the
  point;
* [`denoising_loss`][sharpjax.dimension.denoising_loss.denoising_loss], no derivative at all;
* [`dimension_curve`][sharpjax.dimension.curve.dimension_curve], over noise levels.

They agree where the data lie on a smooth manifold, sharp at the scale $\sigma/\alpha$ and flat at
it.  Which of them to use, and what each costs, is in `docs/dimension.md`.
"""

from sharpjax.dimension.curve import DimensionCurve, dimension_curve
from sharpjax.dimension.denoising_loss import denoising_loss
from sharpjax.dimension.flipd import flipd
from sharpjax.dimension.lhsd import lhsd, transition_mass
from sharpjax.dimension.normal_bundle import NormalBundle, normal_bundle

__all__ = [
    "DimensionCurve",
    "NormalBundle",
    "denoising_loss",
    "dimension_curve",
    "flipd",
    "lhsd",
    "normal_bundle",
    "transition_mass",
]
