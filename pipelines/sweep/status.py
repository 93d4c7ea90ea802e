"""Which row is where: from DVC, the rows' locks, what jobs and trainers note, and Slurm. Nothing is run."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.evaluation.cost import hours_here
from pipelines.sweep.job import is_alive, log_path, read_state
from pipelines.sweep.plan import Plan

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "blocked": "red", "stopped": "yellow"}
COMING = ("not run", "stopped", "trained", "failed")
"""States of the rows that a sweep runs; to one that runs somewhere it comes back, and queued ones are Slurm's."""


@dataclass(frozen=True)
class RowStatus:
    """A row's line."""

    row: Row
    state: str
    """``done``, ``running``, ``queued``, ``blocked``, ``failed``, ``stopped``, ``trained`` (not evaluated), ``not
    run``."""
    time: str = ""
    """What is left of a running training, or what the row takes on this machine where that is known."""
    at: str = ""
    note: str = ""
    """Why it failed or is blocked."""
    on_slurm: bool = False
    hours: float | None = None


def survey(plan: Plan, workspace: Workspace) -> list[RowStatus]:
    """The status of a plan's rows."""
    states = {row.name: read_state(workspace, row.name) for row in plan.rows}
    queue = squeue() if any("job" in state for state in states.values()) else {}
    left = [row for row in plan.rows if plan.chains(row)]
    blocked = _blocked(plan, workspace, left)
    hours = hours_here(workspace, plan.params, left) if left else {}
    return [
        _status(
            row,
            plan,
            workspace,
            states[row.name],
            queue,
            blocked.get(row.dataset, ""),
            hours.get(row.name, {}).get("own"),
        )
        for row in plan.rows
    ]


def _status(
    row: Row,
    plan: Plan,
    workspace: Workspace,
    state: dict[str, Any],
    queue: dict[str, tuple[str, str]],
    blocked: str,
    hours: float | None,
) -> RowStatus:
    job = state.get("job", "")
    task, place = queue.get(job, ("", ""))
    if task in ("RUNNING", "COMPLETING"):
        time, at = _progress(row, workspace)
        return RowStatus(row, "running", time, f"{at}, job {job} on {place}", on_slurm=True)
    if task:
        return RowStatus(row, "queued", "", f"job {job}: {place}", on_slurm=True)
    # a conversion keeps DVC from judging what needs it
    inputs = {f"convert@{row.dataset}", f"weights@{row.weights}"}
    if is_running(row, workspace) or (f"evaluate@{row.name}" in plan.busy and not inputs & plan.busy):
        time, at = _progress(row, workspace)
        gpus = f", GPU {state['gpus']}" if is_alive(state) and state.get("gpus") else ""
        return RowStatus(row, "running", time, at + gpus)
    chains = plan.chains(row)
    if not chains:
        return RowStatus(row, "done")
    cost = "" if hours is None else f"{hours:,.0f} h" if hours >= 1 else f"{max(1, round(60 * hours))} min"
    if blocked:
        return RowStatus(row, "blocked", cost, note=blocked, hours=hours)
    if state.get("state") == "failed":
        note = f"{state['note']} ({log_path(workspace, row.name)})"
        return RowStatus(row, "failed", cost, note=note, hours=hours)
    if chains[0] == f"evaluate@{row.name}":
        return RowStatus(row, "trained", at="to be evaluated")
    done = _newest(row, workspace)
    if done and done["iteration"] < done["total"]:
        return RowStatus(row, "stopped", cost, _share(row, done), hours=hours)
    return RowStatus(row, "not run", cost, hours=hours)


def is_running(row: Row, workspace: Workspace) -> bool:
    """Whether a job on this machine or any trainer that shares the file system is at a row now."""
    if is_alive(read_state(workspace, row.name)):
        return True
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


def _newest(row: Row, workspace: Workspace) -> dict[str, Any] | None:
    """What the row's trainer noted last (:func:`danet.training.progress.write_status`)."""
    found = []
    for seed in row.seeds:
        try:
            text = (workspace.checkpoints(row, seed) / "progress.json").read_text(encoding="utf-8")
            found.append(dict(json.loads(text)))
        except (OSError, ValueError):
            continue
    return max(found, key=lambda each: str(each["updated"]), default=None)


def _share(row: Row, progress: dict[str, Any]) -> str:
    seed = f"seed {progress['seed']}, " if len(row.seeds) > 1 else ""
    return f"{seed}{progress['iteration']}/{progress['total']}"


def _progress(row: Row, workspace: Workspace) -> tuple[str, str]:
    """The time that a running row's training has left, and where it is."""
    progress = _newest(row, workspace)
    if progress is None:
        return "", "starting"
    if progress["iteration"] >= progress["total"]:
        return "", "evaluation" if progress["seed"] == row.seeds[-1] else "next seed"
    return f"{timedelta(seconds=round(progress['eta_seconds']))} left", _share(row, progress)


def progress_line(row: Row, workspace: Workspace) -> str:
    """One line about a running row."""
    time, at = _progress(row, workspace)
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
    from danet.cli.doctor import dataset_state

    found = {}
    for name in {row.dataset for row in rows} & {stage.partition("@")[2] for stage in plan.missing}:
        if f"convert@{name}" in plan.missing and f"download@{name}" in plan.missing:
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
    notes: dict[str, list[str]] = {}
    for each in found:
        if each.note:
            notes.setdefault(each.note, []).append(each.row.name)
    for note, rows in notes.items():
        state = next(each.state for each in found if each.note == note)
        who = rows[0] if len(rows) == 1 else f"{len(rows)} rows"
        out.print(f"\n{coloured(state)} {who}: {escape(note)}", soft_wrap=True)
    states = Counter(each.state for each in found)
    hours = sum(each.hours or 0 for each in found if each.state in COMING)
    total = f"; {hours:,.0f} h to go on this machine alone" if hours >= 1 else ""
    out.print(f"\n{len(found)} rows: " + ", ".join(f"{count} {state}" for state, count in states.items()) + total)


def coloured(state: str) -> str:
    """A state with its colour, as rich markup."""
    return f"[{COLOURS[state]}]{state}[/]" if state in COLOURS else state
