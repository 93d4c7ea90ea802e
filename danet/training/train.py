"""Trains a row: every seed that it names and that is not trained yet, and writes what the later stages read."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from danet.config.rows import Row
from danet.config.workspace import Workspace
from danet.core.console import console
from danet.core.errors import CheckpointError, Interrupted, TrainingError
from danet.core.files import atomic_write, remove_leftovers, sha256, space_note, write_json, write_text
from danet.core.process import Process, processes
from danet.core.provenance import collect
from danet.data.loader import available_cpus
from danet.data.prepared import PreparedDataset
from danet.evaluation.evaluate import evaluate_model
from danet.models import numerics
from danet.models.segmentor import build_model
from danet.training.checkpoint import CheckpointStore
from danet.training.lock import row_lock
from danet.training.loop import Tracker, Trainer, local_batch_size
from danet.training.progress import CURVE_COLUMNS, LOSSES, Reporter
from danet.training.stop import StopRequest
from danet.weights.imagenet import load_backbone
from danet.weights.ours import save_model

FORMAT = 1
TRACKED = "tracked"
"""Beside a finished seed's weights: its run in MLflow has been closed."""
_SAME_FILES = "every node must see the same files: put the workspace on a shared file system, or copy it to all"

TrackerFactory = Callable[..., AbstractContextManager[Tracker]]
"""``factory(row, "train", seed, workspace)``, as :func:`.tracking.run`; with ``resume=True`` to complete a run."""


def train_row(
    row: Row,
    workspace: Workspace,
    *,
    tracker_factory: TrackerFactory | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    orphaned: Callable[[], bool] | None = None,
) -> None:
    """Trains every seed of a row that is not trained yet, and writes its weights and training metrics.

    A finished seed's weights stay beside its checkpoints (outside DVC's outputs), under the row's training hash; a seed
    added later, or DVC clearing the outputs, trains none of them again.

    Writes ``models/<row>/seed<k>.safetensors``, and ``train.json`` and ``curve.csv`` in ``workspace.metrics(row)``.

    Args:
        row: what to train.
        workspace: where the prepared data and weights are and where outputs go.
        tracker_factory: as :func:`.tracking.run`; called in rank 0 only.
        device: ``cpu``, ``cuda``, ``cuda:N``; by default the GPU (of this torchrun process) if there is one.
        progress: whether to print anything.
        orphaned: see :class:`StopRequest`.

    Raises:
        Interrupted: after SIGTERM or SIGINT, or when orphaned, with the state saved.
        TrainingError: if training cannot go on, or another process trains this row.
        DataError, CheckpointError: if the data or a weights file is missing or damaged.
    """
    with processes(device) as process, numerics.configured(row.numerics), StopRequest(orphaned) as stop:
        process.agree({"settings of the row": row.train_hash, "seeds": list(row.seeds)}, _SAME_FILES)
        local_batch_size(row, process)
        reporter = Reporter(console, row.runtime.progress, quiet=not progress or not process.is_main)
        folders = {seed: workspace.checkpoints(row, seed) for seed in row.seeds}
        with row_lock(folders[row.seeds[0]].parent, process, reporter.say):
            for seed, folder in folders.items():
                finished = process.gather(_finished(folder, row, seed) is not None)[0]
                factory = tracker_factory if process.is_main else None
                if finished:
                    reporter.say(f"{row.name} seed {seed}: already trained, its weights are used again ({folder})")
                    if factory is not None and not (folder / TRACKED).exists():
                        _track_finished(row, seed, workspace, factory)
                    continue
                # finished once, and damaged since: the same training again is the same run
                again = {"resume": True} if (folder / TRACKED).exists() else {}
                tracking = factory(row, "train", seed, workspace, **again) if factory else contextlib.nullcontext()
                with tracking as tracker:
                    _train_seed(row, seed, workspace, process=process, reporter=reporter, tracker=tracker, stop=stop)
                if factory is not None:
                    _note_tracked(folder)
                if process.any(stop.requested) and seed != row.seeds[-1]:
                    raise Interrupted(
                        f"{row.name}: stopped after seed {seed}, which is finished; "
                        "run the same command again for the others"
                    )
            if process.is_main:
                _write_outputs(row, workspace)
            process.barrier()


def capped_workers(wanted: int, local_world: int = 1) -> tuple[int, str | None]:
    """Loader processes of this trainer: at most its share of the CPU cores, and a line that says so if fewer."""
    allowed = max(1, available_cpus() // local_world)
    if wanted <= allowed:
        return wanted, None
    return allowed, f"runtime.workers {wanted} is more than the {allowed} CPU cores of this trainer: using {allowed}"


def _track_finished(row: Row, seed: int, workspace: Workspace, factory: TrackerFactory) -> None:
    """Completes the run in MLflow of a seed whose trainer was killed after it had saved the weights."""
    folder = workspace.checkpoints(row, seed)
    record = _finished(folder, row, seed)
    if record is None:
        return
    with factory(row, "train", seed, workspace, resume=True) as tracker:
        for entry in record["curve"]:
            values = {name: float(value) for name, value in entry.items() if value is not None and name != "iteration"}
            tracker.metrics(entry["iteration"], values)
        tracker.flush()
    _note_tracked(folder)


def _note_tracked(folder: Path) -> None:
    with contextlib.suppress(OSError):  # else the same values are offered again, and not taken
        (folder / TRACKED).touch()


def _train_seed(
    row: Row,
    seed: int,
    workspace: Workspace,
    *,
    process: Process,
    reporter: Reporter,
    tracker: Tracker | None,
    stop: StopRequest,
) -> None:
    folder = workspace.checkpoints(row, seed)
    dataset = _open_split(row, workspace, row.train_split)
    process.agree({"prepared data": getattr(dataset, "manifest_hash", None)}, _SAME_FILES)
    numerics.seed_initialisation(seed)
    model, imagenet_sha256 = _build_model(row, workspace, dataset.num_classes)
    workers, note = capped_workers(row.runtime.workers, process.local_world)
    if note:
        reporter.say(f"{row.name}: {note}")
    store = CheckpointStore(folder, row, seed)
    trainer = Trainer(
        row,
        seed,
        model,
        dataset,
        store,
        process=process,
        reporter=reporter,
        tracker=tracker,
        validate=_validator(row, workspace, process) if row.val_interval else None,
        stop=stop,
        workers=workers,
    )
    epochs = trainer.total * row.schedule.batch_size / len(dataset)
    where = f"{process.device} x {process.world}" if process.world > 1 else str(process.device)
    reporter.say(
        f"{row.name} seed {seed}: {trainer.total} iterations of {row.schedule.batch_size} images ({epochs:.1f} epochs "
        f"of {len(dataset)}) on {where}, {row.numerics.precision}, {workers} workers"
    )
    trainer.run()
    if process.is_main:
        _keep(trainer, folder, dataset, imagenet_sha256)
        store.clear()
    process.barrier()


def _keep(trainer: Trainer, folder: Path, dataset: Any, imagenet_sha256: str | None) -> None:
    """Stores a finished seed: its weights, then the record that says they are whole."""
    row, seed, history = trainer.row, trainer.seed, trainer.history
    weights = folder / "final.safetensors"
    for path in (weights, folder / "result.json"):
        remove_leftovers(path)
    try:
        _save_model(weights, trainer.model, row, seed)
    except CheckpointError as error:
        needed = sum(tensor.nbytes for tensor in trainer.model.state_dict().values())
        raise CheckpointError(f"{error} ({space_note(weights, needed)})") from error
    digest = sha256(weights)
    final = history.curve[-1]
    run = {
        "seed": seed,
        "iterations": trainer.total,
        "final_loss": round(float(final["loss"] or 0.0), 6),
        "images_per_second": round(history.images_per_second, 3),
        "hours": round(history.seconds / 3600, 6),
        "peak_memory_gb": round(history.peak_memory_gb, 3),
        "data_wait_share": round(history.data_wait_share, 4),
        "resumed": history.resumed,
        "accumulate": history.accumulate,
        "weights_sha256": digest,
        "provenance": _provenance(
            row,
            seed,
            manifest_hash=getattr(dataset, "manifest_hash", None),
            weights_sha256=digest,
            imagenet_sha256=imagenet_sha256,
            processes=trainer.process.world,
            peak_memory_gb=round(history.peak_memory_gb, 3),
            wall_seconds=round(history.seconds, 1),
            energy_kj=history.energy_kj,
        ),
    }
    record = {"format": FORMAT, "row": row.name, "train_hash": row.train_hash, "run": run, "curve": history.curve}
    write_json(folder / "result.json", record)


def _finished(folder: Path, row: Row, seed: int) -> dict[str, Any] | None:
    """The record of a finished seed, if its weights are there and whole."""
    try:
        record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        fits = record["format"] == FORMAT and record["train_hash"] == row.train_hash and record["run"]["seed"] == seed
        if fits and sha256(folder / "final.safetensors") == record["run"]["weights_sha256"]:
            return dict(record)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _write_outputs(row: Row, workspace: Workspace) -> None:
    """Weights and training metrics of all the row's seeds, from the store of finished ones."""
    runs: list[dict[str, Any]] = []
    curve: list[dict[str, Any]] = []
    for seed in row.seeds:
        folder = workspace.checkpoints(row, seed)
        record = _finished(folder, row, seed)
        if record is None:
            raise TrainingError(
                f"{folder}: the finished weights vanished or changed meanwhile; run again to train them"
            )
        runs.append(record["run"])
        curve += [{"seed": seed, **entry} for entry in record["curve"]]
        final, out = folder / "final.safetensors", workspace.model(row) / f"seed{seed}.safetensors"
        remove_leftovers(out)
        with atomic_write(out, final.stat().st_size) as temporary:
            shutil.copyfile(final, temporary)
    metrics = workspace.metrics(row)
    for name in ("curve.csv", "train.json"):
        remove_leftovers(metrics / name)
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for entry in curve:
        writer.writerow({name: _cell(name, entry.get(name)) for name in CURVE_COLUMNS})
    write_text(metrics / "curve.csv", text.getvalue())
    write_json(
        metrics / "train.json",
        {
            "format": FORMAT,
            "row": row.name,
            "train_hash": row.train_hash,
            "final_loss": round(sum(run["final_loss"] for run in runs) / len(runs), 6),
            "images_per_second": round(sum(run["images_per_second"] for run in runs) / len(runs), 3),
            "hours": round(sum(run["hours"] for run in runs), 6),
            "runs": runs,
        },
    )


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in LOSSES:
        return f"{value:.6g}"
    return f"{value:.8g}" if name == "lr" else str(value)


# The other parts of the library: each of these functions is the whole dependency on one of them.


def _open_split(row: Row, workspace: Workspace, split: str) -> Any:
    return PreparedDataset(workspace.prepared(row.dataset), split)


def _build_model(row: Row, workspace: Workspace, num_classes: int) -> tuple[nn.Module, str | None]:
    """The row's model with its ImageNet weights, and their SHA-256 (``None`` for random ones)."""
    model = build_model(row.model, num_classes, row.numerics.attention)
    return model, None if row.weights == "none" else load_backbone(model, workspace.weights(row.weights))


def _save_model(path: Path, model: nn.Module, row: Row, seed: int) -> None:
    metadata = {"row": row.name, "source": row.source, "dataset": row.dataset}
    save_model(path, model, metadata | {"train_hash": row.train_hash, "seed": str(seed)})


def _validator(row: Row, workspace: Workspace, process: Process) -> Callable[[nn.Module], float]:
    dataset = _open_split(row, workspace, row.val_split)

    def validate(model: nn.Module) -> float:
        result = evaluate_model(model, row, dataset, process.device, process=process)
        return 100 * float(result.scores.miou)

    return validate


def _provenance(row: Row, seed: int, **extra: Any) -> dict[str, Any]:
    return collect(**row.facts, seed=seed, **extra)
