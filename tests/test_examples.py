"""Every script of examples/ runs, writes the figure it promises, and prints what is true.

They are found by listing the folder: a new script fails here until a check of what it prints is
added. Most of a quick run is imports and compilation.
"""

import ast
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
FAST = {"own_statistic"}
WITHOUT_FIGURE = FAST | {
    "gaussian_curvature", "own_checkpoint", "own_pytorch", "own_schedule", "own_score",
}  # fmt: skip
# Compiled as users compile: they compute for longer than they compile. Not so these:
AS_OTHER_TESTS = {"own_checkpoint"}
NUMBER = r"(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)"


def numbers(pattern, text):
    """Of every match of `pattern`, in which N stands for a number, its numbers."""
    found = re.findall(pattern.replace("N", NUMBER), text)
    assert found, f"no {pattern!r} in:\n{text}"
    return np.array(found, float).reshape(len(found), -1)


def gaussian_curvature(out):
    """The sum of the eigenvalues is the trace, and tr K = d + sigma^2 tr H."""
    ((trace,),) = numbers(r"tr H = N;", out)
    ((dimension,),) = numbers(r"effective dimension: N", out)
    assert dimension == pytest.approx(16 + 0.8**2 * trace, abs=1e-2)
    assert numbers(r"largest difference: N", out) < 1e-4
    eigenvalues = re.search(r"eigenvalues of sigma\^2 H: \[([^]]*)\]", out)[1].split()
    assert sum(map(float, eigenvalues)) == pytest.approx(dimension - 16, abs=16 * 0.005)


def toy_2d(out):
    """At pure noise both eigenvalues of the exact score are -1."""
    for low, high in numbers(r" 981  \d\.\d+ \| +N +N \|", out):
        assert (low, high) == (-1, -1)


def p_laplacian_mixture(out):
    """At a peak all directions point outwards: the flux is -d/R = -2 without a spread."""
    ((mean, spread),) = numbers(r"peaks +exact +mean +N, sd N", out)
    assert (mean, spread) == (-2, 0)


def mitigate_mixture(out):
    """A condition of one point samples that point, whatever the noise."""
    assert numbers(r"point alone: without mitigation N", out) == 1


def mitigate_drawings(out):
    """SAIL descends, and its noises stay about as long as normal ones are."""
    for before, after, norm in numbers(r"sharpness N -> N in .*norm N", out):
        assert after < before
        assert norm == pytest.approx(1, abs=0.1)


def spectrum_of_a_digit(out):
    """One image leaves nothing open: K = 0. Lanczos' ends are eigenvalues to the residual."""
    exact = numbers(r"exact score from N to N, N further than 0.05 from -1, .* tr K = N", out)
    assert exact[0].tolist() == [-1, -1, 0, 0]
    for value, residual, eigenvalue in numbers(r"est +N to N, exact N", out):
        # The nearest eigenvalue need not be the outermost, but that is never further in.
        assert abs(value) <= abs(eigenvalue) + residual + 2e-4 or eigenvalue > value - 2e-4
    assert numbers(r"integral N", out) == pytest.approx(784, abs=1)


def detect_drawings(out):
    """The AUC is the fraction of pairs that are in order."""
    rows = re.findall(r"^.{31}(memorized|hot|general) +(.*±.*)$", out, re.MULTILINE)
    assert len(rows) == 12
    values = np.array([[float(cell.split()[0]) for cell in cells.split("  ") if cell.strip()]
                       for _, cells in rows])  # fmt: skip
    memorized = np.array([kind == "memorized" for kind, _ in rows])
    printed = numbers(r"AUC N \[N, N\], TPR", out)
    assert printed.shape[0] == values.shape[1] == 3
    for column, (auc, low, high) in zip(values.T, printed, strict=True):
        pairs = [a > b for a, b in product(column[memorized], column[~memorized])]
        assert auc == pytest.approx(np.mean(pairs), abs=5e-4)
        assert low <= auc <= high


def convert_checkpoint(out):
    """A bfloat16 has 8 bits: at most 2^-8/(1 + 2^-8) of a number is lost, and of some it is."""
    ((lost,),) = numbers(r"change of a weight: N \(", out)
    assert lost == pytest.approx(2**-8 / (1 + 2**-8), rel=1e-2)
    assert out.count("agrees") == 2
    assert "with one bit of it turned: unet/diffusion_pytorch_model.safetensors does not" in out
    assert (numbers(r"the scores differ by N of their length", out) < 2**-7).all()
    assert numbers(r"PyTorch's network differs from ours by N of", out) < 1e-5
    assert numbers(r"PyTorch's images differ from ours by at most N", out) < 1e-3


def sharded_traces(out):
    """The numbers are those of one device."""
    assert numbers(r"N devices", out) == 4
    assert (numbers(r"\d × \d: N; N \(", out)[:, 0] < 1e-3).all()


def own_score(out):
    """The point leaves nothing open, and its label pulls; the broad label's scores agree."""
    (broad, left), (point, none) = numbers(r"score difference N, effective dimension N of 8", out)
    assert broad < 0.1 < point
    assert none < 0.01 < left < 8


def own_schedule(out):
    """Samples have the data's spread, to five standard errors of 2,000; the trace is exact."""
    for known, found in numbers(r"spread of the data N, of the samples N", out):
        assert found == pytest.approx(known, rel=5 / np.sqrt(2 * 2000))
    ((trace, closed_form),) = numbers(r"trace N, closed form N", out)
    assert trace == pytest.approx(closed_form, abs=2e-4)


def own_pytorch(out):
    """The exact figures are PyTorch's, the estimate within five of its errors."""
    for kind in ("exact N and N", "norm N and N"):
        ((ours, theirs),) = numbers(kind, out)
        assert ours == pytest.approx(theirs, abs=1e-4)
    ((value, error, truth),) = numbers(r"Estimate\(N ± N, .*by PyTorch N", out)
    assert abs(value - truth) < 5 * error
    assert numbers(r"of two points: N,", out) == pytest.approx(truth, abs=1e-4)


def own_checkpoint(out):
    """Every prompt has a verdict, every run a page."""
    assert len(re.findall(r"called (memorized|clean)", out)) == 8
    assert numbers(r"N prompts were treated", out) >= 1
    assert "pages: clean/report.html detect/report.html mitigate/report.html" in out


def paper_figure(out):
    """One image pulls harder than 256."""
    found = dict(numbers(r"level N: mean N", out))
    assert found.keys() == {1, 16, 256}
    assert found[1] > found[16] > found[256] / 2


def own_statistic(out):
    """The statistic of two Gaussians is its closed form."""
    ((value, closed_form),) = numbers(r"value N, closed form N", out)
    assert value == pytest.approx(closed_form, rel=1e-5)


CHECKS = {
    check.__name__: check
    for check in (
        gaussian_curvature,
        toy_2d,
        p_laplacian_mixture,
        mitigate_mixture,
        mitigate_drawings,
        spectrum_of_a_digit,
        detect_drawings,
        convert_checkpoint,
        sharded_traces,
        own_statistic,
        own_score,
        own_schedule,
        own_pytorch,
        own_checkpoint,
        paper_figure,
    )
}


def run(name, folder):
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", "--quick", "--output", folder],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(EXAMPLES.parent),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(name in AS_OTHER_TESTS)),
        },
    )


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in SCRIPTS],
)
def test_example_runs(name, tmp_path):
    finished = run(name, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert not re.search(r"\bnan\b", finished.stdout.lower()), finished.stdout
    assert name in CHECKS, f"{name} is new: add a check of a number that it prints"
    CHECKS[name](finished.stdout)
    written = [path.name for path in tmp_path.iterdir()]
    assert written == ([] if name in WITHOUT_FIGURE else [f"{name}.png"])
    for figure in written:
        with Image.open(tmp_path / figure) as image:
            assert image.format == "PNG"
            grey = np.asarray(image.convert("L"), float)
        assert min(grey.shape) > 100
        assert grey.std() > 5  # not a blank page


@pytest.mark.parametrize("name", SCRIPTS)
def test_example_opens_as_a_notebook(name):
    """Cells of percent format: a title first, and every cell of code is whole."""
    text = (EXAMPLES / f"{name}.py").read_text()
    assert text.startswith("# %% [markdown]\n# # ")
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)[1:]
    code = [cell for cell in cells if not cell.startswith(" [markdown]")]
    assert len(code) > 1
    for cell in code:
        ast.parse(cell.split("\n", 1)[1])
    for cell in set(cells) - set(code):
        assert all(line.startswith("#") for line in cell.split("\n")[1:] if line)
