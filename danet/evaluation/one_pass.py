"""One pass of a network over a labelled split: its confusion matrix, its frame rate, some of its label maps."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from danet.config.row import Row
from danet.core.errors import DanetError, DataError, out_of_memory
from danet.core.parallel import ahead
from danet.core.process import Process
from danet.data.prepared import PreparedDataset
from danet.evaluation.inference import Inputs, Mode, Predictor
from danet.evaluation.metrics import Confusion
from danet.models.numerics import configured

FPS_WARM_UP = 5
"""Images that are not timed (mmsegmentation's tools/benchmark.py)."""

_Image = NDArray[np.uint8]


@dataclass(frozen=True)
class PassResult:
    """What one pass over a split gave."""

    confusion: Confusion
    images: int
    seconds: float
    """Wall time of the pass, with loading."""
    fps: float | None
    """Images per second by the published method, windows one after another; of this process alone. None if nothing was
    timed."""
    predictions: dict[int, _Image] = field(default_factory=dict)
    """Label maps that were asked for, by index in the dataset."""


def evaluate_model(
    model: nn.Module,
    row: Row,
    dataset: PreparedDataset,
    device: torch.device | str,
    *,
    mode: Mode = "ss",
    progress: Callable[[int, int], None] | None = None,
    process: Process | None = None,
    keep: Collection[int] = (),
    max_batch: int | None = None,
) -> PassResult:
    """Runs a model over a split and sums its confusion matrix. The model is left in the mode it was in.

    Images are decoded and resized by ``row.runtime.workers`` threads while the network computes (0: by none). On a GPU
    these threads also page-lock them, labels are copied and counted on the device, and after the timed images the host
    waits for it only where ``keep`` asks for a label map, and at the end.

    The frame rate is measured by the published method (mmsegmentation's tools/benchmark.py) on the way: one image at a
    time and its windows one after another, the first 5 images skipped (of fewer than 10: half of them), up to
    ``row.runtime.benchmark_images`` timed; network, resize of the logits, argmax and copy to the host, without loading;
    CUDA is synchronised before and after.

    Args:
        model: gives ``{"main": logits}``; on ``device``.
        row: protocol, numerics and runtime.
        dataset: images with masks.
        device: of the model.
        mode: ``ss`` or ``ms``.
        progress: called after each image with the images done and all images of this process.
        process: this process among many; each image is evaluated by one, and all get the whole confusion matrix.
        keep: indices whose label maps are wanted (on the first process).
        max_batch: see :class:`Predictor`.

    Raises:
        DataError: if the split has no masks.
        CheckpointError: if the network gives something that is not finite.
        DanetError: if the device's memory does not suffice.
    """
    process, device = process or Process(), torch.device(device)
    mine = range(process.rank, len(dataset), process.world)
    with _evaluating(model), configured(row.numerics, training=False):
        predictor = Predictor(
            model, row.test, row.model.align_corners, mode=mode, device=device, numerics=row.numerics,
            max_batch=max_batch,
        )  # fmt: skip
        rate = _FrameRate(predictor, len(mine), row.runtime.benchmark_images if mode == "ss" else 0)
        confusion = Confusion(dataset.num_classes, device)
        predictions: dict[int, _Image] = {}
        start = time.perf_counter()
        for done, (index, inputs, mask) in enumerate(ahead(_loader(dataset, predictor), mine, row.runtime.workers)):
            try:
                labels = rate.labels(done, inputs)
                confusion.update(labels, mask.to(device, non_blocking=True))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise DanetError(
                    f"row {row.name}: the memory of {device} does not suffice for an image of {dataset.ids[index]}'s "
                    "size or larger; set numerics.precision to bf16, or evaluate with device cpu"
                ) from error
            if index in keep:
                predictions[index] = labels.cpu().numpy()
            if progress is not None:
                progress(done + 1, len(mine))
        predictor.check(f"row {row.name}")
    confusion.reduce(process)
    for other in process.gather(predictions) if keep and process.world > 1 else ():
        predictions |= other
    seconds = time.perf_counter() - start
    return PassResult(confusion, len(dataset), seconds, rate.fps, predictions)


def _loader(dataset: PreparedDataset, predictor: Predictor) -> Callable[[int], tuple[int, Inputs, Tensor]]:
    """What the threads do: an image, prepared, and its mask; page-locked for a GPU."""

    def load(index: int) -> tuple[int, Inputs, Tensor]:
        mask = dataset.mask(index)
        if mask is None:
            raise DataError(f"{dataset.ids[index]}: has no labels; set the row's val_split to another split")
        image = dataset.image(index)
        # copies: PyTorch warns of arrays that must not be written to
        inputs, target = predictor.prepare(np.array(image)), torch.from_numpy(np.array(mask))
        if predictor.device.type == "cuda":
            inputs, target = _page_locked(inputs), target.pin_memory()
        return index, inputs, target

    return load


def _page_locked(inputs: Inputs) -> Inputs:
    """The same in memory that a GPU reads by itself. One array that stands for several scales stays one."""
    once = {id(a): torch.from_numpy(np.ascontiguousarray(a)).pin_memory().numpy() for a in inputs.pixels}
    return replace(inputs, pixels=tuple(once[id(a)] for a in inputs.pixels))


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode, and afterwards in the mode that it was in."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


class _FrameRate:
    """Predicts the images of a pass and times some as published, their windows one after another."""

    def __init__(self, predictor: Predictor, images: int, timed: int) -> None:
        self._predictor, self._max_batch = predictor, predictor.max_batch
        skipped = min(FPS_WARM_UP, images // 2)
        self._timed = range(skipped, skipped + timed)
        self._seconds: list[float] = []

    def labels(self, number: int, inputs: Inputs) -> Tensor:
        """The label map of image ``number`` of the pass, on the device."""
        device = self._predictor.device
        self._predictor.max_batch = 1 if self._timed and number < self._timed.stop else self._max_batch
        if number not in self._timed:
            return self._predictor.labels(inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        before = time.perf_counter()
        labels = self._predictor.labels(inputs)
        labels.cpu()
        self._seconds.append(time.perf_counter() - before)
        return labels

    @property
    def fps(self) -> float | None:
        """See :class:`PassResult`."""
        return len(self._seconds) / sum(self._seconds) if self._seconds else None
