"""What a finished run shows: tables on the terminal, CSV files, pictures."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from sharpjax import plots
from sharpjax.detection.evaluation import roc
from sharpjax.detection.oracle import TrainingSet
from sharpjax.detection.summary import Summary, direction, means, summarize, write_table
from sharpjax.detection.truth import Truth, load_strip
from sharpjax.identities import Row
from sharpjax.models.convert import ConvertedPart
from sharpjax.rundir import write_csv
from sharpjax.similarity import pixel_correlation


def write_detection(
    folder: Path,
    records: Sequence[dict[str, Any]],
    *,
    truths: Sequence[Truth] | None,
    set_sizes: np.ndarray | None,
) -> tuple[list[Summary], list[Path]]:
    """``results.csv``, ``summary.csv`` and the plots of a detection run; their paths."""
    verdicts = None if truths is None else [truth.verdict for truth in truths]
    summaries = summarize(records, verdicts=verdicts, set_sizes=set_sizes)
    extra: list[dict[str, Any]] = [{} for _ in records]
    if set_sizes is not None:
        extra = [{"set_size": int(n)} for n in set_sizes]
    if truths is not None:
        for row, truth in zip(extra, truths, strict=True):
            row |= {"copy_rate": truth.copy_rate, "verdict": truth.verdict}
    written = [
        write_table(folder / "results.csv", records, extra),
        _write_summaries(folder / "summary.csv", summaries),
    ]
    if verdicts is not None and summaries[0].network is not None:
        written.append(_plot_roc(folder / "roc.png", records, summaries, np.array(verdicts)))
    if set_sizes is not None:
        names = [summary.name for summary in summaries]
        oracle = "oracle" in records[0]
        written.append(
            plots.dose_response(
                set_sizes,
                {name: means(records, "network", name) for name in names},
                {name: means(records, "oracle", name) for name in names if oracle},
                None if truths is None else np.array([truth.copy_rate for truth in truths]),
                folder / "dose_response.png",
            )
        )
    return summaries, written


def _plot_roc(path: Path, records, summaries: Sequence[Summary], verdicts: np.ndarray) -> Path:
    kept = verdicts != "between"
    curves: dict[str, dict[str, Any]] = {"network": {}, "oracle": {}}
    for summary in summaries:
        for who in curves:
            figures = getattr(summary, who)
            if figures is not None:
                values = direction(summary.name) * means(records, who, summary.name)
                fpr, tpr = roc(values[kept], verdicts[kept] == "memorized")
                curves[who][summary.name] = fpr, tpr, f"{figures.auc.value:.3f}"
    return plots.roc_curves(curves["network"], curves["oracle"], path)


def _write_summaries(path: Path, summaries: Sequence[Summary]) -> Path:
    rows = []
    for summary in summaries:
        row: dict[str, Any] = {
            "statistic": summary.name,
            "direction": direction(summary.name),
        }
        for who in ("network", "oracle"):
            figures = getattr(summary, who)
            if figures is not None:
                for key in ("auc", "tpr"):
                    interval = getattr(figures, key)
                    row |= {f"{who} {key}": interval.value}
                    row |= {f"{who} {key} low": interval.low, f"{who} {key} high": interval.high}
                row |= {"memorized": figures.num_positive, "clean": figures.num_negative}
        for prefix, correlation in (
            ("network", summary.rank_correlation),
            ("oracle", summary.oracle_rank_correlation),
        ):
            if correlation is not None:
                row |= {f"{prefix} spearman": correlation[0], f"{prefix} p": correlation[1]}
        rows.append(row)
    write_csv(path, rows)
    return path


def summary_table(summaries: Sequence[Summary]) -> Table:
    """Detection figures: AUC and TPR with intervals, the oracle's beside, rank correlation."""
    table = Table(title="Detection of memorized conditions, 95% bootstrap intervals")
    table.add_column("statistic @ t", no_wrap=True)
    table.add_column("means memorized")
    for column in (
        "AUC",
        "TPR at FPR ≤ 1%",
        "exact-score AUC",
        "Spearman with set size",
        "exact score",
    ):
        table.add_column(column, justify="right")
    for summary in summaries:
        network, oracle = summary.network, summary.oracle
        table.add_row(
            summary.name,
            "large" if direction(summary.name) > 0 else "small",
            "-" if network is None else str(network.auc),
            "-" if network is None else str(network.tpr),
            "-" if oracle is None else str(oracle.auc),
            _correlation(summary.rank_correlation),
            _correlation(summary.oracle_rank_correlation),
        )
    return table


def _correlation(value: tuple[float, float] | None) -> str:
    if value is None or np.isnan(value[0]):
        return "-"
    return f"{value[0]:+.2f} (p = {value[1]:.1g})"


def remarks(summaries: Sequence[Summary], truths: Sequence[Truth] | None) -> list[str]:
    """What a reader must know beside the table: who was judged, and how fine the rates are."""
    lines = []
    if truths is not None:
        verdicts = [truth.verdict for truth in truths]
        lines.append(
            f"Conditions by ground truth (generation): {verdicts.count('memorized')} memorized, "
            f"{verdicts.count('clean')} clean, {verdicts.count('between')} between (left out)."
        )
    figures = summaries[0].network
    if figures is None:
        lines.append("No ROC: the ground truth of both classes is not known for these conditions.")
    elif figures.num_negative < 200:
        lines.append(
            f"Clean conditions: {figures.num_negative}; the false-positive rate moves in steps of "
            f"{1 / figures.num_negative:.1%}, so TPR at FPR ≤ 1% allows "
            f"{int(0.01 * figures.num_negative)} false positives."
        )
    return lines


def truth_table(truths: Sequence[Truth]) -> Table:
    """Copy rates by condition."""
    table = Table(title="Copies among samples, 95% Wilson intervals")
    for column in ("condition", "images", "copies", "rate", "similarity", "threshold", "verdict"):
        table.add_column(column, justify="left" if column in ("condition", "verdict") else "right")
    for truth in truths:
        table.add_row(
            truth.condition,
            str(truth.set_size),
            f"{truth.num_copies} of {truth.num_samples}",
            f"{truth.copy_rate:.2f} [{truth.low:.2f}, {truth.high:.2f}]",
            f"{truth.mean_similarity:.3f}",
            f"{truth.threshold:.3f}",
            truth.verdict,
        )
    return table


def dose_table(records, set_sizes: np.ndarray, truths: Sequence[Truth] | None) -> Table:
    """Mean of every statistic by set size, with its standard error and the exact score's mean."""
    levels = np.unique(set_sizes)
    table = Table(title="Dose-response: mean ± standard error over conditions | exact score")
    table.add_column("training images", no_wrap=True)
    for level in levels:
        table.add_column(str(level), justify="right")
    if truths is not None:
        rates = np.array([truth.copy_rate for truth in truths])
        table.add_row("copy rate", *(f"{rates[set_sizes == n].mean():.2f}" for n in levels))
        table.add_row(
            "memorized",
            *(
                f"{sum(t.verdict == 'memorized' for t in truths if t.set_size == n)}"
                f" of {np.sum(set_sizes == n)}"
                for n in levels
            ),
            end_section=True,
        )
    for name in records[0]["network"]:
        cells = []
        for level in levels:
            rows = set_sizes == level
            values = means(records, "network", name)[rows]
            cell = f"{values.mean():.3g}"
            if len(values) > 1:  # one condition has no spread
                cell += f" ± {values.std(ddof=1) / np.sqrt(len(values)):.1g}"
            if "oracle" in records[0]:
                cell += f" | {means(records, 'oracle', name)[rows].mean():.3g}"
            cells.append(cell)
        table.add_row(name, *cells)
    return table


def write_sample_grid(
    folder: Path, truths: Sequence[Truth], training_set: TrainingSet, *, count: int = 10
) -> Path:
    """``samples.png``: all sets of two digits, samples over their nearest training images."""
    groups = [truth.condition.split()[0] for truth in truths]
    chosen = {"2", "7"} & set(groups) or set(sorted(set(groups))[:2])
    shown = [index for index, group in enumerate(groups) if group in chosen]
    rows = []
    for index in shown:
        truth, references = truths[index], training_set.of(index)
        samples = load_strip(folder / "samples" / f"{index:03d}.png")[:count]
        between = pixel_correlation(samples, references)
        rows.append(
            (
                f"{truth.condition}\n{truth.copy_rate:.0%} copies",
                samples[:, 0],
                references[between.argmax(axis=1), 0],
                between.max(axis=1) > truth.threshold,
            )
        )
    return plots.sample_grid(
        rows, folder / "samples.png",
        title="samples (red frame: copy) above the nearest training image",
    )  # fmt: skip


def copy_shipped_grid(model_directory: Path, folder: Path) -> Path | None:
    """Bring the model's own ``samples.png`` beside the run's plots, if it ships one."""
    source = model_directory / "samples.png"
    if not source.is_file():
        return None
    return Path(shutil.copy(source, folder / "samples.png"))


def as_json(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """The summaries as JSON values."""
    return [dataclasses.asdict(summary) for summary in summaries]


_SOURCES = {
    "network": "network",
    "lanczos": "  Lanczos",
    "arnoldi": "  Arnoldi",
    "oracle": "exact",
}


def spectrum_table(rows: Sequence[dict[str, Any]], *, tolerance: float) -> Table:
    """Number and size of the eigenvalues of every spectrum, the exact score's below."""
    table = Table(
        title="Eigenvalues of σ²H along the sampling path",
        caption=f"< 0: below -{tolerance:g}; ≈ 0: within; > 0: above.  "
        "tr K: effective dimension, the sum of 1 + eigenvalue.",
    )
    table.add_column("condition", no_wrap=True)
    table.add_column("t", justify="right")
    table.add_column("score", no_wrap=True)
    for name in ("< 0", "≈ 0", "> 0", "smallest", "largest", "tr K"):
        table.add_column(name, justify="right", no_wrap=True)
    here: tuple[Any, ...] = ()
    for row in rows:
        repeated = here == (row["condition"], row["noise"], row["t"])
        if here and not repeated:
            table.add_section()
        here = row["condition"], row["noise"], row["t"]
        noise = f" #{row['noise']}" if row["noise"] else ""
        dimension = row["effective_dimension"]
        table.add_row(
            "" if repeated else row["condition"] + noise,
            "" if repeated else str(row["t"]),
            _SOURCES[row["source"]],
            *(str(row[name]) for name in ("negative", "near_zero", "positive")),
            *(f"{row[name]:.4f}" for name in ("smallest", "largest")),
            "" if dimension == "" else f"{dimension:.1f}",
        )
    return table


def identities_table(rows: Sequence[Row]) -> Table:
    """What was found of every identity in every setting, the printed form beside."""
    table = Table(
        title="Identities by numbers",
        caption="off by: standard errors of a mean; relative difference of exact values; "
        "share of a bound (≤)",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for name in ("", "setting", "left side", "closed form", "off by", "verdict"):
        align = "left" if name in ("", "setting", "verdict") else "right"
        table.add_column(name, justify=align, no_wrap=True)
    for name in ("printed form", "off by"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    deviations = {"mean": "{:+.1f}", "exact": "{:.0e}", "bound": "{:.2f}"}
    previous = ""
    for row in rows:
        if previous and row.name != previous:
            table.add_section()
        values = dict.fromkeys(f"{value:.4g}" for value in row.printed or ())
        table.add_row(
            "" if row.name == previous else row.name,
            row.setting,
            _with_error(row.estimate, row.standard_error),
            ("≤ " if row.kind == "bound" else "") + f"{row.closed_form:.4g}",
            deviations[row.kind].format(row.deviation),
            row.verdict if row.verdict == "holds" else f"[bold red]{row.verdict}[/bold red]",
            " to ".join(values),
            "" if row.printed_z is None else f"{row.printed_z:+.0f}",
            row.printed_verdict or "",
        )
        previous = row.name
    return table


def _with_error(value: float, error: float) -> str:
    """Both to the second digit of the error; without an error, to four digits."""
    if not 0 < error < np.inf:
        return f"{value:.4g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def statements_table(rows: Sequence[Row]) -> Table:
    """The identities themselves, and what is printed in their place."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("", "identity", "as printed"):
        table.add_column(name, no_wrap=name == "identity")
    previous = ""
    statements = ((row.name, row.statement, row.printed_statement) for row in rows)
    for name, statement, printed in dict.fromkeys(statements):
        table.add_row("" if name == previous else name, escape(statement), escape(printed))
        previous = name
    return table


def identities_remarks(rows: Sequence[Row]) -> list[str]:
    """How many identities hold, and how many printed forms are wrong."""
    names = {row.name for row in rows}
    failing = [row for row in rows if row.verdict != "holds"]
    lines = [
        f"{len(names - {row.name for row in failing})} of {len(names)} identities hold, in "
        f"{len(rows) - len(failing)} of {len(rows)} settings."
    ]
    if failing:
        where = "; ".join(f"{row.name}, {row.setting}" for row in failing)
        lines.append(f"[bold red]Failing:[/bold red] {where}.")
    printed = []
    for verdict in ("wrong", "right", "not separable"):
        found = [row.name for row in rows if row.printed_verdict == verdict]
        which = f" ({', '.join(dict.fromkeys(found))})" if found else ""
        printed.append(f"{verdict} in {len(found)}{which}")
    lines.append(f"Printed forms, by setting: {', '.join(printed)}.")
    sampled = [row for row in rows if row.z is not None]
    if sampled:
        largest = max(abs(row.z) for row in sampled)
        lines.append(
            f"Largest |z| of {len(sampled)} means: {largest:.1f}; allowed {sampled[0].limit:.1f}."
        )
    return lines


def conversion_table(parts: Sequence[ConvertedPart]) -> Table:
    """What was written of each part of a model; of files beside weights, their number."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("part", "class", "parameters", "bytes", "type", "files"):
        right = name in ("parameters", "bytes")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "files")
    for part in parts:
        weights = [name for name in part.files if name.endswith(".safetensors")]
        others = len(part.files) - len(weights)
        table.add_row(
            part.name or "(one part)",
            part.class_name,
            "" if part.num_parameters is None else f"{part.num_parameters:,}",
            f"{part.num_bytes:,}",
            part.dtype or "",
            escape(", ".join([*weights, f"{others} of settings"])),
        )
    return table
