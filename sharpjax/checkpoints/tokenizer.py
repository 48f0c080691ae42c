"""Prompts to token ids: CLIP's tokenizer, from a Stable Diffusion model's `tokenizer/` folder.

The work is done by transformers' `CLIPTokenizer`.  What it may read is decided here: the folder
is untrusted input, so its files are parsed and checked first, and transformers is given a private
copy of what was checked, with the configuration reduced to the keys that change token ids.
"""

import itertools
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from sharpjax.checkpoints.directory import Directory
from sharpjax.checkpoints.tokenizer_files import (
    ADDED,
    CONFIG,
    FLAGS,
    FULL,
    MERGES,
    SPECIAL,
    TOKEN_KEYS,
    VOCAB,
    TokenizerFiles,
    shortened,
    write_json,
    write_merges,
)
from sharpjax.checkpoints.writing import replace_files

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


class Tokenizer:
    """Byte-pair encoding of prompts, padded and truncated to the length of the text encoder.

    Made by `from_pretrained`.

    Attributes:
        backend: the `transformers.CLIPTokenizer`.
    """

    def __init__(self, backend: "CLIPTokenizer"):
        self.backend = backend

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path | Directory,
        subfolder: str | None = None,
        *,
        vocab_size: int | None = None,
    ) -> "Tokenizer":
        """Read a tokenizer folder, and nothing outside it.

        Args:
            directory: holds `tokenizer_config.json`, and `tokenizer.json` or `vocab.json`
                and `merges.txt` (the first counts where both are there, as in transformers);
                `special_tokens_map.json` and `added_tokens.json` are optional.
            subfolder: a folder inside it, such as `"tokenizer"`.
            vocab_size: rows of the text encoder's embedding table, if ids must fit into one.

        Raises:
            FileNotFoundError: no such folder or file.
            ValueError: a file that is not what it should be, a link that leads outside, a special
                token without an id, or an id of `vocab_size` or more.
        """
        if not isinstance(directory, Directory):
            directory = Directory(Path(directory))
        files = TokenizerFiles(directory.component(subfolder))
        backend = _load(files)
        _check_ids(backend, files, vocab_size)
        return cls(backend)

    @property
    def length(self) -> int:
        """Number of ids of every prompt, with start, end and padding."""
        return self.backend.model_max_length

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab().values()) + 1

    def num_tokens(self, prompt: str) -> int:
        """Ids that a prompt takes, start and end included, before any is cut."""
        text = self._with_vectors(_checked_prompts(prompt)[0])
        return len(self.backend(text, truncation=False, verbose=False)["input_ids"])

    def __call__(self, prompts: str | Iterable[str]) -> np.ndarray:
        """Token ids `(n, length)`, int32; a single string is one prompt.

        A prompt that is too long is cut, with one warning: how many are, and what the first lost.

        Raises:
            TypeError: a prompt that is not a string.
            ValueError: a string that has no UTF-8 form (half of a surrogate pair).
        """
        prompts = _checked_prompts(prompts)
        if not prompts:
            return np.zeros((0, self.length), np.int32)
        prompts = [self._with_vectors(prompt) for prompt in prompts]
        batch = self.backend(prompts, padding="max_length", truncation=True, max_length=self.length)
        pairs = zip(prompts, batch.encodings, strict=True)
        cut = [
            told for prompt, one in pairs if (told := _cut(prompt, one.overflowing, self.length))
        ]
        if cut:
            more = f"; {len(cut)} of {len(prompts)} prompts are too long" if len(cut) > 1 else ""
            warnings.warn(f"the prompt {cut[0]}{more}", stacklevel=2)
        return np.asarray(batch["input_ids"], np.int32)

    def _with_vectors(self, prompt: str) -> str:
        """The prompt with all tokens of each concept that textual inversion gave several.

        `<cat>` with three vectors becomes `<cat> <cat>_1 <cat>_2`, as in diffusers' pipelines.
        """
        added = self.backend.added_tokens_encoder
        several = [token for token in added if f"{token}_1" in added]
        if several:
            said = set(self.backend.tokenize(prompt))
            for token in several:
                if token in said:
                    numbered = (f"{token}_{i}" for i in itertools.count(1))
                    more = itertools.takewhile(added.__contains__, numbered)
                    prompt = prompt.replace(token, " ".join([token, *more]))
        return prompt

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write both forms that transformers reads, old and new, and a manifest of their digests.

        Raises:
            FileExistsError: something else stands in the way.
        """
        backend, fast = self.backend, self.backend.backend_tokenizer
        # a call leaves its padding and truncation behind, which would be written too
        fast.no_padding()
        fast.no_truncation()
        full = json.loads(fast.to_str())
        vocab = sorted(full["model"]["vocab"].items(), key=lambda item: item[1])
        added = {
            str(index): {"content": token.content} | {key: getattr(token, key) for key in FLAGS}
            for index, token in sorted(backend.added_tokens_decoder.items())
        }
        named = {k: str(v) for k in TOKEN_KEYS if (v := getattr(backend, k, None)) is not None}
        config = named | {
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": self.length,
            "tokenizer_class": "CLIPTokenizer",
            "padding_side": backend.padding_side,
            "truncation_side": backend.truncation_side,
            "split_special_tokens": backend.split_special_tokens,
        }
        extra = [str(token) for token in backend.extra_special_tokens]
        if extra:
            config["extra_special_tokens"] = extra
        contents = {VOCAB: dict(vocab), SPECIAL: named, CONFIG: config, FULL: full}
        writers = {name: partial(write_json, value=value) for name, value in contents.items()}
        writers[MERGES] = partial(write_merges, pairs=full["model"]["merges"])
        # the others hold the added tokens, so that an old list of them must not be read with these
        return replace_files(directory, writers, stale=re.compile(re.escape(ADDED)))


def _load(files: TokenizerFiles) -> "CLIPTokenizer":
    # that there is no PyTorch is as it should be
    with mock.patch.dict(os.environ, TRANSFORMERS_NO_ADVISORY_WARNINGS="1"):
        from transformers import CLIPTokenizer  # a second, which most uses do not need
    try:
        with tempfile.TemporaryDirectory() as copy:
            files.copy_to(Path(copy))
            return CLIPTokenizer.from_pretrained(copy, local_files_only=True)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise ValueError(
            f"{files.folder}: transformers' CLIPTokenizer cannot be made of these files: {error}"
        ) from error


def _check_ids(backend: "CLIPTokenizer", files: TokenizerFiles, vocab_size: int | None) -> None:
    """Every id is one that a file gave: transformers invents those that are missing."""
    declared, found = files.vocab | files.added, backend.get_vocab()
    for key in TOKEN_KEYS:
        token = getattr(backend, key, None)
        if token is not None and str(token) not in declared:
            raise ValueError(
                f"{files.vocab_path}: the special token {str(token)!r} ({key}) has no id in it"
            )
    for token in declared.keys() | found.keys():
        if declared.get(token) != found.get(token):
            raise ValueError(
                f"{files.folder}: token {token!r} has id {declared.get(token)} in the files, but "
                f"{found.get(token)} in transformers' tokenizer"
            )
    if vocab_size is None:
        return
    token, largest = max(found.items(), key=lambda item: item[1])
    if largest >= vocab_size:
        raise ValueError(
            f"{files.folder}: token {token!r} has id {largest}, but the text encoder's vocab_size "
            f"is {vocab_size}"
        )


def _checked_prompts(prompts: Any) -> list[str]:
    if isinstance(prompts, str):
        prompts = [prompts]
    elif isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise TypeError(
            f"prompts must be a string or several strings, got {type(prompts).__name__}"
        )
    prompts = list(prompts)
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(f"prompt {number} must be a string, got {type(prompt).__name__}")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"prompt {number} ({shortened(repr(prompt))}) has no UTF-8 form: {error.reason} "
                f"at character {error.start}"
            ) from error
    return prompts


def _cut(prompt: str, overflowing: list[Any], length: int) -> str:
    """What is to be told of a prompt that was cut; nothing of another."""
    spans = [
        span
        for encoding in overflowing
        # start, end and padding are marked; a cut piece has them too
        for span, mark in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        if not mark
    ]
    if not spans:
        return ""
    cut = prompt[min(start for start, _ in spans) : max(end for _, end in spans)]
    return (
        f"{shortened(prompt, 40)!r} is too long for {length} tokens: {len(spans)} were dropped, "
        f"the text {shortened(cut, 200)!r}"
    )
