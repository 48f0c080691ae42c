"""examples/reproduce_sd14.md: its commands, one after the other, on a tiny directory."""

import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGE = Path(__file__).parent.parent / "examples" / "reproduce_sd14.md"
# what makes a command small; what it asks stays as it is
SMALL = {
    "calibrate": ["--noises", "2", "--steps", "8"],
    "detect": ["--noises", "2", "--steps", "8"],
    "spectrum": ["--steps", "4", "--stages", "2"],
    "mitigate": ["--steps", "4", "--images", "1", "--methods", "lower_guidance,delayed_guidance"],
    "report": [],
}
MEMORIZED = ["cat dog", "a dog", "dog dog cat", "cat cat"]


def commands():
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if line]
    return [line for line in lines if not line.startswith("export ")]


def test_every_command_is_one_of_ours():
    lines = commands()
    assert len(lines) >= 6
    assert {shlex.split(line)[1] for line in lines} == set(SMALL)


@pytest.mark.slow
def test_the_commands_run(stable_diffusion_directory, tmp_path, sharpjax):
    (tmp_path / "memorized.jsonl").write_text(
        "".join(json.dumps({"caption": p, "overfit_type": "VM"}) + "\n" for p in MEMORIZED)
    )
    others = [f"{'b ' * k}a" for k in range(1, 6)]
    (tmp_path / "others.txt").write_text("\n".join(others) + "\n")
    (tmp_path / "clean.txt").write_text("\n".join(f"{'c ' * k}d" for k in range(1, 22)) + "\n")
    rows = [f"{p},memorized" for p in MEMORIZED] + [f"{p},clean" for p in others]
    (tmp_path / "prompts.csv").write_text("\n".join(["prompt,label", *rows]) + "\n")
    (tmp_path / "references").mkdir()
    rng, lines = np.random.default_rng(0), ["file_name,text"]
    for i in range(12):
        pixels = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(tmp_path / f"references/{i}.png")
        lines.append(f"{i}.png,{MEMORIZED[i % len(MEMORIZED)]}")
    (tmp_path / "references/metadata.csv").write_text("\n".join(lines) + "\n")
    for line in commands():
        words = shlex.split(os.path.expandvars(line.replace("$MODEL", "MODEL")))
        words = [str(stable_diffusion_directory) if w == "MODEL" else w for w in words[1:]]
        swap = {"a memorized prompt": MEMORIZED[0], "another prompt": others[0]}
        words = [swap.get(word, word) for word in words]
        done = sharpjax(*words, *SMALL[words[0]], cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "runs/report.html").is_file()
    told = json.loads((tmp_path / "runs/detect/summary.json").read_text())
    assert told
