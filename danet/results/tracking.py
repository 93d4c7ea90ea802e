"""Rows in MLflow: training curves as they grow, and what the metrics files say.

The metrics files are the record. :func:`run` shows a training while it goes on; :func:`send` adds whatever MLflow lacks
of what the files say, any number of times: the stages call it when they end, and ``danet sync`` for all rows. Where
MLflow cannot be reached, one line says so and the stage goes on.

A row is one run, with the mean and spread over its seeds; each seed, and the released weights, is a run below it. Step
metrics of training are under ``train/``.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from danet.results.measured import Measurement, read
from danet.results.mlflow_store import ALL_SEEDS, RELEASED, Point, Store, tracking_uri
from danet.results.schema import EvaluatedSeed, TrainedSeed
from danet.results.verdict import agreement, judge, summarise

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

FLUSH_METRICS, FLUSH_SECONDS = 500, 10.0
"""Buffered metrics are sent when there are so many, or when the last sending is so long ago."""
ACCURACY = {"miou": "mIoU", "miou_ms_flip": "mIoU, ms+flip", "aacc": "aAcc", "aacc_ms": "aAcc, ms+flip", "macc": "mAcc"}
COSTS = {"memory_gb": "peak_memory_gib", "fps": "fps", "images_per_second": "images_per_second", "hours": "hours"}
"""Other metrics of :meth:`.Measurement.values`, and their names here."""
VERDICTS = {"miou": "verdict", "miou_ms_flip": "verdict_ms_flip"}
GONE = (*(f"{metric}{end}" for metric in ACCURACY for end in ("", "_sd", "_published", "_difference")), "fps")
"""What a run must not go on saying when the files no longer do: of other data, of seeds that were taken away."""


def run_key(row: Row, identity: str | None = None) -> str:
    """What a run is found by, beside row and seed: the training's identity; of a row's own run, its settings."""
    return identity or row.train_hash


def experiment_name(table: str, params: Params) -> str:
    """The experiment of a table."""
    return f"danet / {params.tables[table].title}"


# while a row trains


class Tracker:
    """Where a training's step metrics go. Never raises because of MLflow; see :func:`run`, which makes it."""

    def __init__(self, row: Row, seed: int, workspace: Workspace, identity: str | None) -> None:
        self.run_id: str | None = None
        """MLflow's id of the run; ``None`` where MLflow has not been reached."""
        self._workspace = workspace
        self._store: Store | None = None
        self._parent = ""
        self._buffer: list[Point] = []
        self._steps: set[int] = set()
        self._last_flush = time.monotonic()
        with self._offline_if_it_fails():
            store = Store(workspace)
            experiment = store.experiment(experiment_name(row.table, workspace.params()))
            now = int(time.time() * 1000)
            parent = store.open(experiment, row, ALL_SEEDS, run_key(row), began=now)
            found = store.open(experiment, row, str(seed), run_key(row, identity), began=now, parent=parent)
            for each in (parent, found):
                store.client.update_run(each.info.run_id, status="RUNNING")
            self._steps = store.steps(found)
            self.run_id, self._parent, self._store = found.info.run_id, parent.info.run_id, store

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers at an iteration, under ``train/``. Buffered; iterations that the run has are left out."""
        if self._store is None or step in self._steps:
            return
        self._steps.add(step)
        now = int(time.time() * 1000)
        self._buffer += [Point(f"train/{name}", float(value), now, step) for name, value in values.items()]
        if len(self._buffer) >= FLUSH_METRICS or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends what is buffered."""
        self._last_flush = time.monotonic()
        if self._store is not None and self.run_id is not None:
            batch, self._buffer = self._buffer, []
            with self._offline_if_it_fails():
                self._store.metrics(self.run_id, batch)

    def end(self, status: Status) -> None:
        """Sends the rest and closes the run."""
        self.flush()
        if self._store is not None:
            with self._offline_if_it_fails():
                self._store.client.set_terminated(self.run_id, status)
                self._store.client.set_terminated(self._parent, status)

    @contextmanager
    def _offline_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._store = None
            _say(error, self._workspace)


@contextmanager
def run(row: Row, seed: int, workspace: Workspace, identity: str | None = None) -> Iterator[Tracker]:
    """A :class:`Tracker` for the training of one seed; the run's status follows how the block ends.

    It goes on with the newest run of this row, seed and :func:`run_key` of which no finished weights are known, and
    logs no iteration twice; otherwise it makes one.

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
    """Sends what MLflow lacks of rows' metrics files, pictures and pages. Idempotent.

    Files of other settings than the row has today are left out, as in the tables.

    Returns:
        Number of values sent, by the name of each row that has metrics files.

    Raises:
        DanetError: if MLflow cannot be reached, in one line.
    """
    found = [(row, parts) for row in rows if (parts := _parts(read(row, workspace), workspace))]
    sent: dict[str, int] = {}
    if not found:
        return sent
    try:
        store, params = Store(workspace), workspace.params()
        for row, parts in found:
            before = store.sent
            _write(store, row, parts, params)
            sent[row.name] = store.sent - before
    except Exception as error:
        raise DanetError(_reason(error, workspace)) from error
    return sent


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
    measured: Measurement
    """Of this part alone."""
    key: str
    verdict: Callable[[list[float], float], str]
    weights: str = ""
    files: Sequence[tuple[Path, str | None]] = ()
    """And their folder among the run's artifacts."""

    @property
    def stages(self) -> list[TrainedSeed | EvaluatedSeed]:
        """What the files say, of training first."""
        return [*self.measured.trained, *self.measured.runs]

    def fact(self, name: str) -> str:
        """A fact of the stages, or several if they differ; empty if none of them says."""
        values = [stage.facts.get(name) for stage in self.stages]
        return "; ".join(dict.fromkeys(str(value) for value in values if value is not None))

    @property
    def seconds(self) -> float:
        """Of work, without the time in which nothing ran."""
        hours = sum(run.hours for run in self.measured.trained)
        return 3600 * hours + sum(run.provenance.wall_seconds or 0.0 for run in self.measured.runs)

    @property
    def began(self) -> int:
        """Milliseconds since 1970, by the end of the first stage, which is what the files say."""
        try:
            ended = datetime.fromisoformat(str(self.stages[0].provenance.date)).timestamp()
        except ValueError:
            ended = time.time()
        return int(1000 * (ended - self.seconds))

    @property
    def weights_sha256(self) -> str | None:
        """Of the weights that were trained or evaluated; ``None`` of several seeds."""
        return self.stages[-1].weights_sha256 if self.weights else None


def _parts(measured: Measurement, workspace: Workspace) -> list[_Part]:
    """A row's runs, the row's own first; none if there is no metrics file of its settings."""
    row, bands = measured.row, workspace.params().bands
    metrics, pictures, page = workspace.metrics(row), workspace.evaluation(row), workspace.reports() / row.table
    parts = []

    def judged(values: list[float], number: float) -> str:
        return judge(values, number, bands.of(row.dataset)).text

    for seed in sorted(
        {run.seed for run in measured.trained} | {run.seed for run in measured.runs if run.seed is not None}
    ):
        one = replace(
            measured,
            trained=tuple(run for run in measured.trained if run.seed == seed),
            runs=tuple(run for run in measured.runs if run.seed == seed),
        )
        key = run_key(row, one.trained[0].identity if one.trained else one.runs[0].training)
        files = _pictures(metrics, pictures, f"seed{seed}") if one.runs else []
        parts.append(_Part(str(seed), one, key, judged, f"models/{row.name}/seed{seed}.safetensors", files))
    released = measured.verification.file
    if released is not None and released.weights is not None:
        weights, folder = released.weights, workspace.verification(row)
        parts.append(
            _Part(
                RELEASED,
                replace(measured, trained=(), runs=released.runs),
                weights.sha256,
                lambda values, number: agreement(values[0], number, bands.released),
                weights.source or weights.file or "",
                _pictures(folder, folder, RELEASED),
            )
        )
    pages = [(page / f"{row.name}{end}", None) for end in (".md", ".png", "-confusion.png")]
    return [_Part(ALL_SEEDS, measured, run_key(row), judged, files=pages), *parts] if parts else []


def _pictures(tables: Path, pictures: Path, name: str) -> list[tuple[Path, str | None]]:
    found = [path for path in sorted(pictures.glob(f"{name}-*.png")) if not path.name.endswith("-prediction.png")]
    return [(path, "evaluation") for path in (tables / "per_class.csv", *found)]


def _findings(part: _Part, source: Published) -> tuple[dict[str, float], dict[str, str]]:
    """Metrics, each beside its spread and what is published; and the verdicts on them."""
    numbers: dict[str, float] = {}
    verdicts: dict[str, str] = {}
    for metric in (*ACCURACY, *COSTS):
        values, name = part.measured.values(metric), COSTS.get(metric, metric)
        if (summary := summarise(values)) is None:
            continue
        numbers[name] = summary.mean
        if metric in ACCURACY and summary.sd is not None:
            numbers[f"{name}_sd"] = summary.sd
        against = getattr(source, metric, None) if metric in ACCURACY else None
        if against is not None:
            numbers |= {f"{name}_published": against, f"{name}_difference": summary.mean - against}
            if metric in VERDICTS:
                verdicts[VERDICTS[metric]] = part.verdict(values, against)
    return {name: round(value, 4) for name, value in numbers.items()}, verdicts


def _note(row: Row, part: _Part, numbers: Mapping[str, float], verdicts: Mapping[str, str], page: str) -> str:
    """Markdown: what was found, where, and how to do it again."""
    lines = []
    for metric, tag in VERDICTS.items():
        if metric in numbers:
            sd, verdict = numbers.get(f"{metric}_sd"), verdicts.get(tag)
            text = f"- **{ACCURACY[metric]} {numbers[metric]:.2f}**" + ("" if sd is None else f" ± {sd:.2f}")
            if f"{metric}_published" in numbers:
                text += f", published {numbers[f'{metric}_published']:.2f} ({numbers[f'{metric}_difference']:+.2f})"
            lines.append(text + (f": {verdict}" if verdict else ""))
    again = f"dvc repro {'verify' if part.seed == RELEASED else 'evaluate'}@{row.name}"
    lines += [f"- [The row's page]({page})", "", f"{row.protocol[:1].upper()}{row.protocol[1:]}.", "", f"    {again}"]
    return "\n".join(lines)


def _write(store: Store, row: Row, parts: Sequence[_Part], params: Params) -> None:
    """Brings a row's run and those below it up to date."""
    experiment = store.experiment(experiment_name(row.table, params))
    source = published(row.name) if params.tables[row.table].published else Published()
    parent: Any = None
    for part in parts:
        run = store.open(
            experiment, row, part.seed, part.key, began=part.began, parent=parent, weights=part.weights_sha256
        )
        parent = parent or run
        run_id, end = run.info.run_id, run.info.start_time + int(1000 * part.seconds)
        trained = part.measured.trained if part.weights else ()
        known = store.steps(run) if trained else set()
        points = []
        for seed_run in trained:
            curve = part.measured.curves.get(seed_run.seed, {})
            for place, step in enumerate(curve.get("iteration", ())):
                values = {name: column[place] for name, column in curve.items() if name != "iteration"}
                if step is not None and int(step) not in known:
                    points += [Point(f"train/{n}", v, end, int(step)) for n, v in values.items() if v is not None]
        numbers, verdicts = _findings(part, source)
        last = trained[0].iterations if trained else 0
        points += store.corrections(run, numbers, end, last, GONE if part.measured.status != "not run" else ())
        store.metrics(run_id, points)
        page = f"#/experiments/{experiment}/runs/{parent.info.run_id}/artifacts/{row.name}.md"
        tags = {
            "manifest_hash": part.fact("manifest_hash"),
            "initial_weights_sha256": part.fact("imagenet_sha256"),
            "hardware": "; ".join(dict.fromkeys(filter(None, (stage.provenance.hardware for stage in part.stages)))),
            "mlflow.source.git.commit": part.fact("commit"),
            "mlflow.note.content": _note(row, part, numbers, verdicts, page),
            "weights_file": part.weights,
            "weights_sha256": part.weights_sha256,
            **verdicts,
        }
        store.tags(run, {name: value for name, value in tags.items() if value})
        store.untag(run, set(VERDICTS.values()) - verdicts.keys())
        store.data_set(run_id, row, part.fact("manifest_hash"))
        for path, folder in part.files:
            if path.is_file():
                store.client.log_artifact(run_id, str(path), folder)
        if (run.info.status, run.info.end_time) != ("FINISHED", end):
            store.client.set_terminated(run_id, "FINISHED", end)


def _reason(error: Exception, workspace: Workspace) -> str:
    """Why a store cannot be used, in one line without user names and passwords of addresses."""
    reason = error.args[0] if isinstance(error, DanetError) else " ".join(str(error).split())
    text = f"MLflow cannot be reached at {tracking_uri(workspace)}: {str(reason)[:300]}"
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def _say(error: Exception, workspace: Workspace) -> None:
    reason = str(error) if isinstance(error, DanetError) else _reason(error, workspace)
    console.print(f"[yellow]{escape(reason)}[/]; `danet sync` sends the metrics files later")
