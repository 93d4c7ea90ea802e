"""A sweep on a cluster: one Slurm array per stage, each waiting for what it needs.

    data (download, convert)  -+
    weights                   -+-> train -> evaluate -+-> report
                               +-> verify ------------+

``evaluate`` waits row by row (``aftercorr``), ``train`` and ``report`` until what comes before is over, however it
ended (``afterany``): a data set that cannot be had stops its own rows only. Whether a stage runs at all is DVC's
decision, in the job (:mod:`pipelines.sweep.job`).
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from danet.config.workspace import Workspace
from danet.core.console import console
from danet.core.errors import ConfigError, DanetError
from danet.core.files import write_text
from danet.results import tracking
from pipelines.sweep import records
from pipelines.sweep.plan import Plan, check_divisible
from pipelines.sweep.records import Record, row_locks

GRACE_SECONDS = 120
"""Before the time limit a training is asked to save and is queued again."""
AFTER = {
    "data": {},
    "weights": {},
    "train": {"data": "afterany", "weights": "afterany"},
    "evaluate": {"train": "aftercorr"},
    "verify": {"data": "afterany"},
    "report": {"evaluate": "afterany", "verify": "afterany"},
}
"""For each stage the stages it waits for, and how."""
_PATTERNS = {
    "partition": r"[\w.,-]+",
    "account": r"[\w.-]+",
    "time": r"\d+(-\d+)?(:\d+){0,2}",
    "mem": r"\d+[KMGT]?",
    "constraint": r"[\w.,:&|*()\[\]-]+",
}


@dataclass(frozen=True)
class Options:
    """What the jobs ask Slurm for; ``None`` leaves it to the cluster.

    ``gpus_per_row`` and ``nodes_per_row`` are of train and evaluate; ``cpus_per_task`` and ``mem`` are for each node.
    """

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    mem: str | None = None
    constraint: str | None = None
    array_limit: int | None = None
    nodes_per_row: int = 1
    gpus_per_row: int = 0
    cpus_per_task: int | None = None

    def __post_init__(self) -> None:
        for name, pattern in _PATTERNS.items():
            value = getattr(self, name)
            if value is not None and not re.fullmatch(pattern, value):
                raise ConfigError(f"--{name} {value!r} is not what sbatch takes there; see `man sbatch`")
        if self.gpus_per_row % self.nodes_per_row:
            raise ConfigError(
                f"--gpus-per-row {self.gpus_per_row} does not divide over --nodes-per-row {self.nodes_per_row}"
            )

    @property
    def processes(self) -> int:
        """Of a row, on each of its nodes: one per GPU."""
        return max(1, self.gpus_per_row // self.nodes_per_row)


def tasks_of(plan: Plan) -> dict[str, list[str]]:
    """What the tasks of each array work on; stages without anything to do are left out."""
    shared = plan.shared()
    rows = [row.name for row in plan.rows if f"evaluate@{row.name}" in {t for c in plan.chains(row) for t in c}]
    names = {
        "data": [d for d in plan.datasets if {f"download@{d}", f"convert@{d}"} & set(shared)],
        "weights": [w for w in plan.weights if f"weights@{w}" in shared],
        # rows that lack their evaluation only are here too (DVC finds nothing to train), so that indices correspond
        "train": rows,
        "evaluate": rows,
        "verify": [r.name for r in plan.verified if f"verify@{r.name}" in {t for c in plan.chains(r) for t in c}],
    }
    found = {stage: tasks for stage, tasks in names.items() if tasks}
    return found | {"report": ["tables"]} if found else {}


def script(record: Record, workspace: Workspace, stage: str, options: Options) -> str:
    """The batch script of a stage's array; paths and dependencies are given to ``sbatch`` as arguments."""
    limit = f"%{options.array_limit}" if options.array_limit and stage in ("train", "evaluate", "verify") else ""
    settings = {
        "job-name": f"danet-{stage}-{record.id}",
        "array": f"0-{len(record.tasks[stage]) - 1}{limit}",
        "open-mode": "append",
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
        "constraint": options.constraint if stage in ("train", "evaluate", "verify") else None,
        "cpus-per-task": options.cpus_per_task,
        "mem": options.mem,
        "nodes": 1,
        "ntasks-per-node": 1,
    }
    if stage in ("train", "evaluate", "verify"):
        nodes = options.nodes_per_row if stage != "verify" else 1
        settings |= {"nodes": nodes}
        if options.gpus_per_row > 0:
            settings |= {"gpus-per-node": options.processes if stage != "verify" else 1}
    lines = [f"#SBATCH --{name}={value}" for name, value in settings.items() if value is not None]
    lines += ["#SBATCH --requeue", "#SBATCH --kill-on-invalid-dep=yes"]
    if stage == "train":
        lines.append(f"#SBATCH --signal=B:USR1@{GRACE_SECONDS}")
    command = [sys.executable, "-m", "pipelines.sweep.job", str(record.folder(workspace).resolve()), stage]
    return "\n".join(["#!/bin/bash", *lines, "", f'exec {shlex.join(command)} "$SLURM_ARRAY_TASK_ID"', ""])


def sbatch_command(record: Record, workspace: Workspace, stage: str) -> list[str]:
    """The call of ``sbatch`` for a stage, once those that it waits for are submitted."""
    folder = record.folder(workspace).resolve()
    waits = [f"{how}:{record.jobs[other]}" for other, how in AFTER[stage].items() if other in record.jobs]
    return [
        "sbatch",
        "--parsable",
        f"--chdir={workspace.root.resolve()}",
        f"--output={folder}/logs/slurm-{stage}-%a.log",
        *([f"--dependency={','.join(waits)}"] if waits else []),
        str(folder / f"{stage}.sh"),
    ]


def submit(plan: Plan, workspace: Workspace, options: Options, *, dry_run: bool = False, pull: bool = False) -> int:
    """Writes the scripts of what remains of a plan to ``build/sweep/<id>`` and submits them.

    Args:
        plan: what to run.
        workspace: on a file system that all nodes share.
        options: for Slurm.
        dry_run: print scripts and calls, and do nothing.
        pull: take from the DVC remote what another machine has made.

    Raises:
        ConfigError: if a batch does not divide over the processes.
        DanetError: if jobs of an earlier sweep of these rows live, another sweep runs them, or Slurm refuses. What was
            submitted before is cancelled then.
    """
    check_divisible(plan.remaining(), options.processes * options.nodes_per_row)
    root = str(workspace.root.resolve())
    if "%" in root or "\\" in root:
        raise ConfigError(f"{root}: Slurm would take % and \\ in this path for patterns; move the workspace")
    record = records.new_record(
        plan,
        workspace,
        "slurm",
        tasks=tasks_of(plan),
        nodes=options.nodes_per_row,
        processes=options.processes,
        pull=pull,
    )
    if not record.tasks:
        console.print("nothing to submit: all rows are done")
        return 0
    if dry_run:
        _print_scripts(record, workspace, options)
        return 0
    if shutil.which("sbatch") is None:
        raise DanetError("sbatch is not here: `danet sweep --slurm` needs Slurm's commands, on a login node as a rule")
    refuse_live_jobs(plan, workspace)
    with row_locks([row.name for row in plan.rows], workspace, f"sweep {record.id}"):
        folder = record.folder(workspace)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        reason = tracking.sweep_runs(record.id, plan.experiments, workspace, status="RUNNING")
        if reason:
            console.print(f"MLflow: no parent run for the sweep: {reason}", markup=False)
        for stage in record.tasks:
            write_text(folder / f"{stage}.sh", script(record, workspace, stage, options))
        record.save(workspace)  # before the first job can start
        for stage in record.tasks:
            try:
                record = replace(record, jobs={**record.jobs, stage: _sbatch(sbatch_command(record, workspace, stage))})
            except DanetError:
                if record.jobs:
                    subprocess.run(["scancel", *record.jobs.values()], check=False)
                raise
            record.save(workspace)
    for stage, job in record.jobs.items():
        console.print(f"{stage}: job {job}, {len(record.tasks[stage])} tasks", markup=False)
    console.print(
        f"sweep {record.id} is submitted; `danet sweep --status` says which row is where, "
        f"`scancel {' '.join(record.jobs.values())}` ends it; logs in {folder / 'logs'}",
        markup=False,
    )
    return 0


def has_gpus(partition: str | None = None) -> bool:
    """Whether nodes of the cluster, or of a partition, have GPUs by ``sinfo``; not so where that does not answer."""
    command = ["sinfo", "--noheader", "--format=%G", *([f"--partition={partition}"] if partition else [])]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return any(line.startswith("gpu") or ",gpu" in line for line in result.stdout.splitlines())


def refuse_live_jobs(plan: Plan, workspace: Workspace) -> None:
    """Refuses rows that jobs of an earlier sweep are for.

    Raises:
        DanetError: naming the jobs.
    """
    names = {row.name for row in plan.rows}
    for other in records.records(workspace):
        both = sorted(names & set(other.rows))
        alive = {array for array, _ in records.squeue(list(other.jobs.values()))} if both else set()
        if alive:
            raise DanetError(
                f"sweep {other.id} has live Slurm jobs for {', '.join(both)}; wait for them, "
                f"`scancel {' '.join(sorted(alive, key=int))}`, or choose other rows; nothing was started"
            )


def _sbatch(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    job = result.stdout.strip().split(";")[0]
    if result.returncode or not job.isdigit():
        raise DanetError(f"{Path(command[-1]).name}: sbatch refused it: {(result.stderr or result.stdout).strip()}")
    return job


def _print_scripts(record: Record, workspace: Workspace, options: Options) -> None:
    for stage in record.tasks:
        names = ", ".join(f"{index} = {name}" for index, name in enumerate(record.tasks[stage]))
        sys.stdout.write(f"# {stage}.sh; tasks: {names}\n{script(record, workspace, stage, options)}\n")
    for stage in record.tasks:
        sys.stdout.write(f"{shlex.join(sbatch_command(record, workspace, stage))}\n")
        record = replace(record, jobs={**record.jobs, stage: f"<{stage}>"})
