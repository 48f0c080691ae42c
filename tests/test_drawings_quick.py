"""The quick world: codec, perceptron and exact score of the drawings' captions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sharpjax as sj
from sharpjax.checkpoints import from_pretrained, save_pretrained
from sharpjax.datasets.planted_drawings import PlantedDrawings, examples, planted_drawings
from sharpjax.densities import LowRankMixture
from sharpjax.networks.caption_mlp import CaptionMLP
from sharpjax.networks.linear_codec import LinearCodec
from sharpjax.networks.mixture_denoiser import MixtureDenoiser
from sharpjax.recipes.drawings_quick import quick_world, train_quick, word_numbers
from sharpjax.schedules import Schedule
from sharpjax.training import Settings

LATENTS = 12


def some_captions():
    """A few captions of every kind."""
    everything = planted_drawings()
    chosen, counts = [], {}
    for c in everything.captions:
        key = (c.kind, c.breadth, bool(c.ground), c.q)
        if c.breadth != "group" and counts.setdefault(key, 0) < 2:
            counts[key] += 1
            chosen.append(c)
    return PlantedDrawings.create(chosen, everything.drawings)


@pytest.fixture(scope="module")
def world():
    return quick_world(some_captions(), latents=LATENTS, renderings=3)


class TestCodec:
    def images(self, n=60):
        rng = np.random.default_rng(0)
        low = rng.normal(size=(n, 5)) @ (rng.normal(size=(5, 3 * 64)) * [[5], [3], [2], [1], [0.5]])
        return (low + 0.3).reshape(n, 3, 8, 8).astype(np.float32)

    def test_it_is_the_principal_components(self):
        images = self.images()
        codec = LinearCodec.fit(images, 5)
        z = np.asarray(codec.encode(jnp.asarray(images)).mean)
        assert z.shape == (60, 5, 1, 1)
        np.testing.assert_allclose(codec.decode(jnp.asarray(z)), images, atol=2e-4)  # rank 5
        z = z[..., 0, 0].astype(np.float64)
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
        covariance = np.cov(z.T, ddof=0)
        assert np.trace(covariance) / 5 == pytest.approx(1, rel=1e-3)
        off = covariance - np.diag(np.diag(covariance))
        assert np.abs(off).max() < 1e-3 * covariance.max()
        # each keeps the root of its standard deviation: variance over that is constant
        scale = np.linalg.svd((images - images.mean(0)).reshape(60, -1), compute_uv=False)[:5]
        ratio = np.diag(covariance) / scale
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)

    def test_what_makes_none(self):
        with pytest.raises(ValueError, match="more than 60 square images"):
            LinearCodec.fit(self.images(), 60)
        with pytest.raises(ValueError, match="power of 2"):
            LinearCodec(sample_size=6, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="scaling_factor must be 1"):
            LinearCodec(scaling_factor=2.0, rngs=nnx.Rngs(0))


class TestPerceptron:
    def network(self, **changes):
        fields = {"in_channels": 4, "out_channels": 4, "words": ((0, 1), (0, 2), (2,))}
        fields |= {"num_class_embeds": 4, "width": 16, "depth": 2} | changes
        return CaptionMLP(**fields, rngs=nnx.Rngs(0))

    def test_a_caption_is_the_sum_of_its_words(self):
        network = self.network()
        network.exit.kernel[...] = jax.random.normal(jax.random.key(0), network.exit.kernel.shape)
        x, t = jax.random.normal(jax.random.key(1), (1, 4, 1, 1)), jnp.int32(300)
        one, other = (network(x, t, jnp.array([label])) for label in (0, 1))
        table = network.words.embedding
        old = table[...]
        table[...] = old.at[1].set(old[2])  # now both captions have the same words
        np.testing.assert_allclose(network(x, t, jnp.array([0])), other, rtol=1e-5)
        assert np.abs(np.asarray(one - other)).max() > 1e-3
        table[...] = 1e3 * old  # no caption has no words
        none = network(x, t, jnp.array([3]))
        table[...] = old
        np.testing.assert_allclose(network(x, t, jnp.array([3])), none)

    def test_sizes_that_contradict_each_other(self):
        with pytest.raises(ValueError, match="one more than the 3 captions"):
            self.network(num_class_embeds=3)
        with pytest.raises(ValueError, match="at least one word each"):
            self.network(words=((0,), (), (1,)))
        with pytest.raises(ValueError, match="sample_size must be 1"):
            self.network(sample_size=2)

    def test_there_and_back(self, tmp_path):
        codec = LinearCodec(sample_size=4, latent_channels=3, rngs=nnx.Rngs(1))
        for number, module in enumerate((self.network(), codec)):
            back = from_pretrained(save_pretrained(module, tmp_path / str(number)))
            assert back.config == module.config
            leaves = [jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (module, back)]
            assert all(np.array_equal(*pair) for pair in zip(*leaves, strict=True))


def test_the_exact_denoiser_is_the_score_of_its_mixture():
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(40, 5, 1, 1)).astype(np.float32), np.repeat([0, 1], 20)
    mixture = LowRankMixture.fit(points, labels, rank=2, floor=0.01)
    schedule, shares = Schedule.create(), [[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]]
    network = MixtureDenoiser(mixture, shares, schedule)
    x, t = jnp.asarray(points[:3]), jnp.array([10, 500, 900])
    found = network(x, t, jnp.array([0, 1, 2]))
    for i in range(3):
        alpha, sigma = schedule.alpha(t[i]), schedule.sigma(t[i])
        density = mixture.reweighted(shares[i]).noised(alpha, sigma)
        np.testing.assert_allclose(found[i], -sigma * density.score(x[i]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
class TestWorld:
    def test_shares_are_those_of_the_draws(self, world):
        """Against a count of the draws that training makes."""
        task, planted = world.task(), world.planted
        shares = world.components.shares(planted)
        np.testing.assert_allclose(shares[:-1][[c.draws > 0 for c in planted.captions]].sum(1), 1)
        assert shares[-1].sum() == pytest.approx(1)
        n, k = 40_000, len(world.components.drawings)
        row, drawing, repeats = map(np.asarray, task.draws.draw(jax.random.key(0), n))
        fixed = k + np.asarray(task.draws.fixed)[row]
        component = np.where(repeats, fixed, np.asarray(task.component)[row, drawing])
        assert component.min() >= 0
        count = np.bincount(component, minlength=shares.shape[1])
        expected = n * shares[-1]
        assert (count[expected == 0] == 0).all()
        error = (count - expected)[expected > 0] / np.sqrt(expected[expected > 0])
        assert np.abs(error).max() < 5

    def test_captions_are_drawn_from_what_they_show(self, world):
        planted, rows = world.planted, world.components.rows
        for i, caption in enumerate(planted.captions):
            own = set(np.flatnonzero(rows[i] >= 0).tolist())
            if caption.kind in ("verbatim", "template"):
                assert not own
            else:
                assert own == set(planted.pools[i].tolist())

    def test_exact_score_is_of_the_bank_and_the_fixed_images(self, world):
        """At the first step the score difference of a verbatim caption is that of its one point."""
        exact, planted = world.exact(rank=2, floor=0.01), world.planted
        i = next(i for i in planted.planted if planted.captions[i].kind == "verbatim")
        name = planted.captions[i].caption
        point = world.fixed[planted.planted.tolist().index(i)].ravel()
        pair, t = exact.scores(name, 981), 981
        alpha, sigma = float(exact.schedule.alpha(t)), float(exact.schedule.sigma(t))
        x = jax.random.normal(jax.random.key(1), exact.shape)
        wanted = (alpha * point - np.asarray(x).ravel()) / (alpha**2 * 0.01 + sigma**2)
        np.testing.assert_allclose(pair.conditional(x).ravel(), wanted, rtol=1e-4, atol=1e-5)
        assert exact.image_shape == (3, 64, 64)
        image = exact.sample([name], jax.random.key(2), num_steps=20)
        fixed = exact.decode(jnp.asarray(point).reshape(1, LATENTS, 1, 1))
        assert np.corrcoef(image.ravel(), fixed.ravel())[0, 1] > 0.98

    def test_training_resumes_and_every_command_reads_the_model(self, world, tmp_path):
        settings = Settings(steps=6, batch_size=8, warmup=1)
        model = train_quick(tmp_path / "run", world, settings, checkpoint_every=3)
        again = train_quick(tmp_path / "run", world, settings, checkpoint_every=3)
        x = jax.random.normal(jax.random.key(0), model.shape)
        name = model.conditions[0]
        np.testing.assert_array_equal(
            model.scores(name, 500).both(x), again.scores(name, 500).both(x)
        )
        loaded = sj.load(model.save_pretrained(tmp_path / "model"))
        assert loaded.conditions == model.conditions
        np.testing.assert_array_equal(
            loaded.scores(name, 500).both(x), model.scores(name, 500).both(x)
        )
        images = loaded.sample([name, name], jax.random.key(0), num_steps=4, guidance=3.0)
        assert images.shape == (2, 3, 64, 64)


def test_words_are_numbered_by_frequency():
    assert word_numbers(("pear", "red pear", "pear by me")) == ((0,), (1, 0), (0, 2, 3))


def test_examples_count_every_draw():
    planted = some_captions()
    assert examples(planted.captions) == sum(c.draws for c in planted.captions)
