"""Products until the effective dimension tr K is known to 1%, on the digits' network.

    python benchmarks/matvecs_to_one_percent.py [--conditions "7 x1a" "7 x256"] [--json PATH]

At each noise level, at a state reached by DDIM under the condition from one noise, the matrix
K = I + sigma^2 J of the conditional score is formed once (784 products), of the bundled network and
of the exact score of its training set.  Then every method estimates tr K from that matrix with 8,
12, 16, 24, ... products, until the root mean square relative error over the seeds is 1% or less.
"-" means that 768 are not enough: the exact trace (784) is cheaper.

"rank" is (tr K)^2/|K|_F^2.  "formula" is the number of probes at which Hutchinson's variance with
signs, 2 (|S|_F^2 - |diag S|^2)/(tr K)^2 a sample with S the symmetric part, gives 1%.  "ratio" is
that number, or 784 if it is more, over the smallest number measured.
"""

import argparse
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jax.tree_util import Partial

import sharpjax as sj
from sharpjax import zoo
from sharpjax.curvature.traces import effective_dimension
from sharpjax.detection.oracle import TrainingSet

METHODS = ("hutchinson", "hutch++", "xtrace")
GRID = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--conditions", nargs="+", default=["7 x1a", "7 x256"])
parser.add_argument("--timesteps", type=int, nargs="+", default=[981, 800, 600, 400, 200])
parser.add_argument("--steps", type=int, default=8, help="DDIM steps between two timesteps")
parser.add_argument("--seeds", type=int, default=50)
parser.add_argument("--json", metavar="PATH", help="write the figures there too")
options = parser.parse_args()
threadpoolctl.threadpool_limits(1, user_api="blas")  # factorizations here are small


@jax.jit
def walk(model, condition, x, timesteps):
    def score_at(x, t):
        return model.scores(condition, t).conditional(x)

    return sj.sample(score_at, x, model.schedule, timesteps=timesteps)


def curvatures(model, training_set, name):
    """`(who, t, K)` along the path of one condition, in float64."""
    (condition,), number = model.encode([name]), list(model.conditions).index(name)
    x, here = jax.random.normal(jax.random.key(0), model.shape), 981
    for t in options.timesteps:
        stops = np.linspace(here, t, options.steps + 1).round().astype(np.int32)
        x, here = (x if t == here else walk(model, condition, x, stops)), t
        pair = model.scores(condition, t)
        J = np.asarray(sj.curvature.hessian(pair.conditional, x), np.float64)
        yield "network", t, np.eye(x.size) + float(pair.sigma) ** 2 * J
        alpha, sigma = (np.float64(f(t)) for f in (model.schedule.alpha, model.schedule.sigma))
        with jax.enable_x64(True):
            exact = TrainingSet(
                jnp.asarray(np.asarray(training_set.images, np.float64)),
                training_set.conditions,
                training_set.num_conditions,
            )
            _, own = exact.densities(number, alpha=alpha, sigma=sigma)
            H = np.asarray(own.hessian(np.asarray(x, np.float64)))
        yield "exact score", t, np.eye(x.size) + sigma**2 * H


def linear(matrix, x):
    return matrix @ x


@functools.partial(jax.jit, static_argnames=("method", "num_matvecs"))
def estimates(K, keys, *, method, num_matvecs):
    d = len(K)
    score, x = Partial(linear, K - jnp.eye(d)), jnp.zeros(d)  # sigma = 1

    def one(key):
        settings = {"method": method, "num_matvecs": num_matvecs, "batch_size": num_matvecs}
        return effective_dimension(score, x, sigma=1.0, key=key, **settings).value

    return jax.lax.map(one, keys)


def products_needed(K, method):
    """The first entry of GRID that suffices, or None."""
    truth, keys = np.trace(K), jax.random.split(jax.random.key(1), options.seeds)
    for num_matvecs in GRID:
        values = estimates(jnp.asarray(K), keys, method=method, num_matvecs=num_matvecs)
        if math.sqrt(np.mean((np.asarray(values) / truth - 1) ** 2)) <= 0.01:
            return num_matvecs
    return None


model, training_set = sj.load("mnist"), TrainingSet.load(zoo.find("mnist"))
columns = f"{'tr K':>9}{'tr K/d':>9}{'rank':>7}{'formula':>9}"
print(f"products until the RMS relative error of tr K is 1%, {options.seeds} seeds")
print(
    f"{'condition':10}{'score':12}{'t':>4}{columns}" + "".join(f"{m:>11}" for m in METHODS), end=""
)
print(f"{'exact':>7}{'ratio':>7}")
results = []
for name in options.conditions:
    for who, t, K in curvatures(model, training_set, name):
        tr, d = float(np.trace(K)), len(K)
        row = {"condition": name, "score": who, "t": t, "trace": tr, "trace_over_d": tr / d}
        line = f"{name:10}{who:12}{t:4}{tr:9.3g}{tr / d:9.5f}"
        if abs(tr) < 1e-9 * d:
            print(f"{line}   K = 0 to rounding: no relative error", flush=True)
            results.append(row)
            continue
        S = 0.5 * (K + K.T)
        variance = 2 * (np.sum(S**2) - np.sum(np.diag(S) ** 2))
        row["effective_rank"] = tr**2 / np.sum(K**2)
        row["formula"] = math.ceil(variance / (0.01 * tr) ** 2)
        with jax.enable_x64(True):
            row |= {method: products_needed(K, method) for method in METHODS}
        best = min([row[m] for m in METHODS if row[m]] + [d])
        row["ratio"] = min(row["formula"], d) / best
        numbers = "".join(f"{row[m] or '-':>11}" for m in METHODS)
        line += f"{row['effective_rank']:7.1f}{row['formula']:9}{numbers}{d:7}"
        print(f"{line}{row['ratio']:7.1f}", flush=True)
        results.append(row)
if options.json:
    with open(options.json, "w") as file:
        json.dump({"d": 784, "seeds": options.seeds, "results": results}, file, indent=1)
