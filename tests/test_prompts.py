"""Files of prompts, good and bad."""

import json
import re

import pytest

from sharpjax.prompts import LabelledPrompt, read_labelled, read_prompts

PROMPTS = ["a cat, sitting", 'the "dog"', "Füchse 🦊"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", 'a cat, sitting\n\n  the "dog"\t\r\nFüchse 🦊'),
        ("p", '\ufeffa cat, sitting\nthe "dog"\nFüchse 🦊\n'),
        ("p.csv", 'id,prompt\n1,"a cat, sitting"\n2,"the ""dog"""\n3,Füchse 🦊\n'),
        ("p.CSV", '\ufeffprompt\r\n"a cat, sitting"\r\n"the ""dog"""\r\nFüchse 🦊\r\n'),
        ("p.jsonl", "\n".join(json.dumps({"prompt": p, "seed": 3}) for p in PROMPTS) + "\n\n"),
    ],
)
def test_prompts_are_read(name, content, tmp_path):
    (tmp_path / name).write_bytes(content.encode())
    assert read_prompts(tmp_path / name) == PROMPTS


def test_characters_that_are_no_ends_of_lines(tmp_path):
    """Python's ``splitlines`` takes them for some; a cell of CSV holds a whole line end."""
    (tmp_path / "p.txt").write_text("a\u2028b\x0cc\nd")
    assert read_prompts(tmp_path / "p.txt") == ["a\u2028b\x0cc", "d"]
    (tmp_path / "p.csv").write_text('prompt\n"two\nlines\u2028"\n""\n')
    assert read_prompts(tmp_path / "p.csv") == ["two\nlines\u2028", ""]
    (tmp_path / "p.jsonl").write_text('{"prompt": ""}\n{"prompt": "a\u2028b"}\n')
    assert read_prompts(tmp_path / "p.jsonl") == ["", "a\u2028b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "p.txt holds no prompt"),
        ("p.txt", b" \n\n", "p.txt holds no prompt"),
        ("p.txt", b"good\nb\xe4d", "p.txt is not UTF-8 text (byte 6"),
        ("p.csv", b"", "p.csv holds no prompt"),
        ("p.csv", b"prompt\n", "p.csv holds no prompt"),
        ("p.csv", b"id,text\n1,a\n", "one column 'prompt'; its columns are 'id', 'text'"),
        ("p.csv", b"prompt,prompt\na,b\n", "one column 'prompt'"),
        ("p.csv", b"id,prompt\n1,a\n2\n", "p.csv, line 3: no value for 'prompt'"),
        ("p.csv", b"prompt\n" + b"x" * 200_000, "p.csv, line 2 is not valid CSV"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt"', "p.jsonl, line 2 is not valid JSON"),
        ("p.jsonl", b'{"text": "a"}', "p.jsonl, line 1 must be an object with a text 'prompt'"),
        ("p.jsonl", b'{"prompt": 3}', "line 1 must be an object with a text 'prompt'"),
        ("p.jsonl", b'["prompt"]', "line 1 must be an object with a text 'prompt'"),
        ("p.jsonl", b"[" * 100_000, "line 1 is not valid JSON"),
    ],
)
def test_bad_files_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_prompts(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"prompts.txt: it is missing"):
        read_prompts(tmp_path / "prompts.txt")
    with pytest.raises(FileNotFoundError, match="it is a directory"):
        read_prompts(tmp_path)


def test_labels_and_sources(tmp_path):
    (tmp_path / "p.csv").write_text(
        "prompt,label,source\na,memorized,web\nb,0,\nc,TRUE,x\nd,,general\ne,between,x\n"
    )
    found = read_labelled(tmp_path / "p.csv")
    assert [p.label for p in found] == ["memorized", "clean", "memorized", None, "between"]
    assert [p.source for p in found] == ["web", "", "x", "general", "x"]
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a", "label": 1}\n{"prompt": "b", "label": false, "source": null}\n'
        '{"prompt": "c"}\n'
    )
    found = read_labelled(tmp_path / "p.jsonl")
    assert [p.label for p in found] == ["memorized", "clean", None]
    (tmp_path / "p.txt").write_text("a\nb")
    assert read_labelled(tmp_path / "p.txt") == [LabelledPrompt("a"), LabelledPrompt("b")]


def test_unknown_labels_and_columns_are_named(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,label\na,clean\nb,maybe\n")
    message = "p.csv, line 3: unknown label 'maybe'; choose one of memorized, clean, between"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_labelled(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("prompt,lable,url\na,clean,http\n")
    with pytest.warns(UserWarning, match="ignored 'lable', 'url'; columns that are read: prompt"):
        assert read_labelled(tmp_path / "p.csv") == [LabelledPrompt("a")]
