"""``danet sweep``: chooses what to do from the options of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from danet.config.workspace import Workspace
from danet.core.console import console
from danet.core.errors import ConfigError
from pipelines.sweep.local import choose_slots, run
from pipelines.sweep.plan import Plan, choose_rows, make_plan
from pipelines.sweep.slurm import Options, has_gpus, submit
from pipelines.sweep.status import print_status, survey


def sweep(
    workspace: Workspace,
    *,
    tables: Sequence[str],
    rows: Sequence[str],
    verify: bool = False,
    pull: bool = False,
    dry_run: bool = False,
    status: bool = False,
    as_json: bool = False,
    keep_going: bool = True,
    gpus_per_row: int | None = None,
    gpus: str | None = None,
    jobs: int | None = None,
    slurm: bool = False,
    **cluster: Any,
) -> int:
    """Runs, submits, prints or surveys a sweep; returns the exit code.

    Args:
        workspace: whose rows.
        tables: whose rows are chosen.
        rows: chosen by name.
        verify: also evaluate released weights.
        pull: take from the DVC remote what another machine has made.
        dry_run: print the plan (with ``slurm``: the scripts) and do nothing.
        status: print which row is where and do nothing.
        as_json: the status as JSON.
        keep_going: past a row that fails.
        gpus_per_row: of each row; default 1 where there are GPUs.
        gpus: numbers of those to use, or ``none``.
        jobs: rows at a time on the CPU.
        slurm: submit array jobs instead.
        cluster: fields of :class:`pipelines.sweep.slurm.Options`; only with ``slurm``.

    Raises:
        ConfigError: for options that contradict each other, and unknown rows.
        DanetError: as :func:`pipelines.sweep.local.run` and :func:`pipelines.sweep.slurm.submit`.
    """
    given = {name: value for name, value in cluster.items() if value is not None}
    if given and not slurm:
        raise ConfigError(f"--{next(iter(given)).replace('_', '-')} is for --slurm")
    if slurm and (gpus is not None or jobs is not None):
        raise ConfigError("--gpus and --jobs are for a sweep on this machine; with --slurm give --array-limit")
    chosen = choose_rows(workspace.params(), tables, rows)
    options = None
    if slurm:
        if gpus_per_row is None:  # one for each node of a row, where the cluster has any
            gpus_per_row = given.get("nodes_per_row", 1) if has_gpus(given.get("partition")) else 0
        options = Options(**given, gpus_per_row=gpus_per_row)
    slots = None if slurm or status else choose_slots(gpus_per_row=gpus_per_row, gpus=gpus, jobs=jobs)
    plan = make_plan(workspace, chosen, verify=verify, pull=pull)
    if status:
        print_status(survey(plan, workspace), as_json=as_json)
        return 0
    if options is not None:
        return submit(plan, workspace, options, dry_run=dry_run, pull=pull)
    assert slots is not None
    if dry_run:
        _print_plan(plan, [",".join(place) or "CPU" for place in slots.places])
        return 0
    return run(plan, workspace, slots, keep_going=keep_going, pull=pull)


def _print_plan(plan: Plan, places: Sequence[str]) -> None:
    shared = plan.shared()
    lines = [f"first: {', '.join(shared)}"] if shared else []
    for row in plan.rows:
        stages = [stage for chain in plan.chains(row) for stage in chain]
        lines.append(f"{row.name}: {' -> '.join(stages) or 'up to date'}")
    if plan.remaining():
        some = "1 row" if len(places) == 1 else f"{len(places)} rows"
        lines.append(f"{some} at a time, on {'; '.join(places)}")
        lines.append(f"last: {', '.join(f'report@{table}' for table in plan.tables)}, index")
    for line in lines:
        console.print(line, markup=False)
