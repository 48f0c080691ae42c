r"""How the quick world is made: the captions of the drawings in 256 nearly white numbers.

Minutes instead of hours: the images are encoded by their principal components, a perceptron learns
to denoise them, and beside it stands the exact score of the same captions, a mixture of low-rank
Gaussians with one component for every drawing on every ground and one of rank 0 for every fixed
image.  Statistics, judges and cures are developed on both before the large network exists.

`latent_world` is the same in the latents of the large network, whose exact score it has.
"""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharpjax._reprs import one_line
from sharpjax._types import Array
from sharpjax.datasets.planted_drawings import PlantedDrawings, planted_drawings
from sharpjax.datasets.poses import GROUNDS, colour
from sharpjax.densities import LowRankMixture
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.networks.caption_mlp import CaptionMLP
from sharpjax.networks.linear_codec import LinearCodec
from sharpjax.networks.mixture_denoiser import MixtureDenoiser
from sharpjax.rundir.progress import progress
from sharpjax.schedules import Schedule
from sharpjax.training import Settings, train
from sharpjax.training.bank_denoising import BankDenoising
from sharpjax.training.planted_draws import PlantedDraws

QUICK_SETTINGS = Settings(
    steps=5000, batch_size=192, learning_rate=1e-3, decay=0.6, warmup=200, ema=0.999
)
LATENTS = 256
RENDERINGS = 32  # of every drawing on every ground
RANK = 16
_TOGETHER, _AT_ONCE = 1024, 128  # images that are rendered, and encoded
FLOOR = 0.01  # variance of a fixed image in the exact score, of latents with mean variance 1
# Stable Diffusion's
BETAS: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}


@dataclasses.dataclass(frozen=True)
class Components:
    """What the captions are drawn from: each drawing on each ground on which one shows it.

    Attributes:
        drawings: `(k,)` which drawing.
        grounds: `(k,)` which ground, its number in `GROUNDS` or -1.
        rows: `(captions, drawings)` the component of a caption's fresh draw, -1 where there is
            none.
    """

    drawings: np.ndarray
    grounds: np.ndarray
    rows: np.ndarray

    __repr__ = one_line

    @classmethod
    def create(cls, planted: PlantedDrawings) -> "Components":
        """Of all captions, those that are never drawn too."""
        names, known = list(GROUNDS), dict[tuple[int, int], int]()
        count = len(planted.drawings.names) * len(planted.drawings.makers)
        rows = np.full((len(planted.captions), count), -1)
        for i, caption in enumerate(planted.captions):
            ground = names.index(caption.ground) if caption.ground else -1
            if caption.kind in ("verbatim", "template"):
                continue  # these are never drawn afresh
            for drawing in planted.pools[i, : planted.sizes[i]].tolist():
                rows[i, drawing] = known.setdefault((drawing, ground), len(known))
        pairs = np.array(list(known))
        return cls(pairs[:, 0], pairs[:, 1], rows)

    def shown(self, renderings: int) -> tuple[np.ndarray, np.ndarray]:
        """Of so many renderings of each the drawings `(n,)` and the grounds' colours `(n, 3)`."""
        colours = np.array([colour(name) for name in ("", *GROUNDS)], np.float32)
        grounds = np.repeat(self.grounds, renderings)
        return np.repeat(self.drawings, renderings), colours[grounds + 1]

    def shares(self, planted: PlantedDrawings) -> np.ndarray:
        """`(captions + 1, k + m)` weights of components and fixed images, all data's last."""
        k, captions = len(self.drawings), planted.captions
        shares = np.zeros((len(captions) + 1, k + len(planted.planted)))
        fixed = {caption: k + number for number, caption in enumerate(planted.planted.tolist())}
        for i, caption in enumerate(captions):
            own = self.rows[i][self.rows[i] >= 0]
            if len(own):
                shares[i, own] = (1 - caption.q) / len(own)
            if i in fixed:
                shares[i, fixed[i]] = caption.q
        draws = np.array([caption.draws for caption in captions], float)
        shares[-1] = draws @ shares[:-1] / draws.sum()
        return shares


@dataclasses.dataclass(frozen=True)
class QuickWorld:
    """The captions, encoded.

    Attributes:
        planted: captions and drawings.
        components: what they are drawn from.
        codec: images to latents.
        bank: `(k, renderings, *shape)` fresh ones of each component.
        fixed: `(m, *shape)` of each planted caption.
    """

    planted: PlantedDrawings
    components: Components
    codec: LinearCodec | AutoencoderKL
    bank: np.ndarray
    fixed: np.ndarray

    __repr__ = one_line

    @property
    def captions(self) -> tuple[str, ...]:
        """All of them, as the models know them."""
        return tuple(caption.caption for caption in self.planted.captions)

    def exact(self, *, rank: int = RANK, floor: float = FLOOR) -> PixelDiffusion:
        """The model whose score is exact."""
        k, per = self.bank.shape[:2]
        points = np.concatenate([self.bank.reshape(k * per, *self.bank.shape[2:]), self.fixed])
        labels = np.concatenate([np.repeat(np.arange(k), per), k + np.arange(len(self.fixed))])
        mixture = LowRankMixture.fit(points, labels, rank=rank, floor=floor)
        schedule = Schedule.create(**BETAS)
        shares = jnp.asarray(self.components.shares(self.planted), jnp.float32)
        unet: Any = MixtureDenoiser(mixture, shares, schedule)
        codec: Any = self.codec
        return PixelDiffusion(unet, schedule, self.captions, codec)

    def task(self) -> BankDenoising:
        """What a network learns here."""
        draws = PlantedDraws.create(self.planted)
        return BankDenoising(
            draws=draws,
            bank=jnp.asarray(self.bank),
            component=jnp.asarray(self.components.rows[np.asarray(draws.captions)]),
            fixed=jnp.asarray(self.fixed),
            schedule=Schedule.create(**BETAS, prediction_type="v_prediction"),
            null=len(self.captions),
        )


def quick_world(
    planted: PlantedDrawings | None = None,
    *,
    latents: int = LATENTS,
    renderings: int = RENDERINGS,
    seed: int = 0,
) -> QuickWorld:
    """Render and encode: a few minutes of two cores.

    Args:
        planted: captions and drawings; by default those of the bundled model.
        latents: numbers of an image.
        renderings: of every component.
        seed: of the poses.
    """
    planted = planted or planted_drawings()
    components = Components.create(planted)
    key = jax.random.key(seed)
    drawings, colours = components.shown(renderings)
    chosen = np.random.default_rng(seed).permutation(len(drawings))[: 24 * latents]
    some = planted.render(key, drawings[chosen], colours[chosen])
    codec = LinearCodec.fit(np.concatenate([some, planted.fixed_images()]), latents, seed=seed)
    return _encoded(planted, components, codec, renderings=renderings, key=key)


def latent_world(
    vae: AutoencoderKL,
    planted: PlantedDrawings | None = None,
    *,
    renderings: int = RENDERINGS,
    seed: int = 0,
) -> QuickWorld:
    """The same captions in the latents of an autoencoder, scaled as a network sees them.

    Args:
        vae: of the large network.
        planted: captions and drawings; by default those of the bundled model.
        renderings: of every component.
        seed: of the poses.
    """
    planted, key = planted or planted_drawings(), jax.random.key(seed)
    return _encoded(planted, Components.create(planted), vae, renderings=renderings, key=key)


def _encoded(
    planted: PlantedDrawings,
    components: Components,
    codec: LinearCodec | AutoencoderKL,
    *,
    renderings: int,
    key: Array,
) -> QuickWorld:
    factor = codec.config.get("scaling_factor", 1.0)
    mean = nnx.jit(lambda codec, images: factor * codec.encode(images).mean)

    def encode(images: np.ndarray) -> np.ndarray:
        starts = range(0, len(images), _AT_ONCE)
        return np.concatenate([mean(codec, jnp.asarray(images[i : i + _AT_ONCE])) for i in starts])

    drawings, colours = components.shown(renderings)
    fixed = encode(planted.fixed_images())
    bank = np.empty((len(drawings), *fixed.shape[1:]), np.float32)
    with progress("encoding", total=len(drawings)) as bar:
        for start in range(0, len(drawings), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            own = jax.random.fold_in(key, 1 + start)
            images = planted.render(own, drawings[part], colours[part])
            bank[part] = encode(images)
            bar.advance(len(images))
    return QuickWorld(
        planted=planted,
        components=components,
        codec=codec,
        bank=bank.reshape(-1, renderings, *fixed.shape[1:]),
        fixed=fixed,
    )


def word_numbers(captions: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The words of each caption as numbers, the most frequent word first."""
    counts = Counter(word for caption in captions for word in caption.split())
    number = {word: i for i, (word, _) in enumerate(counts.most_common())}
    return tuple(tuple(number[word] for word in caption.split()) for caption in captions)


def train_quick(
    directory: str | Path,
    world: QuickWorld,
    settings: Settings = QUICK_SETTINGS,
    **options: Any,
) -> PixelDiffusion:
    """Train the perceptron, or go on where `directory` stopped."""
    task, captions = world.task(), world.captions
    latents = world.bank.shape[2]
    network = CaptionMLP(
        in_channels=latents,
        out_channels=latents,
        words=word_numbers(captions),
        num_class_embeds=len(captions) + 1,
        rngs=nnx.Rngs(settings.seed),
    )
    trained: Any = train(network, task, directory, settings, **options)
    codec: Any = world.codec
    return PixelDiffusion(trained, task.schedule, captions, codec)
