"""Every JSON document of a result, typed once: who writes one builds it, who reads one gets it.

========================================  ===========================  ===================================
file                                      written by                   document
========================================  ===========================  ===================================
``models/ROW/seedK.json``                 training                     :class:`SeedRecord`
``METRICS/train.json``                    training                     :class:`TrainingFile`
``evaluations/ROW/seedK.json``            evaluation                   :class:`EvaluationRecord`
``METRICS/evaluation.json``               evaluation                   :class:`EvaluationFile`
``METRICS/verification.json``             evaluation of released       :class:`EvaluationFile`
``reports/scores/ROW.json``               evaluation, for DVC alone    :class:`MetricsFile`
``reports/tables/TABLE.json``             report                       :class:`TableFile`
========================================  ===========================  ===================================

``METRICS`` is ``reports/metrics/TABLE/ROW``. Each number stands once: an evaluation holds the confusion matrix, and
mIoU, aAcc, mAcc, IoU and accuracy by class and the best constant prediction are computed from it when they are read.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError, field_validator

from danet.config.published import Published
from danet.core import provenance
from danet.core.errors import DataError
from danet.core.files import write_json
from danet.core.text import explain
from danet.results.identity import SETUP, EvaluationIdentity, TrainingIdentity
from danet.results.scores import AbsentClass, Scores, scores

Status = Literal["measured", "not run", "left out"]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Rounded = Annotated[Finite, PlainSerializer(lambda value: round(value, 4))]
"""Exact in memory, so that a page rounds it once."""
Fact = str | int | float | None
"""Of a provenance; a bool is an int."""
Facts = dict[str, Fact | list[Fact]]
"""By name: the value that all seeds share, else a list of theirs."""


class Document(BaseModel):
    """A JSON document, or a part of one. Fields that are not known are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


D = TypeVar("D", bound=Document)


def load(path: Path, kind: type[D], remedy: str) -> D:
    """Reads a document.

    Raises:
        DataError: naming the file, the first field that is wrong, and the remedy.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except ValidationError as error:
        raise DataError(f"{path}: {explain(error)}; {remedy}") from None


def save(path: Path, document: Document, **options: Any) -> None:
    """Writes a document; ``options`` are pydantic's."""
    write_json(path, document.model_dump(mode="json", **options))


class Provenance(Document):
    """Code, machine and versions of a stage (:func:`danet.core.provenance.collect`); ``None`` is unknown."""

    commit: str | None = None
    dirty: bool | None = None
    date: str | None = None
    command: str | None = None
    python: str | None = None
    torch: str | None = None
    torchvision: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    driver: str | None = None
    gpu: str | None = None
    gpus: int | None = None
    cpu: str | None = None
    cpu_cores: int | None = None
    os: str | None = None
    precision: str | None = None
    device: str | None = None
    """``cpu`` or ``cuda``."""
    processes: int | None = None
    wall_seconds: Amount | None = None
    energy_kj: Amount | None = None

    @classmethod
    def collect(cls, **extra: Fact) -> Provenance:
        """Of this process."""
        return cls.model_validate(provenance.collect() | extra)

    @property
    def setup(self) -> dict[str, Fact]:
        """What the last digit of a result depends on (:data:`.SETUP`)."""
        return {key: getattr(self, key) for key in SETUP}

    @property
    def hardware(self) -> str | None:
        """``4 x NVIDIA H200``, ``CPU (AMD EPYC 9654)``: a processor without its trade marks."""
        if self.gpu:
            return f"{self.gpus} x {self.gpu}" if (self.gpus or 1) > 1 else self.gpu
        cpu = re.sub(r"\((?:R|TM)\)|\b(?:\d+-Core )?Processor\b|\bCPU\b", " ", self.cpu or "")
        return f"CPU ({' '.join(cpu.split())})" if cpu.strip() else None

    @property
    def known_commit(self) -> str | None:
        """``None`` also where the code lay in no repository."""
        return None if self.commit == "unknown" else self.commit


# training


class BestEpoch(Document):
    """The epoch that was best on val, whose weights are in ``seedK-best.safetensors``."""

    iteration: int
    score: Finite
    """(pixAcc + mIoU) / 2 on centre crops (:mod:`danet.training.selection`), in percent."""
    weights_sha256: str


class Training(Document):
    """What was measured of the training of a seed."""

    iterations: int
    final_loss: Finite
    images_per_second: Amount
    hours: Amount
    peak_memory_gib: Amount
    data_wait_share: Amount = 0.0
    resumed: int = 0
    """How often it was stopped and gone on with."""
    provenance: Provenance

    @property
    def devices(self) -> int:
        """GPUs; 1 for a CPU."""
        return max(1, self.provenance.gpus or 1)


class SeedRecord(Document):
    """``models/ROW/seedK.json``: what finished weights follow from, and how their training went."""

    format: Literal[2] = 2
    row: str
    identity: TrainingIdentity
    weights_sha256: str
    best: BestEpoch | None = None
    """Of rows with ``checkpoint: best-on-val``."""
    run: Training
    curve: list[dict[str, float | int | None]]
    """As in ``curve.csv``."""


class TrainedSeed(Training):
    """One seed of ``train.json``."""

    seed: int
    identity: str
    """Digest of :class:`.TrainingIdentity`."""
    data: str
    """As in :class:`.TrainingIdentity`."""
    initial_weights: str | None
    weights_sha256: str

    @classmethod
    def of(cls, record: SeedRecord) -> TrainedSeed:
        """The part of a seed's record that goes into the metrics file."""
        whole = record.identity
        identity = {"seed": whole.seed, "data": whole.data, "initial_weights": whole.initial_weights}
        return cls(**identity, identity=whole.digest, weights_sha256=record.weights_sha256, **dict(record.run))


class TrainingFile(Document):
    """``train.json``."""

    format: Literal[2] = 2
    row: str
    train_hash: str
    runs: tuple[TrainedSeed, ...]


# evaluation


class ModeResult(Document):
    """Result of a testing mode: a confusion matrix, from which all its numbers follow."""

    images: int
    seconds: Amount
    absent_class: AbsentClass
    """The row's convention (:mod:`danet.results.scores`)."""
    confusion: tuple[str, ...]
    """A line of pixel counts for each class of the ground truth."""

    @classmethod
    def of(cls, matrix: NDArray[np.int64], absent: AbsentClass, images: int, seconds: float) -> ModeResult:
        """From a ground-truth x prediction matrix."""
        lines = tuple(" ".join(map(str, line)) for line in matrix.tolist())
        return cls(images=images, seconds=round(seconds, 2), absent_class=absent, confusion=lines)

    @field_validator("confusion")
    @classmethod
    def _is_a_matrix(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        counts = [line.split() for line in lines]
        if not lines or any(len(line) != len(lines) or not all(map(str.isdecimal, line)) for line in counts):
            raise ValueError(f"is not a matrix of {len(lines)} x {len(lines)} counts")
        if not any(int(count) for line in counts for count in line):
            raise ValueError("no labelled pixel was evaluated")
        return lines

    @property
    def matrix(self) -> NDArray[np.int64]:
        """Pixels, ground truth x prediction."""
        return np.array([line.split() for line in self.confusion], dtype=np.int64)

    @functools.cached_property
    def scores(self) -> Scores:
        """mIoU, aAcc, mAcc, IoU and accuracy by class, and the best constant prediction."""
        return scores(self.matrix, self.absent_class)


ACCURACIES = {
    "miou": "mIoU",
    "miou_ms_flip": "mIoU, ms+flip",
    "aacc": "aAcc",
    "aacc_ms": "aAcc, ms+flip",
    "macc": "mAcc",
    "macc_ms": "mAcc, ms+flip",
}
"""What is measured of a row, by the name that files and code use, and in words."""


class Modes(Document):
    """Results by testing mode."""

    ss: ModeResult
    ms: ModeResult | None = None
    """Multi-scale + flip, where the row defines it."""

    def items(self) -> list[tuple[str, ModeResult]]:
        """The modes that there are."""
        return [("ss", self.ss)] + ([("ms", self.ms)] if self.ms else [])

    @property
    def accuracies(self) -> dict[str, float]:
        """Percent, by the names of :data:`ACCURACIES`; without the mode, without its numbers."""
        single = self.ss.scores
        found = {"miou": single.miou, "aacc": single.aacc, "macc": single.macc}
        if self.ms:
            multi = self.ms.scores
            found |= {"miou_ms_flip": multi.miou, "aacc_ms": multi.aacc, "macc_ms": multi.macc}
        return found


class BestOnVal(BestEpoch):
    """The weights of the epoch that was best on val, of a row that keeps them beside the last ones."""

    modes: Modes


class Evaluation(Document):
    """How a seed, or the released weights, were evaluated."""

    seed: int | None
    """``None``: no source says it of released weights."""
    training: str | None
    """Digest of :class:`.TrainingIdentity`; ``None`` for weights from elsewhere."""
    weights_sha256: str
    data: str
    """SHA-256 over the images and labels of the tested split, in their order."""
    fps: Amount | None = None
    """As published: one image at a time, its windows one after another."""
    peak_memory_gib: Amount
    """Of CUDA's allocator, or of the process on a CPU."""
    provenance: Provenance

    def identity(self, row_hash: str) -> EvaluationIdentity:
        """What this result follows from."""
        return EvaluationIdentity(
            row_hash=row_hash, weights=self.weights_sha256, data=self.data, setup=self.provenance.setup,
            processes=self.provenance.processes or 1,
        )  # fmt: skip


class EvaluatedSeed(Evaluation):
    """One seed of ``evaluation.json``, or the released weights of ``verification.json``."""

    modes: Modes
    best_on_val: BestOnVal | None = None


class EvaluationRecord(Document):
    """``evaluations/ROW/seedK.json``: a result that is used again where all that it follows from is the same."""

    format: Literal[3] = 3
    row_hash: str
    run: EvaluatedSeed
    files: dict[str, str]
    """SHA-256 of the pictures beside it."""


class ReleasedFile(Document):
    """Weights that a source released."""

    file: str | None
    sha256: str
    """As released."""
    source: str | None
    checksum: Literal["matches", "none"]
    """Whether it is the published one; ``none`` where none is published."""


class EvaluationFile(Document):
    """``evaluation.json``; with ``weights`` it is ``verification.json``."""

    format: Literal[2] = 2
    row: str
    table: str
    row_hash: str
    train_hash: str
    dataset: str
    split: str
    classes: tuple[str, ...]
    settings: dict[str, Any]
    """All that move results (:attr:`danet.config.row.Row.settings`)."""
    runs: tuple[EvaluatedSeed, ...] = Field(min_length=1)
    weights: ReleasedFile | None = None

    @property
    def means(self) -> MetricsFile:
        """Over the seeds."""
        return MetricsFile.of(self.runs)

    @field_validator("runs")
    @classmethod
    def _of_these_classes(cls, runs: tuple[EvaluatedSeed, ...], known: Any) -> tuple[EvaluatedSeed, ...]:
        classes = len(known.data.get("classes", ()))
        for run in runs:
            for mode, result in run.modes.items():
                if len(result.confusion) != classes:
                    size = len(result.confusion)
                    raise ValueError(f"seed {run.seed}, {mode}: {size} x {size} counts for {classes} classes")
        return runs


class MetricsFile(Document):
    """``reports/scores/ROW.json``, ``ROW-released.json``: means over seeds for ``dvc metrics show``; not read back."""

    miou: Percent
    aacc: Percent
    macc: Percent
    miou_ms_flip: Percent | None
    baseline_miou: Percent
    fps: Amount | None
    seeds: int | None
    """``None`` for released weights."""

    @classmethod
    def of(cls, runs: Sequence[EvaluatedSeed]) -> MetricsFile:
        """Of the seeds of an evaluation; a mean is ``None`` where a seed lacks the number."""

        def mean(values: list[float | None], digits: int = 4) -> float | None:
            known = [value for value in values if value is not None]
            return round(sum(known) / len(known), digits) if len(known) == len(values) else None

        of = [run.modes.accuracies | {"baseline_miou": run.modes.ss.scores.constant[0]} for run in runs]
        names = ("miou", "aacc", "macc", "miou_ms_flip", "baseline_miou")
        means = {name: mean([each.get(name) for each in of]) for name in names}
        seeds = None if runs[0].seed is None else len(runs)
        return cls.model_validate(means | {"fps": mean([run.fps for run in runs], 3), "seeds": seeds})


# a table


class Accuracy(Document):
    """An accuracy of a row, published and measured: percent; ``None`` where there is none."""

    published: Percent | None = None
    mean: Rounded | None = None
    """Over the seeds."""
    sd: Rounded | None = None
    low: Rounded | None = None
    """Ends of the 95 % interval of the mean."""
    high: Rounded | None = None
    difference: Rounded | None = None
    """Measured minus published."""
    verdict: str | None = None
    band: Finite | None = None
    """Points within which the verdict takes two numbers for equal; ``None`` for what is not judged."""
    values: tuple[Rounded, ...] = ()
    """By seed."""


class ReleasedResult(Document):
    """The evaluation of the weights that a source released."""

    status: Status
    weights: ReleasedFile | None = None
    evaluation: Evaluation | None = None
    accuracies: dict[str, Accuracy] = {}
    """Each verdict says whether it agrees with the number published for these weights."""


class TableRow(Document):
    """A row of a table."""

    name: str
    row_hash: str
    status: Status
    published: Published
    """All ``None`` in a table that has no published numbers."""
    accuracies: dict[str, Accuracy]
    """Published or measured, by the names of :data:`ACCURACIES`; of the weights of the last iteration."""
    best_on_val: dict[str, Rounded]
    """Means of the epoch that was best on val, where the row keeps it."""
    released: ReleasedResult | None
    """``None`` where the source released no weights."""
    iou: dict[str, Rounded | None]
    """By class, mean over the seeds that have the class, at single scale."""
    trained: tuple[TrainedSeed, ...]
    runs: tuple[Evaluation, ...]
    settings: dict[str, Any]


class Problem(Document):
    """A file, or a part of one, that is not used."""

    file: str
    """Relative to the workspace."""
    reason: str


class TableFile(Document):
    """``reports/tables/TABLE.json``: a table's rows with all that ``danet reproduce`` compares."""

    format: Literal[3] = 3
    table: str
    title: str
    rows: tuple[TableRow, ...]
    left_out: tuple[Problem, ...]
