"""How seconds and memory of `sharpjax detect` grow with prompts, and seconds with devices.

    python benchmarks/many_prompts.py [--counts 100 1000 10000] [--statistics score_difference]

Real runs of the command on the drawings, each in a process of its own, with a warm cache of
programs: captions are composed of its words (an adjective, a thing, a maker, a ground), all
different.  The peak
is that of the whole process, interpreter, model and page included; "the files" is what a run
directory has of the prompts.  Prompts a second are those of the whole command, and of the prompts
beyond the smallest run's, where what is paid once has no part.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import memory


def child(arguments: list[str]) -> None:
    """Run the command line here and print what it took."""
    from sharpjax import cli

    sys.argv, start = ["sharpjax", *arguments], time.perf_counter()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it ends with the process)
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
    told = {"seconds": time.perf_counter() - start, "peak": memory.used("VmHWM")}
    print(json.dumps(told), file=sys.__stdout__)


def captions(count: int) -> list[str]:
    """The first of all things, with each adjective, by all makers on all grounds."""
    from sharpjax.datasets.planted_drawings import ADJECTIVES, MAKER_WORDS, read_captions
    from sharpjax.datasets.poses import GROUNDS

    told = read_captions()
    names = sorted({one.thing for one in told if one.thing})
    makers = [MAKER_WORDS.get(one, one) for one in sorted({one.maker for one in told if one.maker})]
    every = itertools.product(ADJECTIVES, GROUNDS, makers, names)
    chosen = [
        f"{adjective} {name} by {maker} on {ground}"
        for adjective, ground, maker, name in itertools.islice(every, count)
    ]
    if len(chosen) < count:
        sys.exit(f"there are {len(chosen)} captions, asked for {count}")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--statistics", default="score_difference")
    parser.add_argument("--noises", type=int, default=1)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", metavar="PATH", type=Path)
    options = parser.parse_args()
    rows = []
    print(f"{'prompts':>8} {'devices':>8} {'seconds':>8} {'a second':>9} {'beyond':>8} "
          f"{'peak MiB':>9} {'files MiB':>10}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for devices in options.devices:
            counts = options.counts if devices == options.devices[0] else options.counts[:2]
            before: dict | None = None
            for turn, count in enumerate([counts[0], *counts]):  # the first fills the cache
                prompts, run = Path(folder, f"{count}.txt"), Path(folder, f"{devices}-{turn}")
                prompts.write_text("\n".join(captions(count)) + "\n")
                command = [
                    "detect", "--prompts", prompts, "--output", run, "--devices", devices,
                    "--statistics", options.statistics, "--noises", options.noises,
                ]  # fmt: skip
                done = subprocess.run(
                    [sys.executable, "-W", "ignore", __file__, "--child", *map(str, command)],
                    env=os.environ | {"XDG_CACHE_HOME": folder}, capture_output=True, text=True,
                )  # fmt: skip
                if done.returncode:
                    sys.exit(done.stderr)
                if not turn:
                    continue
                row = json.loads(done.stdout.splitlines()[-1]) | {
                    "prompts": count,
                    "devices": devices,
                }
                row["files"] = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
                beyond = ""
                if before:
                    more = row["seconds"] - before["seconds"]
                    beyond = f"{(count - before['prompts']) / more:.1f}"
                before = before or row
                rows.append(row)
                print(
                    f"{count:8d} {devices:8d} {row['seconds']:8.1f} {count / row['seconds']:9.1f} "
                    f"{beyond:>8} {row['peak'] / 2**20:9.0f} {row['files'] / 2**20:10.2f}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
