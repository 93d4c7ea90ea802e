"""The confusion matrix of a pass over a dataset, counted where the label maps are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from danet.core.errors import DataError
from danet.core.process import Process
from danet.data.layout import IGNORE
from danet.results.scores import AbsentClass, Scores, scores


class Confusion:
    """A confusion matrix that is filled image by image.

    The sums are int64 and lie on ``device``; :meth:`update` neither copies images to the host nor waits for the device.
    An id that is not a class (and, in the target, not 255) is counted apart and reported by :attr:`matrix`.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        # prediction x target: classes and invalid ids; classes, ignored and invalid ids
        self._counts = torch.zeros((num_classes + 1, num_classes + 2), dtype=torch.int64, device=device)

    def update(self, prediction: Tensor | NDArray[np.uint8], target: Tensor | NDArray[np.uint8]) -> None:
        """Adds one image or batch.

        Args:
            prediction: uint8 class ids, any shape.
            target: uint8 train ids of the same shape, 255 = ignored.

        Raises:
            DataError: if the shapes differ.
        """
        p, t = (torch.as_tensor(x, device=self._counts.device) for x in (prediction, target))
        if p.shape != t.shape:
            raise DataError(
                f"prediction has size {tuple(p.shape)}, ground truth {tuple(t.shape)}: convert the dataset again"
            )
        classes = self.num_classes
        row = p.to(torch.int32).clamp_(max=classes)
        column = t.to(torch.int32)
        column = torch.where(column == IGNORE, classes, torch.where(column < classes, column, classes + 1))
        index = torch.add(column, row, alpha=classes + 2)
        bins = self._counts.numel()
        # bincount waits for the GPU, to learn the largest index
        if not index.is_cuda or torch.are_deterministic_algorithms_enabled():
            counts = torch.bincount(index.flatten(), minlength=bins)
        else:
            counts = torch.histc(index, bins=bins, min=0, max=bins)
        self._counts += counts.view_as(self._counts)

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
        if wrong := int(counts[classes + 1].sum()):
            raise DataError(
                f"{wrong} ground-truth pixels hold an id outside 0..{classes - 1} and not {IGNORE}: "
                "convert the dataset again"
            )
        if wrong := int(counts[:, classes].sum()):
            raise DataError(
                f"{wrong} predicted pixels hold an id outside 0..{classes - 1}: the model has other classes"
            )
        return np.ascontiguousarray(counts[:classes, :classes])

    def scores(self, absent: AbsentClass = "skip") -> Scores:
        """See :func:`danet.results.scores.scores`."""
        return scores(self.matrix, absent)
