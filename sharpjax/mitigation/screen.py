r"""Screened sampling: images of a memorized prompt that are no copies, where the model has others.

A path is chosen early.  It starts without guidance, by the unconditional score alone, so that a
copied image attracts it no more than any other; then guidance sets in, and at one or more levels
the path is *looked at*:

=====================  ============================================================================
effective_dimension    $\mathrm{tr} K_c$ of the state, $K_c = I + \sigma^2 H_c$: how many directions
                       the prompt leaves open.  About a copy it is low; passes if above a threshold
score_difference       $\sigma\|s_D\|$, how hard the prompt pulls; passes if below
=====================  ============================================================================

**A threshold** (`screened`) drops a path that does not pass and begins again from another noise.
Tries are independent draws of one law, so an accepted image follows the law of *this* sampler given
a pass, whatever the number of tries: $P(x \mid \text{pass})$.  If none of the tries passes there is
no image.

**A rank** (`ranked`) takes the best of n paths.  It refuses nothing, and its images follow the law
of the best of n.

What a screen promises is not that no copy passes: `sharpjax.mitigation.copies_bound`.
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sharpjax._checks import positive_integer, prng_key
from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike, Key
from sharpjax.conditional import ConditionalModel
from sharpjax.curvature.traces import effective_dimension
from sharpjax.mesh.loops import over_points
from sharpjax.mitigation.sharpness import norm
from sharpjax.sampling import sample
from sharpjax.score import ScorePair

Quantity = Literal["effective_dimension", "score_difference"]
QUANTITIES: dict[str, int] = {"effective_dimension": 1, "score_difference": -1}
"""What can be looked at, and whether larger (1) or smaller (-1) passes."""

MAX_TRIES = 16
FREE = 0.2  # share of the steps without guidance; chosen in benchmarks/drawings_screen.py
_PROBES = 2**31 - 1  # folded into the key of an image: no try has that number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What of a path is looked at, and where.

    Attributes:
        quantity: of `QUANTITIES`.
        step: before which step of the sampler, from 1; the state there is looked at.
        threshold: that the quantity has to be above or below; None only ranks.
        num_probes: of the effective dimension.
    """

    quantity: Quantity
    step: int
    threshold: float | None = None
    num_probes: int = 8

    def __post_init__(self) -> None:
        if self.quantity not in QUANTITIES:
            raise ValueError(
                f"quantity must be one of {', '.join(QUANTITIES)}, got {self.quantity!r}"
            )
        positive_integer("step", self.step)
        positive_integer("num_probes", self.num_probes)
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise ValueError(f"threshold must be a finite number, got {self.threshold}")

    def passes(self, value: float) -> bool:
        """Whether a path with this value goes on; one that is not finite does not."""
        if self.threshold is None:
            return bool(np.isfinite(value))
        sign = QUANTITIES[self.quantity]
        return bool(sign * value >= sign * self.threshold)

    @property
    def evaluations(self) -> int:
        """Of the network, for one path: forward passes and tangents."""
        return 1 + self.num_probes if self.quantity == "effective_dimension" else 2


def halfway(num_steps: int, threshold: float | None = None) -> Look:
    """The look of the method `screened`: the effective dimension half-way down the path."""
    return Look(quantity="effective_dimension", step=max(num_steps // 2, 1), threshold=threshold)


@dataclasses.dataclass(frozen=True)
class Screened:
    """Images of m conditions, n of each, and how they came about.

    Attributes:
        examples: `(m, n, *shape)`; NaN where nothing passed.
        noise: `(m, n, *shape)` that each of them began at; DDIM without guidance in the free steps
            leads from there to the example again.
        accepted: `(m, n)`, whether there is an image.
        tries: `(m, n)` paths that were begun; of a rank all that it chose from.
        values: of every image, of every try in their order, its value at each look that it came
            to; of a rank the best is the one that went on.
        evaluations: `(m, n)` forward passes and tangents, of all its tries.
    """

    examples: np.ndarray
    noise: np.ndarray
    accepted: np.ndarray
    tries: np.ndarray
    values: list[list[list[list[float]]]]
    evaluations: np.ndarray

    __repr__ = one_line

    @property
    def pass_rate(self) -> np.ndarray:
        """`(m,)` accepted images over tries: the maximum-likelihood estimate of a screen's rate."""
        return self.accepted.sum(axis=1) / self.tries.sum(axis=1)


class _Path(NamedTuple):
    """One try of one image on its way."""

    row: int
    image: int
    number: int
    state: np.ndarray | None = None
    value: float = np.nan  # at the last look


def screened(
    model: ConditionalModel,
    conditions: Sequence[str] | ArrayLike,
    key: Key | None = None,
    *,
    looks: Sequence[Look],
    num_images: int = 1,
    noise: ArrayLike | None = None,
    keys: Array | None = None,
    max_tries: int = MAX_TRIES,
    guidance: float = 7.5,
    free: float = FREE,
    num_steps: int = 50,
    batch_size: int = 16,
    complete: bool = True,
    mesh: Mesh | None = None,
) -> Screened:
    """Images whose paths pass every look; all tries of all conditions advance in common batches.

    A dropped path is replaced in place by the next try, its own or another image's.

    Args:
        model: any conditional model with an unconditional score, unless `free = 0`.
        conditions: names or prompts, or encoded ones `(m, ...)`.
        key: draws noises and probes.  A try depends on `(key, condition's place, image, try)` only.
        looks: in the order of their steps; each needs a threshold.
        num_images: of each condition.
        noise: of the first try of each image, `(m, num_images, *shape)`; drawn when left out.
        keys: `(m, num_images)`, of each image instead of `key`: it then depends on its own alone.
            Try `k` begins at the noise of `fold_in(key, k)`.
        max_tries: of each image.
        guidance: weight after the free steps.
        free: share of the steps, from the first, that follow the unconditional score.
        num_steps: of the sampler, DDIM.
        batch_size: paths at a time; changes the speed, and the result by rounding.
        complete: go on to the examples; False finds only the noises that pass.
        mesh: devices that share a batch of paths.

    Raises:
        ValueError: no looks, one without a threshold or at or beyond the last step, steps that do
            not ascend; counts that are not positive integers; `free` outside of [0, 1]; noise of
            another shape.
    """
    plan = _Plan.of(looks, num_steps=num_steps, free=free, guidance=guidance)
    if lacking := [look for look in plan.looks if look.threshold is None]:
        raise ValueError(
            f"looks must each have a threshold, {lacking[0]} has none; `ranked` needs none"
        )
    max_tries = positive_integer("max_tries", max_tries)
    sampler = _Sampler(
        model, conditions, key, plan, batch_size, num_images, noise, keys=keys, mesh=mesh
    )
    first = [sampler.begin(row, image, 0) for row, image in np.ndindex(*sampler.shape)]
    queues = [collections.deque[_Path]() for _ in range(len(looks) + 1)]
    queues[0].extend(first)
    while stage := sampler.next(queues):
        place, paths = stage
        for path in sampler.advance(place, paths):
            if place == len(looks):
                sampler.finish(path)
            elif not looks[place].passes(path.value):
                if path.number + 1 < max_tries:
                    queues[0].append(sampler.begin(path.row, path.image, path.number + 1))
            elif complete or place + 1 < len(looks):
                queues[place + 1].append(path)
            else:
                sampler.accept(path)
    return sampler.found


def ranked(
    model: ConditionalModel,
    conditions: Sequence[str] | ArrayLike,
    key: Key | None = None,
    *,
    look: Look,
    num_tries: int = 5,
    num_images: int = 1,
    noise: ArrayLike | None = None,
    guidance: float = 7.5,
    free: float = FREE,
    num_steps: int = 50,
    batch_size: int = 16,
    complete: bool = True,
    mesh: Mesh | None = None,
) -> Screened:
    """Of every image the path, of `num_tries`, that the look likes best; nothing is refused.

    The arguments are those of `screened`; a threshold of the look is not asked for.

    Raises:
        ValueError: as `screened`.
    """
    plan = _Plan.of([look], num_steps=num_steps, free=free, guidance=guidance)
    num_tries = positive_integer("num_tries", num_tries)
    sampler = _Sampler(model, conditions, key, plan, batch_size, num_images, noise, mesh=mesh)
    sign = QUANTITIES[look.quantity]
    best: dict[tuple[int, int], _Path] = {}
    begun = [
        sampler.begin(row, image, number)
        for row, image in np.ndindex(*sampler.shape)
        for number in range(num_tries)
    ]
    for batch in _batches(begun, batch_size):
        for path in sampler.advance(0, batch):
            there = best.setdefault((path.row, path.image), path)
            # one that is not finite gives way to any that is
            if np.isfinite(path.value) and not sign * path.value <= sign * there.value:
                best[path.row, path.image] = path
    for batch in _batches(list(best.values()), batch_size):
        for path in sampler.advance(1, batch) if complete else batch:
            (sampler.finish if complete else sampler.accept)(path)
    return sampler.found


# --- how paths advance ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The steps between looks, and which of them are free."""

    looks: tuple[Look, ...]
    num_steps: int
    free_steps: int
    guidance: float

    @classmethod
    def of(cls, looks: Sequence[Look], *, num_steps: int, free: float, guidance: float) -> "_Plan":
        num_steps = positive_integer("num_steps", num_steps)
        if not 0 <= free <= 1:
            raise ValueError(f"free must be a share of the steps, from 0 to 1, got {free}")
        if not np.isfinite(guidance):
            raise ValueError(f"guidance must be a finite number, got {guidance}")
        steps = [look.step for look in looks]
        if not steps or sorted(set(steps)) != steps or steps[-1] >= num_steps:
            raise ValueError(
                f"looks must be at least one, before different steps from 1 to {num_steps - 1} in "
                f"ascending order, got {steps}"
            )
        return cls(tuple(looks), num_steps, round(free * num_steps), float(guidance))

    def part(self, place: int) -> tuple[int, int]:
        """The steps of a stage: from a look, or the start, to the next, or the end."""
        ends = [0, *(look.step for look in self.looks), self.num_steps]
        return ends[place], ends[place + 1]

    def cost(self, place: int) -> int:
        """Evaluations of one path in a stage, the look at its end included."""
        start, stop = self.part(place)
        free = max(min(self.free_steps, stop) - start, 0)
        looked = self.looks[place].evaluations if place < len(self.looks) else 0
        return free + 2 * (stop - start - free) + looked


class _Sampler:
    """Paths in batches, and what has become of every image."""

    def __init__(
        self,
        model: ConditionalModel,
        conditions: Sequence[str] | ArrayLike,
        key: Key | None,
        plan: _Plan,
        batch_size: int,
        num_images: int,
        noise: ArrayLike | None,
        *,
        keys: Array | None = None,
        mesh: Mesh | None = None,
    ):
        key = prng_key(key if keys is None else jax.random.key(0), "Noises are random")
        if isinstance(conditions, str):
            raise ValueError(f"conditions must be a list, got the string {conditions[:40]!r}")
        given = isinstance(conditions, jax.Array | np.ndarray)
        encoded = conditions if given else model.encode(list(conditions))  # type: ignore[arg-type]
        self.conditions = jnp.asarray(encoded)
        if not len(self.conditions):
            raise ValueError("there is nothing to draw: no conditions")
        self.shape = len(self.conditions), positive_integer("num_images", num_images)
        self.model, self.plan = model, plan
        self.noises, self.probes = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
        self.keys, self.mesh = keys, mesh
        if keys is not None and keys.shape != self.shape:
            raise ValueError(f"keys must have shape {self.shape}, got {keys.shape}")
        self.batch_size = positive_integer("batch_size", batch_size)
        full = (*self.shape, *model.shape)
        self.first = None if noise is None else np.asarray(noise, np.float32)
        if self.first is not None and self.first.shape != full:
            raise ValueError(f"noise must have shape {full}, got {self.first.shape}")
        self.found = Screened(
            np.full(full, np.nan, np.float32),
            np.full(full, np.nan, np.float32),
            np.zeros(self.shape, bool),
            np.zeros(self.shape, int),
            [[[] for _ in range(num_images)] for _ in range(self.shape[0])],
            np.zeros(self.shape, int),
        )

    def begin(self, row: int, image: int, number: int) -> _Path:
        """Another try of an image."""
        self.found.tries[row, image] += 1
        self.found.values[row][image].append([])
        return _Path(row, image, number)

    def next(self, queues: Sequence[collections.deque[_Path]]) -> tuple[int, list[_Path]] | None:
        """The last stage that fills a batch, or, if none does, the first that has a path."""
        waiting = [place for place, queue in enumerate(queues) if queue]
        if not waiting:
            return None
        full = [place for place in waiting if len(queues[place]) >= self.batch_size]
        place = full[-1] if full else waiting[0]
        count = min(self.batch_size, len(queues[place]))
        return place, [queues[place].popleft() for _ in range(count)]

    def advance(self, place: int, paths: Sequence[_Path]) -> list[_Path]:
        """Through a stage; where it ends with a look, with its value."""
        plan = self.plan
        # full, by repetition: one compilation
        rows = [i % len(paths) for i in range(self.batch_size)]
        which = np.array([(paths[i].row, paths[i].image, paths[i].number) for i in rows])
        if place:
            states = jnp.stack([jnp.asarray(paths[i].state) for i in rows])
        else:
            states = self.model.schedule.first_sigma * self.begun(which)
        look = plan.looks[place] if place < len(plan.looks) else None
        states, values = _advance(
            self.model, self.conditions[which[:, 0]], states, self.probing(which),
            part=plan.part(place), free=plan.free_steps, guidance=plan.guidance,
            num_steps=plan.num_steps, look=look, mesh=self.mesh,
        )  # fmt: skip
        kept, told = np.asarray(states), np.asarray(values, float)
        for path, value in zip(paths, told, strict=False):
            self.found.evaluations[path.row, path.image] += plan.cost(place)
            if look is not None:
                self.found.values[path.row][path.image][path.number].append(float(value))
        return [path._replace(state=kept[i], value=float(told[i])) for i, path in enumerate(paths)]

    def begun(self, which: np.ndarray) -> Array:
        """The noises of tries `(n, 3)`: condition, image, number."""
        if self.keys is None:
            begun = _folded(self.noises, which)
        else:
            begun = _next(self.keys[which[:, 0], which[:, 1]], which[:, 2])
        states = _noises(begun, shape=self.model.shape)
        if self.first is None:
            return states
        given = jnp.asarray(self.first[which[:, 0], which[:, 1]])
        is_first = (which[:, 2] == 0).reshape(-1, *[1] * len(self.model.shape))
        return jnp.where(is_first, given, states)

    def probing(self, which: np.ndarray) -> Array:
        """Keys of the probes of these tries."""
        if self.keys is None:
            return _folded(self.probes, which)
        own = _next(self.keys[which[:, 0], which[:, 1]], np.full(len(which), _PROBES))
        return _next(own, which[:, 2])

    def finish(self, path: _Path) -> None:
        """An image, of a path that came to its end."""
        if np.isfinite(path.state).all():  # type: ignore[arg-type]
            self.found.examples[path.row, path.image] = path.state
            self.accept(path)

    def accept(self, path: _Path) -> None:
        """Where a path that passes began."""
        begun = self.begun(np.array([(path.row, path.image, path.number)]))
        self.found.noise[path.row, path.image] = begun[0]
        self.found.accepted[path.row, path.image] = True


def _batches(paths: Sequence[_Path], size: int) -> list[Sequence[_Path]]:
    return [paths[start : start + size] for start in range(0, len(paths), size)]


@jax.jit
def _folded(key: Array, which: Array) -> Array:
    """A key of every row of numbers `(n, k)`."""

    def one(row: Array) -> Array:
        own = key
        for number in row:
            own = jax.random.fold_in(own, number)
        return own

    return jax.vmap(one)(jnp.asarray(which))


@jax.jit
def _next(keys: Array, numbers: Array) -> Array:
    """Of every key the one of its number, `(n,)`."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.asarray(numbers))


@functools.partial(jax.jit, static_argnames="shape")
def _noises(keys: Array, *, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


@functools.partial(
    jax.jit, static_argnames=("part", "free", "guidance", "num_steps", "look", "mesh")
)
def _advance(
    model: ConditionalModel,
    conditions: Array,
    states: Array,
    probes: Array,
    *,
    part: tuple[int, int],
    free: int,
    guidance: float,
    num_steps: int,
    look: Look | None,
    mesh: Mesh | None,
) -> tuple[Array, Array]:
    """Every state through the steps of a part, and what is looked at there."""
    schedule = model.schedule
    grid = schedule.timesteps(num_steps)
    silent = part[0] == 0 and schedule.is_pure_noise(grid[0])
    kind = schedule.prediction_type if silent else "score"
    middle = min(max(free, part[0]), part[1])

    def one(model: ConditionalModel, row: tuple[Any, Array, Key]) -> tuple[Array, Array]:
        condition, x, key = row

        def unguided(x: Array, t: Array) -> Array:
            if silent:
                return model.predictions(condition, t)(x)[0]
            return model.unconditional(t)(x)

        def guided(x: Array, t: Array) -> Array:
            of = model.predictions(condition, t) if silent else model.scores(condition, t).both
            away, towards = of(x)
            return away + guidance * (towards - away)

        for predict, steps in ((unguided, (part[0], middle)), (guided, (middle, part[1]))):
            if steps[0] < steps[1]:
                x = sample(
                    predict, x, schedule, num_steps=num_steps, part=steps, prediction_type=kind
                )
        if look is None:
            return x, jnp.zeros(())
        pair = model.scores(condition, grid[look.step].item())
        return x, looked_at(pair, x, look, key=key)

    return over_points(jax.vmap(one, (None, 0)), mesh, model, (conditions, states, probes))


def looked_at(pair: ScorePair, x: Array, look: Look, *, key: Key) -> Array:
    """The quantity of a look at a state."""
    if look.quantity == "score_difference":
        return pair.sigma * norm(pair.difference(x))
    found = effective_dimension(
        pair.conditional, x, sigma=pair.sigma, key=key, num_matvecs=look.num_probes
    )
    return found.value
