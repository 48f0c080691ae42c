"""`sharpjax mitigate` as a user meets it, on a tiny Stable Diffusion model."""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image

from sharpjax.runs.mitigate import Job, _groups, jobs


@pytest.fixture
def small(stable_diffusion_directory, tmp_path):
    """Of a command: the smallest run."""
    (tmp_path / "p.txt").write_text("cat\ndog\na cat\n")
    (tmp_path / "clean.txt").write_text("dog\ncat cat\na\nb\ndog a\n")
    return [
        "mitigate", "--model", stable_diffusion_directory, "--prompts", "p.txt", "--images", 2,
        "--steps", 2, "--devices", 1,
    ]  # fmt: skip


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.slow
def test_detected_prompts_are_treated_and_others_pass_untouched(small, tmp_path, sharpjax):
    run = sharpjax(
        "calibrate", *small[1:3], "--prompts", "clean.txt", "--statistics", "score_difference",
        "--output", "c", "--devices", 1, "--quantile", 0.5, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    # a threshold between the values of these prompts: one is called memorized, the others are not
    path = tmp_path / "c/calibration.json"
    run = sharpjax(
        "detect", *small[1:5], "--statistics", "score_difference", "--output", "d",
        "--devices", 1, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    lines = (tmp_path / "d/results.jsonl").read_text().splitlines()
    values = [np.mean(json.loads(x)["network"]["score_difference@981"]) for x in lines]
    document = json.loads(path.read_text())
    limit = float(np.mean(sorted(values)[1:]))
    document["thresholds"]["score_difference@981"] |= {"value": limit, "low": limit, "high": limit}
    path.write_text(json.dumps(document))
    memorized = int(np.argmax(values))

    on = sharpjax(
        *small, "--method", "lower_guidance", "--strength", 3, "--calibration", path,
        "--output", "on", cwd=tmp_path,
    )  # fmt: skip
    assert on.returncode == 0, on.stderr
    assert (
        "1 of 3 prompts are called memorized. 1 of 3 prompts are treated by lower_guidance at 3;"
        in " ".join(on.stdout.split())
    )
    # the same run again, of labelled prompts: what is said of labels, and as JSON of judgements
    (tmp_path / "p.csv").write_text("prompt,label\ncat,memorized\ndog,memorized\na cat,memorized\n")
    again = sharpjax(
        *(f"{word}".replace("p.txt", "p.csv") for word in small), "--method", "lower_guidance",
        "--strength", 3, "--calibration", path, "--output", "on", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "2 prompts that are known to be memorized are not called so" in again.stderr
    answer = json.loads(again.stdout)
    assert (answer["method"], answer["strength"], answer["control"]) == ("lower_guidance", 3, None)
    assert answer["threshold"]["value"] == limit
    assert (answer["settings"]["num_images"], len(answer["prompts"])) == (2, 3)
    off = sharpjax(
        *small, "--all-prompts", "--method", "delayed_guidance", "--strength", 0.5,
        "--output", "off", cwd=tmp_path,
    )  # fmt: skip
    assert off.returncode == 0, off.stderr
    # beside which mitigation, if any: the images of clean prompts are the same, pixel by pixel
    for i in range(3):
        for j in range(2):
            name = f"images/none/{i:05d}-{j}.png"
            one, other = (picture(tmp_path / run / name) for run in ("on", "off"))
            np.testing.assert_array_equal(one, other)
    treated = sorted(p.name for p in (tmp_path / "on/images/lower_guidance-3").iterdir())
    assert treated == [f"{memorized:05d}-{j}.png" for j in range(2)]
    plain = sharpjax(
        "sample", *small[1:5], "--images", 2, "--steps", 2, "--output", "s", cwd=tmp_path
    )
    assert plain.returncode == 0, plain.stderr
    for i in range(3):  # another batch size: rounding
        here, there = (tmp_path / f / f"{i:05d}-1.png" for f in ("on/images/none", "s/images"))
        assert np.abs(picture(here).astype(int) - picture(there)).max() <= 1
    with (tmp_path / "on/images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 + 2
    assert {row["evaluations"] for row in rows if row["method"] == "none"} == {"4.0"}
    assert {row["evaluations"] for row in rows if row["method"] != "none"} == {"4.0"}
    assert "copied" not in rows[0]
    assert (tmp_path / "on/side_by_side.png").is_file()
    assert "on/report.html" in on.stdout.replace("\n", "")
    page = (tmp_path / "on/report.html").read_text()
    assert "1 of 3 prompts are treated by lower_guidance at 3" in page
    assert "whether they copy was not judged" in page
    assert "red frame" not in page.lower()
    assert page.count("<img") == 3 * 2 + 2


@pytest.mark.slow
def test_killed_and_resumed_is_the_run_that_was_not(small, tmp_path, killed, sharpjax):
    small += ["--all-prompts", "--method", "ranked", "--no-report"]  # draws noises of its own
    whole = sharpjax(*small, "--output", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "sharpjax", *small, "--output", "killed"]
    counts = killed(command, tmp_path / "killed/results.jsonl", cwd=tmp_path, times=4)
    assert len(counts) >= 2
    assert counts[-1] > 0
    resumed = sharpjax(*small, "--output", "killed", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    kept = ("method", "strength", "index", "prompt", "images", "evaluations", "details")
    found = []
    for name in ("whole", "killed"):
        lines = (tmp_path / name / "results.jsonl").read_text().splitlines()
        assert len(lines) == 6
        found.append(sorted(str({k: json.loads(line)[k] for k in kept}) for line in lines))
    assert found[0] == found[1]
    for path in sorted((tmp_path / "whole/images").rglob("*.png")):
        twin = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
        # Seen once, on a busy machine: one pixel by one level of 255, the records above equal. The
        # cause was not found; that sums of several threads differ in order is a guess.
        np.testing.assert_allclose(picture(path).astype(int), picture(twin), atol=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--strength", "-1"], "the strength of lower_guidance must be a positive number"),
     (["--strength", "1.5", "--method", "delayed_guidance"], "of delayed_guidance must be"),
     (["--strength", "2.5", "--method", "ranked"], "be a whole number of at least 1"),
     (["--method", "ranked", "--steps", "1"], "ranked looks half-way down a path: give --steps 2"),
     (["--compare"], "--compare needs a judge of copies: --references"),
     (["--method", "sail"], "--clean FILE is needed"),
     ([], "Or treat every prompt by --all-prompts"),
     (["--model", "mnist"], "mnist is a pixel model; sharpjax mitigate is for models of prompts")],
)  # fmt: skip
def test_mistakes_are_one_line(small, arguments, message, tmp_path, monkeypatch, capsys):
    from sharpjax import cli

    monkeypatch.chdir(tmp_path)
    if "--method" not in arguments and "--methods" not in arguments:
        arguments = [*arguments, "--method", "lower_guidance"]
    monkeypatch.setattr(sys, "argv", ["sharpjax", *map(str, small), *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 1
    told = " ".join(capsys.readouterr().err.split())
    assert message in told


def test_jobs_and_their_groups():
    wanted = jobs([0, 1, 2, 3, 4], "none") + jobs([1], "sail", (0.5, 0.1))
    assert wanted[-1] == Job("sail", 0.1, 1)
    assert wanted[-1].folder == "sail-0.1"
    sizes = [[job.place for job in group] for group in _groups(wanted)]
    assert sizes == [[0, 1, 2, 3], [4], [1], [1]]
