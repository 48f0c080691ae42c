"""`sharpjax mitigate --compare`: every method at every strength, judged on the same prompts."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sharpjax.commands.options import tell_written, wide_console
from sharpjax.mitigation.comparison import ALL, compare, kinds_of
from sharpjax.mitigation.judging import Judge
from sharpjax.mitigation.methods import METHODS, NONE
from sharpjax.prompts import Case
from sharpjax.report import comparison as report
from sharpjax.report.mitigate import IMAGES_TABLE, judged_rows, pairs, side_by_side
from sharpjax.report.terminal import show
from sharpjax.rundir.files import write_csv
from sharpjax.runs.mitigate import Job, jobs

_SHOWN = 6  # prompts of each method's picture


def compare_methods(
    cases: Sequence[Case],
    folder: Path,
    names: Sequence[str],
    judge: Judge,
    work: Callable[[Sequence[Job]], list[dict[str, Any]]],
    finish: Callable[[], Path | None],
    *,
    as_json: bool,
) -> None:
    """Sample all, choose strengths on the tuning prompts of each kind, judge on the others.

    Raises:
        ValueError: fewer than 3 prompts labelled memorized, or none labelled clean.
    """
    memorized = [i for i, case in enumerate(cases) if case.verdict == "memorized"]
    clean = [i for i, case in enumerate(cases) if case.verdict == "clean"]
    if len(memorized) < 3 or len(clean) < 1:
        raise ValueError(
            "--compare needs at least 3 prompts labelled memorized and one labelled clean, got "
            f"{len(memorized)} and {len(clean)}"
        )
    kinds = kinds_of([c.source for c in cases], [c.part for c in cases], memorized)
    wanted: list[Job] = jobs([*memorized, *clean], NONE)
    for name in names:
        wanted += jobs(memorized, name, METHODS[name].strengths)
    records = work(wanted)
    rows = judged_rows(folder, records, judge)
    for row in rows:
        row["kind"], row["part"] = cases[row["index"]].source, cases[row["index"]].part
    write_csv(folder / IMAGES_TABLE, rows)
    comparison = compare(rows, kinds=kinds, clean=clean)
    written = [folder / IMAGES_TABLE, *report.write(folder, comparison)]
    whole = comparison.kinds[ALL]
    judged = whole.kind.judged
    for name, one in whole.standings.items():
        power = one.best.outcomes.strength
        both = (NONE, 0.0), (name, power)
        mine = (r for r in records if r["index"] in judged[:: -(-len(judged) // _SHOWN)])
        shown = [r for r in mine if (r["method"], r["strength"]) in both]
        title = f"without mitigation (left) and with {name} at {power:g} (right)"
        written.append(side_by_side(folder, pairs(shown), rows, title, name=f"{name}.png"))

    page = finish()
    if as_json:
        answer = {"directory": str(folder), "report": page and str(page)}
        print(json.dumps(answer | {"standings": report.standing_rows(comparison)}))
        return
    show(wide_console(), report.blocks_of(comparison))
    tell_written(folder, [*(file.name for file in written), "images/"], page)
