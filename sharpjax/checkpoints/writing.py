"""Files written into a directory all or nothing, with the manifest of their digests."""

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from sharpjax.checkpoints.directory import MANIFEST_NAME, PLAIN, read_json, sha256


def replace_files(
    directory: str | Path,
    writers: Mapping[str, Callable[[Path], object]],
    *,
    stale: re.Pattern[str] | None = None,
) -> Path:
    """Write files into a directory, and the manifest that covers them, all or nothing.

    The files are written beside the directory first.  A new directory then appears by one rename.
    In one that exists, files are renamed into place one by one, after the manifest: were the
    process killed among those renames, the manifest contradicts what is left of the old files,
    and the half-replaced directory is refused, not read.

    `writers` maps a file's name to the function that writes it to the path given to it; `stale` are
    files that these replace under another name, to be removed.

    Raises:
        FileExistsError: a file stands where the directory, or a directory where a file shall be.
    """
    folder = Path(directory)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"cannot write into {folder}: {path} is a file")
    for name in (*writers, MANIFEST_NAME):
        if (folder / name).is_dir():
            raise FileExistsError(f"cannot write {folder / name}: a directory is in the way")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder if folder.exists() else folder.parent
    with tempfile.TemporaryDirectory(dir=beside, prefix=".writing-") as temporary:
        staged = Path(temporary) / "new"
        staged.mkdir()
        for name, write in writers.items():
            write(staged / name)
        digests = {name: sha256(staged / name) for name in writers}
        if (folder / MANIFEST_NAME).is_file():  # another variant's files stay what they are
            for name, digest in read_json(folder / MANIFEST_NAME).items():
                left = PLAIN.fullmatch(name) and not (stale and stale.fullmatch(name))
                if left and (folder / name).is_file():
                    digests.setdefault(name, digest)
        (staged / MANIFEST_NAME).write_text(json.dumps(digests, indent=2, sort_keys=True) + "\n")
        if not folder.exists():
            os.rename(staged, folder)
            return folder
        for name in (MANIFEST_NAME, *writers):
            os.replace(staged / name, folder / name)
        for path in folder.iterdir():
            if stale and stale.fullmatch(path.name) and path.name not in writers:
                path.unlink()
    return folder
