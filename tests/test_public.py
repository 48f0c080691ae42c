"""What the package offers by name: it is there, documented, annotated, and prints in a line."""

import dataclasses
import importlib
import inspect
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from jax.tree_util import Partial

import sharpjax as sj
from sharpjax import curvature, zoo
from sharpjax.densities import LowRankMixture
from sharpjax.detection import STATISTICS, evaluate
from sharpjax.detection.calibration import Calibration
from sharpjax.mitigation.levels import Levels

pytestmark = pytest.mark.quick

ROOT = Path(sj.__file__).parent
PACKAGES = (
    "sharpjax",
    "sharpjax.bench",
    "sharpjax.checkpoints",
    "sharpjax.curvature",
    "sharpjax.densities",
    "sharpjax.detection",
    "sharpjax.dimension",
    "sharpjax.identities",
    "sharpjax.mitigation",
    "sharpjax.models",
    "sharpjax.networks",
    "sharpjax.report",
    "sharpjax.runs",
    "sharpjax.schedules",
    "sharpjax.training",
)
NAMES = [
    (package, name) for package in PACKAGES for name in importlib.import_module(package).__all__
]


def test_every_subpackage_that_offers_names_is_walked():
    offering = {
        ".".join(["sharpjax", *path.parent.relative_to(ROOT).parts])
        for path in ROOT.rglob("__init__.py")
        if "__all__" in path.read_text()
    }
    assert offering == set(PACKAGES)


def test_the_top_is_small():
    assert len(sj.__all__) <= 17
    assert sorted(sj.__all__) == sj.__all__
    assert set(sj.__all__) <= set(dir(sj))


def unannotated(function):
    """Parameters without an annotation, and "return" if that of the result is missing."""
    signature = inspect.signature(function)
    names = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.annotation is parameter.empty and name not in ("self", "cls")
    ]
    if signature.return_annotation is signature.empty and not inspect.isclass(function):
        names.append("return")
    return names


def public_methods(cls):
    """Methods that the class itself, and not a base of another package, defines."""
    for name, member in vars(cls).items():
        if name.startswith("_") and name != "__call__":
            continue
        if isinstance(member, classmethod | staticmethod):
            member = member.__func__
        elif isinstance(member, property):
            member = member.fget
        is_function = inspect.isfunction(member) and member.__name__ != "<lambda>"  # a default
        if is_function and member.__module__.startswith("sharpjax."):
            yield name, member


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_name_is_there_documented_and_annotated(package, name):
    thing = getattr(importlib.import_module(package), name)
    if isinstance(thing, types.ModuleType):
        assert inspect.cleandoc(thing.__doc__)
        return
    if isinstance(thing, dict | tuple):  # a registry: what is in it has its own documentation
        assert thing
        return
    assert inspect.getdoc(thing), f"{package}.{name} has no docstring"
    assert inspect.getdoc(thing) != dict.__doc__
    if not inspect.isclass(thing):
        assert not unannotated(thing), f"{package}.{name}: {unannotated(thing)}"
        return
    if inspect.isfunction(vars(thing).get("__init__")) and not (
        dataclasses.is_dataclass(thing) or getattr(thing, "_is_protocol", False)
    ):
        missing = [one for one in unannotated(thing.__init__) if one != "return"]
        assert not missing, f"{package}.{name}: {missing}"
    for method, function in public_methods(thing):
        where = f"{package}.{name}.{method}"
        assert method == "__call__" or inspect.getdoc(function), f"{where} has no docstring"
        assert not unannotated(function), f"{where}: {unannotated(function)}"


def test_the_rule_finds_what_is_missing():
    def bare(x, *, key: int = 0):
        return x

    assert unannotated(bare) == ["x", "return"]
    assert unannotated(sj.load) == []


def test_marked_as_typed():
    assert (ROOT / "py.typed").is_file()


def test_citation_is_of_this_version():
    path = Path(__file__).parents[1] / "CITATION.cff"
    cited = yaml.safe_load(path.read_text())
    assert cited["version"] == sj.__version__
    assert cited["cff-version"] == "1.2.0"
    assert cited["title"] == "sharpjax"
    assert cited["type"] == "software"
    assert cited["authors"] == [{"name": "The sharpjax developers"}]
    assert len(cited["references"]) == 2
    for reference in cited["references"]:
        assert {"type", "title", "authors", "year"} <= reference.keys()
        for author in reference["authors"]:
            assert isinstance(author["family-names"], str)  # No is a name here, and YAML's false
            assert isinstance(author["given-names"], str)


def mixture():
    return sj.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1 * jnp.eye(2)] * 2)


def stretched(rate, x):
    return -rate * x


def test_a_seed_is_a_key():
    """What is drawn is that of `jax.random.key(seed)`."""
    p, x = mixture(), jnp.array([0.1, 0.2])
    pair = sj.ScorePair(p.score, Partial(stretched, jnp.float32(2.0)), alpha=0.6, sigma=0.8)
    draws = {
        "trace": lambda key: curvature.trace(p.score, x, key=key).value,
        "diagonal": lambda key: curvature.diagonal(p.score, x, key=key).value,
        "statistic": lambda key: STATISTICS["diagonal_distance"].function(pair, x, key=key),
        "GaussianMixture": lambda key: p.sample(key, 2),
        "Empirical": lambda key: sj.Empirical(np.eye(3)).sample(key, 2),
        "sample": lambda key: sj.sample(
            lambda x, t: -x, x, sj.Schedule.create(), num_steps=2, eta=1.0, key=key
        ),
    }
    for name, draw in draws.items():
        np.testing.assert_array_equal(draw(5), draw(jax.random.key(5)), err_msg=name)
    assert np.any(draws["sample"](5) != draws["sample"](6))
    for seed in (-1, 2**32):  # JAX's would be those of 2^32 - 1 and 0
        for draw in draws.values():
            with pytest.raises(ValueError, match=f"seed must be from 0 to 2.32 - 1, got {seed}"):
                draw(seed)


def results():
    """Something of every kind that the public functions return, and what its line must say."""
    key, x, p = jax.random.key(0), jnp.array([0.1, 0.2]), mixture()
    pair = sj.ScorePair(
        Partial(stretched, jnp.float32(1.0)), Partial(stretched, jnp.float32(2.0)), 0.6, 0.8
    )
    noise = (4, 8, 8)
    levels = Levels({"exact": np.arange(100.0)})
    return {
        "Gaussian": (sj.Gaussian(jnp.zeros(300), jnp.eye(300)), "covariance=float32[300,300]"),
        "GaussianMixture": (p, "means=float32[2,2]"),
        "Empirical": (sj.Empirical(np.ones((500, 3), np.float32)).noised(0.6, 0.8), "sigma=0.8"),
        "LowRankMixture": (
            LowRankMixture.fit(np.eye(3, 90), np.zeros(3, int), rank=2),
            "directions=float32[1,2,90]",
        ),
        "Schedule": (sj.Schedule.create(), "alphas=float32[1000]"),
        "ScorePair": (pair, "alpha=0.6, sigma=0.8"),
        "LinearizedPair": (pair.linearize(x), "conditional=float32[2]"),
        "PixelDiffusion": (sj.load("mnist"), "60 conditions, shape=(1, 28, 28), unet=UNet2DModel("),
        "LatentDiffusion": (sj.load("drawings"), "shape=(4, 16, 16), unet=UNet2DConditionModel("),
        "Estimate": (curvature.Estimate(2.0, 0.5, 16, 32), "2 ± 0.5, num_samples=16"),
        "batch": (
            curvature.Estimate(jnp.zeros(400), jnp.ones(400), 16, 32),
            "Estimate(float32[400] ± float32[400], num_samples=16, num_matvecs=32)",
        ),
        "Jacobian": (curvature.jacobian(p.score, x), "point=float32[2]"),
        "Ritz": (curvature.lanczos(p.score, x, num_matvecs=2, key=key), "values=float32[2]"),
        "Inertia": (curvature.inertia(p.score, x), "zero=Estimate(0 ± 0"),
        "Eigenpairs": (curvature.extreme_eigenpairs(p.score, x, key=key, k=1), "complete=True"),
        "SpectralDensity": (
            curvature.spectral_density(p.score, x, key=key, num_probes=2, num_matvecs=2),
            "grid=float32[256], density=Estimate(float32[256] ±",
        ),
        "Evaluation": (
            evaluate(np.arange(20.0), np.arange(20) >= 10),
            "auc=Interval(value=1, low=0.691503, high=1)",
        ),
        "Calibration": (
            Calibration.load(zoo.ROOT / "drawings" / "calibration.json"),
            "'alignment': float64[2,2]",
        ),
        "Threshold": (levels.threshold("exact", 0.5), "value=50, low=39"),
        "Levels": (levels, "{'exact': float64[100]}"),
        "Sailed": (
            sj.mitigation.sail(pair, key, shape=noise, threshold=1e-9, max_steps=2),
            "point=float32[1,4,8,8]",
        ),
    }


@pytest.mark.slow
def test_results_print_in_a_line_without_their_arrays():
    for kind, (result, expected) in results().items():
        text = repr(result)
        assert expected in text, kind
        assert "\n" not in text, kind
        assert "rray(" not in text, kind
        assert len(text) < 500, kind
        assert kind == "batch" or text.startswith(f"{kind}("), kind


def test_what_prints_also_prints_under_a_trace_and_when_rebuilt():
    shape = jax.eval_shape(lambda: curvature.trace(mixture().score, jnp.ones(2), method="exact"))
    assert repr(shape).startswith("Estimate(float32[]")
    said = []
    jax.jit(lambda p: said.append(repr(p)))(mixture())
    assert said == ["GaussianMixture(weights=float32[2], means=float32[2,2], "
                    "covariances=float32[2,2,2])"]  # fmt: skip
    assert repr(jax.tree.map(lambda _: None, mixture())) == "GaussianMixture()"
