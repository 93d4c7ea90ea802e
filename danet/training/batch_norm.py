"""Statistics of a batch taken over all processes, on any device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from danet.models.attention import Clustering


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` with every statistic of a batch taken over all processes; state dict and names stay the same.

    That is batch normalisation and, in ClusterDANet, the step of the cluster centres: its source runs on one GPU, so
    the centres must see the whole batch.
    """
    for module in model.modules():
        if isinstance(module, Clustering):
            module.total = sum_over_processes
        elif device.type != "cuda" and type(module) is nn.BatchNorm2d:
            # no new state: the same parameters and buffers, another way to compute the statistics
            module.__class__ = SyncBatchNorm
    if device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return model


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, on any device.

    PyTorch's own works on GPUs only; this one lets the CPU (gloo) train by the same recipe. Same parameters and
    names as :class:`torch.nn.BatchNorm2d`; in evaluation it is that.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, input: Tensor) -> Tensor:
        """Normalises ``(N, C, H, W)`` by the mean and biased variance over all processes' N, H and W."""
        if not self.training:
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        count = values.new_tensor([float(values.numel() // values.shape[1])])
        total = _Sum.apply(torch.cat([count, values.sum((0, 2, 3))]))
        count, mean = total[:1], total[1:] / total[:1]
        centred = values - mean[None, :, None, None]
        # a second pass: the variance as a mean of squared differences loses no digits
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        result: Tensor = (centred * scale[None, :, None, None] + self.bias[None, :, None, None]).to(input.dtype)
        return result


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient is summed too, as every process's output depends on each one's input."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return sum_over_processes(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0])


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes; the tensor itself stays as it is (not differentiable)."""
    total = value.contiguous().clone()
    dist.all_reduce(total)
    return total
