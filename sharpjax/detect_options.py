"""Options that ``sharpjax detect`` and ``sharpjax calibrate`` have in common."""

from pathlib import Path
from typing import Annotated

import typer

from sharpjax.detection.settings import GROUPS
from sharpjax.detection.statistics import STATISTICS

SPREAD = "Devices and processes"  # panels of the help
NUMBERS = "What is computed"
JUDGING = "How it is judged"
IMAGES = "Finished images"

PromptsOption = Annotated[
    Path | None,
    typer.Option(
        help="File of prompts: a line each, or .csv or .jsonl with a column [bold]prompt[/bold] "
        "and, where known, [bold]label[/bold] (memorized, clean, between) and "
        "[bold]source[/bold]. Default: a balanced set of the bundled model's."
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
