"""Prompts to token ids: CLIP's tokenizer, from a Stable Diffusion model's ``tokenizer/`` folder.

The work is done by transformers' ``CLIPTokenizer``.  What it may read is decided here: the folder
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

import numpy as np

from sharpjax.models.files import (
    checked_file,
    checked_subfolder,
    read_json,
    replace_files,
    verify_manifest,
)

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
VOCAB, MERGES, FULL = "vocab.json", "merges.txt", "tokenizer.json"
_NAMES = (CONFIG, SPECIAL, ADDED, VOCAB, MERGES, FULL)
_END = "</w>"  # ends a token that ends a word
_LONGEST = 2**16  # of model_max_length: transformers writes 10^30 for "unknown"
_TOKEN_KEYS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))
_LIST_KEYS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_SIDES = ("padding_side", "truncation_side")


class Tokenizer:
    """Byte-pair encoding of prompts, padded and truncated to the length of the text encoder.

    Made by :meth:`from_pretrained`.

    Attributes:
        backend: the ``transformers.CLIPTokenizer``.
    """

    def __init__(self, backend: "CLIPTokenizer"):
        self.backend = backend

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        subfolder: str | None = None,
        *,
        vocab_size: int | None = None,
    ) -> "Tokenizer":
        """Read a tokenizer folder, and nothing outside it.

        Args:
            directory: holds ``tokenizer_config.json``, and ``tokenizer.json`` or ``vocab.json``
                and ``merges.txt`` (the first counts where both are there, as in transformers);
                ``special_tokens_map.json`` and ``added_tokens.json`` are optional.
            subfolder: a folder inside it, such as ``"tokenizer"``.
            vocab_size: rows of the text encoder's embedding table, if ids must fit into one.

        Raises:
            FileNotFoundError: no such folder or file.
            ValueError: a file that is not what it should be, a link that leads outside, a special
                token without an id, or an id of ``vocab_size`` or more.
        """
        folder = checked_subfolder(directory, subfolder)
        files = _Files(directory, folder)
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

    def pieces(self) -> list[str]:
        """Texts of all tokens but the special ones, in the order of their ids, none empty."""
        special = set(self.backend.all_special_ids)
        ids = sorted(i for i in self.backend.get_vocab().values() if i not in special)
        texts = [text.strip() for text in self.backend.batch_decode([[i] for i in ids])]
        return [text for text in texts if text and "\ufffd" not in text]  # parts of a character

    def words(self) -> list[str]:
        """Tokens that are whole words of three letters or more, in the order of their ids."""
        vocabulary = self.backend.get_vocab()
        words = [token.removesuffix(_END) for token in vocabulary if token.endswith(_END)]
        known = sorted(words, key=lambda word: vocabulary[word + _END])
        return [word for word in known if len(word) > 2 and word.isascii() and word.isalpha()]

    def __call__(self, prompts: str | Iterable[str]) -> np.ndarray:
        """Token ids ``(n, length)``, int32; a single string is one prompt.

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

        ``<cat>`` with three vectors becomes ``<cat> <cat>_1 <cat>_2``, as in diffusers' pipelines.
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
            str(index): {"content": token.content} | {key: getattr(token, key) for key in _FLAGS}
            for index, token in sorted(backend.added_tokens_decoder.items())
        }
        named = {k: str(v) for k in _TOKEN_KEYS if (v := getattr(backend, k, None)) is not None}
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
        writers = {name: partial(_write_json, value=value) for name, value in contents.items()}
        writers[MERGES] = partial(_write_merges, pairs=full["model"]["merges"])
        # the others hold the added tokens, so that an old list of them must not be read with these
        return replace_files(directory, writers, stale=re.compile(re.escape(ADDED)))


class _Files:
    """The checked contents of a tokenizer folder."""

    def __init__(self, root: str | Path, folder: Path):
        def path(name: str) -> Path:
            return checked_file(root, folder / name)

        self.folder = folder
        present = [name for name in _NAMES if path(name).exists()]
        verify_manifest(root, folder, present)
        self.config = _settings(read_json(folder / CONFIG), folder / CONFIG)
        length: Any = self.config.get("model_max_length")
        if not _is_id(length) or not 2 <= length <= _LONGEST:
            raise ValueError(
                f"{folder / CONFIG}: model_max_length must be an integer from 2 to {_LONGEST} "
                f"(Stable Diffusion: 77), got {length!r}"
            )
        added = self.config.get("added_tokens_decoder", {})
        # token -> id, of every token that some file declares
        self.added = {_content(token): int(index) for index, token in added.items()}
        self.full = self.special = self.extra = None
        if FULL in present:
            self.vocab_path = folder / FULL
            self.full = read_json(folder / FULL)
            self.vocab, self.merges, added = _read_full(self.full, folder / FULL)
            self.added |= added
        else:
            if VOCAB not in present:
                raise FileNotFoundError(f"neither {FULL} nor {VOCAB} in {folder}")
            self.vocab_path = folder / VOCAB
            self.vocab = _checked_vocab(read_json(folder / VOCAB), folder / VOCAB)
            self.merges = _read_merges(folder / MERGES, self.vocab)
        if SPECIAL in present:
            special = _settings(read_json(folder / SPECIAL), folder / SPECIAL)
            self.special = {k: v for k, v in special.items() if k in (*_TOKEN_KEYS, *_LIST_KEYS)}
        if ADDED in present:
            self.extra = _checked_vocab(read_json(folder / ADDED), folder / ADDED)
            self.added |= self.extra

    def copy_to(self, folder: Path) -> None:
        """Write what was checked, and only that."""
        _write_json(folder / CONFIG, self.config)
        if self.full is not None:
            _write_json(folder / FULL, self.full)
        else:
            _write_json(folder / VOCAB, self.vocab)
            _write_merges(folder / MERGES, self.merges)
        if self.special is not None:
            _write_json(folder / SPECIAL, self.special)
        if self.extra is not None:
            _write_json(folder / ADDED, self.extra)


def _load(files: _Files) -> "CLIPTokenizer":
    quiet = "TRANSFORMERS_NO_ADVISORY_WARNINGS"  # that there is no PyTorch is as it should be
    before = os.environ.get(quiet)
    os.environ[quiet] = "1"
    try:
        from transformers import CLIPTokenizer  # a second, which most uses do not need
    finally:
        del os.environ[quiet]
        if before is not None:
            os.environ[quiet] = before
    try:
        with tempfile.TemporaryDirectory() as copy:
            files.copy_to(Path(copy))
            result: CLIPTokenizer = CLIPTokenizer.from_pretrained(copy, local_files_only=True)
            return result
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the Rust library is no Exception
        raise ValueError(
            f"{files.folder}: transformers' CLIPTokenizer cannot be made of these files: {error}"
        ) from error


def _check_ids(backend: "CLIPTokenizer", files: _Files, vocab_size: int | None) -> None:
    """Every id is one that a file gave: transformers invents those that are missing."""
    declared, found = files.vocab | files.added, backend.get_vocab()
    for key in _TOKEN_KEYS:
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


# --- parsing -----------------------------------------------------------------------------------


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _has_utf8(text: str) -> bool:
    """Half of a surrogate pair has none."""
    return text.encode(errors="replace").decode() == text


def _checked_token(token: Any, path: Path, key: str) -> str | dict[str, Any]:
    """A token as the configuration writes it: its text, or a dictionary of text and flags."""
    valid = isinstance(token, str) or (
        isinstance(token, dict)
        and isinstance(token.get("content"), str)
        and token.keys() <= {"content", "__type", *_FLAGS}
        and token.get("__type", "AddedToken") == "AddedToken"
        and all(isinstance(token[flag], bool) for flag in _FLAGS if flag in token)
    )
    if not valid or not _content(token) or not _has_utf8(_content(token)):
        raise ValueError(
            f"{path}: {key} must be a token (a string, or an object with content and true or "
            f"false for {', '.join(_FLAGS)}), got {_shortened(repr(token))}"
        )
    result: str | dict[str, Any] = token
    return result


def _settings(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The entries that change token ids, checked; the others are dropped."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if key in _TOKEN_KEYS:
            if value is None and key not in _TOKEN_KEYS[:4]:
                continue
            kept[key] = _checked_token(value, path, key)
        elif key in _LIST_KEYS:
            if not isinstance(value, list | None) and value != {}:
                raise ValueError(
                    f"{path}: {key} must be a list of tokens, got {_shortened(repr(value))}"
                )
            if value:
                kept[key] = [_checked_token(token, path, key) for token in value]
        elif key == "added_tokens_decoder":
            if not isinstance(value, dict) or not all(
                len(k) <= 10 and k.isdecimal() and _is_id(int(k)) for k in value
            ):
                raise ValueError(
                    f"{path}: {key} must be an object of ids and tokens, got "
                    f"{_shortened(repr(value))}"
                )
            for token in value.values():
                if not isinstance(_checked_token(token, path, key), dict):
                    raise ValueError(f"{path}: {key} must hold objects, got {token!r}")
            kept[key] = value
        elif key in _SIDES:
            if value not in ("left", "right"):
                raise ValueError(f"{path}: {key} must be 'left' or 'right', got {value!r}")
            kept[key] = value
        elif key == "split_special_tokens":
            if not isinstance(value, bool):
                raise ValueError(f"{path}: {key} must be true or false, got {value!r}")
            kept[key] = value
        elif key == "model_max_length":
            kept[key] = value
        elif key.endswith("_token") and isinstance(value, str | dict):
            raise ValueError(
                f"{path}: unknown special token {key!r} (known: {', '.join(_TOKEN_KEYS)})"
            )
    return kept


def _checked_vocab(vocab: Any, path: Path, key: str = "the vocabulary") -> dict[str, int]:
    if not isinstance(vocab, dict):
        raise ValueError(f"{path}: {key} must be an object, got {type(vocab).__name__}")
    owner: dict[int, str] = {}
    for token, index in vocab.items():
        if not _is_id(index):
            raise ValueError(
                f"{path}: the id of {token!r} must be an integer from 0 to 2^31 - 1, got {index!r}"
            )
        if owner.setdefault(index, token) != token:
            raise ValueError(f"{path}: {owner[index]!r} and {token!r} have the same id {index}")
    return vocab


def _checked_merges(pairs: list[Any], vocab: dict[str, int], path: Path) -> list[tuple[str, str]]:
    """Pairs of tokens that give a token; ``path`` and the number of the pair otherwise."""
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ValueError(
                f"{path}: merge {number} must be two tokens, got {_shortened(repr(pair))}"
            )
        for token in (*pair, "".join(pair)):
            if token not in vocab:
                raise ValueError(
                    f"{path}: merge {number} needs {_shortened(repr(token))}, which is not in the "
                    "vocabulary"
                )
    return [tuple(pair) for pair in pairs]


def _read_merges(path: Path, vocab: dict[str, int]) -> list[tuple[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    # not splitlines: tokens may hold characters that it takes for the end of a line
    # nor are blank lines passed over: transformers refuses them too
    lines = text.removesuffix("\n").split("\n") if text else []
    lines = [line for line in lines if not line.startswith("#version")]
    return _checked_merges([line.split(" ") for line in lines], vocab, path)


def _read_full(
    full: dict[str, Any], path: Path
) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    """Vocabulary, merges and added tokens of a ``tokenizer.json``."""
    model, added = full.get("model"), full.get("added_tokens", [])
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise ValueError(f"{path}: model must be an object of type 'BPE'")
    vocab = _checked_vocab(model.get("vocab"), path, "model.vocab")
    merges = model.get("merges")
    if not isinstance(merges, list) or not all(isinstance(m, str | list) for m in merges):
        raise ValueError(f"{path}: model.merges must be a list of pairs")
    merges = [m.split(" ") if isinstance(m, str) else m for m in merges]
    if not isinstance(added, list):
        raise ValueError(f"{path}: added_tokens must be a list, got {type(added).__name__}")
    ids = {}
    for token in added:
        if not isinstance(token, dict) or not _is_id(token.get("id")):
            raise ValueError(
                f"{path}: added_tokens must hold objects with an id, got {_shortened(repr(token))}"
            )
        rest = {key: value for key, value in token.items() if key != "id"}
        ids[_content(_checked_token(rest, path, "added_tokens"))] = token["id"]
    return vocab, _checked_merges(merges, vocab, path), ids


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
                f"prompt {number} ({_shortened(repr(prompt))}) has no UTF-8 form: {error.reason} "
                f"at character {error.start}"
            ) from error
    result: list[str] = prompts
    return result


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
        f"{_shortened(prompt, 40)!r} is too long for {length} tokens: {len(spans)} were dropped, "
        f"the text {_shortened(cut, 200)!r}"
    )


def _shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_merges(path: Path, pairs: Iterable[tuple[str, str]]) -> None:
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
