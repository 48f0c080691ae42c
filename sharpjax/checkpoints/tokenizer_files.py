"""The files of a tokenizer's folder, parsed and checked: what transformers is given to read."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sharpjax.checkpoints.directory import Directory

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
VOCAB, MERGES, FULL = "vocab.json", "merges.txt", "tokenizer.json"
NAMES = (CONFIG, SPECIAL, ADDED, VOCAB, MERGES, FULL)
_LONGEST = 2**16  # of model_max_length: transformers writes 10^30 for "unknown"
TOKEN_KEYS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))
_LIST_KEYS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_CHOICES: dict[str, tuple[Any, Any]] = {
    "padding_side": ("left", "right"),
    "truncation_side": ("left", "right"),
    "split_special_tokens": (False, True),
}


class TokenizerFiles:
    """The checked contents of a tokenizer folder."""

    def __init__(self, directory: Directory):
        folder = self.folder = directory.path
        present = [name for name in NAMES if directory.exists(name)]
        directory.verify_manifest(present)
        self.config = _settings(directory.json(CONFIG), folder / CONFIG)
        length: Any = self.config.get("model_max_length")
        allowed = f"an integer from 2 to {_LONGEST} (Stable Diffusion: 77)"
        valid = _is_id(length) and 2 <= length <= _LONGEST
        _require(valid, folder / CONFIG, "model_max_length", allowed, length)
        added = self.config.get("added_tokens_decoder", {})
        # token -> id, of every token that some file declares
        self.added = {_content(token): int(index) for index, token in added.items()}
        self.full = self.special = self.extra = None
        if FULL in present:
            self.vocab_path = folder / FULL
            self.full = directory.json(FULL)
            self.vocab, self.merges, added = _read_full(self.full, folder / FULL)
            self.added |= added
        else:
            if VOCAB not in present:
                raise FileNotFoundError(f"neither {FULL} nor {VOCAB} in {folder}")
            self.vocab_path = folder / VOCAB
            self.vocab = _checked_vocab(directory.json(VOCAB), folder / VOCAB)
            self.merges = _read_merges(directory.file(MERGES), self.vocab)
        if SPECIAL in present:
            special = _settings(directory.json(SPECIAL), folder / SPECIAL)
            self.special = {k: v for k, v in special.items() if k in (*TOKEN_KEYS, *_LIST_KEYS)}
        if ADDED in present:
            self.extra = _checked_vocab(directory.json(ADDED), folder / ADDED)
            self.added |= self.extra

    def copy_to(self, folder: Path) -> None:
        """Write what was checked, and only that."""
        parts = {CONFIG: self.config, FULL: self.full, SPECIAL: self.special, ADDED: self.extra}
        if self.full is None:
            parts[VOCAB] = self.vocab
            write_merges(folder / MERGES, self.merges)
        for name, value in parts.items():
            if value is not None:
                write_json(folder / name, value)


def _require(holds: bool, path: Path, what: str, allowed: str, given: Any) -> None:
    if not holds:
        raise ValueError(f"{path}: {what} must be {allowed}, got {shortened(repr(given))}")


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
        and token.keys() <= {"content", "__type", *FLAGS}
        and token.get("__type", "AddedToken") == "AddedToken"
        and all(isinstance(token[flag], bool) for flag in FLAGS if flag in token)
    )
    allowed = "a token (a string, or an object with content and true or false for "
    valid = valid and _content(token) != "" and _has_utf8(_content(token))
    _require(valid, path, key, f"{allowed}{', '.join(FLAGS)})", token)
    return token


def _settings(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The entries that change token ids, checked; the others are dropped."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if key in TOKEN_KEYS:
            if value is None and key not in TOKEN_KEYS[:4]:
                continue
            value = _checked_token(value, path, key)
        elif key in _LIST_KEYS:
            valid = isinstance(value, list | None) or value == {}
            _require(valid, path, key, "a list of tokens", value)
            if not value:
                continue
            value = [_checked_token(token, path, key) for token in value]
        elif key == "added_tokens_decoder":
            valid = isinstance(value, dict) and all(
                len(k) <= 10 and k.isdecimal() and _is_id(int(k)) and isinstance(token, dict)
                for k, token in value.items()
            )
            _require(valid, path, key, "an object of ids and tokens, which are objects", value)
            for token in value.values():
                _checked_token(token, path, key)
        elif key in _CHOICES:
            known = _CHOICES[key]
            valid = type(value) is type(known[0]) and value in known
            _require(valid, path, key, " or ".join(map(repr, known)), value)
        elif key != "model_max_length":
            if key.endswith("_token") and isinstance(value, str | dict):
                raise ValueError(
                    f"{path}: unknown special token {key!r} (known: {', '.join(TOKEN_KEYS)})"
                )
            continue
        kept[key] = value
    return kept


def _checked_vocab(vocab: Any, path: Path, key: str = "the vocabulary") -> dict[str, int]:
    _require(isinstance(vocab, dict), path, key, "an object", vocab)
    owner: dict[int, str] = {}
    for token, index in vocab.items():
        what = f"the id of {token!r}"
        _require(_is_id(index), path, what, "an integer from 0 to 2^31 - 1", index)
        if owner.setdefault(index, token) != token:
            raise ValueError(f"{path}: {owner[index]!r} and {token!r} have the same id {index}")
    return vocab


def _checked_merges(pairs: list[Any], vocab: dict[str, int], path: Path) -> list[tuple[str, str]]:
    """Pairs of tokens that give a token; `path` and the number of the pair otherwise."""
    for number, pair in enumerate(pairs, 1):
        valid = len(pair) == 2 and all(isinstance(part, str) for part in pair)
        _require(valid, path, f"merge {number}", "two tokens", pair)
        for token in (*pair, "".join(pair)):
            if token not in vocab:
                raise ValueError(
                    f"{path}: merge {number} needs {shortened(repr(token))}, which is not in the "
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
    """Vocabulary, merges and added tokens of a `tokenizer.json`."""
    model: Any = full.get("model")
    added = full.get("added_tokens", [])
    valid = isinstance(model, dict) and model.get("type") == "BPE"
    _require(valid, path, "model", "an object of type 'BPE'", model)
    vocab = _checked_vocab(model.get("vocab"), path, "model.vocab")
    merges = model.get("merges")
    valid = isinstance(merges, list) and all(isinstance(m, str | list) for m in merges)
    _require(valid, path, "model.merges", "a list of pairs", merges)
    merges = [m.split(" ") if isinstance(m, str) else m for m in merges]
    _require(isinstance(added, list), path, "added_tokens", "a list", added)
    ids = {}
    for token in added:
        valid = isinstance(token, dict) and _is_id(token.get("id"))
        _require(valid, path, "an entry of added_tokens", "an object with an id", token)
        rest = {key: value for key, value in token.items() if key != "id"}
        ids[_content(_checked_token(rest, path, "added_tokens"))] = token["id"]
    return vocab, _checked_merges(merges, vocab, path), ids


def shortened(text: str, most: int = 80) -> str:
    """The text, or its beginning."""
    return text if len(text) <= most else text[: most - 3] + "..."


def write_json(path: Path, value: Any) -> None:
    """As transformers writes it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_merges(path: Path, pairs: Iterable[tuple[str, str]]) -> None:
    """As transformers writes them."""
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
