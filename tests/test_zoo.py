"""The bundled model: PyTorch loads it, its data are real digits, its truth comes out again."""

import jax
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers import UNet2DModel as TorchUNet2DModel

import sharpjax as sj
from sharpjax import zoo
from sharpjax.datasets.mnist import planted_digits
from sharpjax.runs.truth_of_conditions import judge, read_truths, thresholds, verdict
from sharpjax.similarity import pixel_correlation


@pytest.fixture(scope="module")
def model():
    return sj.load("mnist")


def test_pytorch_loads_it_with_the_same_numbers(model):
    theirs = TorchUNet2DModel.from_pretrained(zoo.find("mnist"), subfolder="unet").eval()
    scheduler = DDIMScheduler.from_pretrained(zoo.find("mnist"), subfolder="scheduler")
    np.testing.assert_allclose(
        model.schedule.alphas**2, scheduler.alphas_cumprod, rtol=2e-4, atol=1e-7
    )  # diffusers multiplies a thousand float32 factors
    assert scheduler.config.prediction_type == model.schedule.prediction_type
    x = np.random.default_rng(0).standard_normal((3, 1, 28, 28), dtype=np.float32)
    t, labels = np.array([981, 500, 20]), np.array([0, 33, 60])
    with torch.no_grad():
        expected = theirs(torch.tensor(x), torch.tensor(t), class_labels=torch.tensor(labels))
    ours = jax.jit(lambda unet: unet(x, t, class_labels=labels))(model.unet)
    error = np.abs(np.asarray(ours) - expected.sample.numpy()).max()
    assert error < 1e-4 * np.abs(expected.sample.numpy()).max()


@pytest.mark.slow
def test_training_set_is_the_planted_digits():
    digits = planted_digits()
    training_set = sj.detection.TrainingSet.load(zoo.find("mnist"))
    np.testing.assert_array_equal(training_set.conditions, digits.conditions)
    np.testing.assert_allclose(training_set.images, digits.images, atol=1e-6)


def test_ground_truth_is_complete_and_its_thresholds_are_those_of_the_training_set(model):
    truths = read_truths(zoo.find("mnist"))
    assert tuple(truth.condition for truth in truths) == model.conditions
    training_set = sj.detection.TrainingSet.load(zoo.find("mnist"))
    found = thresholds(training_set, model.conditions)
    for truth, size in zip(truths, np.asarray(training_set.set_sizes), strict=True):
        assert truth.threshold == pytest.approx(found[truth.condition.split()[0]], abs=1e-6)
        assert truth.set_size == size
    # of all other images of the training set a few more than of the own set are alike by chance
    edges = np.cumsum([0, *np.asarray(training_set.set_sizes)])
    rates = []
    for index, truth in enumerate(truths):
        if truth.set_size == 256:
            between = pixel_correlation(training_set.of(index), training_set.images)
            between[np.arange(256), edges[index] + np.arange(256)] = -1
            limit = found[truth.condition.split()[0]]  # exact: a pair of images may lie on it
            rates.append(np.mean(between.max(axis=1) > limit))
    assert len(rates) == 10
    assert np.mean(rates) == pytest.approx(0.012, abs=0.001)
    verdicts = [truth.verdict for truth in truths]
    assert verdicts.count("memorized") >= 10
    assert verdicts.count("clean") >= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["7 x1a", "7 x64"])
def test_ground_truth_comes_out_again(model, name):
    index = model.conditions.index(name)
    truth = read_truths(zoo.find("mnist"))[index]
    samples = model.sample(
        [name] * truth.num_samples,
        jax.random.fold_in(jax.random.key(0), index),
        batch_size=truth.num_samples,
    )
    training_set = sj.detection.TrainingSet.load(zoo.find("mnist"))
    again = judge(samples, name, training_set.of(index), truth.threshold)
    others = [i for i in range(training_set.num_conditions) if i != index]
    foreign = np.concatenate([np.asarray(training_set.of(i)) for i in others])
    own, other = (
        pixel_correlation(samples, x).max(axis=1) for x in (training_set.of(index), foreign)
    )
    turned = int(np.sum((other > truth.threshold) & (other > own)))
    assert verdict(turned, len(samples)) == "clean"  # copies of nobody else's image
    assert abs(again.num_copies - truth.num_copies) <= 1  # a sample at the threshold may flip
    assert again.mean_similarity == pytest.approx(truth.mean_similarity, abs=2e-3)
