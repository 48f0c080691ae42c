"""A tokenizer of CLIP's kind, its vocabulary learned from captions.

Byte-pair encoding (Sennrich, Haddow & Birch 2016, arXiv:1508.07909): the pair of neighbouring
symbols that is the most frequent becomes a symbol, again and again.  Ours and not the trainer of
the `tokenizers` package, because that breaks ties in another order each time: the same captions
must give the same ids, or a training run cannot be resumed.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import CLIPTokenizer

from sharpjax.checkpoints.tokenizer import Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
# CLIP's words: English contractions, letters, one digit at a time, anything else
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

Pair = tuple[str, str]


def train_tokenizer(captions: Sequence[str], *, length: int, max_vocab: int = 8192) -> Tokenizer:
    """A tokenizer whose merges make the captions' words.

    Ids are in CLIP's order: the 256 bytes, the same as ends of words, merges, start, end.  A word
    that is not in the captions falls into pieces, down to bytes: every text has an encoding.

    Args:
        captions: to learn from; their order does not matter.
        length: ids of every prompt, start and end included.
        max_vocab: ids at most; merging stops earlier when every word is one.

    Raises:
        ValueError: `length` leaves no room for a token, or `max_vocab` none for a merge.

    >>> tokenizer = train_tokenizer(["red star", "star"], length=5)
    >>> tokenizer.backend.convert_ids_to_tokens(tokenizer("star")[0])[:3]
    ['<|startoftext|>', 'star</w>', '<|endoftext|>']
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fixed = 2 * len(alphabet) + 2
    if length < 3 or max_vocab <= fixed:
        raise ValueError(
            f"length must be at least 3 and max_vocab at least {fixed + 1}, got {length} and "
            f"{max_vocab}"
        )
    merges = learn_merges(_words(captions), most=max_vocab - fixed)
    tokens = [*alphabet, *(c + _END_OF_WORD for c in alphabet), *map("".join, merges), START, END]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    pairs: Any = merges  # its annotation says strings, and means pairs too
    return Tokenizer(
        CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=length, pad_token=END)
    )


def learn_merges(words: Iterable[str], *, most: int) -> list[Pair]:
    """The merges, first to last; of pairs that are equally frequent the first by the alphabet.

    >>> learn_merges(["abab", "ab"], most=2)
    [('a', 'b</w>'), ('a', 'b')]
    """
    counts = Counter(words)
    pieces = {word: [*word[:-1], word[-1] + _END_OF_WORD] for word in counts}
    frequency: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[str]] = defaultdict(set)
    for word, symbols in pieces.items():
        for pair in pairwise(symbols):
            frequency[pair] += counts[word]
            where[pair].add(word)
    queue = [(-count, pair) for pair, count in frequency.items()]
    heapq.heapify(queue)
    merges: list[Pair] = []
    while queue and len(merges) < most:
        count, pair = heapq.heappop(queue)
        if not frequency[pair] or -count != frequency[pair]:
            continue  # outdated; the present count has its own entry
        merges.append(pair)
        changed = set()
        for word in where[pair]:
            for old in pairwise(pieces[word]):
                frequency[old] -= counts[word]
                changed.add(old)
            pieces[word] = _merged(pieces[word], pair)
            for new in pairwise(pieces[word]):
                frequency[new] += counts[word]
                where[new].add(word)
                changed.add(new)
        for other in changed:
            heapq.heappush(queue, (-frequency[other], other))
    return merges


def _merged(symbols: list[str], pair: Pair) -> list[str]:
    result: list[str] = []
    for symbol in symbols:
        # the last of the result may end a pair only once: "aaa" is "aa", "a"
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return result


def _words(captions: Sequence[str]) -> list[str]:
    """CLIP's words of the captions, each byte a character of its alphabet."""
    normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return [
        word
        for caption in captions
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption))
    ]
