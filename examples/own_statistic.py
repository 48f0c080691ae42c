# %% [markdown]
# # A statistic of your own
#
# `sharpjax detect --plugin examples/own_statistic.py` computes it besides the default ones: its
# values stand in the records, the tables and the page. The same option of `sharpjax calibrate` sets
# its threshold.

# %%
import jax
import jax.numpy as jnp

import sharpjax as sj


@sj.detection.register(direction=+1, where="first", cost="2F", source="an example")
def relative_difference(pair, x, *, linearized=None):
    """How long `s_D` is beside `s_u`; dimensionless. Larger means memorized."""
    here = pair.linearize(x) if linearized is None else linearized
    return jnp.linalg.norm(here.difference) / jnp.linalg.norm(here.unconditional)


# %% [markdown]
# By itself it is a function of a pair of scores: of two Gaussians, whose scores at `x` are `-x` and
# `1 - x`, it is `1/|x|` times the root of the number of entries.

# %%
if __name__ == "__main__":
    pair = sj.ScorePair(
        jax.tree_util.Partial(jnp.negative),
        jax.tree_util.Partial(lambda x: 1 - x),
        alpha=0.6,
        sigma=0.8,
    )
    x = jnp.arange(1.0, 17)
    print(f"value {relative_difference(pair, x):.6f}, closed form {4 / jnp.linalg.norm(x):.6f}")
