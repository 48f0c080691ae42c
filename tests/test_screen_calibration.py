"""What a screen misses, by hand; set and used by commands on a tiny Stable Diffusion model."""

import json
import sys
from itertools import combinations

import numpy as np
import pytest

from sharpjax.mitigation.copies_bound import copies_bound, miss_rate, pass_rate
from sharpjax.mitigation.screen_calibration import ScreenCalibration, screen_for
from sharpjax.report import screen as report


def known(quantity="effective_dimension", seed=0, **changed):
    rng = np.random.default_rng(seed)
    memorized = {}
    for number in range(6):
        copied = rng.random(8) < (0.5 if number else 0.0)  # the first copies nothing
        memorized[f"m{number}"] = (rng.normal(20 - 10 * copied, 5), copied)
    fields = dict(
        model="f", quantity=quantity, step=5, num_probes=8, num_steps=10, guidance=3.0, free=0.3,
        clean=rng.normal(20, 5, 60), memorized=memorized,
    )  # fmt: skip
    return ScreenCalibration(**(fields | changed))


@pytest.mark.quick
@pytest.mark.parametrize("quantity", ["effective_dimension", "score_difference"])
def test_misses_by_hand(quantity):
    """A large effective dimension passes, and a small score difference."""
    found, sign = known(quantity), 1 if quantity == "effective_dimension" else -1
    limit = found.look(0.1).threshold
    assert np.mean(sign * found.clean < sign * limit) <= 0.1
    passed, copies = [], []
    for values, copied in found.memorized.values():
        if copied.any():
            passed.append(sum(sign * values[copied] >= sign * limit))
            copies.append(copied.sum())
    assert len(copies) == 5
    assert found.missed(0.1) == miss_rate(np.array(passed), np.array(copies))
    # of every three paths of a prompt the best one
    rates = []
    for values, copied in found.memorized.values():
        if not copied.any():
            continue
        wins, places = np.zeros(8), list(combinations(range(8), 3))
        for three in places:
            wins[max(three, key=lambda i: sign * values[i])] += 1
        often = sum(0 in three for three in places)
        rates.append(np.mean(wins[copied] / often))
    rank = found.missed_by_rank(3)
    assert rank.value == pytest.approx(np.mean(rates))
    assert rank.value < rank.upper <= 1
    assert found.missed_by("ranked", 3.0) == rank
    assert found.missed_by("screened", 0.1) == found.missed(0.1)


@pytest.mark.quick
def test_nothing_known_bounds_nothing(tmp_path):
    found = known(memorized={})
    assert found.missed(0.1) is found.missed_by_rank(3) is None
    assert "nothing bounds" in report.blocks(found)[-1].text
    assert known().missed_by_rank(9) is None  # of eight paths
    few = known(clean=np.arange(5.0))
    with pytest.raises(ValueError, match="needs 9 different ones"):
        few.threshold(0.1)
    ways = [row["way"] for row in report.rows_of(few)]
    assert "drops 5% of clean paths" not in ways
    assert "drops 50% of clean paths" in ways


@pytest.mark.quick
def test_it_is_read_as_it_was_written(tmp_path):
    found = known()
    again = ScreenCalibration.load(found.save(tmp_path / "screen.json"))
    assert again.digest == found.digest != known(seed=1).digest
    assert again.missed(0.1) == found.missed(0.1)
    again.check("f", 10, 3.0)
    for changed in ({"fingerprint": "g"}, {"num_steps": 11}, {"guidance": 3.5}):
        (name,) = changed
        with pytest.raises(ValueError, match=name.replace("fingerprint", "model")):
            again.check(**({"fingerprint": "f", "num_steps": 10, "guidance": 3.0} | changed))
    document = json.loads((tmp_path / "screen.json").read_text())
    for broken, message in (
        ("[]", "is no screen"), ("{", "is no JSON"), ("{}", "is no screen"),
        (json.dumps({k: v for k, v in document.items() if k != "format"}), "earlier version"),
        (json.dumps(document | {"format": 99}), "another version"),
        (json.dumps(document | {"quantity": "x"}), "quantity is 'x'"),
        (json.dumps(document | {"clean": []}), "lacks clean values"),
        (json.dumps(document | {"clean": ["a"]}), "is no screen"),
        (json.dumps(document | {"step": 10}), "step 10 of 10 with 8 probes"),
        (json.dumps(document | {"free": 5}), "free is 5"),
        (json.dumps(document | {"guidance": "x"}), "is no screen"),
        (json.dumps(document).replace(str(document["memorized"]["m1"]["values"][0]), "NaN"),
         "NaN or infinite"),
        (json.dumps(document | {"clean": [[1.0]]}), "do not fit each other"),
        (json.dumps({k: v for k, v in document.items() if k != "step"}), "is no screen"),
    ):  # fmt: skip
        (tmp_path / "screen.json").write_text(broken)
        with pytest.raises(ValueError, match=message):
            ScreenCalibration.load(tmp_path / "screen.json")
    with pytest.raises(FileNotFoundError, match="sharpjax screen writes one"):
        ScreenCalibration.load(tmp_path / "none.json")


@pytest.mark.quick
def test_a_models_own_screen_is_taken_where_it_fits(tmp_path):
    own, sampler = tmp_path / "screen.json", {"fingerprint": "f", "num_steps": 10, "guidance": 3.0}
    assert screen_for(None, None, **sampler) is None
    assert screen_for(None, own, **sampler) is None
    found = known()
    found.save(own)
    assert screen_for(None, own, **sampler).digest == found.digest
    for changed in ({"fingerprint": "g"}, {"num_steps": 11}, {"guidance": 3.5}):
        assert screen_for(None, own, **sampler | changed) is None
        with pytest.raises(ValueError, match="was set for another model or sampler"):
            screen_for(found, None, **sampler | changed)
    own.write_text("{}")  # a damaged file is never passed over
    with pytest.raises(ValueError, match="is no screen of sharpjax; set one anew"):
        screen_for(None, own, **sampler)


@pytest.mark.slow
def test_set_by_a_command_and_used_by_another(
    stable_diffusion_directory, tmp_path, killed, sharpjax
):
    (tmp_path / "clean.txt").write_text("\n".join(f"{'b ' * k}a" for k in range(12)) + "\n")
    (tmp_path / "m.csv").write_text("prompt,label\ncat,memorized\ndog,memorized\na cat,memorized\n")
    model = ["--model", stable_diffusion_directory]
    # what these prompts draw from the screen's own noises are their references
    drawn = ["sample", *model, "--prompts", "m.csv", "--steps", 4, "--images", 4, "--output", "s"]
    run = sharpjax(*drawn, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    command = [
        "screen", *model, "--prompts", "m.csv", "--clean", "clean.txt", "--references", "s/images",
        "--images", 3, "--steps", 4, "--probes", 2, "--devices", 1,
    ]  # fmt: skip
    run = sharpjax(*command, "--output", "whole", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "3 memorized prompts copy in" in " ".join(run.stdout.split())
    killed([sys.executable, "-m", "sharpjax", *map(str, command), "--output", "killed"],
           tmp_path / "killed/results.jsonl", cwd=tmp_path, times=2)  # fmt: skip
    run = sharpjax(*command, "--output", "killed", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    whole, again = ((tmp_path / name / "screen.json").read_text() for name in ("whole", "killed"))
    assert whole == again
    other = sharpjax(*command, "--seed", 1, "--output", "whole", cwd=tmp_path)
    assert other.returncode == 1
    assert "seed" in other.stderr

    # as if some had been copies: the tiny network is not trained
    document = json.loads(whole)
    for number, one in enumerate(document["memorized"].values()):
        one["copied"] = [True, number > 0, False]
    (tmp_path / "screen.json").write_text(json.dumps(document))
    use = [
        "mitigate", *model, "--prompts", "m.csv", "--steps", 4, "--images", 2, "--all-prompts",
        "--devices", 1, "--screen", "screen.json",
    ]  # fmt: skip
    screen = ScreenCalibration.load(tmp_path / "screen.json")
    for method, strength in (("screened", 0.5), ("ranked", 2)):
        run = sharpjax(
            *use, "--method", method, "--strength", strength, "--output", method, "--json",
            cwd=tmp_path,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        for row in json.loads(run.stdout)["prompts"]:
            missed, images = screen.missed_by(method, strength), row["images_after"]
            assert row["tries"] >= len(images)
            if method == "ranked":
                assert (row["tries"], row["pass_rate"]) == (4, 0.5)
                assert row["copies_bound"] == pytest.approx(min(1.0, 2 * missed.upper))
            elif images:
                rate = pass_rate(len(images), row["tries"])
                assert row["pass_rate_interval"] == [rate.low, rate.high]
                assert row["copies_bound"] == copies_bound(missed, rate)
            else:
                assert row["copies_bound"] is None
    page = " ".join((tmp_path / "ranked/report.html").read_text().split())
    assert "copies are missed no more often than" in page
    # images alone: each depends on its own number, whatever the others are and come to
    sample = ["sample", *model, "--steps", 4, "--screen", "screen.json", "--dropped", 0.5]
    drawn = {}
    for name, more in (("two", ["--images", 2]), ("one", ["--images", 1])):
        run = sharpjax(
            *sample, "--prompts", "m.csv", "--output", name, "--json", *more, cwd=tmp_path
        )
        assert run.returncode == 0, run.stderr
        drawn[name] = json.loads(run.stdout)["images"]
    kept = {(one["index"], one["image"]): one for one in drawn["two"]}
    for one in drawn["one"]:
        assert one == kept[one["index"], one["image"]]
    assert any(one["tries"] > 1 for one in drawn["two"])
    document["clean"] = (1e9 + np.arange(12)).tolist()  # nothing passes
    (tmp_path / "high.json").write_text(json.dumps(document))
    none = ["sample", *model, "--steps", 4, "--prompt", "cat", "--screen", "high.json",
            "--dropped", 0.5, "--output", "none"]  # fmt: skip
    for _ in range(2):  # and a finished run says so again
        run = sharpjax(*none, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert "1 of 1 images were refused" in " ".join(run.stdout.split())
    wrong = sharpjax(*none[:-2], "--steps", 3, "--output", "w", cwd=tmp_path)
    assert "(num_steps: 4 there, 3 now)" in " ".join(wrong.stderr.split())
    assert not (tmp_path / "w").exists()
    wrong = sharpjax(*none[:5], "--prompt", "a", "--dropped", 0.5, cwd=tmp_path)
    assert "--dropped goes with --screen" in wrong.stderr
    wrong = sharpjax(*use, "--method", "screened", "--guidance", 2, "--output", "w", cwd=tmp_path)
    assert wrong.returncode == 1
    assert "was set for another model or sampler (guidance: 7.5 there, 2.0 now)" in " ".join(
        wrong.stderr.split()
    )
    wrong = sharpjax(*use, "--method", "padding", "--output", "w", cwd=tmp_path)
    assert "--screen goes with --method screened or ranked" in wrong.stderr
