"""Methods of estimating a trace: what each needs, what it spends, and its samples.

Their names stand for them with the probes of their own: "hutchinson", "hutch++", "xtrace", "exact".
"""

import dataclasses
from typing import ClassVar

from matfree import stochtrace

from sharpjax._types import Array
from sharpjax.curvature.probes import SAMPLERS, Curvature, check_samples, monte_carlo
from sharpjax.curvature.sketches import hutchpp, xtrace

_QUADRATIC_FORM = stochtrace.monte_carlo_trace()


@dataclasses.dataclass(frozen=True)
class Method:
    """What all have."""

    name: ClassVar[str]  # that stands for it
    least: ClassVar[int] = 1  # products that it takes at least
    joins: ClassVar[bool] = False  # whether more samples join those before, or begin anew


@dataclasses.dataclass(frozen=True)
class Exact(Method):
    """All `d` products: no error, no key."""

    name = "exact"


@dataclasses.dataclass(frozen=True)
class Sampling(Method):
    """Those that draw probes with `E[v v^T] = I`.

    Attributes:
        sampler: distribution of the probes. "signs" (entries -1 or 1; no error from the
            diagonal), "normal", or "sphere" (uniform on the sphere of radius sqrt(d)).

    Raises:
        ValueError: another sampler.
    """

    sampler: str = "signs"

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {list(SAMPLERS)}, got {self.sampler!r}")

    def split(self, products: int) -> tuple[int, int]:
        """How many probes so many products with `A` are for, and how many of these are spent."""
        return products, products

    def draw(self, A: Curvature, key: Array, start: int, num: int, batch_size: int) -> Array:
        """Samples of `tr A` from so many products and the probes from `start` on."""
        raise NotImplementedError

    def samples(
        self, A: Curvature, key: Array, products: int, *, start: int = 0, batch_size: int
    ) -> Array:
        """Samples of `tr A` from at most so many products with it.

        Raises:
            ValueError: a product that is not finite, whose probe is named.
        """
        found = self.draw(A, key, start, products, batch_size)
        num_probes, _ = self.split(products)
        options = {"num_probes": num_probes, "batch_size": batch_size}
        check_samples(found, A, key, start, sampler=self.sampler, **options)
        return found


@dataclasses.dataclass(frozen=True)
class Hutchinson(Sampling):
    """`E[v^T A v] = tr A`, a product a sample.

    For probes of fixed length (signs, sphere) K and H give the same to rounding; for normal probes
    the variance is `2 ||A||_F^2`, which for K does not contain the `d/sigma^4` of pure noise.

    M. F. Hutchinson, A stochastic estimator of the trace of the influence matrix for Laplacian
    smoothing splines, Comm. Statist. Simulation Comput. 19 (1990), doi:10.1080/03610919008812866.
    """

    name = "hutchinson"
    joins = True

    def draw(self, A: Curvature, key: Array, start: int, num: int, batch_size: int) -> Array:
        """One for each probe."""
        options = {"num": num, "sampler": self.sampler, "batch_size": batch_size}
        return monte_carlo(A, key, start, integrand=_QUADRATIC_FORM, **options)


@dataclasses.dataclass(frozen=True)
class HutchPP(Sampling):
    """A third of the products sketch the range of A, a third take the trace there exactly.

    A third are Hutchinson's on the complement: see `sharpjax.curvature.sketches`. Give it `sigma`:
    K is what has a low effective rank.
    """

    name = "hutch++"
    least = 3

    def split(self, products: int) -> tuple[int, int]:
        """Probes of the sketch and of the complement."""
        return products - products // 3, products

    def draw(self, A: Curvature, key: Array, start: int, num: int, batch_size: int) -> Array:
        """One for each probe of the complement."""
        options = {"sampler": self.sampler, "batch_size": batch_size}
        return hutchpp(A, key, rank=num // 3, num_samples=num - 2 * (num // 3), **options)


@dataclasses.dataclass(frozen=True)
class XTrace(Sampling):
    """Every probe sketches for all the others, two products each; give it `sigma`.

    The best where K has a low effective rank: see `sharpjax.curvature.sketches`. It can correct the
    length of probes on the sphere.
    """

    sampler: str = "sphere"
    name = "xtrace"
    least = 2

    def split(self, products: int) -> tuple[int, int]:
        """Half of the products, which are an even number."""
        return products // 2, products // 2 * 2

    def draw(self, A: Curvature, key: Array, start: int, num: int, batch_size: int) -> Array:
        """One for each probe."""
        options = {"sampler": self.sampler, "batch_size": batch_size}
        return xtrace(A, key, num_samples=num // 2, **options)


def chosen(method: Method | str, *allowed: type[Method]) -> Method:
    """The method that a name stands for, or the one given.

    Raises:
        ValueError: none of those allowed.
    """
    for kind in allowed:
        if type(method) is kind:
            return method
        if method == kind.name:
            return kind()
    names = ", ".join(repr(kind.name) for kind in allowed)
    raise ValueError(f"method must be one of {names}, or an object of these, got {method!r}")
