"""Options and output that commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from sharpjax import zoo

console = Console()

MODEL_FILES = "Model files"  # a panel of the help
ANY_MODEL = (
    f"A bundled model ({', '.join(zoo.bundled())}), a diffusers directory, or a Hugging Face hub "
    "id such as CompVis/stable-diffusion-v1-4."
)

ModelOption = Annotated[
    str,
    typer.Option(help=f"A bundled model ({', '.join(zoo.bundled())}) or a diffusers directory."),
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of every random draw.")]
PROMPT_FILES = (
    "a line each, or a table (.csv, .tsv) or JSON (.json, .jsonl) with a column "
    "[bold]prompt[/bold], caption or text"
)
ColumnOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The column of a table, or key of JSON, that holds the prompts."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
PageOption = Annotated[
    bool, typer.Option("--report/--no-report", help="Write report.html, a page of all results.")
]

VariantOption = Annotated[
    str | None,
    typer.Option(
        help="Weight files to read: fp16 for names like model.fp16.safetensors; of parts without, "
        "the plain ones.",
        rich_help_panel=MODEL_FILES,
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of a hub id.", rich_help_panel=MODEL_FILES),
]
FollowLinksOption = Annotated[
    bool,
    typer.Option(
        "--follow-links",
        help="Follow links that lead out of the model's directory, which are refused otherwise: "
        "for one that you made or trust.",
        rich_help_panel=MODEL_FILES,
    ),
]


def wide_console() -> Console:
    """For tables of many columns: Rich takes a file or a pipe for 80 columns wide, too few."""
    return console if console.is_terminal else Console(width=max(console.width, 160))


def run_name(model: str, directory: Path) -> str:
    """Of a model in names of run directories: a hub id's last word, not its snapshot's number."""
    if model in zoo.bundled() or not Path(model).is_dir():
        return model.rpartition("/")[2]
    return directory.resolve().name


def tell_written(folder: Path, names: Sequence[str], page: Path | None) -> None:
    """The last lines of a command: where its results are, and its page if there is one."""
    console.print(f"Written to [bold]{escape(str(folder))}[/bold]: {', '.join(names)}")
    if page is not None:
        console.print(f"To look at: [bold]{escape(str(page))}[/bold]", soft_wrap=True)
