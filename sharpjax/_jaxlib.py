"""What must be known of a release of jaxlib before JAX starts."""

import os
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version

WRONG_SUMS = ("0.10.2",)  # 0.8.2 to 0.10.1 are right; later ones are told by tests/test_jaxlib.py
_OPTION = "xla_cpu_experimental_ynn_fusion_type"
_KIND = "LIBRARY_FUSION_TYPE_INDIVIDUAL_"
_RIGHT = f"{_KIND}CONVOLUTION,{_KIND}DOT"


def leave_out_wrong_sums() -> None:
    """Have XLA make those YNNPACK fusions alone on CPU that give right numbers.

    Of jaxlib 0.10.2, `jit` of `(A[None] * V[:, None]).sum(-1) * (w * w)[None]` with `A` of 16,000 x
    3 and `V` of 4 x 3 has half of its rows wrong by more than their size, without a word. A
    derivative of a softmax over a data set is such a sum, and so was the curvature of an exact
    score at a batch of points.

    Convolutions and matrix products must stay with YNNPACK. Eigen's, which XLA takes otherwise, are
    wrong where as many CPU devices compute at once as there are cores: from about the 1,024th of a
    program on the first part of a large result is wrong by its size. Of 25 steps of a small Stable
    Diffusion the first of every device's 16 images was another (convolutions); of one evaluation of
    Stable Diffusion 1.4 at its size the unconditional score (products, of which the loop over
    blocks of an attention makes a thousand).

    What the user has chosen in XLA_FLAGS stays. A flag that a release does not know would end the
    process: so it is given to those only that were found wrong.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _OPTION in flags or _version() not in WRONG_SUMS:
        return
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is not None and bridge.backends_are_initialized():
        warnings.warn(
            f"JAX has started before sharpjax was imported, and jaxlib {_version()} computes some "
            "sums wrongly on CPU: import sharpjax first, or set "
            f"XLA_FLAGS=--{_OPTION}={_RIGHT} in the environment",
            stacklevel=3,
        )
        return
    os.environ["XLA_FLAGS"] = f"{flags} --{_OPTION}={_RIGHT}".strip()


def _version() -> str | None:
    try:
        return version("jaxlib")
    except PackageNotFoundError:
        return None
