"""Ground truth of a user's model by references, and the comparison of methods that follows it."""

import csv
import json
import sys

import pytest
from PIL import Image

from sharpjax import cli
from sharpjax.prompts import read_cases
from sharpjax.runs.truth_of_prompts import PromptTruth


@pytest.mark.slow
def test_from_references_to_a_comparison(stable_diffusion_directory, tmp_path, sharpjax):
    """Its own samples are the references: what is drawn from the same noises is a copy."""
    prompts = [f"cat {'a ' * k}dog" for k in range(4)] + ["dog", "a dog", "b", "cat"]
    (tmp_path / "p.txt").write_text("\n".join(prompts) + "\n")
    common = ["--model", stable_diffusion_directory, "--prompts", "p.txt", "--steps", 2]
    run = sharpjax("sample", *common, "--images", 4, "--output", "s", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in (tmp_path / "s/results.jsonl").read_text().splitlines()]
    known = [one for one in lines if one["index"] < 6]  # of the last two nothing is known
    rows = ["prompt,file"] + [f"{one['prompt']},s/{one['file']}" for one in known]
    (tmp_path / "r.csv").write_text("\n".join(rows) + "\n")
    truth = ["ground-truth", *common, "--references", "r.csv", "--samples", 4, "--output", "t"]
    run = sharpjax(*truth, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "A copy has a likeness above" in " ".join(run.stdout.split())
    with (tmp_path / "t/truth.csv").open(newline="") as file:
        found = {row["prompt"]: row for row in csv.DictReader(file)}
    assert list(next(iter(found.values()))) == list(PromptTruth.__dataclass_fields__)
    for prompt in prompts[:6]:
        own, samples = int(found[prompt]["copies"]), int(found[prompt]["samples"])
        assert own + int(found[prompt]["others"]) == samples == 4
        assert float(found[prompt]["likeness"]) > 0.99
    told = {case.condition: case.verdict for case in read_cases(tmp_path / "t/truth.csv")}
    assert set(told) == set(prompts)
    page = sharpjax("report", "t", cwd=tmp_path)
    assert page.returncode == 0, page.stderr
    assert "Copies of the references among samples" in (tmp_path / "t/report.html").read_text()
    # other references are another measurement
    (tmp_path / "r.csv").write_text("\n".join(rows[:-1]) + "\n")
    other = sharpjax(*truth, cwd=tmp_path)
    assert other.returncode == 1
    assert "references" in other.stderr

    # labels as they might be, for the network is not trained
    labelled = ["prompt,label,source"]
    labelled += [f"{p},memorized,{'odd' if i % 2 else 'even'}" for i, p in enumerate(prompts[:6])]
    labelled += [f"{p},clean," for p in prompts[6:]]
    (tmp_path / "l.csv").write_text("\n".join(labelled) + "\n")
    run = sharpjax(
        "mitigate", "--model", stable_diffusion_directory, "--prompts", "l.csv", "--steps", 2,
        "--images", 2, "--references", "r.csv", "--compare", "--methods",
        "lower_guidance,cross_attention", "--output", "m", "--devices", 1, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "Nobody judges what images show" in " ".join(run.stdout.split())
    with (tmp_path / "m/standings.csv").open(newline="") as file:
        standings = list(csv.DictReader(file))
    assert {row["method"] for row in standings} == {"lower_guidance", "cross_attention"}
    assert {row["kind"] for row in standings} == {"all"}  # of either kind one prompt would tune
    with (tmp_path / "m/images.csv").open(newline="") as file:
        images = list(csv.DictReader(file))
    assert {row["kind"] for row in images} == {"odd", "even", ""}
    assert all(row["fidelity"] == "" for row in images)
    assert (tmp_path / "m/report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--prompts", "p.txt"], "--prompts and --references go together"),
     (["--references", "."], "--prompts and --references go together"),
     (["--prompts", "p.txt", "--references", ".", "--captions", "3"], "--captions chooses among"),
     (["--prompts", "p.txt", "--references", "."], "are for models of prompts")],
)  # fmt: skip
def test_mistakes(arguments, message, tiny_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("cat\n")
    for i in range(8):
        Image.radial_gradient("L").rotate(40 * i).crop((20 * i, 0, 256, 200)).save(f"{i}.png")
    command = ["sharpjax", "ground-truth", "--model", str(tiny_directory), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as error:
        cli.main()
    assert error.value.code == 1
    assert message in " ".join(capsys.readouterr().err.split())
