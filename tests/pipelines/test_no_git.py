"""A copy without ``.git``, as GitHub's zip or rsync makes it: the commands say what to do, and that works."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.parameters import copy_settings
from tests.pipelines.programs import environment


def run(folder, *arguments):
    return subprocess.run(arguments, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_remedy_works(tmp_path):
    copy_settings(tmp_path, "dvc.yaml", ".dvc/config")
    sweep = (sys.executable, "-m", "pipelines.sweep", "--rows", "camvid-r50-d8", "--dry-run")
    for command in (sweep, (sys.executable, "-m", "pipelines.camvid")):
        refused = run(tmp_path, *command)
        assert refused.returncode == 2, refused.stderr
        assert f"error: {tmp_path} is not a git repository" in refused.stderr
        assert "Traceback" not in refused.stderr
    remedy = re.search(r"run `(.*?)` once", refused.stderr)
    assert remedy is not None, refused.stderr
    assert run(tmp_path, *shlex.split(remedy[1])).returncode == 0
    planned = run(tmp_path, *sweep)
    assert planned.returncode == 0, planned.stderr
    assert "camvid-r50-d8" in planned.stdout
    assert run(tmp_path, "dvc", "status", "download@camvid").returncode == 0
