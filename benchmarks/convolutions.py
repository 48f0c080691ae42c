"""A 3 x 3 convolution written in five ways, in the shapes of two networks.

    python benchmarks/convolutions.py [--network sd1] [--repeats 15] [--json PATH]

The digits' networks, 8 points at once, or Stable Diffusion 1.4 at 64 x 64 latents, the pair of a
prompt.

One device, in a loop, as tangents run them: XLA's own convolution, Winograd's F(2 x 2, 3 x 3) (16
products for 36), patches times one matrix, rows of patches times three, and nine matrix products
added with shifts. The last column counts the direct form's operations per second for all of them.
"""

import argparse
import functools
from pathlib import Path

import timing  # first: it sets the number of CPU devices

# isort: split
import jax
import jax.numpy as jnp
import numpy as np

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--network", choices=("digits", "sd1"), default="digits")
parser.add_argument("--repeats", type=int, default=15)
parser.add_argument("--json", metavar="PATH", type=Path)
options = parser.parse_args()

# side, channels in and out
SHAPES = {
    "digits": [(28, 32, 32), (28, 64, 32), (28, 64, 64), (14, 64, 64), (14, 112, 112), (7, 64, 64)],
    "sd1": [(64, 320, 320), (32, 640, 640), (16, 1280, 1280), (16, 2560, 1280), (8, 1280, 1280),
            (8, 2560, 1280)],
}  # fmt: skip
batch, loops = {"digits": (8, 8), "sd1": (2, 2)}[options.network]


def direct(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def winograd(x, kernel):
    """A. Lavin, S. Gray, CVPR 2016, arXiv:1509.09308: tiles of 4 x 4 give 2 x 2 outputs."""
    n, h, w, c = x.shape
    rows, columns, c_out = -(-h // 2), -(-w // 2), kernel.shape[-1]
    x = jnp.pad(x, ((0, 0), (1, 2 * rows - h + 1), (1, 2 * columns - w + 1), (0, 0)))
    G = jnp.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    U = jnp.einsum("ai,bj,ijco->abco", G, G, kernel).reshape(16, c, c_out)

    def transformed(parts):
        a, b, c, d = parts
        return [a - c, b + c, c - b, b - d]

    by_rows = transformed([x[:, i : i + 2 * rows : 2] for i in range(4)])
    tiles = [
        tile
        for part in by_rows
        for tile in transformed([part[:, :, j : j + 2 * columns : 2] for j in range(4)])
    ]
    V = jnp.stack(tiles).reshape(16, n * rows * columns, c)
    M = jnp.einsum("tpc,tco->tpo", V, U).reshape(4, 4, n, rows, columns, c_out)

    def back(parts):
        return [parts[0] + parts[1] + parts[2], parts[1] - parts[2] - parts[3]]

    out = jnp.stack([jnp.stack(back(part), axis=3) for part in back(M)], axis=2)
    return out.reshape(n, 2 * rows, 2 * columns, c_out)[:, :h, :w]


def _shifted(x):
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [[x[:, i : i + h, j : j + w] for j in range(3)] for i in range(3)]


def patches(x, kernel):
    columns = jnp.concatenate([part for row in _shifted(x) for part in row], axis=-1)
    return columns @ kernel.reshape(-1, kernel.shape[-1])


def rows_of_patches(x, kernel):
    _, h, w, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = jnp.concatenate([padded[:, :, j : j + w] for j in range(3)], axis=-1)
    return sum(columns[:, i : i + h] @ kernel[i].reshape(3 * c, -1) for i in range(3))


def nine_products(x, kernel):
    return sum(
        part @ kernel[i, j] for i, row in enumerate(_shifted(x)) for j, part in enumerate(row)
    )


def looped(way, xs, kernel):
    return jax.lax.map(lambda x: way(x, kernel), xs)


WAYS = (direct, winograd, patches, rows_of_patches, nine_products)
results = {"machine": timing.header(), "shapes": {}}
rng = np.random.default_rng(0)
for side, c_in, c_out in SHAPES[options.network]:
    xs = rng.standard_normal((loops, batch, side, side, c_in), np.float32)
    kernel = rng.standard_normal((3, 3, c_in, c_out), np.float32) / np.sqrt(9 * c_in)
    xs, kernel = jnp.asarray(xs), jnp.asarray(kernel)

    contenders = {
        way.__name__: functools.partial(jax.jit(functools.partial(looped, way)), xs, kernel)
        for way in WAYS
    }
    name = f"{batch} x {side} x {side} x {c_in} -> {c_out}"
    timing.agree({way: function() for way, function in contenders.items()}, rtol=1e-5)
    rows = timing.race(contenders, repeats=options.repeats)
    operations = 2 * 9 * c_in * c_out * loops * batch * side**2
    notes = {way: f"{operations / row['median'] / 1e9:.0f} Gop/s" for way, row in rows.items()}
    timing.show(name, rows, notes=notes)
    results["shapes"][name] = rows
timing.write(options.json, results)
