"""``sharpjax mitigate --compare``: every method at every strength, judged on the same prompts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharpjax import judging
from sharpjax.commands.options import tell_written, wide_console
from sharpjax.detection.cases import Case
from sharpjax.mitigation.comparison import compare
from sharpjax.mitigation.methods import METHODS, NONE
from sharpjax.mitigation.run import Job, MitigationSettings, jobs, mitigate
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.page import write_page
from sharpjax.provenance import Clock
from sharpjax.report import comparison as report
from sharpjax.report.mitigation import IMAGES_TABLE, judged_rows, side_by_side
from sharpjax.rundir import write_csv

_TUNING = 3  # every third memorized prompt is for choosing strengths


def compare_methods(
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
    """Sample all, choose strengths on a third of the memorized prompts, judge on the others.

    Raises:
        ValueError: fewer than 3 prompts labelled memorized, or none labelled clean.
    """
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
    rows = judged_rows(folder, records, judge)
    write_csv(folder / IMAGES_TABLE, rows)
    comparison = compare(rows, tuning=tuning, judged=judged, clean=clean)
    written = [folder / IMAGES_TABLE, *report.write_comparison(folder, comparison)]
    for name, one in comparison.chosen.items():
        power = one.point.outcomes.strength
        shown = [
            r for r in records
            if r["index"] in judged[::2]
            and (r["method"], r["strength"]) in ((NONE, 0.0), (name, power))
        ]  # fmt: skip
        title = f"without mitigation (left) and with {name} at {power:g} (right); red frame: copy"
        written.append(side_by_side(folder, shown, rows, title, name=f"{name}.png"))
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
    wide.print(report.verdict_line(report.chosen_rows(comparison)))
    tell_written(folder, [*(file.name for file in written), "images/"], path)
