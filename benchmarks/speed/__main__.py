"""``python -m benchmarks.speed time [ROW]``; ``make benchmark`` runs it without a row, on the standing grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.speed import cost_page
from benchmarks.speed.cases import SUBJECTS, row_cases, shapes
from benchmarks.speed.page import finish
from benchmarks.speed.results import write
from benchmarks.speed.rounds import peer_command, run
from danet.config.workspace import Workspace
from danet.core.console import report_errors
from danet.core.errors import ConfigError
from danet.evaluation.flops import size_text

app = typer.Typer(
    pretty_exceptions_enable=False, add_completion=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.callback()
def speed() -> None:
    """Speed beside mmsegmentation's."""


@app.command("time")
def time_command(
    row: Annotated[
        str | None,
        typer.Argument(metavar="ROW", help="Whose shapes (default: the standing grid, on a CPU a part of it)."),
    ] = None,
    what: Annotated[str, typer.Option(help=f"Of {', '.join(SUBJECTS)}; commas.")] = ",".join(SUBJECTS[:4]),
    only: Annotated[
        str | None, typer.Option(help="Network and size in the grid: 'R-50 D8 512x1024'.", show_default=False)
    ] = None,
    repeat: Annotated[
        int | None, typer.Option(min=1, help="Rounds (default: 5 on a CPU, 20 or 40 on a GPU).", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder (default: reports/benchmarks).", show_default=False)] = None,
) -> None:
    """Time training, prediction, attention and metric: our reference and fast paths and mmsegmentation, in turns.

    On the GPU if there is one, else (or with CUDA_VISIBLE_DEVICES empty) on the CPU. Writes CSV files, plots and a
    page, and reports/cost.md from them. Give it a machine that does nothing else.
    """
    space = Workspace()
    subjects = what.split(",")
    if unknown := set(subjects) - {*SUBJECTS}:
        raise ConfigError(f"--what {sorted(unknown)[0]!r} is unknown; allowed: {', '.join(SUBJECTS)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    params = space.params()
    chosen = params.row(row) if row else None
    cases = row_cases(chosen, params, subjects) if chosen else shapes(device, subjects)
    cases = [case for case in cases if only in (None, f"{case.network} {size_text(case.size)}")]
    if not cases:
        raise ConfigError(f"--only {only}: there is nothing to measure, as no case has this network and size")
    folder = out or space.reports() / "benchmarks"
    written: list[Path] = []
    # after every turn, so that what ends a long run loses no more than one
    for measured, peaks, facts in run(
        cases,
        device,
        repeat=repeat,
        peer=peer_command(typer.echo),
        own=chosen.numerics if chosen else None,
        say=typer.echo,
    ):
        written = write(folder, measured, peaks, facts, chosen.name if chosen else "")
    finish(folder)
    for path in [*written, folder / "README.md", *([cost_page.write(space)] if out is None else [])]:
        typer.echo(path)


if __name__ == "__main__":
    with report_errors():
        app(prog_name="python -m benchmarks.speed")
