"""A workspace of the demo cut down to a few rows that train for seconds, for tests of sweeps."""

import json
import re
import subprocess
import sys

from danet.config.params import merge
from danet.config.yaml import read_raw, write_raw
from pipelines import demo
from tests.pipelines import programs

ROWS = ("demo-r50-d16-voc2012", "demo-r50-d16-ade20k", "demo-r101-d16-voc2012")


def make_workspace(folder, rows=ROWS, *, iterations=4, checkpoint_interval=1000, **bad):
    """The demo's workspace with these rows, random weights, and a note of the progress after each iteration.

    ``bad`` are settings of the last row.
    """
    demo.prepare(demo.REPOSITORY, folder)
    params = read_raw(folder / "params.yaml")
    params["rows"] = {
        name: merge(params["rows"][name], {"schedule": {"iterations": iterations}, "weights": "none"}) for name in rows
    }
    params["rows"][rows[-1]] |= bad
    used = {row["dataset"] for row in params["rows"].values()}
    params["datasets"] = {name: params["datasets"][name] for name in params["datasets"] if name in used}
    params["weights"] = {"none": dict.fromkeys(("url", "file", "checksum", "backbone", "stem")) | {"title": "random"}}
    params["runtime"] |= {"overlays": 1, "benchmark_images": 2, "log_interval": 1}
    params["runtime"]["checkpoint_interval"] = checkpoint_interval
    for recipe in params["recipes"].values():
        recipe["settings"]["demo"]["train"]["schedule"]["batch_size"] = 2
    write_raw(params, folder)
    return folder


def environment(folder):
    """For processes started in a workspace, with its archives."""
    return programs.environment(folder, DANET_ARCHIVES=str(folder / "archives"))


def sweep(folder, *options, env=None):
    """A sweep from start to end, in :func:`environment` or another."""
    command = [sys.executable, "-m", "danet.cli", "sweep", *options]
    env = environment(folder) if env is None else env
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def states(folder, env=None):
    """Of the rows, as ``--status`` prints them."""
    shown = sweep(folder, "--status", env=env)
    assert shown.returncode == 0, shown.stderr
    return dict(re.findall(r"^(demo-\S+) +(not run|\w+)", shown.stdout, re.MULTILINE))


def reached(folder, row):
    """The iteration that a row's trainer has noted."""
    found = list((folder / "checkpoints").glob(f"{row}*/seed0/progress.json"))
    return int(json.loads(found[0].read_text())["iteration"]) if found else 0
