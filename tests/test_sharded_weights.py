"""Weights read onto a mesh: each device its part, and the numbers of one device."""

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from safetensors.numpy import load_file, save_file

import sharpjax as sj
from sharpjax.checkpoints import save_pretrained
from sharpjax.checkpoints.sharding import SMALL, WEIGHTS, sharding_of
from sharpjax.commands.options import ModelFiles, Processes
from sharpjax.networks import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from sharpjax.rundir.files import read_lines

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
START = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import sharpjax as sj
from sharpjax.checkpoints import from_pretrained
from sharpjax.checkpoints.sharding import placement
from sharpjax.mesh import devices

directory, *more = sys.argv[1:]
"""


def start(code, *arguments, devices=8):
    """Python of its own on so many simulated devices."""
    return subprocess.Popen(
        [sys.executable, "-c", START + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"},
    )


def finish(child):
    told, errors = child.communicate(timeout=500)
    assert child.returncode == 0, errors
    return json.loads(told.splitlines()[-1])  # gloo tells of its connections before


def test_along_the_longest_axis_that_the_devices_divide():
    mesh = AbstractMesh((8,), (WEIGHTS,))

    def spec(*shape, order=None):
        return sharding_of(shape, mesh, range(len(shape)) if order is None else order).spec

    assert spec(64, 512) == PartitionSpec(None, WEIGHTS)
    assert spec(3, 3, 64, 64, order=(3, 2, 0, 1)) == PartitionSpec(None, None, None, WEIGHTS)
    assert spec(1001, 64) == PartitionSpec(None, WEIGHTS)  # 8 divides the shorter alone
    for whole in ((1001, 77), (63, 63), (SMALL - 8,)):
        assert spec(*whole) == PartitionSpec()
    assert spec(SMALL) == PartitionSpec(WEIGHTS)


READ = """
import json
mesh = jax.make_mesh((8,), ("weights",))
one, many = (from_pretrained(directory, dtype=more[0], mesh=m) for m in (None, mesh))
sizes = [0, 0]
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)
    parts = [s.data.nbytes for s in b.addressable_shards]
    assert parts == [b.nbytes if b.is_fully_replicated else b.nbytes / 8] * 8
    sizes[b.is_fully_replicated] += b.nbytes
found = placement(many)
assert [found["sharded_bytes"], found["replicated_bytes"]] == sizes
assert found["bytes_a_device"] == sizes[0] / 8
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("float32", "float32"), pytest.param("bfloat16", "bfloat16", marks=pytest.mark.slow)],
)
def test_what_is_read_is_the_same_and_an_eighth_each(stored, dtype, tmp_path):
    """Convolutions too, whose parts are cut in the file's layout and then transposed."""
    network = AutoencoderKL(
        block_out_channels=(64,),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        rngs=nnx.Rngs(0),
    )
    folder = save_pretrained(network, tmp_path / "vae", dtype=stored)
    found = finish(start(READ, folder, dtype))
    assert found["devices"] == 8
    assert found["sharded_bytes"] > found["replicated_bytes"] > 0
    assert "encoder.conv_in.bias" in found["replicated"]
    assert "encoder.mid_block.resnets.0.conv1.kernel" not in found["replicated"]
    sizes = {
        ".".join(map(str, path)): variable[...].size
        for path, variable in nnx.to_flat_state(nnx.state(network, nnx.Param))
    }
    # all of these sizes are multiples of 8, so that what is whole is what is small
    assert set(found["replicated"]) == {name for name, size in sizes.items() if size < SMALL}


# Weights that are much larger than what they are multiplied with, as they are where they do not
# fit. Prints the bytes of all, of a device's arguments and of the largest array that is gathered.
PROGRAM = """
import json, math, re
mesh = jax.make_mesh((8,), ("weights",))
one, many = (from_pretrained(directory, mesh=m) for m in (None, mesh))
x = jax.random.normal(jax.random.key(0), (2, 4, 8, 8))
text = jax.random.normal(jax.random.key(1), (2, 12, 256))

def tangent(network, x, text):  # five in a loop, out of which nothing must be gathered
    score = lambda x: network(x, jnp.array(500), text)
    return jax.lax.fori_loop(0, 5, lambda i, at: jax.jvp(score, at[:1], at[1:]), (x, x))

results, facts = [], {"bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(one))}
for network in (one, many):
    program = jax.jit(tangent).lower(network, x, text).compile()
    results.append(jax.device_get(program(network, x, text)))
facts["arguments"] = program.memory_analysis().argument_size_in_bytes
facts["temporary"] = program.memory_analysis().temp_size_in_bytes
gathered = re.findall(r"= f32\\[([\\d,]*)\\]\\S* all-gather", program.as_text())
facts["gathered"] = max(4 * math.prod(map(int, shape.split(","))) for shape in gathered)
facts["placed"] = placement(many)
for a, b in zip(*results, strict=True):
    np.testing.assert_allclose(b, a, atol=1e-4 * np.abs(a).max())
print(json.dumps(facts))
"""


@pytest.mark.slow
def test_a_program_keeps_the_weights_where_they_are(tmp_path):
    """A device has its part of them as arguments, and no weight is put together on the way."""
    network = nnx.jit(
        lambda: UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(128, 256),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=256,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            rngs=nnx.Rngs(0),
        )
    )()
    found = finish(start(PROGRAM, save_pretrained(network, tmp_path / "unet")))
    placed = found.pop("placed")
    print(found, {name: value for name, value in placed.items() if name != "replicated"})
    share = placed["bytes_a_device"] + placed["replicated_bytes"]
    assert share < 0.13 * found["bytes"]
    assert share <= found["arguments"] < share + 2**16  # and the inputs
    kernel = 4 * 9 * 256 * 256
    assert found["gathered"] < kernel / 8
    assert found["temporary"] < found["bytes"] / 8


@pytest.mark.slow
@pytest.mark.parametrize("baseline", [False, True], ids=["", "baseline"])
def test_detect_gives_the_numbers_of_one_device(stable_diffusion_directory, tmp_path, baseline):
    """Statistics, maps and spectra; and those of the difference from another checkpoint."""
    (tmp_path / "p.txt").write_text("a cat\na dog\n\n")
    names = "score_difference,hessian_score_difference,trace_difference,path_score_difference"
    more = ["--maps", "--spectra", "--statistics", names]
    if baseline:
        more = ["--maps", "--statistics", "score_difference"]
        more += ["--baseline", shutil.copytree(stable_diffusion_directory, tmp_path / "earlier")]
        path = tmp_path / "earlier/unet" / WEIGHTS_NAME
        tensors = {name: 0.9 * tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    folders = []
    for devices in (["--devices", 1], ["--shard-weights"]):
        folders.append(tmp_path / devices[0])
        command = [
            "detect", "--model", stable_diffusion_directory, "--prompts", tmp_path / "p.txt",
            "--noises", 2, "--steps", 3, "--no-report", "--output", folders[-1], *devices, *more,
        ]  # fmt: skip
        run = subprocess.run(
            [sys.executable, "-m", "sharpjax", *map(str, command)],
            capture_output=True,
            text=True,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        )
        assert run.returncode == 0, run.stderr
    one, many = folders
    weights = json.loads((many / "about.json").read_text())["weights"]
    told = f"weights: {weights['sharded_bytes']:,} bytes sharded, {weights['bytes_a_device']:,} on"
    assert told in run.stderr
    assert weights["sharded_bytes"] == 8 * weights["bytes_a_device"] > weights["replicated_bytes"]
    assert "text_encoder.text_model.final_layer_norm.bias" in weights["replicated"]
    for ours, theirs in zip(*(read_lines(f / "results.jsonl") for f in folders), strict=True):
        assert ours["network"].keys() == theirs["network"].keys()
        for name, values in ours["network"].items():
            # Sums are added in another order: by 100 layers of float32, 1e-5 of a score. A trace
            # is a sum of 256 entries near 1, and the difference of two has the rounding of these.
            atol = 256e-6 if "trace" in name else 1e-5
            np.testing.assert_allclose(theirs["network"][name], values, rtol=1e-4, atol=atol)
    arrays = sorted(path.relative_to(one) for path in one.rglob("*.npy"))
    assert len(arrays) == 2  # a map of each prompt
    pairs = [[np.load(folder / path) for folder in folders] for path in arrays]
    spectra = [path.relative_to(one) for path in one.glob("spectra/*/results.jsonl")]
    assert len(spectra) == (not baseline)
    for path in spectra:
        of_both = zip(*(read_lines(folder / path) for folder in folders), strict=True)
        pairs += [[np.array(record["exact"]) for record in records] for records in of_both]
    for ours, theirs in pairs:
        np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())


PEAK = """
import json
tiny, address, count, index = more
if int(count) > 1:
    devices.join(address, int(count), int(index))
mesh = jax.make_mesh((8,), ("weights",))

def level(name):
    return next(int(s.split()[1]) << 10 for s in open("/proc/self/status") if s.startswith(name))

from_pretrained(tiny, mesh=mesh)  # imports, and what jax keeps for good
before = level("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts here
network = from_pretrained(directory, mesh=mesh)
peak = level("VmHWM") - before
leaves = jax.tree.leaves(network)
ours = [s.data.nbytes for leaf in leaves for s in leaf.addressable_shards]
print(json.dumps({"peak": peak, "share": sum(ours), "largest": max(a.nbytes for a in leaves)}))
"""
SLACK = 8 * 2**20  # bytes: the header, flax's variables, and what the allocators keep


def text_encoder(folder, **sizes):
    config = {"vocab_size": 256, "num_attention_heads": 4, "max_position_embeddings": 8} | sizes
    return save_pretrained(nnx.jit(lambda: CLIPTextModel(**config, rngs=nnx.Rngs(0)))(), folder)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
@pytest.mark.parametrize("count", [1, 2])
def test_peak_memory_is_the_share_and_one_tensor(count, tmp_path):
    """84 MB: of one process with eight devices, and of two with four each."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1}
    tiny = text_encoder(tmp_path / "tiny", **sizes)
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6}
    large = text_encoder(tmp_path / "large", **sizes, vocab_size=4096)
    size = (large / "model.safetensors").stat().st_size
    options = [large, tiny, address(), count]
    children = [start(PEAK, *options, i, devices=8 // count) for i in range(count)]
    for found in map(finish, children):
        print(f"{count} processes: {found} of {size}")
        assert size / count < found["share"] < 1.1 * size / count
        assert found["share"] <= found["peak"] < found["share"] + found["largest"] + SLACK


def address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


SCORE = """
import json
if more:
    devices.join(more[0], 2, int(more[1]))
    mesh = jax.make_mesh((8,), ("weights",))
    model, how = sj.load(directory, mesh=mesh), NamedSharding(mesh, PartitionSpec())
    held = {s.device for leaf in jax.tree.leaves(model.unet) for s in leaf.addressable_shards}
    assert held == set(jax.local_devices()) and len(held) == 4
else:
    model, how = sj.load(directory), None
x = np.random.default_rng(0).normal(size=model.shape).astype(np.float32)
condition = model.encode(["a cat"])[0]

def conditional(model, condition, x):
    return jax.jvp(model.scores(condition, 801).conditional, (x,), (x,))

found = jax.jit(conditional, out_shardings=how)(model, condition, x)
print(json.dumps([np.asarray(value).tolist() for value in found]))
"""


@pytest.mark.slow
def test_two_processes_compute_one_score(stable_diffusion_directory):
    """On loopback, each with half of the devices and of the weights."""
    where = address()
    children = [start(SCORE, stable_diffusion_directory, where, i, devices=4) for i in range(2)]
    first, second = map(finish, children)
    assert first == second
    alone = finish(start(SCORE, stable_diffusion_directory, devices=1))
    for ours, theirs in zip(first, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


FAMILY = """
import json
from sharpjax.checkpoints import sharding
sharding.SMALL = 0  # networks so tiny have no other tensors: biases and norms are sharded too
mesh = jax.make_mesh((8,), ("weights",))

def conditional(model, condition, t, x):
    return jax.jvp(model.scores(condition, t).conditional, (x,), (x,))

told = []
for m in (None, mesh):
    model = sj.load(directory, mesh=m)
    x = np.random.default_rng(0).normal(size=model.shape).astype(np.float32)
    name = "a cat" if model.takes_prompts else model.conditions[3]
    condition, t = model.encode([name])[0], model.schedule.timesteps(10)[3]
    found = *jax.jit(conditional)(model, condition, t, x), model.decode(x[None])
    told.append([np.asarray(value).tolist() for value in found])
print(json.dumps([*told, placement(model)["bytes_a_device"] / placement(model)["sharded_bytes"]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["latent_diffusion_xl", "latent_diffusion_3", "dit"])
def test_every_family(family, stable_diffusion_directory, tmp_path):
    """Score, tangent and decoder, each parameter sharded that can be."""
    make = runpy.run_path(str(Path(__file__).with_name(f"test_{family}.py")))["make"]
    more = () if family == "dit" else (stable_diffusion_directory / "tokenizer",)
    make(*more, tmp_path / family)
    one, many, share = finish(start(FAMILY, tmp_path / family))
    assert share == 1 / 8
    for ours, theirs in zip(many, one, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


NOT_FINITE = """
import json
try:
    from_pretrained(directory, mesh=jax.make_mesh((8,), ("weights",)))
except ValueError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_a_part_that_is_not_finite_is_refused(stable_diffusion_directory, tmp_path):
    """Its last number, which the last device reads."""
    tensors = load_file(stable_diffusion_directory / "unet" / WEIGHTS_NAME)
    name = "mid_block.resnets.0.conv1.weight"
    tensors[name].reshape(-1)[-1] = np.nan
    shutil.copytree(stable_diffusion_directory / "unet", tmp_path / "unet")
    save_file(tensors, tmp_path / "unet" / WEIGHTS_NAME)
    told = finish(start(NOT_FINITE, tmp_path / "unet"))
    assert f"tensor {name!r} contains NaN" in told


SPREAD = """
model = sj.load(directory, mesh=jax.make_mesh((8,), ("weights",)))
points = jax.make_mesh((8,), ("points",))
def sample():
    model.sample(["a"], jax.random.key(0), num_steps=1, mesh=points)
def detect():
    settings = sj.detection.DetectSettings(statistics=("score_difference",))
    sj.runs.detect(model, ["a"], more[0], settings, fingerprint="a", mesh=points)
import json
told = []
for call in (sample, detect):
    try:
        call()
    except ValueError as error:
        told.append(str(error))
print(json.dumps(told))
"""


@pytest.mark.slow
def test_work_is_not_spread_over_devices_that_compute_together(
    stable_diffusion_directory, tmp_path
):
    told = finish(start(SPREAD, stable_diffusion_directory, tmp_path / "run"))
    assert len(told) == 2
    assert all("the model's weights are sharded over devices already" in one for one in told)


def test_mistakes_are_named(tmp_path):
    devices = np.array(jax.local_devices()[:1])
    for mesh in (Mesh(devices, (WEIGHTS,)), Mesh(devices, ("points",)), AbstractMesh((8,), ("x",))):
        wrong = TypeError if isinstance(mesh, AbstractMesh) else ValueError
        with pytest.raises(wrong, match=r"'weights'.*,\)\) makes one of all"):
            sj.load("mnist", mesh=mesh)
    network = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="by the name of a directory, got Linear; write one"):
        sj.load(network, mesh=None)
    with pytest.raises(ValueError, match="those of a model in memory stay as they are"):
        sj.runs.detect(
            network, ["a"], tmp_path / "run", sj.detection.DetectSettings(), fingerprint="a",
            mesh=Mesh(devices, (WEIGHTS,)),
        )  # fmt: skip
    with pytest.raises(ValueError, match="--shard-weights needs two devices or more"):
        ModelFiles(model="mnist").open(spread=Processes(num_devices=1, shard_weights=True))
    assert not list(tmp_path.iterdir()), "a mistake must not leave a directory behind"
