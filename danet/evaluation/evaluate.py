"""Evaluating a row: its trained weights over its validation split, by its own protocol, to files that are kept."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, DataError
from danet.core.files import atomic_write, replace_folder
from danet.core.process import Process, processes
from danet.data.prepared import PreparedDataset
from danet.evaluation.subject import Bench, Subject
from danet.results import store
from danet.results.identity import TrainingIdentity, trained_on
from danet.results.schema import BestOnVal, EvaluatedSeed, EvaluationFile, MetricsFile, ReleasedFile, save
from danet.weights.imagenet import backbone_sha256


@dataclass(frozen=True)
class RowEvaluation:
    """What was written, and where.

    Of released weights (:func:`evaluate_released`) the document is called ``verification.json``.
    """

    metrics: MetricsFile
    evaluation: EvaluationFile
    folder: Path
    """Of ``evaluation.json``."""
    kept: bool = False
    """Whether nothing had to be evaluated: all of it was done before."""


def evaluate_row(
    row: Row,
    workspace: Workspace,
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
    weights: Path | None = None,
    reuse: bool = False,
) -> RowEvaluation:
    """Evaluates every seed of a row in every mode it defines, and writes metrics and pictures.

    ``evaluation.json`` and ``per_class.csv`` go to ``workspace.metrics(row)``, the means to ``workspace.scores(row)``;
    pictures of the confusion matrices, overlays and prediction masks of ``row.runtime.overlays`` images, evenly spaced
    over the split, to ``workspace.evaluation(row)``. Files of an earlier evaluation are replaced at the end.

    Under torchrun the images are divided over the processes, and the first writes.

    Args:
        row: what to evaluate.
        workspace: where everything is.
        device: by default the GPU if there is one.
        progress: whether to print progress (``row.runtime.progress: never`` silences it too).
        weights: evaluate this file (trained, imported or raw released) instead of the row's trained weights. Nothing of
            the row is then overwritten: everything goes to ``workspace.evaluation_of(row, weights)``.
        reuse: take over the seeds whose whole :class:`.EvaluationIdentity` was evaluated before (weights, settings,
            data, hardware, versions), instead of evaluating them again.

    Raises:
        CheckpointError: if weights are missing, of another model, or trained with other settings than the row's.
        DataError: if the prepared split is missing or has no labels.
    """
    with processes(device) as process:
        dataset = _labelled_split(row, workspace)
        if weights is None:
            subjects = [subject for seed in row.seeds for subject in _trained(row, workspace, seed)]
            pictures, metrics = workspace.evaluation(row), workspace.metrics(row)
        else:
            if not weights.is_file():
                raise CheckpointError(f"{weights}: does not exist")
            subjects = [Subject(f"seed{row.seeds[0]}", row.seeds[0], weights)]
            pictures = metrics = workspace.evaluation_of(row, weights)
        found, kept = _evaluate(row, dataset, process, subjects, pictures, progress=progress, reuse=reuse)
        document = _document(row, dataset, _with_best(subjects, found))
        result = RowEvaluation(MetricsFile.of(document.runs), document, metrics, kept)
        if process.is_main:
            _write_per_class(metrics / "per_class.csv", document)
            save(metrics / "evaluation.json", document, exclude={"weights"})
            save(metrics / "scores.json" if weights else workspace.scores(row), result.metrics)
        process.barrier()
        return result


def evaluate_released(
    row: Row,
    workspace: Workspace,
    weights: Path,
    facts: ReleasedFile,
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
    reuse: bool = False,
) -> RowEvaluation:
    """Evaluates released weights exactly as :func:`evaluate_row` does trained ones.

    Writes ``verification.json`` beside the row's own metrics files, the means to ``workspace.scores``, and pictures and
    a table of the classes to ``workspace.verification(row)``.

    Args:
        row: whose protocol.
        workspace: where everything is.
        weights: an imported or raw released file.
        facts: of the weights, kept in ``verification.json``.
        device: by default the GPU if there is one.
        progress: whether to print progress.
        reuse: see :func:`evaluate_row`.

    Raises:
        CheckpointError: if the weights are damaged or of another network.
        DataError: if the prepared split is missing or has no labels.
    """
    with processes(device) as process:
        dataset = _labelled_split(row, workspace)
        pictures, metrics = workspace.verification(row), workspace.metrics(row)
        subject = Subject("released", None, weights)
        found, kept = _evaluate(row, dataset, process, [subject], pictures, progress=progress, reuse=reuse)
        document = _document(row, dataset, found, facts)
        result = RowEvaluation(MetricsFile.of(document.runs), document, metrics, kept)
        if process.is_main:
            _write_per_class(pictures / "per_class.csv", document)
            save(metrics / "verification.json", document)
            save(workspace.scores(row, released=True), result.metrics, exclude={"seeds"})
        process.barrier()
        return result


def _labelled_split(row: Row, workspace: Workspace) -> PreparedDataset:
    dataset = PreparedDataset(workspace.prepared(row.dataset), row.val_split)
    if len(dataset) == 0 or not dataset.labelled:
        raise DataError(
            f"{workspace.prepared(row.dataset)}: split {row.val_split} "
            f"{'is empty' if len(dataset) == 0 else 'has no labels'}; set val_split of row {row.name} to another"
        )
    return dataset


def _trained(row: Row, workspace: Workspace, seed: int) -> list[Subject]:
    """A seed's own weights, if they are of the training that the row and the data ask for today: those of the last
    iteration, and where the row keeps them those of the epoch that was best on val.

    Raises:
        CheckpointError: saying what they were trained on instead.
    """
    record = store.load_record(workspace, row, seed)
    path = store.weights_path(workspace, row, seed)
    now = TrainingIdentity.of(
        row,
        seed,
        data=trained_on(row, lambda split: PreparedDataset(workspace.prepared(row.dataset), split).manifest_hash),
        # a machine that only evaluates need not have the ImageNet weights
        initial_weights=backbone_sha256(workspace.weights(row.weights)) or record.identity.initial_weights,
    )
    if changes := record.identity.changes(now):
        raise CheckpointError(
            f"{path}: was trained differently ({'; '.join(changes[:4])}) than row {row.name} is today; "
            f"run `dvc repro train@{row.name}`"
        )
    subjects = [Subject(f"seed{seed}", seed, path, record.identity)]
    if record.best is not None:
        best = store.best_path(workspace, row, seed)
        subjects.append(Subject(f"best-seed{seed}", seed, best, record.identity, record.best))
    return subjects


def _evaluate(
    row: Row,
    dataset: PreparedDataset,
    process: Process,
    subjects: Sequence[Subject],
    pictures: Path,
    *,
    progress: bool,
    reuse: bool,
) -> tuple[list[EvaluatedSeed], bool]:
    """A result for each subject, and whether all were there already. Puts the pictures in their place at the end."""
    pictures.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=pictures.parent, prefix=f".{pictures.name}.", suffix=".tmp"))
    bench = Bench(row, dataset, process, staging, progress and process.is_main and row.runtime.progress != "never")
    try:
        process.agree(
            {"settings of the row": row.hash, "prepared data": dataset.manifest_hash}
            | {f"weights {item.path.name}": item.weights_sha256 for item in subjects if process.world > 1},
            "every node must see the same files: put the workspace on a shared file system, or copy it to all",
        )
        runs, kept = [], True
        for subject in subjects:
            run = bench.kept(subject, pictures) if reuse else None
            kept = kept and run is not None
            runs.append(run or bench.evaluate(subject))
        if process.is_main:
            _publish(staging, pictures)
        return runs, kept
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, final: Path) -> None:
    """Puts the staged folder in the place of the old one."""
    staging.chmod(0o755)
    replace_folder(staging, final)


def _with_best(subjects: Sequence[Subject], runs: Sequence[EvaluatedSeed]) -> list[EvaluatedSeed]:
    """One result a seed: that of its last iteration, which has that of the epoch that was best on val in it."""
    best = {
        subject.seed: BestOnVal(**subject.best.model_dump(), modes=run.modes)
        for subject, run in zip(subjects, runs, strict=True)
        if subject.best
    }
    last = [run for subject, run in zip(subjects, runs, strict=True) if not subject.best]
    return [run.model_copy(update={"best_on_val": best.get(run.seed)}) for run in last]


def _document(
    row: Row, dataset: PreparedDataset, runs: Sequence[EvaluatedSeed], weights: ReleasedFile | None = None
) -> EvaluationFile:
    return EvaluationFile(
        row=row.name,
        table=row.table,
        row_hash=row.hash,
        train_hash=row.train_hash,
        dataset=row.dataset,
        split=row.val_split,
        classes=tuple(dataset.classes),
        settings=row.settings,
        runs=tuple(runs),
        weights=weights,
    )


def _write_per_class(path: Path, document: EvaluationFile) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["class", "seed", "mode", "iou", "acc", "pixels"])
        for run in document.runs:
            seed = "released" if run.seed is None else run.seed
            for mode, result in run.modes.items():
                columns = zip(document.classes, result.iou, result.acc, result.scores.pixels, strict=True)
                for name, iou, acc, pixels in columns:
                    writer.writerow([name, seed, mode, _cell(iou), _cell(acc), pixels])


def _cell(percent: float | None) -> str:
    return "" if percent is None else f"{percent:.4f}"
