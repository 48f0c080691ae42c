"""The classifier of concepts: it is saved and loaded, and it refuses what makes no sense."""

import jax
import numpy as np
import pytest
from flax import nnx

from sharpjax.checkpoints.component import from_pretrained, save_pretrained
from sharpjax.networks.concept_classifier import ConceptClassifier

LABELS = ("star", "moon", "sun", "rain")


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
