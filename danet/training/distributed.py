"""One process or many (torchrun): rank, sums and stops, and batch normalisation over all of them on any device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn

from danet.errors import TrainingError


@dataclass(frozen=True)
class Process:
    """This process among ``world``; rank 0 writes, all compute.

    Control messages (stop, failure) go over a gloo group of their own, so that they need no GPU synchronisation.
    """

    rank: int = 0
    world: int = 1
    local_world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this one writes files, logs and tracks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            dist.barrier(group=self.control)

    def any(self, flag: bool) -> bool:
        """Whether any process says so; every process gets the same answer."""
        if self.world == 1:
            return flag
        value = torch.tensor([int(flag)])
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.control)
        return bool(value.item())

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes of a tensor on their devices (not differentiable)."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every process's picklable value, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values


@contextmanager
def processes(device: str | torch.device | None = None) -> Iterator[Process]:
    """Joins the processes that torchrun started (``WORLD_SIZE``), or is the only one.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``; by default the GPU of the local rank if there is one, else the CPU.

    Raises:
        TrainingError: if that device is not there.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = select_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        yield Process(device=chosen)
        return
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=world)
    try:
        control = dist.new_group(backend="gloo") if chosen.type == "cuda" else dist.group.WORLD
        yield Process(rank, world, int(os.environ.get("LOCAL_WORLD_SIZE", str(world))), chosen, control)
    finally:
        if started:
            dist.destroy_process_group()


def select_device(device: str | torch.device | None, local_rank: int = 0) -> torch.device:
    """The device asked for, or the best there is.

    Raises:
        TrainingError: if it is not there or not a device's name.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise TrainingError(f"device {device!r} is unknown; allowed: cpu, cuda, cuda:N") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = local_rank if chosen.index is None else chosen.index
        if index >= count:
            raise TrainingError(
                f"device cuda:{index} is not there ({count} GPUs found); use cpu or start fewer processes"
            )
        return torch.device("cuda", index)
    return chosen


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, on any device.

    PyTorch's own works on GPUs only; this one lets the CPU (gloo) train by the same recipe. Same parameters and
    names as :class:`torch.nn.BatchNorm2d`; in evaluation it is that.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``(N, C, H, W)`` by the mean and biased variance over all processes' N, H and W."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        values = input.float()
        count = values.new_tensor([float(values.numel() // values.shape[1])])
        total = torch.cat([count, values.sum((0, 2, 3))])
        total = _summed(total)
        count, mean = total[:1], total[1:] / total[:1]
        centred = values - mean[None, :, None, None]
        # a second pass: the variance as a mean of squared differences loses no digits
        variance = _summed(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                momentum = 0.1 if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                unbiased = variance * (count / (count - 1).clamp(min=1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        result = centred * torch.rsqrt(variance + self.eps)[None, :, None, None]
        if self.affine:
            result = result * self.weight[None, :, None, None] + self.bias[None, :, None, None]
        return result.to(input.dtype)


def _summed(value: Tensor) -> Tensor:
    """Sum over processes, through which gradients flow."""
    total: Tensor = dist_nn.all_reduce(value)  # type: ignore[no-untyped-call]
    return total


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` with every batch normalisation computed over all processes; state dict and names stay the same."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            # no new state: the same parameters and buffers, another way to compute the statistics
            module.__class__ = SyncBatchNorm
    return model
