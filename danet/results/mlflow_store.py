"""An MLflow store: made, found again after a move, and written to in few requests.

Without ``MLFLOW_TRACKING_URI`` it is ``mlflow.db`` with artifacts in ``mlruns/``, both in the workspace, which is where
a plain ``mlflow ui`` looks.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import re
import socket
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from filelock import FileLock

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import DanetError
from danet.results.identity import flat

MAX_METRICS, MAX_PARAMS = 1000, 100
"""MLflow's limits for one ``log_batch``."""
TIMEOUT_SECONDS = 10
ALL_SEEDS, RELEASED = "all", "released"
"""In place of a seed: of a row's run, and of the run of its released weights."""

VIEW = "danet"
"""Name of the view of an experiment that opens with a row's numbers as columns, its seeds folded away below it."""
_NAME = "attributes.`Run Name`"
_COLUMNS = (
    *(f"metrics.`{name}`" for name in ("miou", "miou_sd", "miou_published", "miou_difference", "miou_ms_flip")),
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
            "columnWidths": {_NAME: 340} | dict.fromkeys(_COLUMNS, 120),
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


@dataclass(frozen=True)
class Point:
    """A value of a metric."""

    key: str
    value: float
    time: int
    """Milliseconds since 1970."""
    step: int


class Store:
    """An MLflow store, and the few things that are asked of it."""

    def __init__(self, workspace: Workspace) -> None:
        self.uri = tracking_uri(workspace)
        self.client = connect(self.uri)
        # A server keeps artifacts where it was told to; a bare database needs to know where from here.
        database = _database(self.uri)
        beside = database.parent if database else workspace.root
        self.artifacts = None if self.uri.startswith("http") else (beside.resolve() / "mlruns").as_uri()
        self.sent = 0
        """Values that the store lacked."""

    def experiment(self, name: str) -> str:
        """Its id; it is made if need be, with the view that shows a row's numbers."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, self.artifacts, EXPERIMENT_TAGS))
            except Exception:  # made by another process in between: only then is it there now
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        for key, value in EXPERIMENT_TAGS.items():
            if found.tags.get(key) != value:
                self.client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def open(
        self,
        experiment: str,
        row: Row,
        seed: str,
        key: str,
        *,
        began: int,
        parent: Any = None,
        weights: str | None = None,
    ) -> Any:
        """The newest run of a seed that is of these weights, or of none that are known; otherwise a new one."""
        query = f"tags.row = '{row.name}' and tags.seed = '{seed}' and tags.identity = '{key}'"
        runs = self.client.search_runs([experiment], query, order_by=["attributes.start_time DESC"], max_results=100)
        found = next((run for run in runs if run.data.tags.get("weights_sha256") in (None, weights)), None)
        tags = {"mlflow.source.name": "danet", "mlflow.source.type": "LOCAL"}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent.info.run_id
        if found is None:
            name = row.name if seed == ALL_SEEDS else f"{row.name} {seed if seed == RELEASED else f'seed {seed}'}"
            tags |= {"row": row.name, "seed": seed, "identity": key}
            found = self.client.create_run(experiment, start_time=began, tags=tags, run_name=name)
        self.tags(found, tags)
        self.params(found, flat(row.model_dump(mode="json", exclude={"name", "seeds", "notes", "protocol"})))
        return found

    def steps(self, run: Any) -> set[int]:
        """Iterations of training that a run has. All values of one are sent together."""
        if "train/loss" not in run.data.metrics:
            return set()
        return {point.step for point in self.client.get_metric_history(run.info.run_id, "train/loss")}

    def metrics(self, run_id: str, points: Sequence[Point]) -> None:
        """Logs metrics; those of one iteration are never parted."""
        from mlflow.entities import Metric

        batch: list[Any] = []
        for _, same in itertools.groupby(points, key=lambda point: point.step):
            group = [Metric(point.key, point.value, point.time, point.step) for point in same]
            if len(batch) + len(group) > MAX_METRICS:
                self.client.log_batch(run_id, metrics=batch, synchronous=True)
                batch = []
            batch += group
        if batch:
            self.client.log_batch(run_id, metrics=batch, synchronous=True)
        self.sent += len(points)

    @staticmethod
    def corrections(run: Any, values: Mapping[str, float], end: int, step: int, gone: Sequence[str]) -> list[Point]:
        """What a run's metrics must be given to show these values, and NaN for those of ``gone`` that have none.

        Of one step MLflow shows the latest value, and of one moment the largest, so a correction is of now.
        """
        known, now = run.data.metrics, max(end, int(time.time() * 1000))
        lost = {name: math.nan for name in gone if name not in values and not math.isnan(known.get(name, math.nan))}
        return [
            Point(name, value, now if name in known else end, step)
            for name, value in {**values, **lost}.items()
            if known.get(name) != value
        ]

    def untag(self, run: Any, names: Iterable[str]) -> None:
        """Takes tags away."""
        for name in names:
            if name in run.data.tags:
                self.client.delete_tag(run.info.run_id, name)
                self.sent += 1

    def params(self, run: Any, values: Mapping[str, Any]) -> None:
        """Logs parameters; one that has another value, which MLflow refuses to change, as a tag."""
        from mlflow.entities import Param

        known = run.data.params
        new = [Param(key, str(value)) for key, value in values.items() if key not in known]
        for start in range(0, len(new), MAX_PARAMS):
            self.client.log_batch(run.info.run_id, params=new[start : start + MAX_PARAMS])
        self.sent += len(new)
        self.tags(
            run, {f"now.{key}": value for key, value in values.items() if known.get(key, str(value)) != str(value)}
        )

    def tags(self, run: Any, values: Mapping[str, Any]) -> None:
        """Sets the tags that a run does not have with these values."""
        from mlflow.entities import RunTag

        new = [RunTag(key, str(value)) for key, value in values.items() if run.data.tags.get(key) != str(value)]
        if new:
            self.client.log_batch(run.info.run_id, tags=new)
        self.sent += len(new)

    def data_set(self, run_id: str, row: Row, manifest_hash: str) -> None:
        """Logs the prepared data set of a run; MLflow keeps it once, and 36 digits of the hash."""
        from mlflow.entities import Dataset, DatasetInput

        if manifest_hash:
            source = json.dumps({"uri": f"data/prepared/{row.dataset}", "manifest_sha256": manifest_hash})
            data = Dataset(row.dataset, manifest_hash[:36], "local", source)
            self.client.log_inputs(run_id, datasets=[DatasetInput(data, [])])


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
