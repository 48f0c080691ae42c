"""``sharpjax mitigate``: images of prompts that do not copy, and how methods compare."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from jax.sharding import Mesh

from sharpjax import devices, judging, replication
from sharpjax.commands.detect_options import DevicesOption
from sharpjax.commands.options import (
    JsonOption,
    ModelOption,
    PageOption,
    SeedOption,
    console,
    run_name,
    wide_console,
)
from sharpjax.datasets.openmoji import CAPTIONS_NAME, SPLIT_PATH, planted_pictograms
from sharpjax.detection import run as detection_run
from sharpjax.detection.calibration import CALIBRATION_NAME, Calibration, Threshold
from sharpjax.detection.cases import Case, from_file, spread
from sharpjax.detection.settings import DetectSettings
from sharpjax.detection.truth import TRUTH_NAME, read_truths
from sharpjax.mitigation.methods import METHODS, NONE, check_strength
from sharpjax.mitigation.run import Job, MitigationSettings, claim_run, jobs, mitigate
from sharpjax.models.checkpoints import from_pretrained
from sharpjax.models.fingerprint import fingerprint
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.models.load import find, load
from sharpjax.page import write_page
from sharpjax.prompts import read_prompts
from sharpjax.provenance import Clock
from sharpjax.report import mitigation as report
from sharpjax.rundir import write_csv, write_text

DEFAULT_METHOD = "prompt_embedding"  # most successes: docs/mitigation.md
_JUDGE = "What judges the images"
_COMPARE = "Comparison"
_FEW, _MANY = (4, 4), (18, 12)  # memorized and clean prompts of the bundled model
_TUNING = 3  # every third memorized prompt is for choosing strengths


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
            help="File of prompts: a line each, or .csv or .jsonl with a column "
            "[bold]prompt[/bold] and, for --compare, [bold]label[/bold] (memorized, clean). "
            "Default: some of the bundled model's."
        ),
    ] = None,
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
            f"{_FEW[0]}, with --compare {_MANY[0]}.",
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
            f"{judging.SSCD_THRESHOLD}. A program: use one that you trust. Needs PyTorch.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            help="Directory or hub id of a CLIPModel: fidelity is its cosine of image and prompt. "
            "Needs PyTorch.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    seed: SeedOption = 0,
    num_devices: DevicesOption = None,
    page: PageOption = True,
    as_json: JsonOption = False,
) -> None:
    """Generate images of prompts without copying training images.

    Detects which prompts are memorized, samples these with mitigation and without, side by side,
    and leaves the others as they are.  With --compare it draws the trade-off of every method.
    """
    chosen_methods = _methods(method, methods, compare=compare)
    power = _strength(method, strength)
    clock = Clock(model)
    directory = find(model)
    devices.split_cpu(num_devices)
    mesh = devices.local_mesh(num_devices)
    network = load(directory)
    if not isinstance(network, LatentDiffusion):
        raise ValueError(
            f"{model} is a pixel model; sharpjax mitigate is for models of prompts. "
            "sharpjax.mitigation.sail works on any pair of scores"
        )
    bundled = _knows_its_memories(directory)
    judge = _judge(network, directory, bundled, references, sscd, clip, compare=compare)
    if compare and (judge is None or (references is not None and clip is None)):
        raise ValueError(
            "--compare needs judges of copies and of fidelity: --references and --sscd, and --clip"
        )
    cases = _cases(directory, bundled, prompts, limit, compare=compare)
    texts = [case.condition for case in cases]
    network.check(texts)
    default_guidance = replication.GUIDANCE if bundled else 7.5
    settings = MitigationSettings(
        num_images=images, num_steps=steps, max_steps=max_steps, seed=seed,
        guidance=default_guidance if guidance is None else guidance,
    )  # fmt: skip
    clean_prompts = _clean(directory, clean, needed=any(METHODS[m].loss for m in chosen_methods))
    who = fingerprint(directory)
    folder = output or Path("runs") / f"mitigate-{run_name(model, directory)}"
    options: dict[str, Any] = {
        "clean": clean_prompts, "vocabulary": network.tokenizer, "fingerprint": who, "mesh": mesh,
    }  # fmt: skip
    if compare and judge is not None:
        _compare(
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
        _tell(folder, written, path)
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


def _knows_its_memories(directory: Path) -> bool:
    path = directory / CAPTIONS_NAME
    return (
        (directory / TRUTH_NAME).is_file()
        and (directory / "classifier").is_dir()
        and path.is_file()
        and path.read_bytes() == SPLIT_PATH.read_bytes()
    )


def _judge(
    network: LatentDiffusion,
    directory: Path,
    bundled: bool,
    references: Path | None,
    sscd: Path | None,
    clip: str | None,
    *,
    compare: bool,
) -> judging.Judge | None:
    if (references is None) != (sscd is None):
        raise ValueError("--references and --sscd go together: training images, and what compares")
    if references is not None:
        embed = judging.load_sscd(cast(Path, sscd))
        score = None if clip is None else judging.load_clip(clip)
        return judging.EmbeddingJudge(judging.read_references(references), embed, score)
    if clip is not None:
        raise ValueError("--clip goes with --references and --sscd")
    if not bundled:
        return None
    try:
        pictograms = planted_pictograms()
    except ImportError as error:
        if compare:
            raise
        warnings.warn(f"copies and fidelity are not judged: {error}", stacklevel=2)
        return None
    memorized = [t.caption for t in _truths(directory) if t.verdict == "memorized"]
    limits = replication.control(network, pictograms)
    classifier = from_pretrained(directory / "classifier")
    return judging.PictogramJudge(pictograms, memorized, limits.threshold, classifier)


def _truths(directory: Path) -> list[replication.CaptionTruth]:
    return read_truths(directory, replication.CaptionTruth)


def _cases(
    directory: Path, bundled: bool, prompts: Path | None, limit: int | None, *, compare: bool
) -> list[Case]:
    if prompts is not None:
        if limit is not None:
            raise ValueError("--limit is for the bundled model's prompts; shorten the file instead")
        return from_file(prompts)
    if not bundled:
        raise ValueError(f"--prompts FILE is needed: {directory} names no prompts of its own")
    truths = _truths(directory)
    count, num_clean = _MANY if compare else _FEW
    memorized = [
        Case(t.caption, t.verdict, level=t.level) for t in truths if t.verdict == "memorized"
    ]
    clean = [
        Case(t.caption, t.verdict)
        for t in truths
        if t.verdict == "clean" and t.group == "general"
    ]  # fmt: skip
    return spread(memorized, count if limit is None else limit) + spread(clean, num_clean)


def _clean(directory: Path, path: Path | None, *, needed: bool) -> list[str]:
    if path is not None:
        return read_prompts(path)
    if (directory / CAPTIONS_NAME).is_file():
        return replication.clean_captions(directory / CAPTIONS_NAME)
    if needed:
        raise ValueError(
            "--clean FILE is needed: prompts that the model has certainly not memorized, from "
            "which the method takes its threshold"
        )
    return []


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


def _compare(
    network: LatentDiffusion,
    cases: Sequence[Case],
    folder: Path,
    settings: MitigationSettings,
    names: Sequence[str],
    judge: judging.Judge,
    options: dict[str, Any],
    *,
    as_json: bool,
    clock: Clock,
    page: bool,
) -> None:
    texts = [case.condition for case in cases]
    memorized = [i for i, case in enumerate(cases) if case.verdict == "memorized"]
    clean = [i for i, case in enumerate(cases) if case.verdict == "clean"]
    if len(memorized) < 3 or len(clean) < 1:
        raise ValueError(
            "--compare needs at least 3 prompts labelled memorized and one labelled clean, got "
            f"{len(memorized)} and {len(clean)}"
        )
    tuning = memorized[1::_TUNING]
    judged = [i for i in memorized if i not in tuning]
    wanted: list[Job] = jobs([*memorized, *clean], NONE)
    for name in names:
        wanted += jobs(memorized, name, METHODS[name].strengths)
    records = mitigate(network, texts, wanted, folder, settings, **options)
    rows = report.judged_rows(folder, records, judge)
    write_csv(folder / report.IMAGES_TABLE, rows)
    comparison = report.compare(rows, tuning=tuning, judged=judged, clean=clean)
    written = [folder / report.IMAGES_TABLE, *report.write_comparison(folder, comparison)]
    for name, one in comparison.chosen.items():
        power = one.point.outcomes.strength
        shown = [
            r for r in records
            if r["index"] in judged[::2]
            and (r["method"], r["strength"]) in ((NONE, 0.0), (name, power))
        ]  # fmt: skip
        title = f"without mitigation (left) and with {name} at {power:g} (right); red frame: copy"
        written.append(report.side_by_side(folder, shown, rows, title, name=f"{name}.png"))
    clock.record(folder)
    path = write_page([folder]) if page else None
    if as_json:
        answer = {"directory": str(folder), "report": path and str(path)}
        print(json.dumps(answer | {"chosen": report.chosen_rows(comparison)}))
        return
    wide = wide_console()
    wide.print(
        f"{len(judged)} memorized prompts judge, {len(tuning)} others choose strengths, "
        f"{len(clean)} clean ones set the fidelity to keep; {settings.num_images} images of each."
    )
    wide.print(report.curve_table(comparison))
    wide.print(report.chosen_table(comparison))
    if (table := report.level_table(comparison, [cases[i].level for i in judged])) is not None:
        wide.print(table)
    wide.print(report.verdict_line(comparison))
    _tell(folder, written, path)


def _tell(folder: Path, written: Sequence[Path], page: Path | None) -> None:
    files = ", ".join(path.name for path in written)
    console.print(f"Written to [bold]{folder}[/bold]: {files}, images/")
    if page is not None:
        console.print(f"To look at: [bold]{page}[/bold]", soft_wrap=True)
