"""DVC in this process (a process of its own takes two seconds to start), on folders whose stages run this code."""

import contextlib
import os
import sys
from pathlib import Path
from unittest import mock

from dvc.cli import main

from tests.parameters import ROOT

NO_MLFLOW = "file:"
"""A tracking address that is refused before MLflow is imported: for stages whose runs nobody looks at."""


def environment(folder, code=ROOT, **more):
    """For processes started in a folder: this code, a tracking store of its own, one thread each."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DANET_", "MLFLOW_", "SLURM_"))}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(code),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "DVC_NO_ANALYTICS": "1",
        **more,
    }


def dvc(folder, *arguments, **more):
    """Runs DVC in a folder, with ``more`` in the environment; returns its exit code."""
    with contextlib.chdir(folder), mock.patch.dict(os.environ, environment(folder, **more), clear=True):
        return main(list(arguments))
