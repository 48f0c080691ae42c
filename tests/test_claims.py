"""benchmarks/claims.py: every comparison is made, counted and corrected."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.quick

PATH = Path(__file__).parents[1] / "benchmarks" / "claims.py"


@pytest.fixture(scope="module")
def claims():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[PATH.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_holm_by_hand(claims):
    found = claims.holm(np.array([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
    assert claims.holm(np.array([0.5, 0.9])).max() == 1


def test_holm_keeps_the_level_of_all_comparisons_together(claims):
    p = np.random.default_rng(0).uniform(size=(4000, 20))  # no difference anywhere
    wrong = np.mean([claims.holm(row).min() < claims.LEVEL for row in p])
    assert abs(wrong - 0.05) < 4 * np.sqrt(0.05 * 0.95 / len(p))
    assert np.mean(p.min(axis=1) < claims.LEVEL) > 0.6  # uncorrected


def test_all_comparisons_are_made_and_counted(claims):
    rng = np.random.default_rng(0)
    memorized = np.arange(80) < 40

    def values(shift, spread):  # (conditions, noises)
        return (
            shift * memorized[:, None]
            + rng.normal(size=(80, 1))
            + spread * rng.normal(size=(80, 4))
        )

    columns = {"score_difference@9": values(1, 0), "hessian_score@9": values(6, 0)}
    data = [claims.DataSet(name, memorized, columns) for name in ("one", "two")]
    against, noises = claims.comparisons(data)
    assert [row.statistic for row in against] == ["`hessian_score@9`"] * 2
    assert len(noises) == 4
    text = claims.tables(against, noises)
    assert "corrected for 6" in text
    assert text.count("| better |") == 2  # of the second statistic; noises change nothing
    assert text.count("| not told apart |") == 4
    assert "one (40 + 40)" in text


def test_a_data_set_leaves_out_what_is_not_known(claims):
    cases = [claims.Case(str(i), v) for i, v in enumerate(["memorized", "clean", "between", None])]
    records = [{"network": {"effective_dimension@9": [float(i)]}} for i in range(4)]
    data = claims.DataSet.of("some", claims.Judged(cases, records, []), "network")
    assert data.memorized.tolist() == [True, False]
    assert data.values["effective_dimension@9"].ravel().tolist() == [0, -1]  # small is memorized
