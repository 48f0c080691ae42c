"""How to read the page, in plain words."""

import re

from sharpjax.detection.statistics import STATISTICS
from sharpjax.report.blocks import Section, Terms, Text

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
        "Standard error, everywhere: here of the mean over the noises that were drawn, so how much "
        "the number would move with other noises. A 95% interval stands in brackets.",
    ),
    (
        "ROC, AUC",
        "Of every threshold the part of memorized prompts found, against the part of clean ones "
        "called memorized by mistake. AUC is the area: the probability that a memorized prompt "
        "stands above a clean one; 0.5 is guessing. Brackets and bands are 95% intervals, over "
        "prompts.",
    ),
    (
        "TPR at FPR ≤ 1%",
        "The part of memorized prompts found when at most one clean prompt in a hundred may be "
        "called memorized. With few clean prompts that allows none, and where the one in a hundred "
        "lies is not known: below 368 of them the interval begins at 0.",
    ),
    (
        "exact score",
        "The value that a statistic has for the score of the noised training images themselves, "
        "where they are known. No bound: a network that blurs them may be told better or worse.",
    ),
    (
        "dimension",
        "How many directions the data have about an image, as the score tells it at one noise "
        "level. LHSD counts the small eigenvalues of -H; FLIPD is tr K + σ²‖s‖², which for a "
        "network's score may be far below 0: its Jacobian need be no covariance. Transition mass "
        "is the share of eigenvalues at LHSD's cutoff.",
    ),
    (
        "gap of losses",
        "The mean logarithm of held-out images' denoising loss less that of suspected ones: above "
        "0 where the suspected ones are known better than chance explains.",
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


_ARGUMENT = r"(\{(?:[^{}]|\{[^{}]*\})*\}|\w)"
_FRACTION = re.compile(r"\\frac" + _ARGUMENT + _ARGUMENT)
_SIGNS = {
    "$": "", "`": "", r"\,": " ", r"\bigl": "", r"\bigr": "", r"\operatorname{div}": "div ",
    r"\operatorname": "", r"\epsilon": "ε", r"\partial": "∂", r"\cos": "cos", r"\max": "max",
    r"\|": "‖", r"\operatorname{tr}": "tr ", r"\mathrm": "",
    r"\sigma": "σ",
    r"\alpha": "α", r"\Delta": "Δ", r"\log": "log", r"\sqrt": "√", r"\hat": "", r"\sum": "Σ",
    r"\cdot": "·", "^2": "²", "^3": "³", "^T": "ᵀ", "{": "", "}": "",
}  # fmt: skip


def _plain(text: str) -> str:
    """A docstring's first paragraph without its markup."""
    text = _FRACTION.sub(r"(\1)/(\2)", text)
    for sign, letter in _SIGNS.items():
        text = text.replace(sign, letter)
    return text
