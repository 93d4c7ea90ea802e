"""``python -m benchmarks.speed ROW`` or ``--all-shapes``; ``make benchmark`` runs the standing grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.speed.cases import SUBJECTS, row_cases, shapes
from benchmarks.speed.profile import profile
from benchmarks.speed.run import benchmark as measure
from danet.cli.options import Device, Root, RowName
from danet.config.workspace import Workspace
from danet.core.console import report_errors
from danet.core.errors import ConfigError
from danet.evaluation import cost
from danet.evaluation.flops import size_text

app = typer.Typer(
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("time")
def time_command(
    row: Annotated[str | None, typer.Argument(metavar="[ROW]", help="A row's shapes; or --all-shapes.")] = None,
    all_shapes: Annotated[
        bool, typer.Option("--all-shapes", help="The standing grid of networks and sizes (on a CPU a part of it).")
    ] = False,
    what: Annotated[str, typer.Option(help="Of infer, train, attention, confusion; commas.")] = (
        "infer,train,attention,confusion"
    ),
    network: Annotated[
        list[str] | None, typer.Option(help="With --all-shapes: only this one, such as 'R-50 D8'.", show_default=False)
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="With --all-shapes: only this one, such as 512x1024.", show_default=False)
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds (a GPU predicts 200 images, as published).")] = 5,
    batch: Annotated[int | None, typer.Option(min=1, help="Images of a training step.", show_default=False)] = None,
    peer: Annotated[bool, typer.Option("--peer/--no-peer", help="Time mmsegmentation too.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder (default: reports/benchmarks).", show_default=False)] = None,
    device: Device = None,
    workspace: Root = Path(),
) -> None:
    """Time training, prediction, attention and metric: our reference and fast paths and mmsegmentation, in turns.

    Writes CSV files, plots and a page, and reports/cost.md from them. Give it a machine that does nothing else.
    """
    space = Workspace(workspace)
    subjects = what.split(",")
    if unknown := set(subjects) - {*SUBJECTS}:
        raise ConfigError(f"--what {sorted(unknown)[0]!r} is unknown; allowed: {', '.join(SUBJECTS)}")
    if all_shapes == (row is not None):
        raise ConfigError("give either a ROW or --all-shapes")
    params = space.params()
    chosen = params.row(row) if row else None
    cases = row_cases(chosen, params, subjects, batch) if chosen else shapes(device or "", subjects)
    cases = [c for c in cases if (not network or c.network in network) and (not size or size_text(c.size) in size)]
    folder = out or space.reports() / "benchmarks"
    written = measure(
        cases,
        folder,
        device=device,
        repeat=repeat,
        with_peer=peer,
        own=chosen.numerics if chosen else None,
        prefix=chosen.name if chosen else "",
        say=typer.echo,
    )
    for path in [*written, folder / "README.md", *([cost.write(space)] if out is None else [])]:
        typer.echo(path)


@app.command("profile")
def profile_command(
    row: RowName,
    out: Annotated[Path | None, typer.Option(help="Folder (default: build/profile/ROW).", show_default=False)] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are profiled.")] = 2,
    device: Device = None,
    workspace: Root = Path(),
) -> None:
    """Profile a row's training step and prediction: traces for Perfetto, and one page on where the time goes."""
    space = Workspace(workspace)
    params = space.params()
    folder = out or space.root / "build" / "profile" / row
    typer.echo(profile(params.row(row), params, folder, device=device, steps=steps))


if __name__ == "__main__":
    with report_errors():
        app(prog_name="python -m benchmarks.speed")
