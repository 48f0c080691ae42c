"""`sharpjax detect` and `calibrate` on prompts and images, as a user meets them."""

import csv
import itertools
import json
import os
import random
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from sharpjax import cli
from sharpjax.detection.settings import ImageSettings
from sharpjax.models.load import load
from sharpjax.pictures import read_image
from sharpjax.runs.images import detect_images, find_images


@pytest.fixture
def small(stable_diffusion_directory):
    """Of a command: the smallest run."""
    return ["--model", stable_diffusion_directory, "--noises", 2, "--devices", 1]


@pytest.mark.slow
def test_calibrate_then_detect(small, tmp_path, sharpjax):
    small += ["--statistics", "score_difference,guidance_alignment,standardised_alignment"]
    # twenty prompts: what repeats them or is blank does not count
    rows = ["dog " * n + "a" for n in range(20)] * 3 + [""] * 60
    (tmp_path / "clean.csv").write_text("nr;Worte;x\n" + "".join(f";{row};\n" for row in rows))
    run = sharpjax(
        "calibrate", *small, "--prompts", "clean.csv", "--column", "worte", "--output", "c",
        "--batch", 2, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    limits = json.loads((tmp_path / "c/calibration.json").read_text())["thresholds"]
    assert {(one["num_prompts"], one["high"]) for one in limits.values()} == {(20, None)}
    told = " ".join(run.stdout.split())
    assert "set on 20 clean ones so that 95% of new ones are on the other side; too few" in told
    (tmp_path / "p.csv").write_text(
        "prompt,label,source,level,url\ncat,memorized,x,12,=a\ncat,memorized,x,,\n,clean,y,,\n"
        '"a\ndog",clean,y,,b\n[bold]<b>&\x07 🦊,,z,,\n' + "dog " * 300 + ",clean,y,,\n"
    )
    run = sharpjax(
        "detect", *small, "--prompts", "p.csv", "--calibration", "c/calibration.json",
        "--output", "d", "--batch", 2, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    # the empty prompt and the second "cat" are left out
    other = sharpjax(
        "detect", *small[:-1], "hessian_score", "--prompts", "p.csv", "--calibration",
        "c/calibration.json", "--output", "e", cwd=tmp_path,
    )  # fmt: skip
    assert (other.returncode, "has no threshold of hessian_score@" in other.stderr) == (1, True)
    told = " ".join(run.stdout.split())
    assert "1 memorized, 2 clean, 0 between (left out), 1 without a label" in told
    assert "a class has only 1, of which one" in run.stdout.replace("\n", " ")
    told = run.stderr.replace("\n", " ")
    assert "1 prompt is blank and was left out" in told
    assert "1 prompt is a repeat and was left out" in told
    assert "called memorized: score_difference@981 above" in run.stdout
    assert "[bold]<b>" in run.stdout
    with (tmp_path / "d/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["condition"][:9] for row in rows] == ["cat", "a\ndog", "[bold]<b>", "dog dog d"]
    assert {"margin guidance_alignment@41", "margin standardised_alignment@41"} <= rows[0].keys()
    assert {"source", "known", "verdict"} <= rows[0].keys()
    assert [row["level"] for row in rows] == ["12", "0", "0", "0"]
    assert [row["url"] for row in rows] == ["'=a", "b", "", ""]  # a spreadsheet computes nothing
    margin = float(rows[0]["margin score_difference@981"])
    assert rows[0]["verdict"].startswith("memorized" if margin > 0 else "clean")
    assert "d/report.html" in run.stdout
    page = (tmp_path / "d/report.html").read_text()
    assert "[bold]&lt;b&gt;&amp;␇ 🦊" in page
    assert "1 memorized, 2 clean, 0 between" in page
    assert re.search(r"<td[^>]*>=a</td>", page)
    about = json.loads((tmp_path / "d/about.json").read_text())
    assert about["command"].startswith("sharpjax detect ")  # as `python -m sharpjax` too
    assert about["command"].endswith("--output d --batch 2")
    assert about["decide_by"] == "score_difference@981"
    # without the calibration: no verdicts, and it is said why
    run = sharpjax("detect", *small, "--condition", "cat", "--output", "e", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    told = run.stdout.replace("\n", " ")
    assert "No verdicts: thresholds are not known" in told
    assert "Not shown: standardised_alignment, which" in told
    assert "No ROC" in told


@pytest.mark.slow
def test_spectra_of_the_extremes(tiny_directory, tmp_path, monkeypatch, capsys):
    """Only the spectra are computed by the second command, and its page shows them."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
    folder = tmp_path / "run"
    command = ["detect", "--model", tiny_directory, "--output", folder, "--noises", 2]
    command += ["--statistics", "score_difference", "--steps", 2, "--devices", 1]

    def run(*more):
        monkeypatch.setattr("sys.argv", ["sharpjax", *map(str, [*command, *more])])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code in (0, None)
        return capsys.readouterr().out

    run()
    before = (folder / "results.jsonl").read_text()
    pre = re.findall("<pre.*?</pre>", (folder / "report.html").read_text())
    offered = [re.sub("<[^>]+>", "", block) for block in pre]  # without places to break a line
    (told,) = (block for block in offered if block.endswith(" --spectra"))
    assert f"--output {folder}" in told
    run("--spectra")
    assert (folder / "results.jsonl").read_text() == before
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    (column,) = (folder / "spectra").iterdir()
    ordered = sorted(rows, key=lambda row: -float(row[f"network {column.name}"]))
    lines = (column / "results.jsonl").read_text().splitlines()
    named = dict.fromkeys(json.loads(line)["condition"] for line in lines)
    assert list(named) == [ordered[0]["condition"], ordered[-1]["condition"]]
    page = (folder / "report.html").read_text()
    assert f"sharpest &#39;{ordered[0]['condition']}&#39;, flattest" in page
    assert page.count('role="img" aria-label="Eigenvalues of ') == 2 * 2  # both steps
    assert "--spectra</span></pre>" not in page


@pytest.mark.slow
def test_images_without_prompts(small, tmp_path, sharpjax):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (16, 16, 3)), ("b.jpg", (40, 24, 3)), ("c.png", (16, 16))):
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(folder / name)
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "labels.csv").write_text("prompt,label\na.png,memorized\nb.jpg,clean\n")
    model = small[:2]
    run = sharpjax(
        "images", *model, "images", "--directions", 8, "--exact", "--output", "d",
        cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "Failed: 1 ('d.png': cannot be read as an image" in run.stdout.replace("\n", " ")
    records = [json.loads(x) for x in (tmp_path / "d/results.jsonl").read_text().splitlines()]
    assert [r["condition"] for r in records] == ["a.png", "b.jpg", "c.png", "d.png"]
    values = records[0]["network"]
    assert [len(v) for v in values.values()] == [4, 1]
    assert list(values) == ["p_laplacian@400", "p_laplacian@400, exact"]
    assert (tmp_path / "d/roc.png").is_file()
    assert "1 images are not 16 x 16" in run.stderr.replace("\n", " ")
    assert "No verdicts" in run.stdout
    # thresholds of images
    (folder / "labels.csv").unlink()
    run = sharpjax(
        "calibrate", *model, "--images", "images", "--directions", 8, "--output", "c",
        "--quantile", 0.5, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    options = ["images", "--directions", 8, "--calibration", "c/calibration.json"]
    run = sharpjax("images", *model, *options, "--output", "e", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "called memorized: p_laplacian@400 below" in run.stdout.replace("\n", " ")
    with (tmp_path / "e/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["failed"] == "" for row in rows] == [True, True, True, False]
    assert all(row["verdict"] for row in rows[:3])
    run = sharpjax("images", *model, *options, "--timestep", 20, "--output", "f", cwd=tmp_path)
    assert run.returncode == 1
    assert "timestep: 400 there, 20 now" in run.stderr


def test_pictures_are_cut_to_the_middle_square(tmp_path):
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(read_image(tmp_path / "wide.png", (3, 16, 16)), 1.0)
    assert read_image(tmp_path / "wide.png", (1, 16, 16)).shape == (1, 16, 16)


def test_what_is_left_out_of_a_directory_is_told(tmp_path):
    for name in ("a.tiff", "b.gif", "c.AVIF", "d.webp", "e.BMP", "f.tif", "g.PNG"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("prompt,label\na.tiff,clean\n,\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [case.condition for case in find_images(tmp_path)]
    assert found == ["a.tiff", "b.gif", "c.AVIF", "d.webp", "e.BMP", "f.tif", "g.PNG"]
    for name in ("photo.heic", "a.txt", "b.txt", "README", ".hidden"):
        (tmp_path / name).write_text("")
    (tmp_path / "more.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("nothing.png")
    with pytest.warns(UserWarning, match="left out") as told:
        assert [case.condition for case in find_images(tmp_path)] == found
    assert "left out README, a.txt, b.txt and 4 more;" in str(told[0].message)


@pytest.mark.slow
def test_an_image_is_judged_as_it_is_shown(small, tmp_path):
    """A photo that EXIF turns, and the same that was turned: one number; 16 bits as 8."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(folder / "a.png", exif=exif)
    Image.fromarray(np.rot90(pixels, -1)).save(folder / "b.png")
    Image.fromarray(np.rot90(pixels, -1).astype(np.uint16) * 257).save(folder / "c.png")
    (folder / "d.png").write_bytes(b"none")
    records = detect_images(
        load(small[1]), folder, find_images(folder), tmp_path / "run",
        ImageSettings(num_directions=4), fingerprint="x",
    )  # fmt: skip
    assert records[0]["network"] == records[1]["network"] == records[2]["network"]
    assert records[3]["failed"] == "cannot be read as an image: cannot identify image file"


def test_images_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory of images"):
        find_images(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no images"):
        find_images(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("prompt,label\nb.png,clean\n")
    with pytest.raises(FileNotFoundError, match=r"labels.csv names 'b.png', which is not in"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        ImageSettings(num_directions=6)
    with pytest.raises(ValueError, match="p must be"):
        ImageSettings(p=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--condition", " "), "--condition is blank"),
        ((), "says of no prompt whether it is memorized; give prompts by --prompts"),
        (
            ("--condition", "a", "--decide-by", "tiled_l2"),
            "--decide-by must be one of score_difference@981",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message, small, tmp_path, monkeypatch, capsys):
    (tmp_path / "p.txt").write_text("a\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sharpjax", "detect", *map(str, small), *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    told = capsys.readouterr().err
    assert message in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_full_disk(small, tmp_path, sharpjax):
    """A limit on the size of files, set by a shell: what is written stays, the next run goes on."""
    words = ["cat", "dog", "a", "b"]
    prompts = [f"{a} {b} {c} {d}" for a in words for b in words for c in words for d in words]
    (tmp_path / "p.txt").write_text("\n".join(prompts))
    options = ["detect", *map(str, small), "--prompts", "p.txt", "--batch", "16", "--output", "d"]
    options += ["--statistics", "score_difference", "--noises", "16", "--no-report"]
    # in KiB: the tokenizer's private files are below it, the results are not
    limited = ["bash", "-c", 'ulimit -f 48 && exec "$@"', "bash", sys.executable, "-m", "sharpjax"]
    run = subprocess.run([*limited, *options], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1
    told = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert len(told) == 1, run.stderr
    assert "d/results.jsonl" in told[0]
    assert "Traceback" not in run.stderr
    kept = (tmp_path / "d/results.jsonl").read_bytes()
    assert kept.count(b"\n") > 2
    again = sharpjax(*options, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    whole = (tmp_path / "d/results.jsonl").read_bytes()
    assert whole.startswith(kept[: kept.rfind(b"\n") + 1])
    assert whole.count(b"\n") == len(prompts)


@pytest.mark.slow
def test_killed_at_random_instants(small, tmp_path, killed, sharpjax):
    """SIGKILL whenever it comes; the file at the end is that of a run that was never stopped."""
    words = itertools.product(["cat", "dog", "a", "b"], repeat=4)
    prompts = random.Random(0).sample([" ".join(four) for four in words], 40)
    (tmp_path / "p.txt").write_text("\n".join(prompts))
    options = ["detect", *small, "--prompts", "p.txt", "--batch", 2, "--noises", 4]
    options += ["--statistics", "score_difference,trace_difference", "--no-report"]
    whole = sharpjax(*options, "--output", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    path = tmp_path / "killed/results.jsonl"
    command = [sys.executable, "-m", "sharpjax", *options, "--output", "killed"]
    counts = killed(command, path, cwd=tmp_path, times=4)
    assert len(counts) == 4
    assert 0 < counts[-1] < 40
    again = sharpjax(*options, "--output", "killed", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    lines = path.read_text().splitlines()
    assert lines == (tmp_path / "whole/results.jsonl").read_text().splitlines()
    assert [json.loads(line)["condition"] for line in lines] == prompts
