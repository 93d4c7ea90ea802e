"""Rows in MLflow: training curves as they grow, and what the metrics files say.

The metrics files are the record. :func:`run` shows a training while it goes on; :func:`send` makes MLflow say what the
files say, any number of times: the stages call it when they end, and ``danet sync`` for all rows. Where MLflow cannot
be reached, one line says so and the stage goes on.

A row is one run, with the mean and spread over its seeds; each seed, and the released weights, is a run below it. Step
metrics of training are under ``train/``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape

from danet.config.params import Params
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.console import console
from danet.core.errors import DanetError, Interrupted
from danet.core.text import number, signed
from danet.results.identity import flat
from danet.results.measured import Measurement, accuracies, costs, hardware, read
from danet.results.mlflow_store import connect, experiment, tracking_uri
from danet.results.schema import ACCURACIES, Accuracy, Evaluation, TrainedSeed

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

ALL_SEEDS, RELEASED = "all", "released"
"""In place of a seed: of a row's run, and of the run of its released weights."""
CONTENT = "content"
"""Tag of a run that was sent: a digest of all that it says. A training that is followed has none."""
VERDICTS = {"miou": "verdict", "miou_ms_flip": "verdict_ms_flip"}
MAX_METRICS = 1000
"""MLflow's limit for one ``log_batch``."""


def experiment_name(table: str, params: Params) -> str:
    """The experiment of a table."""
    return f"danet / {params.tables[table].title}"


def _runs(client: Any, where: str, row: Row, seed: str, key: str) -> list[Any]:
    """The runs of a seed, the newest first."""
    query = f"tags.row = '{row.name}' and tags.seed = '{seed}' and tags.identity = '{key}'"
    return list(client.search_runs([where], query, order_by=["attributes.start_time DESC"]))


def _create(client: Any, where: str, row: Row, seed: str, key: str, began: int) -> Any:
    from mlflow.entities import Param

    name = row.name if seed == ALL_SEEDS else f"{row.name} {seed if seed == RELEASED else f'seed {seed}'}"
    tags = {"mlflow.source.name": "danet", "mlflow.source.type": "LOCAL"}
    tags |= {"row": row.name, "seed": seed, "identity": key}
    made = client.create_run(where, start_time=began, tags=tags, run_name=name)
    settings = flat(row.model_dump(mode="json", exclude={"name", "seeds", "notes", "protocol"}))
    client.log_batch(made.info.run_id, params=[Param(name, str(value)) for name, value in settings.items()])
    return made


def _steps(client: Any, run: Any) -> set[int]:
    """Iterations of training that a run has. All values of one are sent together."""
    if "train/loss" not in run.data.metrics:
        return set()
    return {point.step for point in client.get_metric_history(run.info.run_id, "train/loss")}


# while a row trains


class Tracker:
    """Where a training's step metrics go. Never raises because of MLflow; see :func:`run`, which makes it."""

    def __init__(self, row: Row, seed: int, workspace: Workspace, identity: str | None) -> None:
        self.run_id: str | None = None
        """MLflow's id of the run; ``None`` where MLflow has not been reached."""
        self._workspace = workspace
        self._client: Any = None
        self._steps: set[int] = set()
        self._runs: list[str] = []
        with self._offline_if_it_fails():
            client = connect(tracking_uri(workspace))
            where = experiment(client, workspace, experiment_name(row.table, workspace.params()))
            now = int(time.time() * 1000)
            whole, key = (ALL_SEEDS, row.train_hash), (str(seed), identity or row.train_hash)
            parent = next(iter(_runs(client, where, row, *whole)), None) or _create(client, where, row, *whole, now)
            known = (run for run in _runs(client, where, row, *key) if CONTENT not in run.data.tags)
            found = next(known, None) or _create(client, where, row, *key, now)
            client.set_tag(found.info.run_id, "mlflow.parentRunId", parent.info.run_id)
            self._runs = [parent.info.run_id, found.info.run_id]
            for each in self._runs:
                client.update_run(each, status="RUNNING")
            self._steps = _steps(client, found)
            self.run_id, self._client = found.info.run_id, client

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers at an iteration, under ``train/``; iterations that the run has are left out."""
        if self._client is not None and step not in self._steps:
            from mlflow.entities import Metric

            self._steps.add(step)
            now = int(time.time() * 1000)
            points = [Metric(f"train/{name}", float(value), now, step) for name, value in values.items()]
            with self._offline_if_it_fails():
                self._client.log_batch(self.run_id, metrics=points, synchronous=True)

    def end(self, status: Status) -> None:
        """Closes the run."""
        with self._offline_if_it_fails():
            for each in self._runs if self._client else ():
                self._client.set_terminated(each, status)

    @contextmanager
    def _offline_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._client = None
            _say(error, self._workspace)


@contextmanager
def run(row: Row, seed: int, workspace: Workspace, identity: str | None = None) -> Iterator[Tracker]:
    """A :class:`Tracker` for the training of one seed; the run's status follows how the block ends.

    It goes on with the newest run of this row, seed and identity that was not sent yet, and logs no iteration twice;
    otherwise it makes one.

    The status is FINISHED, KILLED for an interrupted run (Ctrl-C, ``Interrupted``), else FAILED.
    """
    tracker = Tracker(row, seed, workspace, identity)
    try:
        yield tracker
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt | GeneratorExit)
        clean = isinstance(error, SystemExit) and error.code in (None, 0)
        tracker.end("KILLED" if stopped else "FINISHED" if clean else "FAILED")
        raise
    tracker.end("FINISHED")


# from the metrics files


def send(rows: Iterable[Row], workspace: Workspace) -> dict[str, int]:
    """Makes MLflow say what rows' metrics files, pictures and pages say. Idempotent.

    Files of other settings than the row has today are left out, as in the tables. A run that says something else, sent
    earlier, is deleted and written anew.

    Returns:
        Number of runs written, by the name of each row that has metrics files.

    Raises:
        DanetError: if MLflow cannot be reached, in one line.
    """
    params = workspace.params()
    found = [(row, parts) for row in rows if (parts := _parts(read(row, params, workspace), workspace, params))]
    try:
        client = connect(tracking_uri(workspace)) if found else None
        return {row.name: _write(client, workspace, row, parts, params) for row, parts in found}
    except Exception as error:
        raise DanetError(_reason(error, workspace)) from error


def log(rows: Iterable[Row], workspace: Workspace) -> None:
    """:func:`send` at the end of a stage, by the first process of a distributed one; failure is one line."""
    if os.environ.get("RANK", "0") == "0":
        try:
            send(rows, workspace)
        except DanetError as error:
            _say(error, workspace)


@dataclass(frozen=True)
class _Part:
    """What MLflow says of one run: of all seeds of a row, of one of them, or of the released weights."""

    seed: str
    key: str
    """What the run is found by, beside row and seed: the training's identity; of a row's own run, its settings."""
    accuracies: Mapping[str, Accuracy]
    trained: tuple[TrainedSeed, ...]
    evaluated: tuple[Evaluation, ...]
    curve: pd.DataFrame | None = None
    weights: str = ""
    files: Sequence[tuple[Path, str | None]] = ()
    """And their folder among the run's artifacts."""

    @property
    def stages(self) -> tuple[TrainedSeed | Evaluation, ...]:
        """In the order in which they ran."""
        return (*self.trained, *self.evaluated)

    def metrics(self) -> dict[str, float]:
        """Accuracies beside what is published, and costs."""
        found: dict[str, float | None] = {}
        for name, each in self.accuracies.items():
            if each.mean is not None:
                found |= {name: each.mean, f"{name}_sd": each.sd}
                found |= {f"{name}_published": each.published, f"{name}_difference": each.difference}
        found |= costs(self.trained, self.evaluated)
        return {name: round(value, 4) for name, value in found.items() if value is not None}

    def facts(self) -> dict[str, str]:
        """As tags; several values of a fact if the stages differ in it."""

        def of(values: Iterable[str | None]) -> str:
            return "; ".join(dict.fromkeys(value for value in values if value))

        tags = {
            "manifest_hash": of(stage.data for stage in self.stages),
            "initial_weights_sha256": of(run.initial_weights for run in self.trained),
            "hardware": hardware(self.stages) or "",
            "mlflow.source.git.commit": of(stage.provenance.commit for stage in self.stages),
            "weights_file": self.weights,
            "weights_sha256": self.stages[-1].weights_sha256 if self.weights else "",
        }
        for name, tag in VERDICTS.items():
            found = self.accuracies.get(name)
            tags[tag] = found.verdict or "" if found and found.mean is not None else ""
        return {name: value for name, value in tags.items() if value}

    def times(self) -> tuple[int, int]:
        """Begin and end in milliseconds since 1970; between them is the work, without the time in which nothing ran."""
        seconds = sum(3600 * run.hours for run in self.trained)
        seconds += sum(run.provenance.wall_seconds or 0.0 for run in self.evaluated)
        date = self.stages[0].provenance.date if self.stages else None
        ended = datetime.fromisoformat(date).timestamp() if date else seconds
        return int(1000 * (ended - seconds)), int(1000 * ended)

    def note(self, row: Row, page: str) -> str:
        """Markdown: what was found, where, and how to do it again."""
        lines = []
        for name in VERDICTS:
            found = self.accuracies.get(name)
            if found and found.mean is not None:
                text = f"- **{ACCURACIES[name]} {number(found.mean)}**" + (f" ± {found.sd:.2f}" if found.sd else "")
                if found.published is not None:
                    text += f", published {number(found.published)} ({signed(found.difference)})"
                lines.append(text + (f": {found.verdict}" if found.verdict else ""))
        again = f"dvc repro {'verify' if self.seed == RELEASED else 'evaluate'}@{row.name}"
        return "\n".join([*lines, f"- [The row's page]({page})", f"- `{again}`"])


def _parts(found: Measurement, workspace: Workspace, params: Params) -> list[_Part]:
    """A row's runs, the row's own first; none if there is no metrics file of its settings."""
    row, band = found.row, params.bands.of(found.row.dataset)
    pages = [(workspace.reports() / row.table / f"{row.name}{end}", None) for end in (".md", ".png", "-confusion.png")]
    parts = [_Part(ALL_SEEDS, row.train_hash, found.accuracies, found.trained, found.runs, files=pages)]
    trained = {run.seed: run for run in found.trained}
    evaluated = {run.seed: run for run in found.runs if run.seed is not None}
    for seed in sorted({*trained, *evaluated}):
        own, run = trained.get(seed), evaluated.get(seed)
        parts.append(
            _Part(
                str(seed),
                (own.identity if own else run.training if run else None) or row.train_hash,
                accuracies([run.modes], found.published, band) if run else {},
                (own,) if own else (),
                (run,) if run else (),
                found.curves.get(seed),
                weights=f"models/{row.name}/seed{seed}.safetensors",
                files=_pictures(workspace.metrics(row), workspace.evaluation(row), f"seed{seed}") if run else (),
            )
        )
    released = found.released
    if released and released.weights and released.evaluation:
        file, folder = released.weights, workspace.verification(row)
        files = _pictures(folder, folder, RELEASED)
        weights = file.source or file.file or ""
        result = (released.accuracies, (), (released.evaluation,))
        parts.append(_Part(RELEASED, file.sha256, *result, weights=weights, files=files))
    return parts if len(parts) > 1 else []


def _pictures(tables: Path, pictures: Path, name: str) -> list[tuple[Path, str | None]]:
    found = [path for path in sorted(pictures.glob(f"{name}-*.png")) if not path.name.endswith("-prediction.png")]
    return [(path, "evaluation") for path in (tables / "per_class.csv", *found)]


def _write(client: Any, workspace: Workspace, row: Row, parts: Sequence[_Part], params: Params) -> int:
    """Brings a row's run and those below it up to date; how many were written."""
    where = experiment(client, workspace, experiment_name(row.table, params))
    parent, written = "", 0
    for part in parts:
        tags, (began, end) = part.facts(), part.times()
        content = hashlib.sha256(json.dumps([part.metrics(), tags, began, end], sort_keys=True).encode()).hexdigest()[
            :16
        ]
        run = next(iter(_runs(client, where, row, part.seed, part.key)), None)
        if run and run.data.tags.get(CONTENT, content) != content:
            client.delete_run(run.info.run_id)
            run = None
        run = run or _create(client, where, row, part.seed, part.key, began)
        run_id = run.info.run_id
        if CONTENT not in run.data.tags:
            written += 1
            page = f"#/experiments/{where}/runs/{parent or run_id}/artifacts/{row.name}.md"
            tags |= {"mlflow.note.content": part.note(row, page), CONTENT: content}
            _fill(client, row, run, part, tags, end)
        if parent and run.data.tags.get("mlflow.parentRunId") != parent:
            client.set_tag(run_id, "mlflow.parentRunId", parent)
        for path, folder in part.files:
            if path.is_file():
                client.log_artifact(run_id, str(path), folder)
        parent = parent or run_id
    return written


def _fill(client: Any, row: Row, run: Any, part: _Part, tags: Mapping[str, str], end: int) -> None:
    """Logs what the files say of a run that says nothing yet, or only what was followed of its training."""
    from mlflow.entities import Dataset, DatasetInput, Metric, RunTag

    points: list[Metric] = []
    if part.curve is not None:
        known = _steps(client, run)
        for line in part.curve.to_dict("records"):
            step = int(line.pop("iteration"))
            if step not in known:
                points += [Metric(f"train/{n}", v, end, step) for n, v in line.items() if not math.isnan(v)]
    last = part.trained[0].iterations if part.trained else 0
    points += [Metric(name, value, end, last) for name, value in part.metrics().items()]
    run_id = run.info.run_id
    for first in range(0, len(points), MAX_METRICS):
        client.log_batch(run_id, metrics=points[first : first + MAX_METRICS], synchronous=True)
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    if manifest := tags.get("manifest_hash"):  # MLflow keeps the data set once, and 36 digits of the hash
        source = json.dumps({"uri": f"data/prepared/{row.dataset}", "manifest_sha256": manifest})
        client.log_inputs(run_id, datasets=[DatasetInput(Dataset(row.dataset, manifest[:36], "local", source), [])])
    client.set_terminated(run_id, "FINISHED", end)


def _reason(error: Exception, workspace: Workspace) -> str:
    """Why a store cannot be used, in one line without user names and passwords of addresses."""
    reason = error.args[0] if isinstance(error, DanetError) else " ".join(str(error).split())
    text = f"MLflow cannot be reached at {tracking_uri(workspace)}: {str(reason)[:300]}"
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def _say(error: Exception, workspace: Workspace) -> None:
    reason = str(error) if isinstance(error, DanetError) else _reason(error, workspace)
    console.print(f"[yellow]{escape(reason)}[/]; `danet sync` sends the metrics files later")
