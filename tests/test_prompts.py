"""Files of prompts, good and bad."""

import json
import re

import pytest

from sharpjax.prompts import Case, distinct, read_labelled, read_prompts

pytestmark = pytest.mark.quick

PROMPTS = ["a cat, sitting", 'the "dog"', "Füchse 🦊"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", 'a cat, sitting\n\n  the "dog"\t\r\nFüchse 🦊'),
        ("p", '\ufeffa cat, sitting\nthe "dog"\nFüchse 🦊\n'),
        ("p.csv", 'id,prompt\n1,"a cat, sitting"\n2,"the ""dog"""\n3,Füchse 🦊\n'),
        ("p.CSV", '\ufeffprompt\r\n"a cat, sitting"\r\n"the ""dog"""\r\nFüchse 🦊\r\n'),
        ("p.jsonl", "\n".join(json.dumps({"prompt": p, "seed": 3}) for p in PROMPTS) + "\n\n"),
        # the field's: Wen et al.'s and NeMo's, pandas', Excel's of two languages, old Mac's
        ("p.jsonl", "\n".join(json.dumps({"caption": p, "index": 3, "url": "u"}) for p in PROMPTS)),
        ("p.csv", ';Caption;URL\n0;a cat, sitting;u\n1;"the ""dog""";u\n2;Füchse 🦊;u\n'),
        ("p.csv", 'Prompt;Label\r\na cat, sitting;\r\n"the ""dog""";1\r\nFüchse 🦊;0\r\n'),
        ("p.csv", '\ufeffsep=,\r\n text\r\n"a cat, sitting"\r\n"the ""dog"""\r\nFüchse 🦊\r\n'),
        ("p.csv", 'sep=;\r\nid;TEXT\r\n1;a cat, sitting\r\n2;"the ""dog"""\r\n3;Füchse 🦊'),
        ("p.csv", 'prompt\na cat, sitting\n"the ""dog"""\nFüchse 🦊\n'),  # one column, no quotes
        ("p.csv", 'prompt,label\r"a cat, sitting",1\r"the ""dog""",0\rFüchse 🦊,\r'),
        ("p.csv", 'prompt,id\n"a cat, sitting",1\n,\n"the ""dog""",2\n,\nFüchse 🦊,3,,\n,\n'),
        ("p.tsv", 'prompt\tseed\na cat, sitting\t1\n"the ""dog"""\t2\nFüchse 🦊\t3\n'),
        ("p.json", json.dumps(PROMPTS)),
        ("p.json", json.dumps([{"prompt": p} for p in PROMPTS], indent=2)),
        ("p.json", "\n".join(json.dumps({"Text": p}) for p in PROMPTS)),
        ("p.jsonl", json.dumps([{"caption": p} for p in PROMPTS])),
    ],
)
def test_prompts_are_read(name, content, tmp_path):
    (tmp_path / name).write_bytes(content.encode())
    assert read_prompts(tmp_path / name) == PROMPTS


def test_the_column_of_prompts(tmp_path):
    """Of several usual names the first; another one by its own name."""
    path = tmp_path / "p.csv"
    path.write_text("text,Caption,Beschreibung\na,b,c\n")
    assert read_prompts(path) == ["b"]
    assert read_prompts(path, column="beschreibung") == ["c"]
    assert read_prompts(path, column="text") == ["a"]
    path.write_text("words;id\na, b;1\n")
    assert read_prompts(path, column="words") == ["a, b"]
    (tmp_path / "p.jsonl").write_text('{"id": 1, "words": "a"}')
    assert read_prompts(tmp_path / "p.jsonl", column="words") == ["a"]
    for file in ("p.csv", "p.jsonl"):
        with pytest.raises(ValueError, match=r"are '?(words|id)', '?(words|id)'. Name .*--column"):
            read_prompts(tmp_path / file)
    (tmp_path / "p.txt").write_text("prompt;label\na;b, c\n")  # text stays text
    with pytest.warns(UserWarning, match=r"looks like the columns of a table.*\.csv or \.tsv"):
        assert read_prompts(tmp_path / "p.txt") == ["prompt;label", "a;b, c"]
    with pytest.raises(ValueError, match="is text, a prompt on each line: leave --column out"):
        read_prompts(tmp_path / "p.txt", column="prompt")


def test_characters_that_are_no_ends_of_lines(tmp_path):
    """Python's `splitlines` takes them for some; a cell of CSV holds a whole line end."""
    (tmp_path / "p.txt").write_text("a\u2028b\x0cc\nd")
    assert read_prompts(tmp_path / "p.txt") == ["a\u2028b\x0cc", "d"]
    (tmp_path / "p.csv").write_text('prompt\n"two\nlines\u2028"\n""\n')
    assert read_prompts(tmp_path / "p.csv") == ["two\nlines\u2028", ""]
    (tmp_path / "p.jsonl").write_text('{"prompt": ""}\n{"prompt": "a\u2028b"}\n')
    assert read_prompts(tmp_path / "p.jsonl") == ["", "a\u2028b"]
    (tmp_path / "p.json").write_text('[{"prompt": null}, {"prompt": "a"}]')  # blank, as in a table
    assert read_prompts(tmp_path / "p.json") == ["", "a"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "a"}', "looks like JSON: let its name end in .json"),
        ('["a",', "looks like JSON"),
        ("prompt,label", "the columns of a table: let its name end in .csv or .tsv"),
        (' ;"Caption";URL', "the columns of a table"),
        ("a {cat}, a prompt", None),
        ("prompt", None),
    ],
)
def test_text_that_looks_like_something_else(line, told, tmp_path, recwarn):
    (tmp_path / "p.txt").write_text(f"{line}\na, caption\n")
    assert read_prompts(tmp_path / "p.txt") == [line.strip(), "a, caption"]
    assert [told in str(one.message) for one in recwarn] == [True] * (told is not None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "p.txt holds no prompt"),
        ("p.txt", b" \n\n", "p.txt holds no prompt"),
        ("p.txt", b"good\nb\xe4d", "p.txt is not UTF-8 text (byte 6"),
        ("p.csv", b"", "p.csv holds no prompt"),
        ("p.csv", b"prompt\n", "p.csv holds no prompt"),
        ("p.csv", b"prompt,label\n,\n", "p.csv holds no prompt"),
        (
            "p.csv",
            b"id,words\n1,a\n",
            "no column prompt, caption or text; its columns are 'id', 'w",
        ),
        ("p.csv", b"id;words\n1;a\n", "its columns are 'id', 'words'. Name that of the prompts by"),
        ("p.csv", b"Prompt,prompt\na,b\n", "one column 'prompt', and has 2"),
        ("p.csv", b"prompt,label,Label\na,1,0\n", "one column 'label', and has 2"),
        (
            "p.csv",
            b"prompt,label\na cat, sitting,1\n",
            "line 2 has 3 cells, and 2 columns are named",
        ),
        ("p.csv", b'prompt,label\n"a,1\nb,0\n', "not valid CSV: unexpected end of data"),
        ("p.csv", b"prompt,prompt\na,b\n", "one column 'prompt'"),
        ("p.csv", b"id,prompt\n1,a\n2\n", "p.csv, line 3: 'prompt' is missing; give every"),
        ("p.csv", b"prompt\n" + b"x" * 200_000, "p.csv, line 2 is not valid CSV"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt"', "p.jsonl, line 2 is not valid JSON"),
        (
            "p.jsonl",
            b'{"a": "b"}',
            "p.jsonl has no column prompt, caption or text; its columns are",
        ),
        ("p.jsonl", b'{"prompt": 3}', "line 1: 'prompt' must be a text, got 3"),
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}', "line 2: 'prompt' is missing; give every"),
        (
            "p.json",
            b"[3]",
            "p.json, entry 1 must be an object with a text 'prompt', or a text, got",
        ),
        ("p.json", b'{\n "prompt": ["a"]}', "line 1 is not valid JSON"),
        ("p.jsonl", b"[" * 100_000, "p.jsonl is not valid JSON"),
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
    assert [p.verdict for p in found] == ["memorized", "clean", "memorized", None, "between"]
    assert [p.source for p in found] == ["web", "", "x", "general", "x"]
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a", "label": 1}\n{"prompt": "b", "label": false, "source": null}\n'
        '{"prompt": "c"}\n'
    )
    found = read_labelled(tmp_path / "p.jsonl")
    assert [p.verdict for p in found] == ["memorized", "clean", None]
    (tmp_path / "p.txt").write_text("a\nb")
    assert read_labelled(tmp_path / "p.txt") == [Case("a"), Case("b")]


@pytest.mark.parametrize(
    ("labels", "verdict"),
    [
        ("memorized Memorised 1 1.0 TRUE yes Y VM TM MV RV TV", "memorized"),
        ("clean 0 0.0 False no N n", "clean"),
        ("between BETWEEN", "between"),
        ("another", "another"),
        ("nan", None),
    ],
)
def test_labels_of_the_field(labels, verdict, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt, label\n" + "".join(f"a, {label}\n" for label in labels.split()))
    assert {line.verdict for line in read_labelled(path)} == {verdict}
    path.write_text("Caption;Memorized\n" + "".join(f"a;{label}\n" for label in labels.split()))
    assert {line.verdict for line in read_labelled(path)} == {verdict}


def test_types_of_published_lists_are_labels_where_nothing_else_stands_there(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(";Caption;URL;type\n0;a, b;u;VM\n1;c;u;TM\n")
    with pytest.warns(UserWarning, match="are: 'URL'; columns that are read: Caption, label"):
        found = read_labelled(path)
    assert [p.verdict for p in found] == ["memorized"] * 2
    assert [dict(p.others) for p in found] == [{"URL": "u"}] * 2
    path.write_text("prompt,type\na,VM\nb,photo\n")
    with pytest.warns(UserWarning, match="carried as they are: 'type'"):
        assert [p.verdict for p in read_labelled(path)] == [None] * 2
    path.write_text("prompt,label\na,1.0\nb,0.0\nc,\n")  # a column of pandas that lacks one
    assert [p.verdict for p in read_labelled(path)] == ["memorized", "clean", None]


def test_blank_prompts_and_repeats_do_not_count():
    assert distinct(["", "a", "b", "a", " ", "a ", "A"]) == [1, 2, 6]
    assert distinct([]) == []


def test_unknown_labels_and_columns_are_named(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,label\na,clean\nb,maybe\n")
    message = "p.csv, line 3: unknown label 'maybe'; choose memorized (or memorised, 1, 1.0, true"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_labelled(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("prompt,lable,url\na,clean,http\n")
    with pytest.warns(UserWarning, match="are: 'lable', 'url'; columns that are read: prompt"):
        assert read_labelled(tmp_path / "p.csv") == [
            Case("a", others={"lable": "clean", "url": "http"})
        ]


def test_levels_are_whole_numbers(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,Level\na,3\nb,\nc,0\nd,250.0\ne, 1000 \n")
    assert [p.level for p in read_labelled(path)] == [3, 0, 0, 250, 1000]
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "level": 7}\n{"prompt": "b"}\n')
    assert [p.level for p in read_labelled(tmp_path / "p.jsonl")] == [7, 0]
    for wrong in ("-1", "2.5", "often", "1e3", "inf"):
        path.write_text(f"prompt,level\na,1\nb,{wrong}\n")
        with pytest.raises(
            ValueError, match=f"line 3: 'level' must be .* whole number, got '{wrong}"
        ):
            read_labelled(path)
