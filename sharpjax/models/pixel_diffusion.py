"""A class-conditional pixel diffusion model: network, schedule and the names of its conditions.

On disk it is a diffusers directory (``unet/``, ``scheduler/``, ``model_index.json``), so PyTorch
loads the network too, plus ``conditions.json`` with the names of the classes.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from sharpjax._types import Array, ArrayLike, Score
from sharpjax.models.checkpoints import from_pretrained, save_pretrained
from sharpjax.models.files import checked_file, checked_subfolder, read_json
from sharpjax.models.unet_2d import UNet2DModel
from sharpjax.reprs import network
from sharpjax.rundir import write_text
from sharpjax.sampling import sample
from sharpjax.schedules import Schedule
from sharpjax.score import ScorePair, score_from_prediction

CONDITIONS_NAME = "conditions.json"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PixelDiffusion:
    """A ``ConditionalModel`` over a fixed list of conditions; a pytree, so a ``jit`` argument.

    Attributes:
        unet: class-conditional network; class ``i`` is condition ``i``, the last class is "none",
            where it has one more class than there are conditions.
        schedule: of the noise.
        conditions: their names.
    """

    unet: UNet2DModel
    schedule: Schedule
    conditions: tuple[str, ...] = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        return (
            f"PixelDiffusion({len(self.conditions)} conditions, shape={self.shape}, "
            f"unet={network(self.unet)}, schedule={self.schedule})"
        )

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "PixelDiffusion":
        """Read a directory that :meth:`save_pretrained` wrote.

        Raises:
            FileNotFoundError: a part is missing.
            ValueError: a part is damaged, or the names do not fit the network.
        """
        root = Path(directory)
        unet = from_pretrained(root, "unet")
        path = checked_file(root, checked_subfolder(root, "scheduler") / "scheduler_config.json")
        schedule = Schedule.from_config(read_json(path, constants=True), where=path)
        names = read_json(checked_file(root, root / CONDITIONS_NAME)).get("conditions")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{root / CONDITIONS_NAME}: 'conditions' must be a list of names")
        if len(set(names)) != len(names):
            raise ValueError(f"{root / CONDITIONS_NAME}: names of conditions must be distinct")
        if unet.config["num_class_embeds"] not in (len(names), len(names) + 1):
            raise ValueError(
                f"{root / CONDITIONS_NAME}: {len(names)} conditions need {len(names) + 1} class "
                f"embeddings (one is 'none'), or {len(names)} without an unconditional score; unet "
                f"has {unet.config['num_class_embeds']}"
            )
        if unet.config["sample_size"] is None:
            raise ValueError(f"{root / 'unet' / 'config.json'}: sample_size must be given")
        return cls(unet, schedule, tuple(names))

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write the diffusers directory."""
        root = save_pretrained(self.unet, Path(directory) / "unet").parent
        (root / "scheduler").mkdir(exist_ok=True)
        for name, value in {
            "scheduler/scheduler_config.json": self.schedule.to_config(),
            "model_index.json": {
                "_class_name": "DDIMPipeline",
                "scheduler": ["diffusers", "DDIMScheduler"],
                "unet": ["diffusers", "UNet2DModel"],
            },
            CONDITIONS_NAME: {"conditions": list(self.conditions)},
        }.items():
            write_text(root / name, json.dumps(value, indent=2) + "\n")
        return root

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example, ``(channels, height, width)``."""
        size = self.unet.config["sample_size"]
        height, width = size if isinstance(size, tuple) else (size, size)
        return (self.unet.config["in_channels"], height, width)

    def check(self, names: Sequence[str]) -> None:
        """Raise what :meth:`encode` would raise of these names."""
        self.encode(names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image: that of an example."""
        return self.shape

    def encode_image(self, images: ArrayLike) -> Array:
        """Examples of images, which are images: the same."""
        return jnp.asarray(images)

    def decode(self, examples: Array) -> np.ndarray:
        """Images of examples, which are images: the same."""
        return np.asarray(examples)

    def encode(self, names: Sequence[str]) -> Array:
        """Labels of conditions, ``(len(names),)``, as :meth:`scores` and :meth:`sample` take them.

        Raises:
            ValueError: a name that the model does not know.
        """
        unknown = [name for name in names if name not in self.conditions]
        if unknown:
            raise ValueError(
                f"unknown condition {unknown[0]!r}; this model knows {len(self.conditions)}: "
                f"{', '.join(self.conditions)}"
            )
        return jnp.array([self.conditions.index(name) for name in names], jnp.int32)

    @property
    def has_unconditional(self) -> bool:
        """Whether the network was trained without a condition too."""
        result: bool = self.unet.config["num_class_embeds"] == len(self.conditions) + 1
        return result

    def unconditional(self, t: ArrayLike) -> Score:
        """The score without a condition at timestep ``t``; one that raises if there is none."""
        if not self.has_unconditional:
            return Partial(_no_score)
        return Partial(_score, self.unet, self.schedule, t, self._null)

    @property
    def _null(self) -> Array:
        """Label of "no condition"."""
        result: Array = jnp.int32(len(self.conditions))
        return result

    def scores(self, condition: str | Array, t: ArrayLike) -> ScorePair:
        """The pair of scores of a condition (name or label) at timestep ``t``.

        Raises:
            ValueError: an unknown condition, or ``t`` outside the training grid.
        """
        label = self.encode([condition])[0] if isinstance(condition, str) else condition
        label = self._checked(label)
        if label.ndim:
            raise ValueError(f"scores takes one condition, got labels of shape {label.shape}")
        null = self._null
        bound = (self.unet, self.schedule, t)
        return ScorePair(
            unconditional=self.unconditional(t),
            conditional=Partial(_score, *bound, label),
            alpha=self.schedule.alpha(t),
            sigma=self.schedule.sigma(t),
            stacked=Partial(_scores, *bound, jnp.stack([null, label]))
            if self.has_unconditional
            else None,
        )

    def predictions(self, condition: Array, t: ArrayLike) -> Callable[[Array], Array]:
        """What the network predicts of ``x`` without and with a condition, as one batch.

        ``x -> (2, *shape)``, in the schedule's ``prediction_type``.
        """
        return Partial(_both_predictions, self.unet, t, jnp.stack([self._null, condition]))

    def sample(
        self,
        conditions: Sequence[str] | Array,
        key: Array | None = None,
        *,
        noise: Array | None = None,
        num_steps: int = 50,
        guidance: float = 1.0,
        eta: float = 0.0,
        batch_size: int = 64,
    ) -> np.ndarray:
        """One image per entry of ``conditions`` (repeat a condition for more).

        Args:
            conditions: names or labels, ``(n,)``.
            key: draws the noise.
            noise: initial noise ``(n, *shape)``, instead of drawing it.
            num_steps: of the sampler.
            guidance: 1 samples the conditional distribution itself; otherwise both networks run.
            eta: 0 DDIM, 1 ancestral.
            batch_size: images at a time; does not change the result.

        Returns:
            ``(n, *shape)`` as NumPy, not clipped.

        Raises:
            ValueError: no condition or an unknown one, noise of the wrong shape, neither noise nor
                key, or settings outside their range.
        """
        if not isinstance(conditions, jax.Array | np.ndarray):
            conditions = self.encode(list(conditions))
        labels = self._checked(jnp.asarray(conditions))
        for name, value in (("the number of conditions", labels.size), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if guidance != 1.0 and not self.has_unconditional:
            raise ValueError(
                f"guidance must be 1, got {guidance}: this network has no unconditional score"
            )
        if key is None and (noise is None or eta > 0):
            raise ValueError("pass key=jax.random.key(seed) to draw the noise")
        key = jax.random.key(0) if key is None else key
        n = len(labels)
        if noise is None:
            keys = jax.random.split(jax.random.fold_in(key, 0), n)
            noise = jax.vmap(lambda k: jax.random.normal(k, self.shape))(keys)
        if noise.shape != (n, *self.shape):
            raise ValueError(f"noise must have shape {(n, *self.shape)}, got {noise.shape}")
        step_keys = jax.random.split(jax.random.fold_in(key, 1), n)
        images = []
        for start in range(0, n, batch_size):
            # pad the last batch by repetition: one compilation serves all
            rows = np.arange(start, start + min(batch_size, n)) % n
            batch = _sample(
                self, labels[rows], noise[rows], step_keys[rows], guidance,
                num_steps=num_steps, eta=eta, guided=guidance != 1.0,
            )  # fmt: skip
            images.append(np.asarray(batch)[: n - start])
        return np.concatenate(images)

    def _checked(self, labels: Array) -> Array:
        labels = jnp.asarray(labels)
        if not isinstance(labels, jax.core.Tracer):
            allowed = (labels >= 0) & (labels < len(self.conditions))
            if not jnp.issubdtype(labels.dtype, jnp.integer) or not bool(allowed.all()):
                raise ValueError(
                    f"condition labels must be integers in 0..{len(self.conditions) - 1}, "
                    f"got {labels.tolist()}"
                )
        return labels


@jax.jit  # operation by operation, a network takes much longer to compile
def _predictions(unet: UNet2DModel, t: Array, labels: Array, points: Array) -> Array:
    return unet(points, t, class_labels=labels)


def _both_predictions(unet: UNet2DModel, t: Array, labels: Array, x: Array) -> Array:
    result: Array = _predictions(unet, t, labels, jnp.stack([x, x]))
    return result


def _scores(unet: UNet2DModel, schedule: Schedule, t: Array, labels: Array, points: Array) -> Array:
    """Scores of a batch: ``points (n, *shape)`` under ``labels (n,)``."""
    return score_from_prediction(
        _predictions(unet, t, labels, points),
        points,
        alpha=schedule.alpha(t),
        sigma=schedule.sigma(t),
        prediction_type=schedule.prediction_type,
    )


def _score(unet: UNet2DModel, schedule: Schedule, t: Array, label: Array, x: Array) -> Array:
    return _scores(unet, schedule, t, label[None], x[None])[0]


def _no_score(x: Array) -> Array:
    raise ValueError("this network has no unconditional score: it has no class for 'none'")


@functools.partial(jax.jit, static_argnames=("num_steps", "eta", "guided"))
def _sample(
    model: PixelDiffusion,
    labels: Array,
    noise: Array,
    keys: Array,
    guidance: ArrayLike,
    *,
    num_steps: int,
    eta: float,
    guided: bool,
) -> Array:
    schedule = model.schedule
    # from alpha = 0 predictions lead on, and scores do not
    silent = schedule.is_pure_noise(schedule.timesteps(num_steps)[0])

    def one(label: Array, x: Array, key: Array) -> Any:
        def predict_at(x: Array, t: Array) -> Array:
            if silent and guided:
                away, towards = model.predictions(label, t)(x)
                led: Array = away + guidance * (towards - away)
                return led
            if silent:
                alone: Array = _predictions(model.unet, t, label[None], x[None])[0]
                return alone
            pair = model.scores(label, t)
            return pair.guided(x, guidance) if guided else pair.conditional(x)

        return sample(
            predict_at, x, schedule, num_steps=num_steps, eta=eta, key=key,
            prediction_type=schedule.prediction_type if silent else "score",
        )  # fmt: skip

    examples: Array = jax.vmap(one)(labels, noise, keys)
    return examples
