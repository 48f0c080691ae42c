"""What tells one model from another: a digest of the files that it is made of."""

import hashlib
import logging
from pathlib import Path

from sharpjax.checkpoints.directory import (
    CONDITIONS_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    SCHEDULER_NAME,
    Directory,
    sha256,
)
from sharpjax.checkpoints.hub import resolve
from sharpjax.checkpoints.tokenizer_files import NAMES as TOKENIZER_NAMES

logger = logging.getLogger(__name__)

_NETWORKS = (
    "unet", "transformer", "vae", "vqvae", "text_encoder", "text_encoder_2", "text_encoder_3",
)  # fmt: skip
_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


def fingerprint(directory: str | Path | Directory, *, variant: str | None = None) -> str:
    """Digest of a pipeline's weights and settings, so that a run never goes on with another model.

    All bytes count, for no less will do: two trainings of one architecture have the same headers
    and sizes.  SHA-256 reads more than a gigabyte a second, a small part of the time that loading
    and compiling the model take.

    Raises:
        FileNotFoundError: the network's weights are missing.
        ValueError: a link that leads outside the directory, or a damaged file.
    """
    root = resolve(directory, folders=_NETWORKS, variant=variant)
    by_transformer = (root.path / "transformer").is_dir()
    is_flat = not by_transformer and root.component("unet", holding=CONFIG_NAME) is root
    # whose index says more than which parts there are: names of classes, what no prompt is
    told = by_transformer or (root.path / "text_encoder_2").is_dir()
    more = [CONFIG_NAME] if is_flat else [INDEX_NAME] if told else []
    settings: dict[str, tuple[str, ...]] = {
        "": (CONDITIONS_NAME, SCHEDULER_NAME, *more),
        "scheduler": (SCHEDULER_NAME,),
        **dict.fromkeys(_TOKENIZERS, TOKENIZER_NAMES),
        **dict.fromkeys(_NETWORKS, (CONFIG_NAME,)),
    }
    files: dict[str, Path] = {}
    for part, names in settings.items():
        if part and not (root.path / part).is_dir():
            continue
        folder = root.component(part or None)
        names = tuple(name for name in names if folder.exists(name))
        if part in _NETWORKS or (is_flat and not part):
            names += tuple(folder.weight_files())
        files |= {f"{part}/{name}" if part else name: folder.file(name) for name in names}
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        total.update(f"{name} {sha256(path)}\n".encode())
    digest = total.hexdigest()[:16]
    logger.info("fingerprint of %s, of %d files: %s", directory, len(files), digest)
    return digest
