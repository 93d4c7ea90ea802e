"""A sweep on this machine: rows side by side, each on its GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from types import FrameType

from joblib import cpu_count
from rich.markup import escape

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.console import console
from danet.core.errors import ConfigError, Interrupted
from pipelines.sweep.job import POLL_SECONDS, log_path, read_state
from pipelines.sweep.launch import PROCESSES
from pipelines.sweep.plan import Plan, check_divisible, stages
from pipelines.sweep.status import coloured, progress_line

LINE_SECONDS = 60
"""Between two lines about each running row."""
STOPPED = Interrupted.exit_code


def choose_places(*, gpus_per_row: int | None, gpus: str | None, jobs: int | None) -> list[str]:
    """For each row that may run at a time its GPUs, as ``CUDA_VISIBLE_DEVICES`` takes them; empty ones on the CPU.

    Args:
        gpus_per_row: default 1 where there are GPUs.
        gpus: their numbers, joined by commas, or ``none``; by default those visible that no other process uses.
        jobs: rows at a time: on GPUs at most this, on the CPU (default 1).

    Raises:
        ConfigError: for fewer GPUs than asked for.
    """
    visible = [] if gpus == "none" or gpus_per_row == 0 else visible_gpus()
    if gpus is not None and gpus != "none":
        devices = list(dict.fromkeys(gpus.split(",")))
        if missing := [each for each in devices if each not in visible]:
            raise ConfigError(f"--gpus: GPU {missing[0]} is not here; visible: {', '.join(visible) or 'none'}")
    else:
        devices = free_gpus(visible)
        if busy := [each for each in visible if each not in devices]:
            console.print(f"GPU {', '.join(busy)} is used by other processes and left out (--gpus names those to use)")
        if busy and not devices:
            raise ConfigError(f"all {len(visible)} GPUs are in use; name those to use with --gpus")
    if not devices and not gpus_per_row:
        return [""] * (jobs or 1)
    each = gpus_per_row or 1
    if each > len(devices):
        raise ConfigError(f"--gpus-per-row {each}: only {len(devices)} GPUs are free here; on the CPU give --jobs")
    places = [",".join(devices[i : i + each]) for i in range(0, len(devices) - each + 1, each)]
    return places[:jobs]


def visible_gpus() -> list[str]:
    """Numbers (or names) of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` takes them."""
    import torch

    count = torch.cuda.device_count()
    given = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    return given[:count] if given else [str(number) for number in range(count)]


def free_gpus(visible: Sequence[str]) -> list[str]:
    """Those on which no process computes, by ``nvidia-smi``; all where it does not say."""

    def ask(what: str) -> list[list[str]]:
        command = ["nvidia-smi", what, "--format=csv,noheader"]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return [[cell.strip() for cell in line.split(",")] for line in result.stdout.splitlines() if line.strip()]

    if not visible:
        return []
    try:
        busy = {line[0] for line in ask("--query-compute-apps=gpu_uuid,pid")}
        names = {index: uuid for index, uuid in (line[:2] for line in ask("--query-gpu=index,uuid"))}
    except (OSError, subprocess.SubprocessError, ValueError):
        return list(visible)
    return [each for each in visible if names.get(each, each) not in busy]


class Sweep:
    """Runs rows on some places; see :func:`run`."""

    def __init__(self, plan: Plan, rows: Sequence[Row], workspace: Workspace, places: Sequence[str]) -> None:
        self.plan, self.rows, self.workspace = plan, rows, workspace
        self.free = deque(places)
        self.running: dict[str, tuple[subprocess.Popen[bytes], str]] = {}
        self.codes: dict[str, int] = {}
        self.stops = self._told = 0
        per_row = max(1, len(places[0].split(",")))
        threads = max(1, cpu_count() // (len(places) * per_row))
        self.environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | {PROCESSES: str(per_row)}

    def run(self) -> int:
        """Shared stages, rows, tables; returns the exit code."""
        handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._alone("shared", self.plan.shared(self.rows))
            self._rows()
            self._alone("report", self.plan.reports())
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.stops or STOPPED in self.codes.values():
            return STOPPED
        return int(any(self.codes.values()))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stops += 1

    def _rows(self) -> None:
        waiting, shown = deque(self.rows), time.monotonic()
        while self.running or (waiting and not self.stops):
            while waiting and self.free and not self.stops:
                row = waiting.popleft()
                self._start(row.name, self.plan.chains(row), self.free.popleft())
            self._poll()
            if time.monotonic() - shown > LINE_SECONDS:
                shown = time.monotonic()
                for name in self.running:
                    console.print(progress_line(self.plan.params.row(name), self.workspace), markup=False)

    def _alone(self, name: str, chains: Sequence[str]) -> None:
        if chains and not self.stops:
            self._start(name, chains, None)
        while self.running:
            self._poll()

    def _start(self, name: str, chains: Sequence[str], place: str | None) -> None:
        """``place`` has the row's GPUs; None leaves the environment as it is."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.sweep.job", name, *chains],
            cwd=self.workspace.root,
            env=self.environment if place is None else self.environment | {"CUDA_VISIBLE_DEVICES": place},
            start_new_session=True,  # Ctrl-C in the terminal is for the sweep alone
        )
        self.running[name] = (process, place or "")
        what = ", ".join(stages(chains)) if place is None else f"on GPU {place}" if place else ""
        console.print(f"{name}: started {what}".rstrip(), markup=False)

    def _poll(self) -> None:
        time.sleep(POLL_SECONDS)
        if self.stops > self._told:
            if self._told == 0:
                console.print("[yellow]stopping:[/] rows save where they are; Ctrl-C again kills them")
            for process, _ in self.running.values():
                process.send_signal(signal.SIGTERM if self._told == 0 else signal.SIGINT)
            self._told = self.stops
        for name, (process, place) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[name]
            if name in self.plan.params.rows:
                self.free.append(place)
            self.codes[name] = process.returncode
            outcome = {0: "done", STOPPED: "stopped"}.get(process.returncode, "failed")
            note = read_state(self.workspace, name).get("note", "")
            why = f": {note} ({log_path(self.workspace, name)})" if outcome == "failed" else ""
            console.print(f"{name}: {coloured(outcome)}{escape(why)}")


def run(plan: Plan, rows: Sequence[Row], workspace: Workspace, places: Sequence[str]) -> int:
    """Runs what is left of rows, then the tables; returns the exit code (0; 1: something failed; 75: stopped).

    Raises:
        ConfigError: if a batch does not divide over the GPUs; nothing was started.
    """
    check_divisible(rows, max(1, len(places[0].split(","))))
    return Sweep(plan, rows, workspace, places).run()
