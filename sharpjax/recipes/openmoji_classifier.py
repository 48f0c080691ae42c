"""How the judge of the pictograms' concepts is made."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharpjax.datasets.openmoji import PlantedPictograms, planted_pictograms
from sharpjax.models.autoencoder_kl import AutoencoderKL
from sharpjax.models.concept_classifier import ConceptClassifier, probabilities
from sharpjax.recipes.openmoji_vae import reconstruct
from sharpjax.training import Classification, Settings, train

CLASSIFIER_SETTINGS = Settings(
    steps=1500, batch_size=128, learning_rate=2e-3, decay=0.6, warmup=100, weight_decay=1e-2
)


def train_openmoji_classifier(
    directory: str | Path,
    vae: AutoencoderKL,
    settings: Settings = CLASSIFIER_SETTINGS,
    *,
    checkpoint_every: int = 100,
) -> tuple[ConceptClassifier, PlantedPictograms]:
    """Train it on fresh renderings of every pictogram, or go on where ``directory`` stopped."""
    pictograms = planted_pictograms()
    task = Classification(jnp.asarray(pictograms.pictures), vae)
    classifier = _create(pictograms.captions, settings.seed)
    trained = train(classifier, task, directory, settings, checkpoint_every=checkpoint_every)
    return trained, pictograms


@nnx.jit(static_argnums=(0, 1))
def _create(labels: tuple[str, ...], seed: int) -> ConceptClassifier:
    return ConceptClassifier(labels=labels, rngs=nnx.Rngs(seed))


def accuracy(
    classifier: ConceptClassifier, vae: AutoencoderKL, pictograms: PlantedPictograms
) -> dict[str, float]:
    """Fraction of right answers on renderings never seen, four of each concept.

    Their keys are of no training step.  ``rendered`` as they are, ``reconstructed`` through the
    autoencoder.
    """
    right: dict[str, list[np.ndarray]] = {"rendered": [], "reconstructed": []}
    everything = np.arange(len(pictograms.concepts))
    for repetition in range(4):
        key = jax.random.fold_in(jax.random.key(12345), repetition)
        images = pictograms.fresh_images(key, everything)
        for start in range(0, len(images), 100):
            batch = jnp.asarray(images[start : start + 100])
            label = everything[start : start + 100]
            for name, shown in (("rendered", batch), ("reconstructed", reconstruct(vae, batch))):
                answer = np.asarray(probabilities(classifier, shown)).argmax(axis=1)
                right[name].append(answer == label)
    return {name: float(np.concatenate(values).mean()) for name, values in right.items()}
