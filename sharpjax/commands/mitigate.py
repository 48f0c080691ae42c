"""`sharpjax mitigate`: images of prompts that do not copy, and how methods compare."""

import dataclasses
import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.judges import JudgeFiles
from sharpjax.commands.options import (
    CalibrationOption,
    Devices,
    Judging,
    ModelFiles,
    Opened,
    Output,
    PageOption,
    Prompts,
    SeedOption,
    finite,
    of_option,
    tell_written,
    wide_console,
)
from sharpjax.prompts import has_columns, read_prompts

if TYPE_CHECKING:
    from sharpjax.detection.calibration import Threshold
    from sharpjax.models.latent_diffusion import LatentDiffusion

STRENGTHS = {  # of every method: its default, and what it means
    "screened": (0.1, "share of clean images that the screen drops"),
    "ranked": (5, "noises to choose from"),
    "sail": (0.3, "threshold over the median of clean prompts"),
    "sail_official": (0.8, "threshold over the median of clean prompts"),
    "prompt_embedding": (0.7, "threshold over the median of clean prompts"),
    "noise_batch": (0.3, "fraction of steps without guidance"),
    "lower_guidance": (3, "guidance divided by this"),
    "delayed_guidance": (0.5, "fraction of steps without guidance"),
    "dynamic_guidance": (1, "opposite guidance before the transition"),
    "padding": (0.7, "share of the padding that is zeroed"),
    "cross_attention": (1.25, "factor of the first token's logits"),
    "guard": (2, "repulsion from the prompt as it is"),
}
DEFAULT_METHOD = "screened"  # the only one that says how many copies may be left
FEW = 4, 4  # memorized and clean prompts of the bundled model
_comparison = partial(typer.Option, rich_help_panel="Comparison")


def _meanings() -> str:
    """What strengths are, methods with the same meaning together."""
    by_meaning: dict[str, list[str]] = {}
    for name, (default, meaning) in STRENGTHS.items():
        by_meaning.setdefault(meaning, []).append(f"{name} {default:g}")
    return "; ".join(f"{meaning} ({', '.join(n)})" for meaning, n in by_meaning.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptsAndClean(Prompts):
    """Prompts to be treated, and others that are clean."""

    clean: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts that are not memorized: descents stop where these are, and a "
            "screen is set by them in place of the model's own, so that nothing is bounded. "
            "Default: the bundled model's."
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.column is not None and self.prompts is None and self.clean is None:
            raise ValueError("--column names a column of the files that --prompts and --clean give")

    def clean_texts(self) -> list[str]:
        """Those of `--clean`, if it is given."""
        if self.clean is None:
            return []
        return read_prompts(self.clean, column=self.column if has_columns(self.clean) else None)


@with_blocks
def mitigate(
    *,
    model: ModelFiles,
    file: PromptsAndClean,
    out: Output,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(STRENGTHS)}.")] = DEFAULT_METHOD,
    strength: Annotated[
        float | None,
        typer.Option(
            callback=finite,
            help=f"Of the method: {_meanings()}. Its default stands after its name.",
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="DDIM steps.")] = 50,
    guidance: Annotated[
        float | None,
        typer.Option(
            callback=finite,
            help="Without mitigation. Default: what the model is meant for, 7.5 where it does not "
            "say.",
        ),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(min=0, help="Of a descent, at most. Default: as many as its authors take."),
    ] = None,
    penalty: Annotated[
        float,
        typer.Option(
            min=0,
            callback=finite,
            help="Of the noise's length in the loss of sail: its share, at the usual "
            "length, of what is usual of the sharpness. sail_official has its authors'.",
        ),
    ] = 1.0,
    everything: Annotated[
        bool,
        typer.Option("--all-prompts", help="Treat every prompt, whatever detection says of it."),
    ] = False,
    calibration: CalibrationOption = None,
    screen: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Of screened and ranked: what sharpjax screen wrote, which also bounds the copies "
            "that slip through. Default: that of the model, where it is for this guidance and "
            "number of steps; or clean prompts set it, and nothing is bounded.",
        ),
    ] = None,
    compare: Annotated[
        bool,
        _comparison(
            "--compare",
            help="All methods at all strengths on prompts known to be memorized, some of which "
            "choose each method's strength and the others judge it. Hours for the bundled model.",
        ),
    ] = False,
    methods: Annotated[
        str | None, _comparison(help="Only these, with commas between. Default: all.")
    ] = None,
    judging: JudgeFiles,
    seed: SeedOption = 0,
    spread: Devices,
    page: PageOption = True,
) -> None:
    """Generate images of prompts without copying training images.

    Detects which prompts are memorized, samples these with mitigation and without, side by side,
    and leaves the others as they are.  With --compare it draws the trade-off of every method.
    """
    chosen_methods = _methods(method, methods, compare=compare)
    cases, clean = file.cases(), file.clean_texts()
    from sharpjax.mitigation.screen_calibration import (
        SCREEN_NAME,
        SCREENED,
        ScreenCalibration,
        screen_for,
    )

    screens = method in SCREENED and not compare
    if screen is not None and not screens:
        raise ValueError(f"--screen goes with --method {' or '.join(SCREENED)}")
    if screens and steps < 2:
        raise ValueError(f"--method {method} looks half-way down a path: give --steps 2 or more")
    known = None if screen is None else ScreenCalibration.load(screen)
    opened = model.open(spread=spread)
    from sharpjax.commands.mitigate_compare import compare_methods
    from sharpjax.mitigation.methods import METHODS, NONE, check_applies, check_strength
    from sharpjax.report import mitigate as report
    from sharpjax.report.terminal import show
    from sharpjax.runs.cases import (
        clean_prompts,
        compared_cases,
        few_cases,
        knows_its_memories,
    )
    from sharpjax.runs.mitigate import MitigationSettings, claim_run, jobs
    from sharpjax.runs.mitigate import mitigate as compute

    power = METHODS[method].default if strength is None else strength
    check_strength(method, power)
    directory, folder = opened.directory, opened.folder(out, "mitigate")
    if not opened.network.takes_prompts:
        raise ValueError(
            f"{model.model} is a pixel model; sharpjax mitigate is for models of prompts. "
            "sharpjax.mitigation.sail works on any pair of scores"
        )
    network = cast("LatentDiffusion", opened.network)
    of_option("--steps", network.schedule.timesteps, steps)
    for name in chosen_methods:
        check_applies(name, network)
    weight, who = network.default_guidance if guidance is None else guidance, opened.fingerprint
    if screens:  # clean prompts that are given set one of their own
        own = None if clean else directory / SCREEN_NAME
        known = screen_for(known, own, fingerprint=who, num_steps=steps, guidance=weight)
    bundled = knows_its_memories(directory)
    judge = judging.load(opened, bundled=bundled, needed=compare)
    if compare and judge is None:
        raise ValueError("--compare needs a judge of copies: --references, training images")
    if not cases and not bundled:
        raise ValueError(f"--prompts FILE is needed: {directory} names no prompts of its own")
    cases = cases or (compared_cases(directory) if compare else few_cases(directory, *FEW))
    texts = [case.condition for case in cases]
    network.check(texts)
    settings = MitigationSettings(
        num_images=images,
        num_steps=steps,
        max_steps=max_steps,
        seed=seed,
        penalty=penalty,
        guidance=weight,
        screen=None if known is None else known.digest,
    )
    clean = clean or clean_prompts(directory)
    if not clean and known is None and any(METHODS[name].loss for name in chosen_methods):
        raise ValueError(
            "--clean FILE is needed: prompts that the model has certainly not memorized, from "
            "which the method takes its threshold"
        )
    work = partial(
        compute,
        network,
        texts,
        directory=folder,
        settings=settings,
        clean=clean,
        vocabulary=network.tokenizer,
        fingerprint=who,
        screen=known,
        mesh=opened.mesh,
    )
    if compare and judge is not None:
        finish = partial(opened.finish, folder, page=page)
        compare_methods(cases, folder, chosen_methods, judge, work, finish, as_json=out.as_json)
        return
    claim_run(folder, texts, settings, fingerprint=who)
    found, treated = None, list(range(len(texts)))
    if not everything:
        found = _detect(opened, texts, folder, calibration, seed)
        treated = [i for i, (_, verdict) in enumerate(found[0]) if verdict.startswith("memorized")]
        left = [
            text
            for i, text in enumerate(texts)
            if i not in treated and cases[i].verdict == "memorized"
        ]
        if left:
            told = ", ".join(repr(text[:40]) for text in left[:3])
            warnings.warn(
                f"{len(left)} prompts that are known to be memorized are not called so, and stay "
                f"as they are: {told}{', ...' if len(left) > 3 else ''}; --all-prompts treats all",
                stacklevel=1,
            )
    records = work(jobs(range(len(texts)), NONE) + jobs(treated, method, [power]))
    failed = treated and all("error" in r for r in records if r["method"] != NONE)
    missed = None if known is None else known.missed_by(method, power)
    table, written = report.write(
        folder, records, dict(enumerate(texts)), judge, method=method, strength=power,
        found=found, missed=missed,
    )  # fmt: skip
    above = None if found is None else found[1].value
    from sharpjax.mitigation.reference_judge import ReferenceJudge
    from sharpjax.report.rows import plain

    control = str(judge.control) if isinstance(judge, ReferenceJudge) else None
    facts = {"method": method, "strength": power, "threshold": above, "control": control}
    path = opened.finish(folder, page=page, **facts)
    if out.as_json:
        answer = {"directory": str(folder), "report": path and str(path)} | facts
        answer["threshold"] = None if found is None else dataclasses.asdict(found[1])
        answer["settings"] = dataclasses.asdict(settings)
        print(json.dumps(plain(answer | {"prompts": table})))
    else:
        show(wide_console(), report.blocks(table, records, f"{method} at {power:g}", above))
        tell_written(folder, [*(one.name for one in written), "images/"], path)
    if failed:
        raise ValueError(f"no image of {method} at {power:g} came out: {folder} says why of each")


def _methods(method: str, methods: str | None, *, compare: bool) -> list[str]:
    if methods is not None and not compare:
        raise ValueError("--methods goes with --compare; one method is chosen by --method")
    names = list(STRENGTHS) if compare else [method]
    if methods is not None:
        names = list(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
    unknown = [name for name in dict.fromkeys((method, *names)) if name not in STRENGTHS]
    if unknown or not names:
        raise ValueError(
            f"unknown method {', '.join(unknown) or '(none given)'}; choose from "
            f"{', '.join(STRENGTHS)}"
        )
    return names


def _detect(
    opened: Opened, texts: Sequence[str], folder: Path, calibration: Path | None, seed: int
) -> "tuple[list[tuple[float, str]], Threshold]":
    """Value and verdict of every prompt, and the threshold."""
    import numpy as np

    from sharpjax.commands.detect_verdicts import verdicts_by
    from sharpjax.detection.settings import DetectSettings
    from sharpjax.runs.detect import detect

    settings = DetectSettings(statistics=("score_difference",), seed=seed)
    names = settings.names(opened.network.schedule)
    by = verdicts_by(Judging(calibration=calibration), opened, settings, names)
    if (name := by.get("decide_by")) is None:
        told = by.get("remark", f"{calibration} has no threshold of {names[0]}.")
        raise ValueError(f"{told} Or treat every prompt by --all-prompts")
    records = detect(opened.network, texts, folder / "detect", settings, **opened.how())
    limit, found = by["thresholds"].thresholds[name], []
    for record in records:
        value = float(np.mean(record.get("network", {}).get(name, np.nan)))
        told = limit.verdict(value) if np.isfinite(value) else "not known: it failed"
        found.append((value, told))
    return found, limit
