r"""Densities with closed-form scores and Hessians: the truth that estimators are checked against.

* [`Gaussian`][sharpjax.densities.Gaussian], `N(mean, covariance)`;
* [`GaussianMixture`][sharpjax.densities.GaussianMixture], with full covariances;
* [`Empirical`][sharpjax.densities.Empirical], a noised data set: the exact-score oracle, the
  score that a perfectly trained network would have;
* [`LowRankMixture`][sharpjax.densities.LowRankMixture], the same for broad conditions: a Gaussian
  of low rank for each thing, at the dimension of images.

Each is a pytree, so it crosses `jit` and `vmap` as an argument. Its methods take **one** point (use
`jax.vmap` for more), and each method of a point, read from an instance (`p.score`), is a
`jax.tree_util.Partial`, so that it crosses `jit` as an argument too. `noised(alpha, sigma)` is the
density of `alpha x_0 + sigma eps` with `x_0 ~ p` and standard normal `eps`.

What is checked, and when: shapes always; numbers where the constructor can see them (not under a
trace, and never when JAX rebuilds the object from its leaves).
"""

from sharpjax.densities.empirical import Empirical
from sharpjax.densities.gaussian import Gaussian, GaussianMixture
from sharpjax.densities.low_rank import LowRankMixture

__all__ = ["Empirical", "Gaussian", "GaussianMixture", "LowRankMixture"]
