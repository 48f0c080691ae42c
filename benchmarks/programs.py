"""How many programs a command compiles, and how long that takes, with an empty and a filled cache.

    python benchmarks/programs.py detect --devices 1
    python benchmarks/programs.py detect --statistics all --noises 2 --devices 1

Each run is a process of its own with a run directory of its own; the second finds the programs that
the first kept.  Read from the cache is a program that XLA did not compile again; seconds are those
that JAX reports of its compiler and of reading, the wall's are of the whole command.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMPILED = "/jax/core/compile/backend_compile_duration"
TRACED = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
)
FOUND = "/jax/compilation_cache/cache_retrieval_time_sec"


def child(arguments: list[str], path: Path) -> None:
    """Run the command line and write what was compiled."""
    import jax

    from sharpjax import cli

    told: list[tuple[str, str, float]] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **about: told.append((event, str(about.get("fun_name")), seconds))
    )
    sys.argv = ["sharpjax", *arguments]
    try:
        cli.main()
    finally:
        path.write_text(json.dumps(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=12, help="programs that are named")
    parser.add_argument(
        "--kept", type=float, default=0.5, help="seconds of compiling from which on one is kept"
    )
    options, command = parser.parse_known_args()
    command = command or ["detect"]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/jax",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(options.kept),
            "PROGRAMS_OF_A_RUN": "child",
        }
        for name in ("empty cache", "filled cache"):
            path = Path(folder) / "told.json"
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, __file__, *command, "--output", f"{folder}/{name}"],
                env=environment | {"TOLD": str(path)}, capture_output=True, text=True,
            )  # fmt: skip
            wall = time.perf_counter() - start
            if done.returncode:
                sys.exit(done.stderr)
            table(name, json.loads(path.read_text()), wall, options.largest)


def table(name: str, told: list[tuple[str, str, float]], wall: float, largest: int) -> None:
    """Print what one run compiled."""
    compiled = [(what, seconds) for event, what, seconds in told if event == COMPILED]
    read = [seconds for event, _, seconds in told if event == FOUND]
    traced = sum(seconds for event, _, seconds in told if event in TRACED)
    programs = collections.defaultdict(list)
    for what, seconds in compiled:
        programs[what].append(seconds)
    # a program that is read counts as compiled, in the time that reading took
    print(
        f"{name}: {wall:.1f} s, {len(compiled)} programs of {len(programs)} names in "
        f"{sum(seconds for _, seconds in compiled):.1f} s, {len(read)} of them read from the cache "
        f"in {sum(read):.1f} s; traced and lowered in {traced:.1f} s"
    )
    small = [seconds for _, seconds in compiled if seconds < 0.5]
    print(f"  of less than half a second: {len(small)}, {sum(small):.1f} s together")
    for what, seconds in sorted(programs.items(), key=lambda item: -sum(item[1]))[:largest]:
        print(f"  {sum(seconds):7.2f} s  {len(seconds):3d} x  {what}")


if __name__ == "__main__":
    if os.environ.get("PROGRAMS_OF_A_RUN") == "child":
        child(sys.argv[1:], Path(os.environ["TOLD"]))
    else:
        main()
