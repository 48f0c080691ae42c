r"""The identities that sharpjax stands on, each checked by numbers: `verify()`.

L1 to L5 give second moments of scores, P1 to P4 concern p-Laplacians, D1 the denoising loss. Papers
and public code print some of them wrongly; each printed form is evaluated beside the correct one,
judged by the same draws, and named with its source. Proofs: `docs/identities.md`; the command:
`sharpjax verify`.
"""

from sharpjax.identities.compare import Comparison
from sharpjax.identities.identity import Identity, Printed, Row
from sharpjax.identities.table import IDENTITIES, verify

__all__ = ["IDENTITIES", "Comparison", "Identity", "Printed", "Row", "verify"]
