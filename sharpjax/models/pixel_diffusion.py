"""A pixel diffusion model: network, schedule and the names of its conditions, if it has any.

On disk it is a diffusers directory (``unet/``, ``scheduler/``, ``model_index.json``) of a
``DDPMPipeline`` or ``DDIMPipeline``, so PyTorch loads it too.  A network with classes has their
names in ``conditions.json`` beside; one without is unconditional.
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
from sharpjax.models.autoencoder_kl import AutoencoderKL
from sharpjax.models.checkpoints import from_pretrained, save_pretrained
from sharpjax.models.configuration import LEARNED_VARIANCES, check_channels, without_variance
from sharpjax.models.files import (
    CONFIG_NAME,
    INDEX_NAME,
    SCHEDULER_NAME,
    checked_file,
    checked_subfolder,
    part_folder,
    read_json,
    resolve,
    unread,
)
from sharpjax.models.latent_diffusion import decode_latents, encode_images
from sharpjax.models.unet_2d import UNet2DModel
from sharpjax.reprs import network
from sharpjax.rundir import write_text
from sharpjax.sampling import sample
from sharpjax.schedules import Schedule
from sharpjax.score import ScorePair, score_from_prediction

CONDITIONS_NAME = "conditions.json"
VQVAE = "vqvae"  # what diffusers' LDMPipeline calls its autoencoder, of any class


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PixelDiffusion:
    """A ``ConditionalModel`` over a fixed list of conditions; a pytree, so a ``jit`` argument.

    Without conditions it is unconditional: it has :meth:`unconditional` and :meth:`sample`, and
    what needs a condition raises.

    Attributes:
        unet: class-conditional network; class ``i`` is condition ``i``, the last class is "none",
            where it has one more class than there are conditions. Or one without classes. Where
            it gives twice its input's channels, the second half is a learned variance, unused.
        schedule: of the noise.
        conditions: their names, none of an unconditional network.
        vae: between images and the network's states, where these are latents (``LDMPipeline``).
    """

    unet: UNet2DModel
    schedule: Schedule
    conditions: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    vae: AutoencoderKL | None = None

    def __repr__(self) -> str:
        return (
            f"PixelDiffusion({len(self.conditions)} conditions, shape={self.shape}, "
            f"unet={network(self.unet)}, schedule={self.schedule})"
        )

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "PixelDiffusion":
        """Read a directory that :meth:`save_pretrained` or diffusers wrote.

        That of a ``DDPMPipeline`` or ``DDIMPipeline``, with its parts in folders or, as some are
        published, all in one; or of an ``LDMPipeline`` whose ``vqvae`` is an ``AutoencoderKL``.

        Raises:
            FileNotFoundError: a part is missing.
            ValueError: a part is damaged or not supported, or the names do not fit the network.
        """
        root = resolve(directory)
        vae_part = check_pixel_index(root)
        unet = from_pretrained(root, part_folder(root, "unet", CONFIG_NAME))
        config, path = read_scheduler(root)
        schedule = Schedule.from_config(config, where=path)
        check_channels(unet.config, config, path)
        names = _read_conditions(root, unet.config)
        if unet.config["sample_size"] is None:
            raise ValueError(f"{root}: sample_size must be given in the unet's {CONFIG_NAME}")
        vae = from_pretrained(root, vae_part) if vae_part else None
        if vae is not None and vae.config["latent_channels"] != unet.config["in_channels"]:
            raise ValueError(
                f"{root}: unet takes {unet.config['in_channels']} channels (in_channels), "
                f"{vae_part} makes latents of {vae.config['latent_channels']} (latent_channels)"
            )
        return cls(unet, schedule, names, vae)

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write the diffusers directory."""
        root = save_pretrained(self.unet, Path(directory) / "unet").parent
        if self.vae is not None:
            save_pretrained(self.vae, root / VQVAE)
        learned = self.unet.config["out_channels"] != self.unet.config["in_channels"]
        (root / "scheduler").mkdir(exist_ok=True)
        for name, value in {
            f"scheduler/{SCHEDULER_NAME}": self.schedule.to_config()
            | ({"variance_type": LEARNED_VARIANCES[1]} if learned else {}),
            INDEX_NAME: {
                "_class_name": "DDIMPipeline" if self.vae is None else "LDMPipeline",
                "scheduler": ["diffusers", "DDIMScheduler"],
                "unet": ["diffusers", "UNet2DModel"],
            }
            | ({VQVAE: ["diffusers", "AutoencoderKL"]} if self.vae is not None else {}),
            CONDITIONS_NAME: {"conditions": list(self.conditions)} if self.conditions else None,
        }.items():
            if value is None:
                (root / name).unlink(missing_ok=True)  # of a model that these replace
                continue
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
        """Shape of one image: that of an example, unless these are latents."""
        if self.vae is None:
            return self.shape
        unit = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        return (self.vae.config["out_channels"], *(unit * side for side in self.shape[1:]))

    def encode_image(self, images: ArrayLike) -> Array:
        """Examples of images: the same, or their latents."""
        images = jnp.asarray(images)
        return images if self.vae is None else encode_images(self.vae, images, None)

    def decode(self, examples: Array) -> np.ndarray:
        """Images of examples: the same, or what these latents stand for."""
        if self.vae is None:
            return np.asarray(examples)
        # one at a time, as LatentDiffusion does
        return np.concatenate([np.asarray(decode_latents(self.vae, z[None])) for z in examples])

    def encode(self, names: Sequence[str]) -> Array:
        """Labels of conditions, ``(len(names),)``, as :meth:`scores` and :meth:`sample` take them.

        Raises:
            ValueError: a name that the model does not know, or a model without conditions.
        """
        if not self.has_conditions:
            raise ValueError(_UNCONDITIONAL)
        unknown = [name for name in names if name not in self.conditions]
        if unknown:
            raise ValueError(
                f"unknown condition {unknown[0]!r}; this model knows {len(self.conditions)}: "
                f"{', '.join(self.conditions)}"
            )
        return jnp.array([self.conditions.index(name) for name in names], jnp.int32)

    @property
    def has_conditions(self) -> bool:
        """Whether there are conditions, and so :meth:`scores`."""
        return bool(self.conditions)

    @property
    def has_unconditional(self) -> bool:
        """Whether the network was trained without a condition too."""
        classes = self.unet.config["num_class_embeds"]
        return not self.has_conditions or classes == len(self.conditions) + 1

    def unconditional(self, t: ArrayLike) -> Score:
        """The score without a condition at timestep ``t``; one that raises if there is none.

        Raises:
            ValueError: ``t`` is no integer, or outside the training grid.
        """
        t = self.schedule.checked_timestep(t)
        if not self.has_unconditional:
            return Partial(_no_score)
        return Partial(_score, self.unet, self.schedule, t, self._null)

    @property
    def _null(self) -> Array | None:
        """Label of "no condition", where the network takes labels."""
        return jnp.int32(len(self.conditions)) if self.has_conditions else None

    def scores(self, condition: str | Array, t: ArrayLike) -> ScorePair:
        """The pair of scores of a condition (name or label) at timestep ``t``.

        Raises:
            ValueError: an unknown condition, a model without, or ``t`` outside the training grid.
        """
        if not self.has_conditions:
            raise ValueError(_UNCONDITIONAL)
        label = self.encode([condition])[0] if isinstance(condition, str) else condition
        label = self._checked(label)
        if label.ndim:
            raise ValueError(f"scores takes one condition, got labels of shape {label.shape}")
        null: Any = self._null
        t = self.schedule.checked_timestep(t)
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
        null: Any = self._null
        return Partial(_both_predictions, self.unet, t, jnp.stack([null, condition]))

    def sample(
        self,
        conditions: Sequence[str] | Array | None = None,
        key: Array | None = None,
        *,
        noise: Array | None = None,
        num_images: int | None = None,
        num_steps: int = 50,
        guidance: float = 1.0,
        eta: float = 0.0,
        batch_size: int = 64,
    ) -> np.ndarray:
        """One image per entry of ``conditions`` (repeat a condition for more).

        Args:
            conditions: names or labels, ``(n,)``; left out of a model that has none.
            key: draws the noise.
            noise: initial noise ``(n, *shape)``, instead of drawing it.
            num_images: of a model without conditions; as many as there is noise, or one, when left
                out.
            num_steps: of the sampler.
            guidance: 1 samples the conditional distribution itself; otherwise both networks run.
            eta: 0 DDIM, 1 ancestral.
            batch_size: images at a time; does not change the result.

        Returns:
            ``(n, *image_shape)`` as NumPy, not clipped.

        Raises:
            ValueError: no condition or an unknown one, noise of the wrong shape, neither noise nor
                key, or settings outside their range.
        """
        labels = None
        if self.has_conditions or conditions is not None:
            if num_images is not None:
                raise ValueError("num_images is without conditions: repeat a condition for more")
            if not isinstance(conditions, jax.Array | np.ndarray):
                conditions = self.encode(list(conditions or ()))
            labels = self._checked(jnp.asarray(conditions))
            n, what = labels.size, "the number of conditions"
        else:
            n, what = 1 if noise is None else len(noise), "num_images"
            n = n if num_images is None else num_images
        for name, value in ((what, n), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if guidance != 1.0 and labels is None:
            raise ValueError(f"guidance must be 1, got {guidance}: this model has no conditions")
        if guidance != 1.0 and not self.has_unconditional:
            raise ValueError(
                f"guidance must be 1, got {guidance}: this network has no unconditional score"
            )
        if key is None and (noise is None or eta > 0):
            raise ValueError("pass key=jax.random.key(seed) to draw the noise")
        key = jax.random.key(0) if key is None else key
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
                self, None if labels is None else labels[rows], noise[rows], step_keys[rows],
                guidance, num_steps=num_steps, eta=eta, guided=guidance != 1.0,
            )  # fmt: skip
            images.append(self.decode(batch[: n - start]))
        return np.concatenate(images)

    def _checked(self, labels: Array) -> Array:
        if not self.has_conditions:
            raise ValueError(_UNCONDITIONAL)
        labels = jnp.asarray(labels)
        if not isinstance(labels, jax.core.Tracer):
            allowed = (labels >= 0) & (labels < len(self.conditions))
            if not jnp.issubdtype(labels.dtype, jnp.integer) or not bool(allowed.all()):
                raise ValueError(
                    f"condition labels must be integers in 0..{len(self.conditions) - 1}, "
                    f"got {labels.tolist()}"
                )
        return labels


_UNCONDITIONAL = (
    "this model is unconditional: it has no conditions or prompts to compare. sample, detect "
    "--images, spectrum, and every estimator on model.unconditional(t), work without"
)


def check_pixel_index(root: Path) -> str | None:
    """The folder of the autoencoder that a ``model_index.json`` names, if it names one.

    Raises:
        ValueError: it describes no pipeline that is read here.
    """
    path = checked_file(root, root / INDEX_NAME)
    index = read_json(path)
    known = {"unet": "UNet2DModel", "scheduler": None, VQVAE: "AutoencoderKL"}
    for part, entry in index.items():
        if part.startswith("_") or entry in (None, [None, None]):
            continue
        given = entry[-1] if isinstance(entry, list) and entry else entry
        if part not in known or known[part] not in (None, given):
            raise ValueError(f"{path}: {part!r:.80} is {entry!r:.80}. {unread(index)}")
    return VQVAE if index.get(VQVAE) not in (None, [None, None]) else None


def read_scheduler(root: Path) -> tuple[dict[str, Any], Path]:
    """What ``scheduler_config.json`` of a pipeline holds, and its path."""
    folder = checked_subfolder(root, part_folder(root, "scheduler", SCHEDULER_NAME))
    path = checked_file(root, folder / SCHEDULER_NAME)
    return read_json(path, constants=True), path


def _read_conditions(root: Path, unet: dict[str, Any]) -> tuple[str, ...]:
    path, classes = checked_file(root, root / CONDITIONS_NAME), unet["num_class_embeds"]
    if unet["class_embed_type"] is not None:
        raise ValueError(
            f"{root}: class_embed_type {unet['class_embed_type']!r} of the unet is not supported: "
            "conditions are classes of an embedding table (num_class_embeds)"
        )
    if not path.exists():
        if classes is None:
            return ()
        raise FileNotFoundError(
            f"no {CONDITIONS_NAME} in {root}: it names the {classes} classes of the unet "
            "(num_class_embeds), or all but the last if that one means 'none', as in "
            '{"conditions": ["cat", "dog"]}'
        )
    names = read_json(path).get("conditions")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: 'conditions' must be a list of names")
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: names of conditions must be distinct")
    if classes is None and names:
        raise ValueError(
            f"{path}: {len(names)} conditions, but the unet has no classes (num_class_embeds): "
            "remove the file, if the model is unconditional"
        )
    if classes is not None and (not names or classes not in (len(names), len(names) + 1)):
        raise ValueError(
            f"{path}: {len(names)} conditions need {len(names) + 1} class "
            f"embeddings (one is 'none'), or {len(names)} without an unconditional score; unet "
            f"has {classes}"
        )
    return tuple(names)


@jax.jit  # operation by operation, a network takes much longer to compile
def _predictions(unet: UNet2DModel, t: Array, labels: Array | None, points: Array) -> Array:
    result: Array = without_variance(unet(points, t, class_labels=labels), points.shape[1])
    return result


def _both_predictions(unet: UNet2DModel, t: Array, labels: Array, x: Array) -> Array:
    result: Array = _predictions(unet, t, labels, jnp.stack([x, x]))
    return result


def _scores(
    unet: UNet2DModel, schedule: Schedule, t: Array, labels: Array | None, points: Array
) -> Array:
    """Scores of a batch: ``points (n, *shape)`` under ``labels (n,)``."""
    return score_from_prediction(
        _predictions(unet, t, labels, points),
        points,
        alpha=schedule.alpha(t),
        sigma=schedule.sigma(t),
        prediction_type=schedule.prediction_type,
    )


def _score(unet: UNet2DModel, schedule: Schedule, t: Array, label: Array | None, x: Array) -> Array:
    labels = None if label is None else label[None]
    return _scores(unet, schedule, t, labels, x[None])[0]


def _no_score(x: Array) -> Array:
    raise ValueError("this network has no unconditional score: it has no class for 'none'")


@functools.partial(jax.jit, static_argnames=("num_steps", "eta", "guided"))
def _sample(
    model: PixelDiffusion,
    labels: Array | None,
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

    def one(label: Array | None, x: Array, key: Array) -> Any:
        def predict_at(x: Array, t: Array) -> Array:
            if silent and guided and label is not None:
                away, towards = model.predictions(label, t)(x)
                led: Array = away + guidance * (towards - away)
                return led
            if silent:
                labels = None if label is None else label[None]
                alone: Array = _predictions(model.unet, t, labels, x[None])[0]
                return alone
            if label is None:
                return model.unconditional(t)(x)
            pair = model.scores(label, t)
            return pair.guided(x, guidance) if guided else pair.conditional(x)

        return sample(
            predict_at, x, schedule, num_steps=num_steps, eta=eta, key=key,
            prediction_type=schedule.prediction_type if silent else "score",
        )  # fmt: skip

    examples: Array = jax.vmap(one)(labels, noise, keys)
    return examples
