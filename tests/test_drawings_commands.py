"""From the drawings to a measured model by commands, in a few steps; killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import pytest
from flax import nnx

import sharpjax as sj
from sharpjax.checkpoints import from_pretrained, save_pretrained
from sharpjax.datasets.planted_drawings import planted_drawings, read_captions
from sharpjax.mitigation.drawing_judge import Control, labels, read_control, write_control
from sharpjax.networks.autoencoder_kl import AutoencoderKL
from sharpjax.networks.concept_classifier import ConceptClassifier
from sharpjax.runs.truth_of_drawings import read_truth


def test_the_judge_comes_back(tmp_path):
    limits = Control(0.7, 3, 600, 0.001, 0.01, 1.0)
    assert read_control(write_control(limits, tmp_path / "judge.json")) == limits
    with pytest.raises(
        FileNotFoundError, match=r"no other\.json in .*train drawings-vae writes it"
    ):
        read_control(tmp_path / "other.json")
    for text in ("{}", "[1, 2]", "no"):
        (tmp_path / "judge.json").write_text(text)
        with pytest.raises(ValueError, match=r"judge\.json is no judge of drawings"):
            read_control(tmp_path / "judge.json")


def command(cwd, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "sharpjax", *map(str, arguments), "--json"],
        cwd=cwd, capture_output=True, text=True, timeout=900, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A small autoencoder with a judge, and a small classifier, not trained.

    The commands that train those at their size pass thousands of images through them: minutes.
    """
    cwd = tmp_path_factory.mktemp("drawings")
    vae = AutoencoderKL(
        sample_size=64,
        block_out_channels=(4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=2,
        mid_block_add_attention=False,
        rngs=nnx.Rngs(0),
    )
    save_pretrained(vae, cwd / "vae/vae")
    write_control(Control(0.7, 3, 600, 0.001, 0.01, 1.0), cwd / "vae/judge.json")
    known = labels(planted_drawings())
    classifier = ConceptClassifier(labels=known, block_out_channels=(8, 8), rngs=nnx.Rngs(0))
    save_pretrained(classifier, cwd / "classifier")
    return cwd


@pytest.fixture(scope="module")
def trained(parts):
    """What a run told that was killed on its way and begun again."""
    few = ["--steps", 3, "--batch", 4, "--checkpoint-every", 1, "--keep-every", 2]
    train = ["train", "drawings", "--vae", "vae/vae", *few, "--output", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sharpjax", *map(str, train)],
        cwd=parts, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (parts / "run/losses.jsonl").is_file():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = command(parts, *train)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_model_is_trained_measured_and_read(parts, trained, sharpjax):
    assert [kept.rsplit("/", 1)[1] for kept in trained["kept"]] == ["000002"]
    model = parts / "run/model"
    assert read_captions(model / "captions.csv") == read_captions()
    os.symlink(parts / "classifier", model / "classifier")
    options = ["--captions", 1, "--samples", 2, "--steps", 2, "--output", "truth"]
    done = sharpjax("ground-truth", "--model", model, *options, "--json", cwd=parts)
    assert done.returncode == 0, done.stderr
    truths = json.loads(done.stdout)["truths"]
    assert {t["kind"] for t in truths} == {
        "general", "verbatim", "mixed", "template", "hot", "held-out",
    }  # fmt: skip
    assert len(read_truth(parts / "truth/truth.csv")) == len(truths)
    assert (parts / "truth/samples.png").is_file()
    (model / "truth.csv").write_bytes((parts / "truth/truth.csv").read_bytes())
    assert len(sj.bench.drawings(model).truths) == len(truths)
    done = sharpjax("report", "truth", cwd=parts)
    assert done.returncode == 0, done.stderr
    page = (parts / "truth/report.html").read_text()
    assert "Copies by kind" in page
    assert truths[-1]["caption"] in page
    # a run of other settings is refused, with what differs
    other = sharpjax("ground-truth", "--model", model, *options, "--seed", 1, cwd=parts)
    assert other.returncode == 1
    assert "seed" in other.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_another_run_begins_where_one_ended(parts):
    train = ["train", "drawings", "--vae", "vae/vae", "--batch", 4, "--steps"]
    train = [*train, 1, "--output", "again", "--seed", 1, "--start"]
    done = command(parts, *train, "run/model")
    assert done.returncode == 0, done.stderr
    first, second = (from_pretrained(parts / name / "model/unet") for name in ("run", "again"))
    leaves = [jax.tree.leaves(nnx.state(net, nnx.Param)) for net in (first, second)]
    # a step of AdamW moves no weight by more than the rate, 1e-3, and half precision by as much;
    # from one seed's fresh weights to another's it is a hundred times that
    assert max(float(abs(a - b).max()) for a, b in zip(*leaves, strict=True)) < 3e-3
    assert "origin_sha256" in json.loads((parts / "again/settings.json").read_text())
    # another start is another run
    other = command(parts, *train, "again/model")
    assert other.returncode == 1
    assert "origin_sha256" in other.stderr


@pytest.mark.slow
def test_an_autoencoder_without_its_judge_is_refused_at_once(parts, tmp_path):
    os.symlink(parts / "vae/vae", tmp_path / "vae")
    done = command(parts, "train", "drawings", "--vae", tmp_path / "vae", "--output", "none")
    assert done.returncode == 1
    assert "no judge.json in" in done.stderr
    assert not (parts / "none").exists()
