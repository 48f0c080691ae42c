"""The table of identities: it holds, it notices what does not, and its errors are honest."""

import dataclasses
import functools
import json
import math
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from sharpjax import cli, identities
from sharpjax.identities import compare, moments, plaplacian, table

NAMES = ("L1", "L2", "L3", "L4", "L5", "P1", "P2", "P3", "P4", "D1")
DIM = 5
# The default number of samples, and the size of its batches: all tests share compiled programs.
MANY = 50_000
BATCH = 2500
DOCUMENT = Path(__file__).parent.parent / "docs" / "identities.md"


@pytest.fixture(scope="module")
def rows():
    return identities.verify(dim=DIM, num_samples=MANY, seed=0)


def keep(monkeypatch, name, change=lambda identity: identity):
    """Leave in the table only the identities of a name, changed."""
    kept = tuple(change(identity) for identity in table.IDENTITIES if identity.name == name)
    monkeypatch.setattr(table, "IDENTITIES", kept)


def exchange(monkeypatch, exchanged):
    """Have every side computed as before, and then passed through this function."""
    evaluate = table.evaluate
    monkeypatch.setattr(table, "evaluate", lambda *args: exchanged(*evaluate(*args)))


def run(monkeypatch, capsys, *arguments):
    """Exit status, output and errors of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["sharpjax", "verify", *map(str, arguments)])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")  # leave JAX's configuration alone
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


# --- What holds -------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_identity_holds(rows):
    assert [row for row in rows if row.verdict != "holds"] == []
    assert tuple(dict.fromkeys(row.name for row in rows)) == NAMES
    for name in ("L2", "L4", "L5"):
        settings = {row.setting for row in rows if row.name == name}
        assert settings == {
            f"{how}, m {sign} 0" for how in ("commuting", "not commuting") for sign in "=≠"
        }
    for row in rows:
        assert row.statement
        assert row.num_draws == MANY or row.kind != "mean"
        # a check that could not see an error of 10% would prove little
        if row.kind == "mean":
            assert row.limit * row.standard_error < 0.1 * abs(row.estimate)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2**32 - 1])
def test_another_seed_is_another_table_that_holds(seed, rows):
    again = identities.verify(dim=DIM, num_samples=BATCH, seed=seed)
    assert all(row.verdict == "holds" for row in again)
    means = [row.closed_form for row in again if row.kind == "mean"]
    assert not set(means) & {row.closed_form for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "samples"), [(2, 60_000), (3, 60_000), (12, 20_000), (32, 5_000)])
def test_every_identity_holds_in_other_dimensions(dim, samples):
    for seed in range(4):
        found = identities.verify(dim=dim, num_samples=samples, seed=seed)
        assert [row for row in found if row.verdict != "holds"] == []
        assert {row.printed_verdict for row in found if row.name == "L2"} == {"wrong"}
        wrong = {r.setting for r in found if r.name == "P2" and r.printed_verdict == "wrong"}
        assert wrong == {"mixture, p = 2", "mixture, p = 3"}


def test_same_seed_same_rows(monkeypatch):
    keep(monkeypatch, "L1")
    first, second = (identities.verify(dim=DIM, num_samples=2 * BATCH, seed=7) for _ in range(2))
    assert first == second


def test_precision_of_the_caller_is_restored(monkeypatch):
    keep(monkeypatch, "P3")
    for enabled in (False, True):
        with jax.enable_x64(enabled):
            (row, *_) = identities.verify(dim=DIM)
            assert jax.numpy.ones(1).dtype == (np.float64 if enabled else np.float32)
        assert row.deviation < 1e-12  # no float32 comes that close


def test_commuting_sums_are_the_general_forms():
    """The eigenvalue sums are the traces, by algebra and not by Monte Carlo."""
    with jax.enable_x64(True):
        (pair,) = moments._commuting_pair(np.random.default_rng(0), DIM).values()
        rows = [i.closed_form for i in moments.IDENTITIES if i.name in ("L2", "L4", "L5")]
        general, sums = rows[::2], rows[1::2]

        @jax.jit
        def both(pair):
            return [[form(pair, None) for form in forms] for forms in (general, sums)]

        np.testing.assert_allclose(*both(pair), rtol=1e-12)


def test_the_first_public_flux_is_right_at_p_1_and_that_of_p_minus_1_elsewhere():
    """Why its p = 2 equals p = 1: the same draws give the same numbers."""
    identity, later = (i for i in table.IDENTITIES if i.name == "P2")
    with jax.enable_x64(True):
        balls = plaplacian._balls(np.random.default_rng(0), DIM)
        draws = identity.draw(balls["mixture, p = 1"], np.random.default_rng(1), BATCH)
        right, first, second = (
            {p: np.asarray(side) for p, side in zip((1, 2, 3), sides, strict=True)}
            for sides in (
                [table.evaluate(i, balls[f"mixture, p = {p}"], draws)[side] for p in (1, 2, 3)]
                for i, side in ((identity, 1), (identity, 2), (later, 2))
            )
        )
    for p in (1, 2, 3):
        np.testing.assert_allclose(first[p], right[max(p - 1, 1)], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(second[p], right[p], rtol=1e-9)
    assert min(abs(np.mean(first[p] - right[p])) for p in (2, 3)) > 1


# --- Verdicts are computed --------------------------------------------------------------------


@pytest.mark.slow
def test_printed_forms_are_judged_by_the_numbers(rows):
    verdicts = {(r.name, r.setting, r.printed_statement): r.printed_verdict for r in rows}
    right = {key for key, verdict in verdicts.items() if verdict == "right"}
    wrong = {key for key, verdict in verdicts.items() if verdict == "wrong"}
    assert {(name, setting) for name, setting, _ in right} == {
        ("L1", "Gaussian"),
        ("L3", "Gaussian"),
        ("P2", "mixture, p = 1"),
        *(("P2", f"mixture, p = {p} (later)") for p in (1, 2, 3)),
    }
    assert {(name, setting) for name, setting, _ in wrong} == {
        ("L2", "commuting, m = 0"),
        ("L2", "commuting, m ≠ 0"),
        ("L2", "not commuting, m = 0"),
        ("L2", "not commuting, m ≠ 0"),
        ("L3", "Gaussian"),  # H = -S, in a row of its own
        ("L4", "commuting, m = 0"),
        ("L5", "commuting, m = 0"),
        ("P2", "mixture, p = 2"),
        ("P2", "mixture, p = 3"),
    }
    others = {verdicts[key] for key in verdicts.keys() - right - wrong}
    assert others == {None, "not claimed", "not seen"}


@pytest.mark.slow
def test_a_form_is_judged_where_it_is_stated(rows):
    """L1's is a lemma on Gaussians: off by 100 standard errors elsewhere, and no error there."""
    unclaimed = [r for r in rows if r.printed_verdict == "not claimed"]
    assert [(r.name, r.setting) for r in unclaimed] == [
        ("L1", "mixture"),
        ("L1", "noised data set"),
    ]
    assert min(abs(r.printed_z) for r in unclaimed) > 100
    unseen = [r for r in rows if r.printed_verdict == "not seen"]
    assert {r.name for r in unseen} == {"P4"}
    assert {(r.printed, r.printed_statement) for r in unseen} == {(None, "")}


def test_every_printed_form_has_a_source(rows):
    for row in rows:
        assert bool(row.printed_source) == bool(row.printed_verdict), row.name
        assert row.printed_source or not row.printed_statement, row.name
    sources = {r.printed_statement: r.printed_source for r in rows if r.printed_statement}
    assert "Lemma 4.1" in sources["-tr H(x)"]
    assert "summary" in sources["Σ (λ - λ_c)⁴/λ_c⁴"]


def test_a_claim_for_all_settings_is_judged_in_all(monkeypatch):
    """The verdicts "not claimed" come from the declared scope, and from nothing else."""

    def claimed(identity):
        everywhere = dataclasses.replace(identity.printed, claimed_for=None)
        return dataclasses.replace(identity, printed=everywhere)

    keep(monkeypatch, "L1", claimed)
    found = identities.verify(dim=DIM, num_samples=MANY)
    assert [row.printed_verdict for row in found] == ["right", "wrong", "wrong"]


def test_the_form_without_expectation_varies_with_x(rows):
    spread = {r.setting: r.printed[1] - r.printed[0] for r in rows if r.name == "L1"}
    assert spread["Gaussian"] == pytest.approx(0, abs=1e-12)
    assert min(spread["mixture"], spread["noised data set"]) > 1


@pytest.mark.fast_cases(*(f"{name}-0.95" for name in NAMES))
@pytest.mark.parametrize(
    ("name", "factor"),
    [(n, f) for n in NAMES for f in (-1.0, 1.05, 0.95) if (n, f) != ("P4", 1.05)],
)
def test_a_wrong_closed_form_fails(name, factor, monkeypatch):
    """The closed form times a factor; a bound that is 5% too large is still a bound."""
    keep(monkeypatch, name)
    exchange(monkeypatch, lambda left, closed, *printed: (left, factor * closed, *printed))
    found = identities.verify(dim=DIM, num_samples=MANY)
    failing = {row.setting for row in found if row.verdict == "fails"}
    if name == "P4" and factor > 0:
        assert failing == {"bias: isotropic, p = 4"}  # the one that is attained
    else:
        assert failing == {row.setting for row in found}


@pytest.mark.parametrize("name", ["L1", "L2", "L4", "L5", "P2"])
def test_the_right_form_in_place_of_the_printed_one_is_found_right(name, monkeypatch):
    """For L1 that is the mean of `-tr H(x)`: what it lacks is the expectation."""

    def corrected(left, closed, *printed):
        right = closed if name == "P2" else np.full_like(closed, closed.mean())
        return (left, closed, right) if printed else (left, closed)

    keep(monkeypatch, name)
    exchange(monkeypatch, corrected)
    found = [r for r in identities.verify(dim=DIM, num_samples=MANY) if r.printed_statement]
    assert found
    assert {row.printed_verdict for row in found} - {"not claimed"} == {"right"}


def test_a_changed_identity_is_judged_by_its_own_functions(monkeypatch):
    """The table is data: exchange the two forms of L5 and both verdicts flip."""

    def swapped(identity):
        if identity.printed is None:
            return identity
        printed = dataclasses.replace(identity.printed, function=identity.closed_form)
        return dataclasses.replace(identity, closed_form=identity.printed.function, printed=printed)

    keep(monkeypatch, "L5", swapped)
    *general, row = identities.verify(dim=DIM, num_samples=MANY)
    assert {r.verdict for r in general} == {"holds"}
    assert (row.verdict, row.printed_verdict) == ("fails", "right")


@pytest.mark.slow
def test_z_scores_are_standard_normal(monkeypatch):
    """40 seeds of 27 means: a wrong standard error would show in the mean of z^2."""
    means = tuple(i for i in table.IDENTITIES if i.num_draws is None)
    monkeypatch.setattr(table, "IDENTITIES", means)
    z = [
        [row.z for row in identities.verify(dim=DIM, num_samples=BATCH, seed=seed)]
        for seed in range(40)
    ]
    z = np.ravel(z)
    assert z.size == 40 * 27
    # four standard deviations of the mean and of the mean square of as many normal numbers
    assert abs(z.mean()) < 4 / math.sqrt(z.size)
    assert abs(np.mean(z**2) - 1) < 4 * math.sqrt(2 / z.size)
    assert np.abs(z).max() < 5  # of 1,080 normal numbers with probability 0.9994


# --- The comparisons --------------------------------------------------------------------------


def test_moments_of_batches_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    batches = [1e6 + rng.normal(size=size) for size in (3, 1, 50, 7)]
    joined = compare.Moments()
    for batch in batches:
        joined.add(batch)
    whole = np.concatenate(batches)
    assert joined.count == whole.size
    assert joined.mean == pytest.approx(whole.mean(), rel=1e-14)
    error = whole.std(ddof=1) / math.sqrt(whole.size)
    assert joined.standard_error == pytest.approx(error, rel=1e-9)


def test_few_draws_separate_nothing():
    rng = np.random.default_rng(0)
    left = rng.normal(1.0, 1.0, size=100)  # error 0.1
    verdicts = {
        printed: compare.equal_means(
            iter([(left, np.full(100, left.mean()), np.full(100, printed))]), 4.0
        ).printed_verdict
        for printed in (1.0, 1.5, 3.0)
    }
    assert verdicts == {1.0: "not separable", 1.5: "not separable", 3.0: "wrong"}


def test_an_exact_comparison_sees_the_ninth_digit():
    left = np.linspace(1.0, 2.0, 10)
    right = left.copy()
    right[3] *= 1 + 1e-8
    found = compare.equal_at_every_draw(iter([(left, right)]), 4.0)
    assert found.verdict == "fails"
    assert (found.num_violations, found.estimate) == (1, left[3])
    assert compare.equal_at_every_draw(iter([(left, left * (1 + 1e-15))]), 4.0).verdict == "holds"


@pytest.mark.parametrize("violations", [0, 5, 6])
def test_a_bound_may_fail_for_its_share_of_the_draws(violations):
    left = np.full(100, 0.5)
    left[:violations] = 2.0
    batches = [(left[:30], np.ones(30)), (left[30:], np.ones(70))]
    found = compare.bounds_every_draw(iter(batches), 4.0, share=0.05)
    assert found.num_violations == violations
    assert found.verdict == ("fails" if violations > 5 else "holds")
    strict = compare.bounds_every_draw(iter(batches), 4.0)
    assert strict.verdict == ("fails" if violations else "holds")


def test_the_bound_of_a_mean_grants_it_its_error():
    left = np.array([0.9, 1.1] * 50)  # 1 with an error of 0.01
    ones = np.ones(100)
    assert compare.bounds_the_mean(iter([(left, 0.98 * ones)]), 4.0).verdict == "holds"
    assert compare.bounds_the_mean(iter([(left, 0.94 * ones)]), 4.0).verdict == "fails"


@pytest.mark.parametrize(
    "comparison",
    [
        compare.equal_means,
        compare.equal_at_every_draw,
        compare.bounds_the_mean,
        compare.bounds_every_draw,
        functools.partial(compare.bounds_every_draw, share=0.05, centred=True),
    ],
)
@pytest.mark.parametrize("side", [0, 1])
def test_nan_never_holds(comparison, side):
    sides = [np.ones(100), np.ones(100)]
    sides[side][:] = np.nan
    assert comparison(iter([tuple(sides)]), 4.0).verdict == "fails"


# --- The command ------------------------------------------------------------------------------


def test_command_prints_the_table(monkeypatch, capsys):
    status, out, err = run(monkeypatch, capsys, "--samples", MANY)
    assert (status, err) == (0, "")
    assert "E‖s‖² = -E[tr H(x)]" in out
    assert "10 of 10 identities hold, in 36 of 36 settings." in out
    assert "9 wrong (L2, L3, L4, L5, P2), 6 right (L1, L3, P2), 2 not claimed (L1)" in out
    assert "Jeon et al., ICML 2025, Lemma 4.2" in out
    assert max(map(len, out.splitlines())) <= 120
    assert "…" not in out


def test_the_document_shows_what_the_command_prints(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys)
    document = DOCUMENT.read_text().splitlines()
    lines = [line.rstrip() for line in out.splitlines()]
    shown = [line for line in lines if "e-1" not in line]  # but for rounding errors
    assert len(shown) > 50
    assert [line for line in shown if line not in document] == []


def test_command_fails_when_an_identity_does(monkeypatch, capsys):
    def broken(identity):
        return dataclasses.replace(
            identity, closed_form=lambda setting, draw: -identity.closed_form(setting, draw)
        )

    keep(monkeypatch, "L3", broken)
    status, out, _ = run(monkeypatch, capsys, "--samples", BATCH)
    assert status == 1
    assert "fails" in out
    assert "0 of 1 identities hold, in 0 of 2 settings." in out
    assert "Failing: L3, Gaussian" in out


def test_command_prints_json(monkeypatch, capsys):
    keep(monkeypatch, "L1")
    status, out, _ = run(monkeypatch, capsys, "--samples", MANY, "--seed", 3, "--json")
    assert status == 0
    printed = json.loads(out)
    assert (printed["dim"], printed["samples"], printed["seed"]) == (DIM, MANY, 3)
    rows = identities.verify(dim=DIM, num_samples=MANY, seed=3)
    assert [row["z"] for row in printed["rows"]] == [row.z for row in rows]
    assert printed["rows"][0]["verdict"] == "holds"
    assert printed["rows"][1]["printed_verdict"] == "not claimed"
    assert printed["rows"][1]["printed_source"] == rows[1].printed_source
    exchange(monkeypatch, lambda left, closed, printed: (left, -closed, printed))
    assert run(monkeypatch, capsys, "--samples", BATCH, "--json")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--dim", 1), 2, "Invalid value for '--dim'"),
        (("--dim", 33), 2, "Invalid value for '--dim'"),
        (("--samples", 999), 2, "Invalid value for '--samples'"),
        (("--seed", -1), 2, "Invalid value for '--seed'"),
        (("--seed", 2**32), 2, "Invalid value for '--seed'"),
    ],
)
def test_mistakes_are_clear(arguments, status, message, monkeypatch, capsys):
    found, out, err = run(monkeypatch, capsys, *arguments)
    assert (found, out) == (status, "")
    assert message in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"seed": 2**32},
        {"seed": 0.5},
        {"dim": True},
        {"dim": "5"},
        {"num_samples": 1e5},
    ],
)
def test_bad_values_in_the_library(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))} must be an integer"):
        identities.verify(**options)
