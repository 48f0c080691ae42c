"""The bundled text-to-image model: PyTorch draws its pictures, its truth comes out again."""

import hashlib
import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import sharpjax as sj
from sharpjax import zoo
from sharpjax.checkpoints.component import from_pretrained
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.datasets.planted_drawings import SPLIT_PATH, planted_drawings
from sharpjax.mitigation.drawing_judge import labels, read_control
from sharpjax.mitigation.screen import FREE
from sharpjax.mitigation.screen_calibration import SCREEN_NAME, ScreenCalibration
from sharpjax.recipes.drawings_vae import psnr
from sharpjax.report import drawings_truth
from sharpjax.runs.cases import clean_prompts, verified_cases
from sharpjax.runs.truth_of_drawings import load_judge, measured, truth

FOLDER = zoo.find("drawings")
PLANTED = planted_drawings()


@pytest.fixture(scope="module")
def model():
    return sj.load("drawings")


@pytest.fixture(scope="module")
def truths():
    return sj.bench.drawings().truths


@pytest.mark.slow
def test_pytorch_draws_the_same_pictures(model):
    """From the same noise: half precision files, read into float32 on both sides."""
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["jolly french fries", "animal on teal"]
    noise = np.random.default_rng(0).standard_normal((2, *model.shape), dtype=np.float32)
    guidance = model.default_guidance
    theirs = pipeline(
        prompts, latents=torch.tensor(noise), num_inference_steps=20, guidance_scale=guidance,
        output_type="np", height=64, width=64,
    ).images  # fmt: skip
    ours = model.sample(prompts, noise=noise, num_steps=20)
    ours = (np.clip(ours, -1, 1).transpose(0, 2, 3, 1) + 1) / 2
    # 20 steps amplify rounding; a level of a pixel is 1/255
    assert np.abs(ours - theirs).max() < 1 / 255


def test_size_and_files():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20 * 2**20
    kinds = {path.suffix for path in files}
    assert kinds <= {".safetensors", ".json", ".txt", ".csv", ".md", ".png", ""}
    assert "CC BY-SA 4.0" in (FOLDER / "LICENSE").read_text()
    assert (FOLDER / "captions.csv").read_bytes() == SPLIT_PATH.read_bytes()
    for manifest in FOLDER.glob("*/manifest.sha256.json"):
        for name, digest in json.loads(manifest.read_text()).items():
            assert hashlib.sha256((manifest.parent / name).read_bytes()).hexdigest() == digest


def test_the_screen_is_of_this_model_and_of_the_tuning_part(model, truths):
    """What `sharpjax mitigate` takes by default: nothing that it is reported on has set it."""
    screen = ScreenCalibration.load(FOLDER / SCREEN_NAME)
    screen.check(fingerprint(FOLDER), 50, model.default_guidance)
    assert screen.free == FREE
    assert list(screen.memorized) == [case.condition for case in verified_cases(FOLDER)]
    known = {t.caption: t.part for t in truths}
    assert {known[prompt] for prompt in screen.memorized} == {"tuning"}
    assert len(screen.clean) == len(clean_prompts(FOLDER))
    missed = screen.missed_by("screened", 0.1)
    assert missed.value < missed.upper < 0.2


@pytest.mark.slow
def test_autoencoder_reconstructs(model):
    for kind in ("general", "held-out"):
        images = PLANTED.fresh_images(jax.random.key(5), PLANTED.of(kind)[:40])
        assert psnr(model.vae, images).mean() > 27
    # latents of what the network was shown have unit variance
    images = PLANTED.fresh_images(jax.random.key(6), PLANTED.of("general")[:300])
    assert np.asarray(model.encode_image(images)).std() == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_classifier_knows_things_and_makers():
    classifier = from_pretrained(FOLDER / "classifier")
    assert classifier.labels == labels(PLANTED)
    index = np.arange(0, len(PLANTED.radii), 7)
    images = PLANTED.render_anywhere(jax.random.key(99), index)
    answers = jax.jit(lambda c, x: c(x).argmax(1))(classifier, jnp.asarray(images))
    assert np.mean(np.asarray(answers) == index) > 0.9


def test_truth_is_complete_and_follows_from_its_counts(truths):
    counts = measured(PLANTED)
    assert [t.caption for t in truths] == [PLANTED.captions[i].caption for i in counts]
    assert [t.samples for t in truths] == list(counts.values())
    alarm = read_control(FOLDER / "judge.json").high
    for t, i in zip(truths, counts, strict=True):
        known = PLANTED.captions[i]
        assert (t.kind, t.q, t.level, t.part) == (known.kind, known.q, known.level, known.part)
        assert (t.verdict == "memorized") == (t.low > alarm)


def test_what_is_repeated_is_copied_and_controls_are_clean(truths):
    """What the model is for; the figures themselves are in its card."""

    def shares(kind, **properties):
        own = [
            t for t in truths
            if t.kind == kind and all(getattr(t, k) == v for k, v in properties.items())
        ]  # fmt: skip
        return np.mean([t.verdict == "memorized" for t in own])

    assert shares("verbatim", level=2000) >= 0.8
    assert shares("template") >= 0.8
    assert shares("mixed", q=0.9) >= 0.8
    for control in ("hot", "general", "held-out"):
        assert shares(control) == 0  # these have no image of their own
    another = Counter(t.kind for t in truths if t.verdict == "another")
    assert another["hot"] + another["general"] <= 0.02 * len(truths)


def test_card_says_what_the_table_says(truths):
    lines = [line for line in (FOLDER / "README.md").read_text().splitlines() if "|" in line]
    card = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    for row in drawings_truth.kind_table(truths).shown()[1]:
        assert [cell.text for cell in row] in card


@pytest.mark.slow
@pytest.mark.optimized  # samples for longer than it compiles
def test_truth_comes_out_again(model, truths):
    """One caption that is memorized and one that is not, from other noises."""
    judge, limits = load_judge(FOLDER, PLANTED, model.vae)
    place = {c.caption: i for i, c in enumerate(PLANTED.captions)}
    copied = max(truths, key=lambda t: t.copies / t.samples)
    clean = next(t for t in truths if t.kind == "general" and t.verdict == "clean")
    for t in (copied, clean):
        images = np.clip(model.sample([t.caption] * 4, jax.random.key(5), num_steps=25), -1, 1)
        again = truth(images, place[t.caption], PLANTED, judge, false_alarm=limits.high)
        assert again.copies == (4 if t is copied else 0)
