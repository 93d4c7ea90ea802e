"""Runs in MLflow: one run per row and seed, shared by training and evaluation.

Training makes the run (or, after a stop, goes on with it); evaluation finds it by its tags and adds the final
metrics and pictures. Where MLflow cannot be reached, nothing fails: what was not sent is kept in
``<workspace>/mlflow-unsent/<row>-seed<k>.jsonl`` and sent by :func:`sync`, or by the row's next stage that reaches
MLflow. A step of a training metric is logged once, however often it is sent.

Without ``MLFLOW_TRACKING_URI`` the store is ``mlflow.db`` with artifacts in ``mlruns/``, both in the workspace,
which is where a plain ``mlflow ui`` looks.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import re
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol
from urllib.parse import urlsplit

import yaml
from filelock import FileLock
from rich.markup import escape

from danet.config.rows import Row
from danet.config.workspace import Workspace
from danet.core import provenance
from danet.core.console import console
from danet.core.errors import DanetError, Interrupted

Stage = Literal["train", "evaluate", "verify"]
Value = float | int | None
Steps = dict[str, set[int]]
"""Steps that are logged already, by metric."""

MAX_METRICS, MAX_PARAMS, MAX_TAGS = 1000, 100, 100
"""MLflow's limits for one ``log_batch``."""
FLUSH_METRICS, FLUSH_SECONDS = 500, 10.0
"""Buffered metrics are sent when there are so many, or when the last sending is so long ago."""
UNSENT = "mlflow-unsent"
SWEEP = "DANET_SWEEP"
"""Environment variable with the name of the sweep that a stage is part of; its run hangs under the sweep's."""
TIMEOUT_SECONDS = 10

_BAD_KEY = re.compile(r"[^\w./ -]")
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TIMEOUT_SECONDS),
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for a command's result
    "MLFLOW_DISABLE_TELEMETRY": "true",  # training runs where nothing outside may be called
}


class _Client(Protocol):
    """The part of ``MlflowClient`` that is used; MLflow itself is imported late and is not typed."""

    def __getattr__(self, name: str) -> Any: ...


def tracking_uri(workspace: Workspace) -> str:
    """``MLFLOW_TRACKING_URI`` if set, else the workspace's own SQLite file."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.root.resolve() / 'mlflow.db'}"


def flat_params(row: Row) -> dict[str, str]:
    """All settings of a resolved row as ``section.field`` strings: ``model.stem``, ``optimizer.lr``, ``test.mode``."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            flat[prefix] = str(value)

    dump = row.model_dump(mode="json")
    for name in ("seeds", "notes", "protocol"):  # of the row, not of this run; the protocol is in the description
        dump.pop(name)
    walk("", dump)
    return flat


def row_yaml(row: Row) -> str:
    """The resolved row as YAML, for people to read and for the artifact ``row.yaml``."""
    return yaml.safe_dump(row.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)


class Tracker:
    """What a stage logs to. Never raises because of MLflow; see :func:`run`, which makes it."""

    def __init__(
        self, row: Row, stage: Stage, seed: int, workspace: Workspace, *, experiment: str, enabled: bool
    ) -> None:
        self.run_id: str | None = None
        """MLflow's id of the run; ``None`` while MLflow has not been reached."""
        self.online = enabled
        """Whether the next values go to MLflow (otherwise: to the local file, or nowhere if not enabled)."""
        self._enabled = enabled
        self._client: _Client | None = None
        self._uri = tracking_uri(workspace)
        self._workspace = workspace
        self._unsent = (
            workspace.root / UNSENT / f"{row.name}-{'released' if stage == 'verify' else f'seed{seed}'}.jsonl"
        )
        self._header = _header(row, stage, seed, experiment)
        self._metrics: list[tuple[str, float, int, int]] = []  # key, value, milliseconds since 1970, step
        self._steps: Steps = {}
        self._last_flush = time.monotonic()
        self._backlog: list[dict[str, Any]] = []
        self._headed: int | None = None  # inode of the file that has this run's header

    # what stages call

    def metrics(self, step: int, values: Mapping[str, Value]) -> None:
        """Logs numbers at an iteration. Buffered; ``None`` is left out, as are steps a training already has."""
        if not self._enabled:
            return
        now = int(time.time() * 1000)
        batch = [(_BAD_KEY.sub("_", name), float(v), now, int(step)) for name, v in values.items() if v is not None]
        self._metrics += _new(batch, self._steps) if self._header["stage"] == "train" else batch
        if len(self._metrics) >= FLUSH_METRICS or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def params(self, values: Mapping[str, Any]) -> None:
        """Adds parameters beyond the row's, which are logged by themselves. A second value for a name is a tag."""
        self._do({"op": "params", "values": {_BAD_KEY.sub("_", key): str(value) for key, value in values.items()}})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Sets tags; the row's own are there already."""
        self._do({"op": "tags", "values": {key: str(value) for key, value in values.items()}})

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Adds a file, or a folder's content, to the run, below ``folder``. A missing one is mentioned and left out."""
        if not self._enabled:
            return
        if not path.exists():
            console.print(f"[yellow]MLflow:[/] {escape(str(path))} does not exist: no artifact of the run")
            return
        root = self._workspace.root.resolve()
        absolute = path.resolve()
        # relative in the file, so that a workspace that was moved can still be synchronised
        stored = absolute.relative_to(root) if absolute.is_relative_to(root) else absolute
        self._do({"op": "artifact", "path": str(stored), "folder": folder})

    def flush(self) -> None:
        """Sends what is buffered (or appends it to the local file)."""
        self._last_flush = time.monotonic()
        if not self._metrics:
            return
        batch, self._metrics = self._metrics, []
        self._do({"op": "metrics", "values": batch})

    # life of the run

    def start(self, resume: bool | None) -> None:
        """Finds or makes the run and logs tags and parameters."""
        if not self._enabled:
            return
        self._header["resume"] = resume
        try:
            self._client = connect(self._uri)
            if self._unsent.exists():  # of an earlier session, whose run this one goes on with
                _send(self._client, self._unsent, self._workspace, self._uri)
            self.run_id, self._steps = _open_run(self._client, self._header, self._workspace, self._uri)
            self._header["run_id"] = self.run_id
        except Exception as error:
            self._go_offline(error)

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Sends the rest and closes the run."""
        if not self._enabled:
            return
        self.flush()
        self._do({"op": "end", "status": status, "time": int(time.time() * 1000)})

    def _do(self, operation: dict[str, Any]) -> None:
        if not self._enabled:
            return
        if self.online and self._client is not None and self.run_id is not None:
            try:
                _apply(self._client, self.run_id, operation, self._workspace.root, self._header["stage"])
                return
            except Exception as error:
                self._go_offline(error)
        self._keep(operation)

    def _go_offline(self, error: Exception) -> None:
        if not self.online:
            return
        self.online = False
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 300 else reason[:300] + "..."
        console.print(
            f"[yellow]MLflow cannot be reached[/] at {escape(_redacted(self._uri))}: {escape(_redacted(reason))}\n"
            f"The run goes on without it; what would have been logged is kept in {escape(str(self._unsent))}"
        )

    def _keep(self, operation: dict[str, Any]) -> None:
        """Appends to the local file; while that cannot be written, holds back and tries again at the next call."""
        told = bool(self._backlog)
        self._backlog.append(operation)
        try:
            self._unsent.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self._unsent) as stream:
                file = os.fstat(stream.fileno())
                headed = file.st_size > 0 and file.st_ino == self._headed  # else it was sent and removed meanwhile
                _append(stream, self._backlog if headed else [self._header, *self._backlog])
            self._headed, self._backlog = file.st_ino, []
        except OSError as error:
            where = f"{escape(str(self._unsent))} cannot be written ({error.strerror}) either"
            if not told:
                console.print(
                    f"[yellow]MLflow:[/] {where}: values are held back in memory, the results do not need them"
                )
            if operation["op"] == "end":
                console.print(f"[yellow]MLflow:[/] {where}: what was held back is lost to it; curve.csv has the values")


@contextmanager
def run(
    row: Row,
    stage: Stage,
    seed: int,
    workspace: Workspace,
    *,
    experiment: str | None = None,
    resume: bool | None = None,
    enabled: bool = True,
) -> Iterator[Tracker]:
    """A :class:`Tracker` for one stage of one row and seed; the run's status follows how the block ends.

    Args:
        row: whose settings become parameters and tags.
        stage: ``train`` makes a new run or goes on with one; ``evaluate`` adds to the run of the training, or makes
            one if the row was trained elsewhere or its testing settings have changed since; ``verify`` (released
            weights, whose seed nobody knows) has runs of its own, named ``<row> released``.
        seed: of the run.
        workspace: where the local store and the file for unsent values are.
        experiment: MLflow's experiment; by default ``danet / <title of the row's table>``.
        resume: whether training goes on from a checkpoint. ``None``: it does if the row's newest run with this seed
            has not finished training. Steps that the run already has are not logged twice.
        enabled: False for all but the first process of a distributed run: nothing is logged.

    The status is FINISHED, KILLED for an interrupted run (Ctrl-C, ``Interrupted``), else FAILED.
    """
    title = experiment or _experiment_name(row, workspace)
    tracker = Tracker(row, stage, seed, workspace, experiment=title, enabled=enabled)
    tracker.start(resume)
    try:
        yield tracker
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt | GeneratorExit)
        clean = isinstance(error, SystemExit) and error.code in (None, 0)
        tracker.end("KILLED" if stopped else "FINISHED" if clean else "FAILED")
        raise
    tracker.end("FINISHED")


def log_report(table: str, workspace: Workspace, files: Sequence[Path]) -> str | None:
    """Puts a table's page and pictures into MLflow: the run "report <table>" of the table's experiment, made once.

    Args:
        table: its name in ``params.yaml``.
        workspace: whose store, if ``MLFLOW_TRACKING_URI`` does not name one.
        files: to send; they replace those of the same name that the run has.

    Returns:
        Why it could not be done, else None. A report never depends on MLflow, and can be sent again at any time.
    """
    try:
        uri = tracking_uri(workspace)
        client = connect(uri)
        title = workspace.params().tables[table].title
        experiment = _experiment(client, f"danet / {title}", workspace, uri)
        found = client.search_runs([experiment], f"tags.report = '{table}'", max_results=1)
        if found:
            run_id = found[0].info.run_id
        else:
            tags = {"report": table, "stage": "report", "mlflow.source.name": f"danet report {table}"}
            run_id = client.create_run(experiment, tags=tags, run_name=f"report {table}").info.run_id
        for path in files:
            client.log_artifact(run_id, str(path), "examples" if path.parent.name.startswith("examples@") else None)
        client.set_terminated(run_id, "FINISHED")
    except Exception as error:
        return _redacted(" ".join(str(error).split())[:300])
    return None


def sweep_runs(
    sweep: str,
    experiments: Sequence[str],
    workspace: Workspace,
    *,
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"],
) -> str | None:
    """Makes a sweep's parent run, one in each experiment as MLflow nests no further, or sets its status.

    Args:
        sweep: its name, which stages find in ``DANET_SWEEP``.
        experiments: names, one for each table.
        workspace: whose store, if ``MLFLOW_TRACKING_URI`` does not name one.
        status: of the runs.

    Returns:
        Why it could not be done, else None. A sweep never depends on MLflow.
    """
    try:
        uri = tracking_uri(workspace)
        client = connect(uri)
        for name in experiments:
            run_id = _sweep_run(client, _experiment(client, name, workspace, uri), sweep)
            if status == "RUNNING":
                client.update_run(run_id, status=status)
            else:
                client.set_terminated(run_id, status)
    except Exception as error:
        return _redacted(" ".join(str(error).split())[:300])
    return None


def _sweep_run(client: _Client, experiment_id: str, sweep: str) -> str:
    query = f"tags.sweep = '{sweep}' and tags.stage = 'sweep'"
    found = client.search_runs([experiment_id], query, order_by=["attributes.start_time ASC"], max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {"sweep": sweep, "stage": "sweep", "mlflow.source.name": "danet sweep"}
    return str(client.create_run(experiment_id, tags=tags, run_name=f"sweep {sweep}").info.run_id)


def sync(workspace: Workspace) -> dict[Path, int]:
    """Sends what earlier runs could not send and removes the files.

    May run beside a training, and any number of times: values that MLflow has are not sent again.

    Returns:
        Number of operations sent, by file.

    Raises:
        DanetError: if MLflow still cannot be reached (the files stay), or a line of a file is damaged.
    """
    sent: dict[Path, int] = {}
    uri = tracking_uri(workspace)
    for path in sorted((workspace.root / UNSENT).glob("*.jsonl")):
        try:
            sent[path] = _send(connect(uri), path, workspace, uri)
        except DanetError:
            raise
        except Exception as error:
            reason = _redacted(" ".join(str(error).split())[:300])
            raise DanetError(f"{path}: cannot be sent to MLflow at {_redacted(uri)} ({reason}); it is kept") from error
    return sent


def _send(client: _Client, path: Path, workspace: Workspace, uri: str) -> int:
    """Sends one file and removes it; what was appended meanwhile stays. Returns the number of operations."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:  # sent by somebody else meanwhile
        return 0
    whole = data[: data.rfind(b"\n") + 1]  # a killed run may have left half a line, which it has logged again since
    try:
        operations = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
    except ValueError as error:
        raise DanetError(f"{path}: is not JSON lines ({error}); mend or remove the file") from error
    header: dict[str, Any] = {}
    run_id, steps = "", Steps()
    for operation in operations:
        if operation["op"] == "run":
            header = operation
            run_id, steps = _reopen(client, header, workspace, uri)
            continue
        if operation["op"] == "metrics" and header["stage"] == "train":
            operation["values"] = _new(operation["values"], steps)
        _apply(client, run_id, operation, workspace.root, header["stage"])
    with contextlib.suppress(FileNotFoundError), _locked(path, create=False) as stream:
        stream.seek(len(whole))
        rest = stream.read()
        path.unlink()
    if b"\n" in rest:
        with _locked(path) as stream:
            _append(stream, [header, *map(json.loads, rest.splitlines())])
    return len(operations)


@contextmanager
def _locked(path: Path, create: bool = True) -> Iterator[BinaryIO]:
    """Opens a file of unsent values for reading and appending while nobody else has it.

    Raises:
        FileNotFoundError: if it is not there and shall not be created.
    """
    while True:
        with path.open("a+b" if create else "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                current = path.stat().st_ino == os.fstat(stream.fileno()).st_ino
            except FileNotFoundError:
                current = False
            if current:  # else it was sent and removed while this waited for the lock
                yield stream
                return


def _append(stream: BinaryIO, operations: Sequence[Mapping[str, Any]]) -> None:
    """Adds lines, all or none of them; half a line that a killed run left is cut off first.

    Raises:
        OSError: if the disk is full; the file then ends as before.
    """
    stream.seek(0)
    end = stream.read().rfind(b"\n") + 1
    stream.truncate(end)
    try:
        stream.seek(0, io.SEEK_END)
        stream.write(b"".join(json.dumps(operation).encode() + b"\n" for operation in operations))
        stream.flush()
        os.fsync(stream.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(stream.fileno(), end)
        raise


def _new(values: Sequence[Any], steps: Steps) -> list[Any]:
    """The values (key, value, time, step) whose step is not among those known, which they then are."""
    fresh = [item for item in values if item[3] not in steps.get(item[0], ())]
    for item in fresh:
        steps.setdefault(item[0], set()).add(item[3])
    return fresh


def _reopen(client: _Client, header: Mapping[str, Any], workspace: Workspace, uri: str) -> tuple[str, Steps]:
    """The run that was cut off, or, if this store never had it, the one :func:`_open_run` finds or makes."""
    if header.get("run_id"):
        try:
            run = client.get_run(header["run_id"])
        except Exception:  # noqa: S110 - another store than then; if none can be reached, the next call says so
            pass
        else:
            return str(run.info.run_id), _logged(client, run) if header["stage"] == "train" else {}
    return _open_run(client, header, workspace, uri)


def _logged(client: _Client, run: Any) -> Steps:
    """The steps that a run has of each of its metrics."""
    history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {key: {metric.step for metric in metrics} for key, metrics in history.items()}


def connect(uri: str) -> _Client:
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
    if scheme == "sqlite":
        path = Path(uri.partition(":///")[2])
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that both find an empty database crash in its migrations; the second waits here.
        with FileLock(f"{path}.lock", timeout=60):
            with closing(sqlite3.connect(path, timeout=TIMEOUT_SECONDS)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
            return _new_client(uri)
    if scheme not in {"http", "https"} and parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_SECONDS).close()
    return _new_client(uri)


def _new_client(uri: str) -> _Client:
    # MLflow takes a second to import, and commands that track nothing should not wait for it
    from mlflow import MlflowClient

    for name, level in {
        "alembic": logging.WARNING,
        "mlflow": logging.ERROR,
        "mlflow.store.db.utils": logging.CRITICAL,  # it prints a traceback for what is reported here in one line
        "urllib3.connectionpool": logging.ERROR,
    }.items():
        logging.getLogger(name).setLevel(level)
    client: _Client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    return client


def _experiment_name(row: Row, workspace: Workspace) -> str:
    try:
        title = workspace.params().tables[row.table].title
    except (DanetError, KeyError):
        title = row.table
    return f"danet / {title}"


def _header(row: Row, stage: Stage, seed: int, experiment: str) -> dict[str, Any]:
    """Everything needed to find or make the run, now or in a later :func:`sync`."""
    commit, dirty = provenance.code_version()
    shown_seed = "released" if stage == "verify" else str(seed)  # runs are found by it, so released weights have theirs
    again = "verify" if stage == "verify" else "evaluate"
    tags = {
        "source": row.source,
        "dataset": row.dataset,
        "method": row.model.method,
        "backbone": row.model.backbone,
        "output_stride": str(row.model.output_stride),
        "commit": commit + ("-dirty" if dirty else ""),
        "stage": stage,
        "table": row.table,
        "row": row.name,
        "row_hash": row.hash,
        "train_hash": row.train_hash,
        "seed": shown_seed,
        "mlflow.source.name": f"danet {stage} {row.name}",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": f"{row.protocol[:1].upper()}{row.protocol[1:]}.\n\n    dvc repro {again}@{row.name}",
    }
    if commit != "unknown":
        tags["mlflow.source.git.commit"] = commit
    if sweep := re.sub(r"[^\w-]", "", os.environ.get(SWEEP, "")):
        tags["sweep"] = sweep
    return {
        "op": "run",
        "stage": stage,
        "experiment": experiment,
        "name": f"{row.name} released" if stage == "verify" else f"{row.name} seed {seed}",
        "tags": tags,
        "params": flat_params(row) | {"seed": shown_seed},
        "row_yaml": row_yaml(row),
        "run_id": None,
        "time": int(time.time() * 1000),
    }


def _open_run(client: _Client, header: Mapping[str, Any], workspace: Workspace, uri: str) -> tuple[str, Steps]:
    """The id of the run that a stage logs to, and the steps it has of each metric (if training resumes)."""
    experiment_id = _experiment(client, header["experiment"], workspace, uri)
    tags, stage = header["tags"], header["stage"]
    found = client.search_runs(
        [experiment_id],
        f"tags.row = '{tags['row']}' and tags.train_hash = '{tags['train_hash']}' and tags.seed = '{tags['seed']}'",
        order_by=["attributes.start_time DESC"],
        max_results=20,
    )
    if stage == "train":
        run = next((item for item in found if "train.status" in item.data.tags), None)
        resume = header.get("resume")
        if resume is None:
            resume = run is not None and run.data.tags["train.status"] != "FINISHED"
        if not resume:
            run = None
    else:
        run = next((item for item in found if item.data.tags["row_hash"] == tags["row_hash"]), None)
    steps = Steps()
    extra = {f"{stage}.status": "RUNNING"}
    if "sweep" in tags:
        extra["mlflow.parentRunId"] = _sweep_run(client, experiment_id, tags["sweep"])
    if run is None:
        if stage == "evaluate" and found:
            extra["trained_in"] = found[0].info.run_id  # its testing settings were others, and parameters never change
        run = client.create_run(
            experiment_id, start_time=header["time"], tags={**tags, **extra}, run_name=header["name"]
        )
    else:
        if stage == "train":
            steps = _logged(client, run)
        client.update_run(run.info.run_id, status="RUNNING")
    run_id: str = run.info.run_id
    root = workspace.root
    _apply(client, run_id, {"op": "tags", "values": {**tags, **extra}}, root, stage)
    _apply(client, run_id, {"op": "params", "values": header["params"]}, root, stage)
    client.log_text(run_id, header["row_yaml"], "row.yaml")
    return run_id, steps


def _experiment(client: _Client, name: str, workspace: Workspace, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server keeps artifacts where it was told to; a bare database needs to know where from here.
        local = None if uri.startswith("http") else (workspace.root.resolve() / "mlruns").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=local))
        except Exception:  # made by another process in between: only then is it there now
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _apply(client: _Client, run_id: str, operation: Mapping[str, Any], root: Path, stage: str) -> None:
    from mlflow.entities import Metric, Param, RunTag

    kind = operation["op"]
    if kind == "metrics":
        metrics = [Metric(key, value, stamp, step) for key, value, stamp, step in operation["values"]]
        for start in range(0, len(metrics), MAX_METRICS):
            client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS], synchronous=True)
    elif kind == "params":
        known = client.get_run(run_id).data.params
        values = operation["values"]
        new = [Param(key, value) for key, value in values.items() if key not in known]
        for start in range(0, len(new), MAX_PARAMS):
            client.log_batch(run_id, params=new[start : start + MAX_PARAMS])
        # MLflow refuses to change a parameter, for instance the number of workers of a resumed run
        changed = {f"param.{key}": value for key, value in values.items() if known.get(key, value) != value}
        if changed:
            _apply(client, run_id, {"op": "tags", "values": changed}, root, stage)
    elif kind == "tags":
        tags = [RunTag(key, value) for key, value in operation["values"].items()]
        for start in range(0, len(tags), MAX_TAGS):
            client.log_batch(run_id, tags=tags[start : start + MAX_TAGS])
    elif kind == "artifact":
        path = root / operation["path"]  # an absolute path replaces the root
        if path.is_dir():
            client.log_artifacts(run_id, str(path), operation["folder"])
        elif path.exists():  # a later sync may find that a picture has been replaced or removed
            client.log_artifact(run_id, str(path), operation["folder"])
    elif kind == "end":
        _apply(client, run_id, {"op": "tags", "values": {f"{stage}.status": operation["status"]}}, root, stage)
        client.set_terminated(run_id, operation["status"], operation["time"])


def _redacted(text: str) -> str:
    """Without user names and passwords of addresses."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)
