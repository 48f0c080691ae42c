"""The `sharpjax` command: the only module that joins everything.

JAX is loaded by a command that has looked at its options, not here.
"""

import gc
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from sharpjax import __version__
from sharpjax.commands.audit import audit
from sharpjax.commands.calibrate import calibrate
from sharpjax.commands.convert import convert
from sharpjax.commands.detect import detect
from sharpjax.commands.dimension import dimension
from sharpjax.commands.ground_truth import ground_truth
from sharpjax.commands.images import images
from sharpjax.commands.mitigate import mitigate
from sharpjax.commands.options import console
from sharpjax.commands.report import report
from sharpjax.commands.sample import sample
from sharpjax.commands.screen import screen
from sharpjax.commands.spectrum import spectrum
from sharpjax.commands.train import train_app
from sharpjax.commands.verify import verify

_COMPILED = "/jax/core/compile/backend_compile_duration"  # or read from the cache: much shorter
_WORTH_TELLING = 0.2  # seconds

app = typer.Typer(
    help="Measure how sharp a diffusion model's probability landscape is, and tell from that "
    "which of its outputs are memorized.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(train_app, name="train")


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log what is going on.")] = False,
) -> None:
    if version:
        console.print(f"sharpjax {__version__}")
        raise typer.Exit
    _log(verbose=verbose)
    _enable_compilation_cache()


for command in (
    detect, images, calibrate, dimension, audit, spectrum, ground_truth, screen, mitigate, sample,
    convert, report, verify,
):  # fmt: skip
    app.command(command.__name__.replace("_", "-"))(command)


def _log(*, verbose: bool) -> None:
    """Log to standard error: of libraries their warnings, which would drown the rest."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    package = logging.getLogger("sharpjax")
    package.setLevel(logging.INFO if verbose else logging.NOTSET)
    if not verbose:
        return

    def tell(event: str, duration_secs: float, **about: str | int) -> None:
        if event == _COMPILED and duration_secs >= _WORTH_TELLING:
            package.info(
                "compiled %s in %.1f s", about.get("fun_name", "a function"), duration_secs
            )

    import jax

    jax.monitoring.register_event_duration_secs_listener(tell)


def _enable_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the user configured JAX's cache already."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not home.is_absolute():  # a user without a home, as in a container: nothing is kept
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(home / "sharpjax" / "jax")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"


def _stop(*_: object) -> None:
    """Leave at once on Ctrl-C: finished results are on disk, and XLA may be busy for a while."""
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")  # show the cursor: a progress bar hides it
    sys.stderr.write("\nstopped; a run with a directory goes on by the same command\n")
    sys.stderr.flush()
    os._exit(130)


def main() -> None:
    """Run the command line; expected failures are one line and exit status 1."""
    # Tokenizers need no PyTorch, so its absence is no news
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Tracing makes millions of objects that stay; looking for cycles among them is a tenth of a
    # short run. Arrays are freed with their last reference as ever.
    gc.set_threshold(200_000, 50, 100)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _stop)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda text, *_: _tell("[yellow]warning:[/yellow]", text)
            app()
    except (ValueError, OSError, ImportError) as error:
        _tell("[red]error:[/red]", error)
        _fail()
    except Exception:
        traceback.print_exc()
        _fail()


def _tell(what: str, message: object) -> None:
    """One line on standard error, above a progress bar if there is one."""
    line = f"{what} {escape(str(message))}"
    Console(file=sys.stderr).print(line, highlight=False, soft_wrap=True)


def _fail() -> NoReturn:
    """Exit with status 1; of several processes at once, where JAX would wait for the others."""
    if (jax := sys.modules.get("jax")) and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(1)
