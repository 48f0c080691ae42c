"""Progress bars for long work: rate and time left on a terminal, nothing elsewhere."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    """Finished units a second, or seconds a unit."""

    def render(self, task: Task) -> Text:
        if not task.speed:  # the first one is being compiled, most of the time
            return Text("starting" if not task.finished else "")
        return Text(f"{task.speed:.1f}/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s each")


class Bar:
    """What :func:`progress` yields: call :meth:`advance` after each finished unit."""

    def __init__(self, bar: Progress, task: TaskID):
        self._bar, self._task = bar, task

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        """Count ``amount`` finished units and show ``note`` beside them."""
        self._bar.update(self._task, advance=amount, note=note)


@contextlib.contextmanager
def progress(what: str, *, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar on standard error that vanishes when finished, and is silent off a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield Bar(bar, bar.add_task(what, total=total, completed=done, note=""))
