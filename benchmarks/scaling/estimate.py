"""What a step computes and sends, counted; and the times that follow for machines that are not here, estimated."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from danet.config.params import Params
from danet.config.row import Model, Row
from danet.data.registry import ADAPTERS
from danet.models.segmentor import build_model

BUCKET = 25 * 2**20
"""DistributedDataParallel's bucket, its first one is 1 MiB."""


@dataclass(frozen=True)
class Step:
    """Of one training step, per image or per process; counted, not measured."""

    flops: int
    """Forward and backward of one image; a multiplication and an addition are two."""
    parameters: int
    norms: tuple[int, ...]
    """Channels of every batch normalisation."""

    @property
    def gradient_bytes(self) -> int:
        """All-reduced in each step: every parameter in float32."""
        return 4 * self.parameters

    @property
    def buckets(self) -> int:
        """All-reduces that these take (at least)."""
        return 1 + -(-max(0, self.gradient_bytes - 2**20) // BUCKET)

    @property
    def statistics(self) -> int:
        """Collectives of the synchronised batch normalisations on GPUs: one forward, one backward for each layer."""
        return 2 * len(self.norms)

    @property
    def statistics_bytes(self) -> int:
        """Contributed by each process to these: mean, inverse deviation and count forward, two sums backward."""
        return sum(4 * (2 * c + 1) + 4 * 2 * c for c in self.norms)


@cache
def _counted(model: Model, classes: int, crop: tuple[int, int]) -> Step:
    with torch.device("meta"):
        network = build_model(model, classes).train()
        images = torch.zeros(2, 3, *crop)
    with FlopCounterMode(display=False) as counter:
        outputs = network(images)
        torch.stack([logits.sum() for logits in outputs.values()]).sum().backward()
    norms = tuple(module.num_features for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Step(counter.get_total_flops() // 2, parameters, norms)


def step(params: Params, row: Row) -> Step:
    """A row's step, counted on tensors without data."""
    classes = ADAPTERS[params.dataset(row.dataset).adapter].num_classes
    return _counted(row.model, classes, row.augment.crop_size)


@dataclass(frozen=True)
class Link:
    """What processes are joined by: bytes per second that each can send, and seconds until a collective begins."""

    name: str
    bandwidth: float
    latency: float


def step_seconds(counted: Step, images: int, world: int, speed: float, link: Link) -> tuple[float, float]:
    """Seconds of a step on ``world`` processes, with the gradients' exchange hidden in the backward pass and without.

    A ring moves ``2 (P - 1) / P`` times the bytes through each process. Statistics hide behind nothing: every layer
    waits for its own.

    Args:
        counted: of one image.
        images: of the whole batch.
        world: P.
        speed: sustained FLOP/s of a GPU.
        link: the slowest that the ring crosses.
    """
    compute = counted.flops * images / world / speed
    if world == 1:
        return compute, compute
    ring = 2 * (world - 1) / world
    gradients = ring * counted.gradient_bytes / link.bandwidth + counted.buckets * link.latency
    statistics = ring * counted.statistics_bytes / link.bandwidth + counted.statistics * link.latency
    hidden = max(0.0, gradients - compute * 2 / 3)  # the backward pass is two thirds of the step
    return compute + statistics + hidden, compute + statistics + gradients


def training_seconds(params: Params, row: Row, world: int, speed: float, link: Link) -> float:
    """Of all the row's seeds, without any overlap, loading, validation or evaluation."""
    samples = params.dataset(row.dataset).counts[row.train_split]
    each = step_seconds(step(params, row), row.schedule.batch_size, world, speed, link)[1]
    return each * row.schedule.total_iterations(samples) * len(row.seeds)


def makespan(jobs: Sequence[float], lanes: int) -> float:
    """When all jobs are done if the longest remaining one always goes to the first free lane."""
    ends = [0.0] * lanes
    for job in sorted(jobs, reverse=True):
        heapq.heapreplace(ends, ends[0] + job)
    return max(ends)
