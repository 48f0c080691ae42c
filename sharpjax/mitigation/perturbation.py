"""Prompts with something random put between their words.

A memorized prompt is a key that fits one lock: a word more, and it fits less well.  Somepalli et
al., Understanding and mitigating copying in diffusion models, NeurIPS 2023, arXiv:2305.20086.
"""

from typing import Protocol

import numpy as np


class Vocabulary(Protocol):
    """What is asked of a tokenizer."""

    @property
    def length(self) -> int:
        """Ids of a prompt, start and end included."""
        ...

    def num_tokens(self, prompt: str) -> int:
        """Ids that a prompt takes, start and end included, before any is cut."""
        ...

    def pieces(self) -> list[str]:
        """Texts of all ordinary tokens."""
        ...

    def words(self) -> list[str]:
        """Those that are whole words."""
        ...


def add_random(
    prompt: str, count: int, rng: np.random.Generator, vocabulary: Vocabulary, *, what: str
) -> str:
    """The prompt with ``count`` random tokens or words at random places between its words.

    Args:
        prompt: a text.
        count: how many.
        rng: draws them and their places.
        vocabulary: of the model.
        what: ``tokens``, any of the vocabulary as text, or ``words``, whole ones alone.

    Raises:
        ValueError: no room for so many, or a negative count.
    """
    if count < 0:
        raise ValueError(f"the number of random {what} must be at least 0, got {count}")
    if what not in ("tokens", "words"):
        raise ValueError(f"what must be tokens or words, got {what!r}")
    choices = vocabulary.pieces() if what == "tokens" else vocabulary.words()
    if not choices:
        raise ValueError(f"the vocabulary has no {what} to add")
    words = prompt.split()
    for _ in range(count):
        words.insert(int(rng.integers(len(words) + 1)), choices[rng.integers(len(choices))])
    changed = " ".join(words)
    if (taken := vocabulary.num_tokens(changed)) > vocabulary.length:
        raise ValueError(
            f"the prompt {prompt[:60]!r} has no room for {count} random {what}: with them it takes "
            f"{taken} tokens with start and end, the model {vocabulary.length}; add fewer, or "
            "shorten it"
        )
    return changed
