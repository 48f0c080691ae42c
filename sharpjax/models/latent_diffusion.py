"""Stable Diffusion: tokenizer, text encoder, autoencoder, network and schedule as one model.

On disk it is the directory of a ``StableDiffusionPipeline``: ``model_index.json`` and a folder for
each part.  Any such directory of the families 1.x and 2.x is read, and PyTorch reads what is
written.
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
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from sharpjax._types import Array, ArrayLike, Score
from sharpjax.models.autoencoder_kl import AutoencoderKL
from sharpjax.models.checkpoints import from_pretrained, save_pretrained
from sharpjax.models.clip_text import CLIPTextModel
from sharpjax.models.configuration import LEARNED_VARIANCES, check_channels, without_variance
from sharpjax.models.files import checked_file, checked_subfolder, read_json, resolve, unread
from sharpjax.models.tokenizer import Tokenizer
from sharpjax.models.unet_2d_condition import UNet2DConditionModel
from sharpjax.reprs import network
from sharpjax.rundir import write_text
from sharpjax.sampling import sample
from sharpjax.schedules import Schedule
from sharpjax.score import ScorePair, score_from_prediction

# part of model_index.json -> its class there; None: any scheduler that Schedule reads
PARTS: dict[str, tuple[str, ...]] = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "scheduler": (),  # any that it can be read as
}
_LIBRARIES = {
    "tokenizer": "transformers",
    "text_encoder": "transformers",
    "unet": "diffusers",
    "vae": "diffusers",
    "scheduler": "diffusers",
}
# parts that judge or describe finished images, and what says whether one should be there
IGNORED_PARTS = ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LatentDiffusion:
    """A ``ConditionalModel`` whose conditions are prompts; a pytree, so a ``jit`` argument.

    Its states are latents ``(channels, height, width)``, scaled as the network sees them.  An
    encoded condition is the text encoder's ``(tokens, width)``.

    Scores, and what is computed from them, are float32 whatever the network's type: its input and
    output are cast, so that differences and tangents of two scores keep the digits that they have.

    Attributes:
        unet: predicts from latents, timestep and encoded prompt.
        vae: between images and latents.
        text_encoder: encodes prompts.
        schedule: of the noise.
        tokenizer: splits prompts.
        empty: the encoded empty prompt, condition of the unconditional score.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    schedule: Schedule
    empty: Array
    tokenizer: Tokenizer = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        return (
            f"LatentDiffusion(shape={self.shape}, unet={network(self.unet)}, "
            f"vae={network(self.vae)}, text_encoder={network(self.text_encoder)}, "
            f"schedule={self.schedule})"
        )

    @classmethod
    def create(
        cls,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        schedule: Schedule,
        tokenizer: Tokenizer,
    ) -> "LatentDiffusion":
        """Join the parts.

        A schedule that clips is taken without that, as by diffusers' pipeline: it is for pixels.

        Raises:
            ValueError: parts that do not fit each other.
        """
        check_fit(unet, vae, text_encoder, tokenizer)
        schedule = dataclasses.replace(schedule, clip_sample_range=None)
        empty = _encode(text_encoder, tokenizer([""]), clip_skip=0)[0]
        return cls(unet, vae, text_encoder, schedule, empty, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: Any = jnp.float32,
        variant: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        follow_links: bool = False,
        remat: bool = False,
    ) -> "LatentDiffusion":
        """Read the directory of a Stable Diffusion pipeline.

        A ``steps_offset`` other than 1 in the scheduler's configuration is taken for the outdated
        value that it is and read as 1, as by diffusers' pipeline.

        Args:
            name: a directory, or a hub id such as ``"CompVis/stable-diffusion-v1-4"``.
            dtype: of the parameters and of the networks' arithmetic, ``float32`` or ``bfloat16``;
                norms, softmax and scores stay in float32.
            variant: of the weight files, such as ``"fp16"``; of a part that has none, the plain
                files.
            revision: of a hub id: branch, tag or commit.
            local_files_only: never ask the hub.
            follow_links: whether links may lead out of the directory.
            remat: see :attr:`UNet2DConditionModel.remat`.

        Raises:
            FileNotFoundError: no such directory or hub id, or a part is missing.
            ValueError: a part is damaged, not supported, or does not fit the others.
        """
        if np.dtype(dtype) not in (np.float32, jnp.bfloat16):
            raise ValueError(
                f"dtype must be float32 or bfloat16, got {np.dtype(dtype).name}: float16 does not "
                "hold what these networks compute (files in float16 are read into either)"
            )
        root = resolve(
            name,
            folders=tuple(PARTS),
            variant=variant,
            revision=revision,
            local_files_only=local_files_only,
            follow_links=follow_links,
        )
        index = read_json(checked_file(root, root / "model_index.json"))
        check_index(index, root)
        schedule, scheduler = read_schedule(root, index["scheduler"][1])
        tokenizer = Tokenizer.from_pretrained(root, "tokenizer")
        parts = {
            part: from_pretrained(root, part, dtype=dtype)
            for part in ("text_encoder", "vae", "unet")
        }
        for part, module in parts.items():
            if type(module).__name__ not in PARTS[part]:
                raise ValueError(
                    f"{root / part}: must hold a {PARTS[part][0]}, got {type(module).__name__}"
                )
        check_channels(parts["unet"].config, scheduler, root)
        parts["unet"].remat = remat
        try:
            return cls.create(**parts, schedule=schedule, tokenizer=tokenizer)
        except ValueError as error:
            raise ValueError(f"{root}: {error}") from error

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        dtype: Any = None,
        variant: str | None = None,
        max_shard_size: int | None = None,
    ) -> Path:
        """Write a directory that PyTorch's ``StableDiffusionPipeline`` and this class both load.

        The scheduler that it names is DDIM, with the noise levels of this model's, whatever solver
        was named where the model came from.

        Args:
            directory: made if missing; files of the same names are replaced.
            dtype: of the stored tensors; that of the parameters when left out.
            variant: put into the names of the weight files, such as ``"fp16"``.
            max_shard_size: bytes of a weight file; larger parts are split.
        """
        root = Path(directory)
        options = {"dtype": dtype, "variant": variant, "max_shard_size": max_shard_size}
        for part in ("text_encoder", "unet", "vae"):
            save_pretrained(getattr(self, part), root / part, **options)
        self.tokenizer.save_pretrained(root / "tokenizer")
        (root / "scheduler").mkdir(exist_ok=True)
        learned = self.unet.config["out_channels"] != self.unet.config["in_channels"]
        index = {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        for name, value in {
            f"scheduler/{_SCHEDULER}": self.schedule.to_config()
            | ({"variance_type": LEARNED_VARIANCES[1]} if learned else {}),
            "model_index.json": index,
        }.items():
            write_text(root / name, json.dumps(value, indent=2) + "\n")
        return root

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one latent, ``(channels, height, width)``."""
        size = self.unet.config["sample_size"]
        height, width = size if isinstance(size, tuple) else (size, size)
        return (self.unet.config["in_channels"], height, width)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, ``(channels, height, width)``."""
        sides = (side * self.pixels_per_latent for side in self.shape[1:])
        return (self.vae.config["out_channels"], *sides)

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along the side of one latent."""
        result: int = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        return result

    def check(self, prompts: Sequence[str]) -> None:
        """Raise or warn of what :meth:`encode` would, before hours of work."""
        self.tokenizer(list(prompts))

    def encode(self, prompts: Sequence[str], *, clip_skip: int = 0) -> Array:
        """Encoded prompts, ``(len(prompts), tokens, width)``.

        Args:
            prompts: texts; what does not fit the tokenizer's length is cut, with a warning.
            clip_skip: last layers of the text encoder to leave out.

        Raises:
            ValueError: no prompts, or one that is not text.
        """
        if isinstance(prompts, str):
            raise ValueError(f"encode takes a list of prompts, got the string {prompts[:40]!r}")
        if not len(prompts):
            raise ValueError("encode needs at least one prompt")
        return _encode(self.text_encoder, self.tokenizer(list(prompts)), clip_skip=clip_skip)

    @property
    def has_conditions(self) -> bool:
        """True: prompts."""
        return True

    @property
    def has_unconditional(self) -> bool:
        """True: the condition of the unconditional score is the empty prompt."""
        return True

    def unconditional(self, t: ArrayLike) -> Score:
        """The score of the empty prompt at timestep ``t``.

        Raises:
            ValueError: ``t`` is no integer, or outside the training grid.
        """
        t = self.schedule.checked_timestep(t)
        return Partial(_score, self.unet, self.schedule, t, self.empty)

    def scores(self, condition: str | Array, t: ArrayLike) -> ScorePair:
        """The pair of scores of a prompt, given or encoded ``(tokens, width)``, at timestep ``t``.

        Raises:
            ValueError: an encoded prompt of the wrong shape, or ``t`` outside the training grid.
        """
        context = self.encode([condition])[0] if isinstance(condition, str) else condition
        if not isinstance(context, jax.Array | np.ndarray):
            raise ValueError(
                "scores takes one prompt, a string or encoded, got "
                f"{type(condition).__name__} {condition!r:.40}"
            )
        if context.ndim != 2 or context.shape[-1] != self.empty.shape[-1]:
            raise ValueError(
                f"scores takes one encoded prompt of shape (tokens, {self.empty.shape[-1]}), "
                f"got {context.shape}"
            )
        t = self.schedule.checked_timestep(t)
        bound = (self.unet, self.schedule, t)
        stacked = None
        if context.shape == self.empty.shape:
            stacked = Partial(_scores, *bound, jnp.stack([self.empty, context]))
        return ScorePair(
            unconditional=self.unconditional(t),
            conditional=Partial(_score, *bound, context),
            alpha=self.schedule.alpha(t),
            sigma=self.schedule.sigma(t),
            stacked=stacked,
        )

    def predictions(self, condition: Array, t: ArrayLike) -> Callable[[Array], Array]:
        """What the network predicts of ``x`` under the empty and an encoded prompt, as one batch.

        ``x -> (2, *shape)``, in the schedule's ``prediction_type``.
        """
        return Partial(_both_predictions, self.unet, t, jnp.stack([self.empty, condition]))

    def sample(
        self,
        conditions: Sequence[str] | Array,
        key: Array | None = None,
        *,
        noise: Array | None = None,
        num_images: int = 1,
        num_steps: int = 50,
        guidance: float | Sequence[float] = 7.5,
        eta: float = 0.0,
        negative_prompt: str = "",
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 4,
        decode: bool = True,
        mesh: Mesh | None = None,
    ) -> np.ndarray:
        """Images of prompts.

        Args:
            conditions: prompts, or encoded ones ``(n, tokens, width)``.
            key: draws the noise.
            noise: initial noise ``(n * num_images, channels, height, width)`` in latents, instead.
            num_images: of each prompt, one after the other.
            num_steps: of the sampler.
            guidance: of classifier-free guidance; 1 samples the conditional distribution itself,
                with one evaluation a step instead of two. One number, or one for each step.
            eta: 0 DDIM, 1 ancestral.
            negative_prompt: what guidance leads away from.
            height: of the images in pixels; the network's own when left out.
            width: likewise.
            batch_size: images at a time; does not change the result.
            decode: give images; otherwise latents.
            mesh: devices that share a batch, which is rounded up to a multiple of their number.

        Returns:
            ``(n * num_images, 3, height, width)`` from -1 to 1, not clipped, or latents ``(n *
            num_images, *shape)``, as NumPy and float32.

        Raises:
            ValueError: no prompts, noise of the wrong shape, neither noise nor key, or settings
                outside their range.
        """
        if not isinstance(conditions, jax.Array | np.ndarray):
            conditions = self.encode(conditions)
        for name, value in (
            ("the number of prompts", len(conditions)),
            ("num_images", num_images),
            ("batch_size", batch_size),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        contexts = jnp.repeat(jnp.asarray(conditions), num_images, axis=0)
        if contexts.shape[1:] != self.empty.shape:
            raise ValueError(
                f"encoded prompts must have shape (n, {self.empty.shape[0]}, "
                f"{self.empty.shape[1]}), got {np.shape(conditions)}"
            )
        if np.shape(guidance) not in ((), (num_steps,)) or not np.isfinite(guidance).all():
            raise ValueError(
                f"guidance must be a finite number, or {num_steps} of them, got {guidance!s:.80}"
            )
        if key is None and (noise is None or eta > 0):
            raise ValueError("pass key=jax.random.key(seed) to draw the noise")
        key = jax.random.key(0) if key is None else key
        n, shape = len(contexts), self._latent_shape(height, width)
        if noise is None:
            keys = jax.random.split(jax.random.fold_in(key, 0), n)
            noise = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
        noise = jnp.asarray(noise, jnp.float32)
        if noise.ndim != 4 or noise.shape[:2] != (n, shape[0]):
            raise ValueError(
                f"noise must have shape ({n}, {shape[0]}, height, width), got {noise.shape}"
            )
        step_keys = jax.random.split(jax.random.fold_in(key, 1), n)
        negative = self.encode([negative_prompt])[0] if negative_prompt else self.empty
        fixed, size = (self.unet, self.schedule, negative), min(batch_size, n)
        if mesh is not None:
            mesh = Mesh(mesh.devices, mesh.axis_names)  # shardings are XLA's business
            size = -(-size // mesh.size) * mesh.size
            fixed = jax.device_put(fixed, NamedSharding(mesh, PartitionSpec()))
        results = []
        for start in range(0, n, size):
            # pad the last batch by repetition: one compilation serves all
            rows = np.arange(start, start + size) % n
            batch = (contexts[rows], noise[rows], step_keys[rows])
            if mesh is not None:
                batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
            latents = _sample(
                *fixed, *batch, jnp.asarray(guidance, jnp.float32), num_steps=num_steps, eta=eta,
                guided=bool(np.any(np.asarray(guidance) != 1.0)),
            )  # fmt: skip
            latents = latents[: n - start]
            results.append(self.decode(latents) if decode else np.asarray(latents))
        return np.concatenate(results)

    def encode_image(self, images: ArrayLike, key: Array | None = None) -> Array:
        """Latents ``(n, *shape)`` of images ``(n, 3, height, width)`` with values from -1 to 1.

        The mean of the posterior, or a sample of it if a ``key`` is given.

        Raises:
            ValueError: images of the wrong shape.
        """
        result: Array = encode_images(self.vae, jnp.asarray(images), key)
        return result

    def decode(self, latents: Array) -> np.ndarray:
        """Images ``(n, 3, height, width)``, from -1 to 1 but not clipped, of scaled latents.

        One at a time, because an image takes a hundred times its latent's memory on the way.

        Raises:
            ValueError: latents of the wrong shape.
        """
        return np.concatenate(
            [np.asarray(decode_latents(self.vae, z[None])) for z in jnp.asarray(latents)]
        )

    def _latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        channels, *own = self.shape
        sides = []
        for name, pixels, default in (("height", height, own[0]), ("width", width, own[1])):
            if pixels is not None and (pixels < 1 or pixels % self.pixels_per_latent):
                raise ValueError(
                    f"{name} must be a multiple of {self.pixels_per_latent} pixels, got {pixels}"
                )
            sides.append(default if pixels is None else pixels // self.pixels_per_latent)
        return channels, sides[0], sides[1]


_SCHEDULER = "scheduler_config.json"
_MAX_SIDE = 4096  # of a latent: Stable Diffusion's has 64 or 96


def check_index(index: dict[str, Any], root: Path) -> None:
    """Refuse a ``model_index.json`` that does not describe a Stable Diffusion pipeline."""
    where = root / "model_index.json"
    for part, classes in PARTS.items():
        entry = index.get(part)
        if (
            not isinstance(entry, list)
            or len(entry) != 2
            or not all(isinstance(word, str) for word in entry)
            or (classes and entry[1] not in classes)
            or entry[0] != _LIBRARIES[part]
        ):
            wanted = " or ".join(classes) or "a scheduler"
            raise ValueError(
                f"{where}: {part!r} must be [library, {wanted}], the library "
                f"{_LIBRARIES[part]!r}, got {entry!r:.80}. {unread(index)}"
            )
    for part, entry in index.items():
        if part.startswith("_") or part in PARTS or part in IGNORED_PARTS:
            continue
        if entry not in (None, [None, None]):
            raise ValueError(
                f"{where}: unknown part {part!r:.80}, {entry!r:.80}; known: "
                f"{', '.join((*PARTS, *IGNORED_PARTS))}. {unread(index)}"
            )


def read_schedule(root: Path, class_name: str) -> tuple[Schedule, dict[str, Any]]:
    """The schedule of a pipeline whose ``model_index.json`` calls its scheduler ``class_name``.

    As in diffusers that class, not the one that wrote the configuration, decides what a key means
    that is left out.

    Returns:
        The schedule, and the configuration that it was read from.
    """
    path = checked_file(root, checked_subfolder(root, "scheduler") / _SCHEDULER)
    config = read_json(path, constants=True)
    if "_class_name" in config:  # must be one that is known, too
        Schedule.from_config({"_class_name": config["_class_name"]}, where=path)
    where = f"{path} ({class_name!r:.80} in {root / 'model_index.json'})"
    schedule = Schedule.from_config(config | {"_class_name": class_name}, where=where)
    return dataclasses.replace(schedule, steps_offset=1), config


def check_fit(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: Tokenizer,
) -> None:
    """Refuse parts that do not fit each other, before anything is computed."""
    text, width = text_encoder.config, unet.config["cross_attention_dim"]
    widths = {unet.config["encoder_hid_dim"] or width} if isinstance(width, int) else set(width)
    latent, sides = vae.config["latent_channels"], unet.config["sample_size"]
    for holds, message in (
        (
            widths == {text["hidden_size"]},
            f"text_encoder gives embeddings of width {text['hidden_size']} (hidden_size), unet "
            f"takes {', '.join(map(str, sorted(widths)))} (cross_attention_dim)",
        ),
        (
            unet.config["in_channels"] == latent
            and unet.config["out_channels"] in (latent, 2 * latent),  # and a learned variance
            f"unet maps {unet.config['in_channels']} (in_channels) to "
            f"{unet.config['out_channels']} channels (out_channels), vae makes latents of {latent} "
            "(latent_channels); networks with further inputs, as for inpainting, are not supported",
        ),
        (sides is not None, "unet: sample_size must be given"),
        (
            sides is None or all(1 <= n <= _MAX_SIDE for n in np.atleast_1d(sides)),
            f"unet: sample_size must be from 1 to {_MAX_SIDE}, got {sides}",
        ),
        (
            unet.config["class_embed_type"] is None and unet.config["num_class_embeds"] is None,
            "unet wants class labels (class_embed_type, num_class_embeds) beside the prompt, which "
            "is not supported",
        ),
        (
            unet.config["addition_embed_type"] is None,
            "unet wants further embeddings (addition_embed_type) beside the prompt, which is not "
            "supported",
        ),
        (
            unet.config["time_cond_proj_dim"] is None,
            "unet wants the guidance as an input (time_cond_proj_dim), which is not supported",
        ),
        (
            tokenizer.vocab_size <= text["vocab_size"],
            f"tokenizer has {tokenizer.vocab_size} tokens, text_encoder knows "
            f"{text['vocab_size']} (vocab_size)",
        ),
        (
            tokenizer.length <= text["max_position_embeddings"],
            f"tokenizer makes {tokenizer.length} tokens (model_max_length), text_encoder takes "
            f"{text['max_position_embeddings']} (max_position_embeddings)",
        ),
    ):
        if not holds:
            raise ValueError(message)


@functools.partial(jax.jit, static_argnames="clip_skip")
def _hidden(text_encoder: CLIPTextModel, ids: Array, *, clip_skip: int) -> Array:
    return text_encoder(ids, clip_skip=clip_skip).last_hidden_state.astype(jnp.float32)


def _encode(text_encoder: CLIPTextModel, ids: np.ndarray, *, clip_skip: int) -> Array:
    result: Array = _hidden(text_encoder, jnp.asarray(ids), clip_skip=clip_skip)
    return result


def _parameter_dtype(module: nnx.Module) -> Any:
    return jax.tree.leaves(nnx.state(module, nnx.Param))[0].dtype


@jax.jit  # operation by operation, a network takes much longer to compile
def _predictions(unet: UNet2DConditionModel, t: Array, contexts: Array, points: Array) -> Array:
    """The network on a batch ``points (n, *shape)`` under ``contexts (n, tokens, width)``."""
    output = unet(points.astype(_parameter_dtype(unet)), t, contexts).astype(points.dtype)
    result: Array = without_variance(output, points.shape[1])
    return result


def _both_predictions(unet: UNet2DConditionModel, t: Array, contexts: Array, x: Array) -> Array:
    result: Array = _predictions(unet, t, contexts, jnp.stack([x, x]))
    return result


def _scores(
    unet: UNet2DConditionModel, schedule: Schedule, t: Array, contexts: Array, points: Array
) -> Array:
    return score_from_prediction(
        _predictions(unet, t, contexts, points),
        points,
        alpha=schedule.alpha(t),
        sigma=schedule.sigma(t),
        prediction_type=schedule.prediction_type,
    )


def _score(
    unet: UNet2DConditionModel, schedule: Schedule, t: Array, context: Array, x: Array
) -> Array:
    return _scores(unet, schedule, t, context[None], x[None])[0]


@functools.partial(jax.jit, static_argnames=("num_steps", "eta", "guided"))
def _sample(
    unet: UNet2DConditionModel,
    schedule: Schedule,
    negative: Array,
    contexts: Array,
    noise: Array,
    keys: Array,
    guidance: Array,
    *,
    num_steps: int,
    eta: float,
    guided: bool,
) -> Array:
    grid = jnp.asarray(schedule.timesteps(num_steps))

    def one(context: Array, x: Array, key: Array) -> Any:
        def predict_at(x: Array, t: Array) -> Array:
            if not guided:
                alone: Array = _predictions(unet, t, context[None], x[None])[0]
                return alone
            pair = jnp.stack([negative, context])
            away, towards = _predictions(unet, t, pair, jnp.stack([x, x]))
            weight = guidance if guidance.ndim == 0 else guidance[jnp.argmax(grid == t)]
            result: Array = away + weight * (towards - away)
            return result

        return sample(
            predict_at, x, schedule, num_steps=num_steps, eta=eta, key=key,
            prediction_type=schedule.prediction_type,
        )  # fmt: skip

    examples: Array = jax.vmap(one)(contexts, noise, keys)
    return examples


@jax.jit
def encode_images(vae: AutoencoderKL, images: Array, key: Array | None) -> Array:
    """Latents as the network sees them."""
    posterior = vae.encode(images.astype(_parameter_dtype(vae)))
    z = (posterior.mean if key is None else posterior.sample(key)).astype(jnp.float32)
    scaled: Array = z * vae.config["scaling_factor"]  # no shift_factor: the pipeline has none
    return scaled


@jax.jit
def decode_latents(vae: AutoencoderKL, latents: Array) -> Array:
    """Images of latents as the network sees them."""
    z = latents / vae.config["scaling_factor"]
    return vae.decode(z.astype(_parameter_dtype(vae))).astype(jnp.float32)
