"""All statistics of a batch of conditions, by the place that they are computed at.

Each part is compiled once: timesteps and conditions are arguments.  Noises and probes depend on the
seed and their index only (independent ones on the condition's index too), never on the batch, nor
on the devices that it is split over.
"""

import functools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from sharpjax._types import Array, ArrayLike
from sharpjax.conditional import ConditionalModel
from sharpjax.curvature.loops import over_points
from sharpjax.detection.settings import NEAR_THE_END, DetectSettings
from sharpjax.detection.statistics import STATISTICS
from sharpjax.detection.trajectory import follow
from sharpjax.sampling import sample
from sharpjax.score import LinearizedPair

logger = logging.getLogger(__name__)


def evaluations(settings: DetectSettings) -> dict[str, tuple[str, float, float]]:
    """Of each statistic alone, a condition: its part, and evaluations of the network.

    Forward evaluations and tangents, of a network that is given one condition at a time.  What is
    computed once for all conditions, ``s_u`` and its linearization at shared noises, is not
    counted; what several statistics of a part have in common is counted for each.
    """
    n, levels = settings.num_noises, len(settings.trace_timesteps)
    traced, probes = min(settings.trace_noises, n), settings.num_probes
    own = 1 if settings.independent else 0  # the unconditional score is then each condition's
    paths = 2 * settings.num_steps * n
    counts = {
        "score_difference": ("first", n * (1 + own), 0),
        "hessian_score_difference": ("first", n * (1 + own), 2 * n),
        "hessian_score": ("first", n * (1 + own), n * (1 + own)),
        "guidance_alignment": ("noise", 4 * n, 0),
        "effective_dimension": ("traces", traced * levels, traced * levels * probes),
        "trace_difference": ("traces", 2 * traced * levels, 2 * traced * levels * probes),
        "path_score_difference": ("paths", paths, 0),
        "last_step_difference": ("paths", paths, 0),
        "step_displacement": ("paths", paths, 0),
        "tiled_l2": ("paths", paths, 0),
        "diagonal_curvature_difference": ("paths", paths + 2 * n, 2 * n * probes),
        "p_laplacian": ("paths", paths + n * settings.num_directions, 0),
    }
    return {name: counts[name] for name in STATISTICS if name in settings.statistics}


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
        self._kept: Any = None  # the unconditional score at the shared noises, linearized

    def noises(self, indices: np.ndarray) -> Array:
        """Initial noises: shared ones ``(n, *shape)``, independent ones ``(b, n, *shape)``."""
        key = jax.random.fold_in(jax.random.key(self.settings.seed), 0)
        number = jnp.arange(self.settings.num_noises)
        if not self.settings.independent:
            shared: Array = _draw(key, number, shape=self.model.shape)
            return shared
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, 2**31), i))(indices)
        own: Array = jax.vmap(lambda k: _draw(k, number, shape=self.model.shape))(keys)
        return own

    def __call__(
        self, conditions: Array, indices: np.ndarray
    ) -> tuple[dict[str, Array], Array | None]:
        """Columns of encoded conditions, and the states that traces were taken at.

        Each is ``(batch, noises)``; what belongs to a prompt as a whole ``(batch, 1)``; and the
        parts of a statistic are on one more axis.  States are ``(batch, trace noises, timesteps,
        *shape)``.
        """
        settings, mesh = self.settings, self.mesh
        noises = self.noises(indices)
        found: dict[str, Array] = {}
        if names := settings.chosen("first"):
            with self._timed("first", found):
                found |= self._at_first(conditions, noises, names)
        if settings.chosen("noise"):
            with self._timed("noise", found):
                found["guidance_alignment"] = _alignment(
                    self.model, conditions, noises, self._first, self._later, mesh=mesh
                )
        states = None
        if names := settings.chosen("level"):
            with self._timed("traces", found):
                levels, states = self._at_levels(conditions, noises, names)
                found |= levels
        if names := settings.chosen("path", "end", "images", "latent"):
            with self._timed("paths", found):
                found |= self._along_paths(conditions, noises, names)
        order = {name: found[name if name in found else name.split("@")[0]] for name in self.names}
        return order, states

    def _at_first(
        self, conditions: Array, noises: Array, names: tuple[str, ...]
    ) -> dict[str, Array]:
        if self._kept is None and not self.settings.independent:
            self._kept = _unconditional(self.model, noises, self._first, mesh=self.mesh)
        result: dict[str, Array] = _first_step(
            self.model, conditions, noises, self._first, self._kept,
            names=names, squared=self.settings.squared, mesh=self.mesh,
        )  # fmt: skip
        return result

    def _at_levels(
        self, conditions: Array, noises: Array, names: tuple[str, ...]
    ) -> tuple[dict[str, Array], Array]:
        settings = self.settings
        count = min(settings.trace_noises, settings.num_noises)
        key = jax.random.fold_in(jax.random.key(settings.seed), 1)
        chosen = noises[..., :count, *(slice(None),) * len(self.model.shape)]
        x = jnp.broadcast_to(chosen, (len(conditions), count, *self.model.shape))
        columns: dict[str, Array] = {}
        states, here = [], self._first
        for t in settings.trace_timesteps:
            stops = np.linspace(here, t, settings.path_steps + 1).round().astype(np.int32)
            if t < here:  # at or before the first step a state is the noise itself
                x, here = _walk(self.model, conditions, x, stops, mesh=self.mesh), t
            values = _traces(
                self.model, conditions, x, t, key,
                names=names, num_probes=settings.num_probes, mesh=self.mesh,
            )  # fmt: skip
            columns |= {f"{name}@{t}": value for name, value in values.items()}
            states.append(x)
        return columns, jnp.stack(states, axis=2)

    def _along_paths(
        self, conditions: Array, noises: Array, names: tuple[str, ...]
    ) -> dict[str, Array]:
        settings = self.settings
        x = jnp.broadcast_to(noises, (len(conditions), *noises.shape[-1 - len(self.model.shape) :]))
        values, examples = _paths(
            self.model, conditions, x, self._last, NEAR_THE_END,
            jax.random.fold_in(jax.random.key(settings.seed), 2),
            names=tuple(name for name in names if name != "tiled_l2"),
            settings=settings, mesh=self.mesh,
        )  # fmt: skip
        if "tiled_l2" in names:
            images = np.stack([np.asarray(self.model.decode(each)) for each in examples])
            compare = jax.vmap(STATISTICS["tiled_l2"].function)
            values["tiled_l2"] = compare(jnp.clip(images, -1, 1))[:, None]
        result: dict[str, Array] = values
        return result

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


@functools.partial(jax.jit, static_argnames="mesh")
def _unconditional(
    model: ConditionalModel, noises: Array, t: ArrayLike, *, mesh: Mesh | None
) -> Any:
    """``s_u`` and its tangent map at every noise; on a mesh each device computes all of them.

    Traced under the mesh that it will be used under: a tangent map holds traced operations, and
    those of some models (Cholesky factors) do not fit under another.
    """

    def part(model: ConditionalModel, noises: Array, t: ArrayLike) -> Any:
        return jax.vmap(lambda x: jax.linearize(model.unconditional(t), x))(noises)

    if mesh is not None:
        everywhere = PartitionSpec()
        part = jax.shard_map(
            part, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False
        )
    return part(model, noises, t)


@functools.partial(jax.jit, static_argnames=("names", "squared", "mesh"))
def _first_step(
    model: ConditionalModel,
    conditions: Array,
    noises: Array,
    t: ArrayLike,
    kept: Any,
    *,
    names: tuple[str, ...],
    squared: bool,
    mesh: Mesh | None,
) -> dict[str, Array]:
    """Statistics of the first step; ``kept`` is what :func:`_unconditional` gave, or None."""
    options = {"hessian_score_difference": {"squared": squared}}

    def one(common: Any, condition: Array, x: Array, kept: Any) -> Any:
        model, t = common
        pair = model.scores(condition, t)
        # of the three statistics together, and of the unconditional score for all conditions
        if kept is None:
            here = pair.linearize(x)
        else:
            here = LinearizedPair(kept[0], kept[1], *jax.linearize(pair.conditional, x))
        return {
            name: STATISTICS[name].function(pair, x, linearized=here, **options.get(name, {}))
            for name in names
        }

    if kept is None:

        def part(common: Any, batch: Any) -> Any:
            each = functools.partial(one, common, kept=None)
            return jax.vmap(jax.vmap(each, (None, 0)))(*batch)

        result: dict[str, Array] = over_points(part, mesh, (model, t), (conditions, noises))
        return result

    def part_of_shared(common: Any, conditions: Array) -> Any:
        *common, noises, kept = common
        each = jax.vmap(functools.partial(one, common), (None, 0, 0))
        return jax.vmap(each, (0, None, None))(conditions, noises, kept)

    shared: dict[str, Array] = over_points(
        part_of_shared, mesh, (model, t, noises, kept), conditions
    )
    return shared


@functools.partial(jax.jit, static_argnames="mesh")
def _alignment(
    model: ConditionalModel,
    conditions: Array,
    noises: Array,
    first: ArrayLike,
    later: ArrayLike,
    *,
    mesh: Mesh | None,
) -> Array:
    """Both terms of every noise, ``(batch, noises, 2)``."""

    def part(common: Any, batch: Any) -> Any:
        model, first, later = common

        def one(condition: Array, x: Array) -> Any:
            pairs = model.scores(condition, first), model.scores(condition, later)
            return STATISTICS["guidance_alignment"].function(*pairs, x)

        return jax.vmap(jax.vmap(one, (None, 0)))(*batch)

    x = jnp.broadcast_to(noises, (len(conditions), *noises.shape[-1 - len(model.shape) :]))
    result: Array = over_points(part, mesh, (model, first, later), (conditions, x))
    return result


@functools.partial(jax.jit, static_argnames="mesh")
def _walk(
    model: ConditionalModel,
    conditions: Array,
    points: Array,
    timesteps: Array,
    *,
    mesh: Mesh | None,
) -> Array:
    """DDIM under each condition from the first to the last of ``timesteps``."""

    def part(common: Any, batch: Any) -> Any:
        model, timesteps = common

        def one(condition: Array, x: Array) -> Any:
            def score_at(x: Array, t: ArrayLike) -> Array:
                result: Array = model.scores(condition, t).conditional(x)
                return result

            return sample(score_at, x, model.schedule, timesteps=timesteps)

        return jax.vmap(jax.vmap(one, (None, 0)))(*batch)

    result: Array = over_points(part, mesh, (model, timesteps), (conditions, points))
    return result


@functools.partial(jax.jit, static_argnames=("names", "num_probes", "mesh"))
def _traces(
    model: ConditionalModel,
    conditions: Array,
    points: Array,
    t: ArrayLike,
    key: Array,
    *,
    names: tuple[str, ...],
    num_probes: int,
    mesh: Mesh | None,
) -> dict[str, Array]:
    def part(common: Any, batch: Any) -> Any:
        model, t, key = common
        conditions, points = batch

        def one(condition: Array, index: Array, x: Array) -> Any:
            pair = model.scores(condition, t)
            probes = jax.random.fold_in(jax.random.fold_in(key, index), t)
            return {
                name: STATISTICS[name].function(pair, x, key=probes, num_probes=num_probes)
                for name in names
            }

        indices = jnp.arange(points.shape[1])
        return jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, 0))(conditions, indices, points)

    result: dict[str, Array] = over_points(part, mesh, (model, t, key), (conditions, points))
    return result


@functools.partial(jax.jit, static_argnames=("names", "settings", "mesh"))
def _paths(
    model: ConditionalModel,
    conditions: Array,
    noises: Array,
    last: ArrayLike,
    near: ArrayLike,
    key: Array,
    *,
    names: tuple[str, ...],
    settings: DetectSettings,
    mesh: Mesh | None,
) -> tuple[dict[str, Array], Array]:
    """Statistics of whole paths, of their ends and of the examples that they lead to."""

    def part(common: Any, batch: Any) -> Any:
        model, last, near, key = common

        def one(condition: Array, index: Array, x: Array) -> Any:
            path = follow(
                model, condition, x, num_steps=settings.num_steps, guidance=settings.guidance
            )
            draws = jax.random.fold_in(key, index)
            values = {}
            for name in names:
                function = STATISTICS[name].function
                if name == "step_displacement":
                    values[name] = path.displacements  # the z-scores need a calibration
                elif STATISTICS[name].where == "path":
                    values[name] = function(path)
                elif STATISTICS[name].where == "end":
                    pair = model.scores(condition, last)
                    values[name] = function(
                        pair, path.states[-2], key=draws, num_probes=settings.num_probes
                    )
                else:
                    pair = model.scores(condition, near)
                    values[name] = function(
                        pair, path.states[-1], key=draws, num_directions=settings.num_directions
                    )
            return values, path.states[-1]

        conditions, noises = batch
        indices = jnp.arange(noises.shape[1])
        return jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, 0))(conditions, indices, noises)

    result: tuple[dict[str, Array], Array] = over_points(
        part, mesh, (model, last, near, key), (conditions, noises)
    )
    return result
