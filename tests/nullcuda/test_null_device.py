"""Runs the tests of :mod:`tests.gpu` on the null device, a process for each group of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import null

INSIDE = Path(__file__).parents[1] / "gpu" / "test_gpu.py"
GROUPS = ("TestTraining", "TestEvaluation", pytest.param("TestCompilation", marks=pytest.mark.slow))


@pytest.mark.nullcuda
@pytest.mark.skipif(not os.environ.get(null.VARIABLE), reason=f"{null.VARIABLE} names no null CUDA device")
@pytest.mark.parametrize("group", GROUPS)
def test_on_the_null_device(group):
    command = [*null.command(), sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, f"{INSIDE}::{group}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
