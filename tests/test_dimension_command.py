"""`sharpjax dimension`: images to curves, killed and resumed, with a page."""

import csv
import doctest
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sharpjax as sj
from sharpjax.curvature import Estimate
from sharpjax.dimension import DimensionCurve
from sharpjax.pictures import read_image
from sharpjax.report import dimension as report
from sharpjax.runs import dimension as runs
from sharpjax.runs.dimension import DimensionSettings, dimension_of_images
from sharpjax.runs.images import find_images

SETTINGS = DimensionSettings(times=(10, 100), num_probes=2, num_matvecs=8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.mark.slow
def test_every_image_has_its_curve(tiny_directory, images, tmp_path, monkeypatch):
    model, cases = sj.load(tiny_directory), find_images(images)
    found = dimension_of_images(model, images, cases, tmp_path / "run", SETTINGS, fingerprint="f")
    assert [record["condition"] for record in found] == ["a.png", "b.png", "broken.png"]
    assert "cannot be read" in found[2]["failed"]
    one = found[1]
    assert one["times"] == [10, 100]
    z = model.encode_image(read_image(images / "b.png", model.image_shape)[None])[0]
    import jax

    expected = sj.dimension.dimension_curve(
        model.unconditional, z, schedule=model.schedule, times=(10, 100), num_probes=2,
        num_matvecs=8, key=jax.random.fold_in(jax.random.key(0), 1),
    )  # fmt: skip
    np.testing.assert_allclose(one["lhsd"], expected.lhsd.value, rtol=1e-4)
    np.testing.assert_allclose(one["flipd_error"], expected.flipd.standard_error, rtol=1e-3)
    assert one["chosen"] in one["times"]
    # resumed, nothing is computed again
    monkeypatch.setattr(runs, "dimension_curve", None)
    again = dimension_of_images(model, images, cases, tmp_path / "run", SETTINGS, fingerprint="f")
    assert again == found
    rows = report.rows_of(found)
    assert [(row["image"], row["t"]) for row in rows] == [
        ("a.png", 10), ("a.png", 100), ("b.png", 10), ("b.png", 100),
    ]  # fmt: skip
    assert [path.name for path in report.write(tmp_path / "run", found)] == [
        "dimension.csv", "dimension.png",
    ]  # fmt: skip
    with open(tmp_path / "run/dimension.csv") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_images_of_another_size_are_told(tiny_model, tmp_path, monkeypatch):
    """The dimension is of what was resized, which an image made larger has fewer of."""
    (tmp_path / "images").mkdir()
    for name, size in (("a.png", (8, 8)), ("b.png", (1, 1)), ("c.png", (30, 20))):
        Image.new("L", size).save(tmp_path / "images" / name)
    levels = np.ones(2)
    same = Estimate(levels, levels, 2, 8)
    monkeypatch.setattr(
        runs, "dimension_curve",
        lambda *_, times, **__: DimensionCurve(np.array(times), levels, levels, same, same, same),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="^2 images are not 8 x 8: the middle part of each was"):
        dimension_of_images(
            tiny_model, tmp_path / "images", find_images(tmp_path / "images"), tmp_path / "run",
            SETTINGS, fingerprint="f",
        )  # fmt: skip


@pytest.mark.slow
def test_the_command(tiny_directory, images, tmp_path, sharpjax):
    run = functools.partial(sharpjax, "dimension", cwd=tmp_path)

    arguments = [images, "--model", tiny_directory, "--probes", 2, "--output", "run"]
    done = run(*arguments, "--times", "10,100", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["images"]) == 3
    with open(tmp_path / answer["report"]) as page:
        text = page.read()
    assert "Local dimension" in text
    assert "broken.png" in text
    other = run(*arguments, "--times", "10,50")
    assert other.returncode == 1
    assert "times: [10, 100] there, [10, 50] now" in other.stderr
    for times, message in (("10,10", "different timesteps"), ("x", "different timesteps"),
                           ("1000", "1000")):  # fmt: skip
        failed = run(images, "--model", tiny_directory, "--times", times, "--output", "none")
        assert failed.returncode == 1
        assert message in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "none").exists()

    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "broken.png").write_bytes(b"no image")
    failed = run(alone, "--model", tiny_directory, "--times", "10", "--output", "nothing")
    assert failed.returncode == 1
    assert f"error: no image of {alone} could be read" in failed.stderr


def test_what_a_row_says():
    rows = [
        {"image": "a", "t": 5, "chosen": 1, "lhsd": 12.34, "lhsd_error": 0.56, "flipd": 13.0,
         "flipd_error": None, "transition_mass": 0.0123, "transition_mass_error": 0.001,
         "coordinates": 64},
        {"image": "a", "t": 9, "chosen": 0, "lhsd": 1.0, "lhsd_error": 0.1, "flipd": 1.0,
         "flipd_error": 0.1, "transition_mass": 0.2, "transition_mass_error": 0.1,
         "coordinates": 64},
    ]  # fmt: skip
    _, cells = report.table(rows).shown()
    assert [[cell.text for cell in row] for row in cells] == [
        ["a", "5", "12.3 ± 0.6", "13.0", "64", "0.012 ± 0.001"]
    ]


def test_the_examples_of_the_documentation_print_what_it_says():
    page = Path(__file__).parent.parent / "docs" / "dimension.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 4
    assert result.failed == 0
