"""Directories written anew: the same model, whole or not at all, for PyTorch as well."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from flax import nnx
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from sharpjax import LatentDiffusion, cli, zoo
from sharpjax.checkpoints.component import from_pretrained, save_pretrained
from sharpjax.models import convert as module
from sharpjax.models.convert import convert
from sharpjax.models.load import load
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.networks.clip_text import CLIPTextModel

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def source(stable_diffusion_directory, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(stable_diffusion_directory, tmp_path / "source")


def state(component):
    return {k: np.asarray(v[...]) for k, v in nnx.to_flat_state(nnx.state(component, nnx.Param))}


def assert_same(one, other):
    one, other = state(one), state(other)
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.slow
def test_a_pipeline_is_the_same_for_us_and_for_pytorch(source, tmp_path):
    (source / "README.md").write_text("card")
    (source / "v1.ckpt").write_bytes(b"pickle")
    settings = source / "scheduler" / "scheduler_config.json"  # the index alone says its class
    content = json.loads(settings.read_text())
    assert content.pop("_class_name") == "PNDMScheduler"
    settings.write_text(json.dumps(content))
    (source / "safety_checker").mkdir()
    (source / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    done = convert(source, tmp_path / "out")
    assert done.directory == tmp_path / "out"
    assert done.left_out == (
        "README.md", "safety_checker/", "unet/diffusion_pytorch_model.bin", "v1.ckpt",
    )  # fmt: skip
    assert names(done.directory) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        *(f"text_encoder/{n}" for n in ("config.json", "manifest.sha256.json")),
        "text_encoder/model.safetensors",
        *(f"tokenizer/{n}" for n in ("manifest.sha256.json", "merges.txt")),
        *(f"tokenizer/{n}" for n in ("special_tokens_map.json", "tokenizer.json")),
        *(f"tokenizer/{n}" for n in ("tokenizer_config.json", "vocab.json")),
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/manifest.sha256.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vae/manifest.sha256.json",
    ]
    ours, theirs = (LatentDiffusion.from_pretrained(d) for d in (source, done.directory))
    for part in ("unet", "vae", "text_encoder"):
        assert_same(getattr(ours, part), getattr(theirs, part))
    assert ours.schedule.config == theirs.schedule.config

    pipes = [
        StableDiffusionPipeline.from_pretrained(d, safety_checker=None)
        for d in (source, done.directory)
    ]
    for part in ("unet", "vae", "text_encoder"):
        one, other = (getattr(pipe, part).state_dict() for pipe in pipes)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert type(pipes[1].scheduler).__name__ == "PNDMScheduler"
    one, other = ({"_class_name": "PNDMScheduler", **pipe.scheduler.config} for pipe in pipes)
    assert one == other
    ids = [pipe.tokenizer("a cat", padding="max_length").input_ids for pipe in pipes]
    assert ids[0] == ids[1]

    table = {part.name: part for part in done.parts}
    assert list(table) == ["text_encoder", "vae", "unet", "tokenizer", "scheduler"]
    unet = table["unet"]
    assert unet.num_parameters == sum(v.numel() for v in pipes[0].unet.parameters())
    assert (unet.class_name, unet.dtype) == ("UNet2DConditionModel", "float32")
    assert unet.num_bytes == sum(p.stat().st_size for p in (done.directory / "unet").iterdir())
    assert (table["scheduler"].class_name, table["scheduler"].dtype) == ("PNDMScheduler", None)
    # and once more: clean in, the same out
    again = convert(done.directory, tmp_path / "again")
    assert again.left_out == ()
    for name in names(done.directory):
        assert (tmp_path / "again" / name).read_bytes() == (done.directory / name).read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_component_in_another_type(dtype, source, tmp_path):
    done = convert(source / "vae", tmp_path / "out", dtype=dtype)
    assert done.directory == tmp_path / "out"
    (part,) = done.parts
    assert (part.name, part.class_name, part.dtype) == ("", "AutoencoderKL", dtype)
    assert_same(
        from_pretrained(source / "vae", dtype=dtype), from_pretrained(done.directory, dtype=dtype)
    )
    assert (
        2 * part.num_parameters
        < part.files["diffusion_pytorch_model.safetensors"]
        < (2.5 * part.num_parameters)
    )


def test_a_variant_is_read_and_loses_its_mark(source, tmp_path):
    unet = from_pretrained(source, "unet")
    save_pretrained(unet, source / "unet", dtype=np.float16, variant="fp16")
    done = convert(source / "unet", tmp_path / "out", dtype="float16", variant="fp16")
    assert names(done.directory) == ["config.json", "diffusion_pytorch_model.safetensors",
                                     "manifest.sha256.json"]  # fmt: skip
    assert done.left_out == ("diffusion_pytorch_model.safetensors",)


def test_the_bundled_model(tmp_path):
    done = convert("mnist", tmp_path / "digits")
    ours, theirs = load("mnist"), load(done.directory)
    assert_same(ours.unet, theirs.unet)
    assert ours.conditions == theirs.conditions
    assert "training_set.safetensors" in done.left_out
    assert names(done.directory) == [
        "LICENSE", "conditions.json", "model_index.json", "scheduler/scheduler_config.json",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/manifest.sha256.json",
    ]  # fmt: skip


def test_a_destination_inside_the_source_is_refused(source):
    before = names(source)
    with pytest.raises(ValueError, match="lies inside the source"):
        convert(source, source / "unet" / "inner")
    assert names(source) == before


def test_a_hub_id_of_a_single_component(source, tmp_path, monkeypatch):
    commit = "0123456789" * 4
    repo = tmp_path / "hub" / "models--someone--vae"
    shutil.copytree(source / "vae", repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = convert("someone/vae", tmp_path / "out")
    assert_same(from_pretrained(source / "vae"), from_pretrained(done.directory))


def only_pickle(source):
    (source / UNET).rename(source / "unet" / "diffusion_pytorch_model.bin")


def too_large(source):
    tensors = load_file(source / UNET)
    tensors["conv_in.bias"][3] = 70_000
    save_file(tensors, source / UNET)


def edit(name, **values):
    def change(source):
        content = json.loads((source / name).read_text())
        (source / name).write_text(json.dumps(content | values))

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: (s / UNET).unlink(), FileNotFoundError, "no diffusion_pytorch_model.safetens"),
        (only_pickle, FileNotFoundError, ".from_pretrained(source, use_safetensors=False).save_"),
        (lambda s: os.truncate(s / UNET, 5000), ValueError, f"{UNET} is truncated"),
        (too_large, ValueError, "'conv_in.bias' contains values too large for float16"),
        (
            edit("tokenizer/tokenizer_config.json", model_max_length=20),
            ValueError,
            "tokenizer makes 20 tokens (model_max_length), text_encoder takes 12",
        ),
        (edit("vae/config.json", frobnicate=1), ValueError, "key 'frobnicate'"),
        (edit("scheduler/scheduler_config.json", beta_start=2.0), ValueError, "scheduler_config"),
        (edit("model_index.json", unet=["diffusers", "X"]), ValueError, "'unet' must be"),
        (edit("model_index.json", vae=["x", "VQModel"]), ValueError, "'vae' must be"),
        (lambda s: (s / "model_index.json").unlink(), FileNotFoundError, "neither model_index"),
        (lambda s: shutil.rmtree(s / "tokenizer"), FileNotFoundError, "no folder 'tokenizer'"),
    ],
)
def test_what_is_wrong_leaves_nothing(change, error, message, source, tmp_path):
    change(source)
    with pytest.raises(error, match=re.escape(message)):
        convert(source, tmp_path / "new" / "out", dtype="float16")
    assert [p.name for p in tmp_path.rglob("*out*")] == []


def test_pixel_models_names_must_fit(tmp_path):
    source = shutil.copytree(zoo.find("mnist"), tmp_path / "source")
    edit("conditions.json", conditions=["0", "1"])(source)
    with pytest.raises(ValueError, match="2 conditions need 3 class embeddings"):
        convert(source, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_what_is_in_the_way_stays(source, tmp_path):
    vae = source / "vae"
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "thesis.tex").write_text("mine")
    (tmp_path / "other.part").mkdir()  # the mark of ours, which leads to another's file
    (tmp_path / "other.part" / ".sharpjax-convert").symlink_to(tmp_path / "planted")
    before = sorted(tmp_path.rglob("*"))
    for name, message in (
        ("file", "file is a file or a link"),
        ("link", "link is a file or a link"),
        ("full", "full is not empty"),
        ("out", r"out\.part is in the way, and no interrupted convert left it"),
        ("other", r"other\.part is in the way, and no interrupted convert left it"),
    ):
        with pytest.raises(FileExistsError, match=message):
            convert(vae, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "full" / "thesis.tex").unlink()
    convert(vae, tmp_path / "full")  # empty
    from_pretrained(tmp_path / "full")
    assert not (tmp_path / "full.part").exists()


def test_a_disk_that_does_not_keep_what_was_written(source, tmp_path, monkeypatch):
    def damaging(component, folder, **options):
        save_pretrained(component, folder, **options)
        path = folder / "diffusion_pytorch_model.safetensors"
        content = bytearray(path.read_bytes())
        content[-4] ^= 1  # one bit of one number
        path.write_bytes(content)
        (folder / "manifest.sha256.json").unlink()

    monkeypatch.setattr(module, "save_pretrained", damaging)
    with pytest.raises(OSError, match="reads back differently than it was written"):
        convert(source / "vae", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


# --- the command -------------------------------------------------------------------------------


def test_command_prints_what_it_wrote(source, tmp_path, monkeypatch, capsys):
    (source / "vae" / "[b]odd.txt").write_text("")

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["sharpjax", "convert", *map(str, arguments)])
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    code, out, err = command(source / "vae", tmp_path / "out", "--dtype", "bfloat16")
    assert code == 0, err
    for text in ("AutoencoderKL", "43,711", "bfloat16", "diffusion_pytorch_model.safetensors"):
        assert text in out
    assert "Left out, not part of the model: [b]odd.txt" in out
    code, out, err = command(source / "vae", tmp_path / "two", "--json")
    assert code == 0, err
    assert len(json.loads(out)["parts"][0]["files"]) == 3
    code, _, err = command(source / "vae", tmp_path / "two")
    assert (code, err.count("\n")) == (1, 1)
    assert "two is not empty" in err


@pytest.mark.slow
def test_killed_anywhere_it_is_all_there_or_nothing(source, tmp_path):
    """SIGKILL six times, spread over what a convert takes from its first file to its end."""
    out = tmp_path / "out"
    arguments = [sys.executable, "-m", "sharpjax", "convert", source, out]
    staging = tmp_path / "out.part"
    mark = staging / ".sharpjax-convert"  # touched when a run begins to write

    def begin():
        before = mark.stat().st_mtime_ns if mark.exists() else None
        run = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while run.poll() is None and (not mark.exists() or mark.stat().st_mtime_ns == before):
            time.sleep(0.001)
        return run

    run, start = begin(), time.monotonic()
    while run.poll() is None and not out.exists():
        time.sleep(0.001)
    length = time.monotonic() - start
    assert run.wait() == 0, run.stderr.read()
    shutil.rmtree(out)
    generator, seen = random.Random(0), []
    for part in range(6):  # the last after the end, but for an uneven machine
        run = begin()
        time.sleep(length * (part + generator.random()) / 5)
        run.kill()
        assert run.wait() in (0, -signal.SIGKILL), run.stderr.read()
        seen.append(out.exists())
        if seen[-1]:
            LatentDiffusion.from_pretrained(out)
            assert not staging.exists()
            shutil.rmtree(out)
    print(f"whole at {sum(seen)} of {len(seen)} kills, otherwise absent")
    assert seen.count(False) >= 2
    assert subprocess.run(arguments, capture_output=True).returncode == 0
    LatentDiffusion.from_pretrained(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


PEAK = """
import sys
from sharpjax.models.convert import convert

def level(name):
    with open("/proc/self/status") as file:
        return next(int(x.split()[1]) for x in file if x.startswith(name)) * 1024

convert(sys.argv[1], sys.argv[3] + "1")  # imports, and what jax keeps for good
before = level("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts here
convert(sys.argv[2], sys.argv[3] + "2")
print(level("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
def test_memory_is_that_of_the_largest_part(source, stable_diffusion_directory, tmp_path):
    """Two parts of over 300 MB: only one is in memory, and only once."""
    channels = (128, 256, 512, 512)
    types = {f"{a}_block_types": (f"{a.title()}{b}Block2D",) * 4
             for a, b in (("down", "Encoder"), ("up", "Decoder"))}  # fmt: skip
    text = from_pretrained(source, "text_encoder").config | {
        "num_hidden_layers": 16,
        "intermediate_size": 100_000,  # no tensor is a large part of it
    }
    sizes = {}
    for name, make in (
        ("vae", lambda: AutoencoderKL(
            block_out_channels=channels, layers_per_block=2, **types, rngs=nnx.Rngs(0))),
        ("text_encoder", lambda: CLIPTextModel(**text, rngs=nnx.Rngs(0))),
    ):  # fmt: skip
        component = nnx.jit(make)()
        sizes[name] = sum(value.nbytes for value in state(component).values())
        shutil.rmtree(source / name)
        save_pretrained(component, source / name)
    assert min(sizes.values()) > 300e6
    run = subprocess.run(
        [sys.executable, "-c", PEAK, stable_diffusion_directory, source, tmp_path / "out"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    ratio = int(run.stdout) / max(sizes.values())
    print(f"peak {ratio:.2f} of the largest part, {sum(sizes.values()) / 1e6:.0f} MB in all")
    assert 0.9 < ratio < 1.3
