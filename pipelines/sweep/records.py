"""What a sweep leaves in ``build/sweep``: which rows, how each ended, its logs, and the locks of running ones."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from danet.config.rows import Row
from danet.config.workspace import Workspace
from danet.core.errors import ConfigError, DanetError
from danet.core.files import write_json
from pipelines.sweep.launch import versions
from pipelines.sweep.plan import Plan

FORMAT = 1
Mode = Literal["local", "slurm"]
_LINE = re.compile(r"iter (\d+)/(\d+) .*eta (.+)$")
_STAGE = re.compile(r"Running stage '([a-z]+)@")
_TAIL_BYTES = 20_000


@dataclass(frozen=True)
class Record:
    """``sweep.json``: a sweep as it was started."""

    id: str
    mode: Mode
    created: str
    host: str
    python: str
    torch: str
    code: str
    rows: list[str]
    verify: bool = False
    pull: bool = False
    nodes: int = 1
    """Nodes of each row (Slurm)."""
    processes: int = 1
    """Processes of each row on each of its nodes."""
    tasks: dict[str, list[str]] = field(default_factory=dict)
    """Names that the tasks of each Slurm array work on, by stage."""
    jobs: dict[str, str] = field(default_factory=dict)
    """Slurm's id of each array."""
    finished: bool = False

    def folder(self, workspace: Workspace) -> Path:
        """Where its logs and states are."""
        return home(workspace) / self.id

    def log(self, workspace: Workspace, name: str) -> Path:
        """The log of a row, or of what else is called so."""
        return self.folder(workspace) / "logs" / f"{name}.log"

    def save(self, workspace: Workspace) -> None:
        """Writes ``sweep.json``."""
        write_json(self.folder(workspace) / "sweep.json", {"format": FORMAT, **asdict(self)})


def home(workspace: Workspace) -> Path:
    """The folder of all sweeps."""
    return workspace.root / "build" / "sweep"


def new_record(plan: Plan, workspace: Workspace, mode: Mode, **more: Any) -> Record:
    """A record of a sweep that starts now, with the versions that its jobs must have too."""
    now, here = datetime.now(UTC), versions()
    identity = f"{now:%Y%m%d-%H%M%S}"
    while (home(workspace) / identity).exists():
        identity += "b"
    return Record(
        id=identity,
        mode=mode,
        created=now.isoformat(timespec="seconds"),
        host=socket.gethostname(),
        python=platform.python_version(),
        torch=here["torch"],
        code=here["code"],
        rows=[row.name for row in plan.rows],
        verify=plan.verify,
        **more,
    )


def load_record(folder: Path) -> Record:
    """Reads ``sweep.json``.

    Raises:
        ConfigError: if it is missing or not one.
    """
    path = folder / "sweep.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        return Record(**data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: is no record of a sweep ({error}); remove {folder} and start again") from error


def records(workspace: Workspace) -> list[Record]:
    """All sweeps, newest first; damaged records are left out."""
    found = []
    for path in sorted(home(workspace).glob("*/sweep.json"), reverse=True):
        try:
            found.append(load_record(path.parent))
        except ConfigError:
            continue
    return found


def write_state(record: Record, workspace: Workspace, name: str, state: str, **facts: Any) -> None:
    """Notes how a row stands: ``running``, ``done``, ``failed`` or ``stopped``, with host and time."""
    facts |= {"row": name, "state": state, "host": socket.gethostname(), "pid": os.getpid()}
    facts["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(record.folder(workspace) / "state" / f"{name}.json", facts)


def read_state(record: Record, workspace: Workspace, name: str) -> dict[str, Any]:
    """What :func:`write_state` noted last, or nothing."""
    try:
        state = json.loads((record.folder(workspace) / "state" / f"{name}.json").read_text(encoding="utf-8"))
        return dict(state)
    except (OSError, ValueError, TypeError):
        return {}


@dataclass(frozen=True)
class Progress:
    """Where a row's log says it is."""

    stage: str = ""
    iteration: int | None = None
    total: int | None = None
    eta: str = ""

    def __str__(self) -> str:
        if self.iteration is None:
            return self.stage
        return f"{self.stage} {self.iteration}/{self.total}" + (f", {self.eta} left" if self.eta else "")


def read_progress(log: Path, start: int = 0) -> Progress:
    """The last stage and iteration in a log.

    Args:
        log: of a row.
        start: byte from which on to look: what an earlier attempt wrote is no progress of this one.
    """
    progress = Progress()
    for line in tail(log, start).splitlines():
        if stage := _STAGE.search(line):
            progress = Progress(stage[1])
        elif found := _LINE.search(line):
            progress = Progress(progress.stage or "train", int(found[1]), int(found[2]), found[3].strip())
    return progress


def tail(log: Path, start: int = 0) -> str:
    """The end of a log, at most from some byte on."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(start, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def size(log: Path) -> int:
    """Bytes that a log has now."""
    return log.stat().st_size if log.exists() else 0


def last_words(log: Path, start: int = 0) -> str:
    """The last error line of a log from some byte on, else its last line."""
    lines = [line.strip() for line in tail(log, start).splitlines() if line.strip()]
    for mark in (r"error: ", r".*Error: ", r"ERROR: "):  # ours, Python's, DVC's
        if found := [line for line in lines if re.match(mark, line)]:
            return found[-1]
    return lines[-1] if lines else ""


@contextmanager
def row_locks(rows: Sequence[str], workspace: Workspace, holder: str, *, wait_seconds: float = 0) -> Iterator[None]:
    """Holds rows against other sweeps for as long as this process lives; the system frees the locks of a dead one.

    Raises:
        DanetError: naming the rows and the sweep that has them; nothing is held then.
    """
    folder = home(workspace) / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        taken: dict[str, list[str]] = {}
        for name in rows:
            try:
                stack.enter_context(FileLock(folder / f"{name}.lock").acquire(timeout=wait_seconds))
                (folder / f"{name}.holder").write_text(
                    f"{holder} (process {os.getpid()} on {socket.gethostname()})\n", encoding="utf-8"
                )
            except Timeout:
                by = folder / f"{name}.holder"
                taken.setdefault(by.read_text(encoding="utf-8").strip() if by.exists() else "a sweep", []).append(name)
        if taken:
            who = "; ".join(f"{by} has {', '.join(names)}" for by, names in taken.items())
            raise DanetError(
                f"other sweeps are at these rows: {who}. Wait for them, stop them, or choose other rows; "
                "nothing was started. `danet sweep --status` shows them"
            )
        yield


def training_lock_held(row: Row, workspace: Workspace) -> bool:
    """Whether some process trains the row now (on this machine, or on another one that shares the file system)."""
    lock = workspace.checkpoints(row, row.seeds[0]).parent / "train.lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that another user owns: only that user trains there
        return False


def squeue(jobs: Sequence[str]) -> dict[tuple[str, int], tuple[str, str, str]]:
    """State, nodes and reason of the tasks of some Slurm arrays that are not over, by array and index.

    Empty where Slurm is not installed or does not answer.
    """
    if not jobs:
        return {}
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%F|%K|%T|%N|%r"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    if result.returncode:
        sys.stderr.write(f"squeue: {result.stderr.strip()}\n")
        return {}
    tasks = {}
    for line in result.stdout.splitlines():
        array, index, state, nodes, reason = line.split("|", 4)
        if array in jobs and index.isdigit():
            tasks[array, int(index)] = (state, nodes, reason)
    return tasks
