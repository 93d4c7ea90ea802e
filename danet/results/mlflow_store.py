"""An MLflow store: made, found again after a move, and opened with a row's numbers as columns.

Without ``MLFLOW_TRACKING_URI`` it is ``mlflow.db`` with artifacts in ``mlruns/``, both in the workspace, which is where
a plain ``mlflow ui`` looks.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from filelock import FileLock

from danet.config.workspace import Workspace
from danet.core.errors import DanetError

TIMEOUT_SECONDS = 10
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
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TIMEOUT_SECONDS),
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for a command's result
    "MLFLOW_DISABLE_TELEMETRY": "true",  # training runs where nothing outside may be called
}


def tracking_uri(workspace: Workspace) -> str:
    """``MLFLOW_TRACKING_URI`` if set, else the workspace's own SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.root.resolve() / 'mlflow.db'}"


def address(experiment: str, host: str) -> str:
    """Where a browser finds an experiment's numbers, each in its column."""
    query = f"workflowType=machine_learning&viewStateShareKey={quote(VIEW)}"
    return f"{host.rstrip('/')}/#/experiments/{experiment}/runs?{query}"


def experiment(client: Any, workspace: Workspace, name: str) -> str:
    """The id of an experiment; it is made if need be, with the view that shows a row's numbers."""
    if (found := client.get_experiment_by_name(name)) is None:
        # A server keeps artifacts where it was told to; a bare database needs to know where from here.
        uri = tracking_uri(workspace)
        database = _database(uri)
        beside = database.parent if database else workspace.root
        artifacts = None if uri.startswith("http") else (beside.resolve() / "mlruns").as_uri()
        try:
            return str(client.create_experiment(name, artifacts, EXPERIMENT_TAGS))
        except Exception:  # made by another process in between: only then is it there now
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    return str(found.experiment_id)


def connect(uri: str) -> Any:
    """An ``MlflowClient`` with the store's tables made, quietly and by one process at a time.

    Raises:
        Exception: whatever MLflow, SQLite or the network says when the store cannot be reached. Unlike MLflow's own
            retries (100 s), this is known in about ten seconds.
    """
    for key, value in _DEFAULTS.items():
        os.environ.setdefault(key, value)
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme in {"", "file"} or re.fullmatch("[a-zA-Z]", scheme):
        raise DanetError(
            "MLflow has no file store any more; give a database (sqlite:///mlflow.db) or a server (http://...)"
        )
    if path := _database(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that both find an empty database crash in its migrations; the second waits here.
        with FileLock(f"{path}.lock", timeout=60):
            with closing(sqlite3.connect(path, timeout=TIMEOUT_SECONDS)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
            client = _new_client(uri)
            _relocate(path)
            return client
    if scheme not in {"http", "https"} and parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_SECONDS).close()
    return _new_client(uri)


def _database(uri: str) -> Path | None:
    """The file of an SQLite store."""
    return Path(uri.partition(":///")[2]) if uri.startswith("sqlite") else None


def _relocate(path: Path) -> None:
    """Points at the artifacts beside the database, after both were moved: MLflow keeps absolute paths of them."""
    here = (path.parent.resolve() / "mlruns").as_uri()
    ours = (
        "SELECT DISTINCT artifact_location FROM experiments "
        "WHERE name LIKE 'danet / %' AND artifact_location LIKE 'file:%/mlruns' AND artifact_location != ?"
    )
    with closing(sqlite3.connect(path, timeout=TIMEOUT_SECONDS)) as connection, connection:
        for (old,) in connection.execute(ours, (here,)).fetchall():
            connection.execute("UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (here, old))
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?",
                (here, len(old) + 1, len(old) + 1, f"{old}/"),
            )


def _new_client(uri: str) -> Any:
    # MLflow takes a second to import, and commands that track nothing should not wait for it
    from mlflow import MlflowClient

    for name, level in {
        "alembic": logging.WARNING,
        "mlflow": logging.ERROR,
        "mlflow.store.db.utils": logging.CRITICAL,  # it prints a traceback for what is reported here in one line
        "urllib3.connectionpool": logging.ERROR,
    }.items():
        logging.getLogger(name).setLevel(level)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)
