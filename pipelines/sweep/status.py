"""Which row is where: from DVC, the rows' locks, what jobs and trainers note, and Slurm. Nothing is run."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from danet.cli.doctor import dataset_state
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.text import duration
from danet.training.progress import STATUS
from pipelines.sweep.job import lock_path, log_path, read_state
from pipelines.sweep.plan import Plan

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "blocked": "red", "stopped": "yellow"}
COMING = ("not run", "stopped", "trained", "failed")
"""States of the rows that a sweep runs; the others are done, cannot be run, or have a process or a job already."""


@dataclass(frozen=True)
class RowStatus:
    """A row's line."""

    row: Row
    state: str
    """``done``, ``running``, ``queued``, ``blocked`` or one of :data:`COMING` (``trained``: not evaluated yet)."""
    at: str = ""
    """How far it is, or what Slurm says of it."""
    note: str = ""
    """Why it failed or is blocked."""
    time: str = ""
    """What is left of a running training, or what the row takes on this machine where that is known."""
    hours: float = 0.0
    """The latter; 0 where it is not known."""


def survey(plan: Plan, workspace: Workspace) -> list[RowStatus]:
    """The status of a plan's rows."""
    from danet.evaluation.cost import hours_here  # with PyTorch, for which `--help` should not wait

    jobs = {row.name: read_state(workspace, row.name) for row in plan.rows}
    queue = squeue() if any("job" in job for job in jobs.values()) else {}
    left = [row for row in plan.rows if plan.chains(row)]
    blocked = _blocked(plan, workspace, left)
    known = hours_here(workspace, plan.params, left) if left else {}

    def status(row: Row) -> RowStatus:
        job, chains = jobs[row.name], plan.chains(row)
        task, place = queue.get(job.get("job", ""), ("", ""))
        if task in ("RUNNING", "COMPLETING"):
            at, time = _progress(row, workspace)
            return RowStatus(row, "running", f"{at}, job {job['job']} on {place}", time=time)
        if task:
            return RowStatus(row, "queued", f"job {job['job']}: {place}")
        if is_running(row, workspace):
            at, time = _progress(row, workspace)
            return RowStatus(row, "running", at, time=time)
        if not chains:
            return RowStatus(row, "done")
        state, at, note = "not run", "", ""
        if row.dataset in blocked:
            state, note = "blocked", blocked[row.dataset]
        elif job.get("state") == "failed":
            state, note = "failed", f"{job['note']} ({log_path(workspace, row.name)})"
        elif chains[0] == f"evaluate@{row.name}":
            return RowStatus(row, "trained", "to be evaluated")
        elif (done := _newest(row, workspace)) and done["iteration"] < done["total"]:
            state, at = "stopped", _share(row, done)
        hours = known.get(row.name, {}).get("own", 0.0)
        return RowStatus(row, state, at, note, duration(3600 * hours) if hours else "", hours)

    return [status(row) for row in plan.rows]


def is_running(row: Row, workspace: Workspace) -> bool:
    """Whether a job or a trainer, here or on a machine that shares the file system, is at a row now."""
    trainer = workspace.checkpoints(row, row.seeds[0]).parent / "train.lock"
    return any(map(_is_locked, (lock_path(workspace, row.name), trainer)))


def _is_locked(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with FileLock(lock).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that another user owns: only that user trains there
        return False


def _newest(row: Row, workspace: Workspace) -> dict[str, Any] | None:
    """What the row's trainer noted last (:func:`danet.training.loop.Trainer`)."""
    found = []
    for seed in row.seeds:
        with suppress(OSError):
            found.append(json.loads((workspace.checkpoints(row, seed) / STATUS).read_text(encoding="utf-8")))
    return max(found, key=lambda each: str(each["updated"]), default=None)


def _share(row: Row, progress: dict[str, Any]) -> str:
    seed = f"seed {progress['seed']}, " if len(row.seeds) > 1 else ""
    return f"{seed}{progress['iteration']}/{progress['total']}"


def _progress(row: Row, workspace: Workspace) -> tuple[str, str]:
    """Where a running row is, and the time that its training has left."""
    progress = _newest(row, workspace)
    if progress is None:
        return "starting", ""
    if progress["iteration"] >= progress["total"]:
        return "evaluation" if progress["seed"] == row.seeds[-1] else "next seed", ""
    return _share(row, progress), f"{timedelta(seconds=round(progress['eta_seconds']))} left"


def progress_line(row: Row, workspace: Workspace) -> str:
    """One line about a running row."""
    at, time = _progress(row, workspace)
    return f"{row.name}: {at}" + (f", {time}" if time else "")


def squeue() -> dict[str, tuple[str, str]]:
    """State, and node or reason, of this user's array tasks that are not over, by ``ARRAY_INDEX``.

    Empty where Slurm is not installed or does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%F_%K|%T|%N|%r"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = [line.split("|", 3) for line in result.stdout.splitlines()]
    return {task: (state, nodes or reason) for task, state, nodes, reason in lines}


def _blocked(plan: Plan, workspace: Workspace, rows: Sequence[Row]) -> dict[str, str]:
    """Data sets that some rows need and that cannot be fetched as things are, and what to do about it."""
    found = {}
    for name in {row.dataset for row in rows}:
        if {f"convert@{name}", f"download@{name}"} <= plan.missing:
            finding = dataset_state(name, plan.params.datasets[name], workspace)
            if finding.state == "missing":
                found[name] = f"{name}: {finding.how}"
    return found


def print_status(found: Sequence[RowStatus]) -> None:
    """To standard output: a table for 80 columns, the reasons below it, and sums."""
    out = Console(highlight=False)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("row", "state", "time", "at"):
        shown.add_column(title, no_wrap=title != "at", overflow="fold")
    for each in found:
        shown.add_row(each.row.name, coloured(each.state), each.time, escape(each.at))
    out.print(shown)
    for (state, note), count in Counter((each.state, each.note) for each in found if each.note).items():
        rows = [each.row.name for each in found if each.note == note]
        who = rows[0] if count == 1 else f"{count} rows"
        out.print(f"\n{coloured(state)} {who}: {escape(note)}", soft_wrap=True)
    states = Counter(each.state for each in found)
    hours = sum(each.hours for each in found if each.state in COMING)
    total = f"; {duration(3600 * hours)} to go on this machine alone" if hours else ""
    out.print(f"\n{len(found)} rows: " + ", ".join(f"{count} {state}" for state, count in states.items()) + total)


def coloured(state: str) -> str:
    """A state with its colour, as rich markup."""
    return f"[{COLOURS[state]}]{state}[/]" if state in COLOURS else state
