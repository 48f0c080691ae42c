"""Ground truth of any prompts by generation: how many samples copy a known training image?

The judge is the user's training images (`sharpjax.mitigation.reference_judge`), or any other.  A
prompt is *memorized* if the lower 95% limit (Clopper & Pearson) of its copy rate is above the
judge's false-alarm rate, *another* if that holds for copies of other prompts' images alone,
*clean* if no sample copies, and *between* otherwise.  Clean is said of these references and so
many samples: 0 of 8 still allows a copy rate of .37, and an image that is no reference is not
looked for.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from sharpjax.mitigation.judging import Judge
from sharpjax.pictures import read_image
from sharpjax.rundir.files import within, write_csv
from sharpjax.rundir.run import Run
from sharpjax.runs.sample import GenerationSettings, Model, generate
from sharpjax.runs.truth_of_drawings import TRUTH_NAME, exact_interval, verdict

SAMPLES_NAME = "samples"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptTruth:
    """What generation says of one prompt; a table of these is a file of labelled prompts.

    Attributes:
        prompt: the text.
        label: memorized, another, between or clean.
        samples: drawn.
        copies: of a reference of the prompt among them, or of one whose prompt is not known.
        low: lower end of the exact 95% interval of the copy rate.
        high: upper end.
        others: copies of other prompts' references.
        copies_of: whose most of these are.
        likeness: to the nearest reference, mean.
    """

    prompt: str
    label: str
    samples: int
    copies: int
    low: float
    high: float
    others: int
    copies_of: str
    likeness: float


def measure_prompts(
    model: Model,
    prompts: Sequence[str],
    judge: Judge,
    directory: str | Path,
    *,
    fingerprint: str,
    false_alarm: float,
    references: str,
    num_samples: int = 8,
    num_steps: int = 50,
    guidance: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> list[PromptTruth]:
    """Sample prompts and count copies, or finish a measurement that was stopped.

    Writes the samples in `samples/` and the table `truth.csv`.

    Args:
        model: of prompts.
        prompts: texts, all different.
        judge: of copies.
        directory: of the run.
        fingerprint: of the model.
        false_alarm: rate of the judge, its upper limit.
        references: a digest of them: other ones make another run.
        num_samples: of each prompt.
        num_steps: of the sampler.
        guidance: of the sampler; the model's own when left out.
        seed: of the noise.
        batch_size: images at a time.
        mesh: devices that share a batch.

    Raises:
        ValueError: another measurement is in `directory`.
        FileExistsError: something else is in it.
    """
    guidance = model.default_guidance if guidance is None else guidance
    settings = GenerationSettings(num_steps=num_steps, guidance=guidance, seed=seed)
    about = {"num_steps": num_steps, "guidance": guidance, "seed": seed, "num_samples": num_samples}
    judged = {"references": references, "threshold": judge.threshold}
    Run.claim(directory, "ground-truth", {"model": fingerprint} | about | judged)
    folder = Path(directory) / SAMPLES_NAME
    records = generate(
        model, prompts, folder, settings,
        fingerprint=fingerprint, num_images=num_samples, batch_size=batch_size, mesh=mesh,
    )  # fmt: skip
    truths = []
    for index, prompt in enumerate(prompts):
        files = [record["file"] for record in records if record["index"] == index]
        images = np.stack([read_image(within(folder, file)) for file in files])
        truths.append(_truth(images, prompt, judge, false_alarm))
    write_csv(Path(directory) / TRUTH_NAME, [dataclasses.asdict(one) for one in truths])
    return truths


def _truth(images: np.ndarray, prompt: str, judge: Judge, false_alarm: float) -> PromptTruth:
    found, n = judge(images, [prompt] * len(images)), len(images)
    copies, others, copies_of = found.counts()
    low, high = exact_interval(copies, n)
    told = verdict(copies, others, n, planted=copies + others > 0, false_alarm=false_alarm)
    return PromptTruth(
        prompt=prompt,
        label=told,
        samples=n,
        copies=copies,
        low=low,
        high=high,
        others=others,
        copies_of=copies_of,
        likeness=float(np.fmax(found.own, found.other).mean()),
    )
