"""From a file of weights to its result and pictures; or the result of the very same evaluation, done before."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.markup import escape
from torch import nn

from danet.config.row import Row
from danet.core import provenance
from danet.core.console import console
from danet.core.errors import DataError
from danet.core.files import sha256
from danet.core.process import Process, peak_memory_gib
from danet.core.progress import Progress
from danet.data.prepared import PreparedDataset
from danet.evaluation import visualise
from danet.evaluation.inference import Mode
from danet.evaluation.one_pass import PassResult, evaluate_model, spaced
from danet.models.segmentor import build_model
from danet.results.identity import EvaluationIdentity, TrainingIdentity
from danet.results.schema import (
    BestEpoch,
    EvaluatedSeed,
    EvaluationRecord,
    ModeResult,
    Modes,
    Provenance,
    load,
    save,
)
from danet.weights.exchange import load_any
from danet.weights.ours import load_model


@dataclass(frozen=True)
class Subject:
    """Weights to evaluate."""

    name: str
    """Of the files about it: ``seed0``, ``best-seed0``, ``released``."""
    seed: int | None
    """None for released weights: no source says it."""
    path: Path
    identity: TrainingIdentity | None = None
    """What the row's own training was; None for files from elsewhere."""
    best: BestEpoch | None = None
    """Set for the weights of the epoch that was best on val, which follow those of the last iteration."""

    @property
    def text(self) -> str:
        """For people."""
        if self.seed is None:
            return "released weights"
        return f"seed {self.seed}" + (", best on val" if self.best else "")

    @functools.cached_property
    def weights_sha256(self) -> str:
        """Of the file."""
        return sha256(self.path)


@dataclass(frozen=True)
class Bench:
    """What every subject of a row is evaluated on."""

    row: Row
    dataset: PreparedDataset
    process: Process
    staging: Path
    """Where pictures are put first."""
    show: bool
    """Whether to print."""

    def evaluate(self, subject: Subject) -> EvaluatedSeed:
        """Evaluates every mode of the row; pictures and a record go to the staging folder."""
        started, energy, device = time.perf_counter(), provenance.EnergyMeter(), self.process.device
        model = self._model(subject)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        first = self._pass(model, subject, "ss")
        memory = peak_memory_gib(device)
        results = {"ss": self._result(first, subject, "ss")}
        if "ms" in self.row.modes:
            results["ms"] = self._result(self._pass(model, subject, "ms"), subject, "ms")
        run = EvaluatedSeed(
            seed=subject.seed,
            training=subject.identity.digest if subject.identity else None,
            weights_sha256=subject.weights_sha256,
            data=self.dataset.manifest_hash,
            modes=Modes(**results),
            fps=None if first.fps is None else round(first.fps, 3),
            fps_batched=None if first.fps_batched is None else round(first.fps_batched, 3),
            peak_memory_gib=round(memory, 3),
            provenance=self._provenance(
                wall_seconds=round(time.perf_counter() - started, 1),
                energy_kj=energy.kilojoules() if device.type == "cuda" and self.process.world == 1 else None,
            ),
        )
        if self.process.is_main:
            files = {picture.name: sha256(picture) for picture in sorted(self.staging.glob(f"{subject.name}-*"))}
            record = EvaluationRecord(row_hash=self.row.hash, run=run, files=files)
            save(self.staging / f"{subject.name}.json", record)
        return run

    def kept(self, subject: Subject, pictures: Path) -> EvaluatedSeed | None:
        """The earlier result in ``pictures``, if all that it follows from is the same; its files are staged.

        None if it is another's, damaged or lost. Collective: every process gets the first one's answer.
        """
        found = self._kept(subject, pictures / f"{subject.name}.json") if self.process.is_main else None
        return self.process.gather(found)[0]  # type: ignore[no-any-return]

    def _kept(self, subject: Subject, path: Path) -> EvaluatedSeed | None:
        try:
            record = load(path, EvaluationRecord, "evaluate again")
            if record.run.identity(record.row_hash) != self._identity(subject):
                return None
            if any(sha256(path.with_name(name)) != digest for name, digest in record.files.items()):
                return None
            for name in (*record.files, path.name):
                shutil.copyfile(path.with_name(name), self.staging / name)
        except (OSError, DataError):
            return None
        if self.show:
            when = str(record.run.provenance.date)[:10]
            console.print(escape(f"{self.row.name} {subject.text}: already evaluated on {when} ({path})"))
        return record.run

    def _identity(self, subject: Subject) -> EvaluationIdentity:
        """Of an evaluation here and now."""
        return EvaluationIdentity(
            row_hash=self.row.hash,
            weights=subject.weights_sha256,
            data=self.dataset.manifest_hash,
            processes=self.process.world,
            setup=self._provenance().setup,
        )

    def _provenance(self, **extra: float | None) -> Provenance:
        return Provenance.collect(
            precision=self.row.numerics.precision,
            device=self.process.device.type,
            processes=self.process.world,
            **extra,
        )

    def _model(self, subject: Subject) -> nn.Module:
        row = self.row
        model = build_model(row.model, self.dataset.num_classes, attention=row.numerics.attention)
        if subject.identity is not None:
            load_model(subject.path, model)
        else:
            load_any(subject.path, model, row)
        model.to(self.process.device)
        if row.numerics.channels_last:
            model.to(memory_format=torch.channels_last)
        return model

    def _pass(self, model: nn.Module, subject: Subject, mode: Mode) -> PassResult:
        images = len(self.dataset)
        keep = spaced(images, self.row.runtime.overlays) if mode == "ss" and self.row.runtime.overlays else []
        with Progress(f"{self.row.name} {subject.name} {mode}", images, show=self.show) as bar:
            return evaluate_model(
                model,
                self.row,
                self.dataset,
                self.process.device,
                mode=mode,
                # as if the other processes were as far
                progress=lambda done, mine: bar.advance(done * images // mine - bar.done),
                process=self.process,
                keep=keep,
            )

    def _result(self, found: PassResult, subject: Subject, mode: Mode) -> ModeResult:
        """The numbers of a pass; draws its pictures, and says what it gave."""
        matrix = found.confusion.matrix
        result = ModeResult.of(matrix, self.row.test.absent_class, found.images, found.seconds)
        if self.process.is_main:
            title = f"{self.row.name}, {subject.text}, {mode}, mIoU\u00a0{result.miou:.2f}"
            path = self.staging / f"{subject.name}-{mode}-confusion.png"
            visualise.save_confusion(path, title, matrix, self.dataset.classes)
            self._draw(found.predictions, subject)
        if self.show:
            speed = f", {found.fps:.2f} fps" if found.fps and mode == "ss" else ""
            console.print(
                escape(
                    f"{self.row.name} {subject.text} {mode}: mIoU {result.miou:.2f} %, aAcc {result.aacc:.2f} %, "
                    f"mAcc {result.macc:.2f} % (best constant: mIoU {result.baseline[0]:.2f} %), "
                    f"{found.images} images in {found.seconds:.0f} s{speed}"
                )
            )
        return result

    def _draw(self, predictions: Mapping[int, visualise.Image8], subject: Subject) -> None:
        data = self.dataset
        for index, prediction in sorted(predictions.items()):
            name, truth = data.ids[index], data.mask(index)
            assert truth is not None
            title, stem = f"{self.row.name}, {subject.text}: {name}", f"{subject.name}-{name}"
            panels = self.staging / f"{stem}-panels.png"
            visualise.save_panels(panels, title, data.image(index), truth, prediction, data.classes, data.palette)
            visualise.save_palette_png(self.staging / f"{stem}-prediction.png", prediction, data.palette)
