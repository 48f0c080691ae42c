"""What the forms of the network's layers give: each put back to the plain one, alone and together.

    python benchmarks/forms.py [--batch 8] [--repeats 15] [--json PATH]

The bundled digits' network, one device. sharpjax's forms are a group norm that reduces over pixels
first, a SiLU that keeps its derivative only, and the convolution of an upsampled image as four
small ones (`sharpjax/networks/layers.py`); the plain ones are flax's and jax's. Forward passes and
tangents in a loop over batches, as estimators run them; and what `jax.linearize` keeps.
"""

import argparse
from pathlib import Path
from unittest import mock

import timing  # first: it sets the number of CPU devices

# isort: split
import jax
import jax.numpy as jnp
from flax import nnx

import sharpjax as sj
from sharpjax.networks import layers, unet_2d

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--loops", type=int, default=4)
parser.add_argument("--repeats", type=int, default=15)
parser.add_argument("--json", metavar="PATH", type=Path)
options = parser.parse_args()


def plain_group_norm(channels, groups, *, eps, rngs):
    return nnx.GroupNorm(
        channels, num_groups=groups, epsilon=eps, use_fast_variance=False, rngs=rngs
    )


def plain_convolution_of_upsampled(x, kernel, strides, padding, **settings):
    return layers._convolve(layers.upsample_nearest(x), kernel, strides, padding, **settings)


PLAIN = {
    "group norm": [
        (layers, "group_norm", plain_group_norm),
        (unet_2d, "group_norm", plain_group_norm),
    ],
    "SiLU": [(layers, "silu", jax.nn.silu), (unet_2d, "silu", jax.nn.silu)],
    "upsampled convolution": [(layers, "convolve_upsampled", plain_convolution_of_upsampled)],
}
VERSIONS = {
    "as it is": [],
    **{f"plain {name}": [name] for name in PLAIN},
    "all plain": list(PLAIN),
}


def build(names):
    """A score with these forms plain, its linearization, and both compiled in a loop."""
    patches = [mock.patch.object(*patch) for name in names for patch in PLAIN[name]]
    if "SiLU" in names:
        silu = {"silu": jax.nn.silu, "swish": jax.nn.silu}
        patches.append(mock.patch.dict(layers.ACTIVATIONS, silu))
    for patch in patches:
        patch.start()
    score = sj.load("mnist").scores("7 x256", 600).conditional
    linearize = jax.jit(lambda score, x: jax.linearize(score, x))
    value, tangent = linearize(score, x)
    forward = jax.jit(lambda score, xs: jax.lax.map(jax.vmap(score), xs))
    tangents = jax.jit(lambda tangent, vs: jax.lax.map(jax.vmap(tangent), vs))
    outputs = forward(score, batches), tangents(tangent, batches)  # compiled while patched
    for patch in patches:
        patch.stop()
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(tangent))
    return (
        (lambda: forward(score, batches)),
        (lambda: tangents(tangent, batches)),
        kept,
        jnp.concatenate([value.ravel(), *(o.ravel() for o in outputs)]),
    )


results = {"machine": timing.header()}
x = jax.random.normal(jax.random.key(0), (1, 28, 28))
batches = jax.random.normal(jax.random.key(1), (options.loops, options.batch, *x.shape))
built = {version: build(names) for version, names in VERSIONS.items()}
timing.agree({version: values for version, (*_, values) in built.items()}, rtol=1e-5)
count = options.loops * options.batch
for what, index in (("forward passes", 0), ("tangents", 1)):
    contenders = {version: parts[index] for version, parts in built.items()}
    rows = timing.race(contenders, repeats=options.repeats)
    notes = {v: f"{1e3 * row['median'] / count:.2f} ms each" for v, row in rows.items()}
    if what == "tangents":
        for version, (_, _, kept, _) in built.items():
            rows[version]["kept"] = kept
            notes[version] += f", {kept / 1e6:.1f} MB kept"
    timing.show(f"{count} {what}, {options.batch} at once", rows, notes=notes)
    results[what] = rows
timing.write(options.json, results)
