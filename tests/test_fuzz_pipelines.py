"""Directories of Stable Diffusion damaged at random, in all that is not weights.

Refused in one clear error, or read for what they are: the same model bit for bit, or the other
model that the files describe to diffusers and transformers.
"""

import contextlib
import dataclasses
import inspect
import json
import os
import shutil
import time
from pathlib import Path

import damaged
import diffusers
import jax
import numpy as np
import pytest
from damaged import (
    ANY,
    INDEX,
    SCHEDULE,
    SETTINGS,
    VALUES,
    Damage,
    Good,
    a_json,
    a_needed_file,
    a_part,
    an_empty_part,
    bits,
    cut,
    differing_schedule,
    differing_tokens,
    edit,
    edit_bytes,
    flip,
    foreign_part,
    fuzz,
    no_object,
    one,
    parts_of,
    pick,
    report,
    set_key,
    swapped,
    time_limit,
    token_ids,
    tuples,
    without_a_part,
    without_file,
    write_pixel_model,
)
from flax import nnx
from resident import growth
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sharpjax import LatentDiffusion
from sharpjax.checkpoints.directory import MANIFEST_NAME
from sharpjax.checkpoints.pipeline import LATENT

ROUNDS = 3 * int(os.environ.get("SHARPJAX_FUZZ", 1))  # of all kinds of damage
MEGABYTES = 600  # that the process may grow by over all cases, compiled encoders included
NETWORKS = ("text_encoder", "unet", "vae")

# of NumPy 2, inside diffusers
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# --- the undamaged directories -----------------------------------------------------------------


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
        Good(root, LatentDiffusion.from_pretrained(root), pixels, root == ours, old=root == old,
             others=top / "misfits")
        for root in (theirs, old, ours)
    ]  # fmt: skip


# --- damage ------------------------------------------------------------------------------------


def raw(path, key, text, *, also=False):
    """`text` as it stands for the value of a key, or beside it."""
    value = json.loads(path.read_text())
    if not also:
        del value[key]
    head = json.dumps(value)[:-1]
    path.write_text(f'{head}, "{key}": {text}}}')


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


def a_tokenizer_file(root, rng, suffix=".*"):
    return pick(rng, sorted((root / "tokenizer").glob(f"*{suffix}")))


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


def misfit(root, good, rng):
    name = pick(rng, sorted(p.name for p in good.others.iterdir()))
    part, key = name.split(".")
    shutil.rmtree(root / part)
    shutil.copytree(good.others / name, root / part)
    return part, key


def part_size(key, values):
    def change(root, good, rng):
        edit(root / "unet" / "config.json", lambda c: c.update({key: pick(rng, values)}))
        return "unet", key

    return change


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
    for part in pick(rng, [*([name] for name in networks), networks]):
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
    "link: hub cache": Damage(hub_cache(foreign=False), "equal", elsewhere=True),
    "link: other cache": Damage(hub_cache(foreign=True), elsewhere=True),
    "other directory": Damage(other_directory, elsewhere=True),
    "unrelated file": Damage(unrelated, "equal"),
}  # fmt: skip


# --- what must come out ------------------------------------------------------------------------


def is_equal(model, good):
    """Bit for bit; the parameters are compared elsewhere."""
    return (
        jax.tree.structure(model.schedule) == jax.tree.structure(good.schedule)
        and bits((model.schedule, model.empty)) == bits((good.schedule, good.empty))
        and model.tokenizer.length == good.tokenizer.length
        and np.array_equal(token_ids(model.tokenizer), token_ids(good.tokenizer))
        and all(getattr(model, part).config == getattr(good, part).config for part in NETWORKS)
    )


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


def put_through(load, goods, cases, folder, damages=DAMAGES):
    return fuzz(goods, load, cases, folder, damages=damages, judge=(differs, is_equal))


def check(goods, cases, folder):
    grown = growth()
    counts, wrong = put_through(LatentDiffusion.from_pretrained, goods, cases, folder)
    report(counts)
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong)
    print(f"the process grew by {grown():.0f} MB")
    assert grown() < MEGABYTES
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
        counts, wrong = put_through(load, goods, range(cases), tmp_path, damages)
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
    monkeypatch.setattr(damaged, "SECONDS", 1)
    fails_with(hides, "unrelated file", "BAD: hangs", cases=1)


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
