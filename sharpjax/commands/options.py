"""Options and output that commands share.

Nothing here, and nothing that a command does before it opens its model, loads JAX: help and
mistakes are told at once. Names of registries stand here as text, which tests compare.
"""

import dataclasses
import gc
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from sharpjax import zoo
from sharpjax.prompts import Case, read_cases, read_prompts
from sharpjax.rundir.about import Clock

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from sharpjax.checkpoints.directory import Directory
    from sharpjax.conditional import ConditionalModel
    from sharpjax.detection.baseline import Baseline
    from sharpjax.detection.settings import DetectSettings, ImageSettings
    from sharpjax.models.pixel_diffusion import PixelDiffusion
    from sharpjax.models.prompt_diffusion import PromptDiffusion

console = Console()

STATISTICS = (
    "score_difference", "hessian_score_difference", "hessian_score", "trace_difference",
    "effective_dimension", "curvature_difference", "diagonal_distance", "guidance_alignment",
    "standardised_alignment", "path_score_difference", "last_step_difference",
    "step_displacement", "tiled_l2", "p_laplacian", "gap_flux", "gap_divergence",
    "image_gap_flux", "condition_jacobian",
)  # fmt: skip
GROUPS = ("first", "traces", "paths", "gap", "all")

FILES = "Model files"  # panels of the help
NUMBERS = "What is computed"
JUDGING = "How it is judged"
SPREAD = "Devices and processes"
IMAGES = "Finished images"
_files, _numbers, _judging, _spread, _images = (
    partial(typer.Option, rich_help_panel=panel)
    for panel in (FILES, NUMBERS, JUDGING, SPREAD, IMAGES)
)
ANY_MODEL = (
    f"A bundled model ({', '.join(zoo.bundled())}), a diffusers directory, or a Hugging Face hub "
    "id, OWNER/NAME."
)
PROMPT_FILES = (
    "a line each, or a table (.csv, .tsv) or JSON (.json, .jsonl) with a column "
    "[bold]prompt[/bold], caption or text"
)

SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of every random draw.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
PageOption = Annotated[
    bool, typer.Option("--report/--no-report", help="Write report.html, a page of all results.")
]
CalibrationOption = Annotated[
    Path | None,
    _judging(
        exists=True,
        dir_okay=False,
        help="Thresholds by sharpjax calibrate. Default: those that ship with the model, where "
        "the settings are theirs.",
    ),
]
ConditionOption = Annotated[
    list[str] | None, typer.Option(help="Only this condition or prompt; repeat for more.")
]
PluginOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE.py",
        exists=True,
        dir_okay=False,
        help="Python file that registers statistics of your own: see the docs on statistics. "
        "Repeat for more.",
        rich_help_panel=NUMBERS,
    ),
]


def finite(value: float | None) -> float | None:
    """A callback of options: NaN is in every range."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"must be a finite number, got {value}")
    return value


def timesteps(text: str, example: str) -> tuple[int, ...]:
    """Of the option --times, ascending."""
    try:
        steps = tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        steps = ()
    if not steps or len(set(steps)) != len(steps) or min(steps) < 0:
        raise ValueError(
            f"--times must be different timesteps >= 0 with commas between, such as {example}, got "
            f"{text!r}"
        )
    return tuple(sorted(steps))


def of_option(name: str, check: Callable[[Any], Any], value: Any) -> None:
    """Check what only the model can tell: its mistake names the option.

    Raises:
        ValueError: as `check`.
    """
    try:
        check(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


# --- blocks --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileChoice:
    """Which files of a model."""

    variant: Annotated[
        str | None,
        _files(
            help="Weight files to read: fp16 for names like model.fp16.safetensors; of parts "
            "without, the plain ones."
        ),
    ] = None
    revision: Annotated[str | None, _files(help="Branch, tag or commit of a hub id.")] = None
    follow_links: Annotated[
        bool,
        _files(
            "--follow-links",
            help="Follow links that lead out of the model's directory, which are refused "
            "otherwise: for one that you made or trust.",
        ),
    ] = False

    @property
    def files(self) -> dict[str, Any]:
        """What `sharpjax.models.load.find` takes beside the name."""
        names = ("variant", "revision", "follow_links")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFiles(FileChoice):
    """Which model, and which of its files."""

    model: Annotated[str, typer.Option(help=ANY_MODEL)] = "drawings"

    def __post_init__(self) -> None:
        if "/" not in self.model and not Path(self.model).exists():
            zoo.find(self.model)  # its message lists the bundled ones

    def open(
        self,
        *,
        dtype: str = "float32",
        spread: "Devices | None" = None,
        baseline: str | None = None,
    ) -> "Opened":
        """Load it, on the devices that are to be used; and what it is compared with."""
        clock = Clock(self.model)
        import jax.numpy as jnp

        from sharpjax.checkpoints.sharding import WEIGHTS, placement
        from sharpjax.mesh import devices
        from sharpjax.models.load import find, load

        gc.freeze()  # what the imports have made
        source = find(self.model, **self.files)
        options: dict[str, Any] = {} if dtype == "float32" else {"dtype": getattr(jnp, dtype)}
        mesh = None
        if spread is not None:
            devices.split_cpu(spread.num_devices)
            spread.join()
            if isinstance(spread, Processes) and spread.shard_weights:
                options["mesh"] = devices.local_mesh(spread.num_devices, axis=WEIGHTS)
                if options["mesh"] is None:
                    raise ValueError(
                        "--shard-weights needs two devices or more of this process, got one: "
                        "leave it out"
                    )
            else:
                mesh = devices.local_mesh(spread.num_devices)
        opened = Opened(self.model, source, load(source, **options), mesh, dtype, clock)
        if "mesh" in options:
            weights = placement(opened.network)
            opened = dataclasses.replace(opened, weights=weights)
            print(
                "weights: {sharded_bytes:,} bytes sharded, {bytes_a_device:,} on each of {devices} "
                "devices, and on all {replicated_bytes:,} of {0} parameters that about.json "
                "lists".format(len(weights["replicated"]), **weights),
                file=sys.stderr,
            )
        if baseline is None:
            return opened
        from sharpjax.checkpoints.fingerprint import fingerprint
        from sharpjax.detection.baseline import Baseline

        other = find(baseline, **self.files)
        same = fingerprint(other) == fingerprint(source)
        pair = None if same else Baseline.of(opened.network, load(other, **options))
        if pair is None or pair.is_alike:
            raise ValueError(
                f"--baseline {baseline} is the model itself: every difference would be 0; give an "
                "earlier checkpoint"
            )
        return dataclasses.replace(opened, baseline=other, compared=pair)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsFiles(ModelFiles):
    """The same, of commands that begin with the smallest model."""

    model: Annotated[str, typer.Option(help=ANY_MODEL)] = "mnist"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """A file of prompts."""

    prompts: Annotated[
        Path | None,
        typer.Option(
            help=f"File of prompts: {PROMPT_FILES} and, where known, [bold]label[/bold] "
            "(memorized, clean, between, another: neither) and [bold]source[/bold]. Default: the "
            "model's own, where it has some."
        ),
    ] = None
    column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The column of a table, or key of JSON, that holds the prompts."
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.column is not None and self.prompts is None:
            raise ValueError("--column names a column of the file that --prompts gives")

    def cases(self) -> list[Case]:
        """What the file holds; nothing without one."""
        return [] if self.prompts is None else read_cases(self.prompts, column=self.column)

    def texts(self) -> list[str]:
        """Every line of it, repeats too; nothing without one."""
        return [] if self.prompts is None else read_prompts(self.prompts, column=self.column)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Where results go, and what is printed."""

    output: Annotated[
        Path | None,
        typer.Option(
            help="Run directory; the same command resumes it. Default: runs/COMMAND-MODEL."
        ),
    ] = None
    as_json: JsonOption = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """Devices of this machine."""

    num_devices: Annotated[
        int | None,
        _spread(
            "--devices",
            min=1,
            help="Devices of this machine to use. Default: all; on CPU a device is a core.",
        ),
    ] = None

    def join(self) -> None:
        """Become one of several processes, if so asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes(Devices):
    """Devices of several machines."""

    coordinator: Annotated[
        str | None,
        _spread(metavar="HOST:PORT", help="Where process 0 runs, and a free port there."),
    ] = None
    processes: Annotated[
        int | None,
        _spread(min=1, help="How many processes share the conditions; all write to one directory."),
    ] = None
    process: Annotated[int | None, _spread(min=0, help="Which of them this is, from 0.")] = None
    shard_weights: Annotated[
        bool,
        _spread(
            "--shard-weights",
            help="Share the weights, and not the conditions, over the devices of each process: for "
            "a model that one device does not hold.",
        ),
    ] = False

    def __post_init__(self) -> None:
        given = self.coordinator, self.processes, self.process
        if given == (None, None, None):
            return
        if self.coordinator is None or self.processes is None or self.process is None:
            raise ValueError(
                "--coordinator, --processes and --process go together: the same HOST:PORT and "
                "number for all processes, and 0, 1, ... for each"
            )
        if self.process >= self.processes:
            raise ValueError(
                f"--process must be an integer from 0 to {self.processes - 1}, got {self.process}"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(
                "--coordinator must be HOST:PORT, the host of process 0 and a free port there, "
                f"got {self.coordinator!r}"
            )

    def join(self) -> None:
        """Become one of several processes, if so asked."""
        if self.coordinator is None or self.processes is None or self.process is None:
            return
        from sharpjax.mesh import devices

        print(
            f"process {self.process} of {self.processes}, meeting at {self.coordinator}, within "
            f"{devices.ARRIVAL_SECONDS} seconds; if one dies, JAX aborts the others within "
            f"{devices.HEARTBEAT_SECONDS} seconds, and the same commands resume the run",
            file=sys.stderr,
        )
        devices.join(self.coordinator, self.processes, self.process)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
    """What is computed of prompts or conditions, as detect and calibrate have it."""

    statistics: Annotated[
        str | None,
        _numbers(
            help=f"Names with commas between, or groups: {', '.join(GROUPS)}. Names: "
            f"{', '.join(STATISTICS)}. Default: first; of conditions first,traces."
        ),
    ] = None
    plugin: PluginOption = None
    noises: Annotated[int, _numbers(min=1, help="Initial noises a condition.")] = 4
    steps: Annotated[
        int,
        _numbers(
            min=1, help="Of the sampler: where the first step lies, and how long whole paths are."
        ),
    ] = 50
    guidance: Annotated[
        float | None,
        _numbers(
            callback=finite,
            help="Of whole paths. Default: what the model is meant for, 7.5 where it does not say.",
        ),
    ] = None
    probes: Annotated[
        int, _numbers(min=1, help="Hutchinson probes a trace, or of diagonal_distance.")
    ] = 4
    trace_noises: Annotated[
        int | None,
        _numbers(min=1, help="Noises that traces are taken at, at most --noises. Default: 2."),
    ] = None
    squared: Annotated[
        bool, _numbers("--squared", help="hessian_score_difference as the paper has it.")
    ] = False
    alignment_weights: Annotated[
        tuple[float, float],
        _numbers(
            help="Of guidance_alignment's length and cosine. Published: 1 2 for Stable Diffusion "
            "1.4, 1 0.1 for 2."
        ),
    ] = (1.0, 2.0)
    baseline: Annotated[
        str | None,
        _numbers(
            metavar="DIR",
            help="An earlier checkpoint of the model: every difference is then from its score "
            "under the same condition, in place of the unconditional one.",
        ),
    ] = None
    dtype: Annotated[
        Literal["float32", "bfloat16"], _numbers(help="Of the networks; bfloat16 of prompts.")
    ] = "float32"
    seed: SeedOption = 0
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Conditions at a time; numbers change by rounding. Default: 4 a device."
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.statistics is not None:
            if not self.names:
                raise ValueError("statistics must name at least one")
            known = (*STATISTICS, *GROUPS)  # those of a plugin are known when it is loaded
            if not self.plugin and (unknown := [n for n in self.names if n not in known]):
                raise ValueError(
                    f"a statistic must be one of {', '.join(STATISTICS)}, or a group "
                    f"({', '.join(GROUPS)}), got {unknown[0]!r}"
                )
        if self.trace_noises is not None and self.trace_noises > self.noises:
            raise ValueError(
                f"--trace-noises must be at most --noises = {self.noises}, got {self.trace_noises}"
            )

    @property
    def names(self) -> list[str]:
        """Of statistics and groups, as given."""
        return [name.strip() for name in (self.statistics or "").split(",") if name.strip()]

    def settings(
        self, opened: "Opened", *, everything: bool = False, **more: Any
    ) -> "DetectSettings":
        """Of a run on this model; `everything` asks for the long version."""
        from sharpjax.checkpoints.pipeline import USUAL_GUIDANCE
        from sharpjax.detection.baseline import NOT_COMPARED
        from sharpjax.detection.plugins import load_plugins
        from sharpjax.detection.registry import named
        from sharpjax.detection.settings import DetectSettings

        of_option("--steps", opened.network.schedule.timesteps, self.steps)
        prompts = opened.network.takes_prompts
        usual = opened.network.default_guidance if prompts else USUAL_GUIDANCE
        noises, probes, trace_noises = self.noises, self.probes, self.trace_noises
        if everything and not prompts:
            noises, probes, trace_noises = 16, 32, 4
        default = ["all" if everything else "first"] if prompts else ["first", "traces"]
        default += (own := load_plugins(self.plugin or ()))
        without = NOT_COMPARED if self.baseline is not None else ()
        names = named(self.names or default, num_noises=noises, vectors=prompts, without=without)
        if left_out := [name for name in own if name not in names]:
            told = f"--plugin's {', '.join(left_out)} is not computed: name it in --statistics"
            warnings.warn(told, stacklevel=1)
        if lacking := [name for name in names if name in without]:
            raise ValueError(
                f"{lacking[0]} is no difference of two models: leave it out, or --baseline"
            )
        return DetectSettings(
            statistics=names,
            num_noises=noises,
            num_steps=self.steps,
            guidance=usual if self.guidance is None else self.guidance,
            num_probes=probes,
            trace_noises=min(2, noises) if trace_noises is None else trace_noises,
            squared=self.squared,
            alignment_weights=self.alignment_weights,
            seed=self.seed,
            **more,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfImages:
    """What is computed of finished images, as images and calibrate have it."""

    directions: Annotated[
        int, _images(min=4, help="Of the p-Laplacian's flux, a multiple of 4.")
    ] = 128
    timestep: Annotated[
        int, _images(min=0, help="Noise level of the p-Laplacian about images, a training step.")
    ] = 400
    exact: Annotated[
        bool,
        _images(
            "--exact",
            help="Of images also the exact p-Laplacian: a tangent for every entry of the latent.",
        ),
    ] = False

    def __post_init__(self) -> None:
        if self.directions % 4:
            raise ValueError(f"--directions must be a multiple of 4, got {self.directions}")

    def settings(self, seed: int) -> "ImageSettings":
        """Of a run."""
        from sharpjax.detection.settings import ImageSettings

        return ImageSettings(
            num_directions=self.directions, timestep=self.timestep, exact=self.exact, seed=seed
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judging:
    """What verdicts go by."""

    calibration: CalibrationOption = None
    decide_by: Annotated[
        str | None,
        _judging(
            help="Statistic of the verdicts. Default: score_difference, or the first that has a "
            "threshold."
        ),
    ] = None


# --- what a command works with ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model that a command works with."""

    name: str
    source: "Directory"
    network: "PixelDiffusion | PromptDiffusion"
    mesh: "Mesh | None"
    dtype: str
    clock: Clock
    baseline: "Directory | None" = None
    compared: "Baseline | None" = None
    weights: dict[str, Any] | None = None  # what lies where, if they are sharded

    @property
    def scored(self) -> "ConditionalModel":
        """Whose scores statistics are computed from: with a baseline, the pair of both."""
        return self.network if self.compared is None else self.compared

    @property
    def directory(self) -> Path:
        """Of the model."""
        return self.source.path

    @cached_property
    def fingerprint(self) -> str:
        """What a run belongs to: numbers of another type are other numbers."""
        from sharpjax.checkpoints.fingerprint import fingerprint

        who = fingerprint(self.source)
        if self.baseline is not None:
            who += f" less {fingerprint(self.baseline)}"
        return who if self.dtype == "float32" else f"{who} in {self.dtype}"

    def folder(self, out: Output, command: str) -> Path:
        """The run directory: a hub id's last word in its name, not its snapshot's number."""
        name = self.name.rpartition("/")[2]
        if self.name not in zoo.bundled() and Path(self.name).is_dir():
            name = self.directory.resolve().name
        return out.output or Path("runs") / f"{command}-{name}"

    def finish(self, folder: Path, *, page: bool, **facts: Any) -> Path | None:
        """Note what made a run and by what it was judged, and write its page, if asked."""
        from sharpjax.report.page import write_page

        sharded = {} if self.weights is None else {"weights": self.weights}
        self.clock.record(folder, **facts, **sharded)
        return write_page([folder]) if page else None

    def how(self, batch: int | None = None) -> dict[str, Any]:
        """What `sharpjax.runs.detect` takes beside what is asked: conditions at a time, devices."""
        size = 4 * (self.mesh.size if self.mesh else 1) if batch is None else batch
        return {"fingerprint": self.fingerprint, "batch_size": size, "mesh": self.mesh}


# --- output --------------------------------------------------------------------------------------


def wide_console() -> Console:
    """For tables of many columns: a file or a pipe is as wide as `COLUMNS` says, else 160."""
    narrow = console.is_terminal or "COLUMNS" in os.environ
    return console if narrow else Console(width=160)


def tell_written(
    folder: Path, names: Sequence[str] = (), page: Path | None = None, *, then: str = ""
) -> None:
    """The last lines of a command: where its results are, and its page if there is one.

    Scripts read them: no path is broken over lines.
    """
    told = (f": {', '.join(names)}" if names else "") + then
    lines = [f"Written to [bold]{escape(str(folder))}[/bold]{escape(told)}"]
    lines += [] if page is None else [f"To look at: [bold]{escape(str(page))}[/bold]"]
    for line in lines:
        console.print(line, soft_wrap=True)
