"""Directories of pipelines damaged at random: Stable Diffusion's in all that is not weights.

And those of XL, 3 with T5 and without, and DiT in whatever lies there.

Refused in one clear error, or read for what they are: the same model bit for bit, or the other
model that the files describe to diffusers and transformers.
"""

import contextlib
import copy
import dataclasses
import importlib
import inspect
import json
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import diffusers
import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5TokenizerFast

import sharpjax
from sharpjax import LatentDiffusion
from sharpjax.checkpoints.directory import MANIFEST_NAME
from sharpjax.checkpoints.pipeline import LATENT

ROUNDS = 3 * int(os.environ.get("SHARPJAX_FUZZ", 1))  # of all kinds of damage
SECONDS = 60  # that one case may take; the typical one takes 0.3, on a busy machine 10
MEGABYTES = 600  # that the process may grow by over all cases, compiled encoders included
LETTERS = 1500  # of an error
SOURCE = str(Path(sharpjax.__file__).parent)
PROBES = (
    "", "a cat", "cat dog cat", "The DOG, 1999!", "caca dodo", "  spaces \t\n", "don't we'll",
    "<|endoftext|> cat", "a<|startoftext|>b", "\u00e9\u0301 \u00fc \U0001f408", "\x00\x7f",
    "dog " * 30,
)  # fmt: skip
INDEX, SCHEDULER, SETTINGS = "model_index.json", "scheduler_config.json", "tokenizer_config.json"
NETWORKS = ("text_encoder", "unet", "vae")

# of NumPy 2, inside diffusers
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


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


# --- the undamaged directories -----------------------------------------------------------------


@dataclasses.dataclass
class Good:
    """A directory, what is read from it, and parts that fit no other part."""

    root: Path
    model: LatentDiffusion
    manifest: bool
    old: bool  # vocab.json and merges.txt count, not tokenizer.json
    misfits: Path
    pixels: Path


def write_misfits(model, folder):
    """Parts that are sound, and of a width, or a number of channels, that the others lack."""
    kinds = {
        "text_encoder": lambda **config: CLIPTextModel(CLIPTextConfig(**config)),
        "vae": diffusers.AutoencoderKL,
        "unet": diffusers.UNet2DConditionModel,
    }
    for name, changes in {
        "text_encoder.hidden_size": dict(hidden_size=12),
        "text_encoder.vocab_size": dict(vocab_size=517, eos_token_id=0),
        "text_encoder.max_position_embeddings": dict(max_position_embeddings=11),
        "vae.latent_channels": dict(latent_channels=3),
        "unet.in_channels": dict(in_channels=9),
        "unet.out_channels": dict(out_channels=8),
        "unet.cross_attention_dim": dict(cross_attention_dim=16),
        "unet.num_class_embeds": dict(num_class_embeds=3),
        "unet.time_cond_proj_dim": dict(time_cond_proj_dim=8),
    }.items():
        part = name.split(".")[0]
        kinds[part](**getattr(model, part).config | changes).save_pretrained(folder / name)


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


@pytest.fixture(scope="module")
def goods(tmp_path_factory, stable_diffusion_directory):
    """By PyTorch, in the layout of Stable Diffusion 1 and 2, and by us with manifests."""
    top = tmp_path_factory.mktemp("good")
    model = LatentDiffusion.from_pretrained(stable_diffusion_directory)
    theirs = Path(shutil.copytree(stable_diffusion_directory, top / "theirs"))
    ours = model.save_pretrained(top / "ours")
    old = Path(shutil.copytree(ours, top / "old"))
    for path in [*old.rglob(MANIFEST_NAME), old / "tokenizer" / "tokenizer.json"]:
        path.unlink()
    write_misfits(model, top / "misfits")
    pixels = write_pixel_model(top / "pixels")
    return [
        Good(root, LatentDiffusion.from_pretrained(root), root == ours, root == old,
             top / "misfits", pixels)
        for root in (theirs, old, ours)
    ]  # fmt: skip


# --- damage ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Damage:
    """One way to spoil a directory: `change(root, good, rng)`.

    It returns what the error must name; those of `ELSEWHERE` first what to read instead.
    `outcomes` is `"refused"`, `"equal"`, `"other"` (what the files say), or several.
    """

    change: Callable
    outcomes: str = "refused"
    manifest: bool | None = None  # of the directories it is for
    old: bool | None = None
    family: str | None = None  # of those below


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


def raw(path, key, text, *, also=False):
    """`text` as it stands for the value of a key, or beside it."""
    value = json.loads(path.read_text())
    if not also:
        del value[key]
    head = json.dumps(value)[:-1]
    path.write_text(f'{head}, "{key}": {text}}}')


def set_key(find, keys, values):
    def change(root, good, rng):
        path = root / find
        key = pick(rng, keys(json.loads(path.read_text())) if callable(keys) else keys)
        value = pick(rng, values)
        edit(path, lambda config: config.update({key: value}))
        return path, key

    return change


def tokenizer_key(keys):
    """What the error names is the key; the file may be the vocabulary that lacks the token."""
    return lambda *given: ("tokenizer", set_key(SETTING, keys, VALUES)(*given)[1])


def drop_key(find, keys):
    def change(root, good, rng):
        key = pick(rng, keys)
        edit(root / find, lambda config: {k: v for k, v in config.items() if k != key})
        return root / find, key

    return change


def raw_key(find, keys, texts, *, also=False, named=True):
    def change(root, good, rng):
        key = pick(rng, keys)
        raw(root / find, key, pick(rng, texts), also=also)
        return (root / find, key) if named else (root / find,)

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


def a_tokenizer_file(root, rng, suffix=".*"):
    return pick(rng, sorted((root / "tokenizer").glob(f"*{suffix}")))


def a_json(root, rng):
    folder = root / pick(rng, ["", *parts_of(root)])
    return pick(rng, sorted(p for p in folder.glob("*.json") if p.name != MANIFEST_NAME))


SCHEDULE = f"scheduler/{SCHEDULER}"
SETTING = f"tokenizer/{SETTINGS}"
READ_KEYS = (
    "beta_schedule", "num_train_timesteps", "beta_start", "beta_end", "trained_betas",
    "rescale_betas_zero_snr", "prediction_type", "timestep_spacing", "steps_offset",
    "set_alpha_to_one", "clip_sample", "clip_sample_range",
)  # fmt: skip
CLASSES = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
)  # fmt: skip
TRICKS = (
    "..", "../unet", "/etc/passwd", "os", "os.system", "", "sharpjax", "C:\\x", "diffusers\n",
    "diffusers/../x", "\u0000", "pipeline.py",
)  # fmt: skip


def index_class(root, good, rng):
    part = pick(rng, list(LATENT.parts))
    entry = pick(rng, [*TRICKS, "UNet2DModel", "FlowMatchEulerDiscreteScheduler", "VQModel"])
    edit(root / INDEX, lambda index: index[part].__setitem__(1, entry))
    return root / INDEX, part


def index_library(root, good, rng):
    part = pick(rng, list(LATENT.parts))
    edit(root / INDEX, lambda index: index[part].__setitem__(0, pick(rng, TRICKS)))
    return root / INDEX, part


def legal_schedule(root, good, rng):
    start, end = np.sort(rng.uniform(1e-4, 0.3, 2)).tolist()
    betas = np.sort(rng.uniform(1e-3, 0.5, int(rng.integers(1, 30)))).tolist()
    changes = pick(rng, [
        dict(beta_start=start, beta_end=end), dict(beta_schedule="linear"),
        dict(num_train_timesteps=int(rng.integers(1, 3000))), dict(timestep_spacing="linspace"),
        dict(beta_schedule="squaredcos_cap_v2"),
        dict(trained_betas=betas, num_train_timesteps=len(betas)),
        dict(timestep_spacing="trailing", rescale_betas_zero_snr=True),
        dict(prediction_type="v_prediction"), dict(prediction_type="sample"),
        dict(set_alpha_to_one=True),
    ])  # fmt: skip
    edit(root / SCHEDULE, lambda config: config.update(changes))
    return (root / SCHEDULE,)


def other_solver(root, good, rng):
    """Another class in both files, or the index alone names it: its defaults count."""
    name = pick(rng, CLASSES)
    edit(root / INDEX, lambda index: index.update(scheduler=["diffusers", name]))

    def change(config):
        config["_class_name"] = name
        gone = [key for key in (*READ_KEYS, "_class_name") if rng.random() < 0.4]
        return {k: v for k, v in config.items() if k not in gone}

    edit(root / SCHEDULE, change)
    return (root / SCHEDULE,)


def contradictory_schedule(root, good, rng):
    changes = pick(rng, [
        dict(trained_betas=[0.1, 0.2], num_train_timesteps=3), dict(beta_start=0.5),
        dict(num_train_timesteps=1, rescale_betas_zero_snr=True), dict(beta_end=1e-5),
        dict(trained_betas=[1e-30] * 4, num_train_timesteps=4), dict(beta_start=1e-30),
    ])  # fmt: skip
    edit(root / SCHEDULE, lambda config: config.update(changes))
    return root / SCHEDULE, next(iter(changes))


def two_classes(root, good, rng):
    """The index counts, as in diffusers."""
    config = json.loads((root / SCHEDULE).read_text())
    name = pick(rng, sorted(set(CLASSES) - {config["_class_name"]}))
    edit(root / INDEX, lambda index: index.update(scheduler=["diffusers", name]))
    gone = [key for key in READ_KEYS if rng.random() < 0.5]
    edit(root / SCHEDULE, lambda config: {k: v for k, v in config.items() if k not in gone})
    return ()


def many_betas(root, good, rng):
    betas = pick(rng, ["0.01", "1e-9", "1", '"a"', "[0.1]", "{}"])
    edit(root / SCHEDULE, lambda config: config.update(trained_betas=None))
    raw(root / SCHEDULE, "trained_betas", "[" + ", ".join([betas] * 10**6) + "]")
    return root / SCHEDULE, "trained_betas"


def deep(root, good, rng):
    path, depth = a_json(root, rng), int(pick(rng, [200, 1500, 10**4, 10**6]))
    key = pick(rng, json.loads(path.read_text()))
    raw(path, json.dumps(key)[1:-1], "[" * depth + "]" * depth, also=True)
    edited = path.read_text()
    first = edited.index(json.dumps(key))  # the first one out, so that it is no duplicate
    path.write_text(edited[:first] + '"_x"' + edited[first + len(json.dumps(key)) :])
    return (path.parent,)


def many_keys(root, good, rng):
    """The key that stands there twice comes last: quadratic search for it takes an hour."""
    path = root / pick(rng, [INDEX, SCHEDULE, SETTING])
    entries = ", ".join(f'"_{i}": 0' for i in range(300_000))
    path.write_text("{" + entries + ', "_x": 1, "_x": 1}')
    return path, "_x"


def shortened_length(root, good, rng):
    edit(root / SETTING, lambda c: c.update(model_max_length=int(rng.integers(2, 12))))
    return (root / SETTING,)


def subtree(find):
    """Anything anywhere in a JSON file: replaced or taken out."""

    def change(root, good, rng):
        path = find(root, rng)

        def edit_one(value):
            while True:
                keys = list(value) if isinstance(value, dict) else range(len(value))
                key = pick(rng, keys)
                inner = value[key]
                if not isinstance(inner, dict | list) or not inner or rng.random() < 0.15:
                    break
                value = inner
            if rng.random() < 0.25:
                del value[key]
            else:
                value[key] = pick(rng, VALUES)

        edit(path, edit_one)
        return (path.parent,)

    return change


def wrong_ids(root, good, rng):
    """Ids in the vocabulary: past the embedding table, doubled, negative, no integers."""
    path = root / "tokenizer" / ("vocab.json" if good.old else "tokenizer.json")
    wrong = pick(rng, [518, 10**6, 2**31 - 1, 2**31, 10**18, -1, 3, 1.0, "7", None, True, [1]])

    def change(value):
        vocab = value if good.old else value["model"]["vocab"]
        vocab[pick(rng, [token for token in vocab if vocab[token] != wrong])] = wrong

    edit(path, change)
    return ("tokenizer",)


def added_token(root, good, rng):
    index = pick(
        rng, ["518", "9" * 9, "9" * 11, "-1", "x", "", "517", "0", "0517", "\u0663", "1e3"]
    )
    token = pick(rng, ["new", "cat</w>", "<|endoftext|>", "", "a\nb", " "])
    entry = {"content": token, "special": pick(rng, [True, False])}

    def change(config):
        config.setdefault("added_tokens_decoder", {})[index] = entry

    edit(root / SETTING, change)
    return ("tokenizer",)


def merges(root, good, rng):
    path = root / "tokenizer" / "merges.txt"
    lines = path.read_text().split("\n")
    place = int(rng.integers(len(lines)))
    change = int(rng.integers(5))
    if change == 0:
        del lines[place]
    elif change == 1:
        lines.insert(
            place, pick(rng, ["d a", "a", "c a t</w>", "zz zz", "\u00e9 x", " ", "a  b", "c a"])
        )
    elif change == 2:
        lines = lines[::-1]
    elif change == 3:
        lines[place] += pick(rng, [" x", "\r", "\t", "\u2028", " "])
    else:
        lines = [lines[0], *lines[1:] * 1000]
    path.write_text("\n".join(lines), newline="")
    return (path.parent,)


def without_a_file(root, good, rng):
    a_tokenizer_file(root, rng).unlink()
    return ("tokenizer",)


def no_vocabulary(root, good, rng):
    name = pick(
        rng, ["vocab.json", "merges.txt", SETTINGS] if good.old else ["tokenizer.json", SETTINGS]
    )
    if not good.old:  # ours has all
        for other in ("vocab.json", "merges.txt"):
            (root / "tokenizer" / other).unlink(missing_ok=True)
    (root / "tokenizer" / name).unlink()
    return "tokenizer", "no " if name == SETTINGS else name


def no_object(root, good, rng):
    path = a_json(root, rng)
    path.write_text(pick(rng, ["[]", "3", "null", '"x"', "[{}]", "true", "\ufeff{}", "{}x", "{,}"]))
    return (path,)


def misfit(root, good, rng):
    name = pick(rng, sorted(p.name for p in good.misfits.iterdir()))
    part, key = name.split(".")
    shutil.rmtree(root / part)
    shutil.copytree(good.misfits / name, root / part)
    return part, key


def part_size(key, values):
    def change(root, good, rng):
        edit(root / "unet" / "config.json", lambda c: c.update({key: pick(rng, values)}))
        return "unet", key

    return change


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


def folder_link_outside(root, good, rng):
    part = a_part(root, rng)
    target = part.rename(root.parent / "outside")
    part.symlink_to(pick(rng, [target, "../outside"]))
    return (part,)


def folder_link_inside(root, good, rng):
    part = a_part(root, rng)
    part.rename(root / "elsewhere")
    part.symlink_to(pick(rng, [root / "elsewhere", "elsewhere"]))
    return ()


def file_link_outside(root, good, rng):
    path = pick(rng, [a_needed_file(root, good, rng), root / INDEX])
    target = path.rename(root.parent / "outside")
    path.symlink_to(pick(rng, [target, os.path.relpath(target, path.parent)]))
    return (path,)


def file_link_to_itself(root, good, rng):
    path = pick(rng, [a_needed_file(root, good, rng), root / INDEX])
    path.unlink()
    path.symlink_to(pick(rng, [path.name, "nowhere"]))
    return (path.name,)


def file_link_inside(root, good, rng):
    path = pick(rng, [a_needed_file(root, good, rng), a_tokenizer_file(root, rng), root / INDEX])
    target = path.rename(root / "elsewhere")
    path.symlink_to(pick(rng, [target, os.path.relpath(target, path.parent)]))
    return ()


def hub_cache(*, foreign):
    """`models--a--b/snapshots/<commit>` of links into `blobs/`, its own or another's."""

    def change(root, good, rng):
        cache = root.parent / "models--a--b"
        snapshot, blobs = cache / "snapshots" / "0" / "", cache / "blobs"
        blobs.mkdir(parents=True)
        (root.parent / "models--c--d" / "blobs").mkdir(parents=True)
        files = sorted(p for p in root.rglob("*") if p.is_file())
        bad = root / pick(rng, [INDEX, SCHEDULE, SETTING, "vae/config.json"]) if foreign else None
        for number, path in enumerate(files):
            home = root.parent / "models--c--d" / "blobs" if path == bad else blobs
            link = snapshot / path.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            path.rename(home / str(number))
            link.symlink_to(os.path.relpath(home / str(number), link.parent))
        return (snapshot, snapshot / bad.relative_to(root)) if foreign else (snapshot,)

    return change


def only_pickle(root, good, rng):
    networks = parts_of(root, "config.json")
    for part in pick(rng, [*([one] for one in networks), networks]):
        for path in (root / part).glob("*.safetensors"):
            path.unlink()
        name = pick(rng, ["diffusion_pytorch_model.bin", "pytorch_model.bin", "x.ckpt"])
        (root / part / name).write_bytes(b"\x80\x04c")
    return (name, "pickle") if part != "vae" else ("pickle",)


def other_directory(root, good, rng):
    """`(directory to read, ...)`: what is there is something else than a pipeline."""
    kind = int(rng.integers(8))
    if kind < 4:
        where = root / pick(rng, ["unet", "vae", "tokenizer", "scheduler"])
        return where, where
    if kind == 4:
        return Path(shutil.copytree(good.pixels, root.parent / "pixels")), "pixels"
    if kind == 5:
        alone = root.parent / "alone"
        alone.mkdir()
        shutil.copy(root / INDEX, alone)
        return alone, "scheduler"
    if kind == 6:
        return root / INDEX, INDEX
    return root / "nowhere", "nowhere"


def unrelated(root, good, rng):
    place = root / pick(rng, ["", "safety_checker", "feature_extractor", "unet", "tokenizer"])
    place.mkdir(exist_ok=True)
    (place / pick(rng, ["README.md", "x.bin", "x.ckpt", "x.json"])).write_bytes(b"\x80")
    return ()


def spaces(root, good, rng):
    path = a_json(root, rng)
    value = json.loads(path.read_text())
    if rng.random() < 0.5 and "tokenizer.json" not in path.name:
        value = dict(reversed(value.items()))
    path.write_text("\n " + json.dumps(value, indent=7) + "\n\n")
    return ()


def of_index(keys):
    return [key for key in keys if key not in LATENT.parts]


def unread(keys):
    rest = [key for key in keys if key not in READ_KEYS and key != "_class_name"]
    return rest or ["skip_prk_steps"]


HUGE = (10**6, 10**9, 10**12, 10**18, 10**40, -(10**12))
NO_NUMBER = ("NaN", "Infinity", "-Infinity", "1e999", "01", "+1", "1" * 5000, "tru", "'x'", "")
DAMAGES = {
    "index: part": Damage(set_key(INDEX, list(LATENT.parts), VALUES)),
    "index: no part": Damage(drop_key(INDEX, list(LATENT.parts))),
    "index: other entry": Damage(set_key(INDEX, of_index, VALUES), "equal"),
    "index: unknown part": Damage(
        set_key(INDEX, ["prior", "text_encoder_2", "Unet", "", "../x"], [3, "x", ["a", "B"], {}])
    ),
    "index: null part": Damage(set_key(INDEX, ["prior", "x"], [None, [None, None]]), "equal"),
    "index: class": Damage(index_class),
    "index: library": Damage(index_library),
    "index: key twice": Damage(
        raw_key(INDEX, list(LATENT.parts), ["null", '["diffusers", "AutoencoderKL"]'], also=True)
    ),
    "index: no JSON": Damage(raw_key(INDEX, list(LATENT.parts), NO_NUMBER, named=False)),
    "index: bits": Damage(edit_bytes(one(INDEX), flip), ANY),
    "index: truncated": Damage(edit_bytes(one(INDEX), cut)),
    "schedule: value": Damage(set_key(SCHEDULE, READ_KEYS, VALUES), ANY),
    "schedule: other key": Damage(set_key(SCHEDULE, unread, VALUES), "equal"),
    "schedule: huge": Damage(set_key(SCHEDULE, ["num_train_timesteps"], HUGE)),
    "schedule: beta": Damage(
        set_key(SCHEDULE, ["beta_start", "beta_end"], [5, 1, -1, 0, 1e300, 10**400, True, "1", []])
    ),
    "schedule: many betas": Damage(many_betas),
    "schedule: legal": Damage(legal_schedule, "other equal"),
    "schedule: solver": Damage(other_solver, "other equal"),
    "schedule: two solvers": Damage(two_classes, "other equal"),
    "schedule: contradiction": Damage(contradictory_schedule),
    "schedule: class": Damage(
        set_key(SCHEDULE, ["_class_name"], [*TRICKS, *VALUES, "FlowMatchEulerDiscreteScheduler"])
    ),
    "schedule: prediction": Damage(
        set_key(SCHEDULE, ["prediction_type"], ["flow_prediction", "EPSILON", "", "x0", 3, []])
    ),
    "schedule: key twice": Damage(
        raw_key(SCHEDULE, ["beta_end", "beta_start"], ["0.01", "0.02"], also=True)
    ),
    "schedule: no JSON": Damage(raw_key(SCHEDULE, ["beta_end"], NO_NUMBER, named=False)),
    "schedule: bits": Damage(edit_bytes(one(SCHEDULE), flip), ANY),
    "schedule: truncated": Damage(edit_bytes(one(SCHEDULE), cut)),
    "tokenizer: bits": Damage(edit_bytes(a_tokenizer_file, flip), ANY, manifest=False),
    "tokenizer: bits, manifest": Damage(edit_bytes(a_tokenizer_file, flip), "refused equal", True),
    "tokenizer: truncated": Damage(
        edit_bytes(lambda root, rng: a_tokenizer_file(root, rng, ".json"), cut)
    ),
    "tokenizer: empty": Damage(edit_bytes(a_tokenizer_file, lambda d, rng: b""), ANY),
    "tokenizer: value": Damage(tokenizer_key(list), ANY, manifest=False),
    "tokenizer: more": Damage(
        tokenizer_key(["mask_token", "extra_special_tokens", "additional_special_tokens",
                          "split_special_tokens", "padding_side", "do_lower_case", "use_fast",
                          "auto_map", "clean_up_tokenization_spaces", "x_token", "tokenizer_file",
                          "name_or_path", "vocab", "merges", "add_prefix_space"]),
        ANY, manifest=False,
    ),
    "tokenizer: length": Damage(
        set_key(SETTING, ["model_max_length"],
                [0, -1, 1, 13, 10**6, 10**30, 1e30, "12", None, 12.0, True, [12]]),
        manifest=False,
    ),
    "tokenizer: shorter": Damage(shortened_length, "other", manifest=False),
    "tokenizer: special map": Damage(
        subtree(one("tokenizer/special_tokens_map.json")), ANY, manifest=False, old=True
    ),
    "tokenizer: anywhere": Damage(
        subtree(one("tokenizer/tokenizer.json")), ANY, manifest=False, old=False
    ),
    "tokenizer: ids": Damage(wrong_ids, manifest=False),
    "tokenizer: added": Damage(added_token, ANY, manifest=False),
    "tokenizer: merges": Damage(merges, ANY, manifest=False, old=True),
    "tokenizer: no file": Damage(without_a_file, ANY),
    "tokenizer: no vocabulary": Damage(no_vocabulary, manifest=False),
    "JSON: no object": Damage(no_object),
    "JSON: deep": Damage(deep, ANY),
    "JSON: many keys": Damage(many_keys),
    "JSON: spaces": Damage(spaces, "equal", manifest=False),
    "part: does not fit": Damage(misfit),
    "part: sample size": Damage(
        part_size("sample_size", [0, -1, [8, 0], [0, 8], [-8, 8], [], [8], [8] * 3, 10**6, 10**12,
                                  "8", 8.0, None, True]),
        manifest=False,
    ),
    "part: other size": Damage(part_size("sample_size", [9, [8, 16], 64]), "other", manifest=False),
    "part: value": Damage(
        lambda root, good, rng: set_key(f"{pick(rng, NETWORKS)}/config.json", list, VALUES)(
            root, good, rng
        )[:1],
        ANY, manifest=False,
    ),
    "part: swapped": Damage(swapped),
    "part: missing": Damage(without_a_part),
    "part: empty": Damage(an_empty_part),
    "part: of other pipeline": Damage(foreign_part),
    "part: file missing": Damage(without_file),
    "part: only pickle": Damage(only_pickle),
    "link: folder outside": Damage(folder_link_outside),
    "link: folder inside": Damage(folder_link_inside, "equal"),
    "link: file outside": Damage(file_link_outside),
    "link: nowhere": Damage(file_link_to_itself),
    "link: file inside": Damage(file_link_inside, "equal"),
    "link: hub cache": Damage(hub_cache(foreign=False), "equal"),
    "link: other cache": Damage(hub_cache(foreign=True)),
    "other directory": Damage(other_directory),
    "unrelated file": Damage(unrelated, "equal"),
}  # fmt: skip


# --- what must come out ------------------------------------------------------------------------


def token_ids(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of prompts that are cut
        return tokenizer(PROBES)


def bits(tree):
    return [(x.shape, x.dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def is_equal(model, good):
    """Bit for bit; the parameters are compared elsewhere."""
    return (
        jax.tree.structure(model.schedule) == jax.tree.structure(good.schedule)
        and bits((model.schedule, model.empty)) == bits((good.schedule, good.empty))
        and model.tokenizer.length == good.tokenizer.length
        and np.array_equal(token_ids(model.tokenizer), token_ids(good.tokenizer))
        and all(getattr(model, part).config == getattr(good, part).config for part in NETWORKS)
    )


def tuples(value):
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def differs(model, good, root):
    """What of a model is not what the files say, by readers other than ours."""
    for part in NETWORKS:
        module, original = getattr(model, part), getattr(good, part)
        if bits(nnx.state(module, nnx.Param)) != bits(nnx.state(original, nnx.Param)):
            return f"{part}: parameters"
        told = json.loads((root / part / "config.json").read_text())
        defaults = inspect.signature(type(module).__init__).parameters
        for key, value in module.config.items():
            if value != tuples(told.get(key, defaults[key].default)):
                return f"{part}: {key}"

    if wrong := differing_schedule(model, root):
        return wrong
    if model.schedule.steps_offset != 1:
        return "schedule: steps_offset"
    return differing_tokens(model.tokenizer, root / "tokenizer")


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


def fuzz(goods, load, cases, folder, *, damages=DAMAGES, judge=(differs, is_equal), seed=0):
    """Put `load` through the `cases` (numbers; a case is the same in every run).

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
        if name in ELSEWHERE:
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


ELSEWHERE = {"link: hub cache", "link: other cache", "other directory"}


def pick_good(rng, goods, damage):
    fitting = [
        g for g in goods
        if damage.manifest in (None, g.manifest) and damage.old in (None, g.old)
        and damage.family in (None, family_of(g.root))
    ]  # fmt: skip
    return fitting[rng.integers(len(fitting))]


def report(counts):
    kinds = sorted({kind for _, kind in counts})
    total = Counter()
    print(f"\n{'damage':28}" + "".join(f"{kind:>10}" for kind in kinds))
    for name in sorted({name for name, _ in counts}):
        print(f"{name:28}" + "".join(f"{counts[name, kind]:>10}" for kind in kinds))
    for (_, kind), count in counts.items():
        total[kind] += count
    print(f"{sum(total.values()):<28}" + "".join(f"{total[kind]:>10}" for kind in kinds))


def check(goods, cases, folder):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts, wrong = fuzz(goods, LatentDiffusion.from_pretrained, cases, folder)
    report(counts)
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"the process grew by {grown:.0f} MB")
    assert grown < MEGABYTES
    assert {kind for _, kind in counts} == {"refused", "equal", "other"}


def test_a_few_damages(goods, tmp_path):
    check(goods, range(0, len(DAMAGES), 4), tmp_path)


@pytest.mark.slow
def test_hundreds_of_damages(goods, tmp_path):
    check(goods, range(ROUNDS * len(DAMAGES)), tmp_path)


@pytest.mark.slow
def test_the_fuzzer_notices(goods, tmp_path, monkeypatch):
    """Loaders that do wrong are caught: blind, careless with errors, slow, or slightly off."""
    read = LatentDiffusion.from_pretrained
    model = goods[0].model

    def fails_with(load, name, text, cases=2):
        damages = {name: DAMAGES[name]}
        counts, wrong = fuzz(goods, load, range(cases), tmp_path, damages=damages)
        assert len(wrong) == cases, counts
        assert all(text in line for line in wrong), wrong

    def crashes(root):
        raise KeyError(root)

    def foreign(root):
        return json.loads(f"{root} beta_end")

    def elsewhere(root):
        return read(tmp_path / "nowhere")  # an error of ours, and of another place

    def hides(root):
        with contextlib.suppress(BaseException):
            time.sleep(30)
        return read(root)

    def one_bit(root):
        found = read(root)
        bias = found.unet.conv_in.bias
        bias.set_value(bias[...].at[0].set(np.nextafter(bias[0], 9)))
        return found

    def other_noise(root):
        found = read(root)
        alphas = found.schedule.alphas.at[500].multiply(1 + 1e-3)
        return dataclasses.replace(
            found, schedule=dataclasses.replace(found.schedule, alphas=alphas)
        )

    fails_with(lambda root: model, "schedule: prediction", "BAD: read something else")
    fails_with(lambda root: model, "tokenizer: shorter", "BAD: read something else: tokenizer: ids")
    fails_with(
        lambda root: model, "part: other size", "BAD: read something else: unet: sample_size"
    )
    fails_with(lambda root: model, "link: file outside", "equal")
    fails_with(crashes, "index: class", "BAD: KeyError")
    fails_with(foreign, "schedule: beta", "BAD: an error of another library")
    fails_with(elsewhere, "index: truncated", "BAD: names no file")
    fails_with(one_bit, "unrelated file", "BAD: read something else: unet: parameters")
    fails_with(other_noise, "unrelated file", "BAD: read something else: schedule: alphas")
    monkeypatch.setitem(globals(), "SECONDS", 1)
    fails_with(hides, "unrelated file", "BAD: hangs", cases=1)


# --- the families of today ---------------------------------------------------------------------

FAMILIES = {  # the file whose `make` writes one, and what it is asked
    "xl": ("test_latent_diffusion_xl", {}),
    "three": ("test_latent_diffusion_3", {}),
    "three without T5": ("test_latent_diffusion_3", {"t5": False}),
    "classes": ("test_dit", {"classes": 5, "labels": dict(enumerate("abcde"))}),
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
DISCRETE = {"_class_name": "DDIMScheduler", "beta_schedule": "linear"}


@pytest.fixture(scope="module")
def families(tmp_path_factory, stable_diffusion_directory, goods):
    """Of each family one by PyTorch and one by us, with manifests."""
    top, found = tmp_path_factory.mktemp("families"), []
    for name, (file, options) in FAMILIES.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(Path(__file__).parent))
            make = importlib.import_module(file).make
        text = () if name == "classes" else (stable_diffusion_directory / "tokenizer",)
        theirs, ours = top / name, top / f"{name}, ours"
        make(*text, theirs, **options)
        sharpjax.load(theirs).save_pretrained(ours)
        found += [
            Good(root, sharpjax.load(root), root is ours, False, top, goods[0].pixels)
            for root in (theirs, ours)
        ]
    return found


def family_of(root):
    return root.name.split(",")[0]


def of_the_index(root):
    """The parts that it names."""
    index = json.loads((root / INDEX).read_text())
    return [part for part in parts_of(root) if isinstance(index.get(part), list)]


def index_part(root, good, rng):
    part = pick(rng, of_the_index(root))
    value = pick(rng, VALUES)
    edit(root / INDEX, lambda index: index.update({part: value}))
    return (root,)


def other_family(root, good, rng):
    """A part of the same name, from a directory of another family."""
    part = pick(rng, of_the_index(root))
    others = [
        folder for folder in sorted(good.misfits.iterdir())
        if family_of(folder) != family_of(good.root) and (folder / part).is_dir()
    ]  # fmt: skip
    if not others:
        return without_a_part(root, good, rng)
    shutil.rmtree(root / part)
    shutil.copytree(pick(rng, others) / part, root / part)
    return (root,)


def other_schedule(root, good, rng):
    """Flow matching under a network of noise, or noise levels under one of flows."""
    told = json.loads((root / SCHEDULE).read_text())
    is_flow = told["_class_name"] == FLOW["_class_name"]
    instead = DISCRETE if is_flow else FLOW
    (root / SCHEDULE).write_text(json.dumps(instead))
    if rng.random() < 0.5:
        entry = ["diffusers", instead["_class_name"]]
        edit(root / INDEX, lambda index: index.update(scheduler=entry))
        return (root, "scheduler" if is_flow else "_class_name")
    return root / SCHEDULE, "_class_name"


def half_a_t5(root, good, rng):
    part = pick(rng, ["text_encoder_3", "tokenizer_3"])
    instead = pick(rng, [[None, None], None])
    edit(root / INDEX, lambda index: index.update({part: instead}))
    return (root, "text_encoder_3", "tokenizer_3")


def no_t5(root, good, rng):
    for part in ("text_encoder_3", "tokenizer_3"):
        edit(root / INDEX, lambda index, part=part: index.update({part: [None, None]}))
        if rng.random() < 0.5:
            shutil.rmtree(root / part)
    return ()


def a_token_more(root, good, rng):
    """One more than its encoder knows."""
    part = pick(rng, [part for part in of_the_index(root) if part.startswith("tokenizer")])

    def change(value):
        entry = {"id": 5000, "content": "one more", "special": False, "single_word": False,
                 "lstrip": False, "rstrip": False, "normalized": False}  # fmt: skip
        value["added_tokens"].append(entry)

    edit(root / part / "tokenizer.json", change)
    return root, part


def time_ids(root, good, rng):
    keys = ["addition_time_embed_dim", "projection_class_embeddings_input_dim"]
    path, key = root / "unet/config.json", pick(rng, keys)
    change = pick(rng, [-1, 1, 6, 12])
    edit(path, lambda config: config.update({key: config[key] + change}))
    return (root, key) if key == keys[0] else (root,)


def a_config(root, rng):
    return pick(rng, sorted(root.glob("*/config.json")))


def a_weight_file(root, rng):
    return pick(rng, sorted(root.glob("*/*.safetensors")))


def header(data, rng):
    """A bit in the part that says what there is."""
    end = 8 + int.from_bytes(data[:8], "little")
    data[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
    return data


FAMILY_DAMAGES = {
    "index: part": Damage(index_part),
    "index: bits": Damage(edit_bytes(one(INDEX), flip), ANY),
    "index: truncated": Damage(edit_bytes(one(INDEX), cut)),
    "JSON: bits": Damage(edit_bytes(a_json, flip), ANY),
    "JSON: no object": Damage(no_object),
    "config: value": Damage(
        lambda root, good, rng: set_key(a_config(root, rng).relative_to(root), list, VALUES)(
            root, good, rng
        )[:1],
        ANY,
    ),
    "weights: header": Damage(edit_bytes(a_weight_file, header), ANY),
    "weights: truncated": Damage(edit_bytes(a_weight_file, cut)),
    "schedule: of another family": Damage(other_schedule),
    "schedule: value": Damage(set_key(SCHEDULE, list, VALUES), ANY),
    "schedule: bits": Damage(edit_bytes(one(SCHEDULE), flip), ANY),
    "part: missing": Damage(without_a_part),
    "part: empty": Damage(an_empty_part),
    "part: file missing": Damage(without_file),
    "part: swapped": Damage(swapped, "refused other"),
    "part: of a pixel model": Damage(foreign_part),
    "part: of another family": Damage(other_family, ANY),
    "T5: half": Damage(half_a_t5, family="three"),
    "T5: absent": Damage(no_t5, "other", family="three"),
    "tokenizer: too many tokens": Damage(a_token_more, manifest=False, family="three"),
    "time ids": Damage(time_ids, family="xl"),
}


def saved_weights(folder):
    tensors = load_file(next(folder.glob("*.safetensors")))
    tensors.pop("encoder.embed_tokens.weight", None)  # T5's table under its other name
    return {
        key.removeprefix("text_model."): value.astype(np.float32) for key, value in tensors.items()
    }


def family_differs(model, good, root):
    """As `differs`, weights too."""
    index = json.loads((root / INDEX).read_text())
    there = [part for part in parts_of(root) if index.get(part) not in (None, [None, None])]
    with tempfile.TemporaryDirectory() as folder:
        saved = model.save_pretrained(Path(folder) / "model")
        if parts_of(saved) != there:
            return f"parts: {parts_of(saved)}, not {there}"
        for part in parts_of(saved, "config.json"):
            if bits(saved_weights(saved / part)) != bits(saved_weights(root / part)):
                return f"{part}: parameters"
            ours, told = (json.loads((top / part / "config.json").read_text())
                          for top in (saved, root))  # fmt: skip
            for key in ours.keys() & told.keys():
                if ours[key] != told[key]:
                    return f"{part}: {key}"
    if "text_encoder" not in there:
        names = index["id2label"]
        if model.conditions != tuple(names[str(i)] for i in range(len(model.conditions))):
            return "names of classes"
    for name in ("tokenizer", "tokenizer_2"):
        if name in there and (wrong := differing_tokens(getattr(model, name), root / name)):
            return f"{name}: {wrong}"
    if "tokenizer_3" in there:
        theirs = T5TokenizerFast.from_pretrained(root / "tokenizer_3")
        ids = theirs(list(PROBES), padding="max_length", max_length=256)["input_ids"]
        if not np.array_equal(token_ids(model.tokenizer_3), ids):
            return "tokenizer_3: ids"
    if index["scheduler"][1] != FLOW["_class_name"]:
        return differing_schedule(model, root)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(root / "scheduler")
    theirs.set_timesteps(7)
    if not np.allclose(model.schedule.timesteps(7), theirs.timesteps, rtol=1e-5):
        return "schedule: timesteps"
    return None


def is_equal_family(model, good):
    def tokens(model):
        found = (getattr(model, f"tokenizer{n}", None) for n in ("", "_2", "_3"))
        return [None if one is None else token_ids(one).tolist() for one in found]

    return bits(model) == bits(good) and tokens(model) == tokens(good)


@pytest.mark.slow
def test_the_families_of_today(families, tmp_path):
    counts, wrong = fuzz(
        families, sharpjax.load, range(2 * ROUNDS * len(FAMILY_DAMAGES)), tmp_path,
        damages=FAMILY_DAMAGES, judge=(family_differs, is_equal_family),
    )  # fmt: skip
    report(counts)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)
    assert {kind for _, kind in counts} == {"refused", "equal", "other"}


# --- what the fuzzer found ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            INDEX,
            dict(unet=["../unet", "UNet2DConditionModel"]),
            "'unet' must be .'diffusers', 'UNet",
        ),
        (
            INDEX,
            dict(scheduler=["diffusers", "os"]),
            r"model_index\.json\): _class_name must .* 'os'",
        ),
        (SCHEDULE, dict(steps_offset="x"), "steps_offset must be of type int"),
        (SCHEDULE, dict(num_train_timesteps=10**12), "num_train_timesteps must be at most 100000"),
        (SCHEDULE, dict(num_train_timesteps=10**400), "num_train_timesteps must be at most 100000"),
        (SCHEDULE, dict(num_train_timesteps=True), "num_train_timesteps must be of type int"),
        (SCHEDULE, dict(trained_betas=[{}]), "trained_betas must be a list of 1 to 100000 numbers"),
        (SCHEDULE, dict(trained_betas=["0.1"]), "trained_betas must be"),
        (SCHEDULE, dict(trained_betas=[10**400]), "trained_betas must be"),
        (SCHEDULE, dict(trained_betas=[[0.1], [0.1, 0.2]]), "trained_betas must be"),
        (SCHEDULE, dict(trained_betas=[0.1]), "trained_betas has 1 entries, but num_train_timest"),
        (SCHEDULE, dict(beta_start=1e-30), "adds no noise: beta_start"),
        (SCHEDULE, dict(rescale_betas_zero_snr=True, num_train_timesteps=1), "of at least 2"),
        (
            SCHEDULE,
            dict(rescale_betas_zero_snr=True, beta_start=0.5, beta_end=0.6),
            "leave a signal until the last step",
        ),
        ("unet/config.json", dict(sample_size=0), "sample_size must be from 1 to 4096, got 0"),
        ("unet/config.json", dict(sample_size=[8, 0]), "sample_size must be from 1 to 4096"),
        ("unet/config.json", dict(sample_size=10**5), "sample_size must be from 1 to 4096"),
    ],
)
def test_damage_that_was_read_or_crashed(file, changes, message, goods, tmp_path):
    root = Path(shutil.copytree(goods[0].root, tmp_path / "model"))
    edit(root / file, lambda value: value.update(changes))
    with pytest.raises(ValueError, match=message) as caught:
        LatentDiffusion.from_pretrained(root)
    assert str(root) in str(caught.value)


def test_keys_left_out_mean_what_the_class_of_the_index_means(goods, tmp_path):
    """`set_alpha_to_one` is true to DDIM and false to PNDM."""
    for name, to_one in (("DDIMScheduler", True), ("PNDMScheduler", False)):
        root = Path(shutil.copytree(goods[0].root, tmp_path / name))
        edit(root / INDEX, lambda index, name=name: index.update(scheduler=["diffusers", name]))
        (root / SCHEDULE).write_text("{}")
        schedule = LatentDiffusion.from_pretrained(root).schedule
        assert schedule.set_alpha_to_one is to_one
        assert dict(schedule.config)["beta_end"] == 0.02


@pytest.mark.parametrize("text", ["#version: 0.2\n\nc a\n", "c a\n\n"])
def test_a_blank_line_is_no_merge(text, goods, tmp_path):
    """transformers refuses it as well."""
    root = Path(shutil.copytree(goods[1].root, tmp_path / "model"))
    (root / "tokenizer" / "merges.txt").write_text(text)
    with pytest.raises(ValueError, match=r"merges\.txt: merge \d must be two tokens, got \[''\]"):
        LatentDiffusion.from_pretrained(root)
    with pytest.raises(Exception, match="Merges text file invalid at line"):
        CLIPTokenizer.from_pretrained(root / "tokenizer")


@pytest.mark.parametrize("value", [0, False, ""])
def test_nothing_is_no_list_of_tokens(value, goods, tmp_path):
    root = Path(shutil.copytree(goods[0].root, tmp_path / "model"))
    edit(root / SETTING, lambda config: config.update(extra_special_tokens=value))
    with pytest.raises(ValueError, match="extra_special_tokens must be a list of tokens"):
        LatentDiffusion.from_pretrained(root)


def test_half_a_surrogate_pair_is_no_token(goods, tmp_path):
    root = Path(shutil.copytree(goods[0].root, tmp_path / "model"))
    edit(root / SETTING, lambda config: config.update(pad_token="\ud800"))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: pad_token must be a token"):
        LatentDiffusion.from_pretrained(root)


def test_a_key_that_stands_twice_is_found_at_once(goods, tmp_path):
    """Among 300,000; counting them one by one took hours."""
    root = Path(shutil.copytree(goods[0].root, tmp_path / "model"))
    many_keys(root, goods[0], np.random.default_rng(0))
    with time_limit(5), pytest.raises(ValueError, match="key '_x' stands there twice"):
        LatentDiffusion.from_pretrained(root)


def test_tokenizer_files_may_be_links_inside_the_directory(goods, tmp_path):
    root = Path(shutil.copytree(goods[1].root, tmp_path / "model"))
    path = root / "tokenizer" / "vocab.json"
    path.rename(root / "vocab.json")
    path.symlink_to("../vocab.json")
    assert is_equal(LatentDiffusion.from_pretrained(root), goods[1].model)
