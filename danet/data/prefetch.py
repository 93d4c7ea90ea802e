"""From batches of grey levels to normalised batches where training wants them; on a GPU during the batch before."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from danet.config.row import Augment
from danet.data.transforms import MEAN_RGB, STD_RGB, Box

AHEAD = 2
"""Batches."""
Loaded = tuple[Tensor, Tensor, list[Box]]
"""Grey levels uint8 ``(N, H, W, 3)`` BGR, labels uint8 ``(N, H, W)``, and which part of each is image, not padding."""
Batch = tuple[Tensor, Tensor]
"""Normalised images float32 ``(N, 3, H, W)`` RGB, and labels uint8 ``(N, H, W)``."""


class Normaliser:
    """The last step of the augmentation, ``(x - mean) / std`` and the padding, on any device to the same bits.

    A table of 256 values a channel is looked up: the GPU's own division might round otherwise than the CPU's.
    """

    def __init__(self, augment: Augment, device: torch.device) -> None:
        mean, std = (np.array(values)[:, None] for values in (MEAN_RGB, STD_RGB))
        self._table = torch.from_numpy(((np.arange(256) - mean) / std).astype(np.float32)).to(device)
        self._mean = augment.pad.image == "mean"

    def __call__(self, levels_NHW3: Tensor, boxes: list[Box]) -> Tensor:
        """Float32 ``(N, 3, H, W)`` RGB of uint8 ``(N, H, W, 3)`` BGR; what lies outside an image's box is padding."""
        count, height, width, _ = levels_NHW3.shape
        images = torch.empty((count, 3, height, width), device=levels_NHW3.device)
        for channel, table in enumerate(self._table):
            images[:, channel] = table[levels_NHW3[..., 2 - channel].int()]
        for image, (top, left, tall, wide) in zip(images, boxes, strict=True):
            if self._mean and (tall, wide) != (height, width):
                inside = image[:, top : top + tall, left : left + wide].clone()
                image.zero_()
                image[:, top : top + tall, left : left + wide] = inside
        return images


class DeviceBatches(Iterator[Batch]):
    """Copies batches to a GPU and normalises them there, on a stream beside the one that trains.

    The trainer's calls return before the GPU has computed, so that the next batch is copied during the step before;
    what is copied are grey levels, a quarter of the bytes. Copies from pinned memory do not block. The host runs ahead
    of the GPU by :data:`AHEAD` batches at most, so that no more of them take memory there.
    """

    def __init__(self, loaded: Iterator[Loaded], augment: Augment, device: torch.device) -> None:
        self.device = device
        self._loaded = loaded
        self._normalise = Normaliser(augment, device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))  # the tables' copies
        self._idle: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._taken: deque[torch.cuda.Event] = deque()
        self._waited = 0.0

    @property
    def waited(self) -> float:
        """Seconds that the GPU has waited for data, so far as it has reported.

        How long the host waited would say nothing: it runs ahead, and waits while the GPU computes.
        """
        while self._idle and self._idle[0][1].query():  # type: ignore[no-untyped-call]
            before, after = self._idle.popleft()
            self._waited += before.elapsed_time(after) / 1000
        return self._waited

    def __next__(self) -> Batch:
        """The next batch, on the GPU: what is called next there waits for it, the host does not."""
        training = torch.cuda.current_stream(self.device)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record(training)  # reached when all that was asked of the GPU so far is computed
        self._taken.append(before)
        if len(self._taken) > AHEAD:
            self._taken.popleft().synchronize()
        levels, labels, boxes = next(self._loaded)
        with torch.cuda.stream(self._stream):
            levels, labels = (tensor.to(self.device, non_blocking=True) for tensor in (levels, labels))
            images = self._normalise(levels, boxes)
        training.wait_stream(self._stream)
        after.record(training)
        for tensor in (images, labels):  # their memory was allocated for one stream and is used by another
            tensor.record_stream(training)
        self._idle.append((before, after))
        return images, labels


class HostBatches(Iterator[Batch]):
    """The same on a CPU, where what the host waits for is what training waits for."""

    def __init__(self, loaded: Iterator[Loaded], augment: Augment) -> None:
        self.waited = 0.0
        self._loaded = loaded
        self._normalise = Normaliser(augment, torch.device("cpu"))

    def __next__(self) -> Batch:
        """The next batch."""
        began = time.perf_counter()
        levels, labels, boxes = next(self._loaded)
        self.waited += time.perf_counter() - began
        return self._normalise(levels, boxes), labels
