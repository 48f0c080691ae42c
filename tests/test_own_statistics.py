"""A user's own statistic: from a file to records, thresholds, tables and the page."""

import csv
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

from sharpjax import cli
from sharpjax.detection import STATISTICS, DetectSettings, load_plugins, register
from sharpjax.detection.calibration import Calibration
from sharpjax.detection.compute import evaluations
from sharpjax.runs.detect import detect

EXAMPLE = Path(__file__).parent.parent / "examples" / "own_statistic.py"
NAME = "relative_difference"
FIRST = {"direction": 1, "where": "first", "cost": "2F", "source": "a test"}


@pytest.fixture(autouse=True)
def registry():
    """As it was, after each."""
    before = dict(STATISTICS)
    yield
    STATISTICS.clear()
    STATISTICS.update(before)


def test_the_whole_way(stable_diffusion_directory, tmp_path, monkeypatch, capsys):
    """calibrate and detect with a file: nothing of the package names the statistic."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    (tmp_path / "clean.txt").write_text("\n".join("dog " * n + "a" for n in range(20)))
    (tmp_path / "p.csv").write_text("prompt,label\ncat,memorized\na dog,clean\n")
    common = ["--model", str(stable_diffusion_directory), "--noises", "2", "--devices", "1"]
    common += ["--plugin", "mine.py", "--statistics", f"score_difference,{NAME}"]
    calibrate = ["calibrate", *common, "--prompts", "clean.txt", "--output", "c"]
    judge = ["detect", *common, "--prompts", "p.csv", "--output", "d"]
    judge += ["--calibration", "c/calibration.json", "--decide-by", NAME]

    def told(*command):
        """Its output, or its error."""
        monkeypatch.setattr("sys.argv", ["sharpjax", *command])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        found = capsys.readouterr()
        return found.err if stop.value.code else found.out

    assert NAME in told(*calibrate)
    assert f"are called memorized: {NAME}@981 above" in told(*judge)
    column = f"{NAME}@981"
    assert column in json.loads((tmp_path / "c/calibration.json").read_text())["thresholds"]
    records = [json.loads(line) for line in (tmp_path / "d/results.jsonl").read_text().splitlines()]
    assert all(len(record["network"][column]) == 2 for record in records)
    for name in ("results.csv", "summary.csv"):
        with (tmp_path / "d" / name).open(newline="") as file:
            assert any(
                NAME in text for row in csv.DictReader(file) for text in (*row, *row.values())
            )
    page = (tmp_path / "d/report.html").read_text()
    assert column in page
    assert "beside s_u; dimensionless. Larger means memorized. (an example)" in page
    settings = json.loads((tmp_path / "d/settings.json").read_text())
    ((name, digest),) = settings["plugins"]
    assert (name, len(digest)) == (NAME, 64)
    # another file is another run, and its thresholds are others
    text = EXAMPLE.read_text()
    (tmp_path / "mine.py").write_text(text.replace("here.unconditional)", "here.conditional)"))
    assert "the calibration was made with other settings (plugins" in told(*judge)
    assert "holds a run with other settings (other plugins" in told(*calibrate)
    assert "must be that of the run" in told("report", "d", "--plugin", "mine.py")


def test_the_docs_show_the_example():
    text = (EXAMPLE.parent.parent / "docs" / "detection.md").read_text()
    block = text.split("\n## A statistic of your own\n")[1].split("```")[1]
    definition = block[block.index("@sj") :]
    assert definition in EXAMPLE.read_text()


def test_default_statistics_and_a_plugin_s(tmp_path):
    """Loaded twice it is one; without its names nothing of a run's settings changes."""
    assert load_plugins([EXAMPLE, str(EXAMPLE)]) == [NAME]
    assert DetectSettings().plugins is None
    chosen = DetectSettings(statistics=("score_difference", NAME), num_noises=3)
    assert chosen.plugins == ((NAME, STATISTICS[NAME].digest),)
    assert evaluations(chosen)[NAME] == ("first", 3, 0)  # s_u is shared
    # a calibration without it, as of the bundled model, holds for the others
    values = {"score_difference@981": [1.0, 2.0, 3.0]}
    clean = [{"condition": f"c{i}", "network": values} for i in range(20)]
    plain = Calibration.fit(clean, DetectSettings(num_noises=3), fingerprint="a")
    plain.check(chosen, fingerprint="a")


PLACES = {
    "first": "pair, x, *, linearized=None",
    "noise": "first, later, x",
    "level": "pair, x, *, key",
    "end": "pair, x, *, key",
    "path": "path",
    "images": "images",
    "latent": "pair, z, *, key",
}


@pytest.mark.slow
def test_a_function_of_every_place(tiny_model, tmp_path):
    """Each with its documented signature; its value comes back from there."""
    path = tmp_path / "seven.py"
    path.write_text(
        "import sharpjax as sj\n\n"
        + "\n\n".join(
            f"@sj.detection.register(direction=1, where={place!r}, cost='0', source='a test')\n"
            f"def my_{place}({given}):\n    return {k}.5"
            for k, (place, given) in enumerate(PLACES.items())
        )
    )
    names = load_plugins([path])
    assert names == [f"my_{place}" for place in PLACES]
    settings = DetectSettings(
        statistics=tuple(names), num_noises=2, num_steps=2, trace_timesteps=(900,), path_steps=1
    )
    (record,) = detect(tiny_model, ["0 x1"], tmp_path / "run", settings, fingerprint="a")
    found = {name.split("@")[0]: values for name, values in record["network"].items()}
    for k, place in enumerate(PLACES):
        assert found[f"my_{place}"] == [k + 0.5] * (1 if place == "images" else 2)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return x.nothing", "statistic mine cannot be computed: AttributeError: .*nothing"),
        ("return 1.0 if x.sum() > 0 else 2.0", "statistic mine cannot be computed: Tracer"),
        ("return x", r"statistic mine must be one real number, got float32 of shape \(1, 8, 8\)"),
        ("return None", "statistic mine cannot be computed"),
    ],
)
def test_a_function_that_fails_is_named(body, message, tiny_model, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import sharpjax as sj\n"
        "@sj.detection.register(direction=1, where='first', cost='0', source='a test')\n"
        f"def mine(pair, x, *, linearized=None):\n    {body}\n"
    )
    settings = DetectSettings(statistics=tuple(load_plugins([path])), num_noises=1)
    with pytest.raises(ValueError, match=message):
        detect(tiny_model, ["0 x1"], tmp_path / "run", settings, fingerprint="a")


def test_nan_is_named(tiny_model, tmp_path):
    @register(**FIRST)
    def mine(pair, x, *, linearized=None):
        return jnp.nan

    settings = DetectSettings(statistics=("mine", "score_difference"), num_noises=1)
    (record,) = detect(tiny_model, ["0 x1"], tmp_path / "run", settings, fingerprint="a")
    assert record["failed"] == "mine@981 not finite"


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("score_difference", {}, "must be new, got 'score_difference', which is Wen et al. 2024's"),
        ("traces", {}, "must be an identifier and no group's, got 'traces'; rename"),
        ("<lambda>", {}, "must be an identifier and no group's, got '<lambda>'"),
        ("mine", {"direction": 0}, r"direction must be 1 \(larger means memorized\) or -1"),
        ("mine", {"where": "last"}, "where must be one of first, noise, .*, got 'last'"),
        ("mine", {"cost": "two F"}, "cost must be terms such as 2F, .* got 'two F'"),
        ("mine", {"options": ["seed"]}, "options must be of squared, .* got 'seed'"),
    ],
)
def test_what_cannot_be_registered(name, changed, message):
    def function(pair, x, *, linearized=None):
        return 0.0

    function.__name__ = name
    with pytest.raises(ValueError, match=message):
        register(**FIRST | changed)(function)


def test_other_arguments_are_told_at_once():
    def lonely(pair, x):
        return 0.0

    with pytest.raises(
        ValueError, match=r"must take 2 arguments and the keywords linearized .*got"
    ):
        register(**FIRST)(lonely)
    with pytest.raises(ValueError, match=r"must take 1 arguments \(where='path'\), got lonely"):
        register(**FIRST | {"where": "path"})(lonely)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "must register one by @sharpjax.detection.register, got none"),
        ("def", "SyntaxError"),
        ("import sys; sys.exit(0)", "is not a file of statistics: SystemExit"),
        ("1/0", "is not a file of statistics: ZeroDivisionError: division by zero"),
    ],
)
def test_files_that_are_no_plugins(text, message, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    before = dict(STATISTICS)
    with pytest.raises(ValueError, match=message):
        load_plugins([tmp_path / "mine.py"])
    assert before == STATISTICS
    with pytest.raises(FileNotFoundError, match=r"no file of statistics .*other\.py"):
        load_plugins([tmp_path / "other.py"])


def test_costs_that_settings_say():
    """As they were counted by hand: four noises, three levels of two, four probes."""
    everything = DetectSettings(statistics=tuple(STATISTICS))
    assert evaluations(everything) == {
        "score_difference": ("first", 4, 0),
        "hessian_score_difference": ("first", 4, 8),
        "hessian_score": ("first", 4, 4),
        "trace_difference": ("traces", 12, 48),
        "effective_dimension": ("traces", 6, 24),
        "curvature_difference": ("paths", 408, 128),
        "diagonal_distance": ("paths", 408, 32),
        "guidance_alignment": ("noise", 8, 0),
        "standardised_alignment": ("noise", 8, 0),
        "path_score_difference": ("paths", 400, 0),
        "last_step_difference": ("paths", 400, 0),
        "step_displacement": ("paths", 400, 0),
        "tiled_l2": ("paths", 400, 0),
        "p_laplacian": ("paths", 400 + 4 * 128, 0),
        "gap_flux": ("traces", 192, 0),
        "gap_divergence": ("traces", 12, 48),
        "image_gap_flux": ("paths", 528, 0),
        "condition_jacobian": ("traces", 6, 6),
    }
