"""mIoU, mAcc and aAcc from one confusion matrix over a whole dataset.

Every source sums pixels over the whole validation set before it divides; none averages over images. They
differ in what an *absent* class counts (neither in the ground truth nor predicted anywhere): mmsegmentation
(later 0.x, 1.x) and sssegmentation leave it out of the mean (``skip``), the official code divides by
``union + 2.2e-16``, so that it counts 0 (``zero``).

Rows of the matrix are ground truth, columns are predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from danet.core.errors import DataError
from danet.core.process import Process

IGNORE = 255
AbsentClass = Literal["skip", "zero"]
_EPS = float(np.spacing(1.0))  # the official code's 2.2e-16


@dataclass(frozen=True)
class Scores:
    """Fractions in [0, 1]. ``iou`` and ``acc`` hold None for a class that has none."""

    miou: float
    macc: float
    aacc: float
    iou: tuple[float | None, ...]
    """None: the class is neither in the ground truth nor predicted."""
    acc: tuple[float | None, ...]
    """Share of the class's pixels that are found (recall); None: the class is not in the ground truth."""
    pixels: tuple[int, ...]
    """Labelled pixels of each class in the ground truth."""


class Confusion:
    """A confusion matrix that is filled image by image, and can be added to another's.

    The sums are int64 and lie on ``device``; :meth:`update` neither copies images to the host nor waits for the device.
    An id that is not a class (and, in the target, not 255) is counted apart and reported by :attr:`matrix`.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes {num_classes}: uint8 label maps hold 1 to {IGNORE} classes")
        self.num_classes = num_classes
        # The CPU counts every pair of uint8 values in one pass without a look at the values, CUDA wants few bins that
        # fit into shared memory: classes, ignored, invalid x classes, invalid.
        self._pairs = torch.device(device).type == "cpu"
        shape = (256, 256) if self._pairs else (num_classes + 1, num_classes + 2)
        self._counts = torch.zeros(shape, dtype=torch.int64, device=device)  # prediction x target

    @property
    def device(self) -> torch.device:
        """Where the sums lie."""
        return self._counts.device

    def update(self, prediction: Tensor | NDArray[np.uint8], target: Tensor | NDArray[np.uint8]) -> None:
        """Adds one image or batch.

        Args:
            prediction: uint8 class ids, any shape.
            target: uint8 train ids of the same shape, 255 = ignored.

        Raises:
            DataError: if the shapes differ.
        """
        p, t = (torch.as_tensor(x, device=self.device) for x in (prediction, target))
        if p.shape != t.shape:
            raise DataError(
                f"prediction has size {tuple(p.shape)}, ground truth {tuple(t.shape)}: convert the dataset again"
            )
        if p.dtype != torch.uint8 or t.dtype != torch.uint8:
            raise TypeError(f"label maps must be uint8, got {p.dtype} and {t.dtype}")
        if p.numel() == 0:
            return
        # The smallest integer that holds the fused index halves the memory traffic of a 1024x2048 map.
        if self._pairs:
            small = torch.int16 if self.num_classes <= 127 and int(p.max()) <= 127 else torch.int32
            index = torch.add(t.to(small), p.to(small), alpha=256)
        else:
            classes = self.num_classes
            row = p.to(torch.int32).clamp_(max=classes)
            column = t.to(torch.int32)
            column = torch.where(column == IGNORE, classes, torch.where(column < classes, column, classes + 1))
            index = torch.add(column, row, alpha=classes + 2)
        self._counts += torch.bincount(index.flatten(), minlength=self._counts.numel()).view_as(self._counts)

    def __iadd__(self, other: Confusion) -> Confusion:
        if other.num_classes != self.num_classes:
            raise ValueError(
                f"confusion matrices of {self.num_classes} and {other.num_classes} classes cannot be added"
            )
        if other._counts.shape == self._counts.shape:
            self._counts += other._counts.to(self.device)
        else:
            raise ValueError("confusion matrices of different kinds of devices cannot be added")
        return self

    def reduce(self, process: Process) -> None:
        """Sums over all processes (collective)."""
        self._counts = process.sum(self._counts)

    @property
    def matrix(self) -> NDArray[np.int64]:
        """``num_classes x num_classes``, ground truth x prediction, of the labelled pixels.

        Raises:
            DataError: if a target or prediction held an id that is not a class.
        """
        counts = self._counts.cpu().numpy().T
        classes = self.num_classes
        ignored = np.zeros(counts.shape[0], dtype=bool)
        ignored[IGNORE if self._pairs else classes] = True
        invalid = counts.sum(axis=1)
        invalid[:classes] = 0
        if wrong := int(invalid[~ignored].sum()):
            which = f" ({', '.join(str(i) for i in np.flatnonzero(invalid * ~ignored)[:5])})" if self._pairs else ""
            raise DataError(
                f"{wrong} ground-truth pixels hold an id{which} outside 0..{classes - 1} and not {IGNORE}: "
                "convert the dataset again"
            )
        if wrong := int(counts[:, classes:].sum()):
            raise DataError(
                f"{wrong} predicted pixels hold an id outside 0..{classes - 1}: the model has other classes"
            )
        return np.ascontiguousarray(counts[:classes, :classes])

    def scores(self, absent: AbsentClass = "skip") -> Scores:
        """See :func:`scores`."""
        return scores(self.matrix, absent)


def scores(matrix: NDArray[np.int64], absent: AbsentClass = "skip") -> Scores:
    """Metrics of a ground-truth x prediction matrix.

    A class that is predicted but not in the ground truth has IoU 0 and counts in mIoU under both conventions, and has
    no accuracy (mmsegmentation: NaN, skipped by nanmean). aAcc is the share of labelled pixels that are right.

    Raises:
        DataError: if the matrix is empty, since every metric would be 0/0.
    """
    truth, predicted, right = matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)
    total = int(truth.sum())
    if total == 0:
        raise DataError("no labelled pixel was evaluated: the split is empty or all its masks are 255")
    union = truth + predicted - right
    if absent == "zero":
        iou, acc = right / (union + _EPS), right / (truth + _EPS)
        miou, macc, aacc = float(iou.mean()), float(acc.mean()), float(right.sum() / (total + _EPS))
    else:
        with np.errstate(invalid="ignore"):
            iou, acc = right / union, right / truth
        miou, macc, aacc = float(np.nanmean(iou)), float(np.nanmean(acc)), float(right.sum() / total)
    return Scores(
        miou=miou,
        macc=macc,
        aacc=aacc,
        iou=tuple(float(x) if n else None for x, n in zip(iou, union, strict=True)),
        acc=tuple(float(x) if n else None for x, n in zip(acc, truth, strict=True)),
        pixels=tuple(int(n) for n in truth),
    )


def constant_baseline(pixels: NDArray[np.int64] | tuple[int, ...], absent: AbsentClass = "skip") -> tuple[float, int]:
    """The best mIoU that predicting one class everywhere reaches, and that class.

    Predicting ``c`` everywhere gives IoU ``pixels[c] / total`` for ``c`` and 0 for every other class of the ground
    truth, so the most frequent class is best, and its IoU is divided by the number of classes present (``skip``) or of
    all classes (``zero``).

    Args:
        pixels: labelled pixels of each class in the ground truth.
        absent: the convention of the row.

    Raises:
        DataError: if there is no labelled pixel.
    """
    counts = np.asarray(pixels, dtype=np.int64)
    if (total := int(counts.sum())) == 0:
        raise DataError("no labelled pixel was evaluated: the split is empty or all its masks are 255")
    best = int(counts.argmax())
    classes = len(counts) if absent == "zero" else int((counts > 0).sum())
    return float(counts[best] / total / classes), best
