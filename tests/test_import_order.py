"""The architecture as a test: imports inside sharpjax only ever point down the order."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sharpjax

ROOT = Path(sharpjax.__file__).parent

# From the lowest to the highest.  A unit is a top-level module or package; it may import itself
# and everything on a lower line, and nothing on its own line or above.
LAYERS = (
    ("_linalg", "_types", "progress", "prompts", "reprs", "rundir", "similarity", "zoo"),
    ("levels", "pictures", "provenance"),
    ("schedules", "densities"),
    ("score",),
    ("conditional",),
    ("curvature", "sampling"),
    ("identities", "models", "devices"),
    ("datasets",),
    ("training", "score_matching", "detection", "generation"),
    ("mitigation", "recipes", "replication", "spectrum"),
    ("judging",),
    ("plots",),
    ("report",),
    ("page",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LEVEL = {unit: level for level, layer in enumerate(LAYERS) for unit in layer}
# lower, and still not for them: they know models only through the protocol in ``conditional``
FORBIDDEN = {("detection", "models"), ("mitigation", "models")}


def modules(root):
    """``(dotted name parts below the package, file)`` of every module but the package itself."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts != ("__init__",):
            yield parts, path


def imported(parts, source, package="sharpjax"):
    """``(line, unit)`` for every import of the package in a module, wherever it stands.

    ``from sharpjax import name`` yields ``name``, which is a unit if a module is meant.
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


@pytest.mark.parametrize(
    ("parts", "source", "wrong"),
    [
        (("score",), "from sharpjax.schedules import Schedule", False),
        (("score",), "from sharpjax.sampling import sample", True),
        (("schedules",), "from sharpjax import densities", True),
        (("score",), "def f():\n    import sharpjax.models.layers", True),
        (("score",), "if TYPE_CHECKING:\n    from sharpjax.models import unet_2d", True),
        (("score",), "from sharpjax import Schedule", True),
        (("score",), "import sharpjax", True),
        (("score",), "import jax\nfrom numpy import linalg", False),
        (("models", "unet_2d"), "from sharpjax.models.layers import conv", False),
        (("models", "unet_2d"), "from .layers import conv", False),
        (("models", "unet_2d"), "from ..training import train", True),
        (("models", "__init__"), "from .layers import conv", False),
        (("detection", "run"), "from sharpjax.models import UNet2DModel", True),
        (("detection", "run"), "from ..models import UNet2DModel", True),
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
        "slow = ('matplotlib', 'orbax', 'scipy.stats', 'sklearn', 'transformers')\n"
        "print([m for m in slow if m in sys.modules])\n"
        f"for name in {names}:\n    importlib.import_module(name)\n"
        "print([m for m in ('torch', 'mlxtend') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["[]", "[]"]
