r"""Noise schedules: signal `alpha` and noise `sigma` as functions of time.

The forward process is

$$ x_t = \alpha_t x_0 + \sigma_t \epsilon , $$

variance preserving or not, and time is what the network is told:

* [`Schedule`][sharpjax.Schedule], the training grid `t = 0, ..., T - 1` of DDPM and
  Stable Diffusion, $\alpha_t^2 + \sigma_t^2 = 1$;
* [`FlowSchedule`][sharpjax.schedules.FlowSchedule], flow matching as in Stable Diffusion 3,
  $\alpha = 1 - \sigma$, $t = T\sigma$;
* [`KarrasSchedule`][sharpjax.schedules.KarrasSchedule], EDM, $\alpha = 1$, $t = \ln(\sigma)/4$;
* [`OwnSchedule`][sharpjax.schedules.OwnSchedule], any two functions.

Scores, curvature and statistics ask for `alpha` and `sigma` alone.  What depends on
$\sigma/\alpha$ alone is the same under all of them: $K = I + \sigma^2 H = (\alpha^2/\sigma^2)
\mathrm{Cov}[x_0 | x_t]$, its trace and its spectrum.
"""

from sharpjax.schedules.base import PREDICTION_TYPES, NoiseSchedule
from sharpjax.schedules.discrete import Schedule, betas, rescale_zero_terminal_snr
from sharpjax.schedules.flow import FlowSchedule
from sharpjax.schedules.karras import KarrasSchedule
from sharpjax.schedules.own import OwnSchedule

__all__ = [
    "PREDICTION_TYPES",
    "FlowSchedule",
    "KarrasSchedule",
    "NoiseSchedule",
    "OwnSchedule",
    "Schedule",
    "betas",
    "rescale_zero_terminal_snr",
]
