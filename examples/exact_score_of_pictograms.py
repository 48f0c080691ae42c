# %% [markdown]
# # What would a perfect network of the pictograms say?
#
# On the bundled text-to-image model `hessian_score_difference` finds memorized captions less surely
# than `score_difference`. Is that the network's fault? The optimum of the denoising loss is the
# score of the noised training set itself, so here the statistics of that exact score are computed
# at pure noise, t = 981: every memorized caption has its one latent, every hot and general caption
# many fresh renderings.
#
# With one latent, K_c = I + sigma^2 H_c = 0 exactly, so H_D s_D = -K_u s_D / sigma^2: the statistic
# weighs the difference s_D by the unconditional covariance K_u, of which a few directions common to
# all pictures hold much. For every other caption K_c s_D is taken off that, and what is left may be
# the longer vector. How much of the statistic the common directions hold, what it can tell without
# them, and what its component along s_D can tell (which has a sign), is printed.
#
# `python examples/exact_score_of_pictograms.py [--renderings 24] [--quick]`; prints, no figure.
# Needs the `datasets` extra.

# %%
import argparse

import jax
import jax.numpy as jnp
import numpy as np

import sharpjax as sj
from sharpjax import replication, zoo
from sharpjax.datasets.openmoji import planted_pictograms
from sharpjax.detection.evaluation import evaluate
from sharpjax.detection.statistics import STATISTICS
from sharpjax.detection.truth import read_truths

parser = argparse.ArgumentParser(description="Statistics of the exact score of the pictograms.")
parser.add_argument("--renderings", type=int, default=24, help="Of a caption that is not copied.")
parser.add_argument("--quick", action="store_true", help="few captions, renderings and noises")
options, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own
NUM_RENDERINGS = 2 if options.quick else options.renderings
FEWER = slice(6 if options.quick else None)  # of each group
NAMES = ("score_difference", "hessian_score_difference", "hessian_score")
T, NUM_NOISES, NUM_COMMON = 981, 1 if options.quick else 4, (1, 4, 16)

# %% [markdown]
# ## The training set, as latents

# %%
pictograms, model = planted_pictograms(), sj.load("openmoji")
truths = read_truths(zoo.find("openmoji"), replication.CaptionTruth)
verdicts = {truth.caption: truth.verdict for truth in truths}
memorized = [
    i for i in pictograms.of("memorized") if verdicts[pictograms.captions[i]] == "memorized"
][FEWER]
hot = pictograms.of("hot")[FEWER]
general = pictograms.of("general")[: replication.NUM_NEGATIVES][FEWER]
broad = np.concatenate([hot, general])
to_latents = jax.jit(lambda images: model.encode_image(images))
single = np.asarray(to_latents(pictograms.fixed_images(np.array(memorized))))
many = np.stack(
    [
        np.asarray(to_latents(pictograms.fresh_images(jax.random.key(100 + r), broad)))
        for r in range(NUM_RENDERINGS)
    ],
    axis=1,
)
owners = [np.arange(len(single)), len(single) + np.repeat(np.arange(len(broad)), NUM_RENDERINGS)]
latents = np.concatenate([single, many.reshape(-1, *model.shape)])
training_set = sj.detection.TrainingSet(
    jnp.asarray(latents), jnp.asarray(np.concatenate(owners)), len(single) + len(broad)
)
alpha, sigma = model.schedule.alpha(T), model.schedule.sigma(T)
noises = jax.random.normal(jax.random.key(1), (NUM_NOISES, *model.shape))

# %% [markdown]
# ## The statistics, and H_D s_D without the directions that all pictures have in common
#
# They are the first eigenvectors of K_u at each noise.


# %%
@jax.jit
def common_directions(x):
    everything, _ = training_set.densities(0, alpha=alpha, sigma=sigma)
    values, vectors = jnp.linalg.eigh(sigma**2 * everything.hessian(x) + jnp.eye(x.size))
    return values[::-1], vectors[:, ::-1][:, : max(NUM_COMMON)]


@jax.jit
def measured(condition, x, directions):
    pair = training_set.scores(condition, alpha=alpha, sigma=sigma)
    here = pair.linearize(x)
    product = here.difference_tangent(here.difference).ravel()
    left = jnp.stack(
        [jnp.linalg.norm(product - directions[:, :k] @ (directions[:, :k].T @ product))
         for k in NUM_COMMON]
    )  # fmt: skip
    own = jnp.stack([STATISTICS[name].function(pair, x, linearized=here) for name in NAMES])
    difference = here.difference.ravel()
    share = jnp.stack([jnp.sum((directions.T @ v) ** 2) / (v @ v) for v in (difference, product)])
    along = -(difference @ product) / own[0]
    return jnp.concatenate([own, left, along[None]]), share


columns, shares, explained = [], [], []
for x in noises:
    values, directions = common_directions(x)
    explained.append([float(jnp.sum(values[:k]) / jnp.sum(values)) for k in NUM_COMMON])
    found, share = jax.lax.map(
        lambda c, x=x, d=directions: measured(c, x, d), jnp.arange(training_set.num_conditions)
    )
    columns.append(np.asarray(found))
    shares.append(np.asarray(share))
means, shares = np.mean(columns, axis=0), np.mean(shares, axis=0)

# %%
kinds = np.repeat(["memorized", "hot", "general"], [len(single), len(hot), len(general)])
print(
    f"exact score at t = {T}, {NUM_NOISES} noises: {len(single)} memorized captions with one "
    f"latent, {len(hot)} hot and {len(general)} general ones with {NUM_RENDERINGS} each"
)
labels = [*NAMES, *(f"  without {k} common direction{'s' * (k > 1)}" for k in NUM_COMMON)]
labels += ["  along s_D: -s_D.H_D s_D / |s_D|"]
print(f"{'AUC':40s}{'all':24s}{'against hot':24s}against general")
for label, values in zip(labels, means.T, strict=True):
    cells = []
    for sources in (("hot", "general"), ("hot",), ("general",)):
        rows = np.isin(kinds, ("memorized", *sources))
        cells.append(str(evaluate(values[rows], kinds[rows] == "memorized").auc))
    print(f"{label:40s}" + "".join(f"{cell:24s}" for cell in cells))
for k, value in zip(NUM_COMMON, np.mean(explained, axis=0), strict=True):
    print(f"the first {k} of {latents[0].size} directions hold {value:.2f} of the variance K_u")
print(
    f"the first {max(NUM_COMMON)} hold, of memorized captions (mean), "
    f"{shares[kinds == 'memorized', 0].mean():.2f} of |s_D|^2 and "
    f"{shares[kinds == 'memorized', 1].mean():.2f} of |H_D s_D|^2"
)
