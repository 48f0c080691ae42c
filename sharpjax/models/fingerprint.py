"""What tells one model from another: a digest of the files that it is made of."""

import hashlib
import logging
from pathlib import Path

from sharpjax.models.files import (
    CONFIG_NAME,
    SCHEDULER_NAME,
    STEMS,
    ModelDirectory,
    checked_file,
    checked_subfolder,
    find_weights,
    index_name,
    part_folder,
    resolve,
    sha256,
    weights_name,
)

logger = logging.getLogger(__name__)

_PARTS = ("unet", "vae", "vqvae", "text_encoder")
_SETTINGS = (
    "conditions.json",
    SCHEDULER_NAME,
    f"scheduler/{SCHEDULER_NAME}",
    *(f"{part}/config.json" for part in _PARTS),
    *(
        f"tokenizer/{name}"
        for name in (
            "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
            "special_tokens_map.json", "added_tokens.json",
        )
    ),
)  # fmt: skip


def fingerprint(directory: str | Path, *, variant: str | None = None) -> str:
    """Digest of a pipeline's weights and settings, so that a run never goes on with another model.

    All bytes count, for no less will do: two trainings of one architecture have the same headers
    and sizes.  SHA-256 reads more than a gigabyte a second, a small part of the time that loading
    and compiling the model take.

    Args:
        directory: of a pipeline, pixels or latents.
        variant: of the weight files that are used, such as ``"fp16"``.

    Raises:
        FileNotFoundError: the network's weights are missing.
        ValueError: a link that leads outside the directory, or a damaged file.
    """
    root = resolve(directory, folders=_PARTS, variant=variant)
    names = [name for name in _SETTINGS if (root / name).is_file()]
    if (flat := part_folder(root, "unet", CONFIG_NAME)) is None:
        names += [CONFIG_NAME, *weight_files(root, root)]
    for part in _PARTS:
        if (part == "unet" and flat) or (root / part).is_dir():
            folder = checked_subfolder(root, part)
            names += [f"{part}/{name}" for name in weight_files(root, folder)]
    total = hashlib.sha256()
    for name in sorted(names):
        total.update(f"{name} {sha256(checked_file(root, root / name))}\n".encode())
    digest = total.hexdigest()[:16]
    logger.info("fingerprint of %s, of %d files: %s", directory, len(names), digest)
    return digest


def weight_files(root: ModelDirectory, folder: Path) -> list[str]:
    """Names of the files that hold a component's weights: one file, or an index and its shards."""
    for variant in (root.variant, None):
        for stem in STEMS:
            if any((folder / name(stem, variant)).is_file() for name in (weights_name, index_name)):
                return find_weights(root, folder, stem, variant)[1]
    return find_weights(root, folder, STEMS[0], root.variant)[1]  # tells what is there instead
