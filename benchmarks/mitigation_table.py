"""The comparison of mitigations from its rows: the table of docs/mitigation.md, and paired tests.

    python benchmarks/mitigation_table.py [ROWS.csv] [--add RUN/images.csv] [--figure PNG]

`sharpjax mitigate --compare` judges what one run drew.  Here rows of several runs over the same
prompts and noises are one comparison: their images without mitigation must have been judged the
same.  `--add` puts those of a run's images.csv into the file, and prints what then comes out.

Clean prompts are those that nothing treats.  Of every kind: each method at the strength with the
most successes on the tuning prompts, and on the prompts that judge copies, the right thing, and the
right thing without a copy; each with its 95% interval, the prompt as the unit; p against the method
that the tuning prompts say is best (sign flips of successes prompt by prompt, Holm's correction for
all comparisons of all kinds); and evaluations an image.
"""

import argparse
import csv
from pathlib import Path

from sharpjax.mitigation.comparison import compare, kinds_of
from sharpjax.mitigation.methods import NONE
from sharpjax.report import plots
from sharpjax.report.comparison import curve_rows, figures

COLUMNS = ("method", "strength", "kind", "part", "prompt", "image", "copied", "fidelity", "maker",
           "nearest", "evaluations")  # fmt: skip
ROWS = Path(__file__).resolve().parents[1] / "docs" / "mitigation_rows.csv"


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a file, by the columns that are published."""
    with path.open(newline="") as file:
        return [{name: row[name] for name in COLUMNS} for row in csv.DictReader(file)]


def add(known: list[dict[str, str]], path: Path) -> list[dict[str, str]]:
    """Rows of another run beside the known ones, which keep their order."""
    more = read(path)
    for row in more:
        for name in ("strength", "fidelity", "maker"):
            row[name] = f"{float(row[name]):g}" if row[name] else ""
        row["evaluations"] = f"{float(row['evaluations']):.0f}"
    place = lambda row: (row["prompt"], row["image"])
    before, again = ({place(r): r for r in rows if r["method"] == NONE} for rows in (known, more))
    for where, row in again.items():
        if where not in before or before[where] != row:
            raise SystemExit(f"{path}: without mitigation {row}, but known is {before.get(where)}")
    cells = {(row["method"], row["strength"]) for row in more if row["method"] != NONE}
    kept = [row for row in known if (row["method"], row["strength"]) not in cells]
    return kept + [row for row in more if row["method"] != NONE]


def judged(rows: list[dict[str, str]]) -> list[dict]:
    """As `compare` takes them; an image that names no nearest one was refused."""
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(row["prompt"] for row in rows))}
    return [
        {
            "method": row["method"], "strength": float(row["strength"]),
            "index": numbers[row["prompt"]], "image": int(row["image"]),
            "file": row["nearest"] or None, "copied": row["copied"] == "True",
            "fidelity": float(row["fidelity"]), "evaluations": float(row["evaluations"]),
        }
        for row in rows
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, nargs="?", default=ROWS)
    parser.add_argument("--add", type=Path, metavar="CSV", help="images.csv of another run")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="fidelity over copies, written")
    options = parser.parse_args()
    rows = read(options.rows)
    if options.add:
        rows = add(rows, options.add)
        with options.rows.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    told, numbered = {row["prompt"]: row for row in rows}, judged(rows)
    treated = {row["index"] for row in numbered if row["method"] != NONE}
    clean = [i for i in range(len(told)) if i not in treated]
    names, parts = ([row[name] for row in told.values()] for name in ("kind", "part"))
    kinds = kinds_of(names, parts, sorted(treated))
    found = compare(numbered, kinds=kinds, clean=clean)
    if options.figure:
        plots.write(figures(curve_rows(found), found.reference), options.figure)
    print(f"clean prompts show the right thing in {found.reference:.3f} ({len(clean)} prompts)")
    for kind, of_kind in found.kinds.items():
        count = kinds[kind]
        print(f"\n{kind}: {len(count.judged)} prompts judge, {len(count.tuning)} tune, best on "
              f"tuning prompts: {of_kind.rival}")  # fmt: skip
        print(f"{'method':18}{'strength':>9}  {'copies':22}{'right thing':22}{'and no copy':22}"
              f"{'p':>7}{'evaluations':>13}")  # fmt: skip
        none = of_kind.curves[NONE].points if NONE in of_kind.curves else []
        points = [(NONE, point, None) for point in none]
        points += [(name, one.best, one.p_value) for name, one in of_kind.standings.items()]
        for name, point, p in points:
            print(
                f"{name:18}{point.outcomes.strength:9g}  {point.copy_rate!s:22}"
                f"{point.fidelity!s:22}{point.success!s:22}"
                f"{'' if p is None else f'{p:.3f}':>7}{point.outcomes.evaluations:13.0f}"
            )


if __name__ == "__main__":
    main()
