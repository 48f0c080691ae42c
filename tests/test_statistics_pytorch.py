"""The statistics of the bundled text-to-image model against plain PyTorch, on the same weights.

Nothing of sharpjax is in the twin but the noise and the directions of the flux: diffusers' UNet and
scheduler, transformers' text encoder, `torch.func.jvp`.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextModel

import sharpjax as sj
from sharpjax import zoo
from sharpjax.detection.statistics import STATISTICS

FOLDER = zoo.find("drawings")
PROMPTS = ("elephant on teal", "snowman", "a caption of no drawing")
NOISES = np.random.default_rng(0).standard_normal((2, 4, 16, 16), dtype=np.float32)
NUM_DIRECTIONS = 16


class Twin:
    """Scores by diffusers; one point at a time."""

    def __init__(self):
        load = {"pretrained_model_name_or_path": FOLDER}
        tokenizer = AutoTokenizer.from_pretrained(FOLDER / "tokenizer")
        encoder = CLIPTextModel.from_pretrained(FOLDER / "text_encoder", dtype=torch.float32)
        self.unet = UNet2DConditionModel.from_pretrained(**load, subfolder="unet").float().eval()
        self.unet.set_attn_processor(_math_attention())
        scheduler = DDIMScheduler.from_pretrained(FOLDER, subfolder="scheduler")
        scheduler.set_timesteps(50)
        self.grid = scheduler.timesteps.tolist()
        self.alpha_bar = scheduler.alphas_cumprod.double()
        ids = tokenizer(
            ["", *PROMPTS], padding="max_length", truncation=True,
            max_length=encoder.config.max_position_embeddings, return_tensors="pt",
        ).input_ids  # fmt: skip
        with torch.no_grad():
            self.contexts = encoder(ids)[0]

    def level(self, t):
        return float(self.alpha_bar[t].sqrt()), float((1 - self.alpha_bar[t]).sqrt())

    def score(self, x, t, which):
        context = self.contexts[which][None]
        v = self.unet(x[None], t, encoder_hidden_states=context).sample[0]
        alpha, sigma = self.level(t)
        return -(alpha * v + sigma * x) / sigma

    def pair(self, x, t, prompt):
        return self.score(x, t, 0), self.score(x, t, 1 + prompt)

    def tangent(self, x, v, t, which):
        return torch.func.jvp(lambda y: self.score(y, t, which), (x,), (v,))[1]


def _math_attention():
    from diffusers.models.attention_processor import AttnProcessor

    return AttnProcessor()  # fused attention has no forward-mode derivative


@pytest.fixture(scope="module")
def twin():
    return Twin()


@pytest.fixture(scope="module")
def model():
    return sj.load("drawings")


@pytest.mark.slow
def test_first_step(twin, model):
    t = twin.grid[0]
    assert t == 981
    names = ("score_difference", "hessian_score_difference", "hessian_score")
    ours = jax.jit(
        lambda context, x: {n: STATISTICS[n].function(model.scores(context, t), x) for n in names}
    )
    for (prompt, context), noise in zip(enumerate(model.encode(PROMPTS)), itertools.cycle(NOISES)):
        x = torch.tensor(noise)
        with torch.no_grad():
            s_u, s_c = twin.pair(x, t, prompt)
            expected = {
                "score_difference": s_c - s_u,
                "hessian_score_difference": twin.tangent(x, s_c - s_u, t, 1 + prompt)
                - twin.tangent(x, s_c - s_u, t, 0),
                "hessian_score": twin.tangent(x, s_c, t, 1 + prompt) - twin.tangent(x, s_u, t, 0),
            }
        found = ours(context, jnp.asarray(noise))
        for name in names:
            np.testing.assert_allclose(
                found[name], float(expected[name].norm()), rtol=1e-3, err_msg=name
            )


@pytest.mark.slow
def test_guidance_alignment(twin, model):
    """As the public code adds it up, of the noises, with the weights of Stable Diffusion 1.4."""
    first, later = twin.grid[0], twin.grid[-3]
    assert later == 41
    ours = jax.jit(
        lambda c, x: STATISTICS["guidance_alignment"].function(
            model.scores(c, first), model.scores(c, later), x
        )
    )
    cosine_similarity = torch.nn.functional.cosine_similarity
    for prompt, context in enumerate(model.encode(PROMPTS)):
        x = torch.tensor(NOISES[0])
        with torch.no_grad():
            u, c = (-twin.level(later)[1] * s for s in twin.pair(x, later, prompt))
            cosine = cosine_similarity(u, c - u, dim=0).mean()
            u, c = (-twin.level(first)[1] * s for s in twin.pair(x, first, prompt))
            expected = float((c - u).norm() + 2 * cosine)
        np.testing.assert_allclose(ours(context, jnp.asarray(NOISES[0])), expected, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.optimized  # reverse mode runs for longer than it compiles
def test_curvature_difference(twin, model):
    """Kim & Lee's map at t = 1, by reverse mode, with the same 16 signs; its mean."""
    t, key = twin.grid[-1], jax.random.key(4)
    context = model.encode(PROMPTS[:1])[0]
    ours = jax.jit(
        lambda c, x: STATISTICS["curvature_difference"].function(model.scores(c, t), x, key=key)
    )
    x = torch.tensor(NOISES[0], requires_grad=True)
    s_u, s_c = twin.pair(x, t, 0)
    s, diagonal = twin.level(t)[1] * (s_c - s_u), torch.zeros(x.shape)
    for k in range(16):
        signs = jax.random.rademacher(jax.random.fold_in(key, k), x.shape, jnp.float32)
        v = torch.tensor(np.asarray(signs))
        diagonal += v * torch.autograd.grad((s * v).sum(), x, retain_graph=True)[0] / 16
    expected = float((-diagonal.sum(dim=0)).relu().mean())
    np.testing.assert_allclose(ours(context, jnp.asarray(NOISES[0])), expected, rtol=1e-3)


@pytest.mark.slow
def test_flux(twin, model):
    """The p-Laplacian of Brokman et al., p = 1, through the sphere about a latent."""
    t, key = 10, jax.random.key(3)
    z = model.sample(["red apple"], noise=NOISES[:1], num_steps=10, decode=False)[0]
    pair = model.scores(model.empty, t)
    ours = STATISTICS["p_laplacian"].function(
        pair, jnp.asarray(z), key=key, num_directions=NUM_DIRECTIONS
    )
    alpha, sigma = twin.level(t)
    d, radius = z.size, sigma * np.sqrt(z.size)
    total = 0.0
    for i in range(NUM_DIRECTIONS):
        n = np.array(jax.random.normal(jax.random.fold_in(key, i), z.shape))
        n = torch.tensor(n / np.linalg.norm(n))
        with torch.no_grad():
            s = twin.score(alpha * torch.tensor(z) + radius * n, t, 0)
        total += d / radius * float((s / s.norm() * n).sum())
    np.testing.assert_allclose(ours, total / NUM_DIRECTIONS, rtol=1e-3)


@pytest.mark.slow
def test_last_step_and_path(twin, model):
    """Along the path that PyTorch's scheduler leads, guided."""
    from sharpjax.detection.trajectory import follow

    scheduler = DDIMScheduler.from_pretrained(FOLDER, subfolder="scheduler")
    scheduler.set_timesteps(10)
    x, sizes, lengths = torch.tensor(NOISES[1]), [], []
    for t in scheduler.timesteps.tolist():
        with torch.no_grad():
            s_u, s_c = twin.pair(x, t, 0)
        alpha, sigma = twin.level(t)
        sizes.append(float((s_c - s_u).norm()) * sigma)
        last = float(((s_c - s_u) ** 2).mean())
        eps = -sigma * (s_u + 3.0 * (s_c - s_u))
        after = scheduler.step((eps - sigma * x) / alpha, t, x).prev_sample  # what it wants is v
        lengths.append(float((after - x).norm()))
        x = after
    context = model.encode(PROMPTS[:1])[0]
    path = jax.jit(lambda c, x: follow(model, c, x, num_steps=10, guidance=3.0))(
        context, jnp.asarray(NOISES[1])
    )
    np.testing.assert_allclose(
        STATISTICS["path_score_difference"].function(path), np.mean(sizes), rtol=1e-3
    )
    np.testing.assert_allclose(STATISTICS["last_step_difference"].function(path), last, rtol=1e-3)
    np.testing.assert_allclose(path.displacements, lengths, rtol=1e-3)
