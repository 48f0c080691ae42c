"""What the text-to-image model is shown: how often, which images repeat, and what it predicts."""

import jax
import numpy as np
import pytest
from flax import nnx

from sharpjax.datasets.openmoji import planted_pictograms
from sharpjax.models.autoencoder_kl import AutoencoderKL
from sharpjax.schedules import Schedule
from sharpjax.training import CaptionDenoising, train_tokenizer

N, BATCHES = 64, 80
PICTOGRAMS = planted_pictograms()
DRAWN = [c for c in PICTOGRAMS.concepts if c.frequency]


@pytest.fixture(scope="module")
def task():
    @nnx.jit
    def vae():
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

    tokenizer = train_tokenizer(PICTOGRAMS.captions, length=24)
    return CaptionDenoising.create(PICTOGRAMS, tokenizer, vae(), Schedule.create())


@pytest.fixture(scope="module")
def drawn(task):
    """``(concept, images)`` of many batches."""
    draw = jax.jit(lambda key: task.examples(key, N))
    pairs = [draw(jax.random.key(i)) for i in range(BATCHES)]
    return [np.concatenate(parts) for parts in zip(*pairs, strict=True)]


@pytest.mark.slow
def test_captions_are_drawn_by_frequency(drawn):
    frequency = np.array([c.frequency for c in DRAWN], float)
    expected = N * BATCHES * frequency / frequency.sum()
    count = np.bincount(drawn[0], minlength=len(DRAWN))
    # stratified draws vary less than Poisson's, but the rarest are expected once or twice
    assert np.abs((count - expected) / np.sqrt(expected)).max() < 5
    for level in (1, 16):
        for group in ("memorized", "hot"):
            which = [c.group == group and c.level == level for c in DRAWN]
            total = expected[which].sum()
            assert count[which].sum() == pytest.approx(total, abs=4 * np.sqrt(total))


@pytest.mark.slow
def test_memorized_images_repeat_and_no_other_does(drawn):
    concept, images = drawn
    index = [i for i, c in enumerate(PICTOGRAMS.concepts) if c.frequency]
    fixed = PICTOGRAMS.fixed_images(np.array(index))
    repeats = np.array([c.group == "memorized" for c in DRAWN])[concept]
    assert 0.1 < repeats.mean() < 0.5
    np.testing.assert_allclose(images[repeats], fixed[concept[repeats]], atol=1e-5)
    fresh = images[~repeats]
    assert len(np.unique(fresh.reshape(len(fresh), -1), axis=0)) == len(fresh)
    apart = np.abs(fresh - fixed[concept[~repeats]]).max(axis=(1, 2, 3))
    assert apart.min() > 0.05


def test_batches(task):
    (x, t, ids, target), group = jax.jit(lambda key: task.batch(key, N))(jax.random.key(7))
    assert x.shape == target.shape == (N, 4, 16, 16)
    # one timestep in each 64th of the grid; rounding may move an edge
    np.testing.assert_allclose(np.sort(t) * N // 1000, np.arange(N), atol=1)
    concept, images = jax.jit(lambda key: task.examples(key, N))(
        jax.random.split(jax.random.key(7), 6)[0]
    )
    np.testing.assert_array_equal(group, task.group[concept])
    dropped = (ids == task.empty_ids).all(axis=1)
    np.testing.assert_array_equal(ids[~dropped], task.input_ids[concept][~dropped])
    assert 0 < dropped.sum() < N / 3  # a tenth
    # the target is the noise: without it the posterior's sample is left, its std e^0 and less
    alpha, sigma = (np.asarray(f(t))[:, None, None, None] for f in
                    (task.schedule.alpha, task.schedule.sigma))  # fmt: skip
    x0 = (np.asarray(x) - sigma * target) / alpha
    posterior = jax.jit(task.vae.encode)(images)
    score = (x0 / 0.5 - posterior.mean) / posterior.std
    clear = np.asarray(t) < 500  # dividing by alpha magnifies rounding
    assert np.asarray(score)[clear].std() == pytest.approx(1, abs=0.03)
    assert np.asarray(target).std() == pytest.approx(1, abs=0.02)


def test_groups_are_reported_by_level(task):
    levels = (1, 2, 3, 4, 8, 16)
    assert task.groups == (*(f"memorized x{n}" for n in levels), "hot", "general")


def test_identity_tells_tasks_apart(task):
    import dataclasses

    base = task.identity()
    assert base == task.identity()
    assert base["captions"] == len(DRAWN) == 544
    changes = (
        {"caption_dropout": 0.2},
        {"pictures": task.pictures.at[0, 40, 40, 0].add(1)},
        {"input_ids": task.input_ids.at[0, 1].add(1)},
        {"schedule": Schedule.create(beta_end=0.02)},
    )
    for change in changes:
        assert dataclasses.replace(task, **change).identity() != base
