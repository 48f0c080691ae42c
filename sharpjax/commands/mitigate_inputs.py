"""What ``sharpjax mitigate`` works on: prompts, clean prompts beside them, who judges images."""

import warnings
from pathlib import Path
from typing import cast

from sharpjax import judging, replication
from sharpjax.datasets.openmoji import CAPTIONS_NAME, SPLIT_PATH, planted_pictograms
from sharpjax.detection.cases import Case, from_file, spread
from sharpjax.detection.truth import TRUTH_NAME, read_truths
from sharpjax.models.checkpoints import from_pretrained
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.prompts import has_columns, read_prompts

FEW, MANY = (4, 4), (18, 12)  # memorized and clean prompts of the bundled model


def knows_its_memories(directory: Path) -> bool:
    """Whether prompts and judge come with the model: the bundled one, or one trained as it was."""
    path = directory / CAPTIONS_NAME
    return (
        (directory / TRUTH_NAME).is_file()
        and (directory / "classifier").is_dir()
        and path.is_file()
        and path.read_bytes() == SPLIT_PATH.read_bytes()
    )


def find_judge(
    network: LatentDiffusion,
    directory: Path,
    bundled: bool,
    references: Path | None,
    sscd: Path | None,
    clip: str | None,
    *,
    compare: bool,
) -> judging.Judge | None:
    """Who tells copies and fidelity, from the options or the bundled model; None: nobody."""
    if (references is None) != (sscd is None):
        raise ValueError("--references and --sscd go together: training images, and what compares")
    if references is not None:
        embed = judging.load_sscd(cast(Path, sscd))
        score = None if clip is None else judging.load_clip(clip)
        return judging.EmbeddingJudge(judging.read_references(references), embed, score)
    if clip is not None:
        raise ValueError("--clip goes with --references and --sscd")
    if not bundled:
        return None
    try:
        pictograms = planted_pictograms()
    except ImportError as error:
        if compare:
            raise
        warnings.warn(f"copies and fidelity are not judged: {error}", stacklevel=2)
        return None
    memorized = [t.caption for t in _truths(directory) if t.verdict == "memorized"]
    limits = replication.control(network, pictograms)
    classifier = from_pretrained(directory / "classifier")
    return judging.PictogramJudge(pictograms, memorized, limits.threshold, classifier)


def _truths(directory: Path) -> list[replication.CaptionTruth]:
    return read_truths(directory, replication.CaptionTruth)


def find_cases(
    directory: Path,
    bundled: bool,
    prompts: Path | None,
    column: str | None,
    limit: int | None,
    *,
    compare: bool,
) -> list[Case]:
    """The prompts of the file, or some that the bundled model has memorized and some clean."""
    if prompts is not None:
        if limit is not None:
            raise ValueError("--limit is for the bundled model's prompts; shorten the file instead")
        return from_file(prompts, column=column)
    if not bundled:
        raise ValueError(f"--prompts FILE is needed: {directory} names no prompts of its own")
    truths = _truths(directory)
    count, num_clean = MANY if compare else FEW
    memorized = [
        Case(t.caption, t.verdict, level=t.level) for t in truths if t.verdict == "memorized"
    ]
    clean = [
        Case(t.caption, t.verdict)
        for t in truths
        if t.verdict == "clean" and t.group == "general"
    ]  # fmt: skip
    return spread(memorized, count if limit is None else limit) + spread(clean, num_clean)


def find_clean(
    directory: Path, path: Path | None, column: str | None, *, needed: bool
) -> list[str]:
    """Prompts known to be clean, which the thresholds of descents are taken from."""
    if path is not None:
        return read_prompts(path, column=column if has_columns(path) else None)
    if (directory / CAPTIONS_NAME).is_file():
        return replication.clean_captions(directory / CAPTIONS_NAME)
    if needed:
        raise ValueError(
            "--clean FILE is needed: prompts that the model has certainly not memorized, from "
            "which the method takes its threshold"
        )
    return []
