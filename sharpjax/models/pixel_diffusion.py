"""A pixel diffusion model: network, schedule and the names of its conditions, if it has any.

On disk it is a diffusers directory (`unet/`, `scheduler/`, `model_index.json`) of a
`DDPMPipeline` or `DDIMPipeline`, so PyTorch loads it too.  A network with classes has their
names in `conditions.json` beside; one without is unconditional.  A `DiTPipeline` has a transformer
in the place of the `unet`, and names the classes in its index.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._reprs import network
from sharpjax._types import Array, ArrayLike, Key
from sharpjax.checkpoints.component import save_pretrained
from sharpjax.checkpoints.configuration import check, check_channels
from sharpjax.checkpoints.directory import CONDITIONS_NAME, CONFIG_NAME, INDEX_NAME, Directory
from sharpjax.checkpoints.hub import resolve
from sharpjax.checkpoints.pipeline import (
    CLASSES,
    ID2LABEL,
    PIXEL,
    VQVAE,
    Pipeline,
    learned_variance,
    read_index,
    write_pipeline,
)
from sharpjax.models.diffusion import Diffusion, read_schedule
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.networks.dit_transformer_2d import DiTTransformer2DModel
from sharpjax.networks.unet_2d import UNet2DModel
from sharpjax.schedules import NoiseSchedule
from sharpjax.score import ScorePair


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PixelDiffusion(Diffusion):
    """A `ConditionalModel` over a fixed list of conditions; a pytree, so a `jit` argument.

    Without conditions it is unconditional: it has `unconditional` and `sample`, and
    what needs a condition raises.

    Attributes:
        unet: class-conditional network; class `i` is condition `i`, the last class is "none",
            where it has one more class than there are conditions. Or one without classes. Where
            it gives twice its input's channels, the second half is a learned variance, unused.
        schedule: of the noise.
        conditions: their names, none of an unconditional network.
        vae: between images and the network's states, where these are latents (`LDMPipeline`).
    """

    unet: UNet2DModel | DiTTransformer2DModel
    schedule: NoiseSchedule
    conditions: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    vae: AutoencoderKL | None = None

    _samples_by_score = True

    def __repr__(self) -> str:
        return (
            f"PixelDiffusion({len(self.conditions)} conditions, shape={self.shape}, "
            f"unet={network(self.unet)}, schedule={self.schedule})"
        )

    @classmethod
    def from_pretrained(cls, directory: str | Path | Directory) -> "PixelDiffusion":
        """Read a directory that `save_pretrained` or diffusers wrote.

        That of a `DDPMPipeline` or `DDIMPipeline`, with its parts in folders or, as some are
        published, all in one; of an `LDMPipeline` whose `vqvae` is an `AutoencoderKL`; or of a
        `DiTPipeline`.

        Raises:
            FileNotFoundError: a part is missing.
            ValueError: a part is damaged or not supported, or the names do not fit the network.
        """
        return cls.of_pipeline(read_index(resolve(directory), PIXEL, CLASSES))

    @classmethod
    def of_pipeline(cls, pipeline: Pipeline) -> "PixelDiffusion":
        """As `from_pretrained`, of a directory whose index was read."""
        root = pipeline.directory
        schedule, scheduler = read_schedule(pipeline)
        unet, *vae = (pipeline.read(part) for part in pipeline.networks)
        config = unet.config
        if pipeline.kind is PIXEL:  # a DiTPipeline drops a variance without being told of it
            check_channels(config, scheduler, root.path)
        names = read_names(pipeline, config)
        if config["sample_size"] is None:
            raise ValueError(f"{root}: sample_size must be given in the unet's {CONFIG_NAME}")
        if vae and vae[0].config["latent_channels"] != config["in_channels"]:
            raise ValueError(
                f"{root}: {pipeline.kind.denoiser} takes {config['in_channels']} channels "
                f"(in_channels), {pipeline.networks[1]} makes latents of "
                f"{vae[0].config['latent_channels']} (latent_channels)"
            )
        return cls(unet, schedule, names, *vae)

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write the diffusers directory."""
        of_classes = isinstance(self.unet, DiTTransformer2DModel)
        names = ("transformer", "vae") if of_classes else ("unet", VQVAE)
        root = save_pretrained(self.unet, Path(directory) / names[0]).parent
        if self.vae is not None:
            save_pretrained(self.vae, root / names[1])
        parts = names if self.vae is not None else names[:1]
        scheduler = self.schedule.to_config() | learned_variance(self.unet.config)
        ours = {"unet": type(self.unet).__name__, VQVAE: type(self.vae).__name__}
        write_pipeline(root, parts, scheduler, self.conditions, ours=ours)
        return root

    def check(self, names: Sequence[str]) -> None:
        """Raise what `encode` would raise of these names."""
        self.encode(names)

    def encode(self, names: Sequence[str]) -> Array:
        """Labels of conditions, `(len(names),)`, as `scores` and `sample` take them.

        Raises:
            ValueError: a name that the model does not know, or a model without conditions.
        """
        if not self.has_conditions:
            raise ValueError(_UNCONDITIONAL)
        unknown = [name for name in names if name not in self.conditions]
        if unknown:
            raise ValueError(
                f"condition must be one of the model's {len(self.conditions)}, got {unknown[0]!r}; "
                f"it knows {', '.join(self.conditions)}"
            )
        return jnp.array([self.conditions.index(name) for name in names], jnp.int32)

    @property
    def has_conditions(self) -> bool:
        """Whether there are conditions, and so `scores`."""
        return bool(self.conditions)

    @property
    def has_unconditional(self) -> bool:
        """Whether the network was trained without a condition too."""
        return not self.has_conditions or num_classes(self.unet.config) == len(self.conditions) + 1

    @property
    def _null(self) -> Array | None:
        return jnp.int32(len(self.conditions)) if self.has_conditions else None

    def scores(self, condition: str | Array, t: ArrayLike) -> ScorePair:
        """The pair of scores of a condition (name or label) at timestep `t`.

        Raises:
            ValueError: an unknown condition, a model without, or `t` outside the training grid.
        """
        label = self.encode([condition])[0] if isinstance(condition, str) else condition
        label = self._checked(label)
        if label.ndim:
            raise ValueError(f"scores takes one condition, got labels of shape {label.shape}")
        return self._pair(label, t)

    def sample(
        self,
        conditions: Sequence[str] | Array | None = None,
        key: Key | None = None,
        *,
        noise: Array | None = None,
        num_images: int | None = None,
        num_steps: int = 50,
        guidance: float = 1.0,
        eta: float = 0.0,
        batch_size: int = 64,
    ) -> np.ndarray:
        """One image per entry of `conditions` (repeat a condition for more).

        Args:
            conditions: names or labels, `(n,)`; left out of a model that has none.
            key: draws the noise.
            noise: initial noise `(n, *shape)`, instead of drawing it.
            num_images: of a model without conditions; as many as there is noise, or one, when left
                out.
            num_steps: of the sampler.
            guidance: 1 samples the conditional distribution itself; otherwise both networks run.
            eta: 0 DDIM, 1 ancestral.
            batch_size: images at a time; changes the speed, and the result by rounding.

        Returns:
            `(n, *image_shape)` as NumPy, not clipped.

        Raises:
            ValueError: no condition or an unknown one, noise of the wrong shape, neither noise nor
                key, or settings outside their range.
        """
        labels = None
        if self.has_conditions or conditions is not None:
            if num_images is not None:
                raise ValueError(
                    "num_images is for models without conditions; of this one repeat a condition, "
                    f"as in [{self.conditions[0]!r}] * {num_images}"
                    if self.has_conditions
                    else _UNCONDITIONAL
                )
            if isinstance(conditions, str):
                raise ValueError(f"sample takes a list of conditions, got {conditions[:40]!r}")
            if not isinstance(conditions, jax.Array | np.ndarray):
                conditions = self.encode(list(conditions or ()))
            labels = self._checked(jnp.asarray(conditions))
            n, what = labels.size, "the number of conditions"
        else:
            n, what = 1 if noise is None else len(noise), "num_images"
            n = n if num_images is None else num_images
        if n < 1:
            raise ValueError(f"{what} must be at least 1, got {n}")
        if np.any(np.asarray(guidance) != 1.0) and not (
            self.has_conditions and self.has_unconditional
        ):
            lacks = "unconditional score" if self.has_conditions else "conditions"
            raise ValueError(f"guidance must be 1, got {guidance}: this model has no {lacks}")
        return self._generate(
            labels,
            n,
            key=key,
            noise=noise,
            shape=self.shape,
            num_steps=num_steps,
            guidance=guidance,
            eta=eta,
            batch_size=batch_size,
        )

    def _checked(self, labels: Array) -> Array:
        if not self.has_conditions:
            raise ValueError(_UNCONDITIONAL)
        labels = jnp.asarray(labels)
        if not isinstance(labels, jax.core.Tracer):
            known = np.asarray(labels)  # by NumPy, for it may be asked inside of a trace
            allowed = (known >= 0) & (known < len(self.conditions))
            if not np.issubdtype(known.dtype, np.integer) or not allowed.all():
                raise ValueError(
                    f"condition labels must be integers in 0..{len(self.conditions) - 1}, "
                    f"got {labels.tolist()}"
                )
        return labels

    # What sampling and the commands ask of a model
    takes_prompts: ClassVar[bool] = False
    default_guidance: ClassVar[float] = 1.0
    meaning_of_levels: ClassVar[str] = "training images of the condition"
    default_batch: ClassVar[int] = 64

    def noise_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        """Shape of the noise of an image: `shape`, as it makes images of one size.

        Raises:
            ValueError: a height or width is given.
        """
        for name, given in (("height", height), ("width", width)):
            check(
                given is None,
                f"a pixel model takes no {name}: it knows conditions, not prompts, and makes "
                f"images of one size, {self.shape[1]} x {self.shape[2]}",
            )
        return self.shape


_UNCONDITIONAL = (
    "this model is unconditional: it has no conditions or prompts to compare. sample, images, "
    "spectrum, and every estimator on model.unconditional(t), work without"
)


def num_classes(config: dict[str, Any]) -> int | None:
    """Classes of a network with this configuration, the one for none among them."""
    if "num_embeds_ada_norm" in config:
        return config["num_embeds_ada_norm"] + 1
    return config["num_class_embeds"]


def read_names(pipeline: Pipeline, config: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes of a pipeline's network, none of one without.

    Raises:
        FileNotFoundError: nothing names them.
        ValueError: names that do not fit the network.
    """
    root = pipeline.directory
    if pipeline.kind is PIXEL:
        return read_conditions(root, config)
    count, labels = config["num_embeds_ada_norm"], root.json(INDEX_NAME).get(ID2LABEL)
    names: Any = [labels.get(str(i)) for i in range(count)] if isinstance(labels, dict) else []
    check(
        len(names) == count and all(isinstance(name, str) and name for name in names),
        f"{root.path / INDEX_NAME}: {ID2LABEL} must name the {count} classes of the transformer "
        f"(num_embeds_ada_norm), '0' to '{count - 1}', got {labels!r:.80}",
    )
    check(
        len(set(names)) == count, f"{root.path / INDEX_NAME}: names in {ID2LABEL} must be distinct"
    )
    return tuple(names)


def read_conditions(root: Directory, unet: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes of a network with this configuration, none of one without."""
    path, classes = root.path / CONDITIONS_NAME, unet["num_class_embeds"]
    if not root.exists(CONDITIONS_NAME):
        if classes is None:
            return ()
        raise FileNotFoundError(
            f"no {CONDITIONS_NAME} in {root}: it names the {classes} classes of the unet "
            "(num_class_embeds), or all but the last if that one means 'none', as in "
            '{"conditions": ["cat", "dog"]}'
        )
    names: Any = root.json(CONDITIONS_NAME).get("conditions")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    check(is_list, f"{path}: 'conditions' must be a list of names")
    check(len(set(names)) == len(names), f"{path}: names of conditions must be distinct")
    check(
        classes is not None or not names,
        f"{path}: {len(names)} conditions, but the unet has no classes (num_class_embeds): remove "
        "the file, if the model is unconditional",
    )
    check(
        classes is None or (len(names) > 0 and classes in (len(names), len(names) + 1)),
        f"{path}: {len(names)} conditions need {len(names) + 1} class embeddings (one is 'none'), "
        f"or {len(names)} without an unconditional score; unet has {classes}",
    )
    return tuple(names)
