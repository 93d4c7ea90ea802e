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
from typing import Any, Literal

from rich.markup import escape

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.console import console
from danet.core.errors import DanetError, Interrupted
from danet.core.text import number, signed
from danet.results.identity import flat
from danet.results.measured import Measurement, hardware, read
from danet.results.mlflow_store import connect, experiment
from danet.results.schema import ACCURACIES, Evaluation, TrainedSeed

ALL_SEEDS, RELEASED = "all", "released"
"""In place of a seed: of a row's run, and of the run of its released weights."""
CONTENT = "content"
"""Tag of a run that was sent: a digest of all that it says. A training that is followed has none."""
VERDICTS = {"miou": "verdict", "miou_ms_flip": "verdict_ms_flip"}
MAX_METRICS = 1000
"""MLflow's limit for one ``log_batch``."""


class _Runs:
    """A row's runs in MLflow, by seed and by the key of what they are: an identity; of all seeds, the settings."""

    def __init__(self, client: Any, row: Row, workspace: Workspace) -> None:
        self.client, self.row = client, row
        self.experiment = experiment(client, workspace, row.table)

    def find(self, seed: str, key: str) -> list[Any]:
        """The newest first."""
        query = f"tags.row = '{self.row.name}' and tags.seed = '{seed}' and tags.identity = '{key}'"
        return list(self.client.search_runs([self.experiment], query, order_by=["attributes.start_time DESC"]))

    def make(self, seed: str, key: str, began: int) -> Any:
        """With the row's settings; ``began`` in milliseconds since 1970."""
        from mlflow.entities import Param

        name = self.row.name + {ALL_SEEDS: "", RELEASED: " released"}.get(seed, f" seed {seed}")
        tags = {"mlflow.source.name": "danet", "mlflow.source.type": "LOCAL"}
        tags |= {"row": self.row.name, "seed": seed, "identity": key}
        made = self.client.create_run(self.experiment, start_time=began, tags=tags, run_name=name)
        settings = flat(self.row.model_dump(mode="json", exclude={"name", "seeds", "notes", "protocol"}))
        self.client.log_batch(made.info.run_id, params=[Param(name, str(value)) for name, value in settings.items()])
        return made

    def put_below(self, run: Any, parent: str) -> None:
        """Makes ``parent`` the run above."""
        if run.data.tags.get("mlflow.parentRunId") != parent:
            self.client.set_tag(run.info.run_id, "mlflow.parentRunId", parent)

    def steps(self, run: Any) -> set[int]:
        """Iterations of training that a run has. All values of one are sent together."""
        if "train/loss" not in run.data.metrics:
            return set()
        return {point.step for point in self.client.get_metric_history(run.info.run_id, "train/loss")}


# while a row trains


class Tracker:
    """Where a training's step metrics go. Never raises because of MLflow; see :func:`run`, which makes it."""

    def __init__(self, row: Row, seed: int, workspace: Workspace, identity: str | None) -> None:
        self.run_id: str | None = None
        """MLflow's id of the run; ``None`` where MLflow has not been reached."""
        self._client: Any = None
        with self._offline_if_it_fails():
            runs, now = _Runs(connect(workspace), row, workspace), int(time.time() * 1000)
            whole, key = (ALL_SEEDS, row.train_hash), (str(seed), identity or row.train_hash)
            parent = next(iter(runs.find(*whole)), None) or runs.make(*whole, now)
            followed = (run for run in runs.find(*key) if CONTENT not in run.data.tags)
            found = next(followed, None) or runs.make(*key, now)
            runs.put_below(found, parent.info.run_id)
            self._ids = [parent.info.run_id, found.info.run_id]
            for each in self._ids:
                runs.client.update_run(each, status="RUNNING")
            self._steps = runs.steps(found)
            self.run_id, self._client = found.info.run_id, runs.client

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers at an iteration, under ``train/``; iterations that the run has are left out."""
        if self._client is not None and step not in self._steps:
            from mlflow.entities import Metric

            self._steps.add(step)
            now = int(time.time() * 1000)
            points = [Metric(f"train/{name}", float(value), now, step) for name, value in values.items()]
            with self._offline_if_it_fails():
                self._client.log_batch(self.run_id, metrics=points, synchronous=True)

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Closes the run."""
        with self._offline_if_it_fails():
            for each in self._ids if self._client else ():
                self._client.set_terminated(each, status)

    @contextmanager
    def _offline_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._client = None
            _say(error)


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
        tracker.end("KILLED" if isinstance(error, Interrupted | KeyboardInterrupt) else "FAILED")
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
    found = [(row, parts) for row in rows if (parts := _parts(row, workspace))]
    try:
        client = connect(workspace) if found else None
        return {row.name: _write(_Runs(client, row, workspace), parts) for row, parts in found}
    except Exception as error:
        raise DanetError(_reason(error)) from error


def log(rows: Iterable[Row], workspace: Workspace) -> None:
    """:func:`send` at the end of a stage, by the first process of a distributed one; failure is one line."""
    if os.environ.get("RANK", "0") == "0":
        try:
            send(rows, workspace)
        except DanetError as error:
            _say(error)


@dataclass(frozen=True)
class _Part:
    """What MLflow says of one run: of all seeds of a row, of one of them, or of the released weights."""

    seed: str
    key: str
    found: Measurement
    """Of these seeds alone."""
    weights: str = ""
    files: Sequence[tuple[Path, str | None]] = ()
    """And their folder among the run's artifacts."""

    @property
    def stages(self) -> list[TrainedSeed | Evaluation]:
        """In the order in which they ran."""
        return [*self.found.trained, *self.found.runs]

    def metrics(self) -> dict[str, float]:
        """Accuracies beside what is published, and costs."""
        found: dict[str, float | None] = {}
        for name, each in self.found.accuracies.items():
            if each.mean is not None:
                found |= {name: each.mean, f"{name}_sd": each.sd}
                found |= {f"{name}_published": each.published, f"{name}_difference": each.difference}
        found |= self.found.costs
        return {name: round(value, 4) for name, value in found.items() if value is not None}

    def tags(self) -> dict[str, str]:
        """Verdicts, and where the numbers come from."""
        commits = dict.fromkeys(stage.provenance.commit for stage in self.stages)
        tags = {"hardware": hardware(self.stages), "mlflow.source.git.commit": "; ".join(filter(None, commits))}
        if self.weights:
            tags |= {"weights_file": self.weights, "weights_sha256": self.stages[-1].weights_sha256}
        tags |= {tag: self.found.accuracies[name].verdict for name, tag in VERDICTS.items() if self._measured(name)}
        return {name: value for name, value in tags.items() if value}

    def _measured(self, accuracy: str) -> bool:
        return self.found.mean(accuracy) is not None

    def times(self) -> tuple[int, int]:
        """Begin and end in milliseconds since 1970; between them is the work, without the time in which nothing ran."""
        seconds = sum(3600 * run.hours for run in self.found.trained)
        seconds += sum(run.provenance.wall_seconds or 0.0 for run in self.found.runs)
        date = self.stages[0].provenance.date if self.stages else None
        ended = datetime.fromisoformat(date).timestamp() if date else seconds
        return int(1000 * (ended - seconds)), int(1000 * ended)

    def note(self, page: str) -> str:
        """Markdown: what was found, where, and how to do it again."""
        lines = []
        for name in filter(self._measured, VERDICTS):
            found = self.found.accuracies[name]
            text = f"- **{ACCURACIES[name]} {number(found.mean)}**" + (f" ± {found.sd:.2f}" if found.sd else "")
            if found.published is not None:
                text += f", published {number(found.published)} ({signed(found.difference)})"
            lines.append(text + (f": {found.verdict}" if found.verdict else ""))
        again = f"dvc repro {'verify' if self.seed == RELEASED else 'evaluate'}@{self.found.name}"
        return "\n".join([*lines, f"- [The row's page]({page})", f"- `{again}`"])


def _parts(row: Row, workspace: Workspace) -> list[_Part]:
    """A row's runs, the row's own first; none if there is no metrics file of its settings."""
    params = workspace.params()
    found = read(row, params, workspace)
    pages = [(workspace.reports() / row.table / f"{row.name}{end}", None) for end in (".md", ".png", "-confusion.png")]
    parts = [_Part(ALL_SEEDS, row.train_hash, found, files=pages)]
    for seed in row.seeds:
        one = read(row.model_copy(update={"seeds": (seed,)}), params, workspace)
        keys = [*(run.identity for run in one.trained), *(run.training for run in one.runs)]
        if keys:
            files = _pictures(workspace.evaluation(row), f"seed{seed}") if one.runs else ()
            path = f"models/{row.name}/seed{seed}.safetensors"
            parts.append(_Part(str(seed), keys[0] or row.train_hash, one, path, files))
    released = found.released
    if released and released.weights and released.evaluation:
        file = released.weights
        result = {"accuracies": released.accuracies, "trained": (), "runs": (released.evaluation,), "curves": {}}
        weights, files = file.source or file.file or "", _pictures(workspace.verification(row), RELEASED)
        parts.append(_Part(RELEASED, file.sha256, found.model_copy(update=result), weights, files))
    return parts if len(parts) > 1 else []


def _pictures(folder: Path, name: str) -> list[tuple[Path, str | None]]:
    found = sorted(folder.glob(f"{name}-*.png"))
    return [(path, "evaluation") for path in found if not path.name.endswith("-prediction.png")]


def _write(runs: _Runs, parts: Sequence[_Part]) -> int:
    """Brings a row's run and those below it up to date; how many were written."""
    client, parent, written = runs.client, "", 0
    for part in parts:
        tags, (began, end) = part.tags(), part.times()
        says = json.dumps([part.metrics(), tags, began, end], sort_keys=True)
        content = hashlib.sha256(says.encode()).hexdigest()[:16]
        same = []
        for found in runs.find(part.seed, part.key):
            if found.data.tags.get(CONTENT, content) == content:
                same.append(found)
            else:
                client.delete_run(found.info.run_id)
        run = same[0] if same else runs.make(part.seed, part.key, began)
        run_id = run.info.run_id
        if CONTENT not in run.data.tags:
            written += 1
            page = f"#/experiments/{runs.experiment}/runs/{parent or run_id}/artifacts/{runs.row.name}.md"
            _fill(runs, run, part, tags | {"mlflow.note.content": part.note(page), CONTENT: content}, end)
        if parent:
            runs.put_below(run, parent)
        for path, folder in part.files:
            if path.is_file():
                client.log_artifact(run_id, str(path), folder)
        parent = parent or run_id
    return written


def _fill(runs: _Runs, run: Any, part: _Part, tags: Mapping[str, str], end: int) -> None:
    """Logs what the files say of a run that says nothing yet, or only what was followed of its training."""
    from mlflow.entities import Dataset, DatasetInput, Metric, RunTag

    client, run_id, points = runs.client, run.info.run_id, []
    for curve in part.found.curves.values() if part.seed != ALL_SEEDS else ():
        known = runs.steps(run)
        for line in curve.to_dict("records"):
            step = int(line.pop("iteration"))
            if step not in known:
                points += [Metric(f"train/{n}", v, end, step) for n, v in line.items() if not math.isnan(v)]
    last = part.found.trained[0].iterations if part.found.trained else 0
    points += [Metric(name, value, end, last) for name, value in part.metrics().items()]
    for first in range(0, len(points), MAX_METRICS):
        client.log_batch(run_id, metrics=points[first : first + MAX_METRICS], synchronous=True)
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    inputs = []
    for manifest in dict.fromkeys(stage.data for stage in part.stages):
        source = json.dumps({"uri": f"data/prepared/{runs.row.dataset}", "manifest_sha256": manifest})
        inputs.append(DatasetInput(Dataset(runs.row.dataset, manifest[:36], "local", source), []))  # MLflow keeps 36
    client.log_inputs(run_id, datasets=inputs)
    client.set_terminated(run_id, "FINISHED", end)


def _reason(error: BaseException) -> str:
    """Why MLflow cannot be used, in one short line, without the user names and passwords of addresses."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    where = os.environ.get("MLFLOW_TRACKING_URI", "mlflow.db")
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return re.sub(r"(?<=://)[^/@\s]+@", "", f"MLflow at {where}: {reason}")[:120]


def _say(error: Exception) -> None:
    reason = str(error) if isinstance(error, DanetError) else _reason(error)
    console.print(f"[yellow]{escape(reason)}[/]; later: `danet sync`")
