"""Prompts to token ids by T5's tokenizer, from the `tokenizer.json` of a folder.

The work is done by the `tokenizers` library, which is given the text of that one file and nothing
else: the folder is untrusted input.
"""

import functools
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpjax.checkpoints.directory import Directory
from sharpjax.checkpoints.writing import replace_files

LENGTH = 256  # tokens of a prompt, as Stable Diffusion 3's pipeline has it
_FILE, _PAD, _END = "tokenizer.json", "<pad>", "</s>"


class T5Tokenizer:
    """Pieces of words to ids, padded and truncated to `LENGTH`.

    Made by `from_pretrained`.

    Attributes:
        backend: of the `tokenizers` library.
        length: of every row of ids.
    """

    def __init__(self, text: str, *, length: int = LENGTH):
        from tokenizers import Tokenizer

        self._text, self.length = text, length
        self.backend = Tokenizer.from_str(text)
        self.backend.no_padding()
        self.backend.no_truncation()
        pad, end = (self.backend.token_to_id(token) for token in (_PAD, _END))
        if pad is None or end is None:
            raise ValueError(f"it knows no {_PAD} or no {_END}, which T5 ends and pads with")
        self._pad, self._end = int(pad), int(end)

    @classmethod
    def from_pretrained(cls, directory: Directory, subfolder: str) -> "T5Tokenizer":
        """Read the `tokenizer.json` of a folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no tokenizer of T5's kind.
        """
        folder = directory.component(subfolder)
        path = folder.path / _FILE
        if not folder.exists(_FILE):
            raise FileNotFoundError(
                f"no {_FILE} in {folder.path}: transformers' AutoTokenizer.from_pretrained(...)"
                ".save_pretrained(...) writes it from a spiece.model"
            )
        text = json.dumps(folder.json(_FILE))
        try:
            return cls(text)
        except Exception as error:  # of what is no tokenizer the library raises plain exceptions
            raise ValueError(f"{path}: {error}") from error

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Ids `(len(prompts), length)`; what does not fit is cut, with a warning.

        Raises:
            ValueError: a prompt that is not text.
        """
        rows, cut = [], 0
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise ValueError(f"prompts must be text, got {prompt!r:.80}")
            ids = self.backend.encode(prompt).ids
            if len(ids) > self.length:
                cut += 1
                ids = [*ids[: self.length - 1], self._end]
            rows.append(ids + [self._pad] * (self.length - len(ids)))
        if cut:
            warnings.warn(
                f"{cut} of {len(rows)} prompts are longer than {self.length} tokens of T5 and were "
                "cut",
                stacklevel=2,
            )
        return np.array(rows, np.int32)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab().values()) + 1

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that transformers reads too."""
        config: Any = {
            "tokenizer_class": "T5TokenizerFast", "pad_token": _PAD, "eos_token": _END,
            "unk_token": "<unk>", "model_max_length": 512, "extra_ids": 0,
        }  # fmt: skip
        files = {_FILE: self._text, "tokenizer_config.json": json.dumps(config, indent=2) + "\n"}
        writers = {
            name: functools.partial(Path.write_text, data=text) for name, text in files.items()
        }
        replace_files(folder, writers)
