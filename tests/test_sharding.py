"""Starts the tests on eight simulated devices, which must be asked for before JAX starts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


# One in the fast tier: the trace, shared over points and probes. The slow tier has the same numbers
# on every mesh, that one among them
@pytest.mark.parametrize(
    "which", ["as_on_one and trace", pytest.param("not as_on_one", marks=pytest.mark.slow)]
)
def test_on_eight_devices(which):
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-k", which]
    command += ["-m", "slow or not slow"]
    child = subprocess.run(
        [*command, Path(__file__).with_name("eight_devices.py")],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    assert re.search(r"\d+ passed", child.stdout), child.stdout
