"""An MLflow store: made, found again after a move, and opened with a row's numbers as columns.

Without ``MLFLOW_TRACKING_URI`` it is ``mlflow.db`` with artifacts in ``mlruns/``, both in the workspace, which is where
a plain ``mlflow ui`` looks.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from danet.config.params import Params
from danet.config.workspace import Workspace
from danet.core.errors import ConfigError

VIEW = "danet"
"""Name of the view of an experiment that opens with a row's numbers as columns, its seeds folded away below it."""
_NAME = "attributes.`Run Name`"
_COLUMNS = (
    *(f"metrics.`{name}`" for name in ("miou", "miou_published", "miou_difference", "miou_sd", "miou_ms_flip")),
    *(f"tags.`{name}`" for name in ("verdict", "hardware")),
    "attributes.`Duration`",
    "attributes.`Created`",
)
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # else the page opens with "Traces", which are empty
    # MLflow's own pages write it compressed and read it plain too
    f"mlflow.sharedViewState.{VIEW}": json.dumps(
        # in any other order MLflow does not nest runs
        {
            "selectedColumns": _COLUMNS,
            "columnOrder": [_NAME, *_COLUMNS],
            "columnWidths": {_NAME: 300} | dict.fromkeys(_COLUMNS, 110),
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
        }
    ),
}
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for a command's result
    "MLFLOW_DISABLE_TELEMETRY": "true",  # training runs where nothing outside may be called
}


def tracking_uri(workspace: Workspace) -> str:
    """``MLFLOW_TRACKING_URI`` if set, else the workspace's own SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.root.resolve() / 'mlflow.db'}"


def _database(workspace: Workspace) -> Path | None:
    """The file of an SQLite store."""
    kind, _, path = tracking_uri(workspace).partition(":///")
    return Path(path) if kind == "sqlite" else None


def connect(workspace: Workspace) -> Any:
    """An ``MlflowClient`` with the store's tables made, quietly and by one process at a time.

    Raises:
        Exception: whatever MLflow, SQLite or the network says when the store cannot be reached.
    """
    for key, value in _DEFAULTS.items():
        os.environ.setdefault(key, value)
    uri = tracking_uri(workspace)
    if (path := _database(workspace)) is None:
        return _new_client(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that both find an empty database crash in its migrations; the second waits here.
    with FileLock(f"{path}.lock", timeout=60):
        client = _new_client(uri)
        _relocate(path)
        return client


def _new_client(uri: str) -> Any:
    # MLflow takes a second to import, and commands that track nothing should not wait for it
    from mlflow import MlflowClient

    # what it reports is said here in one line
    for name, level in {"alembic": logging.WARNING, "mlflow": logging.CRITICAL, "urllib3": logging.ERROR}.items():
        logging.getLogger(name).setLevel(level)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _relocate(path: Path) -> None:
    """Points at the artifacts beside the database, after both were moved: MLflow keeps absolute paths of them."""
    here = (path.parent.resolve() / "mlruns").as_uri()
    ours = (
        "SELECT DISTINCT artifact_location FROM experiments "
        "WHERE name LIKE 'danet / %' AND artifact_location LIKE 'file:%/mlruns' AND artifact_location != ?"
    )
    with closing(sqlite3.connect(path)) as connection, connection:
        for (old,) in connection.execute(ours, (here,)).fetchall():
            connection.execute("UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (here, old))
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?",
                (here, len(old) + 1, len(old) + 1, f"{old}/"),
            )


def _experiment_name(table: str, params: Params) -> str:
    return f"danet / {params.tables[table].title}"


def experiment(client: Any, workspace: Workspace, table: str) -> str:
    """The id of a table's experiment; it is made if need be, with the view that shows a row's numbers."""
    name = _experiment_name(table, workspace.params())
    if (found := client.get_experiment_by_name(name)) is None:
        # A server keeps artifacts where it was told to; a bare database needs to know where from here.
        beside = (_database(workspace) or workspace.root / "mlflow.db").resolve().parent
        artifacts = None if tracking_uri(workspace).startswith("http") else (beside / "mlruns").as_uri()
        try:
            return str(client.create_experiment(name, artifacts, EXPERIMENT_TAGS))
        except Exception:  # made by another process in between: only then is it there now
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    return str(found.experiment_id)


def address(workspace: Workspace, table: str | None, host: str) -> str:
    """Where a browser finds a table's numbers, each in its column; by default those of the newest run.

    Raises:
        ConfigError: if there is no such table, or it has no runs yet.
    """
    params, client = workspace.params(), connect(workspace)
    if table is not None:
        params.table_rows(table)
    wanted = f"name = '{_experiment_name(table, params)}'" if table else "name LIKE 'danet / %'"
    known = [found.experiment_id for found in client.search_experiments(filter_string=wanted)]
    runs = client.search_runs(known, order_by=["attributes.start_time DESC"], max_results=1) if known else []
    if not runs:
        raise ConfigError(f"MLflow has no runs of {table or 'any table'}; `danet sync` sends the metrics files at hand")
    query = f"workflowType=machine_learning&viewStateShareKey={quote(VIEW)}"
    return f"{host.rstrip('/')}/#/experiments/{runs[0].info.experiment_id}/runs?{query}"
