"""One pass of a network over a labelled split: its confusion matrix, its frame rate, some of its label maps."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from danet.config.row import Row
from danet.core.errors import CheckpointError, DanetError, DataError
from danet.core.parallel import ahead
from danet.core.process import Process
from danet.data.layout import LabelledImages
from danet.evaluation.inference import Inputs, Mode, Predictor
from danet.evaluation.metrics import Confusion
from danet.models.numerics import configured
from danet.results.scores import AbsentClass, Scores

FPS_WARM_UP = 5
"""Images that are not timed (mmsegmentation's tools/benchmark.py)."""
CHECK_EVERY = 25
"""Images between looks at whether the network's output is finite on a GPU, so that it need not wait after each."""

_Image = NDArray[np.uint8]


@dataclass(frozen=True)
class PassResult:
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
) -> PassResult:
    """Runs a model over a split and sums its confusion matrix. The model is left in the mode it was in.

    Images are decoded and resized by ``row.runtime.workers`` threads while the network computes (0: by none). On a GPU
    these threads also page-lock them, labels are copied and counted on the device, and after the timed images the host
    waits for it only once in :data:`CHECK_EVERY` images, and where ``keep`` asks for a label map.

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
        DanetError: if the device's memory does not suffice.
    """
    process, device = process or Process(), torch.device(device)
    mine = spaced(len(dataset), limit)[process.rank :: process.world]
    network = _bare(model)
    with _evaluating(network), configured(row.numerics, training=False):
        predictor = Predictor(
            network, row.test, row.model.align_corners, mode=mode, device=device, numerics=row.numerics,
            max_batch=max_batch,
        )  # fmt: skip
        rates = _FrameRates(predictor, len(mine), row.runtime.benchmark_images if mode == "ss" else 0)
        confusion = Confusion(dataset.num_classes, device)
        predictions: dict[int, _Image] = {}
        unchecked: list[tuple[int, torch.Tensor]] = []
        start = time.perf_counter()
        for done, (index, inputs, mask) in enumerate(ahead(_loader(dataset, predictor), mine, row.runtime.workers)):
            with _named(f"row {row.name}", dataset.ids[index], device):
                target = mask.to(device, non_blocking=True)
                labels, finite, host = rates.labels(done, inputs, on_host=index in keep)
                confusion.update(labels, target)
            unchecked.append((index, finite))
            if device.type != "cuda" or len(unchecked) == CHECK_EVERY or done + 1 == len(mine):
                _check(predictor, row, dataset, unchecked)
            if host is not None and index in keep:
                predictions[index] = host.numpy()
            if progress is not None:
                progress(done + 1, len(mine))
    confusion.reduce(process)
    for other in process.gather(predictions) if keep and process.world > 1 else ():
        predictions |= other
    images = int(process.sum(torch.tensor(len(mine), device=device)))
    if images == 0:
        raise DataError("the split is empty: there is nothing to evaluate")
    seconds = time.perf_counter() - start
    return PassResult(confusion, row.test.absent_class, images, seconds, rates.fps, rates.fps_batched, predictions)


def _loader(dataset: LabelledImages, predictor: Predictor) -> Callable[[int], tuple[int, Inputs, torch.Tensor]]:
    """What the threads do: an image, prepared, and its mask; page-locked for a GPU."""

    def load(index: int) -> tuple[int, Inputs, torch.Tensor]:
        image, mask = _labelled_image(dataset, index)
        inputs, target = predictor.prepare(image), torch.from_numpy(mask)
        if predictor.device.type == "cuda":
            inputs, target = _page_locked(inputs), target.pin_memory()
        return index, inputs, target

    return load


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode, and afterwards in the mode that it was in."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def _check(predictor: Predictor, row: Row, dataset: LabelledImages, unchecked: list[tuple[int, torch.Tensor]]) -> None:
    """Raises for the first image whose output was not finite; empties the list."""
    for index, finite in unchecked:
        with _named(f"row {row.name}", dataset.ids[index], predictor.device):
            predictor.check(finite)
    unchecked.clear()


@contextmanager
def _named(row: str, image: str, device: torch.device) -> Iterator[None]:
    """Says of which row and image an error is."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DanetError(
            f"{row}: the memory of {device} does not suffice for an image of {image}'s size or larger; "
            "set numerics.precision to bf16, or evaluate with device cpu"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"{row}, image {image}: {error}") from error


class _FrameRates:
    """Predicts the images of a pass and times some: first as published, windows one after another, then batched."""

    def __init__(self, predictor: Predictor, images: int, timed: int) -> None:
        self._predictor, self._batched = predictor, predictor.max_batch
        skipped = min(FPS_WARM_UP, images // 2)
        self._published = range(skipped, skipped + timed)
        again = self._published.stop + FPS_WARM_UP
        self._batches = range(again, again + timed if predictor.batches and self._batched > 1 else again)
        self._times: dict[range, list[float]] = {self._published: [], self._batches: []}

    def labels(
        self, number: int, inputs: Inputs, on_host: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The label map of image ``number`` of the pass on the device, what :meth:`Predictor.check` takes, and the map
        on the host if wanted there or timed."""
        self._predictor.max_batch = 1 if number < self._published.stop and self._published else self._batched
        times = next((times for images, times in self._times.items() if number in images), None)
        if times is None:
            labels, finite = self._predictor.predict(inputs)
            return labels, finite, labels.cpu() if on_host else None
        _synchronise(self._predictor.device)
        before = time.perf_counter()
        labels, finite = self._predictor.predict(inputs)
        host = labels.cpu()
        times.append(time.perf_counter() - before)
        return labels, finite, host

    @property
    def fps(self) -> float | None:
        """See :class:`PassResult`."""
        return _rate(self._times[self._published])

    @property
    def fps_batched(self) -> float | None:
        """See :class:`PassResult`."""
        return _rate(self._times[self._batches])


def _rate(seconds: Sequence[float]) -> float | None:
    return len(seconds) / sum(seconds) if seconds else None


def spaced(count: int, wanted: int | None) -> list[int]:
    """``wanted`` of ``count`` indices, evenly spaced from the first to the last; all if null or more."""
    if wanted is None or wanted >= count:
        return list(range(count))
    return sorted({round(i) for i in np.linspace(0, count - 1, wanted).tolist()})


def _bare(model: nn.Module) -> nn.Module:
    """The model inside torch.compile (which would compile anew for each image size) and DistributedDataParallel
    (which would wait for the other processes in each forward pass)."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, DistributedDataParallel):
        model = model.module
    return getattr(model, "_orig_mod", model)


def _labelled_image(dataset: LabelledImages, index: int) -> tuple[_Image, _Image]:
    mask = dataset.mask(index)
    if mask is None:
        raise DataError(f"{dataset.ids[index]}: the split has no labels, so there is nothing to compare with")
    image = dataset.image(index)
    if mask.shape != image.shape[:2]:
        raise DataError(f"{dataset.ids[index]}: image {image.shape[:2]} and mask {mask.shape} differ in size")
    return np.array(image), np.array(mask)  # PyTorch warns of arrays that must not be written to


def _page_locked(inputs: Inputs) -> Inputs:
    """The same in memory that a GPU reads by itself. One array that stands for several scales stays one."""
    once = {id(a): torch.from_numpy(np.ascontiguousarray(a)).pin_memory().numpy() for a in inputs.pixels}
    return replace(inputs, pixels=tuple(once[id(a)] for a in inputs.pixels))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
