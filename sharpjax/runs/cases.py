"""What a model's directory says of its conditions or captions: which are memorized, which clean.

Beside the weights of the bundled models, and of those that `sharpjax train` makes, stand their
ground truth, their training set (of digits), or their captions and the judges of what images show.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpjax.datasets.planted_drawings import CAPTIONS_NAME, planted_drawings, read_captions
from sharpjax.detection.oracle import TRAINING_SET_NAME, TrainingSet
from sharpjax.models.pixel_diffusion import PixelDiffusion
from sharpjax.models.prompt_diffusion import PromptDiffusion
from sharpjax.prompts import Case, balanced, distinct, spread
from sharpjax.runs import truth_of_conditions, truth_of_drawings
from sharpjax.runs.truth_of_conditions import TRUTH_NAME, read_truths
from sharpjax.runs.truth_of_drawings import DrawingTruth, knows_drawings, read_truth

Model = PixelDiffusion | PromptDiffusion
_TUNING, _JUDGING = 3, 10  # memorized captions of a comparison, of each kind
_CLEAN = 12  # clean ones
_NARROW = 60  # captions of one drawing, of which there are hundreds, among those that are clean


def own_cases(
    network: Model, directory: Path, chosen: Sequence[str], *, everything: bool = False
) -> list[Case]:
    """What is to be judged, with what is known of it; all different.

    Args:
        network: of the directory.
        directory: of the model.
        chosen: conditions or prompts; the model's own if there are none.
        everything: all captions that the ground truth has, not a balanced choice.

    Raises:
        ValueError: nothing is chosen and the directory names no prompts, or only blank ones are.
    """
    names = [chosen[place] for place in distinct(chosen)]
    if chosen and not names:
        raise ValueError("--condition is blank, which tells nothing of a model's memory")
    if not network.takes_prompts:
        has_truth = (directory / TRUTH_NAME).is_file()
        return _conditions(network, directory, names or network.conditions, has_truth)
    cases = _captions(directory, everything=everything or bool(names))
    if not cases and not names:
        raise ValueError(
            f"{directory} says of no prompt whether it is memorized; give prompts by --prompts FILE"
        )
    if names:
        known = {case.condition: case for case in cases}
        return [known.get(prompt, Case(prompt)) for prompt in names]
    return cases if everything else balanced(cases)


def _captions(directory: Path, *, everything: bool) -> list[Case]:
    """What the ground truth says of captions; of the drawings' the test part, unless asked for all.

    None if there is no ground truth.
    """
    path = directory / truth_of_drawings.TRUTH_NAME
    if not path.is_file():
        return []
    return [_drawing(t) for t in read_truth(path) if everything or t.part == "test"]


def _drawing(t: DrawingTruth) -> Case:
    """Clean captions are set apart by breadth: a detector may take narrow ones for memorized."""
    planted = t.kind in ("verbatim", "mixed", "template")
    source = f"hot, as {t.like}" if t.like else t.kind if t.kind != "general" else t.breadth
    source += " on a ground" if t.kind == "general" and t.ground else ""
    source += f" q={t.q:g}" if t.kind == "mixed" else ""
    level = t.level if planted else 0
    return Case(t.caption, t.verdict, source, level, t.copies / t.samples, t.part)


def _conditions(
    network: Model, directory: Path, names: Sequence[str], has_truth: bool
) -> list[Case]:
    network.check(names)
    if has_truth:
        truths = {truth.condition: truth for truth in read_truths(directory)}
        if missing := [name for name in names if name not in truths]:
            raise ValueError(f"{TRUTH_NAME} has no row for condition {missing[0]!r}")
        told = [truths[name] for name in names]
        return [Case(t.condition, t.verdict, "", t.set_size, t.copy_rate) for t in told]
    sizes = [0] * len(names)
    if known := training_set_of(network, directory, names):
        sizes = [int(known["training_set"].set_sizes[label]) for label in known["labels"]]
    return [Case(name, level=size) for name, size in zip(names, sizes, strict=True)]


def training_set_of(network: Model, directory: Path, names: Sequence[str]) -> dict[str, Any]:
    """`training_set` and `labels` of conditions, for the exact score; empty if it is not known."""
    known = not network.takes_prompts and network.has_conditions
    if not known or not (directory / TRAINING_SET_NAME).is_file():
        return {}
    labels = np.asarray(network.encode(names))
    return {"training_set": TrainingSet.load(directory), "labels": labels}


def training_images(network: Model, directory: Path) -> tuple[np.ndarray, list[str]]:
    """Images that a model may have learned by heart, `(n, *image_shape)`, and the text of each.

    Of digits the training set; of drawings those that are repeated as they are.

    Raises:
        ValueError: the directory does not say what the model was trained on.
    """
    if (directory / TRAINING_SET_NAME).is_file():
        known = TrainingSet.load(directory)
        names = [network.conditions[label] for label in np.asarray(known.conditions)]
        return np.asarray(known.images), names
    if network.takes_prompts and knows_drawings(directory):
        planted = planted_drawings()
        verbatim = planted.of("verbatim")
        images = planted.fixed_images()[np.isin(planted.planted, verbatim)]
        return images, [planted.captions[i].caption for i in verbatim]
    raise ValueError(
        f"{directory} does not say what the model was trained on; give images that it may "
        "remember by --suspected DIR"
    )


def training_conditions(network: Model, directory: Path) -> Sequence[str]:
    """Conditions under which a model may repeat `training_images`; none of one without conditions.

    Raises:
        ValueError: of a model of prompts, the directory names none.
    """
    if not network.takes_prompts:
        return network.conditions
    if not knows_drawings(directory):
        raise ValueError(
            f"{directory} names no captions that it was trained on; give those of the suspected "
            "images by --prompts FILE"
        )
    known = read_captions(directory / CAPTIONS_NAME)
    return [caption.caption for caption in known if caption.kind == "verbatim"]


def clean_prompts(directory: Path) -> list[str]:
    """Captions that are known to be clean, and judged by nothing; none if it does not say."""
    if not knows_drawings(directory):
        return []
    # detection reports on the test part
    captions = read_captions(directory / CAPTIONS_NAME)
    known = [c for c in captions if c.kind == "general" and c.part == "tuning"]
    narrow = [c for c in known if c.maker]
    every = len(narrow) // _NARROW
    return [c.caption for c in known if not c.maker] + [c.caption for c in narrow[::every]]


def knows_its_memories(directory: Path) -> bool:
    """Whether prompts and judge come with the model: the bundled one, or one trained as it was."""
    has_truth = (directory / truth_of_drawings.TRUTH_NAME).is_file()
    return has_truth and (directory / "classifier").is_dir() and knows_drawings(directory)


def few_cases(directory: Path, num_memorized: int, num_clean: int) -> list[Case]:
    """Some captions that such a model has memorized, and some general ones that are clean."""
    cases = _captions(directory, everything=False)
    names = {c.caption: c for c in read_captions(directory / CAPTIONS_NAME)}
    own = [c for c in cases if c.verdict == "memorized"]
    rest = [c for c in cases if c.verdict == "clean" and names[c.condition].kind == "general"]
    return spread(own, num_memorized) + spread(rest, num_clean)


def compared_cases(directory: Path) -> list[Case]:
    """Captions for a comparison of methods: of every kind of memorized ones some of either part.

    The clean ones are general, of the test part.
    """
    known = _captions(directory, everything=True)
    names = {c.caption: c for c in read_captions(directory / CAPTIONS_NAME)}
    chosen: list[Case] = []
    memorized = [c for c in known if c.verdict == "memorized" and names[c.condition].fixed]
    for kind in dict.fromkeys(c.source for c in memorized):
        for part, count in (("tuning", _TUNING), ("test", _JUDGING)):
            own = [c for c in memorized if c.source == kind and c.part == part]
            chosen += spread(own, count)
    rest = [
        c for c in known
        if c.verdict == "clean" and c.part == "test" and names[c.condition].kind == "general"
    ]  # fmt: skip
    return chosen + spread(rest, _CLEAN)


def verified_cases(directory: Path) -> list[Case]:
    """Memorized captions of the tuning part, whose copies say what a screen misses.

    Of the captions of a template, which repeat one drawing and are therefore no independent
    prompts, there is one.
    """
    names = {c.caption: c for c in read_captions(directory / CAPTIONS_NAME)}
    chosen: dict[str, Case] = {}
    for case in _captions(directory, everything=True):
        caption = names[case.condition]
        if case.verdict == "memorized" and case.part == "tuning" and caption.fixed:
            key = caption.thing if caption.kind == "template" else caption.caption
            chosen.setdefault(key, case)
    return list(chosen.values())


def typical(network: Model, directory: Path) -> tuple[str, ...]:
    """A few conditions or captions, memorized and not, by the model's own ground truth.

    Raises:
        ValueError: there is none.
    """
    drawn = directory / truth_of_drawings.TRUTH_NAME
    if network.takes_prompts and drawn.is_file():
        return truth_of_drawings.typical(read_truth(drawn))
    if not (directory / TRUTH_NAME).is_file():
        raise ValueError(
            f"{directory} has no {TRUTH_NAME} to choose by; name conditions or prompts with "
            "--condition" + (f": {', '.join(network.conditions)}" if network.conditions else "")
        )
    return truth_of_conditions.typical(read_truths(directory))
