"""The same network, predicting faster.

Weights cast once, batch normalisation folded, compiled for the sizes that come again and again. The first gives
the same bits; the others compute in another order of rounding, which tests and ``reports/benchmarks`` bound.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from danet.config.row import Numerics
from danet.models.numerics import DTYPES
from danet.models.resnet import Bottleneck

Module = TypeVar("Module", bound=nn.Module)


def for_prediction(model: nn.Module, numerics: Numerics) -> nn.Module:
    """The network as ``numerics`` wants it for prediction: the model itself, or a copy made from it."""
    if numerics.fold_bn:
        model = folded(model)
    if numerics.precision != "fp32":
        model = narrowed(model, DTYPES[numerics.precision])
    return SteadyCompiled(model) if numerics.compile else model


def folded(model: Module) -> Module:
    """A copy for evaluation in which every convolution has taken over the batch normalisation behind it.

    ``w' = w g / sqrt(var + eps)`` and ``b' = beta - mean g / sqrt(var + eps)`` in float32; the normalisation becomes
    the identity. The copy shares no tensor with the model and must not be trained.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            for index in range(len(module) - 1):
                module[index], module[index + 1] = _fold(module[index], module[index + 1])
        elif isinstance(module, Bottleneck):
            for index in (1, 2, 3):
                names = f"conv{index}", f"bn{index}"
                for name, part in zip(names, _fold(*(getattr(module, name) for name in names)), strict=True):
                    setattr(module, name, part)
    return model.requires_grad_(False)


def _fold(first: nn.Module, second: nn.Module) -> tuple[nn.Module, nn.Module]:
    """SyncBatchNorm has the same buffers and, in evaluation, the same formula."""
    if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d | nn.SyncBatchNorm):
        return fuse_conv_bn_eval(first, second), nn.Identity()
    return first, second


def narrowed(model: Module, dtype: torch.dtype) -> Module:
    """A copy for evaluation under autocast whose convolutions and linear layers have weights of autocast's type.

    Autocast would cast them in each forward pass, to the same bits. The copy must not be trained.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
    return model


class SteadyCompiled(nn.Module):
    """``torch.compile`` for sizes that come again: windows, Cityscapes. Images of other sizes run uncompiled.

    Compiling takes minutes, so a data set of hundreds of sizes (ADE20K, VOC) must not start it for each. A size is
    compiled when it has come more than ``after`` times, and no more than ``limit`` sizes ever are. For these sizes
    cuDNN searches for its fastest kernels too, except in deterministic mode.
    """

    def __init__(self, model: nn.Module, after: int = 8, limit: int = 2) -> None:
        super().__init__()
        self.model = model
        self.after, self.limit = after, limit
        self.sizes: set[tuple[int, ...]] = set()
        """Of the inputs that are compiled for."""
        self._compiled: Any = torch.compile(model, dynamic=False)
        self._seen: Counter[tuple[int, ...]] = Counter()

    def forward(self, x_N3HW: Tensor) -> Any:
        """What the model gives."""
        size = tuple(x_N3HW.shape)
        self._seen[size] += 1
        if self._seen[size] > self.after and len(self.sizes) < self.limit:
            self.sizes.add(size)
        if size not in self.sizes:
            return self.model(x_N3HW)
        cudnn: Any = torch.backends.cudnn
        before, cudnn.benchmark = cudnn.benchmark, not cudnn.deterministic
        try:
            return self._compiled(x_N3HW)
        finally:
            cudnn.benchmark = before
