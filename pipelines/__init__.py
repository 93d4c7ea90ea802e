"""The stages of ``dvc.yaml``: one thin file each, named as the stage. All work is done in :mod:`danet`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

try:
    import psutil
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


def dvc_died() -> Callable[[], bool] | None:
    """Tells whether the DVC that runs this stage has died; ``None`` where no DVC does.

    Killed outright, DVC leaves its stage running, beside which a second ``dvc repro`` would start the same one. DVC
    names the stage in the environment of its command, so it is the nearest ancestor that does not have that name in its
    own: shells and launchers in between do. The processes of other nodes have none and depend on those that do.
    """
    name = os.environ.get("DVC_STAGE")
    if name is None:
        return None
    ancestor = next((process for process in psutil.Process().parents() if not _has_stage(process, name)), None)
    if ancestor is None or not _is_dvc(ancestor):
        # it died while Python was starting, unless the first process of several looks for it elsewhere
        return None if "WORLD_SIZE" in os.environ else lambda: True
    return lambda: not _lives(ancestor)


def _has_stage(process: psutil.Process, name: str) -> bool:
    try:
        return process.environ().get("DVC_STAGE") == name
    except (psutil.Error, OSError):
        return False


def _is_dvc(process: psutil.Process) -> bool:
    """DVC itself or a Python that uses it, and not what adopts orphans (init, systemd, a container's shell)."""
    try:
        words = [Path(word).name for word in process.cmdline()]
    except (psutil.Error, OSError):
        return True
    return any(word.startswith("dvc") for word in words) or (words[:1] != [] and words[0].startswith("python"))


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def dvc_environment(without: str | None = None) -> dict[str, str]:
    """Environment for a ``dvc`` started from here: this Python first on the path, and its threads in check.

    Containers are often given two cores of a large machine: PyTorch would start a thread for each of its cores, and
    waiting threads would spin on the little that there is (measured beside one other process: half the speed). glibc is
    told to keep what it has freed: training asks for the same blocks in every iteration (measured: 14% less time).

    Args:
        without: prefix of variables to leave out.
    """
    environment = {key: value for key, value in os.environ.items() if without is None or not key.startswith(without)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment.setdefault("OMP_NUM_THREADS", str(cpu_count()))
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("MALLOC_TRIM_THRESHOLD_", str(4 * 2**30))
    environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(4 * 2**30))
    environment.setdefault("MALLOC_TOP_PAD_", str(2**28))
    return environment
