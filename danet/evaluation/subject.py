"""From a file of weights to its result and pictures; or the result of the very same evaluation, done before."""

from __future__ import annotations

import functools
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
from danet.evaluation.one_pass import PassResult, evaluate_model
from danet.evaluation.predict import load_network
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
        model = load_network(self.row, subject.path, self.dataset.num_classes, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        first, single = self._pass(model, subject, "ss")
        memory = peak_memory_gib(device)
        multi = self._pass(model, subject, "ms")[1] if "ms" in self.row.modes else None
        run = EvaluatedSeed(
            seed=subject.seed,
            training=subject.identity.digest if subject.identity else None,
            weights_sha256=subject.weights_sha256,
            data=self.dataset.manifest_hash,
            modes=Modes(ss=single, ms=multi),
            fps=None if first.fps is None else round(first.fps, 3),
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
        wanted = EvaluationIdentity(
            row_hash=self.row.hash,
            weights=subject.weights_sha256,
            data=self.dataset.manifest_hash,
            processes=self.process.world,
            setup=self._provenance().setup,
        )
        try:
            record = load(path, EvaluationRecord, "evaluate again")
            if record.run.identity(record.row_hash) != wanted:
                return None
            if any(sha256(path.with_name(name)) != digest for name, digest in record.files.items()):
                return None
            for name in (*record.files, path.name):
                shutil.copyfile(path.with_name(name), self.staging / name)
        except (OSError, DataError):
            return None
        self._say(f"{subject.text}: already evaluated on {str(record.run.provenance.date)[:10]} ({path})")
        return record.run

    def _provenance(self, **extra: float | None) -> Provenance:
        return Provenance.collect(
            precision=self.row.numerics.precision,
            device=self.process.device.type,
            processes=self.process.world,
            **extra,
        )

    def _say(self, message: str) -> None:
        if self.show:
            console.print(escape(f"{self.row.name} {message}"))

    def _pass(self, model: nn.Module, subject: Subject, mode: Mode) -> tuple[PassResult, ModeResult]:
        """Evaluates a mode and draws its pictures."""
        images, data = len(self.dataset), self.dataset
        with Progress(f"{self.row.name} {subject.name} {mode}", images, show=self.show) as bar:
            found = evaluate_model(
                model,
                self.row,
                data,
                self.process.device,
                mode=mode,
                # as if the other processes were as far
                progress=lambda done, mine: bar.advance(done * images // mine - bar.done),
                process=self.process,
                keep=spaced(images, self.row.runtime.overlays) if mode == "ss" else (),
            )
        matrix = found.confusion.matrix
        result = ModeResult.of(matrix, self.row.test.absent_class, found.images, found.seconds)
        scores = result.scores
        if self.process.is_main:
            title = f"{self.row.name}, {subject.text}"
            path = self.staging / f"{subject.name}-{mode}-confusion.png"
            visualise.save_confusion(path, f"{title}, {mode}, mIoU\u00a0{scores.miou:.2f}", matrix, data.classes)
            for index, prediction in sorted(found.predictions.items()):
                stem, truth = self.staging / f"{subject.name}-{data.ids[index]}", data.mask(index)
                assert truth is not None
                visualise.save_palette_png(Path(f"{stem}-prediction.png"), prediction, data.palette)
                visualise.save_panels(
                    Path(f"{stem}-panels.png"),
                    data.image(index),
                    truth,
                    [("prediction", prediction)],
                    data.classes,
                    data.palette,
                    title=f"{title}: {data.ids[index]}",
                )
        speed = f", {found.fps:.2f} fps" if found.fps else ""
        self._say(
            f"{subject.text} {mode}: mIoU {scores.miou:.2f} %, aAcc {scores.aacc:.2f} %, mAcc {scores.macc:.2f} % "
            f"(best constant: mIoU {scores.constant[0]:.2f} %), {found.images} images in {found.seconds:.0f} s{speed}"
        )
        return found, result


def spaced(count: int, wanted: int) -> list[int]:
    """``wanted`` of ``count`` indices, evenly spaced from the first to the last; all if more are wanted."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, wanted)).tolist()})
