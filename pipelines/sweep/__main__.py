"""``danet sweep``, or ``python -m pipelines.sweep``."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from danet.cli.options import Root
from danet.config.workspace import Workspace
from danet.core.console import report_errors
from danet.core.errors import ConfigError
from danet.core.files import write_text
from pipelines.sweep import local
from pipelines.sweep.plan import choose_rows, make_plan, stages
from pipelines.sweep.slurm import submit
from pipelines.sweep.status import COMING, print_status, survey

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
    gpus: Annotated[
        str | None, typer.Option(help="Numbers of the GPUs to use, or none. Default: those nobody else uses.")
    ] = None,
    gpus_per_row: Annotated[
        int | None, typer.Option(min=0, help="GPUs that share a row. Default: 1 if there are any; with --slurm 1.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Rows at a time. Default: 1 on the CPU, else all GPUs.")
    ] = None,
    slurm: Annotated[
        str | None,
        typer.Option(help='Submit to Slurm with these arguments of sbatch: "--partition gpu --time 24:00:00".'),
    ] = None,
    numerics: Annotated[
        str | None, typer.Option(help="The profile of all rows that name none; written to numerics.yaml.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is left (Slurm: print the scripts).")] = False,
    status: Annotated[bool, typer.Option("--status", help="Say which row is where.")] = False,
    workspace: Root = Path(),
) -> None:
    """Train and evaluate many rows side by side: on this machine's GPUs, or with --slurm on a cluster.

    DVC decides what is left to do; the same command goes on where the last one was stopped. See docs/cluster.md.
    """
    if slurm is not None and gpus is not None:
        raise ConfigError("--gpus is for a sweep on this machine; with --slurm give --gpus-per-row")
    root = Workspace(workspace)
    if numerics is not None:
        choose_numerics(root, numerics, look=status or dry_run)
    chosen = choose_rows(root.params(), table or [], rows or [])
    places = [] if status or slurm is not None else local.choose_places(gpus_per_row=gpus_per_row, gpus=gpus, jobs=jobs)
    plan = make_plan(root, chosen)
    found = survey(plan, root)
    coming = [each.row for each in found if each.state in COMING]
    if status or not coming or (dry_run and slurm is None):
        print_status(found)
        if coming:
            if not status:
                _print_plan(plan.shared(coming), places)
            options = [word for word in sys.argv[1:] if word not in ("--dry-run", "--status")]
            print(f"next: {shlex.join(['danet', 'sweep', *options])}")
        code = 0
    elif slurm is not None:
        gpus_per_row = 1 if gpus_per_row is None else gpus_per_row
        code = submit(plan, coming, root, slurm, gpus=gpus_per_row, limit=jobs, dry_run=dry_run)
    else:
        code = local.run(plan, coming, root, places)
        found = survey(make_plan(root, chosen), root)
        print_status(found)
    left = any(each.state == "blocked" or (slurm is None and each.state != "done") for each in found)
    raise typer.Exit(code or int(left and not status and not dry_run))


def choose_numerics(root: Workspace, profile: str, *, look: bool) -> None:
    """Names the profile in numerics.yaml, on which the stages depend.

    Raises:
        ConfigError: if there is no such profile, or if it would change the file and ``look`` (a look changes nothing).
    """
    params, file = root.params(), root.root / "numerics.yaml"
    if profile not in params.profiles:
        raise ConfigError(f"--numerics {profile}: no such profile; allowed: {', '.join(params.profiles)}")
    if profile == params.profile:
        return
    text, count = re.subn(r"^numerics:.*$", f"numerics: {profile}", file.read_text(), flags=re.MULTILINE)
    if look or count != 1:
        raise ConfigError(f"{file}: names numerics {params.profile}; write `numerics: {profile}` there, then run again")
    write_text(file, text)
    print(f"{file}: numerics: {profile}")


def _print_plan(shared: Sequence[str], places: Sequence[str]) -> None:
    if shared:
        print(f"first: {', '.join(stages(shared))}")
    on = "the CPU" if places[0] == "" else "GPU " + ", GPU ".join(places)
    print(f"{'one row' if len(places) == 1 else f'{len(places)} rows'} at a time on {on}")


if __name__ == "__main__":
    with report_errors():
        app(prog_name="danet sweep")
