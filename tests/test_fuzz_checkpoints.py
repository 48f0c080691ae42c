"""Model directories damaged at random: refused in one clear error, or read for what they are.

`fuzz` takes the function that loads, so that whole pipelines can be put through the same damage.
"""

import dataclasses
import json
import os
import shutil
import struct
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from damaged import SOURCE, Hang, report, time_limit, tuples
from diffusers import AutoencoderKL as TorchAutoencoderKL
from diffusers import UNet2DConditionModel as TorchUNet2DConditionModel
from flax import nnx
from resident import growth
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from sharpjax.checkpoints import from_pretrained, save_pretrained
from sharpjax.checkpoints.directory import MANIFEST_NAME

ROUNDS = 10 * int(os.environ.get("SHARPJAX_FUZZ", 1))  # of all kinds of damage
SECONDS = 20  # that one case may take; the typical one takes 0.1
MEGABYTES = 300  # that the process may grow by over all cases; their models are 0.1


# --- the undamaged directories -----------------------------------------------------------------


@dataclasses.dataclass
class Good:
    """A directory and what a loader makes of it."""

    root: Path
    modules: dict[str, nnx.Module]
    manifest: bool
    sharded: bool


def torch_parts():
    torch.manual_seed(0)
    return {
        "unet": TorchUNet2DConditionModel(
            sample_size=8,
            block_out_channels=(4, 8),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=4,
            attention_head_dim=2,
            norm_num_groups=2,
        ),
        "vae": TorchAutoencoderKL(
            block_out_channels=(4,),
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            norm_num_groups=2,
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=12,
                hidden_size=4,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=5,
                projection_dim=4,
                bos_token_id=0,
                eos_token_id=1,
            )
        ),
    }


@pytest.fixture(scope="module")
def goods(tmp_path_factory):
    """By PyTorch and by us (with a manifest), each in one file and in shards."""
    found, top = [], tmp_path_factory.mktemp("good")
    for sharded in (False, True):
        theirs, ours = top / f"theirs{sharded}", top / f"ours{sharded}"
        for name, model in torch_parts().items():
            size = sum(p.numel() for p in model.parameters()) if sharded else 10**9
            model.save_pretrained(theirs / name, max_shard_size=size)  # about four shards
            save_pretrained(from_pretrained(theirs, name), ours / name, max_shard_size=size)
        for root in (theirs, ours):
            modules = {name: from_pretrained(root, name) for name in torch_parts()}
            found.append(Good(root, modules, root == ours, sharded))
    return found


# --- damage ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Damage:
    """One way to spoil the component in `folder`; returns a key that the error must name."""

    change: Callable[[Path, np.random.Generator], str | None]
    manifest: bool | None = None  # of the directories it is for
    sharded: bool | None = None


def pick(rng, values):
    values = list(values)
    return values[rng.integers(len(values))]


def weights(folder, rng):
    return pick(rng, sorted(folder.glob("*.safetensors")))


def index_of(folder):
    return next(folder.glob("*.safetensors.index.json"))


def edit_bytes(find, change):
    def damage(folder, rng):
        path = find(folder, rng)
        data = bytearray(path.read_bytes())
        path.write_bytes(change(data, rng) or data)

    return damage


def flip(start, stop):
    def change(data, rng):
        position = int(rng.integers(start(data), stop(data)))
        data[position] ^= 1 << int(rng.integers(8))

    return change


def header_end(data):
    return 8 + struct.unpack("<Q", data[:8])[0]


def edit_header(change):
    def edit(data, rng):
        header = json.loads(data[8 : header_end(data)])
        change(header, rng)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[header_end(data) :]

    return edit_bytes(weights, edit)


def claim(header, rng):
    entry = header[pick(rng, header.keys() - {"__metadata__"})]
    size = int(pick(rng, [10**12, 2**62, 2**64 - 1, 10**30, -1]))
    entry["shape"] = pick(rng, [[size], [size, size], [size, 0], entry["shape"]])
    entry["data_offsets"] = pick(rng, [[0, 4 * size], [size, 0], entry["data_offsets"]])


def retype(header, rng):
    entry = header[pick(rng, header.keys() - {"__metadata__"})]
    entry["dtype"] = pick(rng, ["F16", "BF16", "I32", "F64", "F8_E4M3", "U8", "", "float", None, 3])


def exchange(header, rng):
    """Two tensors give each other their places: caught by shape, or a valid other file."""
    a, b = rng.permutation(sorted(header.keys() - {"__metadata__"}))[:2]
    header[a], header[b] = header[b], header[a]


def edit_tensors(change):
    def damage(folder, rng):
        path = weights(folder, rng)
        tensors = load_file(path)
        key = pick(rng, sorted(tensors))
        named = change(tensors, key, rng)
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
        return named

    return damage


def drop(tensors, key, rng):
    del tensors[key]
    return key


def add(tensors, key, rng):
    name = pick(rng, ["extra", "", "conv_in.weight2", "../x", key + ".", key.upper(), "\u0000"])
    tensors[name] = tensors[key]


def rename(tensors, key, rng):
    place = int(rng.integers(len(key)))
    name = key[:place] + pick(rng, "aZ0._/ é") + key[place + 1 :]
    tensors[name] = tensors.pop(key)


def both_spellings(tensors, key, rng):
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_out.0", "proj_attn")):
        for name in list(tensors):
            if f"attentions.0.{new}." in name:
                tensors[name.replace(new, old)] = tensors[name]
                return None
    tensors[f"text_model.{key}"] = tensors[key.removeprefix("text_model.")] = tensors[key]


def reshape(tensors, key, rng):
    value = tensors[key]
    tensors[key] = pick(
        rng,
        [value[None], value[..., None, None], value.ravel()[:-1], value[:0], value[:1].sum(),
         np.concatenate([value, value]), np.zeros((3, 5, 7), np.float32)],
    )  # fmt: skip
    return key


def convert(tensors, key, rng):
    kind = pick(rng, ["int32", "bool", "uint8", "int64", "complex64"])
    tensors[key] = tensors[key].astype(kind)
    return key


def narrow(tensors, key, rng):
    tensors[key] = tensors[key].astype(pick(rng, ["float16", "float64"]))


def overflow(tensors, key, rng):
    tensors[key] = np.full(tensors[key].shape, 1e300)
    return key


def spoil(tensors, key, rng):
    tensors[key].ravel()[int(rng.integers(tensors[key].size))] = pick(
        rng, [np.nan, np.inf, -np.inf]
    )
    return key


def edit_json(find, change):
    def damage(folder, rng):
        path = find(folder)
        value = json.loads(path.read_text())
        named = change(value, rng)
        path.write_text(json.dumps(value))
        return named

    return damage


def config_of(folder):
    return folder / "config.json"


VALUES = (
    None, True, False, 0, -1, 1, 2, 3, 7, 1.5, -0.0, 1e300, 10**6, 10**9, 10**18, 10**40, "", "x",
    "silu", [], [1], [1, 2, 3], [[]], [["a"]], {}, {"a": 1}, "DownBlock2D", ["DownBlock2D"],
    ["é"], "\u0000", [None, None], [4, 8], [8, 4], [10**9, 10**9], [4] * 40, [[[[[[1]]]]]],
)  # fmt: skip


def any_value(config, rng):
    config[pick(rng, config)] = pick(rng, VALUES)


def unknown_key(config, rng):
    key = pick(rng, ["gated", "", "rngs", "self", "__class__", "settings", "é", "Act_fn"])
    # null, false and what is empty are off, and change nothing
    config[key] = pick(rng, [v for v in VALUES if v or (v == 0 and v is not False)])


def unknown_name(config, rng):
    words = [k for k, v in config.items() if isinstance(v, str | list) and not k.startswith("_")]
    key = pick(rng, words)
    if isinstance(config[key], list) and config[key]:
        config[key][int(rng.integers(len(config[key])))] = pick(rng, ["K" + "Block2D", "nn.Linear"])
    else:
        config[key] = pick(rng, ["os.system", "tanh!", "SILU2"])


def scale_number(config, rng):
    def numeric(value):
        return isinstance(value, int) and not isinstance(value, bool)

    key = pick(rng, [k for k, v in config.items() if numeric(v)])
    config[key] = pick(rng, [config[key] * 2, config[key] + 1, config[key] * 10**6, -config[key]])


def other_class(config, rng):
    key = "_class_name" if "_class_name" in config else "architectures"
    name = pick(
        rng, ["UNet1DModel", "os", "AutoencoderKL", "CLIPTextModel", "UNet2DModel", "", 3, None]
    )
    config[key] = pick(rng, [name, [name], [name, name], {}])


def listing(change):
    def edit(index, rng):
        entries = index["weight_map"]
        return change(entries, pick(rng, sorted(entries)), rng)

    return edit_json(index_of, edit)


def elsewhere(entries, key, rng):
    entries[key] = pick(
        rng,
        ["/etc/passwd", "../unet/config.json", "..", "", "a/b.safetensors", "config.json", 3, None,
         "../" + entries[key], os.path.abspath(entries[key]), ".\\x.safetensors", "x.safetensors"],
    )  # fmt: skip


def unlist(entries, key, rng):
    del entries[key]
    return key


def list_more(entries, key, rng):
    entries["extra"] = entries[key]
    return "extra"


def list_wrong_shard(entries, key, rng):
    others = sorted(set(entries.values()) - {entries[key]})
    entries[key] = pick(rng, others)
    return None


def wrong_map(index, rng):
    index["weight_map"] = pick(rng, [None, [], {}, "x", 3, {"a": {}}, {"a": []}])


def digest(change):
    return edit_json(lambda folder: folder / MANIFEST_NAME, change)


def wrong_digest(manifest, rng):
    key = pick(rng, sorted(manifest))
    manifest[key] = pick(
        rng, ["", "0" * 64, manifest[key][:-1], None, 3, [], manifest[key].upper()]
    )
    return key


def unmanifested(manifest, rng):
    key = pick(rng, sorted(manifest))
    del manifest[key]
    return key


def manifested_path(manifest, rng):
    manifest[pick(rng, ["../x", "/etc/passwd", "", ".", "a/b"])] = "0" * 64


def a_file(folder, rng):
    return pick(rng, sorted(p for p in folder.iterdir() if p.is_file()))


def needed_file(folder, rng):
    return pick(rng, sorted(p for p in folder.iterdir() if p.name != MANIFEST_NAME))


def removed(folder, rng):
    needed_file(folder, rng).unlink()


def only_pickle(folder, rng):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / pick(rng, ["diffusion_pytorch_model.bin", "x.ckpt", "model.pt"])).write_bytes(b"\x80")


def both_layouts(folder, rng):
    stem = index_of(folder).name.split(".")[0]
    shutil.copy(weights(folder, rng), folder / f"{stem}.safetensors")


def directory_instead(folder, rng):
    path = a_file(folder, rng)
    path.unlink()
    path.mkdir()


def pipe_instead(folder, rng):
    path = a_file(folder, rng)
    path.unlink()
    os.mkfifo(path)


def link_outside(folder, rng):
    path = a_file(folder, rng)
    target = folder.parent.parent / "outside"
    path.rename(target)
    path.symlink_to(pick(rng, [target, os.path.relpath(target, folder)]))


def link_to_itself(folder, rng):
    path = a_file(folder, rng)
    path.unlink()
    path.symlink_to(path.name)


def link_inside(folder, rng):
    path = a_file(folder, rng)
    target = path.rename(folder.parent / "elsewhere")
    path.symlink_to(pick(rng, [target, "../elsewhere"]))


def component_outside(folder, rng):
    target = folder.rename(folder.parent.parent / "outside")
    folder.symlink_to(target)


def spaces(folder, rng):
    path = pick(rng, sorted(folder.glob("*.json")))
    path.write_text("\n " + json.dumps(json.loads(path.read_text()), indent=7) + "\n\n")


def unrelated(folder, rng):
    (folder / pick(rng, ["README.md", "x.bin", "other.safetensors", "x.json"])).write_bytes(b"\0")


JUNK = lambda data, rng: bytes(data) + rng.bytes(int(rng.integers(1, 100)))
CUT = lambda data, rng: bytes(data[: int(rng.integers(len(data)))])
DAMAGES = {
    "truncated": Damage(edit_bytes(weights, CUT)),
    "empty file": Damage(edit_bytes(a_file, lambda data, rng: data.clear())),
    "appended": Damage(edit_bytes(weights, JUNK)),
    "random bytes": Damage(edit_bytes(weights, lambda d, rng: rng.bytes(len(d)))),
    "header bit": Damage(edit_bytes(weights, flip(lambda d: 0, header_end))),
    "header bit, no manifest": Damage(
        edit_bytes(weights, flip(lambda d: 8, header_end)), manifest=False
    ),
    "header length": Damage(
        edit_bytes(weights, lambda d, rng: rng.bytes(int(rng.integers(1, 9))) + bytes(d[8:]))
    ),
    "payload bit": Damage(edit_bytes(weights, flip(header_end, len)), manifest=True),
    "payload bit, no manifest": Damage(edit_bytes(weights, flip(header_end, len)), manifest=False),
    "header claims": Damage(edit_header(claim)),
    "header type": Damage(edit_header(retype)),
    "header exchange": Damage(edit_header(exchange), manifest=False, sharded=False),
    "tensor missing": Damage(edit_tensors(drop), manifest=False),
    "tensor extra": Damage(edit_tensors(add)),
    "tensor renamed": Damage(edit_tensors(rename)),
    "tensor twice": Damage(edit_tensors(both_spellings)),
    "tensor shape": Damage(edit_tensors(reshape), manifest=False, sharded=None),
    "tensor type": Damage(edit_tensors(convert), manifest=False),
    "tensor other float": Damage(edit_tensors(narrow)),
    "tensor overflow": Damage(edit_tensors(overflow), manifest=False),
    "tensor not finite": Damage(edit_tensors(spoil), manifest=False),
    "config value": Damage(edit_json(config_of, any_value), manifest=False),
    "config value, manifest": Damage(edit_json(config_of, any_value), manifest=True),
    "config unknown key": Damage(edit_json(config_of, unknown_key)),
    "config unknown name": Damage(edit_json(config_of, unknown_name), manifest=False),
    "config number": Damage(edit_json(config_of, scale_number), manifest=False),
    "config class": Damage(edit_json(config_of, other_class), manifest=False),
    "config bit": Damage(edit_bytes(lambda f, rng: config_of(f), flip(lambda d: 0, len))),
    "config truncated": Damage(edit_bytes(lambda f, rng: config_of(f), CUT)),
    "config nested": Damage(
        edit_bytes(lambda f, rng: config_of(f), lambda d, rng: b'{"a":' * 10**5 + b"[" * 10**5)
    ),
    "index leads away": Damage(listing(elsewhere), sharded=True),
    "index drops": Damage(listing(unlist), sharded=True),
    "index adds": Damage(listing(list_more), sharded=True),
    "index confuses": Damage(listing(list_wrong_shard), sharded=True),
    "index of wrong type": Damage(edit_json(index_of, wrong_map), sharded=True),
    "index bit": Damage(
        edit_bytes(lambda f, rng: index_of(f), flip(lambda d: 0, len)), sharded=True
    ),
    "index and single file": Damage(both_layouts, sharded=True),
    "digest wrong": Damage(digest(wrong_digest), manifest=True),
    "digest missing": Damage(digest(unmanifested), manifest=True),
    "digest of a path": Damage(digest(manifested_path), manifest=True),
    "manifest bit": Damage(
        edit_bytes(lambda f, rng: f / MANIFEST_NAME, flip(lambda d: 0, len)), manifest=True
    ),
    "file missing": Damage(removed),
    "only pickle": Damage(only_pickle),
    "directory": Damage(directory_instead),
    "pipe": Damage(pipe_instead),
    "link outside": Damage(link_outside),
    "link to itself": Damage(link_to_itself),
    "link inside": Damage(link_inside),
    "component outside": Damage(component_outside),
    "spaces": Damage(spaces, manifest=False),
    "unrelated file": Damage(unrelated),
}
ALWAYS_READ = {"link inside", "spaces", "unrelated file"}
SOMETIMES_READ = {  # for what the files say, which is checked
    "header bit", "header bit, no manifest", "payload bit, no manifest", "header exchange",
    "header length", "header claims", "header type", "tensor other float", "tensor twice",
    "tensor shape", "config value", "config value, manifest", "config number", "config bit",
    "config unknown name", "config class", "index bit", "digest wrong", "manifest bit",
    "index confuses", "tensor renamed",
}  # fmt: skip


# --- what must come out ------------------------------------------------------------------------


def stored(folder):
    """The tensors of a folder by safetensors itself, and its configuration."""
    index = list(folder.glob("*.safetensors.index.json"))
    names = set(json.loads(index[0].read_text())["weight_map"].values()) if index else None
    tensors = {}
    for path in folder.glob("*.safetensors"):
        if path.name in names if names else path.name != "other.safetensors":
            tensors |= load_file(path)
    return tensors, json.loads((folder / "config.json").read_text())


def is_what_the_files_say(module, folder, scratch):
    """Bit for bit, by a reader that shares nothing with ours but PyTorch's names."""
    found, _ = stored(save_pretrained(module, scratch))
    expected, config = stored(folder)
    if type(module).__name__ == "CLIPTextModel":
        expected = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in expected.items()}
    return (
        found.keys() == expected.keys()
        and all(
            np.array_equal(found[k].view(np.int32), expected[k].astype(np.float32).view(np.int32))
            for k in found
        )
        and all(tuples(config[k]) == v for k, v in module.config.items() if k in config)
    )


def is_equal(module, other):
    a, b = jax.tree.leaves(nnx.state(module)), jax.tree.leaves(nnx.state(other))
    return (
        type(module) is type(other)
        and module.config == other.config
        and len(a) == len(b)
        and all(np.array_equal(np.asarray(x).view(np.int32), np.asarray(y).view(np.int32))
                for x, y in zip(a, b, strict=True))
    )  # fmt: skip


def outcome(load, good, component, root, key, manifest, scratch):
    """`(kind, message)`; a kind that starts with "BAD" is a failure."""
    try:
        with time_limit(SECONDS):
            modules = load(root, component)
    except Hang:
        return "BAD: hangs", ""
    except (ValueError, OSError) as error:
        message = f"{type(error).__name__}: {error}"
        ours = traceback.extract_tb(error.__traceback__)[-1].filename.startswith(SOURCE)
        if not ours:
            return "BAD: an error of another library", message
        if str(root / component) not in message:
            return "BAD: names no file", message
        if key is not None and key not in message:
            return "BAD: does not name the key", message
        return "refused", message
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return f"BAD: {type(error).__name__}", "".join(traceback.format_exception(error)[-3:])
    for name, module in modules.items():
        if not is_what_the_files_say(module, root / name, scratch / name):
            return "BAD: read something else", name
    if all(is_equal(module, good.modules[name]) for name, module in modules.items()):
        return "read, equal", ""
    if manifest and (root / component / MANIFEST_NAME).exists():
        return "BAD: read another model than the manifest's", ""
    return "read, as the files say", ""


def fuzz(goods, load, cases, folder, *, damages=DAMAGES, components=None, seed=0):
    """Put `load` through `cases` damaged directories.

    Args:
        goods: the undamaged ones.
        load: `load(root, damaged_component) -> {component: module}`, one or all of them.
        cases: range of case numbers; a case is the same in every run.
        folder: to work in.
        damages: by name.
        components: that are damaged; all by default (`"."` is the top directory).
        seed: of the damage.

    Returns:
        `Counter` of `(damage, outcome)`, and what went wrong in words.
    """
    counts, wrong = Counter(), []
    names = sorted(damages)
    for case in cases:
        rng = np.random.default_rng([seed, case])
        name = names[case % len(names)]
        damage = damages[name]
        good = pick(
            rng,
            [g for g in goods
             if damage.manifest in (None, g.manifest) and damage.sharded in (None, g.sharded)],
        )  # fmt: skip
        component = pick(rng, components or sorted(good.modules))
        work = folder / f"case{case}"
        root = Path(shutil.copytree(good.root, work / "model"))
        key = damage.change(root / component, rng)
        kind, message = outcome(
            load,
            good,
            component,
            root,
            None if good.manifest else key,
            good.manifest,
            work / "again",
        )
        counts[name, kind] += 1
        allowed = {"refused", "read, equal", "read, as the files say"}
        if name in ALWAYS_READ:
            allowed = {"read, equal"}
        elif name not in SOMETIMES_READ:
            allowed = {"refused"}
        if kind not in allowed:
            wrong.append(f"case {case}, {name}, {component} of {good.root.name}: {kind} {message}")
        shutil.rmtree(work)
    return counts, wrong


def load_component(root, component):
    return {component: from_pretrained(root, component)}


def check(goods, cases, folder):
    grown = growth()
    counts, wrong = fuzz(goods, load_component, cases, folder)
    report(counts)
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:20])
    print(f"the process grew by {grown():.0f} MB")
    assert grown() < MEGABYTES
    kinds = {kind for _, kind in counts}
    assert kinds == {"refused", "read, equal", "read, as the files say"}


@pytest.mark.slow
def test_the_fuzzer_notices(goods, tmp_path):
    """Loaders that do wrong are caught: blind, careless with errors, or slightly off."""

    def fails_with(load, *names, text):
        damages = {name: DAMAGES[name] for name in names}
        counts, wrong = fuzz(goods, load, range(4), tmp_path, damages=damages)
        assert len(wrong) == 4, counts
        assert all(text in line for line in wrong), wrong

    def blind(root, component):
        return {component: goods[0].modules[component]}

    def crashes(root, component):
        raise KeyError(component)

    def foreign(root, component):
        return json.loads(str(root / component))

    def silent(root, component):
        return from_pretrained(tmp_path / "nowhere")  # an error of ours, and of another place

    def off(root, component):
        module = from_pretrained(root, component)
        state = nnx.state(module)
        leaves, tree = jax.tree.flatten(state)
        nnx.update(module, jax.tree.unflatten(tree, [np.nextafter(x, 9) for x in leaves]))
        return {component: module}

    fails_with(blind, "payload bit, no manifest", text="BAD: read something else")
    fails_with(blind, "payload bit", text="BAD: read something else")
    fails_with(crashes, "truncated", text="BAD: KeyError")
    fails_with(foreign, "truncated", text="BAD: an error of another library")
    fails_with(silent, "truncated", text="BAD: names no file")
    fails_with(off, "spaces", text="BAD: read something else")


@pytest.mark.slow
def test_every_damage_once(goods, tmp_path):
    check(goods, range(len(DAMAGES)), tmp_path)


@pytest.mark.slow
def test_hundreds_of_damages(goods, tmp_path):
    check(goods, range(len(DAMAGES), (ROUNDS + 1) * len(DAMAGES)), tmp_path)
