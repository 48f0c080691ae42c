r"""SAIL as its authors' public code has it, which is not what the paper prints.

With $\epsilon_D = -\sigma s_D$ at the first timestep of sampling, from a start $x_0$,
Adam lowers

$$
L(x) = \|\epsilon_D(x + n)\| + a \|x\|, \qquad
n = \epsilon_D(x_0) / \|\epsilon_D(x_0)\|,
$$

a whole unit vector away, against the score difference.  The code evaluates $n$ at the start
and never again, but its graph leads from there to the noise that moves: every gradient also has
the part $(\partial n/\partial x)(x_0)^T \nabla\|\epsilon_D\|(x + n)$.  The penalty counts in
the stopping test: a candidate is taken when $L(x)$ is at most the threshold.

Eight candidates go ten steps of 0.05; those that are taken first are used.  Where they are too few,
others begin from new noises, with a threshold raised by 0.1, and those found before are kept.

Where the network predicts `v` (Stable Diffusion 2) the code's branch has $s_D$ for
$\epsilon_D$: the step goes the other way, lengths are in units of 1/sigma, and `a` is 0.01
instead of 0.05.

Left out: before it raises the threshold the code tries twice more from the *same* noises, which
ends alike, and may take one noise several times; here a noise is taken once.

Jeon, Kim & No, ICML 2025, arXiv:2412.04140, algorithm 2; its code:
github.com/Dongjae0324/sharpness_memorization_diffusion.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sharpjax._checks import positive_integer, prng_key
from sharpjax._types import Array, Key
from sharpjax.mitigation.descent import Descent, descend
from sharpjax.mitigation.optimizers import adam
from sharpjax.mitigation.sail import Sailed, check_not_negative, check_shape
from sharpjax.mitigation.sharpness import norm
from sharpjax.score import ScorePair, check_pair

PENALTY = {"epsilon": 0.05, "v_prediction": 0.01}
NUM_CANDIDATES, MAX_STEPS, STEP_SIZE, RAISE_BY = 8, 10, 0.05, 0.1


@functools.cache
def official_loss(
    prediction_type: str, penalty: float
) -> Callable[[ScorePair, Array, Array], tuple[Array, Array]]:
    """`(pair, x, start) -> (L, L)`, the same function for the same settings."""

    def difference(pair: ScorePair, x: Array) -> Array:
        scale = 1.0 if prediction_type == "v_prediction" else -pair.sigma
        return scale * pair.difference(x)

    def loss(pair: ScorePair, x: Array, start: Array) -> tuple[Array, Array]:
        def ahead(point: Array, _: None) -> tuple[Array, Array]:
            here = difference(pair, point)
            return x + here / norm(here), here

        # first at the start, with the derivative of x (what is added to it is exactly 0), then a
        # unit vector from x: a loop, because a network compiles twice as fast as two of them
        from_start = start + (x - jax.lax.stop_gradient(x))
        _, found = jax.lax.scan(ahead, from_start, length=2)
        value = norm(found[1]) + penalty * norm(x)
        return value, value

    return loss


def branch_of(prediction_type: str) -> str:
    """That of networks of this kind; the code knows no others than these two."""
    return prediction_type if prediction_type in PENALTY else "epsilon"


def sail_official(
    pair: ScorePair,
    key: Key,
    *,
    threshold: float,
    num_noises: int = 4,
    shape: tuple[int, ...] | None = None,
    noise: Array | None = None,
    prediction_type: str = "epsilon",
    penalty: float | None = None,
    num_candidates: int = NUM_CANDIDATES,
    max_steps: int = MAX_STEPS,
    raise_by: float = RAISE_BY,
    retries: int = 10,
    mesh: Mesh | None = None,
) -> Sailed:
    r"""The first noises whose loss is at most the threshold, and that many if it must be raised.

    Args:
        pair: of the prompt at the first timestep of sampling with `alpha > 0`.
        key: draws the candidates.
        threshold: of the loss with its penalty: 8.2 for Stable Diffusion 1.4, whose penalty alone
            is 6.4 (its latents have 16,384 entries); other models need their own.
        num_noises: how many are wanted.
        shape: of one noise, such as `model.shape`.
        noise: the first candidates `(n, *shape)`, in place of drawn ones.
        prediction_type: `epsilon` or `v_prediction`: which branch of the code.
        penalty: `a`; 0.05 or, of `v_prediction`, 0.01 when left out.
        num_candidates: that go at once.
        max_steps: of Adam; the last noise that is tested has gone one less.
        raise_by: what the threshold grows by each time that too few got there.
        retries: how often; then the noises with the smallest losses fill up what is missing, and
            their outcome says `budget`.
        mesh: devices that share the candidates.

    Returns:
        `num_noises` noises, in the order in which they were taken; `before` and `after` are
        of the loss with its penalty.

    Raises:
        ValueError: options outside their range, or a pair at `alpha = 0`.
    """
    check_pair(pair, "the sharpness of a score difference")
    counts = {"num_noises": num_noises, "num_candidates": num_candidates, "max_steps": max_steps}
    for name, count in counts.items():
        positive_integer(name, count)
    positive_integer("retries", retries, least=0)
    if prediction_type not in PENALTY:
        raise ValueError(
            f"prediction_type must be {' or '.join(PENALTY)}, got {prediction_type!r}: the public "
            "code has no other branch"
        )
    penalty = PENALTY[prediction_type] if penalty is None else penalty
    check_not_negative(penalty=penalty, raise_by=raise_by)
    key = prng_key(key, "The candidates are drawn")
    if noise is None:
        check_shape(shape)
    if num_noises > num_candidates * (retries + 1):
        raise ValueError(
            f"{num_noises} noises are wanted of {num_candidates} candidates in {retries + 1} "
            "attempts: raise num_candidates or retries"
        )
    given = jnp.empty((0, *(shape or ()))) if noise is None else jnp.asarray(noise)
    loss = official_loss(prediction_type, float(penalty))
    tried: list[Descent] = []
    for attempt in range(retries + 1):
        shape = num_candidates, *given.shape[1:]
        fresh = jax.random.normal(jax.random.fold_in(key, attempt), shape)
        candidates = fresh if attempt else jnp.concatenate([given, fresh[len(given) :]])
        options = {"max_steps": max_steps - 1, "optimizer": adam(STEP_SIZE), "mesh": mesh}
        raised = threshold + attempt * raise_by
        tried.append(descend(loss, pair, candidates, threshold=raised, **options))
        if sum(int(np.sum(one.outcome == "met")) for one in tried) >= num_noises:
            break
    before, after, steps, outcome = (
        np.concatenate([getattr(one, name) for one in tried])
        for name in ("before", "after", "steps", "outcome")
    )
    attempts = np.concatenate([np.full(len(one.steps), k) for k, one in enumerate(tried)])
    # those that were taken first: by attempt, then by step; then those that came nearest
    met, values = outcome == "met", np.where(np.isfinite(after), after, np.inf)
    order = np.lexsort((np.where(met, steps, values), np.where(met, attempts, len(tried))))
    first = order[:num_noises]
    return Sailed(
        jnp.concatenate([one.point for one in tried])[first],
        before[first],
        after[first],
        steps[first],
        outcome[first],
        attempts=attempts[first] + 1,
        threshold=threshold + attempts[first] * raise_by,
        spent=int(np.sum(steps + 1)),
    ).warned()
