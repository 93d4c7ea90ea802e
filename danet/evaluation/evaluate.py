"""Evaluating a row: its trained weights over its validation split, by its own protocol, to files that are kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, DataError
from danet.core.files import replace_folder
from danet.core.process import Process, processes
from danet.data.prepared import PreparedDataset
from danet.evaluation.subject import Bench, Subject
from danet.results import store
from danet.results.identity import TrainingIdentity, trained_on
from danet.results.schema import BestOnVal, EvaluationFile, ReleasedFile, save
from danet.weights.imagenet import backbone_sha256


def evaluate_row(
    row: Row,
    workspace: Workspace,
    *,
    device: str | torch.device | None = None,
    weights: Path | None = None,
    reuse: bool = False,
) -> EvaluationFile:
    """Evaluates every seed of a row in every mode it defines, and writes metrics and pictures.

    ``evaluation.json`` goes to ``workspace.metrics(row)``, the means to ``workspace.scores(row)``; pictures of the
    confusion matrices, overlays and prediction masks of ``row.runtime.overlays`` images, evenly spaced over the split,
    to ``workspace.evaluation(row)``. Files of an earlier evaluation are replaced at the end.

    Under torchrun the images are divided over the processes, and the first writes.

    Args:
        row: what to evaluate.
        workspace: where everything is.
        device: by default the GPU if there is one.
        weights: evaluate this file (trained, imported or raw released) instead of the row's trained weights. Nothing of
            the row is then overwritten: everything goes to ``workspace.evaluation_of(row, weights)``.
        reuse: take over the seeds whose whole :class:`.EvaluationIdentity` was evaluated before (weights, settings,
            data, hardware, versions), instead of evaluating them again.

    Returns:
        What was written to ``evaluation.json``.

    Raises:
        CheckpointError: if weights are missing, of another model, or trained with other settings than the row's.
        DataError: if the prepared split is missing or has no labels.
    """
    with processes(device) as process:
        if weights is None:
            subjects = [subject for seed in row.seeds for subject in _trained(row, workspace, seed)]
            pictures, metrics = workspace.evaluation(row), workspace.metrics(row)
        else:
            if not weights.is_file():
                raise CheckpointError(f"{weights}: does not exist")
            subjects = [Subject(f"seed{row.seeds[0]}", row.seeds[0], weights)]
            pictures = metrics = workspace.evaluation_of(row, weights)
        result = _evaluate(row, workspace, process, subjects, pictures, reuse=reuse)
        if process.is_main:
            save(metrics / "evaluation.json", result, exclude={"weights"})
            save(metrics / "scores.json" if weights else workspace.scores(row), result.means)
        process.barrier()
        return result


def evaluate_released(
    row: Row,
    workspace: Workspace,
    weights: Path,
    facts: ReleasedFile,
    *,
    device: str | torch.device | None = None,
) -> EvaluationFile:
    """Evaluates released weights exactly as :func:`evaluate_row` does trained ones; raises as that.

    Writes ``verification.json`` (with ``facts``, what is known of the weights) beside the row's own metrics files, the
    means to ``workspace.scores``, and pictures to ``workspace.verification(row)``.
    """
    with processes(device) as process:
        pictures, metrics = workspace.verification(row), workspace.metrics(row)
        subjects = [Subject("released", None, weights)]
        result = _evaluate(row, workspace, process, subjects, pictures, facts)
        if process.is_main:
            save(metrics / "verification.json", result)
            save(workspace.scores(row, released=True), result.means, exclude={"seeds"})
        process.barrier()
        return result


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
    workspace: Workspace,
    process: Process,
    subjects: Sequence[Subject],
    pictures: Path,
    facts: ReleasedFile | None = None,
    *,
    reuse: bool = False,
) -> EvaluationFile:
    """A result for each subject. Puts the pictures in their place at the end."""
    dataset = PreparedDataset(workspace.prepared(row.dataset), row.val_split)
    if not dataset.labels:
        raise DataError(
            f"{dataset.folder}: no pixel of split {dataset.split} has a label, so nothing can be measured; correct the "
            "masks, or set the row's val_split to another split"
        )
    process.agree(
        {"settings of the row": row.hash, "prepared data": dataset.manifest_hash}
        | {f"weights {item.path.name}": item.weights_sha256 for item in subjects if process.world > 1},
        "every node must see the same files: put the workspace on a shared file system, or copy it to all",
    )
    pictures.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=pictures.parent, prefix=f".{pictures.name}.", suffix=".tmp"))
    bench = Bench(row, dataset, process, staging, process.is_main)
    try:
        runs = [(reuse and bench.kept(subject, pictures)) or bench.evaluate(subject) for subject in subjects]
        if process.is_main:
            staging.chmod(0o755)
            replace_folder(staging, pictures)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    # one result a seed: that of its last iteration, which has that of the epoch that was best on val in it
    found = list(zip(subjects, runs, strict=True))
    best = {
        subject.seed: BestOnVal(**subject.best.model_dump(), modes=run.modes) for subject, run in found if subject.best
    }
    return EvaluationFile(
        row=row.name,
        table=row.table,
        row_hash=row.hash,
        train_hash=row.train_hash,
        dataset=row.dataset,
        split=row.val_split,
        classes=tuple(dataset.classes),
        settings=row.settings,
        runs=tuple(
            run.model_copy(update={"best_on_val": best.get(run.seed)}) for subject, run in found if not subject.best
        ),
        weights=facts,
    )
