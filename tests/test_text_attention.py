"""Changed cross-attention: against PyTorch with a processor from the formulas, and sampled."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.networks.text_attention import TextAttention, attention_to_text

TOKENS = 7


class Processor:
    """One layer of diffusers' attention, token by token, with changed logits."""

    def __init__(self, *, scale, seen, spike_scale, spike_threshold):
        self.scale, self.seen = scale, seen
        self.spike_scale, self.spike_threshold = spike_scale, spike_threshold

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        text = encoder_hidden_states
        if text is None:
            raise AssertionError("only cross-attention is changed")
        b, n, _ = hidden_states.shape

        def heads(x):
            return x.view(b, x.shape[1], attn.heads, -1).transpose(1, 2)

        q, k, v = heads(attn.to_q(hidden_states)), heads(attn.to_k(text)), heads(attn.to_v(text))
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        for i in range(b):
            for h in range(attn.heads):
                top = logits[i, h].max(dim=0).values
                rest = top[1:]
                for token in range(text.shape[1]):
                    z = (top[token] - rest.mean()) / (rest.std() + 1e-6)
                    factor = self.scale[i, token]
                    if token > 0 and z > self.spike_threshold[i]:
                        factor = factor * self.spike_scale[i]
                    logits[i, h, :, token] *= factor
                    if not self.seen[i, token]:
                        logits[i, h, :, token] = -math.inf
        out = torch.softmax(logits, dim=-1) @ v
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).reshape(b, n, -1)))


@pytest.fixture(scope="module")
def model(stable_diffusion_directory):
    return LatentDiffusion.from_pretrained(stable_diffusion_directory)


def intervention(n, *, spikes=True):
    rng = np.random.default_rng(3)
    seen = rng.random((n, TOKENS)) < 0.7
    seen[:, 0] = True
    scale = rng.uniform(0.5, 1.5, (n, TOKENS)).astype(np.float32)
    how = {"spike_scale": 0.3, "spike_threshold": 0.1} if spikes else {}
    return TextAttention.create(n, TOKENS, scale=scale, seen=seen, **how)


@pytest.mark.parametrize("spikes", [False, True])
def test_the_network_equals_pytorch(spikes, model, stable_diffusion_directory):
    from diffusers import UNet2DConditionModel

    theirs = UNet2DConditionModel.from_pretrained(stable_diffusion_directory, subfolder="unet")
    how = intervention(2, spikes=spikes)
    changed = 0
    for name, module in theirs.named_modules():
        if name.endswith("attn2"):
            early = not name.startswith("up_blocks")
            threshold = how.spike_threshold if early else np.full(2, np.inf)
            fields = dataclasses.asdict(how) | {"spike_threshold": threshold}
            module.set_processor(
                Processor(**{k: torch.tensor(np.array(v)) for k, v in fields.items()})
            )
            changed += 1
    assert changed >= 3
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *model.shape), dtype=np.float32)
    text = rng.standard_normal((2, TOKENS, model.empty.shape[1]), dtype=np.float32)
    with torch.no_grad():
        wanted = theirs(torch.tensor(x), 500, torch.tensor(text)).sample.numpy()
    call = jax.jit(lambda unet, x, text, how: unet(x, 500, text, attention=how))
    found = call(model.unet, x, text, how)
    scale = np.linalg.norm(wanted)
    assert np.linalg.norm(found - wanted) < 1e-4 * scale
    plain = jax.jit(lambda unet, x, text: unet(x, 500, text))(model.unet, x, text)
    assert np.linalg.norm(plain - wanted) > 1e-2 * scale
    # what changes nothing is the plain network
    none = TextAttention.create(2, TOKENS, spike_scale=0.3)
    np.testing.assert_allclose(call(model.unet, x, text, none), plain, rtol=1e-4, atol=1e-5)


def test_a_tangent_is_the_difference():
    """Spikes are found at the point, and their places have no derivative; float64 stays that."""
    with jax.enable_x64():
        rng = np.random.default_rng(1)
        values, directions = (
            tuple(rng.standard_normal((2, n, 3, 5)) for n in (6, TOKENS, TOKENS)) for _ in range(2)
        )
        how = intervention(2)
        call = jax.jit(lambda q, k, v: attention_to_text(q, k, v, how))
        found, tangent = jax.jit(lambda x, dx: jax.jvp(call, x, dx))(values, directions)
        assert found.dtype == np.float64
        step = 1e-6
        there, back = (
            call(*(x + sign * step * dx for x, dx in zip(values, directions, strict=True)))
            for sign in (1, -1)
        )
        difference = (there - back) / (2 * step)
        # rounding of about 1e-16/step, and the step's square
        np.testing.assert_allclose(tangent, difference, rtol=1e-7, atol=1e-8)


def test_sampling_leads_away_from_the_plain_prompt(model):
    """Three predictions a step, put together as GUARD does; by hand, step by step."""
    contexts = model.encode(["a cat", "the dog"])
    n, tokens = contexts.shape[:2]
    how = TextAttention.create(n, tokens, spike_scale=0.3, spike_threshold=0.1)
    noise = jax.random.normal(jax.random.key(0), (n, *model.shape))
    repulsion = np.array([2.0, 1.0, 0.0])
    found = model.sample(
        contexts, noise=noise, num_steps=3, guidance=3.0, attention=how, repulsion=repulsion,
        decode=False, batch_size=2,
    )  # fmt: skip
    grid, alphas, sigmas = model.schedule.levels(3)
    predict = jax.jit(lambda unet, *args, how=None: unet(*args, attention=how))
    x, null = noise, jnp.stack([model.empty] * n)
    for k, t in enumerate(grid):
        none = predict(model.unet, x, t, null)
        damped = predict(model.unet, x, t, contexts, how=how)
        plain = predict(model.unet, x, t, contexts)
        eps = none + 3.0 * (damped - none) - repulsion[k] * (plain - none)
        x0 = (x - sigmas[k] * eps) / alphas[k]
        x = alphas[k + 1] * x0 + sigmas[k + 1] * eps
    np.testing.assert_allclose(found, x, rtol=1e-3, atol=1e-3)
    without = model.sample(
        contexts, noise=noise, num_steps=3, guidance=3.0, decode=False, batch_size=2
    )
    assert np.abs(found - without).max() > 1e-2


def test_tokens_that_no_branch_sees(model):
    """The unconditional branch does not see them either, as in the public code of Ren et al."""
    contexts = model.encode(["a cat"])
    tokens = contexts.shape[1]
    seen = np.arange(tokens) < 4
    how = TextAttention.create(1, tokens, scale=np.r_[1.25, np.ones(tokens - 1)], seen=seen)
    noise = jax.random.normal(jax.random.key(0), (1, *model.shape))
    options = {"noise": noise, "num_steps": 1, "decode": False}
    found = model.sample(contexts, guidance=3.0, attention=how, **options)
    (t, *_), alphas, sigmas = model.schedule.levels(1)
    both = jnp.stack([model.empty, contexts[0]])
    two = TextAttention.create(
        2, tokens, scale=np.stack([np.ones(tokens), how.scale[0]]), seen=seen
    )
    predict = jax.jit(lambda unet, *args, how: unet(*args, attention=how))
    away, towards = predict(model.unet, jnp.concatenate([noise] * 2), t, both, how=two)
    eps = away + 3.0 * (towards - away)
    x0 = (noise[0] - sigmas[0] * eps) / alphas[0]
    wanted = alphas[1] * x0 + sigmas[1] * eps
    np.testing.assert_allclose(found[0], wanted, rtol=1e-3, atol=1e-3)


def test_mistakes(model):
    with pytest.raises(ValueError, match=r"scale must be one value or have shape \(7,\) or"):
        TextAttention.create(2, TOKENS, scale=np.ones(3))
    with pytest.raises(ValueError, match="at least one token must be seen"):
        TextAttention.create(2, TOKENS, seen=np.zeros(TOKENS, bool))
    with pytest.raises(ValueError, match="factors must be finite"):
        TextAttention.create(2, TOKENS, spike_scale=math.nan)
    tokens = model.empty.shape[0]
    how = TextAttention.create(2, tokens)
    with pytest.raises(ValueError, match=rf"attention must have 1 rows of {tokens} tokens"):
        model.sample(["a cat"], jax.random.key(0), attention=how)
    with pytest.raises(ValueError, match="repulsion is from the prediction with the usual"):
        model.sample(["a cat"], jax.random.key(0), repulsion=1.0)
    with pytest.raises(ValueError, match="repulsion must be a finite number, 3 of them"):
        model.sample(
            ["a cat"] * 2, jax.random.key(0), num_steps=3, attention=how, repulsion=[1.0, 2.0]
        )
    with pytest.raises(ValueError, match=f"attention must be to 1 texts of {tokens} tokens"):
        model.unet(jnp.zeros((1, *model.shape)), 1, model.empty[None], attention=how)
