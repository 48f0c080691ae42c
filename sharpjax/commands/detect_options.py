"""Options that ``sharpjax detect`` and ``sharpjax calibrate`` share, and what is made of them."""

from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import typer

from sharpjax.commands.options import PROMPT_FILES
from sharpjax.detection.settings import GROUPS, DetectSettings, named
from sharpjax.detection.statistics import STATISTICS
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.models.load import load
from sharpjax.models.pixel_diffusion import PixelDiffusion

SPREAD = "Devices and processes"  # panels of the help
NUMBERS = "What is computed"
JUDGING = "How it is judged"
IMAGES = "Finished images"

PromptsOption = Annotated[
    Path | None,
    typer.Option(
        help=f"File of prompts: {PROMPT_FILES} and, where known, [bold]label[/bold] (memorized, "
        "clean, between) and [bold]source[/bold]. Default: a balanced set of the bundled model's."
    ),
]
StatisticsOption = Annotated[
    str | None,
    typer.Option(
        help=f"Names with commas between, or groups: {', '.join(GROUPS)}. Names: "
        f"{', '.join(STATISTICS)}. Default: first; of conditions first,traces.",
        rich_help_panel=NUMBERS,
    ),
]
NoisesOption = Annotated[
    int, typer.Option(help="Initial noises a condition.", rich_help_panel=NUMBERS)
]
StepsOption = Annotated[
    int,
    typer.Option(
        help="Of the sampler: where the first step lies, and how long whole paths are.",
        rich_help_panel=NUMBERS,
    ),
]
GuidanceOption = Annotated[float, typer.Option(help="Of whole paths.", rich_help_panel=NUMBERS)]
ProbesOption = Annotated[
    int, typer.Option(help="Hutchinson probes a trace or diagonal.", rich_help_panel=NUMBERS)
]
TraceNoisesOption = Annotated[
    int | None,
    typer.Option(
        help="Noises that traces are taken at, at most --noises. Default: 2.",
        rich_help_panel=NUMBERS,
    ),
]
IndependentOption = Annotated[
    bool,
    typer.Option(
        "--independent-noise",
        help="Other noises for every condition, not the same for all.",
        rich_help_panel=NUMBERS,
    ),
]
SquaredOption = Annotated[
    bool,
    typer.Option(
        "--squared", help="hessian_score_difference as the paper has it.", rich_help_panel=NUMBERS
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        help="Of the networks: float32 or bfloat16 (models of prompts).", rich_help_panel=NUMBERS
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option(help="Conditions at a time; changes speed only. Default: 4 a device."),
]
DevicesOption = Annotated[
    int | None,
    typer.Option(
        "--devices",
        help="Devices of this machine to use. Default: all; on CPU a device is a core.",
        rich_help_panel=SPREAD,
    ),
]


DirectionsOption = Annotated[
    int, typer.Option(help="Of the p-Laplacian's flux.", rich_help_panel=IMAGES)
]
TimestepOption = Annotated[
    int,
    typer.Option(
        help="Noise level of the p-Laplacian about images, a training step.",
        rich_help_panel=IMAGES,
    ),
]
ExactOption = Annotated[
    bool,
    typer.Option(
        "--exact",
        help="Of images also the exact p-Laplacian: a tangent for every entry of the latent.",
        rich_help_panel=IMAGES,
    ),
]


def refuse_with_images(**given: object) -> None:
    """Options that have no meaning without prompts."""
    if wrong := [f"--{name.replace('_', '-')}" for name, value in given.items() if value]:
        raise ValueError(f"{', '.join(wrong)}: not with --images, which computes the p-Laplacian")


def load_network(directory: Path, dtype: str) -> Any:
    """The model, its weights and arithmetic in this type."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"--dtype must be float32 or bfloat16, got {dtype!r}")
    if dtype == "float32":
        return load(directory)
    return load(directory, dtype=jnp.bfloat16)


def with_type(who: str, dtype: str) -> str:
    """What a run belongs to: numbers of another type are other numbers."""
    return who if dtype == "float32" else f"{who} in {dtype}"


def prompt_settings(
    network: PixelDiffusion | LatentDiffusion,
    statistics: str,
    *,
    noises: int,
    steps: int,
    probes: int,
    trace_noises: int | None,
    **options: Any,
) -> DetectSettings:
    """Settings of a run on prompts or conditions; ``statistics`` as the option has them."""
    names = named([name.strip() for name in statistics.split(",") if name.strip()])
    if noises < 2 and "tiled_l2" not in statistics:  # it came with a group, and needs two
        names = tuple(name for name in names if name != "tiled_l2")
    if trace_noises is not None and trace_noises > noises:
        raise ValueError(f"--trace-noises {trace_noises} exceeds --noises {noises}")
    return DetectSettings(
        statistics=names,
        num_noises=noises,
        num_steps=steps,
        num_probes=probes,
        trace_noises=min(2, noises) if trace_noises is None else trace_noises,
        **options,
    )
