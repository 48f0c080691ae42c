"""One step of SAIL in its forms: what it costs, and whether they descend the same way.

    python benchmarks/sail_step.py [--noises 8] [--rounds 5] [--json PATH]

On the bundled text-to-image model, for a memorized caption at pure noise. A step is the loss and
its gradient at a batch of noises; costs are in paired forwards (both scores) of the same batch.
Then the loss and the gradient's direction of `finite_difference` against `exact`, over its step.
"""

import argparse
from pathlib import Path

import timing  # first: it sets the number of CPU devices

# isort: split
import jax
import jax.numpy as jnp
import numpy as np

import sharpjax as sj
from sharpjax.mesh.loops import over_points
from sharpjax.mitigation.sail_official import official_loss
from sharpjax.mitigation.sharpness import exact, finite_difference, norm

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--noises", type=int, default=8)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--json", metavar="PATH", type=Path)
options = parser.parse_args()

DELTAS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
facts = timing.header()
memorized = [t.caption for t in sj.bench.drawings().truths if t.verdict == "memorized"]
caption = memorized[len(memorized) // 2]
model = sj.load("drawings")
t = int(model.schedule.timesteps(50)[0])
pair = model.scores(caption, t)
x = jax.random.normal(jax.random.key(0), (options.noises, *model.shape))
MESH = timing.mesh("points")


def batched(function):
    """Of `(pair, x)`, over the noises, on all devices; weights are arguments."""
    each = jax.vmap(function, (None, 0))
    return jax.jit(lambda pair, x: over_points(each, MESH, pair, x))


def step_of(loss):
    return batched(lambda pair, x: jax.value_and_grad(lambda x: loss(pair, x))(x))


contenders = {
    "paired forward": batched(lambda pair, x: pair.difference(x)),
    "score difference": step_of(lambda pair, x: norm(pair.difference(x))),
    "sail_official": step_of(lambda pair, x: official_loss("epsilon", 0.05)(pair, x, x)[0]),
    "finite_difference": step_of(finite_difference),
    "exact": step_of(exact),
}
rows = timing.race(
    {name: (lambda f=f: f(pair, x)) for name, f in contenders.items()}, repeats=options.rounds
)
timing.show(f"loss and gradient at {options.noises} noises of {caption!r}", rows)
print("(ratios to a paired forward)")
ratio = timing.versus(rows, "finite_difference", "exact")

value, gradient = contenders["exact"](pair, x)
convergence = []
print(f"\n{'delta':>6} {'loss / exact':>24} {'cosine of gradients':>22}")
shrinking = jax.jit(
    lambda pair, x, delta: over_points(
        jax.vmap(
            lambda common, x: jax.value_and_grad(
                lambda x: finite_difference(common[0], x, delta=common[1])
            )(x),
            (None, 0),
        ),
        MESH, (pair, delta), x,
    )
)  # fmt: skip
for delta in DELTAS:
    other, theirs = shrinking(pair, x, jnp.float32(delta))
    ratios = np.asarray(other / value)
    cosines = np.asarray(
        jnp.sum(theirs * gradient, axis=(1, 2, 3))
        / jnp.linalg.norm(theirs.reshape(len(x), -1), axis=1)
        / jnp.linalg.norm(gradient.reshape(len(x), -1), axis=1)
    )
    print(
        f"{delta:6g} {np.median(ratios):8.4f} [{ratios.min():.4f}, {ratios.max():.4f}] "
        f"{np.median(cosines):8.5f} [{cosines.min():.5f}]"
    )
    convergence.append({"delta": delta, "loss": ratios.tolist(), "cosine": cosines.tolist()})
timing.write(
    options.json, {"machine": facts, "rows": rows, "ratio": ratio, "convergence": convergence}
)
