"""Starts :mod:`tests.nullcuda.inside` under the null device, a process for each group of its tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import null

INSIDE = Path(__file__).with_name("inside.py")
GROUPS = ("TestTraining", "TestEvaluation", pytest.param("TestCompilation", marks=pytest.mark.slow))


@pytest.mark.nullcuda
@pytest.mark.skipif(not os.environ.get(null.VARIABLE), reason=f"{null.VARIABLE} names no null CUDA device")
@pytest.mark.parametrize("group", GROUPS)
def test_on_the_null_device(group: str) -> None:
    command = [
        *null.command(),
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "",
        "-p",
        "no:cacheprovider",
        f"{INSIDE}::{group}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
