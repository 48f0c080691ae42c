"""Copies of captions: the measure on images whose answer is known, the verdict, the table."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.stats
from scipy.ndimage import gaussian_filter

from sharpjax.datasets.openmoji import PlantedPictograms, planted_pictograms
from sharpjax.detection.truth import read_truths, write_truths
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.replication import (
    NUM_NEGATIVES,
    CaptionTruth,
    Control,
    control,
    judge,
    load_images,
    measured_concepts,
)
from sharpjax.report import captions
from sharpjax.similarity import outline_correlation, outlines, pixel_correlation

PICTOGRAMS = planted_pictograms()
INDEX = PICTOGRAMS.of("memorized")[:12]
FIXED = PICTOGRAMS.fixed_images(INDEX)


# --- similarity --------------------------------------------------------------------------------


def test_outline_correlation_against_a_naive_twin():
    """Pixel by pixel, for two images: luminance, central differences, Gaussian, Pearson."""

    def naive(image):
        light = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        h, w = light.shape
        strength = np.zeros((h, w))
        for i in range(h):
            for j in range(w):
                up, down, left, right = (
                    max(i - 1, 0),
                    min(i + 1, h - 1),
                    max(j - 1, 0),
                    min(j + 1, w - 1),
                )
                dy = (light[down, j] - light[up, j]) / (down - up)
                dx = (light[i, right] - light[i, left]) / (right - left)
                strength[i, j] = np.hypot(dx, dy)
        return gaussian_filter(strength, 1).ravel()

    a, b = FIXED[0].astype(float), FIXED[1].astype(float)
    expected = np.corrcoef(naive(a), naive(b))[0, 1]
    np.testing.assert_allclose(outline_correlation(a[None], b[None])[0, 0], expected, atol=1e-12)


def test_background_and_colour_hardly_count_for_outlines_but_do_for_pixels():
    """The reason for the measure: the same pictogram, in the same place, on another background."""
    how = jax.tree.map(lambda field: field[INDEX], PICTOGRAMS.fixed)
    shifted = dataclasses.replace(how, background=how.background[::-1], hue=how.hue + 0.3)
    other = dataclasses.replace(PICTOGRAMS, fixed=_at(shifted)).fixed_images(INDEX)
    own = np.diag(outline_correlation(other, FIXED))
    assert own.min() > 0.9
    assert np.diag(pixel_correlation(other, FIXED)).min() < own.min()


def _at(how):
    """Renderings of all concepts, those of ``INDEX`` replaced."""
    return jax.tree.map(lambda a, b: a.at[INDEX].set(b), PICTOGRAMS.fixed, how)


def test_a_flat_image_is_like_nothing():
    flat = np.zeros((1, 3, 64, 64))
    np.testing.assert_array_equal(outlines(flat), 0)
    np.testing.assert_array_equal(outline_correlation(flat, FIXED), 0)


# --- verdicts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("copies", "verdict"),
    [(8, "memorized"), (4, "memorized"), (3, "between"), (1, "between"), (0, "clean")],
)
def test_verdict(copies, verdict):
    """Eight samples, so many of them noisy copies and the others fresh renderings."""
    rng = np.random.default_rng(copies)
    fresh = np.concatenate(
        [PICTOGRAMS.fresh_images(jax.random.key(k), INDEX[:1]) for k in range(8)]
    )
    noisy = FIXED[0] + 0.1 * rng.normal(size=(8, *FIXED[0].shape))
    samples = np.concatenate([noisy[:copies], fresh[copies:]])
    concept = PICTOGRAMS.concepts[INDEX[0]]
    truth = judge(samples, concept, FIXED[0], fresh[:3], 0.75)
    assert (truth.num_copies, truth.num_samples) == (copies, 8)
    assert truth.verdict == verdict
    assert (truth.caption, truth.group, truth.level) == (concept.caption, "memorized", 1)
    assert truth.low <= truth.copy_rate <= truth.high
    own = outline_correlation(samples, FIXED[:1])[:, 0]
    assert truth.similarity == pytest.approx(own.mean())
    # the t interval of eight values
    half = 2.364624 * own.std(ddof=1) / np.sqrt(8)
    assert truth.similarity_high - truth.similarity == pytest.approx(half, rel=1e-5)
    assert np.isnan(truth.concept_rate)


def test_the_threshold_is_of_images_seen_through_the_autoencoder(stable_diffusion_directory):
    """Samples are decoded latents: renderings are compared as the decoder would show them."""
    model = LatentDiffusion.from_pretrained(stable_diffusion_directory)
    few = PICTOGRAMS.of("control")[:8]
    pictograms = PlantedPictograms(
        tuple(PICTOGRAMS.concepts[i] for i in few), PICTOGRAMS.pictures[few],
        jax.tree.map(lambda field: field[few], PICTOGRAMS.fixed),
    )  # fmt: skip
    found = control(model, pictograms, repeats=2)
    index, key = np.arange(8), jax.random.key(2022)
    fixed = pictograms.fixed_images(index)
    fresh = [pictograms.fresh_images(jax.random.fold_in(key, r), index) for r in range(2)]

    def similarity(images, *, seen):
        images = model.decode(model.encode_image(images)) if seen else images
        pairs = zip(images, fixed, strict=True)
        return [outline_correlation(a[None], b[None])[0, 0] for a, b in pairs]

    others, raw = (np.concatenate([similarity(x, seen=s) for x in fresh]) for s in (True, False))
    np.testing.assert_allclose(found.others, others, atol=1e-5)
    np.testing.assert_allclose(found.copies, similarity(fixed, seen=True), atol=1e-5)
    assert found.threshold == pytest.approx(np.quantile(others, 0.99), abs=1e-5)
    # without the autoencoder it would be another
    assert abs(found.threshold - np.quantile(raw, 0.99)) > 0.05
    assert found.copies.max() < 0.99


def test_who_is_measured():
    index = measured_concepts(PICTOGRAMS)
    groups = [PICTOGRAMS.concepts[i].group for i in index]
    assert {g: groups.count(g) for g in groups} == {
        "memorized": 144, "hot": 100, "general": NUM_NEGATIVES, "held-out": 60,
    }  # fmt: skip
    assert len(set(index.tolist())) == len(index)


# --- files and tables --------------------------------------------------------------------------


def truths():
    rng = np.random.default_rng(0)
    rows = []
    for i in measured_concepts(PICTOGRAMS)[::7]:
        concept = PICTOGRAMS.concepts[i]
        copies = int(rng.integers(0, 9))
        rows.append(
            CaptionTruth(
                concept.caption,
                concept.group,
                concept.level,
                8,
                copies,
                0.1,
                0.9,
                *rng.random(4).round(4).tolist(),
                0.5,
            )
        )
    return rows


def test_written_and_read(tmp_path):
    rows = truths()
    write_truths(tmp_path, rows)
    assert read_truths(tmp_path, CaptionTruth) == rows
    with pytest.raises(FileNotFoundError, match=r"no ground_truth.csv in"):
        read_truths(tmp_path / "none", CaptionTruth)
    text = (tmp_path / "ground_truth.csv").read_text()
    (tmp_path / "ground_truth.csv").write_text(text.replace("similarity_low", "low_similarity"))
    with pytest.raises(ValueError, match=r"is damaged: KeyError\('similarity_low'\)"):
        read_truths(tmp_path, CaptionTruth)


def test_table_counts_verdicts_by_level():
    groups = {}
    for t in truths():
        groups.setdefault(f"{t.group} x{t.level}" if t.level > 0 else t.group, []).append(t)
    assert {"held-out", "memorized x1"} <= groups.keys()  # some of a level, some of none
    table = captions.level_table(truths())
    rows = {row[0]: row[1:] for row in zip(*(c.cells for c in table.columns), strict=True)}
    assert rows.keys() == groups.keys()
    for name, members in groups.items():
        verified = sum(t.num_copies >= 4 for t in members)  # of 8
        clean = sum(t.num_copies == 0 for t in members)
        n = len(members)
        low, high = scipy.stats.binomtest(verified, n).proportion_ci(method="wilson")
        mean = lambda field, members=members: np.mean([getattr(t, field) for t in members])
        assert rows[name] == (
            str(n), f"{verified} ({verified / n:.2f} [{low:.2f}, {high:.2f}])",
            str(n - verified - clean), str(clean), f"{mean('num_copies') / 8:.3f}",
            f"{mean('similarity'):.3f} | {mean('other_similarity'):.3f}",
            f"{mean('concept_rate'):.3f}",
        )  # fmt: skip


def test_control_line_says_what_the_threshold_does():
    limits = Control(0.7, np.linspace(0, 0.8, 101), np.array([0.6, 0.9, 0.9, 0.95]))
    assert limits.found == 0.75
    line = captions.control_line(limits)
    assert "above 0.700" in line
    assert "75.0% are above" in line


def test_images_are_read_as_they_were_written(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_images([tmp_path / "a.png"])
    assert image.shape == (1, 3, 64, 64)
    np.testing.assert_allclose((image[0].transpose(1, 2, 0) + 1) * 127.5, pixels, atol=1e-4)


def test_grid(tmp_path):
    from PIL import Image

    rows = [t for t in truths() if t.group == "memorized"][:3]
    (tmp_path / "images").mkdir()
    for i, truth in enumerate(rows):
        index = np.array([PICTOGRAMS.captions.index(truth.caption)])
        for j in range(4):
            image = PICTOGRAMS.fixed_images(index)[0] if j == 0 else np.zeros((3, 64, 64))
            levels = np.round((image.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
            Image.fromarray(levels).save(tmp_path / "images" / f"{i:05d}-{j}.png")
    path = captions.write_grid(tmp_path, rows, PICTOGRAMS, 0.7)
    with Image.open(path) as picture:
        red = np.asarray(picture.convert("RGB")).astype(int)
    # the copy, and nothing else, has a frame in the colour of copies
    assert ((red[..., 0] > 180) & (red[..., 1] < 80) & (red[..., 2] < 80)).any()
