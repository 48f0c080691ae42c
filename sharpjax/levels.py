"""What a noise level may be, checked once where a user's values come in."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._types import ArrayLike

_T = TypeVar("_T")
# what stands for numbers that are not known: in a trace, and in the trees that describe trees
UNKNOWN = (
    jax.core.Tracer, jax.ShapeDtypeStruct, jax.sharding.PartitionSpec, jax.sharding.Sharding,
    type(None),
)  # fmt: skip


def checked_level(owner: str, alpha: Any, sigma: Any, *, at: str = "") -> tuple[Any, Any]:
    """``alpha`` and ``sigma`` of one noise level, or of several: where a score exists.

    Tensors of other libraries come back as NumPy arrays, all else as it is.  What is not known
    yet (under a trace, or where a pytree holds specifications) is not checked.

    Raises:
        ValueError: not real numbers, not finite in the type that they are computed in,
            ``alpha < 0`` or ``sigma <= 0``.
    """
    checked = []
    for name, value, rule in (("alpha", alpha, ">= 0"), ("sigma", sigma, "> 0")):
        if not isinstance(value, UNKNOWN):
            host = np.asarray(value)
            real = jnp.issubdtype(host.dtype, jnp.floating) or np.issubdtype(host.dtype, np.integer)
            if not real:
                raise ValueError(f"{owner}: {name} must be real numbers, got {value!r:.80}")
            with np.errstate(over="ignore"):
                host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype))
            good = np.isfinite(host) & ((host > 0) | (host == 0) & (name == "alpha"))
            if name == "sigma" and good.all() and jnp.issubdtype(host.dtype, jnp.floating):
                least = float(jnp.finfo(host.dtype).tiny) ** 0.5
                good, rule = host >= least, f">= {least:.3g}, as scores divide by its square,"
            if not good.all():
                place = f" at {at}{np.flatnonzero(~good)[0]}" if at else ""
                raise ValueError(
                    f"{owner}: {name} must be finite and {rule}{' everywhere' if at else ''}, got "
                    f"{host[~good].flat[0]:.6g}{place}; a score exists where there is noise, in "
                    "x = alpha x0 + sigma eps"
                )
            if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int):
                value = host
        checked.append(value)
    return checked[0], checked[1]


def check_signal(alpha: ArrayLike, what: str) -> None:
    """Refuse pure noise for what says nothing there, where ``alpha`` is known.

    Raises:
        ValueError: ``alpha = 0``.
    """
    if not isinstance(alpha, jax.core.Tracer) and np.any(np.asarray(alpha) == 0):
        raise ValueError(
            f"{what} is undefined or 0 for every condition at alpha = 0, which is pure noise; take "
            "a level with alpha > 0: the first of schedule.timesteps_with_signal(num_steps)"
        )


def register_checked(cls: type[_T]) -> type[_T]:
    """A frozen dataclass as a pytree that JAX rebuilds past ``__post_init__``.

    A user's values are checked; gradients, batch axes and whatever else a tree of this shape can
    hold are not levels, and pass.  Fields marked ``static`` are the tree's own.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    static = [field.name for field in fields if field.metadata.get("static")]
    names = [field.name for field in fields if field.name not in static]

    def settings(self: Any) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in static)

    def rebuilt(aux: Any, leaves: Any) -> Any:
        self = object.__new__(cls)
        for name, value in zip((*names, *static), (*leaves, *aux), strict=True):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(
        cls,
        lambda self: (
            [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names],
            settings(self),
        ),
        rebuilt,
        lambda self: ([getattr(self, name) for name in names], settings(self)),
    )
    return cls
