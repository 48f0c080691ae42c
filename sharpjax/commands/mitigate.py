"""``sharpjax mitigate``: images of prompts that do not copy, and how methods compare."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from jax.sharding import Mesh

from sharpjax import devices, judging, replication
from sharpjax.commands.detect_options import DevicesOption
from sharpjax.commands.mitigate_compare import compare_methods
from sharpjax.commands.mitigate_inputs import (
    FEW,
    MANY,
    find_cases,
    find_clean,
    find_judge,
    knows_its_memories,
)
from sharpjax.commands.options import (
    PROMPT_FILES,
    ColumnOption,
    FollowLinksOption,
    JsonOption,
    ModelOption,
    PageOption,
    SeedOption,
    VariantOption,
    run_name,
    tell_written,
    wide_console,
)
from sharpjax.detection import run as detection_run
from sharpjax.detection.calibration import CALIBRATION_NAME, Calibration, Threshold
from sharpjax.detection.settings import DetectSettings
from sharpjax.mitigation.methods import METHODS, NONE, check_strength
from sharpjax.mitigation.run import MitigationSettings, claim_run, jobs, mitigate
from sharpjax.models.fingerprint import fingerprint
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.models.load import find, load
from sharpjax.page import write_page
from sharpjax.provenance import Clock
from sharpjax.report import mitigation as report
from sharpjax.rundir import write_csv, write_text

DEFAULT_METHOD = "prompt_embedding"  # most successes: docs/mitigation.md
_JUDGE = "What judges the images"
_COMPARE = "Comparison"


def _meanings() -> str:
    """What strengths are, methods with the same meaning together."""
    by_meaning: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        by_meaning.setdefault(method.meaning, []).append(f"{name} {method.default:g}")
    return "; ".join(f"{meaning} ({', '.join(n)})" for meaning, n in by_meaning.items())


def mitigate_prompts(
    model: ModelOption = "openmoji",
    prompts: Annotated[
        Path | None,
        typer.Option(
            help=f"File of prompts: {PROMPT_FILES} and, for --compare, [bold]label[/bold] "
            "(memorized, clean). Default: some of the bundled model's."
        ),
    ] = None,
    column: ColumnOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Run directory; the same command resumes it. Default: runs/mitigate-NAME."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = DEFAULT_METHOD,
    strength: Annotated[
        float | None,
        typer.Option(help=f"Of the method: {_meanings()}. Its default stands after its name."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="DDIM steps.")] = 50,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Without mitigation. Default: 7.5, of the bundled model "
            f"{replication.GUIDANCE}, that of its ground truth."
        ),
    ] = None,
    max_steps: Annotated[int, typer.Option(min=0, help="Of a descent, at most.")] = 50,
    everything: Annotated[
        bool,
        typer.Option("--all-prompts", help="Treat every prompt, whatever detection says of it."),
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Thresholds of detection by sharpjax calibrate. Default: those that ship with "
            "the model."
        ),
    ] = None,
    clean: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts that are not memorized: descents stop where these are. Default: "
            "the bundled model's."
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="All methods at all strengths on prompts known to be memorized, some of which "
            "choose each method's strength and the others judge it. An hour for the bundled model.",
            rich_help_panel=_COMPARE,
        ),
    ] = False,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Only these, with commas between. Default: all.", rich_help_panel=_COMPARE
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Memorized prompts of the bundled model that are taken. Default: "
            f"{FEW[0]}, with --compare {MANY[0]}.",
        ),
    ] = None,
    references: Annotated[
        Path | None,
        typer.Option(
            help="CSV table of training images, columns [bold]prompt[/bold] and "
            "[bold]file[/bold]; with --sscd.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    sscd: Annotated[
        Path | None,
        typer.Option(
            help="SSCD's TorchScript file; a copy has a cosine above "
            f"{judging.SSCD_THRESHOLD}. A program, which is run: use one that you trust. Needs "
            "PyTorch.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            help="Directory or hub id of a CLIPModel in safetensors: fidelity is its cosine of "
            "image and prompt. Needs PyTorch.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    seed: SeedOption = 0,
    num_devices: DevicesOption = None,
    page: PageOption = True,
    as_json: JsonOption = False,
    variant: VariantOption = None,
    follow_links: FollowLinksOption = False,
) -> None:
    """Generate images of prompts without copying training images.

    Detects which prompts are memorized, samples these with mitigation and without, side by side,
    and leaves the others as they are.  With --compare it draws the trade-off of every method.
    """
    if column is not None and prompts is None and clean is None:
        raise ValueError("--column names a column of the files that --prompts and --clean give")
    chosen_methods = _methods(method, methods, compare=compare)
    power = _strength(method, strength)
    clock = Clock(model)
    directory = find(model, variant=variant, follow_links=follow_links)
    devices.split_cpu(num_devices)
    mesh = devices.local_mesh(num_devices)
    network = load(directory)
    if not isinstance(network, LatentDiffusion):
        raise ValueError(
            f"{model} is a pixel model; sharpjax mitigate is for models of prompts. "
            "sharpjax.mitigation.sail works on any pair of scores"
        )
    bundled = knows_its_memories(directory)
    judge = find_judge(network, directory, bundled, references, sscd, clip, compare=compare)
    if compare and (judge is None or (references is not None and clip is None)):
        raise ValueError(
            "--compare needs judges of copies and of fidelity: --references and --sscd, and --clip"
        )
    cases = find_cases(directory, bundled, prompts, column, limit, compare=compare)
    texts = [case.condition for case in cases]
    network.check(texts)
    default_guidance = replication.GUIDANCE if bundled else 7.5
    settings = MitigationSettings(
        num_images=images, num_steps=steps, max_steps=max_steps, seed=seed,
        guidance=default_guidance if guidance is None else guidance,
    )  # fmt: skip
    clean_prompts = find_clean(
        directory, clean, column, needed=any(METHODS[m].loss for m in chosen_methods)
    )
    who = fingerprint(directory)
    folder = output or Path("runs") / f"mitigate-{run_name(model, directory)}"
    options: dict[str, Any] = {
        "clean": clean_prompts, "vocabulary": network.tokenizer, "fingerprint": who, "mesh": mesh,
    }  # fmt: skip
    if compare and judge is not None:
        compare_methods(
            network, cases, folder, settings, chosen_methods, judge, options, as_json=as_json,
            clock=clock, page=page,
        )  # fmt: skip
        return
    claim_run(folder, texts, settings, fingerprint=who)
    found = None
    treated = list(range(len(texts)))
    if not everything:
        found = _detect(network, directory, texts, folder, calibration, who, seed, mesh)
        treated = [i for i, (_, verdict) in enumerate(found[0]) if verdict.startswith("memorized")]
    wanted = jobs(range(len(texts)), NONE) + jobs(treated, method, [power])
    records = mitigate(network, texts, wanted, folder, settings, **options)
    rows = report.judged_rows(folder, records, judge)
    written = [folder / report.IMAGES_TABLE]
    write_csv(written[0], rows)
    title = f"without mitigation (left) and with {method} at {power:g} (right); red frame: copy"
    if treated and any(r["images"] for r in records if r["method"] != NONE):
        written.append(report.side_by_side(folder, records, rows, title))
    failed = treated and all("error" in r for r in records if r["method"] != NONE)
    table = report.prompt_rows(rows, records, texts, found)
    write_text(folder / report.PROMPTS_NAME, json.dumps(table, indent=1) + "\n")
    clock.record(folder, method=method, strength=power)
    path = write_page([folder]) if page else None
    if as_json:
        answer = {"directory": str(folder), "report": path and str(path)}
        print(json.dumps(answer | {"method": method, "strength": power, "prompts": table}))
    else:
        wide = wide_console()
        wide.print(report.prompt_table(rows, records, texts, found, f"{method} at {power:g}"))
        for line in report.prompt_remarks(records, texts, treated, found):
            wide.print(line)
        tell_written(folder, [*(file.name for file in written), "images/"], path)
    if failed:
        raise typer.Exit(1)


def _methods(method: str, methods: str | None, *, compare: bool) -> list[str]:
    if methods is not None and not compare:
        raise ValueError("--methods goes with --compare; one method is chosen by --method")
    if not compare:
        names = [method]
    elif methods is None:
        names = list(METHODS)
    else:
        names = list(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ValueError(
            f"unknown method {', '.join(unknown) or '(none given)'}; choose from "
            f"{', '.join(METHODS)}"
        )
    return names


def _strength(method: str, strength: float | None) -> float:
    if strength is None:
        return METHODS[method].default
    check_strength(method, strength)
    return strength


def _detect(
    network: LatentDiffusion,
    directory: Path,
    texts: Sequence[str],
    folder: Path,
    calibration: Path | None,
    who: str,
    seed: int,
    mesh: Mesh | None,
) -> tuple[list[tuple[float, str]], Threshold]:
    """Value and verdict of every prompt, and the threshold."""
    path = directory / CALIBRATION_NAME if calibration is None else calibration
    if not path.is_file():
        raise ValueError(
            f"no thresholds of detection ({path} is missing): sharpjax calibrate makes them from "
            "clean prompts, for --calibration; or treat every prompt by --all-prompts"
        )
    settings = DetectSettings(statistics=("score_difference",), seed=seed)
    limits = Calibration.load(path)
    limits.check(settings, fingerprint=who)
    name = settings.names(network.schedule)[0]
    if name not in limits.thresholds:
        raise ValueError(
            f"{path} has no threshold of {name}; there are {', '.join(limits.thresholds)}"
        )
    records = detection_run.detect(
        network, texts, folder / "detect", settings, fingerprint=who,
        batch_size=4 * (mesh.size if mesh else 1), mesh=mesh,
    )  # fmt: skip
    limit = limits.thresholds[name]
    values = [
        float(np.mean(r["network"][name])) if "network" in r else float("nan") for r in records
    ]
    verdicts = [limit.verdict(v) if np.isfinite(v) else "not known: it failed" for v in values]
    return list(zip(values, verdicts, strict=True)), limit
