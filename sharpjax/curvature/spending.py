"""How many products an estimate of a trace may spend, and the estimate that they buy."""

import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from sharpjax._checks import check_finite, positive_integer, positive_number, prng_key
from sharpjax._types import Array, ArrayLike, Key
from sharpjax.curvature.estimate import Estimate
from sharpjax.curvature.methods import Exact, Hutchinson, HutchPP, Method, Sampling, XTrace, chosen
from sharpjax.curvature.probes import DEFAULT_BATCH, Curvature

_LEAST_SAMPLES = 16  # before an adaptive estimate believes its own standard error
_RESCALED = "The estimate, in units of sigma and in the type of x,"


class Spending:
    """The options of an estimate; `cost` is the products with a Jacobian in one product with A.

    Raises:
        ValueError: as `sharpjax.curvature.trace`.
    """

    def __init__(
        self,
        method: Method | str,
        key: Key | None,
        num_matvecs: int,
        batch_size: int | None,
        rtol: ArrayLike | None = None,
        max_matvecs: int | None = None,
        *,
        cost: int = 1,
        methods: tuple[type[Method], ...] = (Hutchinson, HutchPP, XTrace, Exact),
    ):
        self.method = method = chosen(method, *methods)
        known = None
        if isinstance(method, Sampling):
            known = prng_key(key, f"method={method.name!r} draws random probes")
        batch_size = DEFAULT_BATCH if batch_size is None else batch_size
        batch_size = positive_integer("batch_size", batch_size)
        least = 1 if isinstance(method, Exact) else cost * method.least
        name = "num_matvecs" if least == 1 else f"num_matvecs of method={method.name!r}"
        num_matvecs = positive_integer(name, num_matvecs, least=least)
        if rtol is not None:
            positive_number("rtol", rtol)
        if max_matvecs is not None:
            max_matvecs = positive_integer("max_matvecs", max_matvecs)
            if rtol is None:
                raise ValueError(
                    "max_matvecs is the budget of an adaptive estimate: give rtol too, or say with "
                    "num_matvecs how many products to spend"
                )
            if max_matvecs < num_matvecs and not isinstance(method, Exact):
                raise ValueError(
                    f"max_matvecs must be at least num_matvecs={num_matvecs}, which are spent "
                    f"before the first look, got {max_matvecs}; raise the one or lower the other"
                )
        self.key, self.num_matvecs, self.batch_size = known, num_matvecs, batch_size
        self.rtol, self.max_matvecs = rtol, max_matvecs

    def estimate(
        self,
        A: Curvature,
        exact: Callable[[], Array],
        rescale: Callable[[Array], Array] = lambda samples: samples,
    ) -> Estimate:
        """The mean of `rescale(samples of tr A)`; `exact()` is the same without error."""
        d, cost_of_exact = A.point.size, A.point.size * len(A.jacobians)

        def without_error(spent: int = 0) -> Estimate:
            value = exact()
            stopped = None if self.rtol is None else "tolerance"
            return Estimate(value, jnp.zeros_like(value), 0, spent + cost_of_exact, stopped)

        if not isinstance(self.method, Sampling):
            if self.max_matvecs is not None and self.max_matvecs < cost_of_exact:
                raise ValueError(
                    f"max_matvecs must be at least the {cost_of_exact} products of "
                    f"method='exact', got {self.max_matvecs}; raise it or choose another method"
                )
            return without_error()
        if self.rtol is not None:
            return self._adaptive(A, rescale, without_error, cost_of_exact)
        if not self.method.joins and self.num_matvecs // A.cost >= d:
            return without_error()  # and without a sketch of as many columns as dimensions
        samples, spent = self._samples(A, rescale, self.num_matvecs)
        return Estimate.from_samples(samples, num_matvecs=spent)

    def _samples(
        self, A: Curvature, rescale: Callable[[Array], Array], num_matvecs: int, start: int = 0
    ) -> tuple[Array, int]:
        """From at most `num_matvecs` products, and how many were spent."""
        method, products = cast(Sampling, self.method), num_matvecs // A.cost
        options = {"start": start, "batch_size": self.batch_size}
        samples = rescale(method.samples(A, cast(Array, self.key), products, **options))
        check_finite(_RESCALED, samples)
        return samples, method.split(products)[1] * A.cost

    def _adaptive(
        self,
        A: Curvature,
        rescale: Callable[[Array], Array],
        without_error: Callable[[int], Estimate],
        cost_of_exact: int,
    ) -> Estimate:
        """Rounds of samples until the standard error is small enough or the budget is spent.

        Hutchinson's samples join those before them. A wider sketch needs its products anew: its
        samples replace the others, and what those have cost stays on the bill.
        """
        leaves = jax.tree.leaves((A, self.key, self.rtol))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            raise ValueError(
                "rtol looks at values while it runs, and under jit, vmap or grad there are none: "
                "give a fixed num_matvecs there"
            )
        budget = 2 * cost_of_exact if self.max_matvecs is None else self.max_matvecs
        joins = self.method.joins
        samples, spent, size = np.empty(0), 0, self.num_matvecs
        exact_is_cheaper = size >= cost_of_exact
        while True:
            if exact_is_cheaper and spent + cost_of_exact <= budget:
                return without_error(spent)
            start = len(samples) if joins else 0
            new, cost = self._samples(A, rescale, size, start)
            spent += cost
            samples = np.concatenate([samples[:start], new])

            n, goal = len(samples), float(cast(Array, self.rtol)) * abs(float(np.mean(samples)))
            error = float(np.std(samples, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
            enough = n >= _LEAST_SAMPLES
            if joins:  # as the error falls with 1/sqrt(n), it takes spent (error/goal)^2 in all
                exact_is_cheaper = enough and error > goal * math.sqrt(1 + cost_of_exact / spent)
                size = min(self.batch_size, (budget - spent) // A.cost) * A.cost
            else:  # how it falls depends on the spectrum
                wider = min(2 * size, budget - spent)
                exact_is_cheaper = 2 * size >= cost_of_exact
                size = wider if wider > size else 0
            done = enough and error <= goal
            if done or size == 0:
                estimate = Estimate.from_samples(jnp.asarray(samples, new.dtype), num_matvecs=spent)
                estimate.stopped = "tolerance" if done else "budget"
                return estimate
