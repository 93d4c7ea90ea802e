"""Reading what was measured: the metrics files of a row, checked before any number of them is believed.

A file that lacks fields, holds NaN or infinity, contradicts another, or belongs to other settings than the row has
today is named in :attr:`Measurement.problems` and nothing of it is used.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from danet.config.row import Row
from danet.config.workspace import Workspace

Status = Literal["measured", "not run", "stale", "left out"]

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

CURVE_VALUES = ("loss", "loss_main", "loss_pam", "loss_cam", "loss_aux", "lr", "images_per_second", "val_miou")


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # later versions may add fields


class Mode(_File):
    """Result of one testing mode of one seed, in percent."""

    miou: Percent
    aacc: Percent
    macc: Percent
    iou: tuple[Percent | None, ...]
    """One per class; ``None`` where the class is neither present nor predicted."""
    acc: tuple[Percent | None, ...] = ()
    images: int | None = None
    confusion_rows: tuple[str, ...] = ()
    """The confusion matrix: a line of pixel counts per class of the ground truth; empty in files without."""

    def confusion(self) -> list[list[int]]:
        """Ground truth x prediction, in pixels.

        Raises:
            ValueError: if it is not square, not of as many classes as there are IoUs, or gives other IoUs than these.
        """
        matrix = [[int(count) for count in line.split()] for line in self.confusion_rows]
        if not matrix:
            return []
        size = len(self.iou)
        if len(matrix) != size or any(len(line) != size or min(line) < 0 for line in matrix):
            raise ValueError(f"the confusion matrix is not of {size} x {size} counts")
        for place, iou in enumerate(self.iou):
            hit = matrix[place][place]
            union = sum(matrix[place]) + sum(line[place] for line in matrix) - hit
            if union and abs(100 * hit / union - (iou or 0.0)) > 0.01:
                raise ValueError(f"IoU {place} is {iou}, by the confusion matrix {100 * hit / union:.4f}")
        return matrix


class BestOnVal(_File):
    """The weights of the epoch that was best on val, of a row that keeps them beside the last ones."""

    iteration: int
    score: Finite
    """(pixAcc + mIoU) / 2 on centre crops, in percent."""
    modes: dict[str, Mode]


class Evaluated(_File):
    """One seed of ``evaluation.json``."""

    seed: int
    modes: dict[str, Mode]
    best_on_val: BestOnVal | None = None
    baseline_miou: Percent | None = None
    baseline_class: str | None = None
    fps: Amount | None = None
    """As published: one image at a time, its windows one after another."""
    fps_batched: Amount | None = None
    """With the windows and mirror images of an image batched."""
    training: str | None = None
    """Digest of the training's identity."""
    provenance: dict[str, Any] = {}

    @model_validator(mode="after")
    def _single_scale(self) -> Evaluated:
        if "ss" not in self.modes:
            raise ValueError("modes.ss is missing")
        return self


class Verified(_File):
    """The released weights of ``verification.json``."""

    modes: dict[str, Mode]
    provenance: dict[str, Any] = {}

    @model_validator(mode="after")
    def _single_scale(self) -> Verified:
        if "ss" not in self.modes:
            raise ValueError("modes.ss is missing")
        return self


class Trained(_File):
    """One seed of ``train.json``."""

    seed: int
    iterations: int
    final_loss: Finite
    images_per_second: Amount | None = None
    hours: Amount | None = None
    peak_memory_gib: Amount | None = None
    weights_sha256: str | None = None
    identity: str | None = None
    """Digest of :class:`.TrainingIdentity`."""
    provenance: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _memory_in_gib(cls, data: Any) -> Any:
        """Files of before December 2026 give GB of 1e9 bytes."""
        if isinstance(data, dict) and isinstance(data.get("peak_memory_gb"), int | float):
            return {"peak_memory_gib": round(data["peak_memory_gb"] * 1e9 / 2**30, 3), **data}
        return data

    @property
    def devices(self) -> int:
        """GPUs; 1 for a CPU, or where the file does not say."""
        gpus = self.provenance.get("gpus")
        return max(1, gpus) if isinstance(gpus, int) else 1


class _EvaluationFile(_File):
    format: Literal[1]
    row: str
    row_hash: str
    classes: tuple[str, ...]
    runs: list[Any]


class _VerificationFile(_File):
    format: Literal[1]
    row: str
    row_hash: str
    classes: tuple[str, ...]
    weights: dict[str, Any]
    runs: tuple[Verified]


class _TrainFile(_File):
    format: Literal[1]
    row: str
    train_hash: str
    runs: list[Any]


class _MetricsFile(_File):
    miou: Percent
    aacc: Percent
    macc: Percent
    miou_ms_flip: Percent | None = None


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
    run: Verified | None = None
    weights: dict[str, Any] = field(default_factory=dict)
    """Their ``file``, ``sha256`` (as released), ``source`` and ``checksum`` (``matches`` or ``none`` is published)."""

    def value(self, metric: str) -> float | None:
        """``miou``, ``miou_ms_flip``, ``aacc``, ``aacc_ms``, ``macc`` or ``macc_ms`` in percent."""
        mode = self.run.modes.get("ms" if "_ms" in metric else "ss") if self.run else None
        return None if mode is None else float(getattr(mode, metric.partition("_")[0]))


@dataclass(frozen=True)
class Measurement:
    """All that is known of a row."""

    row: Row
    status: Status
    runs: tuple[Evaluated, ...] = ()
    classes: tuple[str, ...] = ()
    trained: tuple[Trained, ...] = ()
    curves: dict[int, dict[str, list[float | None]]] = field(default_factory=dict)
    """By seed: ``iteration`` and the columns of :data:`CURVE_VALUES` that the file has."""
    problems: tuple[Problem, ...] = ()
    verification: Verification = Verification("not run")

    def values(self, metric: str) -> list[float]:
        """One number per seed: ``miou``, ``miou_ms_flip``, ``aacc``, ``aacc_ms``, ``macc``, ``fps``, ``fps_batched``,
        ``baseline_miou``, ``memory_gb``, ``hours``, ``device_hours`` (hours times GPUs), ``images_per_second``; seeds
        without it are left out.
        """
        found: list[float | None]
        if metric in {"miou", "aacc", "macc"}:
            found = [getattr(run.modes["ss"], metric) for run in self.runs]
        elif metric in {"miou_ms_flip", "aacc_ms", "macc_ms"}:
            found = [getattr(run.modes["ms"], metric.partition("_")[0]) for run in self.runs if "ms" in run.modes]
        elif metric in {"fps", "fps_batched", "baseline_miou"}:
            found = [getattr(run, metric) for run in self.runs]
        elif metric == "device_hours":
            found = [None if run.hours is None else run.hours * run.devices for run in self.trained]
        else:
            name = {"memory_gb": "peak_memory_gib"}.get(metric, metric)
            found = [getattr(run, name) for run in self.trained]
        return [value for value in found if value is not None]

    def best_on_val(self, metric: str) -> list[float]:
        """As :meth:`values` for an accuracy, of the weights that were best on val."""
        mode, name = "ms" if "_ms" in metric else "ss", metric.partition("_")[0]
        best = [run.best_on_val.modes for run in self.runs if run.best_on_val]
        return [float(getattr(modes[mode], name)) for modes in best if mode in modes]

    def confusion(self, mode: str = "ss") -> list[list[int]]:
        """Pixels over all seeds, ground truth x prediction; empty where a seed's file has none."""
        matrices = [run.modes[mode].confusion() for run in self.runs if mode in run.modes]
        if not matrices or not all(matrices):
            return []
        lines = zip(*matrices, strict=True)
        return [[sum(counts) for counts in zip(*same, strict=True)] for same in lines]

    def class_iou(self, mode: str = "ss") -> list[float | None]:
        """Mean over seeds of each class's IoU; ``None`` for a class that no seed has."""
        columns = zip(*(run.modes[mode].iou for run in self.runs if mode in run.modes), strict=True)
        means: list[float | None] = []
        for column in columns:
            present = [value for value in column if value is not None]
            means.append(sum(present) / len(present) if present else None)
        return means


def read(row: Row, workspace: Workspace) -> Measurement:
    """What the metrics files say of a row. Never raises for what is in the files: see :attr:`Measurement.problems`."""
    reader = _Reader(row, workspace)
    status, runs, classes = reader.evaluation()
    trained = reader.training()
    runs = reader.of_these_weights(runs, trained)
    if status == "measured" and not runs:
        status = "stale"
    curves = reader.curves({run.seed for run in trained})
    verification = reader.verification()
    return Measurement(row, status, runs, classes, trained, curves, tuple(reader.problems), verification)


T = TypeVar("T", bound=_File)


class _Reader:
    def __init__(self, row: Row, workspace: Workspace) -> None:
        self.row = row
        self.folder = workspace.metrics(row)
        self.root = workspace.root
        self.problems: list[Problem] = []

    def evaluation(self) -> tuple[Status, tuple[Evaluated, ...], tuple[str, ...]]:
        path, summary = self.folder / "evaluation.json", self.folder / "metrics.json"
        if not path.exists():
            if summary.exists():
                self._problem(summary, "there is no evaluation.json beside it")
                return "left out", (), ()
            return "not run", (), ()
        data = self._json(path, _EvaluationFile)
        if data is None or not self._is_rows(path, data.row):
            return "left out", (), ()
        if data.row_hash != self.row.hash:
            self._stale(path, "row", data.row_hash, self.row.hash)
            return "stale", (), ()
        everything = [run for run in self._runs(path, data.runs, Evaluated) if self._fits(path, run, len(data.classes))]
        if summary.exists() and not self._agrees(summary, everything if len(everything) == len(data.runs) else None):
            return "left out", (), ()
        runs = self._seeds_of_row(path, everything)
        if not data.runs:
            self._problem(path, "it holds no runs")
        return ("measured" if runs else "left out"), runs, data.classes

    def verification(self) -> Verification:
        path = self.folder / "verification.json"
        if not path.exists():
            return Verification("not run")
        data = self._json(path, _VerificationFile)
        if data is None or not self._is_rows(path, data.row):
            return Verification("left out")
        if data.row_hash != self.row.hash:
            self._stale(path, "row", data.row_hash, self.row.hash, "verify")
            return Verification("stale")
        run = data.runs[0]
        for name, mode in run.modes.items():
            if len(mode.iou) != len(data.classes):
                self._problem(path, f"{name}: {len(mode.iou)} IoU values for {len(data.classes)} classes")
                return Verification("left out")
        return Verification("measured", run, data.weights)

    def training(self) -> tuple[Trained, ...]:
        path = self.folder / "train.json"
        if not path.exists():
            return ()
        data = self._json(path, _TrainFile)
        if data is None or not self._is_rows(path, data.row):
            return ()
        if data.train_hash != self.row.train_hash:
            self._stale(path, "training", data.train_hash, self.row.train_hash)
            return ()
        return self._seeds_of_row(path, self._runs(path, data.runs, Trained))

    def of_these_weights(self, runs: tuple[Evaluated, ...], trained: tuple[Trained, ...]) -> tuple[Evaluated, ...]:
        """The runs whose weights are those of the training at hand, as far as both files say which."""
        wanted = {run.seed: run.weights_sha256 for run in trained}
        kept = []
        for run in runs:
            found, newest = run.provenance.get("weights_sha256"), wanted.get(run.seed)
            if found and newest and found != newest:
                again = f"trained again since: run `dvc repro evaluate@{self.row.name}`"
                self._problem(self.folder / "evaluation.json", f"seed {run.seed}: stale: of other weights, {again}")
            else:
                kept.append(run)
        return tuple(kept)

    def curves(self, seeds: set[int]) -> dict[int, dict[str, list[float | None]]]:
        path = self.folder / "curve.csv"
        if not path.exists() or not seeds:  # without a valid train.json nothing says whose curve it is
            return {}
        try:
            with path.open(encoding="utf-8", newline="") as stream:
                lines = csv.DictReader(stream)
                columns = [name for name in CURVE_VALUES if name in (lines.fieldnames or ())]
                if not {"seed", "iteration"} <= set(lines.fieldnames or ()) or "loss" not in columns:
                    self._problem(path, "needs the columns seed, iteration and loss")
                    return {}
                points: dict[int, list[tuple[float, ...]]] = {}
                for line in lines:
                    values = [line[name] for name in ("iteration", *columns)]
                    if None in values:
                        raise ValueError(f"line {lines.line_num} is cut off")
                    numbers = tuple(float(value) if value else math.nan for value in values)
                    if any(not math.isfinite(number) and value for number, value in zip(numbers, values, strict=True)):
                        self._problem(path, f"line {lines.line_num}: a value is not finite")
                        return {}
                    points.setdefault(int(line["seed"]), []).append(numbers)
        except (OSError, ValueError, TypeError, csv.Error) as error:
            self._problem(path, f"cannot be read as numbers ({error})")
            return {}
        curves: dict[int, dict[str, list[float | None]]] = {}
        for seed in sorted(set(points) & seeds):
            table = list(zip(*sorted(points[seed], key=lambda point: point[0]), strict=True))
            curves[seed] = {
                name: [None if math.isnan(value) else value for value in column]
                for name, column in zip(("iteration", *columns), table, strict=True)
            }
        return curves

    def _json(self, path: Path, kind: type[T]) -> T | None:
        try:
            return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            self._problem(path, explain(error))
        except (OSError, ValueError, RecursionError) as error:
            self._problem(path, f"is not JSON ({error})")
        return None

    def _runs(self, path: Path, runs: Sequence[Any], kind: type[T]) -> list[T]:
        valid = []
        for number, run in enumerate(runs):
            seed = run.get("seed") if isinstance(run, dict) else None
            try:
                valid.append(kind.model_validate(run))
            except ValidationError as error:
                which = f"run {number}" if seed is None else f"seed {seed}"
                self._problem(path, f"{which}: {explain(error)}")
        return valid

    def _fits(self, path: Path, run: Evaluated, classes: int) -> bool:
        for name, mode in run.modes.items():
            if len(mode.iou) != classes:
                self._problem(path, f"seed {run.seed}, {name}: {len(mode.iou)} IoU values for {classes} classes")
                return False
            try:
                mode.confusion()
            except ValueError as error:
                self._problem(path, f"seed {run.seed}, {name}: {error}")
                return False
        return True

    def _seeds_of_row(self, path: Path, runs: Sequence[Any]) -> tuple[Any, ...]:
        kept: dict[int, Any] = {}
        for run in runs:
            if run.seed not in self.row.seeds:
                self._problem(path, f"seed {run.seed} is not among the row's seeds {list(self.row.seeds)}")
            elif run.seed in kept:
                self._problem(path, f"seed {run.seed} appears twice; only the first is used")
            else:
                kept[run.seed] = run
        return tuple(kept[seed] for seed in sorted(kept))

    def _agrees(self, path: Path, runs: list[Evaluated] | None) -> bool:
        """Whether ``metrics.json``, which DVC shows, says the same as ``evaluation.json``."""
        summary = self._json(path, _MetricsFile)
        if summary is None:
            return False
        for name in ("miou", "aacc", "macc") if runs else ():
            mean = sum(getattr(run.modes["ss"], name) for run in runs or ()) / len(runs or ())
            if abs(getattr(summary, name) - mean) > 0.01:
                self._problem(
                    path,
                    f"{name} is {getattr(summary, name):.4f} here and {mean:.4f} in evaluation.json: evaluate again",
                )
                return False
        return True

    def _is_rows(self, path: Path, name: str) -> bool:
        if name != self.row.name:
            self._problem(path, f"belongs to row {name!r}, not to {self.row.name!r}")
        return name == self.row.name

    def _stale(self, path: Path, what: str, found: str, wanted: str, stage: str = "evaluate") -> None:
        self._problem(
            path, f"stale: of {what} hash {found}, the row is {wanted} today: run `dvc repro {stage}@{self.row.name}`"
        )

    def _problem(self, path: Path, reason: str) -> None:
        text = " ".join(reason.split()).encode("utf-8", "backslashreplace").decode()  # JSON can hold half a character
        self.problems.append(Problem(path.relative_to(self.root).as_posix(), text))


def explain(error: ValidationError) -> str:
    """The first fault in one line: field, what is wrong, the value."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float) and first["type"] != "missing" else ""
    return (f"{where}: " if where else "") + text[:1].lower() + text[1:] + shown


def fact_name(key: str) -> str:
    """A fact of the provenance in words: ``wall seconds``, ``energy, kJ``."""
    return {"peak_memory_gib": "peak memory, GiB", "energy_kj": "energy, kJ"}.get(key, key.replace("_", " "))
