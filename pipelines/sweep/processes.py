"""The processes of a row: ``dvc``, its stage, torchrun's children; how to stop them, and what dead ones left."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from dvc.lock import make_lock

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)
_LAUNCHERS = ("torch.distributed.run", "pipelines.sweep.launch", "pipelines.sweep.job")


def start(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path, *, own_session: bool
) -> subprocess.Popen[bytes]:
    """Starts ``dvc``, with everything that it and its stages print added to a log.

    A stop must not end ``dvc`` before its stage has saved. In a session of its own it hears of none (nor of Ctrl-C in
    the terminal), and the sweep tells the stage alone. Slurm must see all processes of a job in one tree and tells all
    of them; there ``dvc`` ignores SIGTERM and SIGINT, and :func:`pipelines.sweep.launch.launched` undoes that below it.

    Args:
        command: program and arguments.
        folder: to run in.
        environment: of the process.
        log: is appended to.
        own_session: whether to start a session for it.
    """

    def shield() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=own_session,
            preexec_fn=None if own_session else shield,  # noqa: PLW1509 - a job has one thread
        )


def stages_below(pid: int) -> list[psutil.Process]:
    """The processes below one that run a stage: one, or with torchrun one for each GPU; not their data loaders."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except _GONE:
        return []
    found = {process.pid: process for process in below if _runs_stage(process)}
    chosen = []
    for process in found.values():
        with suppress(*_GONE):
            if process.ppid() not in found:
                chosen.append(process)
    return chosen


def send(pids: Iterable[psutil.Process], number: signal.Signals, told: set[int]) -> None:
    """Sends a signal to processes, once to each of them: a second one would end a trainer before it has saved."""
    for process in pids:
        if process.pid not in told:
            told.add(process.pid)
            with suppress(*_GONE):
                process.send_signal(number)


def left_over(row: str, folder: Path) -> list[int]:
    """Processes on this machine that are at a row of this workspace: those of a sweep that was killed, or by hand."""
    targets = {f"{stage}@{row}" for stage in ("train", "evaluate")}
    root, found = folder.resolve(), []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            # cheap test first: most processes are no Python of ours
            named = targets & set(command) and any(Path(part).name == "dvc" for part in command[:4])
            if not named and not (command[-1:] == [row] and _runs(command, "pipelines.")):
                continue
            if Path(process.cwd()) == root:
                found.append(process.pid)
        except (*_GONE, OSError):
            continue
    return found


def free_stale_locks(folder: Path) -> list[str]:
    """Frees DVC's locks on files whose holder is dead although a process has its number now.

    DVC notes process numbers in ``.dvc/tmp/rwlock`` and frees those that no process has. After a job died on another
    node, or the machine was started anew, its number may belong to anything; DVC would then refuse for ever.

    Returns:
        What was freed, for the log.
    """
    path = folder / ".dvc" / "tmp" / "rwlock"
    if not path.exists():
        return []
    with make_lock(str(path.with_name("rwlock.lock")), tmp_dir=str(path.parent), wait=True):
        try:
            locks: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            path.unlink()  # cut off while it was written: whoever held something is gone
            return [f"{path}: was damaged and is removed"]
        dead: dict[int, int] = {}
        for file, holder in list(locks.get("write", {}).items()):
            if not _is_dvc(holder["pid"]):
                del locks["write"][file]
                dead[holder["pid"]] = dead.get(holder["pid"], 0) + 1
        freed = [f"{path}: freed {n} files from process {pid}, which is no dvc (any more)" for pid, n in dead.items()]
        for file, holders in list(locks.get("read", {}).items()):
            locks["read"][file] = [holder for holder in holders if _is_dvc(holder["pid"])]
            if not locks["read"][file]:
                del locks["read"][file]
        path.write_text(json.dumps(locks), encoding="utf-8")
    return freed


def _is_dvc(pid: int) -> bool:
    try:
        return any(Path(part).name == "dvc" for part in psutil.Process(pid).cmdline()[:4])
    except psutil.AccessDenied:
        return True
    except _GONE:
        return False


def _runs_stage(process: psutil.Process) -> bool:
    try:
        return _runs(process.cmdline(), "pipelines.")
    except _GONE:
        return False


def _runs(command: Sequence[str], prefix: str) -> bool:
    modules = [after for flag, after in pairwise(command) if flag == "-m"]
    return any(module.startswith(prefix) for module in modules) and not any(name in modules for name in _LAUNCHERS)
