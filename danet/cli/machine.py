"""``danet doctor``, ``flops``, ``sync`` and ``open``: what this machine has, what a row costs, what MLflow shows."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from danet.cli.options import Root
from danet.config.workspace import Workspace
from danet.core.console import output, print_columns

app = typer.Typer()


@app.command()
def doctor(workspace: Root = Path()) -> None:
    """Check Python, torch, GPU, disk, datasets and credentials: which rows can run here, and what the others need."""
    from danet.cli.doctor import examine

    examine(Workspace(workspace))


@app.command("flops")
def flops_command(
    row: Annotated[str | None, typer.Argument(metavar="[ROW]", help="Only this row (default: all).")] = None,
    workspace: Root = Path(),
) -> None:
    """Count parameters and the operations of a forward pass, at the crop and for a test image; computes nothing.

    A multiplication and an addition are two operations; convolutions and matrix
    products count, with the heads that only training uses; position attention as
    the explicit map. R-50 D8: 0.44 TFLOP at 512x512, 4.6 at 1024x2048.
    """
    from danet.evaluation.flops import count_row, size_text

    params = Workspace(workspace).params()
    counted = [count_row(each, params) for each in ([params.row(row)] if row else params.rows.values())]
    columns = {
        "row": [each.row for each in counted],
        "parameters": [f"{each.parameters / 1e6:.1f} M" for each in counted],
        "crop_tflop": [f"{each.crop_flop / 1e12:.3f}" for each in counted],
        "test_tflop": [f"{each.test_flop / 1e12:.3f}" for each in counted],
        "crop": [size_text(each.crop) for each in counted],
        "image": [size_text(each.image) for each in counted],
        "input": [size_text(each.input) for each in counted],
        "passes": [str(each.passes) for each in counted],
    }
    print_columns(output(), columns, left=["row"])


@app.command()
def sync(workspace: Root = Path()) -> None:
    """Make MLflow say what the metrics files say, however often: after it could not be reached, for instance."""
    from danet.results.tracking import send

    space = Workspace(workspace)
    sent = send(space.params().rows.values(), space)
    for row, runs in sent.items():
        typer.echo(f"{row}: {runs} runs written" if runs else f"{row}: nothing was missing")
    if not sent:
        typer.echo("no row has metrics files of its settings")


@app.command(name="open")
def open_(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="Whose runs to show (default: those of the newest run).")
    ] = None,
    port: Annotated[int, typer.Option(help="For the pages, where no server is named by MLFLOW_TRACKING_URI.")] = 5000,
    workspace: Root = Path(),
) -> None:
    """Print the address where published, measured, difference and verdict are columns, and serve it until Ctrl-C.

    Where MLFLOW_TRACKING_URI names a server, that one's address is printed.
    """
    from danet.results.mlflow_store import address, tracking_uri

    space = Workspace(workspace)
    uri = tracking_uri(space)
    if uri.startswith("http"):
        typer.echo(address(space, table, uri))
        return
    typer.echo(f"{address(space, table, f'http://127.0.0.1:{port}')} (once Uvicorn is running; Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
    # in a session of its own: Uvicorn answers the terminal's Ctrl-C with a traceback, and SIGTERM without
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    server = subprocess.Popen(command, start_new_session=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
