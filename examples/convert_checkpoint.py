# %% [markdown]
# # Converting a checkpoint
#
# A Stable Diffusion directory is read with every check and written anew, its float32 weights as
# bfloat16 safetensors of half the size, with a manifest of digests beside each part. Then it is
# read back and compared: the weights (bfloat16 has 8 bits, so at most 2^-8 of each is lost), the
# scores, and what is drawn. Where PyTorch is installed, its own pipeline reads the same
# directory, and its network is compared with ours number for number.
#
# The checkpoint is the bundled model of drawings; a path or a hub id in its place does the same
# to yours. `sharpjax convert SOURCE DESTINATION --dtype bfloat16` is the command for it.
#
# `python examples/convert_checkpoint.py [--quick] [--output DIR]`

# %%
import argparse
import hashlib
import importlib.util
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import nnx

import sharpjax as sj
from sharpjax.models.convert import convert

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description="float32 to bfloat16, and what that changes.")
parser.add_argument("--quick", action="store_true", help="one prompt, two steps")
parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the figure")
options, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own
PROMPTS = ["crab", "tiger", "hospital"][: 1 if options.quick else 3]
NUM_STEPS, GUIDANCE = 2 if options.quick else 20, 3.0
HAS_TORCH = importlib.util.find_spec("torch") is not None

# %% [markdown]
# ## Write, convert
#
# `save_pretrained` writes a directory that PyTorch's libraries read too. `convert` reads any such
# directory, and what it has written once more, before the destination appears under its name.

# %%
place = tempfile.TemporaryDirectory()
source, destination = Path(place.name) / "float32", Path(place.name) / "bfloat16"
sj.load("drawings").save_pretrained(source)
conversion = convert(source, destination, dtype=jnp.bfloat16)
for part in conversion.parts:
    count = "" if part.num_parameters is None else f"{part.num_parameters:,} in {part.dtype}, "
    print(f"{part.name:12s} {part.class_name:21s} {count}{part.num_bytes:,} bytes")


def size(directory):
    return sum(path.stat().st_size for path in directory.rglob("*.safetensors"))


print(f"weights: {size(source):,} bytes in float32, {size(destination):,} in bfloat16")

# %% [markdown]
# Every part with weights lists the SHA-256 of its files in a manifest, which is verified whenever
# the part is read: a byte that has changed is an error.

# %%
manifest = json.loads((destination / "unet" / "manifest.sha256.json").read_text())
for name, digest in manifest.items():
    again = hashlib.sha256((destination / "unet" / name).read_bytes()).hexdigest()
    print(f"unet/{name}: {digest[:16]}... {'agrees' if again == digest else 'DIFFERS'}")
damaged = destination / "unet" / "diffusion_pytorch_model.safetensors"
whole = damaged.read_bytes()
damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
try:
    sj.checkpoints.from_pretrained(destination, "unet")
except ValueError as error:
    print(f"with one bit of it turned: {error}".replace(f"{destination}/", ""))
damaged.write_bytes(whole)

# %% [markdown]
# ## Read back: weights and scores
#
# Both are computed with in float32, so that the rounding of the weights is all that differs.
# (`sj.load(destination, dtype=jnp.bfloat16)` computes in bfloat16 too.)

# %%
models = {"float32": sj.load(source), "bfloat16": sj.load(destination)}
leaves = [
    [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(nnx.state(model.unet, nnx.Param))]
    for model in models.values()
]
lost = max(
    float(np.max(np.abs(b - a) / np.maximum(np.abs(a), 2.0**-126)))
    for a, b in zip(*leaves, strict=True)
)
print(f"largest relative change of a weight: {lost:.6f} (2^-8 = {2.0**-8:.6f})")


def relative(a, b):
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


@jax.jit
def value(score, x):
    return score(x)


x = jax.random.normal(jax.random.key(0), models["float32"].shape)
for t in (981, 501, 21):
    pairs = [model.scores(PROMPTS[0], t) for model in models.values()]
    original, rounded = (value(pair.conditional, x) for pair in pairs)
    print(f"t = {t}: the scores differ by {relative(rounded, original):.5f} of their length")

# %% [markdown]
# ## The same images?

# %%
shape = (len(PROMPTS), *models["float32"].shape)
noise = jax.random.normal(jax.random.key(1), shape)
drawn = {
    name: model.sample(PROMPTS, noise=noise, num_steps=NUM_STEPS, guidance=GUIDANCE)
    for name, model in models.items()
}
change = np.sqrt(np.mean((drawn["bfloat16"] - drawn["float32"]) ** 2))
print(f"images differ by {change:.4f} (root mean square of values from -1 to 1)")

# %% [markdown]
# ## PyTorch on the converted directory
#
# The network alone, on the same numbers; then the whole pipeline, from the same noises.

# %%
if HAS_TORCH:
    import diffusers
    import torch

    context = models["bfloat16"].encode(PROMPTS)
    ours = jax.jit(lambda unet, *inputs: unet(*inputs))(
        models["bfloat16"].unet, noise, 501, context
    )
    theirs = diffusers.UNet2DConditionModel.from_pretrained(
        destination, subfolder="unet", dtype=torch.float32
    )
    with torch.no_grad():
        as_torch = [torch.tensor(np.asarray(v)) for v in (noise, context)]
        expected = theirs(as_torch[0], 501, encoder_hidden_states=as_torch[1]).sample.numpy()
    print(f"PyTorch's network differs from ours by {relative(ours, expected):.1e} of its output")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(destination, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        PROMPTS, latents=as_torch[0], num_inference_steps=NUM_STEPS, guidance_scale=GUIDANCE,
        output_type="np",
    ).images  # fmt: skip
    drawn["bfloat16, by PyTorch"] = 2 * np.moveaxis(images, -1, 1) - 1
    change = np.abs(drawn["bfloat16, by PyTorch"] - drawn["bfloat16"].clip(-1, 1)).max()
    print(f"PyTorch's images differ from ours by at most {change:.1e}")
else:
    print("PyTorch is not installed: not compared")

# %% [markdown]
# ## The picture

# %%
drawn["ten times the change"] = 10 * (drawn["bfloat16"] - drawn["float32"])
figure, axes = plt.subplots(
    len(PROMPTS), len(drawn), figsize=(1.7 * len(drawn), 1.7 * len(PROMPTS) + 0.3),
    squeeze=False, layout="constrained",
)  # fmt: skip
for row, prompt in enumerate(PROMPTS):
    for column, (name, images) in enumerate(drawn.items()):
        ax = axes[row, column]
        ax.imshow(((np.moveaxis(images[row], 0, -1) + 1) / 2).clip(0, 1), interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        if row == 0:
            ax.set_title(name, fontsize=9)
    axes[row, 0].set_ylabel(prompt, fontsize=9)
options.output.mkdir(parents=True, exist_ok=True)
figure.savefig(options.output / "convert_checkpoint.png", dpi=60, facecolor="white")
place.cleanup()
print(f"wrote {options.output / 'convert_checkpoint.png'}")
