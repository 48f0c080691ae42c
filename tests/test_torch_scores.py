"""A score that lives in PyTorch, under every estimator: against closed forms and our own port."""

import subprocess
import sys

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial

import sharpjax as sj
from sharpjax import curvature, dimension
from sharpjax.checkpoints import from_pretrained
from sharpjax.detection.statistics import STATISTICS

D = 5


def gaussian(seed=0):
    m = np.random.default_rng(seed).standard_normal((D, D))
    return sj.Gaussian(jnp.asarray(m[0]), jnp.asarray(m @ m.T / D + 0.2 * np.eye(D)))


def in_torch(p, counted=None):
    """The score of a Gaussian, as a PyTorch function of a batch."""
    precision = torch.tensor(np.linalg.inv(np.asarray(p.covariance)))
    mean = torch.tensor(np.asarray(p.mean))

    def score(x):
        if counted is not None:
            counted.append(tuple(x.shape))
        return -(x - mean.to(x.dtype)) @ precision.to(x.dtype)

    return score


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(3).standard_normal(D))


@pytest.mark.usefixtures("x64")
class TestGaussian:
    def test_value_tangent_and_transpose(self, x):
        p = gaussian()
        score = sj.from_torch(in_torch(p))
        np.testing.assert_allclose(score(x), p.score(x), rtol=1e-10)
        np.testing.assert_allclose(jax.jit(score)(x), p.score(x), rtol=1e-10)
        hessian = np.asarray(p.hessian(x))
        v = jnp.arange(D, dtype=float)
        np.testing.assert_allclose(jax.jvp(score, (x,), (v,))[1], hessian @ v, rtol=1e-9)
        np.testing.assert_allclose(jax.vjp(score, x)[1](v)[0], hessian.T @ v, rtol=1e-9)
        for derivative in (jax.jacfwd, jax.jacrev):
            np.testing.assert_allclose(derivative(score)(x), hessian, rtol=1e-9)
        linear = jax.linearize(score, x)[1]
        np.testing.assert_allclose(jax.linear_transpose(linear, x)(v)[0], hessian.T @ v, rtol=1e-9)

    def test_many_examples_are_one_call(self, x):
        calls = []
        score = sj.from_torch(in_torch(gaussian(), calls))
        points = jnp.stack([x, 2 * x, 3 * x])
        found = jax.vmap(jax.vmap(score))(jnp.stack([points, points]))
        checks = [(1, D), (1, D), (2, D), (2, D)]  # the same twice, two at once, and what it keeps
        assert calls == [*checks, (6, D)]
        jax.vmap(score)(points)
        assert calls[5:] == [(3, D)]
        np.testing.assert_allclose(found[1, 2], gaussian().score(3 * x), rtol=1e-10)

    def test_estimators(self, x):
        p, key = gaussian(), jax.random.key(0)
        score = sj.from_torch(in_torch(p))
        np.testing.assert_allclose(curvature.hessian(score, x), p.hessian(x), rtol=1e-9)
        exact = np.trace(np.asarray(p.hessian(x)))
        for method in ("exact", "hutchinson", "hutch++", "xtrace"):
            found = curvature.trace(score, x, method=method, num_matvecs=12, key=key)
            other = curvature.trace(p.score, x, method=method, num_matvecs=12, key=key)
            np.testing.assert_allclose(found.value, other.value, rtol=1e-8, err_msg=method)
        assert curvature.trace(score, x, method="exact").value == pytest.approx(exact)
        ends = curvature.lanczos(score, x, num_matvecs=D, key=key)
        np.testing.assert_allclose(
            np.sort(ends.values), np.linalg.eigvalsh(np.asarray(p.hessian(x))), rtol=1e-6
        )
        for options in (dict(), dict(method="flux", radius=0.1, num_directions=64, key=key)):
            ours, other = (curvature.p_laplacian(s, x, p=1.0, **options) for s in (score, p.score))
            np.testing.assert_allclose(ours.value, other.value, rtol=1e-7)
        assert float(curvature.asymmetry(curvature.jacobian(score, x))) == pytest.approx(
            0, abs=1e-9
        )
        level = dict(alpha=1.0, sigma=0.01, key=key)
        np.testing.assert_allclose(
            dimension.flipd(score, x, **level).value, dimension.flipd(p.score, x, **level).value,
            rtol=1e-7,
        )  # fmt: skip

    def test_many_points(self, x):
        p, points = gaussian(), jnp.stack([x, -x, 2 * x])
        options = {"method": "exact"}
        found, other = (
            curvature.at_points(curvature.trace, s, points, **options)
            for s in (sj.from_torch(in_torch(p)), Partial(p.score))
        )
        np.testing.assert_allclose(found.value, other.value, rtol=1e-9)

    def test_statistics_of_a_pair(self, x):
        one, two = gaussian(0), gaussian(1)
        level = {"alpha": 0.6, "sigma": 0.8}
        theirs = sj.ScorePair(*(sj.from_torch(in_torch(p)) for p in (one, two)), **level)
        ours = sj.ScorePair(Partial(one.score), Partial(two.score), **level)
        for name in ("score_difference", "hessian_score_difference", "hessian_score"):
            function = jax.jit(STATISTICS[name].function)
            np.testing.assert_allclose(function(theirs, x), function(ours, x), rtol=1e-8)

    def test_second_derivatives_are_refused(self, x):
        score = sj.from_torch(in_torch(gaussian()))
        with pytest.raises(NotImplementedError, match="second derivatives of a score from PyTorch"):
            jax.jacfwd(jax.jacfwd(score))(x)


def test_what_is_no_score(x):
    with pytest.raises(TypeError, match="takes a module or a function, got int"):
        sj.from_torch(3)
    cases = {
        r"must give the shape that it gets, \(1, 5\), got \(1, 4\)": lambda x: x[:, :-1],
        r"must give a tensor, got tuple; .* network\(x\).sample": lambda x: (x,),
        r"fails at a batch \(1, 5\) of float32 on cpu, .*: RuntimeError: mat1 and ": (
            torch.nn.Linear(3, 3)
        ),
    }
    for message, function in cases.items():
        score = sj.from_torch(function)
        many = jnp.stack([x, x])
        for asked, at in ((score, x), (jax.jit(score), x), (jax.vmap(score), many)):
            with pytest.raises(ValueError, match=message):  # a line, nothing of callbacks
                asked(at)
    with pytest.raises(ValueError, match=r"of float32 on nowhere, .*: RuntimeError"):
        sj.from_torch(lambda x: -x, device="nowhere")(x)


def test_training_mode_is_refused():
    """What drops at random has another derivative at each call, and nothing would say so."""
    dropping = torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.Dropout(0.5))
    with pytest.raises(ValueError, match=r"1 is a Dropout in training mode; call .eval\(\) first"):
        sj.from_torch(dropping)
    with pytest.raises(ValueError, match="it is a BatchNorm1d in training mode"):
        sj.from_torch(torch.nn.BatchNorm1d(D))
    sj.from_torch(dropping.eval())
    sj.from_torch(torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.Dropout(0.0)))


def test_a_module_that_is_trained_again_is_refused():
    module = torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.Dropout(0.5)).eval()
    score = sj.from_torch(module)
    score(jnp.ones(D))
    module.train()
    with pytest.raises(ValueError, match="training mode"):
        score(jnp.zeros(D))


NET = torch.nn.Sequential(torch.nn.Linear(D, D), torch.nn.Tanh())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: -z * z.norm(), "each example of a batch by itself"),
        (lambda z: NET(z) - 0.5 * NET(z).mean(0, keepdim=True), "each example of a batch"),
        (lambda z: NET(z - z.mean()), "each example of a batch"),
        (lambda z: torch.nn.functional.dropout(NET(z), 0.5), "asked twice at one point"),
        (lambda z: NET(z) + torch.randn_like(z), "asked twice at one point"),
        (lambda z: NET(z.detach()), "every derivative would be 0"),
    ],
    ids=["norm", "batch mean", "mean", "dropout", "noise", "detached"],
)
def test_what_is_no_score_is_refused(function, message):
    """Each gave a trace with an error of 0, and a wrong one."""
    with pytest.raises(ValueError, match=message):
        curvature.trace(sj.from_torch(function), jnp.ones(D), method="exact")


def test_a_score_may_be_constant_or_not_finite_somewhere():
    x = jnp.ones(D)
    assert curvature.trace(sj.from_torch(torch.ones_like), x, method="exact").value == 0
    found = curvature.trace(sj.from_torch(lambda z: torch.log(z)), x, method="exact")
    assert found.value == pytest.approx(D)


def test_an_image_without_channels_fails_in_a_line():
    net = torch.nn.Conv2d(1, 1, 3, padding=1)  # takes (1, 8, 8) for one image, and no (2, 8, 8)
    with pytest.raises(ValueError, match=r"fails at a batch \(2, 8, 8\)"):
        sj.from_torch(net)(jnp.zeros((8, 8)))


def test_without_pytorch():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import sharpjax\n"
        "try:\n    sharpjax.from_torch(abs)\n"
        "except ImportError as error:\n    print('told', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "told" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_network_of_diffusers_against_our_port(tmp_path):
    """With attention, which PyTorch has no fused forward mode for."""
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(
        sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    sigma = 0.7
    score = sj.from_torch(lambda x: -theirs(x, 300).sample / sigma)
    port = lambda x: -ours(x[None], 300)[0] / sigma
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8)), jnp.float32)
    key = jax.random.key(0)
    np.testing.assert_allclose(score(x), port(x), atol=1e-4)
    found, other = (np.asarray(curvature.hessian(s, x)) for s in (score, port))
    assert np.abs(found - other).max() < 1e-3 * np.abs(other).max()
    traces = [
        curvature.effective_dimension(s, x, sigma=sigma, key=key, num_matvecs=8).value
        for s in (score, port)
    ]
    np.testing.assert_allclose(*traces, rtol=1e-3)
    diagonals = [curvature.diagonal(s, x, num_matvecs=4, key=key).value for s in (score, port)]
    np.testing.assert_allclose(*diagonals, atol=1e-3)
