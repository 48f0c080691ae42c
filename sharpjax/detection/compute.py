"""All statistics of a batch of conditions, by the place that they are computed at.

Each part is compiled once: timesteps and conditions are arguments.  Noises and probes depend on the
seed and their index only, never on the batch, nor on the devices that it is split over.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from sharpjax._types import Array, ArrayLike
from sharpjax.checkpoints.sharding import is_sharded
from sharpjax.conditional import ConditionalModel
from sharpjax.detection.baseline import Baseline
from sharpjax.detection.registry import GROUPS, STATISTICS, Bound, Where, at_time
from sharpjax.detection.settings import NEAR_THE_END, DetectSettings
from sharpjax.detection.trajectory import follow
from sharpjax.mesh.loops import over_points
from sharpjax.sampling import sample
from sharpjax.score import LinearizedPair, ScorePair

logger = logging.getLogger(__name__)

LEVELS: tuple[Where, ...] = ("level", "state")  # at the trace timesteps
SAMPLED: tuple[Where, ...] = (*GROUPS["paths"], "reencoded")  # from whole paths
# what is computed and timed together
PARTS: dict[str, tuple[Where, ...]] = {
    "first": ("first",), "noise": ("noise",), "traces": LEVELS, "paths": SAMPLED
}  # fmt: skip


def evaluations(
    settings: DetectSettings, *, compared: bool = False
) -> dict[str, tuple[str, float, float]]:
    """Of each statistic alone, a condition: its part, and evaluations of the network.

    Forward evaluations and tangents, of a network that is given one condition at a time.  What is
    computed once for all conditions, `s_u` and its linearization at shared noises, is not
    counted; what several statistics of a part have in common is counted for each.

    Args:
        settings: of the run.
        compared: with a `Baseline`, which has nothing that is shared, and double paths.
    """
    n = settings.num_noises
    states = min(settings.trace_noises, n) * len(settings.trace_timesteps)
    found: dict[str, tuple[str, float, float]] = {}
    for name, entry in STATISTICS.items():
        if name not in settings.statistics:
            continue
        forwards, tangents = entry.evaluations(settings, apart=compared)
        points = states if entry.where in LEVELS else n
        along = (4 if compared else 2) * settings.num_steps * n if entry.where in SAMPLED else 0
        part = next(name for name, places in PARTS.items() if entry.where in places)
        found[name] = part, along + points * forwards, points * tangents
    return found


class Columns:
    """What a run computes of every batch, and what it computes once for all of them.

    Attributes:
        names: of the columns, in order.
        seconds: spent on each part, a list with an entry a batch; the first holds compilation.
    """

    def __init__(
        self, model: ConditionalModel, settings: DetectSettings, *, mesh: Mesh | None = None
    ):
        self.model, self.settings, self.mesh = model, settings, mesh
        self.names = settings.names(model.schedule)
        self.seconds: dict[str, list[float]] = {}
        self._first, self._later, self._last = settings.timesteps(model.schedule)
        self._kept: _Kept | None = None  # the unconditional score at the shared noises
        self._kept_later: Array | None = None  # its values at the later level
        # of sharded weights nothing: how much of it each device would hold is not known
        self._missing = not isinstance(model, Baseline) and not is_sharded(model)

    @property
    def noises(self) -> Array:
        """Initial ones, `(n, *shape)`, the same for all conditions."""
        key = jax.random.fold_in(jax.random.key(self.settings.seed), 0)
        number = self.settings.first_noise + jnp.arange(self.settings.num_noises)
        return self.model.schedule.first_sigma * _draw(key, number, shape=self.model.shape)

    def __call__(self, conditions: Array) -> tuple[dict[str, Array], Array | None]:
        """Columns of encoded conditions, and the states that traces were taken at.

        Each is `(batch, noises)`; what belongs to a prompt as a whole `(batch, 1)`; and the
        parts of a statistic are on one more axis.  States are `(batch, trace noises, timesteps,
        *shape)`.
        """
        settings, mesh = self.settings, self.mesh
        noises = self.noises
        found: dict[str, Array] = {}
        at = self.model, conditions, noises, self._first
        of_noise = settings.chosen("noise")
        scores = None  # of the first step, from which alignments start too
        if chosen := settings.chosen("first"):
            with self._timed("first", found):
                self._keep(noises)
                values, scores = _first_step(
                    *at, self._kept, statistics=chosen, mesh=mesh,
                    with_scores=any(one.statistic.terms for one in of_noise),
                )  # fmt: skip
                found |= values
        if of_noise:
            with self._timed("noise", found):
                self._keep(noises)
                found |= _alignment(
                    *at, self._later, scores, self._kept_later, statistics=of_noise, mesh=mesh
                )
        states = None
        if chosen := settings.chosen(*LEVELS):
            with self._timed("traces", found):
                levels, states = self._at_levels(conditions, noises, chosen)
                found |= levels
        if settings.chosen(*SAMPLED):
            with self._timed("paths", found):
                found |= self._along_paths(conditions, noises)
        order = {name: found[name if name in found else name.split("@")[0]] for name in self.names}
        return order, states

    def _keep(self, noises: Array) -> None:
        """Compute `s_u` once for all batches; of the later level only its values.

        That level is first, so that one linearization at a time is in memory.
        """
        if not self._missing:
            return
        self._missing = False
        once = functools.partial(_unconditional, self.model, noises, mesh=self.mesh)
        if any(one.statistic.terms for one in self.settings.chosen("noise")):
            self._kept_later = once(self._later).score
        if self.settings.chosen("first"):
            self._kept = once(self._first)

    def _at_levels(
        self, conditions: Array, noises: Array, statistics: tuple[Bound, ...]
    ) -> tuple[dict[str, Array], Array]:
        settings = self.settings
        count = min(settings.trace_noises, settings.num_noises)
        key = jax.random.fold_in(jax.random.key(settings.seed), 1)
        x = jnp.broadcast_to(noises[:count], (len(conditions), count, *self.model.shape))
        columns: dict[str, Array] = {}
        states, here = [], self._first
        for t in settings.trace_timesteps:
            stops = np.linspace(here, t, settings.path_steps + 1)
            if isinstance(here, int):  # a grid of training steps
                stops = stops.round().astype(np.int32)
            if t < here:  # at or before the first step a state is the noise itself
                x, here = _walk(self.model, conditions, x, stops, mesh=self.mesh), t
            values = _traces(
                self.model, conditions, x, t, key, statistics=statistics, mesh=self.mesh
            )
            columns |= {at_time(name, t): value for name, value in values.items()}
            states.append(x)
        return columns, jnp.stack(states, axis=2)

    def _along_paths(self, conditions: Array, noises: Array) -> dict[str, Array]:
        settings = self.settings
        x = jnp.broadcast_to(noises, (len(conditions), *noises.shape))
        key = jax.random.fold_in(jax.random.key(settings.seed), 2)
        chosen = settings.chosen("path", "end", "latent")
        path = {"num_steps": settings.num_steps, "guidance": settings.guidance}
        at = self.model, conditions, x, self._last, NEAR_THE_END, key
        values, examples = _paths(*at, statistics=chosen, **path, mesh=self.mesh)
        of_images, again = settings.chosen("images"), settings.chosen("reencoded")
        if of_images or again:
            decoded = np.stack([np.asarray(self.model.decode(each)) for each in examples])
            images = jnp.clip(decoded, -1, 1)
        values |= {one.statistic.name: jax.vmap(one.__call__)(images)[:, None] for one in of_images}
        if again:
            encoded = jnp.stack([self.model.encode_image(each) for each in images])
            values |= _traces(
                self.model, conditions, encoded, NEAR_THE_END, key, statistics=again, mesh=self.mesh
            )
        return values

    @contextmanager
    def _timed(self, part: str, found: dict[str, Array]) -> Iterator[None]:
        start = time.perf_counter()
        yield
        jax.block_until_ready(found)
        taken = self.seconds.setdefault(part, [])
        taken.append(time.perf_counter() - start)
        remark = "" if len(taken) > 1 else ", compilation included"
        logger.info("part %r of a batch: %.2f s%s", part, taken[-1], remark)


@functools.partial(jax.jit, static_argnames="shape")
def _draw(key: Array, number: Array, *, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(number)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Kept:
    """`s_u` linearized at several noises.

    Attributes:
        score: its values, a noise a row.
        tangent: its tangent map.
        axes: of each array of both, that of the noises; None where no noise enters: a tangent map
            holds the weights, which otherwise would be kept once for each noise.
    """

    score: Array
    tangent: Callable[[Array], Array]
    axes: tuple[int | None, ...] = dataclasses.field(metadata={"static": True})

    def by_axes(self) -> Any:
        """The same tree with the axes in place of the arrays, as `jax.vmap` asks for them."""
        return jax.tree.unflatten(jax.tree.structure(self), self.axes)


def _reached(jaxpr: Any, inputs: Sequence[bool]) -> list[bool]:
    """Which outputs the chosen inputs enter."""
    moved = {v for v, chosen in zip(jaxpr.invars, inputs, strict=True) if chosen}

    def enters(variable: Any) -> bool:
        return not hasattr(variable, "val") and variable in moved  # a literal has one

    for equation in jaxpr.eqns:
        given = [enters(v) for v in equation.invars]
        found = [any(given)] * len(equation.outvars)
        if any(given) and equation.primitive.name == "jit":
            found = _reached(equation.params["jaxpr"].jaxpr, given)
        moved.update(v for v, one in zip(equation.outvars, found, strict=True) if one)
    return [enters(v) for v in jaxpr.outvars]


@functools.partial(jax.jit, static_argnames="mesh")
def _unconditional(
    model: ConditionalModel, noises: Array, t: ArrayLike, *, mesh: Mesh | None
) -> _Kept:
    """`s_u` and its tangent map at every noise; on a mesh each device computes all of them.

    Traced under the mesh that it will be used under: a tangent map holds traced operations, and
    those of some models (Cholesky factors) do not fit under another.
    """

    def part(model: ConditionalModel, noises: Array, t: ArrayLike) -> _Kept:
        trees = []

        def leaves(x: Array) -> list[Array]:
            found, tree = jax.tree.flatten(jax.linearize(model.unconditional(t), x))
            trees.append(tree)
            return found

        one = jax.make_jaxpr(leaves)(noises[0])
        moved = _reached(one.jaxpr, [True])
        axes = tuple(0 if each else None for each in moved)
        again = functools.partial(jax.core.eval_jaxpr, one.jaxpr, one.consts)
        every = jax.vmap(again, out_axes=list(axes))(noises)
        score, tangent = jax.tree.unflatten(trees[0], every)
        return _Kept(score, tangent, axes)

    if mesh is not None:
        everywhere = PartitionSpec()
        part = jax.shard_map(
            part, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False
        )
    return part(model, noises, t)


@functools.partial(jax.jit, static_argnames=("statistics", "mesh", "with_scores"))
def _first_step(
    model: ConditionalModel,
    conditions: Array,
    noises: Array,
    t: ArrayLike,
    kept: _Kept | None,
    *,
    statistics: tuple[Bound, ...],
    mesh: Mesh | None,
    with_scores: bool,
) -> tuple[dict[str, Array], tuple[Array, Array] | None]:
    """Statistics of the first step, and the two scores there if they are asked for.

    `kept` is None where nothing is common to all conditions.
    """

    def part(common: Any, conditions: Array) -> Any:
        model, t, noises, kept = common

        def one(condition: Array, x: Array, kept: Any) -> Any:
            pair = model.scores(condition, t)
            # of the statistics together, and of the unconditional score for all conditions
            if kept is None:
                here = pair.linearize(x)
            else:
                own = jax.linearize(pair.conditional, x)
                here = LinearizedPair(kept.score, kept.tangent, *own)
            values = {each.statistic.name: each(pair, x, linearized=here) for each in statistics}
            return values, (here.unconditional, here.conditional) if with_scores else None

        each = jax.vmap(one, (None, 0, None if kept is None else kept.by_axes()))
        return jax.vmap(each, (0, None, None))(conditions, noises, kept)

    return over_points(part, mesh, (model, t, noises, kept), conditions)


def _each(
    one: Callable[..., Any], common: Any, conditions: Array, points: Array, mesh: Mesh | None
) -> Any:
    """`one(common, condition, number, x)` of every condition and each of its points."""

    def part(common: Any, batch: Any) -> Any:
        conditions, points = batch
        number = jnp.arange(points.shape[1])
        per_point = jax.vmap(functools.partial(one, common), (None, 0, 0))
        return jax.vmap(per_point, (0, None, 0))(conditions, number, points)

    return over_points(part, mesh, common, (conditions, points))


@functools.partial(jax.jit, static_argnames=("statistics", "mesh"))
def _alignment(
    model: ConditionalModel,
    conditions: Array,
    noises: Array,
    first: ArrayLike,
    later: ArrayLike,
    scores: tuple[Array, Array] | None,
    kept: Array | None,
    *,
    statistics: tuple[Bound, ...],
    mesh: Mesh | None,
) -> dict[str, Array]:
    """Statistics of two levels at pure noise; what several start from is computed once.

    `scores` are both of the first level, `kept` is the unconditional one of the later level, where
    they are known: of four evaluations one is left.
    """

    def one(common: Any, condition: Array, scores: Any, x: Array, kept: Array | None) -> Any:
        model, *levels = common
        pairs = [model.scores(condition, t) for t in levels]
        here = list(pairs)
        if scores is not None:
            here[0] = _known(pairs[0], *scores)
        if kept is not None:
            here[1] = _known(pairs[1], kept)
        values, known = {}, {}
        for each in statistics:
            given = {}
            if of := each.statistic.terms:
                if of not in known:
                    known[of] = of(*here, x)
                given["terms"] = known[of]
            values[each.statistic.name] = each(*pairs, x, **given)
        return values

    def part(common: Any, batch: Any) -> Any:
        (model, *levels, noises, kept), (conditions, scores) = common, batch
        per_noise = jax.vmap(functools.partial(one, (model, *levels)), (None, 0, 0, 0))
        return jax.vmap(per_noise, (0, 0, None, None))(conditions, scores, noises, kept)

    common = (model, first, later, noises, kept)
    return over_points(part, mesh, common, (conditions, scores))


def _known(pair: ScorePair, unconditional: Array, conditional: Array | None = None) -> ScorePair:
    """The pair at one point, where it is known what its scores are."""
    known = pair.conditional if conditional is None else lambda _: conditional
    return dataclasses.replace(
        pair, unconditional=lambda _: unconditional, conditional=known, stacked=None
    )


@functools.partial(jax.jit, static_argnames="mesh")
def _walk(
    model: ConditionalModel,
    conditions: Array,
    points: Array,
    timesteps: Array,
    *,
    mesh: Mesh | None,
) -> Array:
    """DDIM under each condition from the first to the last of `timesteps`."""

    def one(common: Any, condition: Array, _: Array, x: Array) -> Any:
        model, timesteps = common

        def score_at(x: Array, t: ArrayLike) -> Array:
            return model.scores(condition, t).conditional(x)

        return sample(score_at, x, model.schedule, timesteps=timesteps)

    return _each(one, (model, timesteps), conditions, points, mesh)


@functools.partial(jax.jit, static_argnames=("statistics", "mesh"))
def _traces(
    model: ConditionalModel,
    conditions: Array,
    points: Array,
    t: ArrayLike,
    key: Array,
    *,
    statistics: tuple[Bound, ...],
    mesh: Mesh | None,
) -> dict[str, Array]:
    def one(common: Any, condition: Array, number: Array, x: Array) -> Any:
        model, t, key = common
        pair = model.scores(condition, t)
        probes = jax.random.fold_in(jax.random.fold_in(key, number), t)
        return {each.statistic.name: each(pair, x, key=probes) for each in statistics}

    return _each(one, (model, t, key), conditions, points, mesh)


@functools.partial(jax.jit, static_argnames=("statistics", "num_steps", "guidance", "mesh"))
def _paths(
    model: ConditionalModel,
    conditions: Array,
    noises: Array,
    last: ArrayLike,
    near: ArrayLike,
    key: Array,
    *,
    statistics: tuple[Bound, ...],
    num_steps: int,
    guidance: float,
    mesh: Mesh | None,
) -> tuple[dict[str, Array], Array]:
    """Statistics of whole paths, of their ends and of the examples that they lead to."""

    def one(common: Any, condition: Array, number: Array, x: Array) -> Any:
        model, last, near, key = common
        path = follow(model, condition, x, num_steps=num_steps, guidance=guidance)
        draws = jax.random.fold_in(key, number)
        values = {}
        for each in statistics:
            name, where = each.statistic.name, each.statistic.where
            if where == "path":
                values[name] = each(path)
            else:
                t, k = (last, -2) if where == "end" else (near, -1)
                values[name] = each(model.scores(condition, t), path.states[k], key=draws)
        return values, path.states[-1]

    return _each(one, (model, last, near, key), conditions, noises, mesh)
