"""Progress of long work: a bar on a terminal, elsewhere a line every half minute."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich import progress as rich
from rich.console import Console
from rich.text import Text

EVERY = 30.0  # seconds between lines


class _Rate(rich.ProgressColumn):
    """Finished units a second, or seconds a unit."""

    def render(self, task: rich.Task) -> Text:
        if not task.speed:  # the first one is being compiled, most of the time
            return Text("starting" if not task.finished else "")
        return Text(_rate(task.speed))


class Bar:
    """What `progress` yields: call `advance` after each finished unit."""

    def __init__(self, tell: Callable[[int, str], None]):
        self._tell = tell

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        """Count `amount` finished units and show `note` beside them."""
        self._tell(amount, note)


class _Lines:
    """The same off a terminal, where a log keeps every line."""

    def __init__(self, console: Console, what: str, *, total: int, done: int):
        self._console = console
        self._what, self._total, self._done = what, total, done
        self._last = time.monotonic()
        self._first: float | None = None  # when the first unit was done, which is compiled
        self._since = 0

    def __call__(self, amount: int, note: str) -> None:
        now = time.monotonic()
        self._done += amount
        if self._first is None:
            self._first = now
        else:
            self._since += amount
        if now - self._last >= EVERY and self._done < self._total:
            counts = f"{self._done:,} of {self._total:,}"
            if self._since:
                speed = self._since / (now - self._first)
                left = (self._total - self._done) / speed
                counts += f", {_rate(speed)}, {_duration(left)} left"
            self._console.print(f"{self._what}: {counts}", markup=False, soft_wrap=True)
            self._last = now


def _rate(speed: float) -> str:
    return f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"


@contextlib.contextmanager
def progress(what: str, *, total: int, done: int = 0) -> Iterator[Bar]:
    """On standard error a bar that vanishes when finished; off a terminal a line now and then."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield Bar(_Lines(console, what, total=total, done=done))
        return
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(bar_width=24),
        rich.MofNCompleteColumn(),
        _Rate(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}"),
    )
    with rich.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done, note="")
        yield Bar(lambda amount, note: bar.update(task, advance=amount, note=note))
