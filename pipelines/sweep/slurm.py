"""A sweep on a cluster: one job for data and weights, an array with a task for each row, one job for the tables.

The array starts when the data job is over, however it ended (a data set that cannot be fetched stops its own rows
only), and the tables are made when the array is over. What a task runs is :mod:`pipelines.sweep.job`.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.console import console
from danet.core.errors import ConfigError, DanetError
from danet.core.files import write_text
from pipelines.sweep.job import home, write_state
from pipelines.sweep.launch import PROCESSES
from pipelines.sweep.plan import Plan, check_divisible

GRACE_SECONDS = 120
"""Before the time limit a job is asked to save, and queues itself again."""
ROWS = "rows"


def script(name: str, tasks: Mapping[str, Sequence[str]], *, gpus: int = 0, limit: int | None = None) -> str:
    """A batch script: an array with a task for each entry of ``tasks``, ``limit`` at a time with ``gpus`` each."""
    settings = {
        "job-name": f"danet-{name}",
        "array": f"0-{len(tasks) - 1}" + (f"%{limit}" if limit else ""),
        "nodes": 1,
        "ntasks": 1,
        "gpus-per-node": gpus or None,
        "open-mode": "append",
        "signal": f"B:USR1@{GRACE_SECONDS}",
    }
    lines = ["#!/bin/bash", *(f"#SBATCH --{key}={value}" for key, value in settings.items() if value is not None)]
    lines += ["#SBATCH --requeue", f"export {PROCESSES}={max(1, gpus)}", "case $SLURM_ARRAY_TASK_ID in"]
    for index, (task, chains) in enumerate(tasks.items()):
        lines.append(f"{index}) exec {shlex.join([sys.executable, '-m', 'pipelines.sweep.job', task, *chains])} ;;")
    return "\n".join([*lines, "esac", ""])


def submit(
    plan: Plan,
    rows: Sequence[Row],
    workspace: Workspace,
    arguments: str,
    *,
    gpus: int = 1,
    limit: int | None = None,
    dry_run: bool = False,
) -> int:
    """Writes the scripts to ``build/sweep`` and submits them; with ``dry_run`` prints scripts and calls instead.

    ``arguments`` are for ``sbatch``, as one would type them; they go before the scripts' own settings. ``gpus`` are
    for each row, ``limit`` is the number of rows at a time.

    Raises:
        ConfigError: if a batch does not divide over the GPUs, or the arguments have an open quote.
        DanetError: if Slurm refuses. What was submitted before is cancelled then.
    """
    try:
        given = shlex.split(arguments)
    except ValueError as error:
        raise ConfigError(f"--slurm {arguments!r}: {error}; quote the arguments as for a shell") from error
    check_divisible(rows, max(1, gpus))
    tasks = {row.name: plan.chains(row) for row in rows}
    shared = plan.shared(rows)
    scripts = {
        **({"data": script("data", {"shared": shared})} if shared else {}),
        ROWS: script(ROWS, tasks, gpus=gpus, limit=limit),
        "report": script("report", {"report": plan.reports()}),
    }
    jobs: dict[str, str] = {}
    folder = home(workspace).resolve()
    for name, text in scripts.items():
        wait = [f"--dependency=afterany:{list(jobs.values())[-1]}"] if jobs else []
        command = ["sbatch", "--parsable", f"--chdir={workspace.root.resolve()}", f"--output={folder}/slurm-{name}.log"]
        command += [*wait, *given, str(folder / f"{name}.sh")]
        if dry_run:
            sys.stdout.write(f"# {folder / name}.sh\n{text}\n{shlex.join(command)}\n\n")
            jobs[name] = f"JOB_{name.upper()}"
            continue
        write_text(folder / f"{name}.sh", text)
        try:
            jobs[name] = _sbatch(command)
        except DanetError:
            if jobs:
                subprocess.run(["scancel", *jobs.values()], check=False)
            raise
    if not dry_run:
        for index, row in enumerate(rows):
            write_state(workspace, row.name, "queued", job=f"{jobs[ROWS]}_{index}")
        console.print(
            f"submitted {', '.join(f'{name} as job {job}' for name, job in jobs.items())}; logs in {folder}; "
            f"`danet sweep --status` says which row is where, `scancel {' '.join(jobs.values())}` ends it",
            markup=False,
        )
    return 0


def _sbatch(command: Sequence[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DanetError("sbatch is not here: run `danet sweep --slurm` on a login node of the cluster") from None
    job = result.stdout.strip().split(";")[0]
    if result.returncode or not job.isdigit():
        raise DanetError(f"{Path(command[-1]).name}: sbatch refused it: {(result.stderr or result.stdout).strip()}")
    return job
