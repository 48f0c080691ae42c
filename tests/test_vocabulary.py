"""The tokenizer learned from captions: the merges against a naive twin, the ids against CLIP's."""

import re
import subprocess
import sys
import zlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from sharpjax.checkpoints.tokenizer import Tokenizer
from sharpjax.datasets.planted_drawings import read_captions
from sharpjax.training.vocabulary import END, START, learn_merges, train_tokenizer

CAPTIONS = tuple(c.caption for c in read_captions())


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, length=24)


def naive_merges(words, most):
    """Counts everything again for every merge."""
    counts = Counter(words)
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    merges = []
    while len(merges) < most:
        frequency = Counter()
        for word, symbols in pieces.items():
            for pair in pairwise(symbols):
                frequency[pair] += counts[word]
        if not frequency:
            return merges
        best = min(frequency, key=lambda pair: (-frequency[pair], pair))
        merges.append(best)
        for word, symbols in pieces.items():
            joined, i = [], 0
            while i < len(symbols):
                if tuple(symbols[i : i + 2]) == best:
                    joined.append(symbols[i] + symbols[i + 1])
                    i += 2
                else:
                    joined.append(symbols[i])
                    i += 1
            pieces[word] = joined
    return merges


@pytest.mark.parametrize("most", [1, 40, 10**6])
def test_merges_are_the_naive_ones(most):
    words = [word for caption in CAPTIONS[:120] for word in caption.split()]
    words += ["aaaa", "aaa", "banana", "ababab", "b"]
    assert learn_merges(words, most=most) == naive_merges(words, most)


def test_every_word_is_one_token(tokenizer):
    ids = tokenizer(CAPTIONS)
    assert ids.shape == (len(CAPTIONS), 24)
    vocab = tokenizer.backend.get_vocab()
    for caption, row in zip(CAPTIONS, ids, strict=True):
        words = re.findall("[a-z]+|[0-9]|-", caption)
        expected = [START, *(word + "</w>" for word in words), END]
        assert list(row[: len(expected)]) == [vocab[token] for token in expected]
        assert set(row[len(expected) :]) <= {vocab[END]}


def test_ids_are_in_clips_order(tokenizer):
    vocab = sorted(tokenizer.backend.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocab]
    assert [index for _, index in vocab] == list(range(len(vocab)))
    assert all(len(token) == 1 for token in tokens[:256])
    assert tokens[256:512] == [token + "</w>" for token in tokens[:256]]
    assert tokens[-2:] == [START, END]
    assert tokenizer.vocab_size == len(tokens)


def test_unknown_words_fall_into_pieces(tokenizer):
    row = tokenizer("Zebra's café 42 猫")[0]
    tokens = [t for t in tokenizer.backend.convert_ids_to_tokens(row) if t not in (START, END)]
    assert tokens[-5:-3] == ["4</w>", "2</w>"]  # a digit is a word; then the character's bytes
    text = tokenizer.backend.decode(row, skip_special_tokens=True)
    assert text.replace(" ", "") == "zebra'scafé42猫"


def test_same_captions_same_ids(tokenizer):
    """In whatever order."""
    again = train_tokenizer(CAPTIONS[::-1], length=24)
    np.testing.assert_array_equal(again(CAPTIONS), tokenizer(CAPTIONS))


@pytest.mark.slow
def test_same_ids_in_another_process(tokenizer):
    """Where hashes of strings differ."""
    program = (
        "import zlib; from sharpjax.datasets.planted_drawings import read_captions as r;"
        "from sharpjax.training.vocabulary import train_tokenizer as t;"
        "c = [one.caption for one in r()];"
        "print(zlib.crc32(t(c, length=24)(c).tobytes()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) == zlib.crc32(tokenizer(CAPTIONS).tobytes())


def test_written_and_read_back_by_transformers(tokenizer, tmp_path):
    from transformers import CLIPTokenizer

    tokenizer.save_pretrained(tmp_path)
    prompts = [*CAPTIONS[:50], "A Zebra's 42nd   birthday-cake", ""]
    expected = tokenizer(prompts)
    np.testing.assert_array_equal(Tokenizer.from_pretrained(tmp_path)(prompts), expected)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    found = theirs(prompts, padding="max_length", truncation=True, max_length=24)["input_ids"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("length", "most"), [(2, 8192), (24, 514), (24, 0)])
def test_no_room(length, most):
    with pytest.raises(ValueError, match=r"length must be at least 3 and max_vocab at least 515"):
        train_tokenizer(CAPTIONS, length=length, max_vocab=most)
