"""How the judge of things and makers is made."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharpjax.datasets.planted_drawings import PlantedDrawings, planted_drawings
from sharpjax.mitigation.drawing_judge import NOTHING, DrawingJudge, labels
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.networks.concept_classifier import ConceptClassifier
from sharpjax.recipes.drawings_vae import through
from sharpjax.training import Settings, train
from sharpjax.training.drawing_classification import DrawingClassification, nothings

CLASSIFIER_SETTINGS = Settings(
    steps=1500, batch_size=128, learning_rate=2e-3, decay=0.6, warmup=100, weight_decay=1e-2
)


def train_drawings_classifier(
    directory: str | Path,
    vae: AutoencoderKL,
    settings: Settings = CLASSIFIER_SETTINGS,
    **options: Any,
) -> tuple[ConceptClassifier, PlantedDrawings]:
    """Train it on fresh renderings of every drawing, or go on where `directory` stopped."""
    planted = planted_drawings()
    pictures, radii = jnp.asarray(planted.pictures), jnp.asarray(planted.radii)
    task = DrawingClassification(pictures, radii, vae)
    classifier = _create(labels(planted), settings.seed)
    return train(classifier, task, directory, settings, **options), planted


@nnx.jit(static_argnums=(0, 1))
def _create(names: tuple[str, ...], seed: int) -> ConceptClassifier:
    return ConceptClassifier(labels=names, rngs=nnx.Rngs(seed))


def accuracy(
    classifier: ConceptClassifier, vae: AutoencoderKL, planted: PlantedDrawings
) -> dict[str, dict[str, float]]:
    """Shares of right things and makers on renderings never seen, two of each drawing.

    `rendered` as they are, `reconstructed` through the autoencoder; of `nothing`, both the share
    that is called so.
    """
    judge = DrawingJudge(planted, through(vae), 1.0, classifier)
    of, count = planted.drawings, len(planted.radii)
    drawings = np.tile(np.arange(count), 2)
    images = planted.render_anywhere(jax.random.key(12345), drawings)
    things = [of.names[d // len(of.makers)] for d in drawings]
    makers = [of.makers[d % len(of.makers)] for d in drawings]
    none = np.asarray(jax.jit(nothings)(jax.random.key(54321), jnp.asarray(images[:count])))
    shown = {
        "rendered": (images, things, makers),
        "reconstructed": (through(vae)(images), things, makers),
        NOTHING: (none, [NOTHING] * count, [NOTHING] * count),
    }
    found = {}
    for name, (pictures, *right) in shown.items():
        answers = judge.shown(pictures)
        found[name] = {
            what: float(np.mean([a == b for a, b in zip(own, wanted, strict=True)]))
            for what, own, wanted in zip(("thing", "maker"), answers, right, strict=True)
        }
    return found
