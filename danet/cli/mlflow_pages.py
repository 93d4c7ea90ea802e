"""``danet open``: MLflow's own pages, at the address where a row's numbers are columns."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import typer

from danet.config.workspace import Workspace
from danet.core.errors import ConfigError
from danet.results.mlflow_store import address, connect, tracking_uri
from danet.results.tracking import experiment_name


def show(workspace: Workspace, table: str | None, port: int) -> None:
    """Prints the address, and serves it until Ctrl-C where no server does.

    Raises:
        ConfigError: if there is no such table, or it has no runs yet.
    """
    uri = tracking_uri(workspace)
    experiment = _experiment(workspace, uri, table)
    if uri.startswith("http"):
        typer.echo(address(experiment, uri))
        return
    typer.echo(f"{address(experiment, f'http://127.0.0.1:{port}')} (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
    with contextlib.suppress(KeyboardInterrupt):
        subprocess.run(command, check=False)


def _experiment(workspace: Workspace, uri: str, table: str | None) -> str:
    params, client = workspace.params(), connect(uri)
    if table is not None:
        params.table_rows(table)
    wanted = f"name = '{experiment_name(table, params)}'" if table else "name LIKE 'danet / %'"
    known = [found.experiment_id for found in client.search_experiments(filter_string=wanted)]
    runs = client.search_runs(known, order_by=["attributes.start_time DESC"], max_results=1) if known else []
    if not runs:
        raise ConfigError(f"{uri}: has no runs of {table or 'any table'}; `danet sync` sends the metrics files at hand")
    return str(runs[0].info.experiment_id)
