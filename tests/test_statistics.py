"""Statistics of memorization beyond the first step, each against a closed form or a naive twin."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial

from sharpjax import Gaussian, ScorePair
from sharpjax.detection import statistics
from sharpjax.detection.statistics import STATISTICS
from sharpjax.detection.trajectory import Trajectory, follow

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
ALPHA, SIGMA = 0.6, 0.8
SHAPE = (3, 2, 2)


def linear_pair(dtype=jnp.float64, shape=SHAPE):
    """Scores that are Gaussians', as functions of an image; and their matrices."""
    d = int(np.prod(shape))
    a, b = RNG.standard_normal((2, d, d))
    u = Gaussian(
        jnp.asarray(RNG.standard_normal(d), dtype), jnp.asarray(a @ a.T / d + np.eye(d), dtype)
    )
    c = Gaussian(
        jnp.asarray(RNG.standard_normal(d), dtype),
        jnp.asarray(b @ b.T / d + 0.1 * np.eye(d), dtype),
    )
    u, c = u.noised(ALPHA, SIGMA), c.noised(ALPHA, SIGMA)
    pair = ScorePair(Partial(_as_image, u), Partial(_as_image, c), ALPHA, SIGMA)
    return u, c, pair, jnp.asarray(RNG.standard_normal(shape), dtype)


def _as_image(density, x):
    return density.score(x.ravel()).reshape(x.shape)


def _shifted(score, x):
    return score(x) + x


def a_path(steps=5, shape=SHAPE):
    states = RNG.standard_normal((steps + 1, *shape))
    u, c = RNG.standard_normal((2, steps, *shape))
    return Trajectory(*map(jnp.asarray, (states, u, c, np.arange(steps)[::-1], RNG.random(steps))))


@pytest.mark.usefixtures("x64")
class TestClosedForms:
    def test_curvature_difference(self):
        """From the dense matrices; no pixel of the reversed pair is sharpened."""
        u, c, pair, x = linear_pair()
        off = SIGMA * np.array(c.hessian(x.ravel()) - u.hessian(x.ravel()))
        pixels = -np.diag(off).reshape(SHAPE).sum(axis=0)
        np.fill_diagonal(off, 0)
        # a pixel's standard error is at most the sum of its channels', ||column without diagonal||
        # / sqrt(probes) each; the mean over pixels is no worse, and relu's bias half of it
        error = np.linalg.norm(off, axis=0).sum() / pixels.size / np.sqrt(20_000)
        assert pixels.min() > 5 * error
        reversed_pair = ScorePair(pair.conditional, pair.unconditional, ALPHA, SIGMA)
        found, nothing = (
            jax.jit(
                lambda key, pair=pair: statistics.curvature_difference(
                    pair, x, key=key, num_probes=20_000
                )
            )(jax.random.key(0))
            for pair in (pair, reversed_pair)
        )
        assert found == pytest.approx(pixels.mean(), abs=4 * error)
        assert nothing == 0

    def test_diagonal_distance(self):
        u, c, pair, x = linear_pair()
        exact = np.diag(np.asarray(c.hessian(x.ravel()) - u.hessian(x.ravel())))
        found = jax.jit(
            lambda key: statistics.diagonal_distance(pair, x, key=key, num_probes=20_000)
        )(jax.random.key(0))
        off = np.array(c.hessian(x.ravel()) - u.hessian(x.ravel()))
        np.fill_diagonal(off, 0)
        # entry i has the standard error ||row i without its diagonal|| / sqrt(probes)
        error = np.linalg.norm(off, axis=1).mean() / np.sqrt(20_000)
        assert found == pytest.approx(np.abs(exact).mean(), abs=4 * error)

    def test_diagonal_of_diagonal_matrices_needs_one_probe(self):
        """Where the condition opens one pixel and closes another, and within a pixel too."""
        a = np.ones(SHAPE)
        b = a + np.array([0.5, 0.25, -0.125])[:, None, None] * np.array([[1.0, -1.0], [2.0, -0.5]])
        u, c = (Partial(jnp.multiply, -jnp.asarray(diagonal)) for diagonal in (a, b))
        pair, key = ScorePair(u, c, ALPHA, SIGMA), jax.random.key(0)
        found = statistics.diagonal_distance(pair, jnp.ones(SHAPE), key=key, num_probes=1)
        assert found == pytest.approx(np.abs(a - b).mean(), rel=1e-12)
        # sums over channels are .625 (1, -1, 2, -.5), of which two count
        found = statistics.curvature_difference(pair, jnp.ones(SHAPE), key=key, num_probes=1)
        assert found == pytest.approx(SIGMA * 0.625 * 3 / 4, rel=1e-12)

    @pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0, 0.1)])
    def test_guidance_alignment(self, weights):
        """The published sum, of the networks' noises; and ours is its terms."""
        _, _, first, x = linear_pair()
        _, _, later, _ = linear_pair()
        (u, c), (late_u, late_c) = (
            [-SIGMA * torch.tensor(np.asarray(s(x))) for s in (p.unconditional, p.conditional)]
            for p in (first, later)
        )
        cosine = float(torch.nn.functional.cosine_similarity(late_u, late_c - late_u, dim=0).mean())
        length = float((c - u).norm())
        found = jax.jit(statistics.guidance_alignment)(first, later, x, alignment_weights=weights)
        assert found == pytest.approx(weights[0] * length + weights[1] * cosine, rel=1e-10)
        terms = jax.jit(statistics.standardised_alignment)(first, later, x)
        np.testing.assert_allclose(terms, [cosine, length / SIGMA], rtol=1e-10)
        again = statistics.guidance_alignment(
            first, later, x, alignment_weights=weights, terms=terms
        )
        assert again == pytest.approx(float(found), rel=1e-12)

    def test_guidance_alignment_of_v_predictions_in_the_public_code(self):
        """Its cosine is of v, hence of s_u + x; its length that of the noises over sigma^2."""
        _, _, pair, x = linear_pair()
        u, c = (
            torch.tensor(np.asarray(-(s(x) + x) * SIGMA / ALPHA))
            for s in (pair.unconditional, pair.conditional)
        )
        cosine = torch.nn.functional.cosine_similarity(u, c - u, dim=0).mean()
        score_u, score_c = ((ALPHA * v - torch.tensor(np.asarray(x))) / SIGMA**2 for v in (u, c))
        shifted = ScorePair(
            Partial(_shifted, pair.unconditional), Partial(_shifted, pair.conditional), ALPHA, SIGMA
        )
        found = statistics.standardised_alignment(pair, shifted, x)
        assert found[0] == pytest.approx(float(cosine), rel=1e-10)
        assert found[1] * SIGMA / SIGMA**2 == pytest.approx(float((score_c - score_u).norm()))

    def test_p_laplacian(self):
        """Of an isotropic Gaussian at distance r: -(d-1)/r, P3 of the identities."""
        d = int(np.prod(SHAPE))
        u = Gaussian(jnp.zeros(d), jnp.eye(d))
        pair = ScorePair(Partial(_as_image, u), Partial(_as_image, u), 0.99, 0.14)
        z = jnp.asarray(RNG.standard_normal(SHAPE))
        exact = statistics.p_laplacian(pair, z, key=jax.random.key(0), method="exact")
        assert exact == pytest.approx(-(d - 1) / (0.99 * np.linalg.norm(z)), rel=1e-10)
        # the flux is the mean over the ball: E (d-1)/|y|, by Monte Carlo in the ball
        flux = statistics.p_laplacian(pair, z, key=jax.random.key(0), num_directions=100_000)
        radius = 0.14 * np.sqrt(d)
        y = RNG.standard_normal((200_000, d))
        y *= (radius * RNG.random(200_000) ** (1 / d) / np.linalg.norm(y, axis=1))[:, None]
        samples = -(d - 1) / np.linalg.norm(0.99 * np.asarray(z).ravel() + y, axis=1)
        # standard error of the flux: d/R times that of a cosine, at most 1/sqrt(d) each
        error = np.sqrt(d) / radius / np.sqrt(100_000)
        assert flux == pytest.approx(samples.mean(), abs=4 * error)


S_D = (
    "score_difference", "hessian_score_difference", "hessian_score", "trace_difference",
    "curvature_difference", "diagonal_distance", "guidance_alignment", "standardised_alignment",
)  # fmt: skip


@pytest.mark.parametrize("name", S_D)
def test_statistics_of_the_difference_are_refused_in_pure_noise(name):
    """At alpha = 0 every one of them is 0, or noise, for every condition."""
    silent = ScorePair(Partial(jnp.negative), Partial(jnp.negative), 0.0, jnp.float32(1))
    options = {"key": jax.random.key(0)} if STATISTICS[name].where in ("level", "end") else {}
    pairs = [silent] * (2 if STATISTICS[name].where == "noise" else 1)
    told = "the alignment of guidance" if len(pairs) == 2 else name
    with pytest.raises(ValueError, match=rf"{told} is .* 0 for every condition at alpha = 0, .*ta"):
        STATISTICS[name].function(*pairs, jnp.ones(SHAPE), **options)


@pytest.mark.parametrize("name", [*S_D, "effective_dimension"])
@pytest.mark.parametrize("given", [jnp.negative, ScorePair(None, jnp.negative, 0.6, 0.8)])
def test_what_is_no_pair_of_scores_is_refused(name, given):
    options = {"key": jax.random.key(0)} if STATISTICS[name].where in ("level", "end") else {}
    pairs = [given] * (2 if STATISTICS[name].where == "noise" else 1)
    with pytest.raises(ValueError, match=r"pair must be a sharpjax\.ScorePair of two scores, such"):
        STATISTICS[name].function(*pairs, jnp.ones(SHAPE), **options)


def _eps(weights, x, tanh):
    """A noise that is nobody's gradient: its Jacobian is not symmetric."""
    return weights[1] @ tanh(weights[0] @ x.reshape(-1))


def test_curvature_difference_as_published(x64):
    """Against reverse mode in PyTorch, with s = -eps and the same 16 signs."""
    d, key = int(np.prod(SHAPE)), jax.random.key(5)
    weights = RNG.standard_normal((2, 2, d, d))
    x = RNG.standard_normal(SHAPE)

    def score(w, y):
        return -_eps(w, y, jnp.tanh).reshape(SHAPE) / SIGMA

    pair = ScorePair(*(Partial(score, jnp.asarray(w)) for w in weights), ALPHA, SIGMA)
    found = statistics.curvature_difference(pair, jnp.asarray(x), key=key)

    z = torch.tensor(x, requires_grad=True)
    eps_u, eps_c = (_eps(torch.tensor(w), z, torch.tanh).reshape(SHAPE) for w in weights)
    s, diagonal = -(eps_c - eps_u), torch.zeros(SHAPE, dtype=torch.float64)
    for k in range(16):
        signs = jax.random.rademacher(jax.random.fold_in(key, k), SHAPE, jnp.float64)
        v = torch.tensor(np.asarray(signs))
        (product,) = torch.autograd.grad((s * v).sum(), z, retain_graph=True)
        diagonal += v * product / 16
    assert found == pytest.approx(float((-diagonal.sum(dim=0)).relu().mean()), rel=1e-12)


@pytest.mark.usefixtures("x64")
class TestPaths:
    def test_score_difference(self):
        path = a_path()
        norms = [
            s * np.linalg.norm(c - u)
            for s, u, c in zip(path.sigmas, path.unconditional, path.conditional, strict=True)
        ]
        assert statistics.path_score_difference(path) == pytest.approx(np.mean(norms), rel=1e-12)
        found = statistics.path_score_difference(path, num_steps=2)
        assert found == pytest.approx(np.mean(norms[:2]), rel=1e-12)

    def test_last_step_difference(self):
        path = a_path()
        expected = np.mean((np.asarray(path.conditional[-1]) - path.unconditional[-1]) ** 2)
        assert statistics.last_step_difference(path) == pytest.approx(float(expected), rel=1e-12)

    def test_step_displacement(self):
        path = a_path()
        lengths = [np.linalg.norm(b - a) for a, b in itertools.pairwise(np.asarray(path.states))]
        np.testing.assert_allclose(statistics.step_displacement(path), lengths, rtol=1e-12)
        mean, std = RNG.random((2, 5)) + 0.5
        expected = max((length - m) / s for length, m, s in zip(lengths, mean, std, strict=True))
        found = statistics.largest_step(path.displacements, mean=mean, std=std)
        assert found == pytest.approx(expected, rel=1e-12)


def test_combined_alignment_standardises_each_term():
    calibration = RNG.standard_normal((500, 2)) * [0.1, 30] + [0.5, 100]
    terms = np.array([[0.6, 130.0], [0.5, 100.0]])
    fit = calibration.mean(0), calibration.std(0, ddof=1)
    found = statistics.combined_alignment(jnp.asarray(terms), *fit)
    z = (terms - calibration.mean(0)) / calibration.std(0, ddof=1)
    np.testing.assert_allclose(found, z.sum(axis=1), atol=1e-4)


def test_tiled_l2_against_a_naive_twin():
    images = RNG.standard_normal((5, 3, 17, 22)).astype(np.float32)  # a rest is cut off

    def distance(a, b):
        return max(
            np.linalg.norm((a - b)[:, 4 * i : 4 * i + 4, 5 * j : 5 * j + 5])
            for i, j in itertools.product(range(4), range(4))
        )

    expected = min(distance(a, b) for a, b in itertools.combinations(images, 2))
    assert statistics.tiled_l2(jnp.asarray(images)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        statistics.tiled_l2(jnp.asarray(images[:1]))


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_path_is_the_samplers(tiny_model, guidance):
    """Same states as sampling itself, and the scores of the model at these states."""
    noise = jax.random.normal(jax.random.key(0), tiny_model.shape)
    path = jax.jit(lambda m, c, x: follow(m, c, x, num_steps=4, guidance=guidance))(
        tiny_model, 2, noise
    )
    image = tiny_model.sample(
        np.array([2]), noise=np.asarray(noise)[None], num_steps=4, guidance=guidance
    )[0]
    np.testing.assert_allclose(path.states[-1], image, atol=1e-4 * np.abs(image).max())
    np.testing.assert_array_equal(path.states[0], noise)
    np.testing.assert_array_equal(path.timesteps, tiny_model.schedule.timesteps(4))
    for k, t in enumerate(path.timesteps):
        pair = tiny_model.scores(2, int(t))
        u, c = pair.both(path.states[k])
        scale = float(jnp.abs(u).max())
        np.testing.assert_allclose(path.unconditional[k], u, atol=1e-4 * scale)
        np.testing.assert_allclose(path.conditional[k], c, atol=1e-4 * scale)
        assert path.sigmas[k] == pytest.approx(float(pair.sigma), rel=1e-6)


def test_registry_says_what_each_is_computed_from():
    assert {name: entry.where for name, entry in STATISTICS.items()} == {
        "score_difference": "first",
        "hessian_score_difference": "first",
        "hessian_score": "first",
        "trace_difference": "level",
        "effective_dimension": "level",
        "curvature_difference": "end",
        "diagonal_distance": "end",
        "guidance_alignment": "noise",
        "standardised_alignment": "noise",
        "path_score_difference": "path",
        "last_step_difference": "path",
        "step_displacement": "path",
        "tiled_l2": "images",
        "p_laplacian": "latent",
        "gap_flux": "state",
        "gap_divergence": "state",
        "image_gap_flux": "reencoded",
        "condition_jacobian": "state",
    }
    small = {name for name, entry in STATISTICS.items() if entry.direction == -1}
    assert small == {"trace_difference", "effective_dimension", "tiled_l2", "p_laplacian"}
    for name, entry in STATISTICS.items():
        assert entry.direction in (-1, 1)
        assert ("Smaller" in entry.function.__doc__) == (name in small)
        text = entry.function.__doc__
        assert "memorized" in text, name
        assert entry.cost, name
        assert entry.source, name


FIRST = [name for name, entry in STATISTICS.items() if entry.where == "first"]


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("of_scores", [("float64", "float64"), ("float32", "float64")])
def test_statistics_are_in_the_type_of_the_noise(name, of_scores, x64):
    """A float64 score at a float32 noise died with an error of JAX's."""
    statistic, x = STATISTICS[name].function, jnp.arange(1.0, 4, dtype=jnp.float32)

    def pair_in(*kinds):
        a, b = (jnp.asarray([[2.0, 0.3, 0], [0.3, 1, 0], [0, 0, 1.5]], kind) for kind in kinds)
        return ScorePair(lambda x: -a @ x, lambda x: -2 * b @ jnp.sin(x), ALPHA, SIGMA)

    found = statistic(pair_in(*of_scores), x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, statistic(pair_in("float32", "float32"), x), rtol=1e-5)


@pytest.mark.parametrize("name", FIRST)
def test_statistics_of_half_precision_are_refused(name):
    """It gave .8672 for .8643."""
    half = ScorePair(
        lambda x: (1.001 * x).astype(jnp.bfloat16), lambda x: 1.5 * x, alpha=ALPHA, sigma=SIGMA
    )
    with pytest.raises(
        ValueError, match=r"score\(x\) must be float32 or float64, got dtype bfloat"
    ):
        STATISTICS[name].function(half, jnp.ones(3))
    whole = ScorePair(lambda x: -x, lambda x: 2 * x, alpha=ALPHA, sigma=SIGMA)
    with pytest.raises(ValueError, match=r"x must be float32 or float64, got dtype int32"):
        STATISTICS[name].function(whole, jnp.ones(3, int))
    other = ScorePair(lambda x: -x, lambda x: x[:2], alpha=ALPHA, sigma=SIGMA)
    with pytest.raises(ValueError, match=r"must have the shape of x, \(3,\), got \(2,\)"):
        STATISTICS[name].function(other, jnp.ones(3))


@pytest.mark.parametrize("scale", [1e-18, 1e-12, 1e12, 1e18])
def test_statistics_over_the_range_of_float32(scale):
    """Lengths whose squares are out of range were 0 or infinite."""
    pair = ScorePair(lambda x: 0 * x, lambda x: scale * x, alpha=ALPHA, sigma=SIGMA)
    x = jnp.ones(3)
    np.testing.assert_allclose(statistics.score_difference(pair, x), np.sqrt(3) * scale, rtol=1e-6)
    np.testing.assert_allclose(
        statistics.hessian_score_difference(pair, x), np.sqrt(3) * scale**2, rtol=1e-6
    )
