"""The stages of ``dvc.yaml``: one thin file each, named as the stage. All work is done in :mod:`danet`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

try:
    from joblib import cpu_count

    from danet.config.workspace import Workspace
    from danet.core.console import prepare_program, report_errors
except ModuleNotFoundError as missing:  # `.venv/bin/dvc repro` runs the stages with the `python` that is first in PATH
    raise SystemExit(
        f"error: {sys.executable} has no module {missing.name!r}: the stage was started with another Python than that "
        "of the harness; activate its environment and run the command again: . .venv/bin/activate"
    ) from None

prepare_program()  # first of all, as a stage imports what it needs before it begins


NO_GIT = (
    "in a copy without .git (a zip, rsync) run `dvc config --local core.no_scm true` once, then the same command again "
    "(DANET_COMMIT=<commit> tells the metrics files which code it is)"
)
"""What DVC does not say when it says that a folder is not a git repository."""


def stage(work: Callable[[Workspace, str], None]) -> None:
    """Runs a stage on the workspace in the current folder; its one argument is the name that DVC filled in.

    Exits with the error's code and one clear line if the harness refuses to go on.
    """
    with report_errors():
        workspace = Workspace()
        workspace.refuse_links()
        work(workspace, sys.argv[1] if len(sys.argv) > 1 else "")


def dvc_environment(without: str | None = None) -> dict[str, str]:
    """Environment for a ``dvc`` started from here: this Python first on the path, and its threads in check.

    Containers are often given two cores of a large machine: PyTorch would start a thread for each of its cores, and
    waiting threads would spin on the little that there is (measured beside one other process: half the speed). glibc is
    told to keep what it has freed: training asks for the same blocks in every iteration (measured: 14% less time).
    """
    environment = {key: value for key, value in os.environ.items() if without is None or not key.startswith(without)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment.setdefault("OMP_NUM_THREADS", str(cpu_count()))
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("MALLOC_TRIM_THRESHOLD_", str(4 * 2**30))
    environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(4 * 2**30))
    environment.setdefault("MALLOC_TOP_PAD_", str(2**28))
    return environment
