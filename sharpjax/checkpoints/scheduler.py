"""What a diffusers `scheduler_config.json` may say, and what it means where it says nothing."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# What diffusers assumes when a key is absent from scheduler_config.json (release 0.42).
_SAMPLER = {"steps_offset": 0, "set_alpha_to_one": True, "timestep_spacing": "leading"}
_SOLVER = {"steps_offset": 0, "set_alpha_to_one": False, "timestep_spacing": "linspace"}
_LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
_LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_MULTISTEP = (
    "DEISMultistep",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "EulerAncestralDiscrete",
    "EulerDiscrete",
    "LMSDiscrete",
    "SASolver",
    "UniPCMultistep",
)
_SECOND_ORDER = ("HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete")
SCHEDULER_DEFAULTS: dict[str, dict[str, Any]] = {
    f"{name}Scheduler": defaults
    for names, defaults in (
        (("DDIM", "DDPM", "DDIMParallel", "DDPMParallel"), _SAMPLER | _LINEAR),
        (("PNDM",), _SAMPLER | _LINEAR | {"set_alpha_to_one": False}),
        # networks distilled for few steps; the forward process, and so levels and scores, is the
        # same, but not how they are sampled
        (("LCM", "TCD"), _SAMPLER | _LATENT),
        # solvers of the same forward process, which only differ in how they integrate it
        (_MULTISTEP, _SOLVER | _LINEAR),
        (_SECOND_ORDER, _SOLVER | _LATENT | {"beta_schedule": "linear"}),
    )
    for name in names
}
_OTHER_PROCESS = {
    "EDM": ": its networks see x0 + sigma eps (alpha = 1), another forward process",
    "FlowMatch": ": its networks see (1 - t) x0 + t eps, another forward process",
}
_CLIPPING = tuple(f"{name}Scheduler" for name in ("DDIM", "DDIMParallel", "DDPM", "DDPMParallel"))
_SETTINGS: dict[str, type | tuple[type, ...]] = {
    "beta_schedule": str,
    "num_train_timesteps": int,
    "beta_start": (int, float),
    "beta_end": (int, float),
    "trained_betas": (list, tuple, np.ndarray),
    "rescale_betas_zero_snr": bool,
    "prediction_type": str,
    "timestep_spacing": str,
    "steps_offset": int,
    "set_alpha_to_one": bool,
    "clip_sample": bool,
    "clip_sample_range": (int, float),
}


def scheduler_settings(config: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """The arguments of `Schedule.create` that a configuration stands for.

    Keys that only choose a solver (`skip_prk_steps`, ...) are ignored; `where` is for errors.

    Raises:
        ValueError: a scheduler of another process, or a value of the wrong type.
    """
    name = config.get("_class_name", "DDIMScheduler")
    if not isinstance(name, str) or name not in SCHEDULER_DEFAULTS:
        reason = next((why for key, why in _OTHER_PROCESS.items() if key in str(name)), "")
        raise ValueError(
            f"{where}: _class_name must be one of {', '.join(SCHEDULER_DEFAULTS)}, got "
            f"{name!r:.80}{reason}"
        )
    if config.get("use_flow_sigmas"):
        raise ValueError(
            f"{where}: use_flow_sigmas must be false, got {config['use_flow_sigmas']!r:.80}"
            f"{_OTHER_PROCESS['FlowMatch']}"
        )
    if config.get("thresholding"):
        warnings.warn(
            f"{where}: thresholding is not applied here: samples differ from a pipeline's that "
            "clips its estimates of the image; scores and noise levels do not",
            stacklevel=3,
        )
    given = {key: config[key] for key in _SETTINGS if config.get(key) is not None}
    for key, value in given.items():
        wanted = _SETTINGS[key]
        # True is an int to Python
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            kinds = wanted if isinstance(wanted, tuple) else (wanted,)
            allowed = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{where}: {key} must be of type {allowed}, got {value!r:.80}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where}: {key} must be a finite number, got {value}")
    fields = {**SCHEDULER_DEFAULTS[name], **given}
    # other solvers have no such key, and ignore one that they inherited; null is off
    fields.pop("clip_sample", None)
    clips = config.get("clip_sample", True) and name in _CLIPPING
    fields["clip_sample_range"] = fields.get("clip_sample_range", 1.0) if clips else None
    return fields
