"""``danet train``, ``evaluate``, ``verify``, ``reproduce``, ``sweep``: what makes a number."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from danet.cli.options import Device, Root, RowName
from danet.config.workspace import Workspace
from danet.core.console import console, output, print_columns
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
) -> None:
    """Train a row (all its seeds) outside DVC; resumes where it was stopped.

    With several GPUs: torchrun --nproc-per-node N -m danet.cli train ROW.
    """
    from danet.results.tracking import log, run
    from danet.training.train import train_row

    space = Workspace(workspace)
    chosen = space.params().row(row)
    train_row(chosen, space, tracker_factory=run, device=device)
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
) -> None:
    """Evaluate a row's trained weights by its source's testing protocol."""
    from danet.evaluation.evaluate import evaluate_row
    from danet.results.tracking import log

    space = Workspace(workspace)
    chosen = space.params().row(row)
    evaluate_row(chosen, space, weights=weights, device=device)
    if weights is None:
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
    device: Device = None,
    workspace: Root = Path(),
) -> None:
    """Check a published number: evaluate the weights that were released with it, by its source's protocol.

    The weights are fetched if need be; the data set must be prepared (dvc repro
    convert@DATASET). With --all, rows that lack weights or data are skipped, each
    with its reason. The tables show the result as "Released weights".
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
        log([chosen], space)
        _print_verified([VerifiedRow(row, "measured", metrics=result.means)], space.params().bands.released)
        return
    results = verify_all(
        space,
        device=device,
        report=lambda one, done, count: (
            None if one.state == "skipped" else console.print(f"{done}/{count} {one.row}: {one.state}", markup=False)
        ),
    )
    log([space.params().row(one.row) for one in results if one.state == "measured"], space)
    _print_verified(results, space.params().bands.released)
    if any(result.state == "failed" for result in results):  # it had weights and data
        raise typer.Exit(2)


def _print_verified(results: Sequence[VerifiedRow], band: float) -> None:
    from danet.config.published import published
    from danet.results.verdict import agreement

    columns: dict[str, list[str]] = {}
    for each in results:
        if each.metrics is None:
            continue
        known, found = published(each.row), each.metrics
        columns.setdefault("row", []).append(each.row)
        for suffix, there, here in (
            ("", known.released_miou, found.miou),
            (" ms+flip", known.miou_ms_flip, found.miou_ms_flip),
        ):
            gap = None if there is None or here is None else here - there
            cells = {"published": number(there), "here": number(here), "difference": signed(gap)}
            cells["verdict"] = agreement(here, there, band).partition(" ")[0] or "-"
            for title, cell in cells.items():
                columns.setdefault(title + suffix, []).append(cell)
    wide = output()
    if columns:
        print_columns(wide, columns, left=("row", "verdict", "verdict ms+flip"))
    reasons: dict[str, list[str]] = {}
    for each in results:
        if each.state in ("skipped", "failed"):
            # a reason names the row's own files and commands: without its name many are equal
            reasons.setdefault(f"{each.state}: {each.reason.replace(each.row, 'ROW')}", []).append(each.row)
    for reason, rows in reasons.items():
        wide.print(reason, markup=False, soft_wrap=True)
        wide.print(f"  {', '.join(rows)}", markup=False, style="dim", soft_wrap=True)
    count = Counter("verified" if each.metrics else each.state for each in results)
    others = "".join(f", {count[state]} {state}" for state in ("skipped", "failed") if count[state])
    wide.print(f"{count['verified']} of {len(results)} rows verified{others} (mIoU in percent)")


@app.command()
def reproduce(
    report: Annotated[Path, typer.Argument(metavar="REPORT.json", help="A table as data: reports/tables/NAME.json.")],
    row: RowName,
    device: Device = None,
    workspace: Root = Path(),
) -> None:
    """Evaluate a row of a table's JSON again, ours or a colleague's: does it agree? (Exit code 1: it does not.)

    With the weights of the report, the numbers must agree within bands.released;
    with others in models/ROW, trained here for instance, within the dataset's
    band.
    """
    from danet.cli.reproduce import check_row

    check = check_row(report, row, Workspace(workspace), device=device)
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
