"""What is known of a row: its metrics files, with nothing in them that belongs to another row, training or data set.

A file that is damaged, or that follows from something else than the row does today, is named in
:attr:`Measurement.problems` with the stage to run, and nothing of it is used.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import DataError
from danet.results.schema import EvaluatedSeed, EvaluationFile, Status, TrainedSeed, TrainingFile, load

CURVE_VALUES = ("loss", "loss_main", "loss_pam", "loss_cam", "loss_aux", "lr", "images_per_second", "val_miou")
Curve = dict[str, list[float | None]]
"""``iteration`` and the columns of :data:`CURVE_VALUES` that the file has."""


@dataclass(frozen=True)
class Problem:
    """A file, or a part of it, that is not used."""

    file: str
    """Relative to the workspace."""
    reason: str


@dataclass(frozen=True)
class Verification:
    """What is known of a row's released weights."""

    status: Status
    file: EvaluationFile | None = None

    @property
    def run(self) -> EvaluatedSeed | None:
        """The result."""
        return self.file.runs[0] if self.file else None

    def value(self, metric: str) -> float | None:
        """As :meth:`danet.results.schema.Modes.value`."""
        return self.run.modes.value(metric) if self.run else None


@dataclass(frozen=True)
class Measurement:
    """All that is known of a row."""

    row: Row
    status: Status
    runs: tuple[EvaluatedSeed, ...] = ()
    classes: tuple[str, ...] = ()
    trained: tuple[TrainedSeed, ...] = ()
    curves: dict[int, Curve] = field(default_factory=dict)
    """By seed."""
    problems: tuple[Problem, ...] = ()
    verification: Verification = Verification("not run")

    def values(self, metric: str) -> list[float]:
        """One number per seed; seeds without it are left out.

        Of the evaluation: those of :meth:`danet.results.schema.Modes.value`, ``fps``, ``fps_batched``; of the training:
        ``memory_gb`` (GiB), ``hours``, ``device_hours`` (hours times GPUs), ``images_per_second``.
        """
        found: Iterable[float | None]
        if metric == "device_hours":
            found = [run.hours * run.devices for run in self.trained]
        elif metric in {"memory_gb", "hours", "images_per_second"}:
            found = [getattr(run, {"memory_gb": "peak_memory_gib"}.get(metric, metric)) for run in self.trained]
        elif metric in {"fps", "fps_batched"}:
            found = [getattr(run, metric) for run in self.runs]
        else:
            found = [run.modes.value(metric) for run in self.runs]
        return [value for value in found if value is not None]

    def best_on_val(self, metric: str) -> list[float]:
        """As :meth:`values` for an accuracy, of the weights that were best on val."""
        found = [run.best_on_val.modes.value(metric) for run in self.runs if run.best_on_val]
        return [value for value in found if value is not None]

    def confusion(self) -> NDArray[np.int64]:
        """Pixels over all seeds at single scale, ground truth x prediction; ``0 x 0`` without any."""
        matrices = [run.modes.ss.matrix for run in self.runs]
        return np.sum(matrices, axis=0) if matrices else np.zeros((0, 0), np.int64)

    def class_iou(self, mode: str = "ss") -> list[float | None]:
        """Mean over seeds of each class's IoU; ``None`` for a class that no seed has."""
        return class_means([result.iou for run in self.runs if (result := run.modes.get(mode))])


def class_means(seeds: Sequence[Sequence[float | None]]) -> list[float | None]:
    """By class, the mean over the seeds that have the class."""
    present = [[value for value in column if value is not None] for column in zip(*seeds, strict=True)]
    return [statistics.fmean(values) if values else None for values in present]


def read(row: Row, workspace: Workspace) -> Measurement:
    """What the metrics files say of a row. Never raises for what is in the files: see :attr:`Measurement.problems`."""
    folder, problems = workspace.metrics(row), _Problems(workspace.root)
    status, file = problems.status(folder / "evaluation.json", row, _evaluation)
    released, verification = problems.status(folder / "verification.json", row, _evaluation)
    training_status, training = problems.status(folder / "train.json", row, _training)
    trained = _of_row(training.runs, row, problems, folder / "train.json") if training else ()
    runs = _of_row(file.runs, row, problems, folder / "evaluation.json") if file else ()
    if file and not runs:
        status = "left out"
    kept = problems.same_weights(folder / "evaluation.json", runs, trained, row)
    if training_status == "stale":  # so nothing says that these are results of the row's training
        kept = ()
    if runs and not kept:
        status = "stale"
    try:
        curves = _curves(folder / "curve.csv", {run.seed for run in trained})
    except DataError as error:
        curves = {}
        problems.add(folder / "curve.csv", error)
    classes = file.classes if file else ()
    return Measurement(
        row, status, kept, classes, trained, curves, tuple(problems.found), Verification(released, verification)
    )


class StaleError(DataError):
    """A file of a row, training or data set that is another today."""


T = TypeVar("T")
Seed = TypeVar("Seed", TrainedSeed, EvaluatedSeed)


class _Problems:
    """Collects what is not used."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.found: list[Problem] = []

    def add(self, path: Path, reason: object) -> None:
        """Leaves a file, or a part of it, out."""
        text = " ".join(str(reason).removeprefix(f"{path}: ").split())
        self.found.append(Problem(path.relative_to(self._root).as_posix(), text))

    def status(self, path: Path, row: Row, read_file: Callable[[Path, Row], T]) -> tuple[Status, T | None]:
        """The file's content, or why there is none."""
        if not path.exists():
            return "not run", None
        try:
            return "measured", read_file(path, row)
        except DataError as error:
            self.add(path, error)
            return ("stale" if isinstance(error, StaleError) else "left out"), None

    def same_weights(
        self, path: Path, runs: tuple[EvaluatedSeed, ...], trained: tuple[TrainedSeed, ...], row: Row
    ) -> tuple[EvaluatedSeed, ...]:
        """The evaluated seeds that are of the training at hand, where ``train.json`` says which it is."""
        again = f"run `dvc repro evaluate@{row.name}`"
        training: dict[int | None, TrainedSeed] = {run.seed: run for run in trained}
        kept = []
        for run in runs:
            own = training.get(run.seed)
            if own and own.weights_sha256 != run.weights_sha256:
                self.add(path, f"seed {run.seed}: stale: of other weights than train.json's: {again}")
            elif own and own.identity != run.training:
                self.add(
                    path,
                    f"seed {run.seed}: stale: of the training {run.training}, train.json is of {own.identity}: {again}",
                )
            else:
                kept.append(run)
        return tuple(kept)


def _evaluation(path: Path, row: Row) -> EvaluationFile:
    stage = f"{'verify' if path.stem == 'verification' else 'evaluate'}@{row.name}"
    again = f"run `dvc repro {stage}`"
    file = load(path, EvaluationFile, _by_force(stage))
    _belongs(file.row, row)
    if file.row_hash != row.hash:
        raise StaleError(f"stale: of row hash {file.row_hash}, the row is {row.hash} today: {again}")
    _one_value("tested on different data", {run.data for run in file.runs}, again)
    return file


def _training(path: Path, row: Row) -> TrainingFile:
    again = f"run `dvc repro train@{row.name}`"
    file = load(path, TrainingFile, _by_force(f"train@{row.name}"))
    _belongs(file.row, row)
    if file.train_hash != row.train_hash:
        hashes = f"{file.train_hash}, the row is {row.train_hash}"
        raise StaleError(f"stale: of training hash {hashes} today: {again}")
    _one_value("trained on different data", {run.data for run in file.runs}, again)
    _one_value("trained from different initial weights", {run.initial_weights or "none" for run in file.runs}, again)
    return file


def _by_force(stage: str) -> str:
    """DVC does not know of a document's format. A seed that is trained is not trained again by this."""
    return f"run `dvc repro --single-item --force {stage}`"


def _belongs(name: str, row: Row) -> None:
    if name != row.name:
        raise DataError(f"belongs to row {name!r}, not to {row.name!r}")


def _one_value(what: str, values: set[str], again: str) -> None:
    if len(values) > 1:
        raise StaleError(f"stale: the seeds were {what} ({', '.join(sorted(value[:12] for value in values))}): {again}")


def _of_row(runs: Sequence[Seed], row: Row, problems: _Problems, path: Path) -> tuple[Seed, ...]:
    for run in runs:
        if run.seed not in row.seeds:
            problems.add(path, f"seed {run.seed} is not among the row's seeds {list(row.seeds)}")
    kept = {run.seed: run for run in runs if run.seed in row.seeds}
    return tuple(kept[seed] for seed in sorted(kept, key=lambda seed: seed or 0))


def _curves(path: Path, seeds: set[int]) -> dict[int, Curve]:
    """By seed; without a valid ``train.json`` nothing says whose curve it is.

    Raises:
        DataError: if the file lacks columns or holds something that is not a finite number.
    """
    if not path.exists() or not seeds:
        return {}
    curves: dict[int, Curve] = {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = csv.DictReader(stream)
            present = lines.fieldnames or ()
            if not {"seed", "iteration", "loss"} <= set(present):
                raise DataError("needs the columns seed, iteration and loss")
            columns = ["iteration", *(name for name in CURVE_VALUES if name in present)]
            points = sorted(
                ((int(line["seed"]), [_number(line[name]) for name in columns]) for line in lines),
                key=lambda point: (point[0], point[1][0] or 0.0),
            )
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"cannot be read as numbers ({error})") from None
    for seed in sorted(seeds & {seed for seed, _ in points}):
        table = zip(*(values for each, values in points if each == seed), strict=True)
        curves[seed] = {name: list(column) for name, column in zip(columns, table, strict=True)}
    return curves


def _number(text: str | None) -> float | None:
    if text is None:
        raise ValueError("a line is cut off")
    if text and not math.isfinite(float(text)):
        raise ValueError(f"{text} is not finite")
    return float(text) if text else None


def fact_name(key: str) -> str:
    """A fact of the provenance in words: ``wall seconds``, ``energy, kJ``."""
    return {"peak_memory_gib": "peak memory, GiB", "energy_kj": "energy, kJ"}.get(key, key.replace("_", " "))
