"""Which row is where: from DVC (one call), the rows' locks and logs, and Slurm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from danet.config.rows import Row
from danet.config.workspace import Workspace
from danet.training.checkpoint import iterations
from pipelines.sweep import records
from pipelines.sweep.local import coloured
from pipelines.sweep.plan import Plan
from pipelines.sweep.records import Record, read_progress, read_state


@dataclass(frozen=True)
class RowStatus:
    """A row's line."""

    row: str
    state: str
    """``done``, ``running``, ``queued``, ``failed``, ``stopped``, ``trained`` (not evaluated) or ``not run``."""
    at: str = ""
    where: str = ""
    log: str = ""


def survey(plan: Plan, workspace: Workspace) -> list[RowStatus]:
    """The status of a plan's rows; nothing is run."""
    sweeps = records.records(workspace)
    queue = records.squeue([job for sweep in sweeps for job in sweep.jobs.values()])
    newest: dict[str, Record] = {}
    for sweep in reversed(sweeps):
        newest |= dict.fromkeys(sweep.rows, sweep)
    return [_status(row, plan, workspace, newest.get(row.name), queue) for row in plan.rows]


def _status(
    row: Row,
    plan: Plan,
    workspace: Workspace,
    sweep: Record | None,
    queue: dict[tuple[str, int], tuple[str, str, str]],
) -> RowStatus:
    state: dict[str, Any] = read_state(sweep, workspace, row.name) if sweep else {}
    path = sweep.log(workspace, row.name) if sweep else None
    log = str(path) if path and path.exists() else ""
    for stage in ("evaluate", "train") if sweep else ():
        assert sweep is not None
        names = sweep.tasks.get(stage, [])
        task = (sweep.jobs.get(stage, ""), names.index(row.name) if row.name in names else -1)
        if task in queue and queue[task][0] in ("RUNNING", "COMPLETING") and path:
            where = f"{queue[task][1]}, job {task[0]}_{task[1]}"
            return RowStatus(row.name, "running", str(read_progress(path)), where, log)
    inputs = {f"convert@{row.dataset}", f"weights@{row.weights}"}
    busy = f"evaluate@{row.name}" in plan.busy and not inputs & plan.busy
    if busy or records.training_lock_held(row, workspace):
        at = str(read_progress(path)) if path else ""
        where = f"{state.get('host', '')}{_gpus(state)}" if state.get("state") == "running" else "outside any sweep"
        return RowStatus(row.name, "running", at, where, log)
    for stage in ("train", "evaluate") if sweep else ():
        assert sweep is not None
        names = sweep.tasks.get(stage, [])
        task = (sweep.jobs.get(stage, ""), names.index(row.name) if row.name in names else -1)
        if task in queue:
            return RowStatus(row.name, "queued", f"{stage}: {queue[task][2]}", f"job {task[0]}_{task[1]}", log)
    if not plan.chains(row):
        return RowStatus(row.name, "done")
    if {f"{stage}@{row.name}" for stage in ("train", "evaluate")} <= plan.elsewhere:
        return RowStatus(row.name, "done", "on another machine; `dvc pull` brings it here")
    if state.get("state") == "failed":
        return RowStatus(row.name, "failed", state.get("note", ""), state.get("host", ""), log)
    reached = [iterations(workspace.checkpoints(row, seed)) for seed in row.seeds]
    found = [f"seed {seed}: {iterations[0]}" for seed, iterations in zip(row.seeds, reached, strict=True) if iterations]
    if found:
        total = row.schedule.total_iterations(plan.params.datasets[row.dataset].counts[row.train_split])
        return RowStatus(row.name, "stopped", f"{', '.join(found)}/{total}", "", log)
    trained = [chain for chain in plan.chains(row) if chain[0].startswith("evaluate@")]
    return RowStatus(row.name, "trained" if trained else "not run", "", "", log if state else "")


def _gpus(state: dict[str, Any]) -> str:
    return f", GPU {','.join(state['gpus'])}" if state.get("gpus") else ""


def print_status(found: Sequence[RowStatus], *, as_json: bool = False) -> None:
    """To standard output, for people or for programs."""
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2))
        return
    out = Console(highlight=False) if Console().is_terminal else Console(width=160, highlight=False)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("row", "state", "at", "where", "log"):
        shown.add_column(title, no_wrap=title in ("row", "state"), overflow="fold")
    for each in found:
        log = each.log if each.state in ("running", "failed", "stopped") else ""
        shown.add_row(each.row, coloured(each.state), *map(escape, (each.at, each.where, log)))
    out.print(shown)
    counts: dict[str, int] = {}
    for each in found:
        counts[each.state] = counts.get(each.state, 0) + 1
    out.print(f"\n{len(found)} rows: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
