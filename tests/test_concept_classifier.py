"""The judge of concepts: it learns, it is saved and loaded, and it refuses what makes no sense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sharpjax.datasets.openmoji import planted_pictograms
from sharpjax.models.autoencoder_kl import AutoencoderKL
from sharpjax.models.checkpoints import from_pretrained, save_pretrained
from sharpjax.models.concept_classifier import ConceptClassifier, probabilities
from sharpjax.training import Classification, Settings, train

LABELS = ("star", "moon", "sun", "rain")
PICTOGRAMS = planted_pictograms()


@nnx.jit
def tiny_vae():
    return AutoencoderKL(
        sample_size=64, block_out_channels=(4,), norm_num_groups=2, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        rngs=nnx.Rngs(0),
    )  # fmt: skip


@nnx.jit
def tiny_classifier():
    return ConceptClassifier(labels=LABELS, block_out_channels=(8, 16, 16), rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_learns_four_pictograms(tmp_path):
    """Of 40 answers a quarter would be right by chance; a half is 3.7 standard errors above."""
    index = PICTOGRAMS.of("general")[:4]
    task = Classification(jnp.asarray(PICTOGRAMS.pictures[index]), tiny_vae())
    settings = Settings(steps=60, batch_size=16, learning_rate=1e-2, warmup=5, ema=0.8)
    model = train(tiny_classifier(), task, tmp_path / "run", settings, checkpoint_every=60)
    answers = [
        np.asarray(probabilities(model, PICTOGRAMS.fresh_images(jax.random.key(k), index)))
        for k in range(100, 110)
    ]
    right = np.mean([answer.argmax(axis=1) == np.arange(4) for answer in answers])
    assert right > 0.5
    np.testing.assert_allclose(np.sum(answers, axis=2), 1, atol=1e-5)


@pytest.mark.slow
def test_some_of_every_batch_is_reconstructed():
    task = Classification(jnp.asarray(PICTOGRAMS.pictures[:10]), tiny_vae())
    batch = jax.jit(lambda task: task.batch(jax.random.key(0), 16))
    (images, label), group = batch(task)
    assert list(np.flatnonzero(group)) == [0, 4, 8, 12]
    everything = Classification(task.pictures, task.vae, reconstructed=1)
    (again, same), _ = batch(everything)
    np.testing.assert_array_equal(label, same)
    np.testing.assert_allclose(images[::4], again[::4], atol=1e-4)
    assert np.abs(images[1] - again[1]).max() > 0.1  # a network that was not trained


def test_saved_and_loaded(tmp_path):
    labels = tuple(f"concept {i}" for i in range(1000))  # more than any other list of a network
    model = ConceptClassifier(labels=labels, block_out_channels=(8, 16), rngs=nnx.Rngs(0))
    save_pretrained(model, tmp_path / "classifier")
    loaded = from_pretrained(tmp_path / "classifier")
    assert loaded.labels == labels
    images = jax.random.normal(jax.random.key(0), (3, 3, 64, 64))
    values = jax.jit(lambda model: model(images))
    np.testing.assert_array_equal(values(model), values(loaded))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(labels=("one",)), "two or more different names"),
        (dict(labels=("one", "one")), "two or more different names"),
        (dict(block_out_channels=(12,)), "multiples of 8"),
        (dict(block_out_channels=()), "multiples of 8"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ConceptClassifier(**(dict(labels=LABELS) | changes), rngs=nnx.Rngs(0))
