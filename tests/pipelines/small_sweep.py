"""A workspace of the demo cut down to a few rows that train for seconds, for tests of sweeps."""

import os
import sys
from pathlib import Path

from danet.config.params import merge
from danet.config.yaml import read_raw, write_raw
from pipelines import demo

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
    """For processes started in a workspace: this code, its archives, a tracking store of its own, one thread each."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DANET_", "MLFLOW_", "SLURM_"))}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(demo.REPOSITORY),
        "DANET_ARCHIVES": str(folder / "archives"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def sweep_command(*options):
    """The command line of a sweep."""
    return [sys.executable, "-m", "danet.cli", "sweep", *options]
