"""Methods that bear a paper's name, against PyTorch loops written from the public code's formulas.

The loops are on the diffusers network of the same directory, at the same noises, with torch's own
optimizers: autograd there decides what a gradient has, as it did for the authors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sharpjax as sj
from sharpjax import zoo
from sharpjax.mitigation import Levels, Problem, descend, sail_official, treat
from sharpjax.mitigation.baselines import EMBEDDING_STEPS, transition
from sharpjax.mitigation.optimizers import adam
from sharpjax.mitigation.sail_official import official_loss
from sharpjax.models.latent_diffusion import LatentDiffusion

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads of PyTorch spin while they wait: beside another test's they take minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Twin:
    """A PyTorch network of a directory, and what it predicts of a prompt at a timestep."""

    def __init__(self, directory, model, prompt, t):
        from diffusers import UNet2DConditionModel

        self.unet = UNet2DConditionModel.from_pretrained(directory, subfolder="unet").eval()
        self.unet.requires_grad_(False)
        self.t = t
        self.empty, self.context = (tensor(model.encode([text])) for text in ("", prompt))
        self.alpha, self.sigma = (float(f(t)) for f in (model.schedule.alpha, model.schedule.sigma))

    def difference(self, x, context=None):
        """Conditional less unconditional prediction of the noise."""
        context = self.context if context is None else context
        contexts = torch.cat([self.empty.expand(len(x), -1, -1), context.expand(len(x), -1, -1)])
        away, towards = self.unet(
            torch.cat([x, x]), self.t, encoder_hidden_states=contexts
        ).sample.chunk(2)
        return towards - away


def tensor(x):
    return torch.from_numpy(np.array(x, np.float32))


def lengths(x):
    return x.flatten(1).norm(dim=1)


def torch_sail(twin, noise, *, num_steps, penalty, scale=1.0):
    """The public loop: Adam, the direction's value of the start, its graph to the moving noise.

    `scale` makes the difference of what the network predicts the loss's.
    """
    x = noise.clone().requires_grad_(True)
    start = torch.cat([x])  # a copy of the values, which still leads to x
    optimizer = torch.optim.Adam([x], lr=0.05)
    losses = []
    for _ in range(num_steps):
        here = scale * twin.difference(start)
        here = here / lengths(here)[:, None, None, None]
        loss = lengths(scale * twin.difference(x + here)) + penalty * lengths(x)
        losses.append(loss.detach().numpy())
        loss.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return x.detach().numpy(), np.array(losses)


def cosines(moves, others):
    a, b = (np.asarray(m).reshape(len(m), -1) for m in (moves, others))
    return np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def tiny(stable_diffusion_directory):
    model = LatentDiffusion.from_pretrained(stable_diffusion_directory)
    noise = jax.random.normal(jax.random.key(1), (3, *model.shape))
    return model, Twin(stable_diffusion_directory, model, "cat dog", 981), noise


def levels(**values):
    return Levels({name: np.array([value, value]) for name, value in values.items()})


@pytest.mark.slow
@pytest.mark.parametrize(("penalty", "steps"), [(0.05, 10), (0.0, 4)])
def test_sail_goes_the_public_codes_way(tiny, penalty, steps):
    model, twin, noise = tiny
    pair = model.scores("cat dog", 981)
    expected, losses = torch_sail(twin, tensor(noise), num_steps=steps, penalty=penalty)
    ended = descend(
        official_loss("epsilon", penalty), pair, noise, threshold=1e-9, max_steps=steps,
        optimizer=adam(0.05),
    )  # fmt: skip
    np.testing.assert_allclose(ended.before, losses[0], rtol=1e-4)
    assert cosines(ended.point - noise, expected - np.asarray(noise)).min() > 0.9999
    np.testing.assert_allclose(ended.point, expected, atol=2e-3)  # a step is 0.05


@pytest.mark.slow
def test_the_start_says_where_and_the_moving_noise_how_fast(tiny):
    """Neither a direction that is held without a gradient, nor one of the moving noise."""
    model, twin, noise = tiny
    pair, x0 = model.scores("cat dog", 981), noise[0]
    x = x0 + 0.1
    moving = tensor(x)[None].requires_grad_(True)
    start = tensor(x0)[None] + (moving - moving.detach())
    here = twin.difference(start)
    loss = lengths(twin.difference(moving + here / lengths(here)))
    (expected,) = torch.autograd.grad(loss.sum(), [moving])
    found = jax.grad(lambda x: official_loss("epsilon", 0.0)(pair, x, x0)[0])(x)
    np.testing.assert_allclose(found, expected[0], rtol=1e-3, atol=1e-6)

    def held(x, start):
        here = -pair.sigma * pair.difference(start)
        there = -pair.sigma * pair.difference(x + here / jnp.linalg.norm(here))
        return jnp.linalg.norm(there)

    for other in (jax.grad(held)(x, x0), jax.grad(lambda x: held(x, x))(x)):
        assert np.abs(other - found).max() > 1e-2 * np.abs(found).max()


def test_the_branch_of_v_prediction_steps_the_other_way():
    """There -(alpha v - x)/sigma stands for the noise: its difference is s_D, not eps_D."""
    d, c = jnp.array([2.0, 1.0, -1.0]), 3.0
    pair = sj.ScorePair(lambda x: -x, lambda x: -x + d * (1 + c * x[0]), 0.6, 0.8)
    x = jnp.array([0.5, -0.2, 0.1])
    s = d * (1 + c * x[0])
    unit = s / jnp.linalg.norm(s)
    for kind, step, scale in (("epsilon", -unit, 0.8), ("v_prediction", unit, 1.0)):
        there = scale * jnp.linalg.norm(d * (1 + c * (x + step)[0]))
        value, _ = official_loss(kind, 0.0)(pair, x, x)
        # 1 + c (x + step) is a twentieth of its terms
        np.testing.assert_allclose(value, there, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.optimized  # third derivatives run for longer than they compile
@pytest.mark.filterwarnings("ignore:.*no longer look like draws")
def test_rounds_of_sail(tiny):
    """As the public loop: those first below the threshold, which grows where they are too few."""
    model, twin, _ = tiny
    pair, key = model.scores("cat dog", 981), jax.random.key(3)
    noise = jax.random.normal(jax.random.fold_in(key, 0), (8, *model.shape))
    _, losses = torch_sail(twin, tensor(noise), num_steps=10, penalty=0.05)
    threshold = float(np.sort(losses.min(axis=0))[2]) * (1 + 1e-5)  # three of eight get there
    options = {"threshold": threshold, "shape": model.shape, "raise_by": 0.05}
    found = sail_official(pair, key, num_noises=3, **options)
    first = (losses <= threshold).argmax(axis=0)
    taken = [i for i in np.lexsort((np.arange(8), first)) if losses[:, i].min() <= threshold]
    assert found.steps.tolist() == first[taken].tolist()
    np.testing.assert_allclose(found.before, losses[0, taken], rtol=1e-4)
    np.testing.assert_allclose(found.after, losses[first[taken], taken], rtol=1e-4)
    assert (found.outcome == "met").all()
    assert found.attempts.tolist() == [1, 1, 1]
    assert found.spent == np.sum(np.where(losses.min(axis=0) <= threshold, first, 9) + 1)

    more = sail_official(pair, key, num_noises=4, **options)
    np.testing.assert_array_equal(more.noise[:3], found.noise)
    assert more.attempts[3] == 2
    np.testing.assert_allclose(more.threshold[3], threshold + 0.05, rtol=1e-6)
    short = sail_official(pair, key, num_noises=4, retries=0, **options)
    assert short.outcome.tolist() == ["met"] * 3 + ["budget"]
    own = sail_official(pair, key, num_noises=3, threshold=threshold, noise=noise[:5])
    np.testing.assert_allclose(own.noise, found.noise, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_noises": 0}, "num_noises must be an integer >= 1, got 0"),
     ({"num_noises": 20, "retries": 1}, "20 noises are wanted of 8 candidates in 2 attempts"),
     ({"prediction_type": "sample"}, "must be epsilon or v_prediction, got 'sample'"),
     ({"penalty": -1.0}, "penalty must be a finite number >= 0, got -1.0"),
     ({"raise_by": np.inf}, "raise_by must be a finite number >= 0, got inf"),
     ({"threshold": 0.0}, "threshold must be a positive finite number, got 0.0"),
     ({"shape": 4}, "shape must be that of one noise, such as model.shape, got 4"),
     ({"key": None}, "pass key=jax.random.key")],
)  # fmt: skip
def test_what_sail_does_not_take(options, message):
    pair = sj.ScorePair(jnp.negative, lambda x: -2 * x, 0.6, 0.8)
    given = {"threshold": 1.0, "shape": (3,), "key": jax.random.key(0)} | options
    with pytest.raises(ValueError, match=message):
        sail_official(pair, given.pop("key"), **given)


@pytest.mark.slow
def test_prompt_embedding(tiny):
    """All noises as one vector, the start token's gradient zeroed but decaying, ten updates."""
    model, twin, noise = tiny
    context = twin.context.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([context], lr=0.05)
    for _ in range(10):
        loss = torch.norm(twin.difference(tensor(noise), context))
        (context.grad,) = torch.autograd.grad(loss, [context])
        context.grad[:, 0] = 0
        optimizer.step()
    problem = Problem(
        model, "cat dog", noise, jax.random.key(2), 3.0, 50, levels(score_difference=1e-9), None
    )
    assert EMBEDDING_STEPS == 10
    found = treat("prompt_embedding", problem, 1.0)
    moved, start = found.context[0], model.encode(["cat dog"])[0]
    expected = context.detach().numpy()[0]
    np.testing.assert_allclose(moved, expected, atol=5e-3)
    assert cosines((moved - start)[None], (expected - start)[None])[0] > 0.9999
    np.testing.assert_allclose(moved[0], start[0] * (1 - 0.05 * 0.01) ** 10, rtol=1e-5)
    before = np.linalg.norm(jax.vmap(model.scores("cat dog", 981).difference)(noise))
    assert found.details[0]["before"] == pytest.approx(before, rel=1e-4)
    assert found.details[0]["steps"] == 10


@pytest.mark.slow
def test_dynamic_transition(tiny):
    """Unconditional, or away from the prompt, until the difference was shortest; then as usual."""
    model, _, noise = tiny
    problem = Problem(model, "cat dog", noise, jax.random.key(2), 3.0, 12, levels(), None)
    for opposite in (0.0, 2.0):
        found = treat("dynamic_guidance", problem, opposite)
        assert found.guidance.shape == (3, 12)
        images = model.sample(
            ["cat dog"], noise=noise[:1], num_steps=12, guidance=found.guidance[0]
        )
        # a loop over the steps that finds the transition on its way
        x, seen, weight, weights = noise[0], [], -opposite, []
        grid, alphas, sigmas = model.schedule.levels(12)
        for i, t in enumerate(grid):
            pair = model.scores("cat dog", int(t))
            away, towards = pair.both(x)
            seen.append(float(sigmas[i] * jnp.linalg.norm(towards - away)))
            if len(seen) > 2 and seen[-3] > seen[-2] < seen[-1]:
                weight = 3.0
            weights.append(weight)
            score = away + weight * (towards - away)
            clean = (x + sigmas[i] ** 2 * score) / alphas[i]
            x = alphas[i + 1] * clean - sigmas[i + 1] * sigmas[i] * score
        assert found.guidance[0].tolist() == weights
        step = transition(np.array(seen))
        assert found.details[0]["transition"] == (None if step == 12 else step)
        np.testing.assert_allclose(images[0], model.decode(x[None])[0], atol=1e-3)
        unguided = (found.guidance == 0).sum(axis=1)
        np.testing.assert_array_equal(
            found.evaluations, unguided if opposite == 0 else 0 * unguided
        )


@pytest.mark.slow
@pytest.mark.optimized  # a network of real size runs for longer than it compiles
def test_sail_on_the_bundled_model():
    """Ten steps from the same noises: the moves are one, and the noises get shorter, not longer."""
    folder, model = zoo.find("drawings"), sj.load("drawings")
    caption, noise = "jolly french fries", jax.random.normal(jax.random.key(0), (2, *model.shape))
    twin, pair = Twin(folder, model, caption, 981), model.scores(caption, 981)
    expected, losses = torch_sail(  # eps_D = alpha v_D
        twin, tensor(noise), num_steps=10, penalty=0.05, scale=twin.alpha
    )
    ended = descend(
        official_loss("epsilon", 0.05), pair, noise, threshold=1e-9, max_steps=10,
        optimizer=adam(0.05),
    )  # fmt: skip
    np.testing.assert_allclose(ended.before, losses[0], rtol=1e-4)
    found = cosines(ended.point - noise, expected - np.asarray(noise))
    before, ours, theirs = (
        np.linalg.norm(np.asarray(x).reshape(2, -1), axis=1) for x in (noise, ended.point, expected)
    )
    print(f"cosine of the moves {found.min():.4f}; lengths {before.mean():.1f} -> "
          f"{ours.mean():.1f} (ours), {theirs.mean():.1f} (public loop)")  # fmt: skip
    assert found.min() > 0.999
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert (ours < before).all()
