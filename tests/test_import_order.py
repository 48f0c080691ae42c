"""The architecture as a test: imports inside sharpjax only ever point down the order."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sharpjax

pytestmark = pytest.mark.quick

ROOT = Path(sharpjax.__file__).parent

# From the lowest to the highest.  A unit is a top-level module or package; it may import itself
# and everything on a lower line, and nothing on its own line or above.
LAYERS = (
    ("_jaxlib", "_linalg", "_types", "_reprs", "prompts", "rundir", "similarity", "zoo"),
    ("_checks", "checkpoints", "datasets", "pictures"),
    ("mesh", "schedules", "densities"),
    ("score", "torch_scores"),
    ("conditional",),
    ("curvature", "networks", "sampling"),
    ("dimension",),
    ("identities", "models", "training", "detection"),
    ("mitigation",),
    ("recipes",),
    ("runs",),
    ("report", "bench"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LEVEL = {unit: level for level, layer in enumerate(LAYERS) for unit in layer}
# lower, and still not for them: they know models only through the protocol in `conditional`
FORBIDDEN = {("detection", "models"), ("mitigation", "models")}


def modules(root):
    """`(dotted name parts below the package, file)` of every module but the package itself."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts != ("__init__",):
            yield parts, path


def imported(parts, source, package="sharpjax"):
    """`(line, unit)` for every import of the package in a module, wherever it stands.

    `from sharpjax import name` yields `name`, which is a unit if a module is meant.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [package, *parts[: len(parts) - node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            if target[0] == package:
                yield node.lineno, target[1] if len(target) > 1 else None


def complaint(parts, line, target):
    """Why this import is wrong, or None."""
    unit = parts[0]
    where = f"sharpjax/{'/'.join(parts)}.py:{line}"
    if unit == "cli":  # joins everything, the package's own names too
        return None
    if target not in LEVEL:
        return f"{where}: imports {target!r}; import from the module that defines it"
    if unit == target:
        return None
    if (unit, target) in FORBIDDEN:
        return f"{where}: {unit} may not import {target}; use the protocol in conditional.py"
    if LEVEL[target] >= LEVEL[unit]:
        return f"{where}: {unit} imports {target}, which is not below it in LAYERS"
    return None


def test_every_module_has_its_place():
    homeless = sorted({parts[0] for parts, _ in modules(ROOT)} - LEVEL.keys())
    assert not homeless, f"place {homeless} in LAYERS of {__file__}"


def test_imports_point_down():
    found = [
        complaint(parts, line, target)
        for parts, path in modules(ROOT)
        if parts[0] in LEVEL
        for line, target in imported(parts, path.read_text())
    ]
    assert len(found) > 20, "the test found hardly any import: it is broken"
    wrong = [message for message in found if message]
    assert not wrong, "\n".join(wrong)


def test_the_page_has_this_order():
    page = (Path(__file__).parents[1] / "docs" / "contributing.md").read_text()
    chain = re.search(r"Data flows one way: `([^`]*)`", page)[1]
    steps = [{unit.strip() for unit in step.split(",")} for step in chain.split("→")]
    first = next(i for i, layer in enumerate(LAYERS) if "schedules" in layer)
    # what stands beside each other on the page may stand on lines of their own here
    assert set().union(*steps) == {unit for layer in LAYERS[first:-1] for unit in layer}
    for below, above in itertools.pairwise(steps):
        assert max(LEVEL[unit] for unit in below) < min(LEVEL[unit] for unit in above)


@pytest.mark.parametrize(
    ("parts", "source", "wrong"),
    [
        (("score",), "from sharpjax.schedules import Schedule", False),
        (("score",), "from sharpjax.sampling import sample", True),
        (("schedules",), "from sharpjax import densities", True),
        (("score",), "def f():\n    import sharpjax.networks.layers", True),
        (("score",), "if TYPE_CHECKING:\n    from sharpjax.networks import unet_2d", True),
        (("score",), "from sharpjax import Schedule", True),
        (("score",), "import sharpjax", True),
        (("score",), "import jax\nfrom numpy import linalg", False),
        (("networks", "unet_2d"), "from sharpjax.networks.layers import conv", False),
        (("networks", "unet_2d"), "from .layers import conv", False),
        (("networks", "unet_2d"), "from ..training import train", True),
        (("networks", "__init__"), "from .layers import conv", False),
        (("detection", "compute"), "from sharpjax.models import LatentDiffusion", True),
        (("detection", "compute"), "from ..models import LatentDiffusion", True),
        (("mitigation", "sail"), "from sharpjax.detection import statistics", False),
        (("detection", "run"), "from sharpjax.conditional import ConditionalModel", False),
        (("cli",), "from sharpjax import __version__, models, detection, report", False),
        (("report",), "from sharpjax.cli import app", True),
    ],
)
def test_the_rule_itself(parts, source, wrong):
    found = [complaint(parts, line, target) for line, target in imported(parts, source)]
    assert any(found) == wrong, found


def test_imports_are_of_what_is_needed():
    """PyTorch and mlxtend are extras; and every command waits for what the command line imports."""
    names = [
        ".".join(["sharpjax", *(p for p in parts if p != "__init__")]) for parts, _ in modules(ROOT)
    ]
    code = (
        "import sys, importlib\nimport sharpjax.cli\n"
        "slow = ('matplotlib', 'orbax', 'scipy.stats', 'transformers')\n"
        "print([m for m in slow if m in sys.modules])\n"
        f"for name in {names}:\n    importlib.import_module(name)\n"
        "print([m for m in ('torch', 'mlxtend') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["[]", "[]"]
