"""Directories of XL, 3 with T5 and without, and DiT, damaged at random in whatever lies there.

Refused in one clear error, or read for what they are: the same model bit for bit, or the other
model that the files describe to diffusers and transformers.
"""

import importlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import pytest
from damaged import (
    ANY,
    INDEX,
    PROBES,
    SCHEDULE,
    VALUES,
    Damage,
    Good,
    a_json,
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
    token_ids,
    without_a_part,
    without_file,
    write_pixel_model,
)
from safetensors.numpy import load_file
from transformers import T5TokenizerFast

import sharpjax

ROUNDS = 6 * int(os.environ.get("SHARPJAX_FUZZ", 1))  # of all kinds of damage

# of NumPy 2, inside diffusers
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FAMILIES = {  # the file whose `make` writes one, and what it is asked
    "xl": ("test_latent_diffusion_xl", {}),
    "three": ("test_latent_diffusion_3", {}),
    "three without T5": ("test_latent_diffusion_3", {"t5": False}),
    "classes": ("test_dit", {"classes": 5, "labels": dict(enumerate("abcde"))}),
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
DISCRETE = {"_class_name": "DDIMScheduler", "beta_schedule": "linear"}


@pytest.fixture(scope="module")
def families(tmp_path_factory, stable_diffusion_directory):
    """Of each family one by PyTorch and one by us, with manifests."""
    top, found = tmp_path_factory.mktemp("families"), []
    pixels = write_pixel_model(tmp_path_factory.mktemp("pixels"))
    for name, (file, options) in FAMILIES.items():
        make = importlib.import_module(file).make
        text = () if name == "classes" else (stable_diffusion_directory / "tokenizer",)
        theirs, ours = top / name, top / f"{name}, ours"
        make(*text, theirs, **options)
        sharpjax.load(theirs).save_pretrained(ours)
        found += [
            Good(root, sharpjax.load(root), pixels, root is ours, name, others=top)
            for root in (theirs, ours)
        ]
    return found


# --- damage --------------------------------------------------------------------------------------


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
        folder for folder in sorted(good.others.iterdir())
        if folder.name.split(",")[0] != good.family and (folder / part).is_dir()
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


DAMAGES = {
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


# --- what must come out --------------------------------------------------------------------------


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
        families, sharpjax.load, range(ROUNDS * len(DAMAGES)), tmp_path,
        damages=DAMAGES, judge=(family_differs, is_equal_family),
    )  # fmt: skip
    report(counts)
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)
    assert {kind for _, kind in counts} == {"refused", "equal", "other"}
