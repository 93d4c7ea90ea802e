"""What runs one row, here or as a task of a Slurm array: ``python -m pipelines.sweep.job NAME STAGE,STAGE...``.

Each argument after the name is a chain of stages, one ``dvc repro``; a chain that fails does not stop the next one.
Output goes to ``build/sweep/NAME.log``, and ``build/sweep/NAME.json`` says how the job stands.

SIGTERM and the death of the process that started it make the stage save and stop. Slurm sends SIGTERM for pre-emption,
``scontrol requeue`` and ``scancel``, and knows whether the job comes back; near the time limit it sends SIGUSR1, upon
which the job queues itself again. SIGINT (a second Ctrl-C in the sweep) kills the stage.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from danet.config.workspace import Workspace
from danet.core.errors import Interrupted
from danet.core.files import write_json
from pipelines import dvc_environment

POLL_SECONDS = 0.5


def home(workspace: Workspace) -> Path:
    """Where jobs leave their logs and states (folder)."""
    return workspace.root / "build" / "sweep"


def log_path(workspace: Workspace, name: str) -> Path:
    """The log of a row, or of the other jobs of a sweep: ``shared`` and ``report``."""
    return home(workspace) / f"{name}.log"


def lock_path(workspace: Workspace, name: str) -> Path:
    """Held by a row's job while it runs."""
    return home(workspace) / f"{name}.lock"


def read_state(workspace: Workspace, name: str) -> dict[str, Any]:
    """How a row's last job stands; empty if there was none."""
    try:
        return dict(json.loads((home(workspace) / f"{name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def write_state(workspace: Workspace, name: str, state: str, **facts: Any) -> None:
    """Notes it: ``queued``, ``running``, ``done``, ``failed`` or ``stopped``."""
    write_json(home(workspace) / f"{name}.json", {"state": state, **facts})


def start(chain: str, workspace: Workspace) -> subprocess.Popen[bytes]:
    """``dvc repro`` of these stages alone, in a session of its own: only the job tells it to stop."""
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *chain.split(",")],
        cwd=workspace.root,
        env=dvc_environment(),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        # Slurm's SIGTERM must not end it before its stage has saved
        preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),  # noqa: PLW1509 - there is one thread
    )


class Job:
    """Runs chains of stages until they are done or it is told to stop."""

    def __init__(self, name: str, workspace: Workspace) -> None:
        self.name, self.workspace = name, workspace
        self.stop: signal.Signals | None = None
        self.requeue = False
        self._parent = os.getppid()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requeue = self.requeue or number == signal.SIGUSR1
        self.stop = signal.SIGKILL if number == signal.SIGINT else self.stop or signal.SIGINT

    def run(self, chains: Sequence[str]) -> int:
        """Exit code: 0, 1 if a stage failed, 75 if it was stopped."""
        log = log_path(self.workspace, self.name)
        before = log.stat().st_size
        facts: dict[str, str] = {}
        if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
            facts["job"] = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        attempt = f", Slurm job {facts['job']}" if facts else ""
        print(f"== {self.name} on {os.environ.get('SLURMD_NODENAME', socket.gethostname())}{attempt}", flush=True)
        write_state(self.workspace, self.name, "running", **facts)
        codes = [self._repro(chain) for chain in chains if self.stop is None]
        stopped = self.stop is not None and (any(codes) or len(codes) < len(chains))
        state = "stopped" if stopped else "failed" if any(codes) else "done"
        note = last_words(log, before) if state == "failed" else ""
        write_state(self.workspace, self.name, state, note=note, **facts)
        if stopped and self.requeue:
            print("== saved before the time limit; queued again", flush=True)
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
            time.sleep(60)  # until Slurm ends this attempt
        return Interrupted.exit_code if stopped else int(any(codes))

    def _repro(self, chain: str) -> int:
        process, told = start(chain, self.workspace), None
        while process.poll() is None:
            if os.getppid() != self._parent:
                self.stop = self.stop or signal.SIGINT
            if self.stop is not None and self.stop != told:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, self.stop)
                told = self.stop
            time.sleep(POLL_SECONDS)
        return process.returncode


def last_words(log: Path, before: int) -> str:
    """The reason of a failure: the last error line of a log from some byte on, else its last line."""
    with log.open("rb") as stream:
        stream.seek(before)
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
    for mark in (r"error: ", r"[\w.]*Error: ", r"ERROR: "):  # ours, Python's, DVC's
        if found := [line for line in lines if re.match(mark, line)]:
            return found[-1]
    return lines[-1] if lines else ""


def main(arguments: Sequence[str]) -> int:
    """Runs the job in the workspace that is the current folder; everything printed goes to its log."""
    name, *chains = arguments
    workspace = Workspace()
    home(workspace).mkdir(parents=True, exist_ok=True)
    with log_path(workspace, name).open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    lock = FileLock(lock_path(workspace, name))
    with suppress(Timeout):  # the attempt before this one is still saving
        lock.acquire(timeout=0)
    return Job(name, workspace).run(chains)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
