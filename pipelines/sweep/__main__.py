"""``danet sweep``, or ``python -m pipelines.sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from danet.cli.app import Format, Root
from danet.config.workspace import Workspace
from danet.core.console import report_errors
from pipelines.sweep.command import sweep as run_sweep

app = typer.Typer(
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def sweep(
    table: Annotated[list[str] | None, typer.Option("--table", "-t", help="Rows of this table (repeatable).")] = None,
    rows: Annotated[
        list[str] | None, typer.Option("--rows", "-r", help="These rows, joined by commas (repeatable).")
    ] = None,
    gpus_per_row: Annotated[
        int | None, typer.Option(min=0, help="GPUs that share a row (torchrun). Default: 1 if there are any.")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(help="Numbers of the GPUs to use, or none. Default: those nobody else uses.")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Rows at a time on the CPU.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going/--fail-fast", help="Go on with other rows past one that fails.")
    ] = True,
    verify: Annotated[bool, typer.Option("--verify", help="Also evaluate the weights released for the rows.")] = False,
    pull: Annotated[bool, typer.Option("--pull", help="Take what another machine has made from DVC's remote.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan or Slurm's scripts, run nothing.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Say which row is where, run nothing.")] = False,
    format: Annotated[Format, typer.Option(help="Of --status: table or json.")] = Format.table,
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit the rows to Slurm as array jobs.")] = False,
    partition: Annotated[str | None, typer.Option(help="Slurm: partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm: account.")] = None,
    time: Annotated[str | None, typer.Option(help="Slurm: time limit; training saves and queues again.")] = None,
    array_limit: Annotated[int | None, typer.Option(min=1, help="Slurm: rows at a time.")] = None,
    nodes_per_row: Annotated[int | None, typer.Option(min=1, help="Slurm: nodes that share a row.")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="Slurm: CPU cores on each node.")] = None,
    mem: Annotated[str | None, typer.Option(help="Slurm: memory on each node, such as 64G.")] = None,
    constraint: Annotated[str | None, typer.Option(help="Slurm: features of the nodes.")] = None,
    workspace: Root = Path(),
) -> None:
    """Train and evaluate many rows side by side: on this machine's GPUs, or with --slurm on a cluster.

    DVC decides what is left to do; the same command goes on where the last one was stopped. See docs/cluster.md.
    """
    code = run_sweep(
        Workspace(workspace),
        tables=table or [],
        rows=rows or [],
        verify=verify,
        pull=pull,
        dry_run=dry_run,
        status=status,
        as_json=format is Format.json,
        keep_going=keep_going,
        gpus_per_row=gpus_per_row,
        gpus=gpus,
        jobs=jobs,
        slurm=slurm,
        partition=partition,
        account=account,
        time=time,
        array_limit=array_limit,
        nodes_per_row=nodes_per_row,
        cpus_per_task=cpus_per_task,
        mem=mem,
        constraint=constraint,
    )
    raise typer.Exit(code)


if __name__ == "__main__":
    with report_errors():
        app(prog_name="danet sweep")
