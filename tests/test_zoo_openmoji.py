"""The bundled text-to-image model: PyTorch draws its pictures, its truth comes out again."""

import csv
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import sharpjax as sj
from sharpjax import replication, zoo
from sharpjax.datasets.openmoji import SPLIT_PATH, planted_pictograms
from sharpjax.detection.images import find_images
from sharpjax.detection.truth import read_truths
from sharpjax.models.checkpoints import from_pretrained
from sharpjax.models.fingerprint import fingerprint
from sharpjax.recipes.openmoji_vae import psnr
from sharpjax.report import captions

FOLDER = zoo.find("openmoji")
PICTOGRAMS = planted_pictograms()


@pytest.fixture(scope="module")
def model():
    return sj.load("openmoji")


@pytest.fixture(scope="module")
def truths():
    return read_truths(FOLDER, replication.CaptionTruth)


def test_pytorch_draws_the_same_pictures(model):
    """From the same noise: half precision files, read into float32 on both sides."""
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    index = PICTOGRAMS.of("memorized")[-1], PICTOGRAMS.of("general")[0]
    prompts = [PICTOGRAMS.captions[i] for i in index]
    noise = np.random.default_rng(0).standard_normal((2, *model.shape), dtype=np.float32)
    theirs = pipeline(
        prompts, latents=torch.tensor(noise), num_inference_steps=20, guidance_scale=3.0,
        output_type="np", height=64, width=64,
    ).images  # fmt: skip
    ours = model.sample(prompts, noise=noise, num_steps=20, guidance=3.0)
    ours = (np.clip(ours, -1, 1).transpose(0, 2, 3, 1) + 1) / 2
    # 20 steps amplify rounding; a level of a pixel is 1/255
    assert np.abs(ours - theirs).max() < 1 / 255


def test_size_and_files():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    kinds = {path.suffix for path in files}
    assert kinds <= {".safetensors", ".json", ".txt", ".csv", ".md", ".png", ""}
    assert "CC BY-SA 4.0" in (FOLDER / "LICENSE").read_text()
    assert (FOLDER / "captions.csv").read_bytes() == SPLIT_PATH.read_bytes()


def test_autoencoder_reconstructs(model):
    for group in ("general", "held-out"):
        images = PICTOGRAMS.fresh_images(jax.random.key(5), PICTOGRAMS.of(group)[:40])
        assert psnr(model.vae, images).mean() > 25
    # latents of what the network was shown have unit variance
    images = PICTOGRAMS.fresh_images(jax.random.key(6), PICTOGRAMS.of("general"))
    latents = model.encode_image(images)
    assert np.asarray(latents).std() == pytest.approx(1, abs=0.05)


def test_truth_is_complete(truths):
    index = replication.measured_concepts(PICTOGRAMS)
    assert [t.caption for t in truths] == [PICTOGRAMS.captions[i] for i in index]
    for truth, i in zip(truths, index, strict=True):
        concept = PICTOGRAMS.concepts[i]
        assert (truth.group, truth.level) == (concept.group, concept.level)
        assert 0 <= truth.low <= truth.copy_rate <= truth.high <= 1
        assert truth.num_samples == 8


def test_memorization_is_verified_and_controls_are_clean(truths):
    """What the model is for; the figures themselves are in its card."""
    verdicts = {
        group: [t.verdict for t in truths if t.group == group]
        for group in ("memorized", "hot", "general")
    }
    assert verdicts["memorized"].count("memorized") >= 60
    for control in ("hot", "general"):
        assert verdicts[control].count("memorized") <= 0.02 * len(verdicts[control])
    rate = [
        np.mean([t.copy_rate for t in truths if (t.group, t.level) == ("memorized", level)])
        for level in (1, 2, 3, 4)
    ]
    assert rate[0] < rate[1] < rate[2] < rate[3]


def test_card_says_what_the_table_says(truths):
    card = (FOLDER / "README.md").read_text()
    lines = {line.split("|")[1].strip(): line for line in card.splitlines() if "|" in line}
    for name, rows in captions.by_level(truths):
        cells = [cell.strip() for cell in lines[name].split("|")][2:-1]
        verdicts = [truth.verdict for truth in rows]
        columns = ("copy_rate", "similarity", "other_similarity", "concept_rate")
        means = [f"{np.mean([getattr(t, column) for t in rows]):.3f}" for column in columns]
        assert cells[0] == str(len(rows))
        assert cells[1].split()[0] == str(verdicts.count("memorized"))
        assert cells[2:] == [str(verdicts.count(v)) for v in ("between", "clean")] + means
    assert f"{sum(t.verdict == 'memorized' for t in truths)} captions are verified" in card


@pytest.mark.slow
@pytest.mark.optimized  # samples for longer than it compiles
def test_truth_comes_out_again(model, truths, tmp_path):
    """One caption that is memorized and one that is not, by the recipe of the table."""
    memorized = next(t for t in truths if t.verdict == "memorized" and t.level == 16)
    clean = next(t for t in truths if t.group == "general")
    place = [truths.index(memorized), truths.index(clean)]
    index = replication.measured_concepts(PICTOGRAMS)
    again, limits = replication.measure(
        model, PICTOGRAMS, tmp_path / "run", fingerprint=fingerprint(FOLDER), index=index[place],
        num_samples=4, num_steps=25,
    )  # fmt: skip
    assert again[0].copy_rate >= 0.75
    assert again[1].copy_rate <= 0.25
    labelled = find_images(tmp_path / "run/images")
    assert [case.source for case in labelled] == ["memorized"] * 4 + ["general"] * 4
    verdicts = [case.verdict for case in labelled]
    assert verdicts[:4].count("memorized") == again[0].num_copies
    assert verdicts[4:].count("memorized") == again[1].num_copies
    assert set(verdicts) <= {"memorized", "between", "clean"}
    with (FOLDER / "ground_truth.csv").open() as file:
        assert next(csv.DictReader(file))["caption"] == truths[0].caption
    assert limits.found > 0.95


def test_classifier_knows_the_concepts():
    classifier = from_pretrained(FOLDER / "classifier")
    assert classifier.labels == PICTOGRAMS.captions
    index = np.arange(0, 917, 9)
    images = PICTOGRAMS.fresh_images(jax.random.key(99), index)
    answers = jax.jit(lambda c, x: c(x).argmax(1))(classifier, jnp.asarray(images))
    right = np.asarray(answers) == index
    assert right.mean() > 0.9


def test_manifests():
    for manifest in FOLDER.glob("*/manifest.sha256.json"):
        for name, digest in json.loads(manifest.read_text()).items():
            assert hashlib.sha256((manifest.parent / name).read_bytes()).hexdigest() == digest
