"""A copy without ``.git``, as GitHub's zip or rsync makes it: the commands say what to do, and that works."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.parameters import ROOT
from tests.pipelines.programs import environment


@pytest.fixture
def copy(tmp_path):
    for name in ("dvc.yaml", "params.yaml", "datasets.yaml", "numerics.yaml", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    return tmp_path


def run(folder, *arguments):
    return subprocess.run(arguments, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_remedy_works(copy):
    sweep = (sys.executable, "-m", "pipelines.sweep", "--rows", "camvid-r50-d8", "--dry-run")
    for command in (sweep, (sys.executable, "-m", "pipelines.camvid")):
        refused = run(copy, *command)
        assert refused.returncode == 2, refused.stderr
        assert f"error: {copy} is not a git repository" in refused.stderr
        assert "Traceback" not in refused.stderr
    remedy = re.search(r"run `(.*?)` once", refused.stderr)
    assert remedy is not None, refused.stderr
    assert run(copy, *shlex.split(remedy[1])).returncode == 0
    planned = run(copy, *sweep)
    assert planned.returncode == 0, planned.stderr
    assert "camvid-r50-d8" in planned.stdout
    assert run(copy, "dvc", "status", "download@camvid").returncode == 0
