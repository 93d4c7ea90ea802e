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
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape

from danet.config.params import Params
from danet.config.published import Published, published
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.console import console
from danet.core.errors import DanetError, Interrupted
from danet.results.identity import flat
from danet.results.measured import Measurement, read
from danet.results.mlflow_store import connect, experiment, tracking_uri
from danet.results.schema import EvaluatedSeed, TrainedSeed
from danet.results.verdict import agreement, judge, summarise

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

ALL_SEEDS, RELEASED = "all", "released"
"""In place of a seed: of a row's run, and of the run of its released weights."""
CONTENT = "content"
"""Tag of a run that was sent: a digest of all that it says. A training that is followed has none."""
ACCURACY = {"miou": "mIoU", "miou_ms_flip": "mIoU, ms+flip", "aacc": "aAcc", "aacc_ms": "aAcc, ms+flip", "macc": "mAcc"}
COSTS = {"memory_gb": "peak_memory_gib", "fps": "fps", "images_per_second": "images_per_second", "hours": "hours"}
"""Other metrics of :meth:`.Measurement.values`, and their names here."""
VERDICTS = {"miou": "verdict", "miou_ms_flip": "verdict_ms_flip"}
MAX_METRICS = 1000
"""MLflow's limit for one ``log_batch``."""


def experiment_name(table: str, params: Params) -> str:
    """The experiment of a table."""
    return f"danet / {params.tables[table].title}"


def _open(client: Any, where: str, row: Row, seed: str, key: str, began: int, weights: str | None = None) -> Any:
    """The newest run of a seed that is of these weights, or of none that are known; otherwise a new one."""
    query = f"tags.row = '{row.name}' and tags.seed = '{seed}' and tags.identity = '{key}'"
    runs = client.search_runs([where], query, order_by=["attributes.start_time DESC"])
    found = next((run for run in runs if run.data.tags.get("weights_sha256") in (None, weights)), None)
    if found is None:
        from mlflow.entities import Param

        name = row.name if seed == ALL_SEEDS else f"{row.name} {seed if seed == RELEASED else f'seed {seed}'}"
        tags = {"mlflow.source.name": "danet", "mlflow.source.type": "LOCAL"}
        tags |= {"row": row.name, "seed": seed, "identity": key}
        found = client.create_run(where, start_time=began, tags=tags, run_name=name)
        settings = flat(row.model_dump(mode="json", exclude={"name", "seeds", "notes", "protocol"}))
        client.log_batch(found.info.run_id, params=[Param(name, str(value)) for name, value in settings.items()])
    return found


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
            parent = _open(client, where, row, ALL_SEEDS, row.train_hash, now)
            found = _open(client, where, row, str(seed), identity or row.train_hash, now)
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

    It goes on with the newest run of this row, seed and identity of which no finished weights are known, and logs no
    iteration twice; otherwise it makes one.

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
    found = [(row, parts) for row in rows if (parts := _parts(read(row, workspace), workspace, params))]
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


@dataclass
class _Part:
    """What MLflow says of one run: of all seeds of a row, of one of them, or of the released weights."""

    seed: str
    key: str
    """What the run is found by, beside row and seed: the training's identity; of a row's own run, its settings."""
    measured: Measurement
    """Of this part alone."""
    metrics: dict[str, float] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)
    weights: str = ""
    files: Sequence[tuple[Path, str | None]] = ()
    """And their folder among the run's artifacts."""

    def facts(self) -> dict[str, str]:
        """As tags; several values of a fact if the stages differ in it."""
        stages: list[TrainedSeed | EvaluatedSeed] = [*self.measured.trained, *self.measured.runs]

        def of(values: Iterable[object]) -> str:
            return "; ".join(dict.fromkeys(str(value) for value in values if value is not None))

        tags = {
            "manifest_hash": of(stage.facts.get("manifest_hash") for stage in stages),
            "initial_weights_sha256": of(stage.facts.get("imagenet_sha256") for stage in stages),
            "hardware": of(stage.provenance.hardware for stage in stages),
            "mlflow.source.git.commit": of(stage.provenance.commit for stage in stages),
            "weights_file": self.weights,
            "weights_sha256": stages[-1].weights_sha256 if self.weights else "",
            **self.verdicts,
        }
        return {name: value for name, value in tags.items() if value}

    def times(self) -> tuple[int, int]:
        """Begin and end in milliseconds since 1970; between them is the work, without the time in which nothing ran."""
        hours = sum(run.hours for run in self.measured.trained)
        seconds = 3600 * hours + sum(run.provenance.wall_seconds or 0.0 for run in self.measured.runs)
        stages: list[TrainedSeed | EvaluatedSeed] = [*self.measured.trained, *self.measured.runs]
        try:  # of the first stage the files say when it ended
            ended = datetime.fromisoformat(str(stages[0].provenance.date if stages else None)).timestamp()
        except ValueError:
            ended = time.time()
        return int(1000 * (ended - seconds)), int(1000 * ended)


def _parts(measured: Measurement, workspace: Workspace, params: Params) -> list[_Part]:
    """A row's runs, the row's own first; none if there is no metrics file of its settings."""
    row, bands = measured.row, params.bands
    metrics, pictures, page = workspace.metrics(row), workspace.evaluation(row), workspace.reports() / row.table
    source = published(row.name) if params.tables[row.table].published else Published()
    parts = []
    trained = {run.seed for run in measured.trained}
    for seed in sorted(trained | {run.seed for run in measured.runs if run.seed is not None}):
        one = replace(
            measured,
            trained=tuple(run for run in measured.trained if run.seed == seed),
            runs=tuple(run for run in measured.runs if run.seed == seed),
        )
        key = one.trained[0].identity if one.trained else one.runs[0].training
        files = _pictures(metrics, pictures, f"seed{seed}") if one.runs else []
        weights = f"models/{row.name}/seed{seed}.safetensors"
        parts.append(_Part(str(seed), key or row.train_hash, one, weights=weights, files=files))
    released = measured.verification.file
    if released is not None and released.weights is not None:
        file, folder = released.weights, workspace.verification(row)
        one = replace(measured, trained=(), runs=released.runs)
        files = _pictures(folder, folder, RELEASED)
        parts.append(_Part(RELEASED, file.sha256, one, weights=file.source or file.file or "", files=files))
    if parts:
        pages = [(page / f"{row.name}{end}", None) for end in (".md", ".png", "-confusion.png")]
        parts.insert(0, _Part(ALL_SEEDS, row.train_hash, measured, files=pages))
    for part in parts:
        for metric in (*ACCURACY, *COSTS):
            values, name = part.measured.values(metric), COSTS.get(metric, metric)
            if (summary := summarise(values)) is None:
                continue
            part.metrics[name] = summary.mean
            if metric in ACCURACY and summary.sd is not None:
                part.metrics[f"{name}_sd"] = summary.sd
            against = getattr(source, metric, None) if metric in ACCURACY else None
            if against is not None:
                part.metrics |= {f"{name}_published": against, f"{name}_difference": summary.mean - against}
                if metric in VERDICTS:
                    text = judge(values, against, bands.of(row.dataset)).text
                    if part.seed == RELEASED:
                        text = agreement(values[0], against, bands.released)
                    part.verdicts[VERDICTS[metric]] = text
        part.metrics = {name: round(value, 4) for name, value in part.metrics.items()}
    return parts


def _pictures(tables: Path, pictures: Path, name: str) -> list[tuple[Path, str | None]]:
    found = [path for path in sorted(pictures.glob(f"{name}-*.png")) if not path.name.endswith("-prediction.png")]
    return [(path, "evaluation") for path in (tables / "per_class.csv", *found)]


def _note(row: Row, part: _Part, page: str) -> str:
    """Markdown: what was found, where, and how to do it again."""
    lines, numbers = [], part.metrics
    for metric, tag in VERDICTS.items():
        if metric in numbers:
            sd, verdict = numbers.get(f"{metric}_sd"), part.verdicts.get(tag)
            text = f"- **{ACCURACY[metric]} {numbers[metric]:.2f}**" + ("" if sd is None else f" ± {sd:.2f}")
            if f"{metric}_published" in numbers:
                text += f", published {numbers[f'{metric}_published']:.2f} ({numbers[f'{metric}_difference']:+.2f})"
            lines.append(text + (f": {verdict}" if verdict else ""))
    again = f"dvc repro {'verify' if part.seed == RELEASED else 'evaluate'}@{row.name}"
    lines += [f"- [The row's page]({page})", "", f"{row.protocol[:1].upper()}{row.protocol[1:]}.", "", f"    {again}"]
    return "\n".join(lines)


def _write(client: Any, workspace: Workspace, row: Row, parts: Sequence[_Part], params: Params) -> int:
    """Brings a row's run and those below it up to date; how many were written."""
    where = experiment(client, workspace, experiment_name(row.table, params))
    parent, written = "", 0
    for part in parts:
        tags, (began, end) = part.facts(), part.times()
        content = hashlib.sha256(json.dumps([part.metrics, tags, began, end]).encode()).hexdigest()[:16]
        found = _open(client, where, row, part.seed, part.key, began, tags.get("weights_sha256"))
        if found.data.tags.get(CONTENT, content) != content:
            client.delete_run(found.info.run_id)
            found = _open(client, where, row, part.seed, part.key, began, tags.get("weights_sha256"))
        run_id = found.info.run_id
        if found.data.tags.get(CONTENT) != content:
            written += 1
            page = f"#/experiments/{where}/runs/{parent or run_id}/artifacts/{row.name}.md"
            tags |= {"mlflow.note.content": _note(row, part, page), CONTENT: content}
            _fill(client, row, found, part, tags, end)
        if parent and found.data.tags.get("mlflow.parentRunId") != parent:
            client.set_tag(run_id, "mlflow.parentRunId", parent)
        for path, folder in part.files:
            if path.is_file():
                client.log_artifact(run_id, str(path), folder)
        parent = parent or run_id
    return written


def _fill(client: Any, row: Row, found: Any, part: _Part, tags: Mapping[str, str], end: int) -> None:
    """Logs what the files say of a run that says nothing yet, or only what was followed of its training."""
    from mlflow.entities import Dataset, DatasetInput, Metric, RunTag

    run_id, trained = found.info.run_id, part.measured.trained if part.weights else ()
    known: set[int] = _steps(client, found) if trained else set()
    points: list[Metric] = []
    for curve in (part.measured.curves.get(each.seed, {}) for each in trained):
        for place, step in enumerate(curve.get("iteration", ())):
            if step is not None and int(step) not in known:
                values = {name: column[place] for name, column in curve.items() if name != "iteration"}
                points += [Metric(f"train/{n}", v, end, int(step)) for n, v in values.items() if v is not None]
    last = trained[0].iterations if trained else 0
    points += [Metric(name, value, end, last) for name, value in part.metrics.items()]
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
