"""Detection spread over eight devices: the same numbers, and the work really shared."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from sharpjax.detection.settings import DetectSettings
from sharpjax.mesh import devices
from sharpjax.runs.detect import detect

# Run with a directory, what to load from it, and mesh shapes. Prints, for each mesh, the records,
# and the operations of one device in each compiled part.
SCRIPT = """
import dataclasses, functools, importlib, json, sys, tempfile
import jax, jax.numpy as jnp, numpy as np
from sharpjax import Schedule
from sharpjax.detection import compute as columns
from sharpjax.detection.oracle import TrainingSet
from sharpjax.models.load import load
run = importlib.import_module("sharpjax.runs.detect")  # not the function of that name

@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Exact:  # the perfect network, which compiles faster than a learned one
    training_set: TrainingSet
    schedule: Schedule
    shape = (1, 8, 8)
    conditions = ("0 x1", "0 x3", "0 x12", "1 x1", "1 x3", "1 x12")
    has_unconditional = True

    def encode(self, names):
        return jnp.array([self.conditions.index(name) for name in names])

    def check(self, names):
        pass

    def unconditional(self, t):
        return self.scores(0, t).unconditional

    def scores(self, condition, t):
        level = {"alpha": self.schedule.alpha(t), "sigma": self.schedule.sigma(t)}
        return self.training_set.scores(condition, **level)

def counted(part, operations):
    def call(*arguments, mesh, **static):
        compiled = part.lower(*arguments, mesh=mesh, **static).compile()
        operations[part.__name__] = compiled.cost_analysis()["flops"]
        return compiled(*arguments)
    return call

directory, kind, meshes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
training_set = TrainingSet.load(directory)
model = Exact(training_set, Schedule.create()) if kind == "exact" else load(directory)
settings = run.DetectSettings(num_noises=2, trace_timesteps=(800,), path_steps=1, num_probes=3)
places = {"_first_step": columns, "_walk": columns, "_traces": columns, "exact_columns": run}
parts = {name: getattr(module, name) for name, module in places.items()}
results = []
for shape in meshes:
    axes = ("points", "probes")[: len(shape)]
    operations = {}
    for name, part in parts.items():
        setattr(places[name], name, counted(part, operations))
    with tempfile.TemporaryDirectory() as folder:
        detect = functools.partial(
            run.detect, model, model.conditions, folder + "/run", settings, fingerprint="abc",
            training_set=training_set, labels=np.asarray(model.encode(model.conditions)),
            batch_size=6,
        )
        records = detect(mesh=jax.make_mesh(shape, axes) if shape else None)
        assert detect() == records, "a run belongs to no number of devices"
    results.append({"records": records, "operations": operations})
print(json.dumps(results))
"""


def on_eight_devices(directory, kind, meshes):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(directory), kind, json.dumps(meshes)],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def compare(one, many):
    for ours, theirs in zip(one["records"], many["records"], strict=True):
        assert ours["condition"] == theirs["condition"]
        for who in ("network", "oracle"):
            assert ours[who].keys() == theirs[who].keys()
            for name, values in ours[who].items():
                # as for the batch size, tests/test_detection.py
                np.testing.assert_allclose(theirs[who][name], values, rtol=2e-3, atol=2e-3)


def share(one, many, part):
    return many["operations"][part] / one["operations"][part]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exact", "network"])
def test_points_and_probes_share_the_work(kind, tiny_training_set, tmp_path, request):
    directory = tmp_path
    tiny_training_set.save(directory)
    if kind == "network":
        directory = request.getfixturevalue("tiny_directory")
    one, points, both = on_eight_devices(directory, kind, [[], [8], [4, 2]])
    compare(one, points)
    compare(one, both)
    # Six conditions on eight devices are one each, on four rows two each; and what they have in
    # common is computed by all.
    for part in ("_first_step", "_walk", "_traces"):
        assert 1 / 6 <= share(one, points, part) < 0.3
    assert 1 / 3 <= share(one, both, "_first_step") < 0.5
    assert 1 / 3 <= share(one, both, "_walk") < 0.4
    # Three probes in two columns are two each: less than the third that conditions alone give.
    assert 2 / 9 <= share(one, both, "_traces") < 0.3


@pytest.mark.slow
def test_the_cpu_becomes_a_device_a_core():
    """And no more, if more are asked for, but for what the environment says."""
    code = (
        "import jax; from sharpjax.mesh import devices; devices.split_cpu({}); "
        "print(jax.local_device_count(), devices.num_cores())"
    )

    def counts(asked, **environment):
        kept = {
            k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
        }
        command = [sys.executable, "-c", code.format(asked)]
        run = subprocess.run(
            command, capture_output=True, text=True, env=kept | environment, check=True
        )
        return [int(word) for word in run.stdout.split()]

    present, cores = counts("")
    assert present == cores
    assert counts(cores + 1)[0] == cores
    assert counts("", XLA_FLAGS="--xla_force_host_platform_device_count=3")[0] == 3


def test_mistakes_are_named(tmp_path, monkeypatch):
    present = jax.local_device_count()
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with pytest.raises(
        ValueError, match=rf"99 devices .* has {present} \(cpu\): .* {devices.num_cores()};"
    ):
        devices.local_mesh(99)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", str(present))
    with pytest.raises(ValueError, match=rf"has {present} \(cpu\): .* fix their number"):
        devices.local_mesh(99)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"devices must be an integer >= 1, got {wrong}"):
            devices.local_mesh(wrong)
    mesh = Mesh(np.array(jax.local_devices()[:1]), ("batch",))
    with pytest.raises(ValueError, match="an axis 'points' or 'probes'"):
        detect(None, ("a",), tmp_path / "run", DetectSettings(), fingerprint="abc", mesh=mesh)
    foreign = np.array([SimpleNamespace(process_index=1)])
    with pytest.raises(ValueError, match="1 devices of other processes"):
        devices.check_own(SimpleNamespace(devices=foreign))
    assert not list(tmp_path.iterdir()), "a mistake must not leave a directory behind"
