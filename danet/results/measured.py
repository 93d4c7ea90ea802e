"""What is known of a row: its metrics files, with nothing in them that belongs to another row, training or data set,
beside the published numbers.

A file that is damaged, or that follows from something else than the row does today, is named in
:attr:`Measurement.problems` with the stage to run, and nothing of it is used.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from danet.config.params import Params
from danet.config.published import Published, published
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import DataError
from danet.core.text import fact
from danet.results.schema import (
    ACCURACIES,
    Accuracy,
    EvaluatedSeed,
    Evaluation,
    EvaluationFile,
    Facts,
    ModeResult,
    Modes,
    Problem,
    ReleasedResult,
    Status,
    TableRow,
    TrainedSeed,
    TrainingFile,
    load,
)
from danet.results.verdict import agreement, judge, judge_means, summarise

if TYPE_CHECKING:
    from pandas import DataFrame
else:
    DataFrame = Any  # imported by who draws curves alone

JUDGED = ("miou", "miou_ms_flip")
"""Accuracies with a verdict: the band is declared in points of mIoU."""
CURVE_VALUES = ("loss", "loss_main", "loss_pam", "loss_cam", "loss_aux", "lr", "images_per_second", "val_miou")
"""What a learning curve may have beside ``iteration``."""


class Measurement(TableRow):
    """All that is known of a row: what stands in a table's JSON, and what that leaves out."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    row: Row
    runs: tuple[EvaluatedSeed, ...]
    classes: tuple[str, ...]
    curves: dict[int, DataFrame]
    """By seed: a line for each iteration, with ``iteration`` and columns of :data:`CURVE_VALUES`."""
    problems: tuple[Problem, ...]

    @property
    def measured(self) -> bool:
        """Whether a seed has a result."""
        return bool(self.runs)

    def accuracy(self, name: str) -> Accuracy:
        """All ``None`` if it is neither published nor measured."""
        return self.accuracies.get(name, Accuracy())

    def mean(self, accuracy: str) -> float | None:
        """Percent, over the seeds."""
        return self.accuracy(accuracy).mean

    @property
    def baseline(self) -> tuple[float, str]:
        """mIoU of the best constant prediction, in percent, and its class; for a row with a result."""
        miou, place = self.runs[0].modes.ss.scores.constant
        return miou, self.classes[place]

    @property
    def costs(self) -> dict[str, float]:
        """What seeds took, as far as it is known, mean over the seeds.

        Of training ``peak_memory_gib``, ``images_per_second``, ``hours``, ``device_hours`` (hours times GPUs); of
        testing ``fps``.
        """
        found = {
            "peak_memory_gib": mean(run.peak_memory_gib for run in self.trained),
            "images_per_second": mean(run.images_per_second for run in self.trained),
            "hours": mean(run.hours for run in self.trained),
            "device_hours": mean(run.hours * run.devices for run in self.trained),
            "fps": mean(run.fps for run in self.runs),
        }
        return {name: value for name, value in found.items() if value is not None}

    def confusion(self) -> NDArray[np.int64]:
        """Pixels over all seeds at single scale, ground truth x prediction; for a row with a result."""
        matrices: list[NDArray[np.int64]] = [run.modes.ss.matrix for run in self.runs]
        return np.sum(matrices, axis=0)  # type: ignore[no-any-return]


def mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are known; ``None`` without any."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def hardware(stages: Iterable[TrainedSeed | Evaluation]) -> str | None:
    """What computed some stages: one name, or several if they differ."""
    names = (stage.provenance.hardware for stage in stages)
    return "; ".join(dict.fromkeys(name for name in names if name)) or None


def class_iou(classes: Sequence[str], results: Iterable[ModeResult]) -> dict[str, float | None]:
    """Percent by class: the mean over the results that have the class, ``None`` for a class that none has."""
    means = [mean(column) for column in zip(*(result.scores.iou for result in results), strict=True)]
    return dict(zip(classes, means, strict=False))  # without results, without classes


def accuracies(runs: Sequence[Modes], source: Published, band: float) -> dict[str, Accuracy]:
    """Seeds beside what is published, with the verdict of :mod:`danet.results.verdict`."""

    def verdict(name: str, values: list[float], against: float | None) -> str | None:
        if against is None or name not in JUDGED:
            return None
        if name == "miou" and source.seeds:
            return judge_means(values, source.seeds, band).text
        return judge(values, against, band).text

    return _accuracies(runs, source, band, verdict)


def _accuracies(
    runs: Sequence[Modes],
    source: Published,
    band: float,
    verdict: Callable[[str, list[float], float | None], str | None],
) -> dict[str, Accuracy]:
    found = {}
    for name in ACCURACIES:
        values = [modes.accuracies[name] for modes in runs if name in modes.accuracies]
        against: float | None = getattr(source, name, None)
        summary = summarise(values)
        if summary is None and against is None:
            continue
        text = verdict(name, values, against)
        found[name] = Accuracy(
            published=against,
            difference=None if summary is None or against is None else summary.mean - against,
            verdict=text,
            band=None if text is None else band,
            values=tuple(values),
            **({} if summary is None else {k: v for k, v in asdict(summary).items() if k != "n"}),
        )
    return found


def _released(status: Status, file: EvaluationFile | None, source: Published, band: float) -> ReleasedResult:
    if file is None:
        return ReleasedResult(status=status)
    run = file.runs[0]
    # where the source gives seeds, its pixel accuracy is a mean over them as well
    against = {"miou": source.released_miou, "aacc": None if source.seeds else source.aacc}
    found = _accuracies(
        [run.modes],
        source.model_copy(update=against),
        band,
        lambda _, values, published: agreement(values[0] if values else None, published, band) or None,
    )
    return ReleasedResult(status=status, weights=file.weights, evaluation=run, accuracies=found)


def read(row: Row, params: Params, workspace: Workspace) -> Measurement:
    """What the metrics files say of a row, beside its published numbers.

    Never raises for what is in the metrics files: see :attr:`Measurement.problems`.
    """
    files = _Files(row, workspace)
    file = files.load("evaluation.json", EvaluationFile, "evaluate")
    released = files.load("verification.json", EvaluationFile, "verify")
    training = files.load("train.json", TrainingFile, "train")
    trained = files.of_the_row(training.runs, "train.json") if training else ()
    runs = files.of_the_row(file.runs, "evaluation.json") if file else ()
    # where train.json cannot be used, nothing says that these are results of the row's training
    kept = () if files.status("train.json", training) == "left out" else files.of_the_training(runs, trained)
    released_status = files.status("verification.json", released)
    source = published(row.name) if params.tables[row.table].published else Published()
    band = params.bands.of(row.dataset)
    best = [run.best_on_val.modes for run in kept if run.best_on_val]
    some = row.name in params.released or released_status != "not run"
    classes = file.classes if file else ()
    return Measurement(
        name=row.name,
        row_hash=row.hash,
        status=files.status("evaluation.json", kept),
        published=source,
        accuracies=accuracies([run.modes for run in kept], source, band),
        best_on_val={name: found.mean or 0.0 for name, found in accuracies(best, Published(), band).items()},
        released=_released(released_status, released, source, params.bands.released) if some else None,
        iou=class_iou(classes, [run.modes.ss for run in kept]),
        trained=trained,
        runs=kept,
        settings=row.settings,
        row=row,
        classes=classes,
        curves=files.curves({run.seed for run in trained}),
        problems=tuple(files.problems),
    )


D = TypeVar("D", EvaluationFile, TrainingFile)
Seed = TypeVar("Seed", TrainedSeed, EvaluatedSeed)


class _Files:
    """The metrics files of a row, and why parts of them are not used."""

    def __init__(self, row: Row, workspace: Workspace) -> None:
        self._row, self._root, self._folder = row, workspace.root, workspace.metrics(row)
        self.problems: list[Problem] = []

    def _leave_out(self, name: str, reason: object) -> None:
        path = self._folder / name
        text = " ".join(str(reason).removeprefix(f"{path}: ").split())
        self.problems.append(Problem(file=path.relative_to(self._root).as_posix(), reason=text))

    def status(self, name: str, used: object) -> Status:
        """Of a file, from what of it is used."""
        return "measured" if used else "left out" if (self._folder / name).exists() else "not run"

    def load(self, name: str, kind: type[D], stage: str) -> D | None:
        """A file's content, if there is any that can be used."""
        path, stage = self._folder / name, f"{stage}@{self._row.name}"
        if not path.exists():
            return None
        try:
            # DVC does not know of a document's format. A seed that is trained is not trained again by this.
            file = load(path, kind, f"run `dvc repro --single-item --force {stage}`")
            if file.row != self._row.name:
                raise DataError(f"belongs to row {file.row!r}, not to {self._row.name!r}")
            _of_today(file, self._row, f"run `dvc repro {stage}`")
        except DataError as error:
            self._leave_out(name, error)
            return None
        return file

    def of_the_row(self, runs: Sequence[Seed], name: str) -> tuple[Seed, ...]:
        """The seeds that the row has, in their order."""
        kept = {}
        for run in sorted(runs, key=lambda run: run.seed or 0):
            if run.seed in self._row.seeds:
                kept[run.seed] = run
            else:
                self._leave_out(name, f"seed {run.seed} is not among the row's seeds {list(self._row.seeds)}")
        return tuple(kept.values())

    def of_the_training(
        self, runs: tuple[EvaluatedSeed, ...], trained: tuple[TrainedSeed, ...]
    ) -> tuple[EvaluatedSeed, ...]:
        """The evaluated seeds that are of the training at hand, where ``train.json`` says which it is."""
        again = f"run `dvc repro evaluate@{self._row.name}`"
        training: dict[int | None, TrainedSeed] = {run.seed: run for run in trained}
        kept = []
        for run in runs:
            own = training.get(run.seed)
            if own and (own.identity, own.weights_sha256) != (run.training, run.weights_sha256):
                reason = f"of the training {run.training} (weights {run.weights_sha256[:12]}), train.json is of "
                reason += f"{own.identity} ({own.weights_sha256[:12]}): {again}"
                self._leave_out("evaluation.json", f"seed {run.seed}: stale: {reason}")
            else:
                kept.append(run)
        return tuple(kept)

    def curves(self, seeds: set[int]) -> dict[int, DataFrame]:
        """By seed; without a valid ``train.json`` nothing says whose curve it is."""
        path = self._folder / "curve.csv"
        if not path.exists() or not seeds:
            return {}
        import pandas as pd

        try:
            table = pd.read_csv(path)
            columns = [name for name in CURVE_VALUES if name in table.columns]
            curves = table[["seed", "iteration", *columns]].astype(float).sort_values("iteration").groupby("seed")
        except (OSError, ValueError, KeyError) as error:
            self._leave_out("curve.csv", f"cannot be used: {error}")
            return {}
        return {seed: curves.get_group(seed).drop(columns="seed") for seed in sorted(seeds) if seed in curves.groups}


def _of_today(file: EvaluationFile | TrainingFile, row: Row, again: str) -> None:
    """Raises ``DataError`` for a file of other settings than the row's, or of seeds that do not belong together."""
    kind, then, now = "training", file.train_hash, row.train_hash
    if isinstance(file, EvaluationFile):
        kind, then, now = "row", file.row_hash, row.hash
    if then != now:
        raise DataError(f"stale: of {kind} hash {then}, the row is {now} today: {again}")
    for name in ("data", "initial_weights"):
        values = sorted({str(getattr(run, name, None))[:12] for run in file.runs})
        if len(values) > 1:
            raise DataError(
                f"stale: its seeds are of different {name.replace('_', ' ')} ({', '.join(values)}): {again}"
            )


def facts(stages: Mapping[str, Sequence[TrainedSeed | Evaluation]]) -> dict[str, Facts]:
    """Identity and provenance by stage."""
    found: dict[str, Facts] = {}
    for stage, runs in stages.items():
        left_out = {"provenance", "modes", "best_on_val"}
        whole = [run.model_dump(exclude=left_out) | run.provenance.model_dump() for run in runs]
        columns = {key: [one[key] for one in whole] for key in (whole[0] if whole else ())}
        found[stage] = {key: values if len(set(values)) > 1 else values[0] for key, values in columns.items()}
    return {stage: known for stage, known in found.items() if known}


def facts_table(stages: dict[str, Facts]) -> tuple[list[str], list[list[str]]]:
    """Head and lines: a column for each stage of :func:`facts`."""
    names = dict.fromkeys(name for known in stages.values() for name in known)
    return ["", *stages], [[name, *(fact(known.get(name)) for known in stages.values())] for name in names]
