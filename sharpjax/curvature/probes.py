r"""Random probes, the operator that they multiply, and one sample a probe."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matfree import stochtrace

from sharpjax._checks import check_finite
from sharpjax._reprs import one_line
from sharpjax._types import Array, ArrayLike, Matvec
from sharpjax.curvature.operators import Jacobian
from sharpjax.curvature.programs import compiled
from sharpjax.mesh.loops import chunked_map, varying_as

SAMPLERS = {
    "signs": stochtrace.sampler_signs,
    "normal": stochtrace.sampler_normal,
    "sphere": stochtrace.sampler_sphere,
}
DEFAULT_BATCH = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Curvature:
    r"""What the probes multiply, `A`, in terms of one or two Jacobians at the same point.

    Attributes:
        jacobians: `(J,)`, or `(J, J')` to stand for their difference.
        sigma: None for `A = J^k`. Otherwise, with `K = I + sigma^2 J`,
            `A = (K - I)^k - (-I)^k`, which is K for k = 1: as small, and of as low a rank, as K.
            For every k, `tr J^k = (tr A + (-1)^k d)/sigma^{2k}`.
        power: `k >= 1`.
    """

    jacobians: tuple[Jacobian, ...]
    sigma: ArrayLike | None = None
    power: int = dataclasses.field(default=1, metadata={"static": True})

    __repr__ = one_line

    @property
    def point(self) -> Array:
        """Where; the probes have its shape."""
        return self.jacobians[0].point

    @property
    def cost(self) -> int:
        """Products with a Jacobian in one product with `A`."""
        return self.power * len(self.jacobians)

    def mv(self, v: Array) -> Array:
        """`A v`."""
        if self.sigma is None:
            for _ in range(self.power):
                v = self._jacobian_mv(v)
            return v
        # (z - 1)^k - (-1)^k = sum_{j=1}^k C(k, j) (-1)^{k-j} z^j: one Krylov sequence K^j v.
        total = jnp.zeros_like(v)
        for j in range(1, self.power + 1):
            # v is added before any product, entry by entry: where K is small the sum cancels, and
            # here each entry rounds on its own scale and not on that of d.
            v = v + self.sigma**2 * self._jacobian_mv(v)
            total = total + math.comb(self.power, j) * (-1) ** (self.power - j) * v
        return total

    def _jacobian_mv(self, v: Array) -> Array:
        first, *others = (J.tangent_map(v) for J in self.jacobians)
        return first - others[0] if others else first


def draw(sampler: str, like: Array, key: Array, i: ArrayLike) -> Array:
    """Probe i, shaped as `like`: it depends on `(key, i)` only, and `E[v v^T] = I`."""
    (v,) = SAMPLERS[sampler](like, num=1)(jax.random.fold_in(key, i))
    return varying_as(v, like)


@compiled(static_argnames=("integrand", "num", "sampler", "batch_size"))
def monte_carlo(
    A: Curvature,
    key: Array,
    start: ArrayLike = 0,
    *,
    integrand: Callable[[Matvec, Array], Array],
    num: int,
    sampler: str,
    batch_size: int,
) -> Array:
    """One sample `integrand(mv, v)` for each of the probes `start, ..., start + num - 1`.

    Only `batch_size` probes are held at once. An integrand is one of `matfree.stochtrace`.
    """

    def sample(i: Array) -> Array:
        v = draw(sampler, A.point, key, i)
        Av = A.mv(v)
        # Full precision for these sums only: TF32 or bfloat16 would cost them most of their digits.
        with jax.default_matmul_precision("highest"):
            return integrand(lambda _: Av, v)

    return chunked_map(sample, jnp.asarray(start) + jnp.arange(num), batch_size)


def check_samples(
    samples: Array,
    A: Curvature,
    key: Array | None,
    start: int = 0,
    *,
    num_probes: int,
    sampler: str,
    batch_size: int,
) -> None:
    """Where a sample is known and not finite, a ValueError that names the first probe to blame.

    One bad product spoils every sample of a method that sketches, so the products are taken once
    more, to see which it was.
    """
    if isinstance(samples, jax.core.Tracer) or np.isfinite(samples).all():
        return
    options = {"integrand": _is_finite, "sampler": sampler, "batch_size": batch_size}
    bad = np.flatnonzero(~np.asarray(monte_carlo(A, key, start, num=num_probes, **options)))
    if bad.size:
        raise ValueError(
            f"The Jacobian times probe {start + bad[0]} is not finite ({bad.size} of {num_probes} "
            f"probes, sampler={sampler!r}): the score's derivative is not defined at this point, "
            "or overflows"
        )
    check_finite("The estimate", samples)


def _is_finite(mv: Matvec, v: Array) -> Array:
    return jnp.isfinite(mv(v)).all()
