"""Training images that a user knows of: what a judge compares samples with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sharpjax.pictures import read_image
from sharpjax.prompts import read_files
from sharpjax.runs.images import find_images, read_texts


def read_references(path: str | Path) -> tuple[list[np.ndarray], list[str]]:
    """Images of any size and their prompts, of a table of both or of a directory of images.

    A table, or JSON, has `prompt` and `file`; files are looked for beside it.  A directory may have
    a `metadata.csv` (file_name, text); without one the prompts are not known, and are empty.

    Raises:
        FileNotFoundError: no such file or directory, no images, or one that is named is missing.
        ValueError: other columns, no rows, or a file that is no image.
    """
    path = Path(path)
    if path.is_dir():
        cases = find_images(path)
        images = _read([path / case.condition for case in cases])
        return images, read_texts(path, cases) or [""] * len(cases)
    pairs = read_files(path)
    places = [path.parent / file for _, file in pairs]
    for place in places:
        if not place.is_file():
            raise FileNotFoundError(f"{path} names {place}, which is missing")
    return _read(places), [prompt for prompt, _ in pairs]


def _read(paths: Sequence[Path]) -> list[np.ndarray]:
    """All of them, or an error that names every one that is no image."""
    images, wrong = [], []
    for path in paths:
        try:
            images.append(read_image(path))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}: leave {'it' if len(wrong) == 1 else 'them'} out")
    return images
