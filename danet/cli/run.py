"""``danet train``, ``evaluate``, ``verify``, ``reproduce``, ``sweep``: what makes a number."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from danet.cli.options import Device, NoMlflow, Root, RowName
from danet.config.workspace import Workspace
from danet.core.console import console, output, result_table
from danet.core.provenance import PACKAGE_ROOT
from danet.core.text import number, signed

if TYPE_CHECKING:
    from danet.evaluation.verify import VerifiedRow

app = typer.Typer()


@app.command()
def train(
    row: RowName,
    device: Device = None,
    workspace: Root = Path(),
    no_mlflow: NoMlflow = False,
) -> None:
    """Train a row (all its seeds) outside DVC; resumes where it was stopped.

    With several GPUs: torchrun --nproc-per-node N -m danet.cli train ROW.
    """
    from danet.results.tracking import log, run
    from danet.training.train import train_row

    space = Workspace(workspace)
    chosen = space.params().row(row)
    train_row(chosen, space, tracker_factory=None if no_mlflow else run, device=device)
    if not no_mlflow:
        log([chosen], space)


@app.command()
def evaluate(
    row: RowName,
    weights: Annotated[
        Path | None,
        typer.Option(help="Evaluate this file (trained, imported or released) instead.", show_default=False),
    ] = None,
    device: Device = None,
    workspace: Root = Path(),
    no_mlflow: NoMlflow = False,
) -> None:
    """Evaluate a row's trained weights by its source's testing protocol."""
    from danet.evaluation.evaluate import evaluate_row
    from danet.results.tracking import log

    space = Workspace(workspace)
    chosen = space.params().row(row)
    evaluate_row(chosen, space, weights=weights, device=device)
    if weights is None and not no_mlflow:
        log([chosen], space)


@app.command()
def verify(
    row: Annotated[
        str | None, typer.Argument(metavar="[ROW]", help="A row's name, as `danet rows` prints it; or --all.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every row with published numbers, one after the other.")
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The released file (as it is, or imported) instead of fetching the one that params.yaml names.",
            show_default=False,
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="With --all: also what was measured before with the same weights and data.")
    ] = False,
    device: Device = None,
    workspace: Root = Path(),
    no_mlflow: NoMlflow = False,
) -> None:
    """Check a published number: evaluate the weights that were released with it, by its source's protocol.

    The weights are fetched if need be; the data set must be prepared (dvc repro convert@DATASET). With --all, rows that
    lack weights or data are skipped, each with its reason. The tables show the result as "Released weights".
    """
    from danet.core.errors import ConfigError
    from danet.evaluation.verify import VerifiedRow, verify_all, verify_row
    from danet.results.tracking import log

    space = Workspace(workspace)
    if every == (row is not None) or (every and weights is not None):
        raise ConfigError("give either one ROW (with --weights FILE if you like) or --all")
    if row is not None:
        chosen = space.params().row(row)
        result = verify_row(chosen, space, weights=weights, device=device)
        if not no_mlflow:
            log([chosen], space)
        _print_verified([VerifiedRow(row, "measured", metrics=result.metrics)], space.params().bands.released)
        return
    results = verify_all(
        space,
        device=device,
        again=again,
        report=lambda one, done, count: (
            None if one.state == "skipped" else console.print(f"{done}/{count} {one.row}: {one.state}", markup=False)
        ),
    )
    if not no_mlflow:
        log([space.params().row(one.row) for one in results if one.state == "measured"], space)
    _print_verified(results, space.params().bands.released)
    if any(result.state == "failed" for result in results):  # it had weights and data
        raise typer.Exit(2)


def _print_verified(results: Sequence[VerifiedRow], band: float) -> None:
    from danet.config.published import published
    from danet.results.verdict import agreement

    numbers = ("published", "released weights", "difference", "verdict", "published ms+flip", "measured", "verdict")
    shown = result_table("row", *numbers, left=("row", "verdict"))
    measured = [each for each in results if each.metrics is not None]
    for each in measured:
        assert each.metrics is not None
        cells: list[str] = []
        for there, here in (
            (published(each.row).released_miou, each.metrics.miou),
            (published(each.row).miou_ms_flip, each.metrics.miou_ms_flip),
        ):
            gap = None if there is None or here is None else here - there
            cells += [number(there), number(here), signed(gap), agreement(here, there, band) or "-"]
        shown.add_row(each.row, *cells[:6], cells[7])
    wide = output(160)
    if measured:
        wide.print(shown)
    if not results:
        wide.print("No row here has published numbers or released weights; give a ROW and --weights FILE.")
        return
    reasons: dict[tuple[str, str], list[str]] = {}
    for each in results:
        if each.state in ("skipped", "failed"):
            # a reason names the row's own files and commands: without its name many are equal
            reasons.setdefault((each.state, each.reason.replace(each.row, "ROW")), []).append(each.row)
    for (state, reason), rows in reasons.items():
        if len(rows) == 1:
            wide.print(f"{state} {rows[0]}: {reason.replace('ROW', rows[0])}", markup=False)
        else:
            wide.print(f"{state} {len(rows)} rows: {reason}", markup=False)
            wide.print(f"  {', '.join(rows)}", markup=False, style="dim")
    others = {state: sum(each.state == state for each in results) for state in ("skipped", "failed")}
    wide.print(
        f"{len(measured)} of {len(results)} rows verified (mIoU in percent)"
        + "".join(f", {count} {state}" for state, count in others.items() if count)
    )


@app.command()
def reproduce(
    report: Annotated[Path, typer.Argument(metavar="REPORT.json", help="A table as data: reports/tables/NAME.json.")],
    row: RowName,
    train: Annotated[
        bool, typer.Option("--train", help="train the reported seeds again, in build/reproduce, instead of evaluating.")
    ] = False,
    device: Device = None,
    workspace: Root = Path(),
) -> None:
    """Run a row of a table's JSON again, ours or a colleague's, and say whether it agrees (exit code 1: it does not).

    By default the row's trained weights are evaluated again. With the weights of the report, the numbers must agree
    within bands.released; otherwise within the dataset's band.
    """
    from danet.cli.reproduce import check_row

    check = check_row(report, row, Workspace(workspace), train=train, device=device)
    typer.echo(check)
    if not check.agrees:
        raise typer.Exit(1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def sweep(context: typer.Context) -> None:
    """Train and evaluate many rows side by side: on this machine's GPUs, or with --slurm on a cluster."""
    # the orchestration lies beside the stages, above this library
    command = [sys.executable, "-m", "pipelines.sweep", *context.args]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")])}
    os.execve(sys.executable, command, environment)  # noqa: S606 - in its place, so that it gets Ctrl-C itself
