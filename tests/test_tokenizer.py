"""`Tokenizer` against transformers' own on the same folders, and on folders that are damaged."""

import json
import shutil
import socket
import subprocess
import sys
import warnings

import numpy as np
import pytest
from tokenizers import Regex, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer, CLIPTokenizer

from sharpjax.checkpoints.tokenizer import Tokenizer

pytestmark = pytest.mark.quick

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 12
TEXTS = ["a photo of a cat", "a painting of two dogs, 1999!", "the cat's photo: don't panic"]
PATTERN = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def train():
    """Vocabulary and merges in CLIP's order: bytes, bytes that end a word, merges, start, end."""
    fast = FastTokenizer(BPE(end_of_word_suffix="</w>"))
    fast.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    fast.train_from_iterator(TEXTS * 20, trainer)
    merges = [tuple(pair) for pair in json.loads(fast.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(m) for m in merges)]
    return {t: i for i, t in enumerate([*dict.fromkeys(tokens), START, END])}, merges


VOCAB, MERGES = train()


def token(content, **flags):
    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"content": content, **plain, **flags}


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def change(path, **changes):
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def write_old(folder, pad=END):
    """The four files of Stable Diffusion 1.x (padded with the end) and 2.x (with "!")."""
    folder.mkdir()
    write_json(folder / "vocab.json", VOCAB)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": token(START), "eos_token": token(END), "pad_token": pad}
    write_json(folder / "special_tokens_map.json", special | {"unk_token": token(END)})
    config = {
        "add_prefix_space": False,
        "bos_token": {"__type": "AddedToken", **token(START)},
        "do_lower_case": True,
        "eos_token": {"__type": "AddedToken", **token(END)},
        "errors": "replace",
        "model_max_length": LENGTH,
        "name_or_path": "openai/clip-vit-large-patch14",
        "pad_token": END,
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": {"__type": "AddedToken", **token(END)},
    }
    write_json(folder / "tokenizer_config.json", config)


def write_new(folder):
    """`tokenizer.json`, as transformers 5 writes it."""
    old = folder.with_name("before")
    write_old(old)
    CLIPTokenizer.from_pretrained(old).save_pretrained(folder)
    shutil.rmtree(old)
    assert not (folder / "vocab.json").exists()


def write_truncating(folder):
    """A `tokenizer.json` with the padding and truncation of a previous call left in it."""
    old = folder.with_name("before")
    write_old(old)
    theirs = CLIPTokenizer.from_pretrained(old)
    theirs("a cat", padding="max_length", truncation=True, max_length=7)
    theirs.save_pretrained(folder)
    assert json.loads((folder / "tokenizer.json").read_text())["truncation"]["max_length"] == 7


def write_decoder(folder):
    """`added_tokens_decoder` in the configuration, as late versions of transformers 4 wrote."""
    write_old(folder)
    (folder / "special_tokens_map.json").unlink()
    added = {str(VOCAB[t]): token(t, normalized=False, special=True) for t in (START, END)}
    config = {"added_tokens_decoder": added, "extra_special_tokens": {}, "clean_up": True}
    change(folder / "tokenizer_config.json", **config)


def write_inverted(folder):
    """A word of textual inversion, with an id after the vocabulary."""
    write_old(folder)
    write_json(folder / "added_tokens.json", {"<cat-toy>": len(VOCAB)})


FOLDERS = {
    "sd1": write_old,
    "sd2": lambda folder: write_old(folder, pad="!"),
    "transformers5": write_new,
    "truncating": write_truncating,
    "decoder": write_decoder,
    "inverted": write_inverted,
}


@pytest.fixture(scope="module", params=FOLDERS)
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "tokenizer"
    FOLDERS[request.param](folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    write_old(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "tokenizer"
    write_old(folder)
    return Tokenizer.from_pretrained(folder)


PROMPTS = [
    "",
    " ",
    "a photo of a cat",
    "A  PHOTO\tof\na\r\ncat ",
    "wow! 3 cats!!! and <cat-toy>",
    "cafe\u0301 \u00e9\u00df \u0130stanbul \u4e00\u4e2a",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\x00\x01\x1f\x7f\x85\u200b\ufeff\u2028",
    f"{START} cat {END} dog {END}",
    "cat" + END + "!",
    "can't won't I'LL 'S 1234567890",
    "a photo of a cat and two dogs painting the cat",
    "x" * 10_000,
    "dogs, " * 1_667,
    "\U0001f600" * 2_500,
]


def theirs_of(folder, prompts):
    theirs = CLIPTokenizer.from_pretrained(folder)
    return theirs(prompts, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]


@pytest.mark.filterwarnings("ignore:the prompt:UserWarning")
def test_ids_are_those_of_transformers(written, tmp_path):
    ours = Tokenizer.from_pretrained(written)
    expected = theirs_of(written, PROMPTS)
    ids = ours(PROMPTS)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected)
    assert ids.shape == (len(PROMPTS), LENGTH)
    for i, prompt in enumerate(PROMPTS):  # and one by one
        np.testing.assert_array_equal(ours(prompt), ids[i : i + 1])

    again = tmp_path / "again"
    ours.save_pretrained(again)
    names = {p.name for p in again.iterdir()} - {"manifest.sha256.json"}
    assert names == {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
                     "special_tokens_map.json"}  # fmt: skip
    full = json.loads((again / "tokenizer.json").read_text(encoding="utf-8"))
    assert full["truncation"] is full["padding"] is None  # of the calls above
    np.testing.assert_array_equal(Tokenizer.from_pretrained(again)(PROMPTS), ids)
    np.testing.assert_array_equal(theirs_of(again, PROMPTS), ids)
    auto = AutoTokenizer.from_pretrained(again)
    assert type(auto) is CLIPTokenizer
    assert auto.model_max_length == LENGTH
    found = auto(PROMPTS, padding="max_length", truncation=True)["input_ids"]
    np.testing.assert_array_equal(found, ids)
    (again / "tokenizer.json").unlink()  # the old form alone
    (again / "manifest.sha256.json").unlink()
    np.testing.assert_array_equal(theirs_of(again, PROMPTS), ids)
    np.testing.assert_array_equal(Tokenizer.from_pretrained(again)(PROMPTS), ids)


def test_padding_of_both_versions(tmp_path):
    """What makes the comparison above worth something: the folders differ where they should."""
    rows = {}
    for name in ("sd1", "sd2", "inverted"):
        FOLDERS[name](tmp_path / name)
        rows[name] = Tokenizer.from_pretrained(tmp_path / name)(["cat", "<cat-toy>"])
    start, end = VOCAB[START], VOCAB[END]
    cat = VOCAB["cat</w>"]
    np.testing.assert_array_equal(rows["sd1"][0], [start, cat] + [end] * 10)
    np.testing.assert_array_equal(rows["sd2"][0], [start, cat, end] + [0] * 9)
    np.testing.assert_array_equal(rows["inverted"][1], [start, len(VOCAB)] + [end] * 10)
    assert (rows["sd1"][1] < len(VOCAB)).all()


def test_subfolder_and_sizes(folder):
    tokenizer = Tokenizer.from_pretrained(folder.parent, "tokenizer", vocab_size=len(VOCAB))
    assert tokenizer.length == LENGTH
    assert tokenizer.vocab_size == len(VOCAB)
    assert tokenizer([]).shape == (0, LENGTH)
    assert tokenizer(p for p in ("a", "b")).shape == (2, LENGTH)


def test_a_cut_prompt_is_named(tokenizer):
    prompt = "a photo of a cat a photo of a cat A Photo of a dog"
    with pytest.warns(UserWarning, match="is too long") as caught:
        ids = tokenizer(["a cat", prompt, "two dogs"])
    (message,) = [str(w.message) for w in caught]
    assert message.startswith("the prompt 'a photo of a cat a photo of a cat A P...' is too long")
    assert caught[0].filename == __file__
    kept = tokenizer.backend.decode(ids[1][1:-1])
    whole = len(tokenizer.backend(prompt, add_special_tokens=False)["input_ids"])
    dropped = whole - (LENGTH - 2)
    assert dropped > 1
    assert f"for {LENGTH} tokens: {dropped} were dropped, the text '" in message
    cut = message.split("the text '")[1].removesuffix("'")
    assert kept == "a photo of a cat a photo of a cat"[: len(kept)]
    assert prompt.endswith(cut)  # as it was written, capitals too
    assert f"{kept} {cut}".lower() == prompt.lower()


def test_many_cut_prompts_are_told_at_once(tokenizer):
    long = ["a " * LENGTH + word for word in ("cat", "dog", "dogs")]
    with pytest.warns(UserWarning, match="is too long") as caught:
        tokenizer([*long, "a"] * 50)
    (message,) = [str(w.message) for w in caught]
    assert message.startswith("the prompt 'a a a")
    assert message.endswith("; 150 of 200 prompts are too long")


def test_a_prompt_that_just_fits_is_not_cut(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = tokenizer("a " * (LENGTH - 2))
    np.testing.assert_array_equal(ids[0, 1:-1], VOCAB["a</w>"])
    with pytest.warns(UserWarning, match="12 tokens: 1 were dropped, the text 'a'"):
        tokenizer("a " * (LENGTH - 1))


def test_cut_on_the_left(folder):
    change(folder / "tokenizer_config.json", truncation_side="left", padding_side="left")
    tokenizer = Tokenizer.from_pretrained(folder)
    prompts = ["dogs " + "a " * (LENGTH - 2), "cat"]
    with pytest.warns(UserWarning, match="1 were dropped, the text 'dogs'"):
        ids = tokenizer(prompts)
    np.testing.assert_array_equal(ids, theirs_of(folder, prompts))
    assert ids[1, -2] == VOCAB["cat</w>"]


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        (7, TypeError, "prompts must be a string or several strings, got int"),
        (None, TypeError, "got NoneType"),
        (b"cat", TypeError, "got bytes"),
        (["cat", 7], TypeError, "prompt 1 must be a string, got int"),
        ([["cat", "dog"]], TypeError, "prompt 0 must be a string, got list"),
        (["cat", "\ud83d"], ValueError, "prompt 1 .* has no UTF-8 form"),
    ],
)
def test_what_is_no_prompt_is_named(prompts, error, message, tokenizer):
    with pytest.raises(error, match=message):
        tokenizer(prompts)


# --- untrusted folders -------------------------------------------------------------------------


def drop(key):
    return {k: v for k, v in VOCAB.items() if k != key}


def text(content):
    return lambda path: path.write_text(content, encoding="utf-8")


def of(value):
    return lambda path: write_json(path, value)


def with_keys(**changes):
    return lambda path: change(path, **changes)


CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
DAMAGE = [
    (CONFIG, lambda p: p.unlink(), FileNotFoundError, f"no {CONFIG} in"),
    ("vocab.json", lambda p: p.unlink(), FileNotFoundError, "neither tokenizer.json nor vocab"),
    ("merges.txt", lambda p: p.unlink(), FileNotFoundError, "no merges.txt in"),
    (CONFIG, text("{"), ValueError, f"{CONFIG} is not valid JSON"),
    (CONFIG, text("[]"), ValueError, f"{CONFIG} must hold a JSON object"),
    ("vocab.json", text(""), ValueError, "vocab.json is not valid JSON"),
    ("vocab.json", text("[" * 100_000), ValueError, "vocab.json is not valid JSON"),
    ("vocab.json", of(list(VOCAB)), ValueError, "vocab.json must hold a JSON object"),
    ("vocab.json", of({}), ValueError, "merges.txt: merge 1 needs"),
    ("vocab.json", with_keys(cat="1"), ValueError, "vocab.json: the id of 'cat' must .* '1'"),
    ("vocab.json", with_keys(cat=-1), ValueError, "the id of 'cat' must be .* got -1"),
    ("vocab.json", with_keys(cat=True), ValueError, "the id of 'cat' must be .* got True"),
    ("vocab.json", with_keys(cat=2**31), ValueError, f"the id of 'cat' must .* got {2**31}"),
    ("vocab.json", with_keys(qqq=0), ValueError, "'!' and 'qqq' have the same id 0"),
    ("vocab.json", with_keys(qqq=60_000), ValueError, "'qqq' has id 60000, but .* vocab_size"),
    ("vocab.json", with_keys(**{"\ud800": 900}), UnicodeEncodeError, ""),
    ("vocab.json", of(drop(END)), ValueError, r"vocab.json: the special token .*endoftext.*_token"),
    ("vocab.json", of(drop(START)), ValueError, r"vocab.json: .*startoftext.*\(bos_token\)"),
    ("vocab.json", of(drop("cat</w>")), ValueError, "merges.txt: merge .* needs 'cat</w>'"),
    ("merges.txt", text("#version: 0.2\na b c\n"), ValueError, "merges.txt: merge 1 must be two"),
    ("merges.txt", text("lonely\n"), ValueError, "merges.txt: merge 1 must be two tokens"),
    ("merges.txt", text("! qqq\n"), ValueError, "merges.txt: merge 1 needs 'qqq'"),
    ("merges.txt", lambda p: p.write_bytes(b"\xff\xfe"), ValueError, "merges.txt is not UTF-8"),
    (CONFIG, with_keys(model_max_length=None), ValueError, f"{CONFIG}: model_max_length must"),
    (CONFIG, with_keys(model_max_length=10**30), ValueError, "model_max_length must .* 2 to 65536"),
    (CONFIG, with_keys(model_max_length=1), ValueError, "model_max_length must be .* got 1"),
    (CONFIG, with_keys(model_max_length="77"), ValueError, "model_max_length must be .* got '77'"),
    (CONFIG, with_keys(pad_token=3), ValueError, f"{CONFIG}: pad_token must be a token .* got 3"),
    (CONFIG, with_keys(pad_token=None), ValueError, f"{CONFIG}: pad_token must be a token"),
    (CONFIG, with_keys(pad_token=""), ValueError, f"{CONFIG}: pad_token must be a token"),
    (SPECIAL, with_keys(pad_token="<pad>"), ValueError, r"token '<pad>' \(pad_token\) has no id"),
    (SPECIAL, with_keys(bos_token={"content": 1}), ValueError, f"{SPECIAL}: bos_token must be"),
    (SPECIAL, with_keys(eos_token=token(END, lstrip=3)), ValueError, f"{SPECIAL}: eos_token must"),
    (SPECIAL, with_keys(eos_token=token(END, evil=1)), ValueError, f"{SPECIAL}: eos_token must"),
    (SPECIAL, of([1]), ValueError, f"{SPECIAL} must hold a JSON object"),
    (CONFIG, with_keys(image_token="<i>"), ValueError, "unknown special token 'image_token'"),
    (CONFIG, with_keys(padding_side="up"), ValueError, "padding_side must be 'left' or 'right'"),
    (CONFIG, with_keys(split_special_tokens=1), ValueError, "_tokens must be False or True"),
    (CONFIG, with_keys(extra_special_tokens=7), ValueError, "extra_special_tokens must be a list"),
    (CONFIG, with_keys(additional_special_tokens=["<x>"]), ValueError, "token '<x>' has id None"),
    (CONFIG, with_keys(added_tokens_decoder=[]), ValueError, "decoder must be an object"),
    (CONFIG, with_keys(added_tokens_decoder={"x": {}}), ValueError, "added_tokens_decoder must be"),
    (CONFIG, with_keys(added_tokens_decoder={"9" * 5000: token("x")}), ValueError, "an object of"),
    (CONFIG, with_keys(added_tokens_decoder={"5": "x"}), ValueError, "tokens, which are objects"),
    (CONFIG, with_keys(added_tokens_decoder={"5": token("a toy")}), ValueError, "'a toy' has id"),
    ("added_tokens.json", of({"<x>": "1"}), ValueError, "added_tokens.json: the id of '<x>' must"),
    ("added_tokens.json", of({"<x>": 9_999}), ValueError, "'<x>' has id 9999 in the files, but"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "error", "message"), DAMAGE)
def test_damage_is_named(name, damage, error, message, folder):
    if error is UnicodeEncodeError:  # json can say what UTF-8 cannot
        (folder / name).write_text(json.dumps(VOCAB | {"\ud800": 900}))
        error, message = ValueError, f"{folder}: transformers' CLIPTokenizer cannot be made"
    else:
        damage(folder / name)
    with pytest.raises(error, match=message) as caught:
        Tokenizer.from_pretrained(folder, vocab_size=49_408)
    assert str(folder) in str(caught.value)


FULL_DAMAGE = [
    ({"model": 3}, "model must be an object of type 'BPE'"),
    ({"model": {"type": "WordPiece", "vocab": {}}}, "model must be an object of type 'BPE'"),
    ({"model": {"type": "BPE", "vocab": [], "merges": []}}, "model.vocab must be an object"),
    ({"model": {"type": "BPE", "vocab": VOCAB}}, "model.merges must be a list of pairs"),
    ({"model": {"type": "BPE", "vocab": VOCAB, "merges": [3]}}, "merges must be a list of pairs"),
    ({"model": {"type": "BPE", "vocab": VOCAB, "merges": [["!", 3]]}}, "merge 1 must be two"),
    ({"model": {"type": "BPE", "vocab": VOCAB, "merges": ["! Q!"]}}, "merge 1 needs 'Q!'"),
    ({"added_tokens": {}}, "added_tokens must be a list, got {}"),
    ({"added_tokens": ["<x>"]}, "added_tokens must be an object with an id"),
    ({"added_tokens": [{"id": 3, "content": 4}]}, "added_tokens must be a token"),
    ({"normalizer": {"type": "Evil"}}, "CLIPTokenizer cannot be made of these files"),
    ({"truncation": 5}, "CLIPTokenizer cannot be made of these files"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), FULL_DAMAGE)
def test_damaged_tokenizer_json_is_named(changes, message, folder):
    Tokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "manifest.sha256.json").unlink()
    change(folder / "tokenizer.json", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_manifest_is_verified(folder):
    Tokenizer.from_pretrained(folder).save_pretrained(folder)
    change(folder / "vocab.json", qqq=len(VOCAB))
    with pytest.raises(ValueError, match=r"vocab\.json does not match its digest"):
        Tokenizer.from_pretrained(folder)


def test_saving_removes_an_old_list_of_added_tokens(tmp_path):
    write_inverted(tmp_path / "t")
    tokenizer = Tokenizer.from_pretrained(tmp_path / "t")
    tokenizer.save_pretrained(tmp_path / "t")
    assert not (tmp_path / "t" / "added_tokens.json").exists()
    again = Tokenizer.from_pretrained(tmp_path / "t")
    np.testing.assert_array_equal(again(["<cat-toy>"]), tokenizer(["<cat-toy>"]))


@pytest.mark.parametrize("name", [CONFIG, SPECIAL, "vocab.json", "merges.txt"])
def test_links_out_of_the_folder_are_refused(name, folder, tmp_path):
    outside = tmp_path / "outside"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match=f"{name} is a link that leads outside"):
        Tokenizer.from_pretrained(folder)


def test_links_into_the_hub_cache_are_followed(folder, tmp_path):
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "abc" / "tokenizer"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for i, path in enumerate(folder.iterdir()):
        shutil.move(path, repository / "blobs" / str(i))
        (snapshot / path.name).symlink_to(repository / "blobs" / str(i))
    assert Tokenizer.from_pretrained(snapshot.parent, "tokenizer")("cat")[0, 1] == VOCAB["cat</w>"]


def test_nothing_else_is_read(folder, tmp_path, monkeypatch):
    """No code, no path and no repository that the configuration names; no connection at all."""
    expected = Tokenizer.from_pretrained(folder)(TEXTS[:1])
    secret = tmp_path / "secret.json"
    write_json(secret, {"evil": 0})
    (folder / "evil.py").write_text("raise SystemExit('code was run')")
    (folder / "chat_template.jinja").symlink_to(secret)
    (folder / "tekken.json").write_text("{}")
    (folder / "tokenizer.model").write_text("")
    write_json(folder / "config.json", {"model_type": "mistral"})
    evil = {
        "auto_map": {"AutoTokenizer": ["evil.Evil", None]},
        "fast_tokenizer_files": ["../secret.json"],
        "init_inputs": [str(secret), str(secret)],
        "merges_file": str(secret),
        "name_or_path": "owner/evil",
        "special_tokens_map_file": str(secret),
        "tokenizer_class": "Evil",
        "tokenizer_file": str(secret),
        "vocab": {"evil": 0},
        "vocab_file": str(secret),
    }
    change(folder / CONFIG, **evil)

    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    np.testing.assert_array_equal(Tokenizer.from_pretrained(folder)(TEXTS[:1]), expected)


def test_import_is_lazy():
    code = (
        "import sys, sharpjax.checkpoints.tokenizer; "
        "assert not {'transformers', 'torch', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
