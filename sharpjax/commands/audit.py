"""`sharpjax audit`: from which checkpoint on a model remembers its training images."""

import json
import re
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sharpjax.commands.blocks import with_blocks
from sharpjax.commands.options import (
    NUMBERS,
    FileChoice,
    Output,
    PageOption,
    Prompts,
    SeedOption,
    finite,
    of_option,
    tell_written,
    timesteps,
    wide_console,
)

TIMES = "10,50,200,500"
_number = partial(typer.Option, rich_help_panel=NUMBERS)


@with_blocks
def audit(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...",
            help="Model directories of one training, such as those that sharpjax train keeps in "
            "models/; in the order of the numbers at the end of their names, if all have one.",
        ),
    ],
    *,
    choice: FileChoice,
    held_out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Images never trained on, of the same kind as the suspected ones.",
        ),
    ],
    suspected: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Images that may be remembered. "
            "Default: the training set, where it ships with the last checkpoint.",
        ),
    ] = None,
    file: Prompts,
    out: Output,
    times: Annotated[
        str, _number(help="Timesteps of the losses, with commas between: noise levels.")
    ] = TIMES,
    noises: Annotated[int, _number(min=1, help="Of each image and level.")] = 4,
    samples: Annotated[int, _number(min=1, help="Images drawn from every checkpoint.")] = 64,
    steps: Annotated[int, _number(min=1, help="Of the sampler.")] = 50,
    guidance: Annotated[float, _number(callback=finite, help="Of the samples.")] = 1.0,
    most: Annotated[
        int, _number(min=2, help="Images of either kind whose losses are taken, evenly chosen.")
    ] = 200,
    seed: SeedOption = 0,
    page: PageOption = True,
) -> None:
    """Find from which checkpoint on a model remembers: by its losses, and by copies it draws.

    Compares the denoising loss of suspected images with that of held-out ones, and counts samples
    that lie three times nearer to one suspected image than to any other.  Where both directories
    have a metadata.csv (file_name, text), losses are those under the texts: what a prompt repeats
    is remembered under that prompt.  Both curves have a band of what chance explains; the page
    shows from which checkpoint on each has left it.  Resumable.
    """
    levels = timesteps(times, TIMES)
    names = _ordered(checkpoints)
    texts = file.texts()
    from sharpjax.checkpoints.fingerprint import fingerprint
    from sharpjax.detection.baseline import check_same_model
    from sharpjax.models.load import find, load
    from sharpjax.report import audit as report
    from sharpjax.report.page import write_page
    from sharpjax.report.terminal import show
    from sharpjax.rundir.about import Clock
    from sharpjax.runs.audit import Audited, AuditSettings
    from sharpjax.runs.audit import audit as compute
    from sharpjax.runs.cases import training_conditions, training_images
    from sharpjax.runs.images import find_images, read_images, read_texts

    # before models are read, which may take minutes
    held = find_images(held_out)
    found = None if suspected is None else find_images(suspected)
    clock = Clock(names[-1][1])
    sources = [(step, find(name, **choice.files)) for step, name in names]
    last = load(sources[-1][1])
    of_option("--times", last.schedule.checked_timestep, levels)
    of_option("--steps", last.schedule.timesteps, steps)
    for _, source in sources[:-1]:
        check_same_model(f"{source.path}, beside {sources[-1][1].path},", last, load(source))
    directory = sources[-1][1].path
    own: list[str] | None
    if suspected is None or found is None:
        of_training, own = training_images(last, directory)
    else:
        of_training = read_images(suspected, found, last.image_shape)
        own = read_texts(suspected, found)
    others, said = read_images(held_out, held, last.image_shape), read_texts(held_out, held)
    if (own is None) != (said is None):
        without = suspected or "the training set" if own is None else held_out
        warnings.warn(
            f"texts are left out: {without} has no metadata.csv (file_name, text), and losses "
            "under texts cannot be compared with others",
            stacklevel=2,
        )
    # a loss under a text can only be compared with losses under texts
    both = None if own is None or said is None else (_evenly(own, most), _evenly(said, most))
    conditions = texts or training_conditions(last, directory)
    settings = AuditSettings(
        times=levels, num_noises=noises, num_samples=samples, num_steps=steps, guidance=guidance,
        seed=seed,
    )  # fmt: skip
    folder = out.output or Path("runs") / f"audit-{Path(names[-1][1]).name}"
    told = [source.path.name for _, source in sources]
    chosen = [
        Audited(name, step, fingerprint(source), partial(load, source))
        for name, (step, source) in zip(told, sources, strict=True)
    ]
    del last
    records = compute(
        chosen, _evenly(of_training, most), _evenly(others, most), conditions, folder, settings,
        references=of_training, texts=both,
    )  # fmt: skip
    rows = report.rows_of(records, told, [step for step, _ in sources])
    written = report.write(folder, rows)
    clock.record(folder)
    path = write_page([folder]) if page else None
    if out.as_json:
        answer = {"directory": str(folder), "report": path and str(path), "checkpoints": rows}
        print(json.dumps(answer))
    else:
        show(wide_console(), report.blocks(rows, texts=both is not None))
        tell_written(folder, ["results.jsonl", *(one.name for one in written)], path)


def _ordered(names: Sequence[str]) -> list[tuple[int, str]]:
    """Steps and directories, ascending; of names without numbers the places."""
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise ValueError(f"{twice[0]} is given twice; an audit takes a checkpoint once")
    found = [re.search(r"(\d+)/?$", name) for name in names]
    numbers = [int(match[1]) for match in found if match]
    if len(set(numbers)) < len(names):
        return list(enumerate(names, start=1))
    return sorted(zip(numbers, names, strict=True))


def _evenly(items: Any, most: int) -> Any:
    """At most so many of them, from the first to the last."""
    step = max(len(items) / most, 1.0)
    chosen = [int(i * step) for i in range(min(most, len(items)))]
    return [items[i] for i in chosen] if isinstance(items, list) else items[chosen]
