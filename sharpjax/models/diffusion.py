"""What models of pixels and of latents have in common: scores of a network, and sampling.

The network takes a batch `points (n, *shape)`, a timestep and the encoded conditions of the batch
(or `None`), and predicts what the schedule's `prediction_type` says.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from sharpjax._checks import prng_key
from sharpjax._linalg import safe_norm
from sharpjax._types import Array, ArrayLike, Key, Score
from sharpjax.checkpoints.configuration import without_variance
from sharpjax.checkpoints.directory import INDEX_NAME, SCHEDULER_NAME
from sharpjax.checkpoints.pipeline import Pipeline
from sharpjax.checkpoints.sharding import replicated
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.networks.text_attention import TextAttention
from sharpjax.sampling import sample
from sharpjax.schedules import FlowSchedule, NoiseSchedule, Schedule
from sharpjax.schedules.flow import CLASS_NAME
from sharpjax.score import ScorePair, score_from_prediction


class Diffusion:
    """Base of both models, which are dataclasses with these fields and some of their own.

    A subclass says what its conditions are: `_null` is the encoded "no condition", `None` where
    the network takes no conditions.
    """

    unet: Any
    schedule: NoiseSchedule
    vae: AutoencoderKL | None
    has_unconditional: Any
    # Whether sampling follows scores or predictions: the same but for rounding, and for alpha = 0,
    # from where only predictions lead on. Kept as it was, so that a seed gives the same images.
    _samples_by_score: ClassVar[bool]

    @property
    def _null(self) -> Array | None:
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example as the network sees it, `(channels, height, width)`."""
        size = self.unet.config["sample_size"]
        height, width = size if isinstance(size, tuple) else (size, size)
        return (self.unet.config["in_channels"], height, width)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, `(channels, height, width)`: that of an example, unless a latent."""
        if self.vae is None:
            return self.shape
        sides = (side * self.pixels_per_latent for side in self.shape[1:])
        return (self.vae.config["out_channels"], *sides)

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along the side of one entry of an example."""
        return 1 if self.vae is None else self.vae.pixels_per_latent

    def encode_image(self, images: ArrayLike, key: Key | None = None) -> Array:
        """Examples `(n, *shape)` of images `(n, *image_shape)` with values from -1 to 1.

        The same, or their latents: the mean of the posterior, a sample of it if a `key` is given.

        Raises:
            ValueError: images of the wrong shape.
        """
        images = jnp.asarray(images)
        key = None if key is None else prng_key(key, "The posterior is sampled")
        return images if self.vae is None else _encode_images(self.vae, images, key, self._shift)

    def decode(self, examples: Array) -> np.ndarray:
        """Images `(n, *image_shape)`, from -1 to 1 but not clipped, of examples.

        Latents one at a time: an image takes a hundred times its latent's memory on the way.

        Raises:
            ValueError: latents of the wrong shape.
        """
        if self.vae is None:
            return np.asarray(examples)
        images = (_decode_latents(self.vae, z[None], self._shift) for z in jnp.asarray(examples))
        return np.concatenate([np.asarray(image) for image in images])

    @property
    def _shift(self) -> float:
        """Of latents before they are scaled; Stable Diffusion 1, 2 and XL have none."""
        return 0.0

    def unconditional(self, t: ArrayLike) -> Score:
        """The score without a condition at timestep `t`; one that raises if there is none.

        Raises:
            ValueError: `t` is no integer, or outside the training grid.
        """
        t = self.schedule.checked_timestep(t)
        if not self.has_unconditional:
            return Partial(_no_score)
        return Partial(_score, self.unet, self.schedule, t, self._null)

    def predictions(self, condition: Array, t: ArrayLike) -> Callable[[Array], Array]:
        """What the network predicts of `x` without and with an encoded condition, as one batch.

        `x -> (2, *shape)`, in the schedule's `prediction_type`.
        """
        null: Any = self._null
        return Partial(_both_predictions, self.unet, t, jnp.stack([null, condition]))

    def _pair(self, condition: Array, t: ArrayLike) -> ScorePair:
        """The pair of scores of an encoded condition."""
        t = self.schedule.checked_timestep(t)
        bound, null = (self.unet, self.schedule, t), self._null
        stacked = along = None
        if self.has_unconditional and null is not None and condition.shape == null.shape:
            stacked = Partial(_scores, *bound, jnp.stack([null, condition]))
            if jnp.issubdtype(condition.dtype, jnp.floating):
                along = Partial(_along_the_condition, *bound, condition, null)
        return ScorePair(
            unconditional=self.unconditional(t),
            conditional=Partial(_score, *bound, condition),
            alpha=self.schedule.alpha(t),
            sigma=self.schedule.sigma(t),
            stacked=stacked,
            along=along,
        )

    def _generate(
        self,
        conditions: Array | None,
        n: int,
        *,
        key: Key | None,
        noise: ArrayLike | None,
        shape: tuple[int, ...],
        num_steps: int,
        guidance: ArrayLike | Sequence[float],
        eta: float,
        batch_size: int,
        away_from: Array | None = None,
        attention: TextAttention | None = None,
        repulsion: ArrayLike | Sequence[float] = 0.0,
        decode: bool = True,
        mesh: Mesh | None = None,
    ) -> np.ndarray:
        """The body of `sample`: `n` images of encoded conditions `(n, ...)`, if there are any."""
        for name, value in (("the number of images", n), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        start = self.schedule.timesteps(num_steps)[0]  # is it a number of steps?
        weights = _weights("guidance", guidance, n, num_steps)
        against = _weights("repulsion", repulsion, n, num_steps)
        repelled = bool(np.any(np.asarray(repulsion) != 0.0))
        if repelled and attention is None:
            raise ValueError(
                "repulsion is from the prediction with the usual attention: give another attention"
            )
        drawn = noise is None or eta > 0
        key = prng_key(0 if key is None and not drawn else key, "The noise is drawn")
        if noise is None:
            keys = jax.random.split(jax.random.fold_in(key, 0), n)
            noise = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
        noise = jnp.asarray(noise, jnp.float32)
        if noise.shape != (n, *shape):
            raise ValueError(
                f"noise must have shape {(n, *shape)}, a state for each image, got {noise.shape}; "
                f"such as jax.random.normal(key, {(n, *shape)})"
            )
        step_keys = jax.random.split(jax.random.fold_in(key, 1), n)
        null = self._null if away_from is None else away_from
        fixed, size = (self.unet, self.schedule, null), min(batch_size, n)
        if mesh is not None:
            mesh = Mesh(mesh.devices, mesh.axis_names)  # shardings are XLA's business
            size = -(-size // mesh.size) * mesh.size
            fixed = replicated(fixed, mesh)
        draw = functools.partial(
            _sample,
            num_steps=num_steps,
            eta=eta,
            guided=repelled or bool(np.any(np.asarray(guidance) != 1.0)),
            repelled=repelled,
            by_score=self._samples_by_score and not self.schedule.is_pure_noise(start),
        )
        results = []
        for first in range(0, n, size):
            # pad the last batch by repetition: one compilation serves all
            rows = np.arange(first, first + size) % n
            chosen = None if conditions is None else conditions[rows]
            own = jax.tree.map(operator.itemgetter(rows), attention)
            batch: Any = (chosen, noise[rows], step_keys[rows], weights[rows], against[rows], own)
            if mesh is not None:
                batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
            examples = draw(*fixed, *batch)[: n - first]
            results.append(self.decode(examples) if decode else np.asarray(examples))
        return np.concatenate(results)


def _weights(name: str, given: ArrayLike | Sequence[float], n: int, num_steps: int) -> Array:
    """Of each image at each step, `(n, num_steps)`."""
    allowed = ((), (num_steps,), (n, num_steps))
    if np.shape(given) not in allowed or not np.isfinite(given).all():
        raise ValueError(
            f"{name} must be a finite number, {num_steps} of them or an array of shape "
            f"{allowed[2]}, got {given!s:.80} of shape {np.shape(given)}"
        )
    return jnp.broadcast_to(jnp.asarray(given, jnp.float32), (n, num_steps))


def read_schedule(pipeline: Pipeline) -> tuple[Schedule, dict[str, Any]]:
    """The schedule of a pipeline, and the configuration that it was read from.

    As in diffusers the class in the index, not the one that wrote the configuration, decides what
    a key means that is left out.
    """
    folder = pipeline.directory.component("scheduler", holding=SCHEDULER_NAME)
    config, where = folder.json(SCHEDULER_NAME, constants=True), folder.path / SCHEDULER_NAME
    if "_class_name" in config:  # must be one that is known, too
        Schedule.from_config({"_class_name": config["_class_name"]}, where=where)
    name = pipeline.parts["scheduler"]
    config |= {"_class_name": name}
    told = f"{where} ({name!r:.80} in {pipeline.directory.path / INDEX_NAME})"
    return Schedule.from_config(config, where=told), config


def read_flow_schedule(pipeline: Pipeline) -> FlowSchedule:
    """The schedule of a pipeline of flow matching.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another process.
    """
    folder = pipeline.directory.component("scheduler", holding=SCHEDULER_NAME)
    config, where = folder.json(SCHEDULER_NAME, constants=True), folder.path / SCHEDULER_NAME
    name = config.get("_class_name", CLASS_NAME)
    if name != CLASS_NAME:
        raise ValueError(f"{where}: _class_name must be {CLASS_NAME}, got {name!r:.80}")
    return FlowSchedule.from_config(config, where)


def _parameter_dtype(module: nnx.Module) -> Any:
    return jax.tree.leaves(nnx.state(module, nnx.Param))[0].dtype


@functools.partial(jax.jit, static_argnames="shift")
def _encode_images(vae: AutoencoderKL, images: Array, key: Array | None, shift: float) -> Array:
    posterior = vae.encode(images.astype(_parameter_dtype(vae)))
    z = (posterior.mean if key is None else posterior.sample(key)).astype(jnp.float32)
    return (z - shift) * vae.config["scaling_factor"]


@functools.partial(jax.jit, static_argnames="shift")
def _decode_latents(vae: AutoencoderKL, latents: Array, shift: float) -> Array:
    z = latents / vae.config["scaling_factor"] + shift
    return vae.decode(z.astype(_parameter_dtype(vae))).astype(jnp.float32)


@jax.jit  # operation by operation, a network takes much longer to compile
def _predictions(
    unet: Any,
    t: Array,
    conditions: Array | None,
    points: Array,
    attention: TextAttention | None = None,
) -> Array:
    """The network on a batch `points (n, *shape)` under conditions `(n, ...)`."""
    dtype = _parameter_dtype(unet)
    inputs = points.astype(dtype) if dtype.itemsize < 4 else points
    how = {} if attention is None else {"attention": attention}
    output = unet(inputs, t, conditions, **how).astype(points.dtype)
    return without_variance(output, points.shape[1])


def _both_predictions(unet: Any, t: Array, conditions: Array, x: Array) -> Array:
    return _predictions(unet, t, conditions, jnp.stack([x, x]))


def _scores(
    unet: Any, schedule: NoiseSchedule, t: Array, conditions: Array | None, points: Array
) -> Array:
    return score_from_prediction(
        _predictions(unet, t, conditions, points),
        points,
        alpha=schedule.alpha(t),
        sigma=schedule.sigma(t),
        prediction_type=schedule.prediction_type,
    )


def _score(
    unet: Any, schedule: NoiseSchedule, t: Array, condition: Array | None, x: Array
) -> Array:
    conditions = None if condition is None else condition[None]
    return _scores(unet, schedule, t, conditions, x[None])[0]


def _along_the_condition(
    unet: Any, schedule: NoiseSchedule, t: Array, condition: Array, null: Array, x: Array
) -> Array:
    """The derivative of the score in the condition, along the unit vector from `null` to it."""
    step = condition - null
    length = safe_norm(step)
    direction = step / jnp.where(length > 0, length, 1.0)

    def score(condition: Array) -> Array:
        return _score(unet, schedule, t, condition, x)

    return jax.jvp(score, (condition,), (direction,))[1]


def _no_score(x: Array) -> Array:
    raise ValueError("this network has no unconditional score: it has no class for 'none'")


@functools.partial(jax.jit, static_argnames=("num_steps", "eta", "guided", "repelled", "by_score"))
def _sample(
    unet: Any,
    schedule: NoiseSchedule,
    null: Array | None,
    conditions: Array | None,
    noise: Array,
    keys: Array,
    guidance: Array,
    repulsion: Array,
    attention: TextAttention | None,
    *,
    num_steps: int,
    eta: float,
    guided: bool,
    repelled: bool,
    by_score: bool,
) -> Array:
    grid = jnp.asarray(schedule.timesteps(num_steps))

    def evaluate(t: Array, conditions: Array | None, points: Array, how: Any) -> Array:
        if by_score:
            return _scores(unet, schedule, t, conditions, points)
        return _predictions(unet, t, conditions, points, how)

    def one(condition: Any, x: Array, key: Key, weights: Array, against: Array, how: Any) -> Any:
        def predict_at(x: Array, t: Array) -> Array:
            if not guided:
                chosen = None if condition is None else condition[None]
                return evaluate(t, chosen, x[None], jax.tree.map(lambda a: a[None], how))[0]
            # there: guided. The third is that with the usual attention
            asked = [cast(Array, null), condition, condition][: 3 if repelled else 2]
            if how is not None:
                each = [how.plain, how, how.plain][: len(asked)]
                branches = jax.tree.map(lambda *rows: jnp.stack(rows), *each)
            else:
                branches = None
            found = evaluate(t, jnp.stack(asked), jnp.stack([x] * len(asked)), branches)
            step, away = jnp.argmax(grid == t), found[0]
            led = away + weights[step] * (found[1] - away)
            return led - against[step] * (found[2] - away) if repelled else led

        kind = "score" if by_score else schedule.prediction_type
        options: Any = {"num_steps": num_steps, "eta": eta, "key": key, "prediction_type": kind}
        return sample(predict_at, schedule.first_sigma * x, schedule, **options)

    return jax.vmap(one)(conditions, noise, keys, guidance, repulsion, attention)
