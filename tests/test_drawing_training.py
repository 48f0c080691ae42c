"""What the drawings' networks are shown: how often, what is repeated, and what they predict."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sharpjax.datasets.planted_drawings import planted_drawings
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.networks.concept_classifier import ConceptClassifier, probabilities
from sharpjax.recipes.drawings import SCHEDULE, drawings_tokenizer
from sharpjax.schedules import Schedule
from sharpjax.training import Settings, train
from sharpjax.training.drawing_classification import DrawingClassification, nothings
from sharpjax.training.drawing_denoising import DrawingDenoising

N, BATCHES = 64, 80
PLANTED = planted_drawings()
NOISE = Schedule.create(
    "scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="epsilon"
)


@nnx.jit
def small_vae():
    return AutoencoderKL(
        sample_size=64,
        block_out_channels=(4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=2,
        mid_block_add_attention=False,
        scaling_factor=0.5,
        rngs=nnx.Rngs(0),
    )


@pytest.fixture(scope="module")
def task():
    return DrawingDenoising.create(PLANTED, drawings_tokenizer(PLANTED), small_vae(), NOISE)


@pytest.fixture(scope="module")
def drawn(task):
    """`(row, images)` of many batches."""
    draw = jax.jit(lambda key: task.examples(key, N))
    pairs = [draw(jax.random.key(i)) for i in range(BATCHES)]
    return [np.concatenate(parts) for parts in zip(*pairs, strict=True)]


def captions_of(task):
    return [PLANTED.captions[i] for i in np.asarray(task.draws.captions)]


@pytest.mark.slow
def test_captions_are_drawn_as_often_as_planned(task, drawn):
    draws = np.array([c.draws for c in captions_of(task)], float)
    assert (draws > 0).all()
    assert len(draws) == sum(c.draws > 0 for c in PLANTED.captions)
    expected = N * BATCHES * draws / draws.sum()
    count = np.bincount(drawn[0], minlength=len(draws))
    # stratified draws vary less than Poisson's, but the rarest are expected once or twice
    assert np.abs((count - expected) / np.sqrt(expected)).max() < 5
    for kind in ("verbatim", "mixed", "template", "hot", "general"):
        total = expected[[c.kind == kind for c in captions_of(task)]].sum()
        found = count[[c.kind == kind for c in captions_of(task)]].sum()
        assert found == pytest.approx(total, abs=4 * np.sqrt(total)), kind


@pytest.mark.slow
def test_what_is_planted_repeats_and_nothing_else_does(task, drawn):
    row, images = drawn
    place = {i: m for m, i in enumerate(PLANTED.planted.tolist())}
    fixed = PLANTED.fixed_images()
    mine = np.array([place.get(int(i), -1) for i in np.asarray(task.draws.captions)])[row]
    same = np.zeros(len(row), bool)
    has = mine >= 0
    # Two programs, maybe compiled with other optimizations: a place off by 64 pixels' rounding
    # moves an edge's value by 1e-4. Another pose differs by 1.
    same[has] = np.abs(images[has] - fixed[mine[has]]).max(axis=(1, 2, 3)) < 1e-3
    q = np.array([c.q for c in captions_of(task)])[row]
    assert same[q == 1].all()
    assert not same[q == 0].any()
    for share in (0.2, 0.5, 0.7, 0.9):
        n = np.sum(q == share)
        assert same[q == share].mean() == pytest.approx(
            share, abs=4 * np.sqrt(share * (1 - share) / n)
        )
    fresh = images[~same]
    assert len(np.unique(fresh.reshape(len(fresh), -1), axis=0)) == len(fresh)


@pytest.mark.slow
def test_batches(task):
    (x, t, ids, target), group = jax.jit(lambda key: task.batch(key, N))(jax.random.key(7))
    assert x.shape == target.shape == (N, 4, 16, 16)
    # one timestep in each 64th of the grid; rounding may move an edge
    np.testing.assert_allclose(np.sort(t) * N // 1000, np.arange(N), atol=1)
    row, images = jax.jit(lambda key: task.examples(key, N))(
        jax.random.split(jax.random.key(7), 6)[0]
    )
    np.testing.assert_array_equal(group, task.draws.group[row])
    dropped = (ids == task.empty_ids).all(axis=1)
    np.testing.assert_array_equal(ids[~dropped], task.input_ids[row][~dropped])
    assert 0 < dropped.sum() < N / 3  # a tenth
    # the target is the noise: without it the posterior's sample is left, its std e^0 and less
    alpha, sigma = (np.asarray(f(t))[:, None, None, None] for f in (NOISE.alpha, NOISE.sigma))
    x0 = (np.asarray(x) - sigma * target) / alpha
    posterior = jax.jit(task.vae.encode)(images)
    score = (x0 / 0.5 - posterior.mean) / posterior.std
    clear = np.asarray(t) < 500  # dividing by alpha magnifies rounding
    assert np.asarray(score)[clear].std() == pytest.approx(1, abs=0.03)
    assert np.asarray(target).std() == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_identity_tells_tasks_apart(task):
    base = task.identity()
    assert base == task.identity()
    changes = (
        {"caption_dropout": 0.2},
        {"pictures": task.pictures.at[0, 40, 40, 0].add(1)},
        {"input_ids": task.input_ids.at[0, 1].add(1)},
        {"schedule": SCHEDULE},
    )
    for change in changes:
        assert dataclasses.replace(task, **change).identity() != base


# --- the classifier ----------------------------------------------------------------------------


def of_drawings(count):
    return DrawingClassification(
        jnp.asarray(PLANTED.pictures[:count]), jnp.asarray(PLANTED.radii[:count]), small_vae()
    )


@pytest.mark.slow
def test_learns_three_drawings_and_nothing(tmp_path):
    """Of 40 answers a quarter would be right by chance; a half is 3.7 standard errors above."""
    task = of_drawings(3)
    model = ConceptClassifier(
        labels=("star", "moon", "sun", "nothing"), block_out_channels=(8, 16, 16), rngs=nnx.Rngs(0)
    )
    settings = Settings(steps=240, batch_size=16, learning_rate=1e-2, warmup=5, ema=0.8)
    model = train(model, task, tmp_path / "run", settings, checkpoint_every=240)
    shown, index = [], np.arange(3)
    for k in range(100, 110):
        images = PLANTED.render_anywhere(jax.random.key(k), index)
        nothing = np.asarray(nothings(jax.random.key(k), jnp.asarray(images)))[:1]
        shown.append(np.asarray(probabilities(model, np.concatenate([images, nothing]))))
    right = np.mean([answer.argmax(axis=1) == np.arange(4) for answer in shown])
    assert right > 0.5
    np.testing.assert_allclose(np.sum(shown, axis=2), 1, atol=1e-5)


@pytest.mark.slow
def test_some_of_every_batch_is_reconstructed_and_some_shows_nothing():
    task = of_drawings(10)
    (images, label), group = jax.jit(lambda task: task.batch(jax.random.key(0), 24))(task)
    assert list(np.flatnonzero(group == 2)) == [0, 8, 16]
    assert (np.asarray(label)[group == 2] == 10).all()
    assert list(np.flatnonzero(group == 1)) == [1, 4, 7, 10, 13, 19, 22]
    assert (np.asarray(label)[group != 2] < 10).all()
    assert np.abs(np.asarray(images)).max() <= 1
