"""Small trained checkpoints that ship with the package, each a diffusers directory.

Every folder has a model card, `README.md`, with its data, licence and the command that made it.
"""

from pathlib import Path

ROOT = Path(__file__).parent


def bundled() -> tuple[str, ...]:
    """Names of the bundled models."""
    return tuple(sorted(path.parent.name for path in ROOT.glob("*/model_index.json")))


def find(name_or_directory: str | Path) -> Path:
    """The directory of a bundled model, or the directory itself.

    Raises:
        FileNotFoundError: neither; the message lists the bundled names.
    """
    text = str(name_or_directory)
    if text in bundled():
        return ROOT / text
    if Path(text).is_dir():
        return Path(text)
    if text == "openmoji":
        raise FileNotFoundError(
            "'openmoji', the model of pictograms, was in sharpjax 0.1: its clean captions are as "
            "narrow as its memorized ones, or nearly, so little tells them apart; the bundled "
            "model of prompts is 'drawings'"
        )
    raise FileNotFoundError(
        f"unknown model {text!r}: neither a directory nor one of the bundled models "
        f"({', '.join(bundled()) or 'none'})"
    )
