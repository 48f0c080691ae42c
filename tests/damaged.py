"""Directories of pipelines damaged at random: what the tests of all families share.

Refused in one clear error, or read for what the files say by readers other than ours.
"""

import contextlib
import copy
import dataclasses
import inspect
import json
import os
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
from transformers import CLIPTokenizer

import sharpjax
from sharpjax.checkpoints.directory import MANIFEST_NAME

SECONDS = 60  # that one case may take; the typical one takes 0.3, on a busy machine 10
LETTERS = 1500  # of an error
SOURCE = str(Path(sharpjax.__file__).parent)
PROBES = (
    "", "a cat", "cat dog cat", "The DOG, 1999!", "caca dodo", "  spaces \t\n", "don't we'll",
    "<|endoftext|> cat", "a<|startoftext|>b", "\u00e9\u0301 \u00fc \U0001f408", "\x00\x7f",
    "dog " * 30,
)  # fmt: skip
INDEX, SCHEDULE = "model_index.json", "scheduler/scheduler_config.json"
SETTINGS = "tokenizer_config.json"


class Hang(BaseException):
    """Not an `Exception`, so that no code under test can take it for its own."""


@contextlib.contextmanager
def time_limit(seconds):
    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    start = time.monotonic()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        if time.monotonic() - start >= seconds:  # even if something has caught it
            raise Hang


# --- the undamaged directories -------------------------------------------------------------------


@dataclasses.dataclass
class Good:
    """An undamaged directory, and what is read from it."""

    root: Path
    model: Any
    pixels: Path  # a directory of `PixelDiffusion`
    manifest: bool
    family: str | None = None
    old: bool = False  # vocab.json and merges.txt count, not tokenizer.json
    others: Path | None = None  # a folder of parts, or of models, that parts may come from


def write_pixel_model(folder):
    """Of `PixelDiffusion`: it holds a UNet2DModel and names of conditions."""
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        num_class_embeds=3,
    )
    diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler()).save_pretrained(folder)
    (folder / "conditions.json").write_text('{"conditions": ["0", "1"]}')
    return folder


# --- damage --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Damage:
    """One way to spoil a directory: `change(root, good, rng)`.

    It returns what the error must name; if it is `elsewhere`, first what to read instead.
    `outcomes` is `"refused"`, `"equal"`, `"other"` (what the files say), or several.
    """

    change: Callable
    outcomes: str = "refused"
    manifest: bool | None = None  # of the directories it is for
    old: bool | None = None
    family: str | None = None
    elsewhere: bool = False


ANY = "refused equal other"
VALUES = (
    None, True, False, 0, -1, 1, 2, 7, 1.5, -0.0, 1e300, 10**6, 10**9, 10**18, 10**400, "", "x",
    "1", [], [1], [0.1, 0.2], ["1"], [True], [None], [{}], [10**400], [[0.1], [0.1, 0.2]], [["a"]],
    {}, {"a": 1}, {"content": "a"}, {"content": "cat</w>", "lstrip": 1}, "cat</w>", "linear",
    "../../etc/passwd", "/etc/passwd", "\u00e9", "\u0000", "a\nb", "\ud800", [None, None],
)  # fmt: skip


def pick(rng, values):
    values = list(values)
    return copy.deepcopy(values[rng.integers(len(values))])


def edit(path, change):
    """`change(value)` edits the JSON of a file; what it returns goes there instead."""
    value = json.loads(path.read_text())
    instead = change(value)
    path.write_text(json.dumps(value if instead is None else instead))


def set_key(find, keys, values):
    def change(root, good, rng):
        path = root / find
        key = pick(rng, keys(json.loads(path.read_text())) if callable(keys) else keys)
        value = pick(rng, values)
        edit(path, lambda config: config.update({key: value}))
        return path, key

    return change


def edit_bytes(find, change):
    def damage(root, good, rng):
        path = find(root, rng)
        data = bytearray(path.read_bytes())
        path.write_bytes(change(data, rng))
        return (path.parent,)

    return damage


def flip(data, rng):
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return data


def cut(data, rng):  # at least the last brace
    return data[: int(rng.integers(len(data) - 2))]


def one(*names):
    return lambda root, rng: root / pick(rng, names)


def a_json(root, rng):
    folder = root / pick(rng, ["", *parts_of(root)])
    return pick(rng, sorted(p for p in folder.glob("*.json") if p.name != MANIFEST_NAME))


def no_object(root, good, rng):
    path = a_json(root, rng)
    path.write_text(pick(rng, ["[]", "3", "null", '"x"', "[{}]", "true", "\ufeff{}", "{}x", "{,}"]))
    return (path,)


def swapped(root, good, rng):
    a, b = rng.permutation(parts_of(root))[:2]
    for old, new in ((a, "x"), (b, a), ("x", b)):
        (root / old).rename(root / new)
    return ()


def parts_of(root, holding="*.json"):
    return sorted(path.name for path in root.iterdir() if path.is_dir() and any(path.glob(holding)))


def a_part(root, rng):
    return root / pick(rng, parts_of(root))


def without_a_part(root, good, rng):
    part = a_part(root, rng)
    shutil.rmtree(part)
    if rng.random() < 0.5:
        part.write_text("{}") if rng.random() < 0.7 else os.mkfifo(part)
    return (part.name,)


def an_empty_part(root, good, rng):
    part = a_part(root, rng)
    shutil.rmtree(part)
    part.mkdir()
    return (part,)


def foreign_part(root, good, rng):
    part = pick(rng, parts_of(root, "config.json"))
    shutil.rmtree(root / part)
    shutil.copytree(good.pixels / "unet", root / part)
    return (root / part,)


def a_needed_file(root, good, rng):
    part = a_part(root, rng)
    if part.name == "tokenizer_3":
        return part / "tokenizer.json"
    if part.name.startswith("tokenizer"):
        return part / SETTINGS
    return pick(rng, sorted(p for p in part.iterdir() if p.name != MANIFEST_NAME))


def without_file(root, good, rng):
    path = a_needed_file(root, good, rng)
    path.unlink()
    if rng.random() < 0.6:
        path.mkdir() if rng.random() < 0.5 else os.mkfifo(path)
    return path.parent, path.name


# --- what must come out --------------------------------------------------------------------------


def token_ids(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of prompts that are cut
        return tokenizer(PROBES)


def bits(tree):
    return [(x.shape, x.dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def tuples(value):
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def differing_schedule(model, root):
    index = json.loads((root / INDEX).read_text())
    told = json.loads((root / SCHEDULE).read_text())
    kind = getattr(diffusers, index["scheduler"][1])
    told = {**kind().config, **{key: value for key, value in told.items() if value is not None}}
    keys = inspect.signature(diffusers.DDIMScheduler.__init__).parameters.keys() - {"self"}
    theirs = diffusers.DDIMScheduler(**{key: told[key] for key in keys & told.keys()})
    expected = theirs.alphas_cumprod.double().numpy()
    if model.schedule.alphas.shape != expected.shape:
        return "schedule: length"
    # theirs runs in float32
    if not np.allclose(model.schedule.alphas**2, expected, rtol=5e-4, atol=1e-6):
        return "schedule: alphas"
    if not np.allclose(model.schedule.sigmas**2, 1 - expected, rtol=5e-4, atol=1e-6):
        return "schedule: sigmas"
    for key in ("prediction_type", "timestep_spacing", "set_alpha_to_one"):
        if key in told and getattr(model.schedule, key) != told[key]:
            return f"schedule: {key}"
    return None


def differing_tokens(ours, folder):
    length = json.loads((folder / SETTINGS).read_text())["model_max_length"]
    with tempfile.TemporaryDirectory() as copied:
        shutil.copytree(folder, copied, dirs_exist_ok=True)
        # transformers would read whatever file is named there
        edit(
            Path(copied) / SETTINGS,
            lambda c: {
                k: v for k, v in c.items() if k not in ("vocab", "merges", "tokenizer_file")
            },
        )
        tokenizer = CLIPTokenizer.from_pretrained(copied, local_files_only=True)
    options = dict(padding="max_length", truncation=True, max_length=length)
    if not np.array_equal(token_ids(ours), tokenizer(list(PROBES), **options)["input_ids"]):
        return "tokenizer: ids"
    return None


def outcome(load, good, root, named, judge):
    """`(kind, message)`; a kind that starts with "BAD" is a failure."""
    try:
        with time_limit(SECONDS):
            model = load(root)
    except Hang:
        return "BAD: hangs", ""
    except (ValueError, OSError) as error:
        message, words = str(error), str(error).replace("_", " ")
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if not last.startswith(SOURCE):
            return "BAD: an error of another library", message
        if str(root) not in message:
            return "BAD: names no file", message
        for name in named:
            if str(name).replace("_", " ") not in words:
                return f"BAD: does not name {name!r}", message
        if "\n" in message or len(message) > LETTERS:
            return "BAD: a long message", f"{len(message)} {message[:300]!r}"
        return "refused", message
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return f"BAD: {type(error).__name__}", "".join(traceback.format_exception(error)[-3:])
    try:
        wrong = judge[0](model, good, root)
    except Exception as error:
        wrong = f"what others cannot read: {type(error).__name__}: {error}"
    if wrong:
        return "BAD: read something else", wrong
    return ("equal" if judge[1](model, good) else "other"), ""


def fuzz(goods, load, cases, folder, *, damages, judge, seed=0):
    """Put `load` through the `cases` (numbers; a case is the same in every run).

    `judge` is two functions of what was loaded, and the undamaged: `differs(model, good, root)`
    says what of it is not what the files say, `is_equal(model, good)` whether it is the same.

    Returns:
        `Counter` of `(damage, outcome)`, and what went wrong in words.
    """
    counts, wrong, slowest = Counter(), [], (0.0, "")
    names = sorted(damages)
    for case in cases:
        rng = np.random.default_rng([seed, case])
        name = names[case % len(names)]
        damage = damages[name]
        good = pick_good(rng, goods, damage)
        root = Path(shutil.copytree(good.root, folder / f"case{case}" / "model"))
        named = damage.change(root, good, rng)
        if damage.elsewhere:
            root, *named = named
        if good.manifest:  # the file's digest may be what is wrong
            named = [n for n in named if isinstance(n, Path)]
        start = time.monotonic()
        kind, message = outcome(load, good.model, root, named, judge)
        slowest = max(slowest, (time.monotonic() - start, f"case {case}, {name}"))
        counts[name, kind] += 1
        if kind not in damage.outcomes.split():
            wrong.append(f"case {case}, {name}, {good.root.name}: {kind}: {message}")
        elif os.environ.get("SHOW"):
            print(case, name, kind, message.replace(str(folder), "")[:230])
        shutil.rmtree(folder / f"case{case}")
    print(f"\nslowest: {slowest[0]:.1f} s, {slowest[1]}")
    return counts, wrong


def pick_good(rng, goods, damage):
    fitting = [
        g for g in goods
        if damage.manifest in (None, g.manifest) and damage.old in (None, g.old)
        and damage.family in (None, g.family)
    ]  # fmt: skip
    return fitting[rng.integers(len(fitting))]


def report(counts):
    """Print a table of `(damage, outcome)`."""
    kinds = sorted({kind for _, kind in counts})
    total, wide = Counter(), max(map(len, kinds)) + 2
    print(f"\n{'damage':28}" + "".join(f"{kind:>{wide}}" for kind in kinds))
    for name in sorted({name for name, _ in counts}):
        print(f"{name:28}" + "".join(f"{counts[name, kind]:>{wide}}" for kind in kinds))
    for (_, kind), count in counts.items():
        total[kind] += count
    print(f"{sum(total.values()):<28}" + "".join(f"{total[kind]:>{wide}}" for kind in kinds))
