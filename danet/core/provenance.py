"""Where a number came from: code, machine and versions, as one flat dictionary.

What cannot be found out is ``None`` (the commit: ``"unknown"``). The host's name and absolute paths are left out, since
the result is committed with the metrics files.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
"""The repository of the code that runs, which need not be the workspace's."""

COMMIT_VARIABLE = "DANET_COMMIT"
"""Overrides the commit where the code was copied without its ``.git`` (containers): ``<sha>`` or ``<sha>-dirty``."""


def collect() -> dict[str, Any]:
    """What is known about this process.

    Returns:
        JSON-serialisable values under ``commit, dirty, date, command, python, torch, torchvision, cuda, cudnn,
        driver, gpu, gpus, cpu, cpu_cores, os``; ``None`` for what is unknown.
    """
    commit, dirty = code_version()
    return {
        "commit": commit,
        "dirty": dirty,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command(),
        "python": platform.python_version(),
        "torchvision": version("torchvision"),
        **_torch(),
        "cpu": _cpu(),
        "cpu_cores": cpu_cores(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def code_version(root: Path = PACKAGE_ROOT) -> tuple[str, bool | None]:
    """Commit of the package's repository and whether tracked files differ from it.

    Untracked files and what the stages write themselves (``reports/``, ``dvc.lock``) do not make it dirty.
    ``("unknown", None)`` if the package is not in a repository of its own or git is missing.
    """
    given = os.environ.get(COMMIT_VARIABLE)
    if given:
        return given.removesuffix("-dirty"), given.endswith("-dirty")
    top = _git(root, "rev-parse", "--show-toplevel")
    # an installed package inside somebody else's repository must not claim that repository's commit
    if top is None or Path(top.strip()).resolve() != root.resolve():
        return "unknown", None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return "unknown", None
    changes = _git(root, "status", "--porcelain", "-z", "--untracked-files=no", "--no-renames")
    if changes is None:
        return commit.strip(), None
    return commit.strip(), any(not _generated(entry[3:]) for entry in changes.split("\0") if entry)


def _generated(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return "reports" in parts or parts[-1:] == ("dvc.lock",)


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or ``None`` if it is missing, fails or takes over 10 s."""
    # GIT_DIR and the like are set inside hooks and would point elsewhere. A copy of the repository may belong to
    # another user; as its code is being run, trusting its git configuration adds nothing.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    line = ["git", "--no-optional-locks", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
    try:
        return subprocess.run(line, capture_output=True, text=True, timeout=10, check=True, env=clean).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def command() -> str:
    """The command line of this process, without machine paths: ``python -m pipelines.train ROW`` or ``danet ...``."""
    original = sys.orig_argv
    if len(original) > 2 and original[1] == "-m":
        head = ["python", "-m", original[2]]
    else:
        head = [Path(sys.argv[0]).name or "python"] if sys.argv else ["python"]
    return shlex.join([*head, *(_without_machine_path(argument) for argument in sys.argv[1:])])


def _without_machine_path(argument: str) -> str:
    name, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(value)
    if not path.is_absolute():
        return argument
    if path.is_relative_to(Path.cwd()):
        return name + equals + str(path.relative_to(Path.cwd()))
    return f"{name}{equals}.../{path.name}"


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch() -> dict[str, Any]:
    import torch

    cudnn: Any = torch.backends.cudnn
    gpu = torch.cuda.is_available()
    return {
        "torch": str(torch.__version__),  # with the build (+cpu, +cu130), which the package's metadata may lack
        "cuda": torch.version.cuda,
        "cudnn": str(cudnn.version()) if torch.version.cuda and cudnn.is_available() else None,
        "driver": _driver() if gpu else None,
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "gpus": int(os.environ.get("WORLD_SIZE", "1")) if gpu else 0,
    }


@functools.cache
def _driver() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # no NVML, or no bindings of it
        return None


@functools.cache
def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(" ".join(line.partition(":")[2].split()) for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine() or None


def cpu_cores() -> int:
    """Cores this process may use: affinity and a container's quota count."""
    from joblib import cpu_count

    return int(cpu_count())


class EnergyMeter:
    """Energy drawn by this process's GPU since the meter was made, by NVML's counter (Volta and later).

    The counter is the whole board's: other processes on the same GPU are counted too.
    """

    def __init__(self) -> None:
        self._start = gpu_energy_millijoules()

    def kilojoules(self) -> float | None:
        """kJ since the start, or ``None`` without an NVIDIA GPU that counts."""
        now = gpu_energy_millijoules() if self._start is not None else None
        if now is None or self._start is None or now < self._start:
            return None
        return round((now - self._start) / 1e6, 3)


def gpu_energy_millijoules() -> int | None:
    """NVML's total energy of the current CUDA device in mJ since the driver was loaded; ``None`` if there is none."""
    torch = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_available():
            return None
        import pynvml

        # by UUID: NVML numbers all GPUs, CUDA only those in CUDA_VISIBLE_DEVICES
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        pynvml.nvmlInit()
        try:
            device = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(device))
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # no NVML, or a GPU older than Volta
        return None
