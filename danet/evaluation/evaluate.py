"""Evaluating a row: its trained weights over its validation split, by its own protocol, to files that are kept."""

from __future__ import annotations

import csv
import functools
import json
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core import provenance
from danet.core.console import console
from danet.core.errors import CheckpointError, DanetError, DataError
from danet.core.files import atomic_write, replace_folder, sha256, write_json
from danet.core.process import Process, peak_memory_gib, processes
from danet.core.progress import Progress
from danet.data.prepared import PreparedDataset
from danet.evaluation import visualise
from danet.evaluation.inference import Inputs, Mode, Predictor
from danet.evaluation.metrics import AbsentClass, Confusion, Scores, constant_baseline
from danet.evaluation.metrics import scores as scores_of
from danet.models.numerics import configured
from danet.models.segmentor import build_model
from danet.results import store
from danet.results.identity import EvaluationIdentity, TrainingIdentity, trained_on
from danet.weights.exchange import load_any
from danet.weights.imagenet import backbone_sha256
from danet.weights.ours import load_model

FORMAT = 2
"""Of the records beside the pictures."""
FPS_WARM_UP = 5
"""Images that are not timed (mmsegmentation's tools/benchmark.py)."""

_Image = NDArray[np.uint8]
_T = TypeVar("_T")


class LabelledImages(Protocol):
    """The part of :class:`~danet.data.prepared.PreparedDataset` that evaluation needs."""

    @property
    def ids(self) -> Sequence[str]:
        """Names of the images, in order."""

    @property
    def num_classes(self) -> int:
        """Train ids, without the ignored one."""

    def __len__(self) -> int: ...

    def image(self, index: int, /) -> _Image:
        """``H x W x 3`` BGR; called from threads."""

    def mask(self, index: int, /) -> _Image | None:
        """``H x W`` train ids, 255 = ignored; None without labels. Called from threads."""


@dataclass(frozen=True)
class EvaluationResult:
    """What one pass over a split gave."""

    confusion: Confusion
    absent_class: AbsentClass
    """The row's convention for classes that are nowhere."""
    images: int
    seconds: float
    """Wall time of the pass, with loading."""
    fps: float | None
    """Images per second by the published method, windows one after another; of this process alone. None if nothing was
    timed."""
    fps_batched: float | None = None
    """The same with the windows and mirror images of an image batched; None where there is nothing to batch."""
    predictions: dict[int, _Image] = field(default_factory=dict)
    """Label maps that were asked for, by index in the dataset."""

    @property
    def scores(self) -> Scores:
        """Metrics of the whole pass by the row's convention; raises DataError if no pixel was labelled."""
        return self.confusion.scores(self.absent_class)


@dataclass(frozen=True)
class RowEvaluation:
    """What :func:`evaluate_row` wrote: the content of ``metrics.json`` and ``evaluation.json``, and where.

    Of released weights (:func:`evaluate_released`) they are called ``verify.json`` and ``verification.json``.
    """

    metrics: dict[str, Any]
    evaluation: dict[str, Any]
    folder: Path
    """Of ``metrics.json``."""
    kept: bool = False
    """Whether nothing had to be evaluated: all of it was done before."""


def evaluate_model(
    model: nn.Module,
    row: Row,
    dataset: LabelledImages,
    device: torch.device | str,
    *,
    mode: Mode = "ss",
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    process: Process | None = None,
    keep: Collection[int] = (),
    max_batch: int | None = None,
) -> EvaluationResult:
    """Runs a model over a split and sums its confusion matrix. The model is left in the mode it was in.

    Images are decoded and resized by ``row.runtime.workers`` threads while the network computes (0: by none). On a GPU
    these threads also page-lock them, labels are copied and counted on the device, and after the timed images nothing
    comes back to the host but what ``keep`` asks for.

    The frame rate is measured by the published method (mmsegmentation's tools/benchmark.py) on the way: one image at a
    time and its windows one after another, the first 5 images skipped (of fewer than 10: half of them), up to
    ``row.runtime.benchmark_images`` timed; network, resize of the logits, argmax and copy to the host, without loading;
    CUDA is synchronised before and after. Where windows or mirror images can be batched, as many images after these
    are timed so, too.

    Args:
        model: gives ``{"main": logits}``; on ``device``.
        row: protocol, numerics and runtime.
        dataset: images with masks.
        device: of the model.
        mode: ``ss`` or ``ms``.
        limit: evaluate so many images, evenly spaced over the split, instead of all.
        progress: called after each image with the images done and all images of this process.
        process: this process among many; each image is evaluated by one, and all get the whole confusion matrix.
        keep: indices whose label maps are wanted (on the first process).
        max_batch: see :class:`Predictor`.

    Raises:
        DataError: if the split is empty, has no masks, or an image and its mask differ in size.
        CheckpointError: if the network gives something that is not finite.
        DanetError: if the device's memory is too small.
    """
    process = process or Process()
    device = torch.device(device)
    mine = spaced(len(dataset), limit)[process.rank :: process.world]
    network = _bare(model)
    was_training = network.training
    network.eval()
    predictor = Predictor(
        network, row.test, row.model.align_corners, mode=mode, device=device, numerics=row.numerics, max_batch=max_batch
    )
    confusion = Confusion(dataset.num_classes, device)
    predictions: dict[int, _Image] = {}
    rates = _FrameRates(predictor, len(mine), row.runtime.benchmark_images if mode == "ss" else 0)

    def load(index: int) -> tuple[int, Inputs, torch.Tensor]:
        image, mask = _labelled_image(dataset, index)
        inputs, target = predictor.prepare(image), torch.from_numpy(mask)
        if device.type == "cuda":
            inputs, target = _page_locked(inputs), target.pin_memory()
        return index, inputs, target

    start = time.perf_counter()
    try:
        with configured(row.numerics, training=False):
            for done, (index, inputs, mask) in enumerate(ahead(load, mine, row.runtime.workers)):
                target = mask.to(device, non_blocking=True)
                labels, host = rates.labels(done, inputs, on_host=index in keep)
                confusion.update(labels, target)
                if host is not None and index in keep:
                    predictions[index] = host.numpy()
                if progress is not None:
                    progress(done + 1, len(mine))
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DanetError(
            f"row {row.name}: the memory of {device} is too small for an image of {dataset.ids[index]}'s size or "
            "larger; set numerics.precision to bf16, or evaluate with device cpu"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"row {row.name}, image {dataset.ids[index]}: {error}") from error
    finally:
        network.train(was_training)
    confusion.reduce(process)
    if process.world > 1:
        for other in process.gather(predictions if keep else {}):
            predictions |= other
    images = int(process.sum(torch.tensor(len(mine), device=device)))
    if images == 0:
        raise DataError("the split is empty: there is nothing to evaluate")
    seconds, absent = time.perf_counter() - start, row.test.absent_class
    return EvaluationResult(confusion, absent, images, seconds, rates.fps, rates.fps_batched, predictions)


class _FrameRates:
    """Predicts the images of a pass and times some: first as published, windows one after another, then batched."""

    def __init__(self, predictor: Predictor, images: int, timed: int) -> None:
        self._predictor, self._batched = predictor, predictor.max_batch
        skipped = min(FPS_WARM_UP, images // 2)
        self._published = range(skipped, skipped + timed)
        again = self._published.stop + FPS_WARM_UP
        self._batches = range(again, again + timed if predictor.batches and self._batched > 1 else again)
        self._times: dict[range, list[float]] = {self._published: [], self._batches: []}

    def labels(self, number: int, inputs: Inputs, on_host: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The label map of image ``number`` of the pass on the device, and on the host if wanted there or timed."""
        self._predictor.max_batch = 1 if number < self._published.stop and self._published else self._batched
        times = next((times for images, times in self._times.items() if number in images), None)
        if times is None:
            labels = self._predictor.labels(inputs)
            return labels, labels.cpu() if on_host else None
        _synchronise(self._predictor.device)
        before = time.perf_counter()
        labels = self._predictor.labels(inputs)
        host = labels.cpu()
        times.append(time.perf_counter() - before)
        return labels, host

    @property
    def fps(self) -> float | None:
        """See :class:`EvaluationResult`."""
        return _rate(self._times[self._published])

    @property
    def fps_batched(self) -> float | None:
        """See :class:`EvaluationResult`."""
        return _rate(self._times[self._batches])


def _rate(seconds: Sequence[float]) -> float | None:
    return len(seconds) / sum(seconds) if seconds else None


def spaced(count: int, wanted: int | None) -> list[int]:
    """``wanted`` of ``count`` indices, evenly spaced from the first to the last; all if null or more."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted({round(i) for i in np.linspace(0, count - 1, wanted).tolist()})


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

    ``metrics.json``, ``evaluation.json`` and ``per_class.csv`` go to ``workspace.metrics(row)``; confusion matrices
    (arrays and pictures), overlays and prediction masks of ``row.runtime.overlays`` images, evenly spaced over the
    split, to ``workspace.evaluation(row)``. Files of an earlier evaluation are replaced at the end, all at once.

    Under torchrun the images are divided over the processes, and the first writes.

    Args:
        row: what to evaluate.
        workspace: where everything is.
        device: by default the GPU if there is one.
        progress: whether to print progress (``row.runtime.progress: never`` silences it too).
        weights: evaluate this file (trained, imported or raw released) instead of the row's trained weights. Nothing of
            the row is then overwritten: everything goes to ``workspace.evaluation_of(row, weights)``.
        reuse: take over the seeds whose whole :class:`EvaluationIdentity` was evaluated before (weights, settings,
            data, hardware, versions), instead of evaluating them again.

    Raises:
        CheckpointError: if weights are missing, of another model, or trained with other settings than the row's.
        DataError: if the prepared split is missing or has no labels.
    """
    with processes(device) as process:
        dataset = _labelled_split(row, workspace)
        if weights is None:
            files = [subject for seed in row.seeds for subject in _trained(row, workspace, seed)]
            pictures, metrics = workspace.evaluation(row), workspace.metrics(row)
        else:
            files = [_Subject(f"seed{row.seeds[0]}", row.seeds[0], weights)]
            if not weights.is_file():
                raise CheckpointError(f"{weights}: does not exist")
            pictures = metrics = workspace.evaluation_of(row, weights)
        with _runs(row, workspace, dataset, process, files, pictures, progress, reuse) as evaluated:
            runs = _with_best(files, evaluated)
            result = RowEvaluation(_summary(runs), _document(row, dataset, [each.run for each in runs]), metrics)
            if process.is_main:
                _write_per_class(metrics / "per_class.csv", dataset.classes, runs)
                write_json(metrics / "evaluation.json", result.evaluation)
                write_json(metrics / "metrics.json", result.metrics)
        return result


def evaluate_released(
    row: Row,
    workspace: Workspace,
    weights: Path,
    facts: Mapping[str, Any],
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
    reuse: bool = False,
) -> RowEvaluation:
    """Evaluates released weights exactly as :func:`evaluate_row` does trained ones.

    Writes ``verify.json`` and ``verification.json`` beside the row's own metrics files, and pictures and arrays to
    ``workspace.verification(row)``.

    Args:
        row: whose protocol.
        workspace: where everything is.
        weights: an imported or raw released file.
        facts: of the weights, kept in ``verification.json`` under ``weights``.
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
        subject = _Subject("released", None, weights)
        with _runs(row, workspace, dataset, process, [subject], pictures, progress, reuse) as runs:
            document = _document(row, dataset, [each.run for each in runs]) | {"weights": dict(facts)}
            summary = {key: value for key, value in _summary(runs).items() if key != "seeds"}
            result = RowEvaluation(summary, document, metrics, all(each.kept for each in runs))
            if process.is_main:
                _write_per_class(pictures / "per_class.csv", dataset.classes, runs)
                write_json(metrics / "verification.json", document)
                write_json(metrics / "verify.json", summary)
        return result


def _trained(row: Row, workspace: Workspace, seed: int) -> list[_Subject]:
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
    subjects = [_Subject(f"seed{seed}", seed, path, record.identity)]
    if record.best is not None:
        best = store.best_path(workspace, row, seed)
        subjects.append(_Subject(f"best-seed{seed}", seed, best, record.identity, record.best))
    return subjects


def _with_best(subjects: Sequence[_Subject], evaluated: Sequence[_RunRecord]) -> list[_RunRecord]:
    """One record a seed: that of its last iteration, which has the result of the epoch that was best on val in it."""
    runs: list[_RunRecord] = []
    for subject, each in zip(subjects, evaluated, strict=True):
        if subject.best is None:
            runs.append(each)
        else:
            best = {**subject.best.model_dump(), "modes": each.run["modes"]}
            runs[-1] = runs[-1]._replace(run={**runs[-1].run, "best_on_val": best})
    return runs


def _labelled_split(row: Row, workspace: Workspace) -> PreparedDataset:
    dataset = PreparedDataset(workspace.prepared(row.dataset), row.val_split)
    if len(dataset) == 0 or not dataset.labelled:
        raise DataError(
            f"{workspace.prepared(row.dataset)}: split {row.val_split} "
            f"{'is empty' if len(dataset) == 0 else 'has no labels'}; set val_split of row {row.name} to another"
        )
    return dataset


@dataclass(frozen=True)
class _Subject:
    """Weights to evaluate."""

    name: str
    """Of the files about it: ``seed0``, ``released``."""
    seed: int | None
    """None for released weights: no source says it."""
    path: Path
    identity: TrainingIdentity | None = None
    """What the row's own training was; None for files from elsewhere."""
    best: store.BestEpoch | None = None
    """Set for the weights of the epoch that was best on val, which follow those of the last iteration."""


@contextmanager
def _runs(
    row: Row,
    workspace: Workspace,
    dataset: PreparedDataset,
    process: Process,
    subjects: Sequence[_Subject],
    pictures: Path,
    progress: bool,
    reuse: bool = False,
) -> Iterator[list[_RunRecord]]:
    """Evaluates the subjects and puts the pictures in their place; the block writes the metrics files."""
    pictures.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=pictures.parent, prefix=f".{pictures.name}.", suffix=".tmp"))
    show = progress and process.is_main and row.runtime.progress != "never"
    try:
        process.agree(
            {"settings of the row": row.hash, "prepared data": dataset.manifest_hash}
            | {f"weights {item.path.name}": sha256(item.path) for item in subjects if process.world > 1},
            "every node must see the same files: put the workspace on a shared file system, or copy it to all",
        )
        every = [_Run(row, workspace, dataset, process, item, staging, pictures) for item in subjects]
        runs = [run.evaluate_or_take(show, reuse) for run in every]
        if process.is_main:
            _publish(staging, pictures)
        yield runs
        process.barrier()
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class _RunRecord(NamedTuple):
    """What is known of the weights of a subject."""

    run: dict[str, Any]
    """As in ``evaluation.json``."""
    scores: dict[str, Scores]
    """By mode."""
    baseline: tuple[float, int]
    kept: bool
    """Whether it was evaluated before."""


@dataclass(frozen=True)
class _Run:
    """One file of weights: from it to a record and pictures."""

    row: Row
    workspace: Workspace
    dataset: PreparedDataset
    process: Process
    subject: _Subject
    staging: Path
    pictures: Path

    def evaluate_or_take(self, show: bool, reuse: bool) -> _RunRecord:
        """Evaluates; with ``reuse`` takes over the earlier result of the very same evaluation, if it is there."""
        kept: dict[str, Any] | None = None
        if reuse and self.process.is_main:
            kept = self._kept(self.pictures / f"{self.subject.name}.json", show)
        kept = self.process.gather(kept)[0]
        if kept is None:
            result = self.evaluate(show)
            if self.process.is_main:
                self._keep(result.run)
            return result
        absent = self.row.test.absent_class
        scores = {
            mode: scores_of(np.array([line.split() for line in result["confusion_rows"]], dtype=np.int64), absent)
            for mode, result in kept["modes"].items()
        }
        return _RunRecord(kept, scores, constant_baseline(scores["ss"].pixels, absent), True)

    def _identity(self) -> EvaluationIdentity:
        """Of this evaluation here and now."""
        return EvaluationIdentity.of(
            self.row,
            weights=self._weights_sha256,
            data=self.dataset.manifest_hash,
            processes=self.process.world,
            provenance=provenance.collect(**self.row.facts, device=self.process.device.type),
        )

    def _kept(self, path: Path, show: bool) -> dict[str, Any] | None:
        """The earlier result with its pictures copied to the staging folder; None if it is another's or damaged."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            files: dict[str, str] = record["files"]
            same = record["identity"] == self._identity().model_dump(mode="json")
            if not same or any(sha256(path.with_name(name)) != digest for name, digest in files.items()):
                return None
            for name in (*files, path.name):
                shutil.copyfile(path.with_name(name), self.staging / name)
            run = dict(record["run"])
            if show:
                when = str(run["provenance"]["date"])[:10]
                console.print(escape(f"{self.row.name} {self._text}: already evaluated on {when} ({path})"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return run

    def _keep(self, run: dict[str, Any]) -> None:
        """Writes the record of the result beside its pictures."""
        pictures = sorted(self.staging.glob(f"{self.subject.name}-*"))
        files = {picture.name: sha256(picture) for picture in pictures}
        record = {"format": FORMAT, "identity": self._identity().model_dump(mode="json"), "run": run, "files": files}
        write_json(self.staging / f"{self.subject.name}.json", record)

    @functools.cached_property
    def _weights_sha256(self) -> str:
        return sha256(self.subject.path)

    def evaluate(self, show: bool) -> _RunRecord:
        """Evaluates every mode of the row; pictures go to the staging folder."""
        row, dataset, device = self.row, self.dataset, self.process.device
        started, energy = time.perf_counter(), provenance.EnergyMeter()
        model = build_model(row.model, dataset.num_classes, attention=row.numerics.attention)
        path = self.subject.path
        if self.subject.identity is not None:
            load_model(path, model)
        else:
            load_any(path, model, row)
        model.to(device)
        if row.numerics.channels_last:
            model.to(memory_format=torch.channels_last)
        examples = spaced(len(dataset), row.runtime.overlays) if row.runtime.overlays else []
        modes: dict[str, dict[str, Any]] = {}
        scores: dict[str, Scores] = {}
        fps: float | None = None
        fps_batched: float | None = None
        memory: float | None = None
        baseline = (0.0, 0)
        for mode in _modes(row):
            if mode == "ss" and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            name = f"{self.subject.name}-{mode}"
            with Progress(f"{row.name} {name.replace('-', ' ')}", len(dataset), show=show) as bar:
                shown = 0

                def advance(done: int, mine: int, bar: Progress = bar) -> None:
                    nonlocal shown
                    now = done * len(dataset) // mine  # as if the other processes were as far
                    bar.advance(now - shown)
                    shown = now

                result = evaluate_model(
                    model,
                    row,
                    dataset,
                    device,
                    mode=mode,
                    progress=advance,
                    process=self.process,
                    keep=examples if mode == "ss" else (),
                )
            scores[mode] = result.scores
            matrix = result.confusion.matrix
            if mode == "ss":
                fps, fps_batched, memory = result.fps, result.fps_batched, peak_memory_gib(device)
                baseline = constant_baseline(scores[mode].pixels, row.test.absent_class)
            if self.process.is_main:
                _save_confusion(self.staging / f"{name}-confusion.npz", matrix, dataset.classes)
                title = f"{row.name}, {self._text}, {mode}: mIoU {100 * scores[mode].miou:.2f} %"
                visualise.save_confusion(self.staging / f"{name}-confusion.png", title, matrix, dataset.classes)
                self._draw(result.predictions)
                if show:
                    console.print(escape(self._line(mode, scores[mode], baseline, fps, result)))
            modes[mode] = _mode_record(scores[mode], result, self._relative(f"{name}-confusion.npz"))
        record = {
            "seed": self.subject.seed,
            "training": self.subject.identity.digest if self.subject.identity else None,
            "modes": modes,
            "baseline_miou": percent(baseline[0]),
            "baseline_class": dataset.classes[baseline[1]],
            "fps": None if fps is None else round(fps, 3),
            "fps_batched": None if fps_batched is None else round(fps_batched, 3),
            "peak_memory_gib": None if memory is None else round(memory, 3),
            "peak_memory_kind": "cuda allocated" if device.type == "cuda" else "process resident set",
            "provenance": provenance.collect(
                **row.facts,
                seed=self.subject.seed,
                manifest_hash=dataset.manifest_hash,
                weights_sha256=self._weights_sha256,
                device=device.type,
                processes=self.process.world,
                wall_seconds=round(time.perf_counter() - started, 1),
                energy_kj=energy.kilojoules() if device.type == "cuda" and self.process.world == 1 else None,
            ),
        }
        return _RunRecord(record, scores, baseline, False)

    def _draw(self, predictions: dict[int, _Image]) -> None:
        for index, prediction in sorted(predictions.items()):
            image, truth, name = self.dataset.image(index), self.dataset.mask(index), self.dataset.ids[index]
            assert truth is not None
            stem = f"{self.subject.name}-{name}"
            visualise.save_panels(
                self.staging / f"{stem}-panels.png",
                f"{self.row.name}, {self._text}: {name}",
                image,
                truth,
                prediction,
                self.dataset.classes,
                self.dataset.palette,
            )
            visualise.save_palette_png(self.staging / f"{stem}-prediction.png", prediction, self.dataset.palette)

    @property
    def _text(self) -> str:
        if self.subject.seed is None:
            return "released weights"
        return f"seed {self.subject.seed}" + (", best on val" if self.subject.best else "")

    def _relative(self, name: str) -> str:
        return (self.pictures / name).relative_to(self.workspace.root).as_posix()

    def _line(
        self, mode: str, scores: Scores, baseline: tuple[float, int], fps: float | None, result: EvaluationResult
    ) -> str:
        speed = f", {fps:.2f} fps" if fps and mode == "ss" else ""
        return (
            f"{self.row.name} {self._text} {mode}: mIoU {100 * scores.miou:.2f} %, aAcc {100 * scores.aacc:.2f} %, "
            f"mAcc {100 * scores.macc:.2f} % (best constant: mIoU {100 * baseline[0]:.2f} %), "
            f"{result.images} images in {result.seconds:.0f} s{speed}"
        )


def percent(fraction: float | None) -> float | None:
    """Percent rounded to four decimals, as in all metrics files."""
    return None if fraction is None else round(100 * fraction, 4)


def _modes(row: Row) -> tuple[Mode, ...]:
    return ("ss", "ms") if "ms" in row.modes else ("ss",)


def _mode_record(scores: Scores, result: EvaluationResult, confusion: str) -> dict[str, Any]:
    return {
        "miou": percent(scores.miou),
        "aacc": percent(scores.aacc),
        "macc": percent(scores.macc),
        "iou": [percent(x) for x in scores.iou],
        "acc": [percent(x) for x in scores.acc],
        "images": result.images,
        "pixels": sum(scores.pixels),
        "seconds": round(result.seconds, 2),
        "confusion": confusion,
        # one line of text per class of the ground truth: in the metrics file too, for the report is made from it alone
        "confusion_rows": [" ".join(map(str, line)) for line in result.confusion.matrix.tolist()],
    }


def _document(row: Row, dataset: PreparedDataset, runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": 1,
        "row": row.name,
        "table": row.table,
        "row_hash": row.hash,
        "train_hash": row.train_hash,
        "dataset": row.dataset,
        "split": row.val_split,
        "classes": list(dataset.classes),
        "settings": row.settings,
        "runs": runs,
    }


def _summary(runs: Sequence[_RunRecord]) -> dict[str, Any]:
    """``metrics.json``: means over seeds."""

    def mean(values: list[float | None], digits: int = 4) -> float | None:
        known = [value for value in values if value is not None]
        return round(float(np.mean(known)), digits) if len(known) == len(values) else None

    first = [each.scores["ss"] for each in runs]
    multi = [each.scores["ms"].miou if "ms" in each.scores else None for each in runs]
    return {
        "miou": mean([100 * s.miou for s in first]),
        "aacc": mean([100 * s.aacc for s in first]),
        "macc": mean([100 * s.macc for s in first]),
        "miou_ms_flip": mean([None if value is None else 100 * value for value in multi]),
        "baseline_miou": mean([100 * each.baseline[0] for each in runs]),
        "fps": mean([each.run["fps"] for each in runs], 3),
        "seeds": len(runs),
    }


def _write_per_class(path: Path, classes: Sequence[str], runs: Sequence[_RunRecord]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["class", "seed", "mode", "iou", "acc", "pixels"])
        for run, scores, *_ in runs:
            for mode, values in scores.items():
                for name, iou, acc, pixels in zip(classes, values.iou, values.acc, values.pixels, strict=True):
                    writer.writerow(
                        [name, "released" if run["seed"] is None else run["seed"], mode, _cell(iou), _cell(acc), pixels]
                    )


def _cell(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.4f}"


def _save_confusion(path: Path, matrix: NDArray[np.int64], classes: Sequence[str]) -> None:
    """``confusion`` int64, ground truth x prediction, and ``classes``."""
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, confusion=matrix, classes=np.array(classes))


def _publish(staging: Path, final: Path) -> None:
    """Puts the staged folder in the place of the old one."""
    staging.chmod(0o755)
    replace_folder(staging, final)


def _bare(model: nn.Module) -> nn.Module:
    """The model inside torch.compile (which would compile again for each image size) and DistributedDataParallel
    (which would wait for the other processes in each forward pass)."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, DistributedDataParallel):
        model = model.module
    return getattr(model, "_orig_mod", model)


def ahead(function: Callable[[int], _T], items: Sequence[int], threads: int) -> Iterator[_T]:
    """Results in order, computed by threads up to two items per thread ahead."""
    if threads == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[Future[_T]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _labelled_image(dataset: LabelledImages, index: int) -> tuple[_Image, _Image]:
    mask = dataset.mask(index)
    if mask is None:
        raise DataError(f"{dataset.ids[index]}: the split has no labels, so there is nothing to compare with")
    image = dataset.image(index)
    if mask.shape != image.shape[:2]:
        raise DataError(f"{dataset.ids[index]}: image {image.shape[:2]} and mask {mask.shape} differ in size")
    return image, mask


def _page_locked(inputs: Inputs) -> Inputs:
    """The same in memory that a GPU reads by itself. One array that stands for several scales stays one."""
    once = {id(a): torch.from_numpy(np.ascontiguousarray(a)).pin_memory().numpy() for a in inputs.pixels}
    return replace(inputs, pixels=tuple(once[id(a)] for a in inputs.pixels))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
