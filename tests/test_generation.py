"""Images of prompts: reproducible whatever was there before, whole whenever the run was stopped."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from sharpjax import LatentDiffusion, PixelDiffusion, Schedule, cli, pictures
from sharpjax.checkpoints.fingerprint import fingerprint
from sharpjax.networks import UNet2DModel
from sharpjax.rundir import files as rundir
from sharpjax.runs.sample import GenerationSettings, generate

PROMPTS = ["a cat", "", "dog [/b]", "a cat"]
NAMES = ("0 x1", "0 x3", "0 x12", "1 x1", "1 x3", "1 x12")
QUICK = GenerationSettings(num_steps=2)


@pytest.fixture(scope="module")
def latent(stable_diffusion_directory):
    return LatentDiffusion.from_pretrained(stable_diffusion_directory)


@pytest.fixture(scope="module")
def pixel():
    """Small and untrained, its weights drawn by NumPy: initialisers take ten seconds to compile."""
    unet = nnx.eval_shape(
        lambda: UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8,),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            num_class_embeds=len(NAMES) + 1,
            rngs=nnx.Rngs(0),
        )
    )
    generator = np.random.default_rng(0)

    def drawn(x):
        return jnp.asarray(generator.normal(0, 0.2, x.shape), jnp.float32)

    nnx.update(unet, jax.tree.map(drawn, nnx.state(unet, nnx.Param)))
    return PixelDiffusion(unet, Schedule.create(), NAMES)


def draw(model, folder, prompts=PROMPTS, settings=QUICK, *, batch_size=2, **options):
    """Most runs have the same batch size, so that they share one compiled program."""
    options |= {"fingerprint": "abc", "batch_size": batch_size}
    return generate(model, prompts, folder, settings, **options)


def files(folder):
    """Contents of all files by name, but of those that say when a command ran."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in ("about.json", "sessions.jsonl")
    }


def pixels(folder, name):
    return np.asarray(Image.open(folder / "images" / name), np.int64)


@pytest.mark.slow
def test_an_image_is_the_models_sample_of_the_noise_that_is_documented(latent, tmp_path):
    records = draw(latent, tmp_path / "run", num_images=2)
    assert [(r["index"], r["image"]) for r in records] == [(i, j) for i in range(4) for j in (0, 1)]
    record = records[5]
    assert record == {
        "prompt": "dog [/b]", "index": 2, "image": 1, "noise": [0, 2, 1],
        "file": "images/00002-1.png",
    }  # fmt: skip
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), 1)
    noise = jax.random.normal(jax.random.fold_in(key, 0), latent.shape)[None]
    (image,) = latent.sample(["dog [/b]"], noise=noise, num_steps=2)
    levels = ((np.clip(image, -1, 1) + 1) * 127.5).transpose(1, 2, 0)
    found = pixels(tmp_path / "run", "00002-1.png")
    assert found.shape == (16, 16, 3)
    assert found.std() > 10
    assert np.abs(found - levels).max() < 0.51  # rounded to the nearest, and float error
    # equal prompts have noise of their own
    again = pixels(tmp_path / "run", "00003-0.png")
    assert np.abs(pixels(tmp_path / "run", "00000-0.png") - again).max() > 10
    grid = np.asarray(Image.open(tmp_path / "run" / "grid.png"))
    assert grid.shape[0] > 4 * 160
    assert grid.std() > 10


@pytest.mark.slow
def test_batch_size_order_of_work_and_additions_do_not_change_an_image(latent, tmp_path):
    draw(latent, tmp_path / "whole", num_images=3)
    draw(latent, tmp_path / "grown", PROMPTS[:2], batch_size=1)
    before = files(tmp_path / "grown")
    draw(latent, tmp_path / "grown", num_images=2)
    draw(latent, tmp_path / "grown", num_images=3, batch_size=1)
    grown, whole = files(tmp_path / "grown"), files(tmp_path / "whole")
    assert grown.keys() == whole.keys()
    for name, content in before.items():
        if name.startswith("images"):
            assert grown[name] == content
            assert np.abs(pixels(tmp_path / "whole", name[7:]) - pixels(
                tmp_path / "grown", name[7:])).max() <= 1  # fmt: skip
    lines = [sorted(run["results.jsonl"].splitlines()) for run in (grown, whole)]
    assert lines[0] == lines[1]
    # fewer again: nothing is lost, and the answer is what was asked for
    assert len(draw(latent, tmp_path / "grown", PROMPTS[:1], num_images=2)) == 2
    assert files(tmp_path / "grown").keys() == whole.keys()


@pytest.mark.parametrize("stop", range(0, 13, 3))
def test_stopped_anywhere_and_resumed_the_files_are_the_same(stop, pixel, tmp_path, monkeypatch):
    """Stopped after any file: 6 images are 6 pictures and 6 lines, then the grid."""

    class Stop(Exception):
        pass

    names = NAMES
    draw(pixel, tmp_path / "whole", names)
    count = 0

    def counted(function):
        def call(*args):
            nonlocal count
            if count == stop:
                raise Stop
            count += 1
            return function(*args)

        return call

    with monkeypatch.context() as patch:
        for module, name in ((pictures, "write_png"), (rundir, "append_lines")):
            patch.setattr(module, name, counted(getattr(module, name)))
        with pytest.raises(Stop):
            draw(pixel, tmp_path / "run", names)
    torn = tmp_path / "run" / "images" / "00003-0.png.0123456789abcdef.part"
    torn.write_bytes(b"torn")
    (tmp_path / "run" / "images" / "00003-0.png").unlink(missing_ok=True)  # somebody lost it
    draw(pixel, tmp_path / "run", names)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_full_disk_is_told_and_survived(pixel, tmp_path):
    names = NAMES
    draw(pixel, tmp_path / "whole", names)
    draw(pixel, tmp_path / "run", names[:2])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32, limits[1]))  # bytes; the smallest PNG is longer
    try:
        with pytest.raises(OSError, match=r"cannot write \(File too large\): .*00002-0.png"):
            draw(pixel, tmp_path / "run", names)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "run").rglob("*.part"))
    results = tmp_path / "run" / "results.jsonl"
    assert results.read_bytes().count(b"\n") == 2
    draw(pixel, tmp_path / "run", names)
    found, wanted = files(tmp_path / "run"), files(tmp_path / "whole")
    assert found["results.jsonl"] == wanted["results.jsonl"]
    assert found.keys() == wanted.keys()


def test_another_run_is_not_continued(pixel, tmp_path):
    names = NAMES
    draw(pixel, tmp_path / "run", names[:2])
    saved = files(tmp_path / "run")
    for options, message in (
        (dict(settings=GenerationSettings(num_steps=3)), r"other settings \(num_steps: 2 there, 3"),
        (dict(settings=GenerationSettings(num_steps=2, seed=1)), r"seed: 0 there, 1 now"),
        (dict(settings=GenerationSettings(num_steps=2, guidance=2.0)), r"guidance: 1.0 there, 2.0"),
        (dict(prompts=names[1:]), r"number 0 is '0 x1' there, '0 x3' now; repeat its prompts"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(pixel, tmp_path / "run", **{"prompts": names[:2], **options})
    with pytest.raises(ValueError, match="model: abc there, xyz now"):
        generate(pixel, names[:2], tmp_path / "run", QUICK, fingerprint="xyz")
    # the default, said explicitly
    draw(pixel, tmp_path / "run", names[:2], GenerationSettings(num_steps=2, guidance=1.0))
    assert files(tmp_path / "run") == saved


@pytest.mark.parametrize(
    ("kind", "prompts", "settings", "options", "message"),
    [
        ("pixel", [], {}, {}, "the number of prompts must be at least 1, got 0"),
        ("pixel", ["0 x1"], {}, {"num_images": 0}, "num_images must be at least 1, got 0"),
        ("pixel", ["0 x1"], {}, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("pixel", ["0 x1", "9 x9"], {}, {}, "got '9 x9'"),
        ("pixel", ["0 x1"], {"num_steps": 0}, {}, "num_steps must lie in 1..1000, got 0"),
        ("pixel", ["0 x1"], {"height": 8}, {}, "a pixel model takes no height"),
        ("pixel", ["0 x1"], {"negative_prompt": "x"}, {}, "takes no negative_prompt"),
        ("latent", ["a"], {"height": 15}, {}, "height must be a multiple of 2 pixels, got 15"),
        ("latent", ["a"], {"width": 0}, {}, "width must be a multiple of 2 pixels, got 0"),
        ("latent", ["a", "\ud800"], {}, {}, "has no UTF-8 form"),
    ],
)
def test_mistakes_are_told_before_a_directory_is_made(
    kind, prompts, settings, options, message, pixel, latent, tmp_path
):
    model = pixel if kind == "pixel" else latent
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(model, tmp_path / "run", prompts, GenerationSettings(**settings), **options)
    assert not (tmp_path / "run").exists()


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="guidance must be a finite number, got inf"):
        GenerationSettings(guidance=float("inf"))


def test_images_that_are_not_finite_are_an_error_not_black(pixel, tmp_path, monkeypatch):
    name = NAMES[0]
    monkeypatch.setattr(
        PixelDiffusion, "sample", lambda self, c, *a, **k: np.full((len(c), 1, 8, 8), np.nan)
    )
    with pytest.raises(ValueError, match="image 0 of '0 x1' is not finite"):
        draw(pixel, tmp_path / "run", [name])
    assert not list((tmp_path / "run" / "images").iterdir())


@pytest.mark.slow
def test_size_and_negative_prompt_reach_the_model(latent, tmp_path):
    base = dict(num_steps=2)
    sized = GenerationSettings(height=24, width=32, **base)
    draw(latent, tmp_path / "sized", PROMPTS[:1], sized)
    assert pixels(tmp_path / "sized", "00000-0.png").shape == (24, 32, 3)
    draw(latent, tmp_path / "plain", PROMPTS[:1])
    plain = pixels(tmp_path / "plain", "00000-0.png")
    folder = tmp_path / "negative"
    draw(latent, folder, PROMPTS[:1], GenerationSettings(negative_prompt="dog", **base))
    assert np.abs(pixels(folder, "00000-0.png") - plain).max() > 2


def test_fingerprints_tell_models_apart_by_every_byte(stable_diffusion_directory, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(stable_diffusion_directory, copy)
    original = fingerprint(stable_diffusion_directory)
    (copy / "README.md").write_text("not the model")
    assert fingerprint(copy) == original
    seen = {original}
    for name in (
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
    ):
        content = bytearray((copy / name).read_bytes())
        content[-5] ^= 1  # same header, same size
        (copy / name).write_bytes(content)
        seen.add(fingerprint(copy))
    assert len(seen) == 7
    with pytest.raises(FileNotFoundError, match=r"no diffusion_pytorch_model\.fp16\.safe"):
        fingerprint(copy, variant="fp16")


# --- the command -------------------------------------------------------------------------------


def command(monkeypatch, capsys, *arguments):
    """`(exit code, stdout, stderr)` of the command line, run in this process."""
    monkeypatch.setattr(sys, "argv", ["sharpjax", "sample", *map(str, arguments)])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")  # leave JAX's configuration alone
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code, *capsys.readouterr()


@pytest.mark.slow
def test_command_draws_and_announces_prompts_that_are_cut(
    stable_diffusion_directory, tmp_path, monkeypatch, capsys
):
    (tmp_path / "prompts.csv").write_text("prompt\na dog\nthe very long story of a cat\n")
    arguments = ["--model", stable_diffusion_directory, "--prompt", "[/b]", "--prompt", ""]
    arguments += ["--prompts", tmp_path / "prompts.csv", "--steps", 2, "--batch", 2]
    arguments += ["--output", tmp_path / "run", "--json"]
    code, out, err = command(monkeypatch, capsys, *arguments)
    assert code == 0, err
    answer = json.loads(out)
    assert answer["directory"] == str(tmp_path / "run")
    wanted = ["[/b]", "", "a dog", "the very long story of a cat"]
    assert [record["prompt"] for record in answer["images"]] == wanted
    assert all((tmp_path / "run" / record["file"]).is_file() for record in answer["images"])
    assert len(err.splitlines()) == 1  # once, one line, no code
    assert err.startswith("warning: the prompt 'the very long story of a cat' is too long for 12 t")
    # without --json, the second time: nothing is drawn
    monkeypatch.setattr(LatentDiffusion, "sample", None)
    code, out, _ = command(monkeypatch, capsys, *arguments[:-1])
    assert code == 0
    assert "4 files in images/, results.jsonl, grid.png" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "SD"), "no prompts: give --prompt TEXT"),
        (("--model", "SD", "--prompt", "a", "--variant", "fp16"), "model.fp16.safetensors"),
        (("--model", "SD", "--prompts", "none.txt"), "no file of prompts none.txt: it is missing"),
        (("--model", "SD", "--prompt", "a", "--output", "/proc/nowhere"), "cannot write to /proc"),
        (
            ("--model", "SD", "--prompt", "a", "--output", "file"),
            "file must be a directory, it is",
        ),
        (("--model", "nowhere"), "unknown model 'nowhere': neither a directory nor"),
        (("--model", "mnist", "--prompt", "[/b] x1"), "got '[/b] x1'"),
        (("--model", "mnist", "--dtype", "bfloat16"), "is a pixel model, which takes no dtype"),
    ],
)
def test_mistakes_are_one_line(
    arguments, message, stable_diffusion_directory, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    arguments = [stable_diffusion_directory if a == "SD" else a for a in arguments]
    code, _, err = command(monkeypatch, capsys, *arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "a mistake must not leave anything"


def process(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "sharpjax", "sample", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


@pytest.mark.slow
def test_killed_at_random_instants_and_resumed(stable_diffusion_directory, tmp_path):
    """SIGKILL between the first and the last image, three times; then every file as without."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"cat {i}\n" for i in range(200)))
    arguments = ["--model", stable_diffusion_directory, "--prompts", prompts, "--steps", 3]
    arguments += ["--images", 2, "--batch", 3]
    whole = process(*arguments, "--output", tmp_path / "whole")
    assert whole.communicate(timeout=500)[1] == ""
    generator, killed, counts = random.Random(0), 0, [0]
    path = tmp_path / "run" / "results.jsonl"
    while True:
        run = process(*arguments, "--output", tmp_path / "run")
        deadline = time.monotonic() + 400
        while run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
            if killed < 3 and path.exists() and path.read_bytes().count(b"\n") > counts[-1]:
                time.sleep(generator.uniform(0, 0.5))  # some batches later, anywhere in one
                run.kill()
                killed += 1
                break
        if run.wait() == 0:
            break
        assert run.returncode == -signal.SIGKILL, run.stderr.read()
        counts.append(path.read_bytes().count(b"\n"))
    print(f"images there at each kill: {counts[1:]} of 400")
    assert killed == 3
    assert counts[-1] < 400
    assert counts == sorted(counts)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


@pytest.mark.slow
def test_a_second_process_takes_the_sampler_from_the_cache(stable_diffusion_directory, tmp_path):
    """Another key would be another file, a compilation a newer one.

    Programs near the half second from which they are kept come and go; the sampler takes several.
    """
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    def cached(output):
        run = process(
            "--model", stable_diffusion_directory, "--prompt", "a cat", "--steps", 2,
            "--dtype", "bfloat16", "--output", tmp_path / output, env=environment,
        )  # fmt: skip
        assert run.communicate(timeout=500)[1] == ""
        found = (tmp_path / "cache" / "sharpjax" / "jax").glob("jit__sample-*")
        return {path.name: path.stat().st_mtime_ns for path in found}

    first = cached("first")
    assert len(first) == 1
    assert cached("second") == first
    assert files(tmp_path / "first") == files(tmp_path / "second")
    assert json.loads((tmp_path / "first" / "settings.json").read_text())["dtype"] == "bfloat16"
