"""Options that say who judges images: what mitigate and screen have in common."""

import dataclasses
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from sharpjax.commands.options import Opened

if TYPE_CHECKING:
    from sharpjax.mitigation.judging import Judge
    from sharpjax.models.latent_diffusion import LatentDiffusion

_judge = partial(typer.Option, rich_help_panel="What judges the images")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeFiles:
    """What tells copies and fidelity of a model whose memories are not known."""

    references: Annotated[
        Path | None,
        _judge(
            exists=True,
            help="Training images: a table with columns [bold]prompt[/bold] and "
            "[bold]file[/bold], or a directory (with a metadata.csv of file_name and text, if "
            "their prompts are known). At least 8 set a threshold of pixels and outlines; or "
            "--sscd compares.",
        ),
    ] = None
    sscd: Annotated[
        Path | None,
        _judge(
            exists=True,
            dir_okay=False,
            help="SSCD's TorchScript file; a copy has a cosine above 0.5. A program, which is run: "
            "use one that you trust. Needs PyTorch.",
        ),
    ] = None
    clip: Annotated[
        str | None,
        _judge(
            help="Directory or hub id of a CLIPModel in safetensors: fidelity is its cosine of "
            "image and prompt. Needs PyTorch."
        ),
    ] = None

    def __post_init__(self) -> None:
        for name, value in (("--sscd", self.sscd), ("--clip", self.clip)):
            if value is not None and self.references is None:
                raise ValueError(f"{name} goes with --references: training images to compare with")

    def load(self, opened: Opened, *, bundled: bool, needed: bool) -> "Judge | None":
        """The judge, from these files or those of the bundled model; None: nobody."""
        from sharpjax.mitigation import judging

        if self.references is not None:
            from sharpjax.mitigation.reference_judge import ReferenceJudge
            from sharpjax.runs.references import read_references

            known = read_references(self.references)
            score = None if self.clip is None else judging.load_clip(self.clip)
            if self.sscd is not None:
                return judging.EmbeddingJudge(known, judging.load_sscd(self.sscd), score)
            judge = ReferenceJudge(*known, score)
            print(judge.control, file=sys.stderr)
            return judge
        if not bundled:
            return None
        from sharpjax.datasets.planted_drawings import planted_drawings
        from sharpjax.runs.truth_of_drawings import load_judge

        network = cast("LatentDiffusion", opened.network)
        try:
            return load_judge(opened.directory, planted_drawings(), network.vae)[0]
        except ImportError as error:
            if needed:
                raise
            warnings.warn(f"copies and fidelity are not judged: {error}", stacklevel=2)
            return None
