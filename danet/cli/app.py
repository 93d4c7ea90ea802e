"""The ``danet`` command. Each command is a thin wrapper of a library function and imports it only when called."""

from __future__ import annotations

from typing import Annotated

import typer

from danet import __version__
from danet.cli import look, machine, rows, run, weights
from danet.core.console import console, report_errors

app = typer.Typer(
    name="danet",
    help=(
        "Do DANet's published mIoU numbers hold, and what do they cost?\n\n"
        "The full sweep is [bold]dvc repro[/]; these commands run single parts of it by hand. "
        "Start with [bold]danet doctor[/] (what can run here) and [bold]danet rows[/] (what there is)."
    ),
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (rows, run, weights, look, machine):
    app.add_typer(group.app)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"danet {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of ``danet`` and ``python -m danet.cli``."""
    with report_errors():
        try:
            app()
        except SystemExit as stop:
            if stop.code == 130:  # Ctrl-C, of which Typer says nothing
                console.print("stopped by the keyboard")
            raise
