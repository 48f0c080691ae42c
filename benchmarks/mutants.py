"""How many small errors in the code the tests find: 60 mutants drawn by a seed.

    python benchmarks/mutants.py --out DIR [--seed 0] [--count 60] [--timeout 180] [--budget 3]
        [--all-files] [--slow] [--only N] [--survivors OTHER/results.jsonl]

A mutant is one small change (mutations.py) of one function of PACKAGES. First the function is
drawn, then one of its changes, so that long functions count no more than short ones.

A mutant is killed by the first test that fails, and that passes without it. Its test files are
those that use its module, most direct first (named after it, then naming the function, then the
shorter ones; through a fixture last); where none does, those of the modules that import it, and so
on. By default the first 3 are run, fewer if half of the timeout has passed: a survivor may still be
found by another file or by the slow tier, which --survivors with --all-files and --slow tries (and
a --timeout of an hour). A mutant that runs out of time is killed if the same files, unmutated, pass
in half of it; otherwise it is not decided.

Works in a copy of the repository, and never changes the original. Each result is appended to
results.jsonl in DIR; the same command goes on where it stopped. About an hour of one core.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import cache_from_source
from pathlib import Path

from mutations import Mutant, draw
from users import Users

from sharpjax.detection import intervals

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = tuple(f"sharpjax/{name}" for name in ("curvature", "detection", "mitigation", "report"))


class Judge:
    """Runs test files in a copy of a repository.

    Args:
        root: of the repository.
        work: an empty folder for the copy.
        out: where what was compiled and `unmutated.json` are kept.
        slow: the slow tier too.
        timeout: seconds for a mutant.
        budget: most test files for a mutant; None for all, also those that use it indirectly.
    """

    def __init__(self, root, work, out, *, slow=False, timeout=180.0, budget=3, package="sharpjax"):
        self.copy, self.scratch, self.out = work / "copy", work / "scratch", out
        self.slow, self.timeout, self.budget = slow, timeout, budget
        left_out = shutil.ignore_patterns(".git", "__pycache__", "*_cache", "site", "build", "dist")
        shutil.copytree(root, self.copy, ignore=left_out)
        self.users = Users(self.copy, package)
        self.times_path = out / "unmutated.json"
        self.times = json.loads(self.times_path.read_text()) if self.times_path.is_file() else {}

    def pytest(self, tests, timeout):
        """Exit status (None: out of time), seconds and output of test files or a single test."""
        options = ["-n0", "-x", "-q", "-p", "no:cacheprovider", f"--basetemp={self.scratch}"]
        options += ["-m", "slow or not slow"] if self.slow else []
        environment = os.environ | {
            "PYTHONPATH": str(self.copy), "JAX_COMPILATION_CACHE_DIR": str(self.out / "compiled"),
        }  # fmt: skip
        start, status, output = time.perf_counter(), None, ""
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *tests], cwd=self.copy, env=environment,
            start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            output = process.communicate(timeout=timeout)[0]
            status = process.returncode
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        return status, time.perf_counter() - start, output

    def unmutated(self, test, timeout):
        """Seconds that a test, or a file of them, takes as it is; infinite if out of time."""
        if self.times.get(test, float("inf")) == float("inf"):
            status, seconds, output = self.pytest([test], timeout)
            if status == 4:  # the mutant gave this test another name
                return self.unmutated(test.split("::")[0], timeout)
            if status not in (0, 5, None):
                raise SystemExit(f"{test} fails without a mutant:\n{output[-3000:]}")
            self.times[test] = float("inf") if status is None else seconds
            self.times_path.write_text(json.dumps(self.times, indent=2) + "\n")
        return self.times[test]

    def run(self, mutant):
        """Status, the test that failed, and the test files that were run."""
        path, start, ran = self.copy / mutant.file, time.perf_counter(), []
        original = path.read_text()
        compiled = Path(cache_from_source(path))  # judged by whole seconds, so it may be stale
        path.write_text(mutant.apply(original))
        compiled.unlink(missing_ok=True)
        try:
            for each in self.users(mutant, everything=self.budget is None):
                passed = time.perf_counter() - start
                over = len(ran) == self.budget or passed > self.timeout / 2
                if self.budget is not None and over:
                    break
                file = each.relative_to(self.copy).as_posix()
                status, _, output = self.pytest([file], max(self.timeout - passed, 1))
                if status == 5:  # no tests of this tier
                    continue
                ran.append(file)
                if status != 0:
                    failed = re.search(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", output, re.M)
                    return status, failed[1] if failed else file, ran
        finally:
            path.write_text(original)
            compiled.unlink(missing_ok=True)
        return 0, "", ran

    def __call__(self, mutant):
        """The verdict: `killed`, `timeout`, `survived` or `not decided`; by what."""
        start = time.perf_counter()
        status, by, ran = self.run(mutant)
        verdict = "killed" if status else "survived"
        if status is None:
            half, expected = self.timeout / 2, 0.0
            for file in ran:
                expected += self.unmutated(file, half) if expected < half else 0.0
            verdict = "timeout" if expected <= half else "not decided"
        elif status:  # not by the mutant's fault, unless the same test passes without it
            self.unmutated(by, None)
        seconds = round(time.perf_counter() - start, 1)
        return {"verdict": verdict, "by": by, "files": ran, "seconds": seconds}


def count(results):
    """Lines that say how many of the results are kills, and which are not."""
    by_verdict = {name: [] for name in ("killed", "timeout", "survived", "not decided")}
    for result in results:
        by_verdict[result["verdict"]].append(result)
    killed = len(by_verdict["killed"]) + len(by_verdict["timeout"])
    decided = killed + len(by_verdict["survived"])
    if decided:
        low, high = intervals.share(killed / decided, decided)
        yield (
            f"killed {killed} of {decided}, {killed / decided:.0%} (95% Wilson interval {low:.0%} "
            f"to {high:.0%}); {len(by_verdict['timeout'])} of these by time"
        )
    for verdict in ("survived", "not decided"):
        for result in by_verdict[verdict]:
            mutant = Mutant(**result["mutant"])
            yield f"{verdict}: {result['number']:3d} {mutant}  ({', '.join(result['files'])})"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds for a mutant")
    parser.add_argument("--budget", type=int, default=3, help="most test files for a mutant")
    parser.add_argument("--all-files", action="store_true", help="no such limit, and indirect ones")
    parser.add_argument("--slow", action="store_true", help="the slow tier too")
    parser.add_argument("--only", type=int, metavar="N", help="that mutant again, not recorded")
    parser.add_argument("--survivors", type=Path, metavar="FILE", help="only its survivors")
    options = parser.parse_args()
    if options.survivors:
        lines = map(json.loads, options.survivors.read_text().splitlines())
        left = [line for line in lines if line["verdict"] in ("survived", "not decided")]
        mutants = {line["number"]: Mutant(**line["mutant"]) for line in left}
    else:
        mutants = dict(enumerate(draw(ROOT, PACKAGES, options.count, options.seed)))
    if options.only is not None:
        mutants = {options.only: mutants[options.only]}

    sources = sorted([*ROOT.glob("sharpjax/**/*.py"), *ROOT.glob("tests/*.py")])
    tree = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    kept = {
        name: str(value) for name, value in vars(options).items() if name not in ("out", "only")
    }
    settings = json.dumps(kept | {"tree": tree}, indent=2) + "\n"
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "settings.json"
    if path.is_file() and path.read_text() != settings:
        raise SystemExit(f"{out} holds results of other settings or of other code: name another")
    path.write_text(settings)
    results_path = out / "results.jsonl"
    lines = results_path.read_text().splitlines() if results_path.is_file() else []
    results = [] if options.only is not None else [json.loads(line) for line in lines]
    finished = {result["number"] for result in results}

    with tempfile.TemporaryDirectory(prefix="sharpjax-mutants-") as work:
        budget = None if options.all_files else options.budget
        judge = Judge(
            ROOT, Path(work), out, slow=options.slow, timeout=options.timeout, budget=budget
        )
        todo, start = [number for number in mutants if number not in finished], time.perf_counter()
        for done, number in enumerate(todo, 1):
            result = {"number": number, **judge(mutants[number])}
            result["mutant"] = dataclasses.asdict(mutants[number])
            results.append(result)
            if options.only is None:
                with results_path.open("a") as file:
                    file.write(json.dumps(result) + "\n")
            passed = time.perf_counter() - start
            left = passed / done * (len(todo) - done)
            print(
                f"{number:3d} {result['verdict']:11s} {result['seconds']:5.1f} s {mutants[number]} "
                f"[{result['by']}] {passed / 60:.0f} min, {left / 60:.0f} min left",
                flush=True,
            )
    limit = "every test file" if options.all_files else f"at most {options.budget} test files each"
    tier = "fast and slow tier" if options.slow else "fast tier"
    print(f"{len(results)} mutants of seed {options.seed}, {limit}, {tier}:")
    print(*count(results), sep="\n")


if __name__ == "__main__":
    main()
