"""The same network, computed faster: batch normalisation folded for prediction, large 3x3 convolutions by Winograd on
the CPU, compiled for the sizes that come again and again.

All compute what the network computes, in another order of rounding; tests and ``reports/benchmarks`` bound the
difference.

Shape suffixes: B batch, C and K channels in and out, H W the map, T tiles of a batch.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from danet.config import rows
from danet.models.matmul import matmul
from danet.models.resnet import Bottleneck

Module = TypeVar("Module", bound=nn.Module)
log = logging.getLogger(__name__)


def for_prediction(model: nn.Module, numerics: rows.Numerics, device: torch.device) -> nn.Module:
    """The network as ``numerics`` wants it for prediction: the model itself, or a copy made from it."""
    if numerics.fold_bn:
        model = folded(model)
    if takes_winograd(numerics, device):
        model = with_winograd(model if numerics.fold_bn else copy.deepcopy(model), frozen=True)
    return SteadyCompiled(model) if numerics.compile else model


def for_training(model: Module, numerics: rows.Numerics, device: torch.device) -> Module:
    """The network as ``numerics`` wants it for training: the model itself, with the same parameters."""
    return with_winograd(model) if takes_winograd(numerics, device) else model


def takes_winograd(numerics: rows.Numerics, device: torch.device) -> bool:
    """``winograd`` holds on the CPU in float32 only: on CUDA cuDNN chooses such algorithms by itself."""
    return numerics.winograd and device.type == "cpu" and numerics.precision == "fp32"


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


TILE, REACH = 4, 6
_INPUT = (
    (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
)  # fmt: skip
_KERNEL = (
    (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
)  # fmt: skip
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
MIN_CHANNELS: Final = 128
"""Channels in and out from which :class:`WinogradConv2d` was measured to be faster than oneDNN's direct kernel."""


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 by Winograd's F(4x4, 3x3): 36 multiplications where the plain way takes 144.

    Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015; transforms for the points 0, 1, -1, 2,
    -2. A dilated convolution is one over each of the d x d grids of every d-th pixel. For the CPU in float32, where the
    products of the 36 transformed planes are large matrices; oneDNN has the algorithm, PyTorch never asks for it.

    Args:
        conv: the convolution to compute (see :meth:`takes`); its parameters are shared, under the same names.
        frozen: transform the weights now, once (four times their memory), for prediction.
    """

    planes: Tensor | None

    def __init__(self, conv: nn.Conv2d, frozen: bool = False) -> None:
        d = conv.dilation[0]
        with torch.device("meta"):
            super().__init__(conv.in_channels, conv.out_channels, 3, padding=(d, d), dilation=(d, d), bias=False)
        self.weight, self.bias = conv.weight, conv.bias
        planes = _plane_weights(conv.weight.detach()) if frozen else None
        self.register_buffer("planes", planes, persistent=False)

    @staticmethod
    def takes(conv: nn.Module) -> bool:
        """Whether a module is a convolution that this computes, and faster: small ones spend their time in
        transforms."""
        return (
            type(conv) is nn.Conv2d
            and conv.kernel_size == (3, 3)
            and conv.stride == (1, 1)
            and conv.groups == 1
            and conv.dilation[0] == conv.dilation[1]
            and conv.padding == conv.dilation
            and conv.padding_mode == "zeros"
            and conv.in_channels >= MIN_CHANNELS
            and conv.out_channels >= MIN_CHANNELS
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, K, H, W)``, channels_last."""
        out: Tensor
        if self.planes is None:
            out = _Winograd.apply(x_BCHW, self.weight, self.dilation[0])
        else:
            out = _convolve(x_BCHW, self.planes, self.dilation[0])
        return out if self.bias is None else out + self.bias.view(1, -1, 1, 1)


class _Winograd(torch.autograd.Function):
    """The convolution and, by the transposed transforms, its gradients: a quarter of the multiplications in each."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_KCRS: Tensor, dilation: int) -> Tensor:
        weight_PKC = _plane_weights(weight_KCRS)
        ctx.save_for_backward(x_BCHW, weight_PKC)  # to transform the weights again takes as long as a small product
        ctx.dilation = dilation
        return _convolve(x_BCHW, weight_PKC, dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient_BKHW,) = gradients
        x_BCHW, weight_PKC = ctx.saved_tensors
        d, (B, C, H, W), K = ctx.dilation, x_BCHW.shape, weight_PKC.shape[1]
        planes = REACH**2
        rows_, columns = (-(-size // (TILE * d)) for size in (H, W))
        full = F.pad(gradient_BKHW.permute(0, 2, 3, 1), (0, 0, 0, TILE * d * columns - W, 0, TILE * d * rows_ - H))
        tiles = full.view(B, rows_, TILE, d, columns, TILE, d, K).permute(2, 5, 0, 1, 3, 4, 6, 7)
        output = _square(_OUTPUT, gradient_BKHW)
        product_PTK = matmul(output.T.contiguous(), tiles.reshape(TILE**2, -1)).view(planes, -1, K)
        patches, _ = _patches(x_BCHW, d)
        inputs = _square(_INPUT, x_BCHW)
        input_PTC = matmul(inputs, patches.reshape(planes, -1)).view(planes, -1, C)
        weight_gradient = torch.empty_like(weight_PKC)
        for plane in range(planes):
            weight_gradient[plane] = matmul(product_PTK[plane].T, input_PTC[plane])
            input_PTC[plane] = matmul(product_PTK[plane], weight_PKC[plane])
        kernel = _square(_KERNEL, weight_PKC)
        dw = matmul(kernel.T.contiguous(), weight_gradient.view(planes, -1)).view(3, 3, K, C).permute(2, 3, 0, 1)
        spread = matmul(inputs.T.contiguous(), input_PTC.view(planes, -1)).view(patches.shape)
        padded = x_BCHW.new_zeros((B, (TILE * rows_ + 2) * d, (TILE * columns + 2) * d, C))
        view = _as_patches(padded, d, rows_, columns)
        for row in range(REACH):
            for column in range(REACH):
                view[row, column] += spread[row, column]  # patches overlap, but not those of one row and column
        return padded[:, d : d + H, d : d + W].permute(0, 3, 1, 2), dw, None


def _square(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """The transform of both dimensions at once, on flattened tiles."""
    one = torch.tensor(matrix, dtype=torch.float64, device=like.device)
    return torch.kron(one, one).to(like.dtype)


def _plane_weights(weight_KCRS: Tensor) -> Tensor:
    """The transformed kernels, ``(36, K, C)``."""
    K, C = weight_KCRS.shape[:2]
    flat = weight_KCRS.permute(2, 3, 0, 1).reshape(9, -1)
    return matmul(_square(_KERNEL, weight_KCRS), flat).view(REACH**2, K, C)


def _patches(x_BCHW: Tensor, d: int) -> tuple[Tensor, tuple[int, int]]:
    """Overlapping 6 x 6 patches as a view of the padded input, and the rows and columns of tiles in each grid."""
    H, W = x_BCHW.shape[2:]
    rows_, columns = (-(-size // (TILE * d)) for size in (H, W))
    beyond = TILE * d * rows_ - H + d, TILE * d * columns - W + d
    padded = F.pad(x_BCHW.permute(0, 2, 3, 1), (0, 0, d, beyond[1], d, beyond[0]))
    return _as_patches(padded.contiguous(), d, rows_, columns), (rows_, columns)


def _as_patches(padded_BHWC: Tensor, d: int, rows_: int, columns: int) -> Tensor:
    image, row, column, channel = padded_BHWC.stride()
    return padded_BHWC.as_strided(
        (REACH, REACH, padded_BHWC.shape[0], rows_, d, columns, d, padded_BHWC.shape[3]),
        (d * row, d * column, image, TILE * d * row, row, TILE * d * column, column, channel),
    )


def _convolve(x_BCHW: Tensor, weight_PKC: Tensor, d: int) -> Tensor:
    """The convolution with transformed weights ``(36, K, C)``."""
    B, C, H, W = x_BCHW.shape
    K, planes = weight_PKC.shape[1], REACH**2
    patches, (rows_, columns) = _patches(x_BCHW, d)
    input_PTC = matmul(_square(_INPUT, x_BCHW), patches.reshape(planes, -1)).view(planes, -1, C)
    product_PTK = input_PTC.new_empty((planes, input_PTC.shape[1], K))
    for plane in range(planes):
        product_PTK[plane] = matmul(input_PTC[plane], weight_PKC[plane].T)
    out = matmul(_square(_OUTPUT, x_BCHW), product_PTK.view(planes, -1)).view(TILE, TILE, B, rows_, d, columns, d, K)
    out_BHWK = out.permute(2, 3, 0, 4, 5, 1, 6, 7).reshape(B, rows_ * TILE * d, columns * TILE * d, K)[:, :H, :W]
    return out_BHWK.permute(0, 3, 1, 2)


def with_winograd(model: Module, frozen: bool = False) -> Module:
    """Replaces, in place, the 3x3 convolutions that :class:`WinogradConv2d` takes; parameters keep their names.

    Args:
        model: in float32 on the CPU.
        frozen: for prediction: transform the weights once and for all.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if WinogradConv2d.takes(child):
                assert isinstance(child, nn.Conv2d)
                setattr(module, name, WinogradConv2d(child, frozen))
    return model


class SteadyCompiled(nn.Module):
    """``torch.compile`` for sizes that come again: windows, Cityscapes. Images of other sizes run uncompiled.

    Compiling takes minutes, so a data set of hundreds of sizes (ADE20K, VOC) must not start it for each. A size is
    compiled when it has come more than ``after`` times, and no more than ``limit`` sizes ever are. If the compiler
    fails, the network goes on without it, and says so once.

    Args:
        model: in evaluation mode.
        after: calls of one size before it is compiled.
        limit: sizes that are compiled at most.
        compiler: for tests; by default ``torch.compile`` with static shapes.
    """

    def __init__(
        self, model: nn.Module, after: int = 8, limit: int = 2, compiler: Callable[[nn.Module], Any] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.after, self.limit = after, limit
        self.sizes: set[tuple[int, ...]] = set()
        """Of the inputs that are compiled for."""
        self.failure: str | None = None
        self._compiler = compiler or (lambda module: torch.compile(module, dynamic=False))
        self._compiled: Any = None
        self._seen: Counter[tuple[int, ...]] = Counter()

    def forward(self, x_N3HW: Tensor) -> Any:
        """What the model gives."""
        size = tuple(x_N3HW.shape)
        self._seen[size] += 1
        if size not in self.sizes and self._seen[size] > self.after and len(self.sizes) < self.limit:
            self.sizes.add(size)
        if size not in self.sizes or self.failure is not None:
            return self.model(x_N3HW)
        try:
            if self._compiled is None:
                self._compiled = self._compiler(self.model)
            return self._compiled(x_N3HW)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler may raise anything; if the model is at fault, it raises it again
            self.failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            log.warning("torch.compile failed (%s); predicting without it", self.failure)
            return self.model(x_N3HW)
