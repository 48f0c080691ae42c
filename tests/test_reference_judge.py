"""The judge that has training images alone, on real drawings."""

import jax
import numpy as np
import pytest
from PIL import Image

from sharpjax import zoo
from sharpjax.checkpoints.component import from_pretrained
from sharpjax.datasets.planted_drawings import planted_drawings
from sharpjax.mitigation.reference_judge import (
    FEWEST,
    QUANTILE,
    ReferenceJudge,
    control,
    resized,
)
from sharpjax.recipes.drawings_vae import through
from sharpjax.runs.references import read_references
from sharpjax.similarity import likeness

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def planted():
    return planted_drawings()


@pytest.fixture(scope="module")
def references(planted):
    """The repeated image of every caption but the templates', which share theirs."""
    kinds = [planted.captions[i].kind for i in planted.planted]
    chosen = np.array([kind != "template" for kind in kinds])
    names = [planted.captions[i].caption for i in planted.planted[chosen]]
    return planted.fixed_images()[chosen], names


@pytest.fixture(scope="module")
def judge(references):
    return ReferenceJudge(*references)


def test_the_threshold_by_hand(references, judge):
    """No two of these are one image: the largest likeness of each to another, and its quantile."""
    images, _ = references
    rows = likeness(images)
    alike = rows @ rows.T
    largest = [max(alike[i, j] for j in range(len(rows)) if j != i) for i in range(len(rows))]
    half = np.random.default_rng(2027).permutation(len(rows)) < len(rows) // 2
    wanted = np.quantile(np.array(largest)[half], QUANTILE)
    found = judge.control
    assert found.threshold == judge.threshold == pytest.approx(wanted)
    assert found.repeated == 0
    assert found.references == len(images) == 64
    assert found.false_alarms == sum(np.array(largest)[~half] > wanted)
    assert found.others == 32
    assert found.low <= found.false_alarms / found.others <= found.high
    assert found.found > 0.9
    assert f"above {wanted:.3f} with a reference" in str(found)


def test_copies_are_found_and_others_are_not(planted, references, judge):
    images, names = references
    vae = from_pretrained(zoo.ROOT / "drawings" / "vae")
    copies = through(vae)(images)  # as a model's decoder gives them
    found = judge(copies, names)
    assert found.copied.mean() > 0.95
    assert not found.turned.any()
    assert np.isnan(found.fidelity).all()
    swapped = judge(copies, names[1:] + names[:1])
    assert swapped.turned[swapped.copied].all()
    index = planted.of("general")[:200]
    fresh = planted.fresh_images(jax.random.key(0), index)
    again = judge(fresh, ["something else"] * len(fresh))
    assert again.copied.mean() < 0.02
    assert np.isnan(again.own).all()


def test_without_prompts_a_reference_is_anyones_own(references):
    images, _ = references
    judge = ReferenceJudge(images, [""] * len(images))
    found = judge(images[:3], ["a", "b", "c"])
    np.testing.assert_allclose(found.own, 1)
    assert found.copied.all()
    assert not found.turned.any()
    assert np.isnan(found.other).all()


def test_one_image_that_stands_there_twice(references, judge):
    images, names = references
    twice = ReferenceJudge([*images, images[3]], [*names, "another name of it"])
    assert twice.control.repeated == 1
    assert twice.threshold < 0.999
    assert twice(images[3][None], ["another name of it"]).copied.all()


def test_any_size(references, judge):
    images, names = references
    large = [np.kron(image, np.ones((1, 3, 2))) for image in images]
    assert resized(large[0]).shape == (3, 64, 64)
    found = ReferenceJudge(large, names)
    assert found.threshold == pytest.approx(judge.threshold, abs=0.02)
    assert found(np.stack(large[:5]), names[:5]).copied.all()


def test_too_few_or_too_much_alike(references):
    images, names = references
    with pytest.raises(ValueError, match=f"at least {FEWEST} of them .* got 7"):
        ReferenceJudge(images[:7], names[:7])
    with pytest.raises(ValueError, match="got 0"):
        ReferenceJudge([], [])
    with pytest.raises(ValueError, match="of 9 references only 0 differ from any other"):
        control(np.stack([images[0]] * 9))


def save(path, image):
    levels = np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    Image.fromarray(levels.transpose(1, 2, 0)).save(path)


def test_a_directory_or_a_table(references, tmp_path):
    images, names = references
    for i in range(9):
        save(tmp_path / f"{i}.png", images[i])
    read, prompts = read_references(tmp_path)
    assert prompts == [""] * 9
    np.testing.assert_allclose(np.stack(read), images[:9], atol=0.005)
    lines = ["file_name,text"] + [f"{i}.png,{names[i]}" for i in range(9)]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    assert read_references(tmp_path)[1] == list(names[:9])
    table = tmp_path / "table"
    table.mkdir()
    lines = ["prompt,file", f"{names[4]},../4.png"]
    (table / "r.csv").write_text("\n".join(lines) + "\n")
    read, prompts = read_references(table / "r.csv")
    assert prompts == [names[4]]
    np.testing.assert_allclose(read[0], images[4], atol=0.005)
    with pytest.raises(FileNotFoundError):
        read_references(tmp_path / "nothing")
    for name in ("3.png", "5.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"3\.png cannot .*; .*5\.png cannot .*: leave them out"):
        read_references(tmp_path)
