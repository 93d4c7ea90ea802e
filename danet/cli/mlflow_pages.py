"""``danet open``: MLflow's own pages, at the address where a row's numbers are columns."""

from __future__ import annotations

import contextlib
import http.client
import shlex
import socket
import subprocess
import sys
import time
import webbrowser

import typer

from danet.config.workspace import Workspace
from danet.core.console import console
from danet.core.errors import ConfigError, DanetError
from danet.results.mlflow_store import address, connect, tracking_uri
from danet.results.tracking import experiment_name

START_SECONDS = 60


def show(workspace: Workspace, table: str | None, port: int, browser: bool) -> None:
    """Prints the address, opens it, and serves it until Ctrl-C where no server does.

    Raises:
        ConfigError: if there is no such table, or it has no runs yet.
        DanetError: if the pages cannot be served.
    """
    uri = tracking_uri(workspace)
    experiment = _experiment(workspace, uri, table)
    if uri.startswith("http"):
        _point_to(address(experiment, uri), browser)
        return
    host = f"http://127.0.0.1:{port}"
    with contextlib.closing(socket.socket()) as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ConfigError(f"{host}: something else listens there; choose another with --port")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port), "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait(server, command, port)
            _point_to(address(experiment, host), browser)
            console.print("Ctrl-C ends it.")
            server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            server.terminate()


def _experiment(workspace: Workspace, uri: str, table: str | None) -> str:
    params, client = workspace.params(), connect(uri)
    if table is not None and table not in params.tables:
        raise ConfigError(f"{table}: no such table in {params.path}; there are {', '.join(params.tables)}")
    wanted = f"name = '{experiment_name(table, params)}'" if table else "name LIKE 'danet / %'"
    known = [found.experiment_id for found in client.search_experiments(filter_string=wanted)]
    runs = client.search_runs(known, order_by=["attributes.start_time DESC"], max_results=1) if known else []
    if not runs:
        raise ConfigError(f"{uri}: has no runs of {table or 'any table'}; `danet sync` sends the metrics files at hand")
    return str(runs[0].info.experiment_id)


def _point_to(page: str, browser: bool) -> None:
    typer.echo(page)
    if browser:
        webbrowser.open(page)


def _wait(server: subprocess.Popen[bytes], command: list[str], port: int) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            http.client.HTTPConnection("127.0.0.1", port, timeout=1).request("GET", "/health")
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise DanetError(f"MLflow's pages did not start; `{shlex.join(command)}` says why")
