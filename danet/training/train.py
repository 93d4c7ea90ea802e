"""Trains a row: every seed that it names and that is not trained yet, and writes what the later stages read."""

from __future__ import annotations

import contextlib
import csv
import io
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from torch import nn

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.console import console
from danet.core.errors import CheckpointError, DataError, Interrupted
from danet.core.files import sha256, write_text
from danet.core.process import Process, processes
from danet.core.provenance import cpu_cores
from danet.core.text import duration
from danet.data.prepared import PreparedDataset
from danet.evaluation.one_pass import evaluate_model
from danet.models import numerics
from danet.models.segmentor import build_model
from danet.results import store
from danet.results.identity import TrainingIdentity, trained_on
from danet.results.schema import BestEpoch, Provenance, SeedRecord, TrainedSeed, Training, TrainingFile, save
from danet.training.checkpoint import CheckpointStore
from danet.training.lock import row_lock
from danet.training.loop import Trainer
from danet.training.progress import CURVE_COLUMNS
from danet.training.selection import selection_score
from danet.training.stop import StopRequest
from danet.weights.imagenet import backbone_sha256, load_backbone
from danet.weights.ours import save_model


def train_row(
    row: Row,
    workspace: Workspace,
    *,
    tracker_factory: Callable[..., AbstractContextManager[Any]] | None = None,
    device: str | torch.device | None = None,
) -> None:
    """Trains every seed of a row that is not trained yet, and writes its weights and training metrics.

    A finished seed (:mod:`danet.results.store`) is used again only if its whole identity is that of the training asked
    for: settings, training data, initial weights, code revision. Otherwise it is trained again, and replaced once
    that has ended.

    Writes ``models/<row>/seed<k>.safetensors`` and ``.json``, and ``train.json`` and ``curve.csv`` in
    ``workspace.metrics(row)``.

    ``tracker_factory`` is as :func:`danet.results.tracking.run` and called in rank 0 only; ``device`` is that of
    :func:`danet.core.process.processes`.

    Raises:
        Interrupted: after SIGTERM or SIGINT, with the state saved.
        TrainingError: if training cannot go on, or another process trains this row.
        DataError, CheckpointError: if the data or a weights file is missing or damaged, or if a stopped training that
            would go on began on other data.
    """
    with processes(device) as process, numerics.configured(row.numerics), StopRequest() as stop:
        show = process.is_main
        initial = None if row.weights == "none" else backbone_sha256(workspace.weights(row.weights))
        data = trained_on(row, lambda split: _split(row, workspace, split).manifest_hash)
        identities = {seed: TrainingIdentity.of(row, seed, data=data, initial_weights=initial) for seed in row.seeds}
        process.agree(
            {f"identity of seed {seed}": wanted.digest for seed, wanted in identities.items()},
            "every node must see the same files: put the workspace on a shared file system, or copy it to all",
        )
        with row_lock(workspace.checkpoints(row, row.seeds[0]).parent, process):
            for seed, identity in identities.items():
                if process.gather(_is_finished(row, identity, workspace, show))[0]:
                    continue
                tracking: AbstractContextManager[Any] = contextlib.nullcontext()
                if tracker_factory and process.is_main:
                    tracking = tracker_factory(row, seed, workspace, identity.digest)
                with tracking as tracker:
                    options = {"track": tracker.metrics} if tracker else {}
                    _train_seed(row, identity, workspace, process, show, stop=stop, **options)
                if process.any(bool(stop.reason)) and seed != row.seeds[-1]:
                    raise Interrupted(
                        f"{row.name}: stopped after seed {seed}, which is finished; "
                        "run the same command again for the others"
                    )
            if process.is_main:
                records = [store.load_record(workspace, row, seed) for seed in row.seeds]
                _write_metrics(row, workspace, records)
                took = duration(sum(3600 * record.run.hours for record in records))
                files = ", ".join(str(store.weights_path(workspace, row, seed)) for seed in row.seeds)
                _say(show, f"{row.name}: trained in {took}: {files}; next: `dvc repro evaluate@{row.name}`")
            process.barrier()


def _say(show: bool, message: str) -> None:
    if show:
        console.print(escape(message))


def _split(row: Row, workspace: Workspace, split: str) -> PreparedDataset:
    return PreparedDataset(workspace.prepared(row.dataset), split)


def _is_finished(row: Row, wanted: TrainingIdentity, workspace: Workspace, show: bool) -> bool:
    """Whether this very training was done before; says what it finds."""
    if not store.record_path(workspace, row, wanted.seed).exists():
        return False
    title = f"{row.name} seed {wanted.seed}"
    try:
        changes = store.load_record(workspace, row, wanted.seed).identity.changes(wanted)
    except CheckpointError as error:
        changes = [str(error).rpartition(";")[0]]
    if changes:
        _say(show, f"{title}: another one is there ({'; '.join(changes[:4])}); training it again")
    else:
        _say(show, f"{title}: already trained ({store.weights_path(workspace, row, wanted.seed)})")
    return not changes


def _train_seed(
    row: Row,
    identity: TrainingIdentity,
    workspace: Workspace,
    process: Process,
    show: bool,
    **options: Any,
) -> None:
    """Trains one seed and stores it; ``options`` are the :class:`.Trainer`'s."""
    seed, dataset = identity.seed, _split(row, workspace, row.train_split)
    if not dataset.labels:
        raise DataError(
            f"{dataset.folder}: no pixel of split {dataset.split} has a label, so nothing can be learned; look at it "
            f"(danet browse {row.dataset} --split {dataset.split} --out sheet.png) and correct the masks"
        )
    numerics.seed_initialisation(seed)
    model = build_model(row.model, dataset.num_classes, row.numerics.attention)
    if row.weights != "none":
        load_backbone(model, workspace.weights(row.weights))
    checkpoints = CheckpointStore(workspace.checkpoints(row, seed), identity)
    best = checkpoints.folder / "best.safetensors"
    if row.checkpoint == "best-on-val":
        options["select"] = selection_score(row, _split(row, workspace, row.val_split), process)
        options["keep_best"] = lambda network, iteration, score: _save_model(best, network, row, identity)
    if row.val_interval:
        val = _split(row, workspace, row.val_split)
        options["validate"] = lambda network: (
            evaluate_model(network, row, val, process.device, process=process)
            .confusion.scores(row.test.absent_class)
            .miou
        )
    # more than this trainer's share of the cores would only get in each other's way
    workers = min(row.runtime.workers, max(1, cpu_cores() // process.local_world))
    options |= {"process": process, "show": show, "workers": workers}
    trainer = Trainer(row, seed, model, dataset, checkpoints, **options)
    epochs = trainer.total * row.schedule.batch_size / len(dataset)
    where = f"{process.device} x {process.world}" if process.world > 1 else str(process.device)
    _say(
        show,
        f"{row.name} seed {seed}: {trainer.total} iterations of {row.schedule.batch_size} images ({epochs:.1f} epochs "
        f"of {len(dataset)}) on {where}, {row.numerics.precision}, {workers} workers",
    )
    trainer.run()
    if process.is_main:
        _keep(trainer, identity, workspace, best)
        checkpoints.path.unlink(missing_ok=True)
    process.barrier()


def _keep(trainer: Trainer, identity: TrainingIdentity, workspace: Workspace, best: Path) -> None:
    """Stores a finished seed: its weights, those that were best on val, then the record that says what they are of."""
    row, seed, history = trainer.row, trainer.seed, trainer.history
    weights, path = store.weights_path(workspace, row, seed), store.record_path(workspace, row, seed)
    chosen_path, chosen = store.best_path(workspace, row, seed), None
    _save_model(weights, trainer.model, row, identity)
    chosen_path.unlink(missing_ok=True)
    if history.best is not None:
        iteration, score = history.best
        shutil.move(best, chosen_path)
        chosen = BestEpoch(iteration=iteration, score=score, weights_sha256=sha256(chosen_path))
    run = Training(
        iterations=trainer.total,
        final_loss=round(float(history.curve[-1]["loss"] or 0.0), 6),
        images_per_second=round(history.images_per_second, 3),
        hours=round(history.seconds / 3600, 6),
        peak_memory_gib=round(history.peak_memory_gib, 3),
        data_wait_share=round(history.data_wait_share, 4),
        resumed=history.resumed,
        provenance=Provenance.collect(
            precision=row.numerics.precision,
            device=trainer.process.device.type,
            processes=trainer.process.world,
            wall_seconds=round(history.seconds, 1),
            energy_kj=history.energy_kj,
        ),
    )
    record = SeedRecord(
        row=row.name, identity=identity, weights_sha256=sha256(weights), best=chosen, run=run, curve=history.curve
    )
    save(path, record)


def _write_metrics(row: Row, workspace: Workspace, records: Sequence[SeedRecord]) -> None:
    """``train.json`` and ``curve.csv`` of all the row's seeds."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in records:
        for entry in record.curve:
            shown = {name: f"{value:.8g}" if isinstance(value, float) else value for name, value in entry.items()}
            writer.writerow({"seed": record.identity.seed, **shown})
    write_text(workspace.metrics(row) / "curve.csv", text.getvalue())
    runs = tuple(map(TrainedSeed.of, records))
    save(workspace.metrics(row) / "train.json", TrainingFile(row=row.name, train_hash=row.train_hash, runs=runs))


def _save_model(path: Path, model: nn.Module, row: Row, identity: TrainingIdentity) -> None:
    metadata = {"row": row.name, "source": row.source, "dataset": row.dataset, "seed": str(identity.seed)}
    save_model(path, model, metadata | {"train_hash": row.train_hash, "identity": identity.digest})
