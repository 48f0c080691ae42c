"""How to read the page, in plain words."""

from sharpjax.detection.statistics import STATISTICS
from sharpjax.page.blocks import Section, Terms, Text

_GENERAL = (
    (
        "score",
        "The direction in which a noisy image becomes more probable, grad log p_t(x). A diffusion "
        "model is a network that computes it, with a prompt and without.",
    ),
    (
        "sharp",
        "How fast the score changes from point to point: the Hessian of log p_t. A prompt with one "
        "memorized image leaves nothing open, so its landscape is as sharp as the noise allows, "
        "from the first step on.",
    ),
    (
        "verdict and margin",
        "memorized if a statistic is beyond its threshold, which prompts known to be clean have "
        "set: by default 5% of clean prompts are beyond it too, so a verdict is a reason to look, "
        "no proof. The margin says how far beyond; (unsure) that the value lies within the "
        "threshold's own 95% interval.",
    ),
    (
        "±",
        "Half-width of the 95% interval of the mean over the noises that were drawn: how much the "
        "number would move with other noises.",
    ),
    (
        "ROC, AUC",
        "Of every threshold the part of memorized prompts found, against the part of clean ones "
        "called memorized by mistake. AUC is the area: the probability that a memorized prompt "
        "stands above a clean one; 0.5 is guessing. Brackets are 95% intervals, bands bootstrap "
        "ones, over prompts.",
    ),
    (
        "TPR at FPR ≤ 1%",
        "The part of memorized prompts found when at most one clean prompt in a hundred may be "
        "called memorized. With few clean prompts that allows none.",
    ),
    (
        "exact score",
        "What a perfect network would give, computed from the training images where they are "
        "known. If it does not separate, no detector of this kind can.",
    ),
    (
        "copies, fidelity, success",
        "The part of samples that copy a training image; the part that show their prompt; the part "
        "that show it without copying.",
    ),
)


def section() -> Section:
    """Terms in plain words, and the registered statistics."""
    statistics = []
    for name, entry in STATISTICS.items():
        first = (entry.function.__doc__ or "").split("\n\n")[0]
        text = " ".join(first.replace("\n", " ").split())
        statistics.append((name, f"{_plain(text)} ({entry.source})"))
    return Section(
        "How to read this",
        [
            Terms(_GENERAL),
            Text(
                "The statistics. s_D is the score with the prompt less the score without, H_D the "
                "same of their Hessians, K = I + σ²H; F is a forward evaluation, T a tangent."
            ),
            Terms(statistics),
        ],
    )


_SIGNS = {
    ":math:": "", "`": "", r"\,": " ", r"\|": "‖", r"\operatorname{tr}": "tr ", r"\mathrm": "",
    r"\sigma": "σ",
    r"\alpha": "α", r"\Delta": "Δ", r"\log": "log", r"\sqrt": "√", r"\hat": "", r"\sum": "Σ",
    r"\cdot": "·", "^2": "²", "^3": "³", "^T": "ᵀ", "{": "", "}": "",
}  # fmt: skip


def _plain(text: str) -> str:
    """A docstring's first paragraph without its markup."""
    for sign, letter in _SIGNS.items():
        text = text.replace(sign, letter)
    return text
