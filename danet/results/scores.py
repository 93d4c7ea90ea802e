"""mIoU, mAcc and aAcc from one confusion matrix over a whole dataset, in NumPy alone.

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
from numpy.typing import NDArray

from danet.core.errors import DataError

AbsentClass = Literal["skip", "zero"]
_EPS = float(np.spacing(1.0))  # the official code's 2.2e-16


@dataclass(frozen=True)
class Scores:
    """In percent."""

    miou: float
    macc: float
    aacc: float
    iou: tuple[float | None, ...]
    """By class; None: it is neither in the ground truth nor predicted."""
    acc: tuple[float | None, ...]
    """By class, the share of its pixels that are found (recall); None: it is not in the ground truth."""
    constant: tuple[float, int]
    """The best mIoU that one class predicted everywhere reaches, and that class."""


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
        miou=100 * miou,
        macc=100 * macc,
        aacc=100 * aacc,
        iou=tuple(100 * float(x) if n else None for x, n in zip(iou, union, strict=True)),
        acc=tuple(100 * float(x) if n else None for x, n in zip(acc, truth, strict=True)),
        constant=constant_baseline(truth, absent),
    )


def constant_baseline(pixels: NDArray[np.int64], absent: AbsentClass = "skip") -> tuple[float, int]:
    """The best mIoU in percent that predicting one class everywhere reaches, and that class.

    Predicting ``c`` everywhere gives IoU ``pixels[c] / total`` for ``c`` and 0 for every other class of the ground
    truth, so the most frequent class is best, and its IoU is divided by the number of classes present (``skip``) or of
    all classes (``zero``). ``pixels`` are the labelled ones of each class in the ground truth, at least one.
    """
    best = int(pixels.argmax())
    classes = len(pixels) if absent == "zero" else int((pixels > 0).sum())
    return 100 * float(pixels[best] / pixels.sum() / classes), best
