"""From an image to a label map, by the testing protocol of a row.

Shapes: ``N`` images or windows, ``C`` classes, ``H W`` the image, ``h w`` the network's input.

The sources do this in one order: resize the image, cut it into windows (or not), run the network on the input and
perhaps its mirror image, bring the logits to the image's size, combine, argmax. They differ in every step:

=============  ===========================  =======================  ============================================
step           mmsegmentation 0.x           sssegmentation           official (2018 and HEAD alike)
=============  ===========================  =======================  ============================================
resize         uint8, cv2, fit into scale   the same                 normalised tensor, long side to scale
windows        last ones shifted back,      none                     last ones padded with black
               small inputs zero-padded
mirror image   of the whole input           none                     of each window, also in "single scale"
logits         to h w, then to H W          straight to H W          to the window, then to H W
combination    mean of softmax              mean of logits           exp(a + b), mean over windows, sum of scales
=============  ===========================  =======================  ============================================

The official code computes ``exp`` in float32, which overflows once logit and mirrored logit add up to more than 88.7.
Here these sums are float64 (up to 709), which gives the same argmax wherever float32 does not overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from danet.config.row import MultiScale, Numerics, Test
from danet.core.errors import CheckpointError, ConfigError
from danet.data.transforms import MEAN_RGB, STD_RGB, fit_size
from danet.models.fast import for_prediction
from danet.models.numerics import autocast

Size = tuple[int, int]
Mode = Literal["ss", "ms"]

_CHUNK = 2**26
"""Elements of an upsampled logit map held at once where only its argmax is wanted (256 MiB of float32)."""


@dataclass(frozen=True)
class Inputs:
    """An image at the sizes at which the network sees it; on the host, made without the model."""

    size: Size
    """Of the image, and of the result."""
    pixels: tuple[NDArray[np.uint8], ...]
    """One ``h x w x 3`` BGR array per scale; not yet resized where the protocol resizes the normalised tensor."""
    sizes: tuple[Size, ...]
    """The network's input at each scale, before padding to a window."""


def _rounded(size: Size, factor: float) -> Size:
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def input_size(size: Size, test: Test, ratio: float = 1.0, relative_to: str = "test-scale") -> Size:
    """Size of the network's input for an image of ``size``.

    ``fit`` and ``none`` follow mmsegmentation: 0.x multiplies the test scale (or, where there is none, the image's
    size) by ``ratio`` and truncates; 1.x rounds the image's size times ``ratio``; both then fit the image into the
    result. ``long`` follows the official code: the long side is ceil(width of the scale x ratio), the other side
    keeps the shape and is rounded half up.
    """
    if test.resize == "long":
        assert test.scale is not None
        long = math.ceil((max(size) if relative_to == "image" else test.scale[1]) * ratio)
        other = max(1, int(1.0 * min(size) * long / max(size) + 0.5))
        return (long, other) if size[0] > size[1] else (other, long)
    if relative_to == "image":
        return fit_size(size, _rounded(size, ratio))
    if test.resize == "none" and ratio == 1.0:
        return size
    base = size if test.resize == "none" else test.scale
    assert base is not None
    return fit_size(size, (max(1, int(base[0] * ratio)), max(1, int(base[1] * ratio))))


def window_grid(size: Size, window: Size, stride: Size, placement: str) -> tuple[list[Size], Size, Size]:
    """Top-left corners of the windows over an input, row by row.

    ``shift``: windows are at most as large as the input, and those that reach over its edge are shifted back.
    ``shift-padded``: the same, but an input smaller than the window is padded to it at the right and bottom.
    ``pad``: windows stay where the stride puts them, and the input is padded at the right and bottom.

    Returns:
        corners, the size of all windows, and the size that the input must be padded to.
    """
    if placement == "shift":
        window = min(window[0], size[0]), min(window[1], size[1])
    starts: list[list[int]] = []
    reach: list[int] = []
    for length, extent, step in zip(size, window, stride, strict=True):
        last = -(-max(length - extent, 0) // step) * step
        places = range(0, last + 1, step)
        if placement == "pad":
            starts.append(list(places))
            reach.append(last + extent)
        else:
            reach.append(max(length, extent))
            starts.append([min(place, reach[-1] - extent) for place in places])
    return [(y, x) for y in starts[0] for x in starts[1]], window, (reach[0], reach[1])


class Predictor:
    """A model under one testing protocol.

    :meth:`prepare` is host work that needs no model, and safe to call from other threads, so that it can run ahead of
    :meth:`labels`. On a GPU, :meth:`labels` returns before the GPU has computed; :meth:`check` waits for it.

    Args:
        model: gives ``{"main": logits}`` for normalised RGB; it must be in evaluation mode and on ``device``.
        test: the protocol.
        align_corners: of every bilinear resize of tensors.
        mode: ``ss`` or ``ms``.
        device: where the model is.
        numerics: precision, memory format, folding, compilation (:mod:`danet.models.fast`).
        max_batch: windows and mirror images per forward pass; null for 8 on CUDA and 1 on the CPU, where larger
            batches are not faster. Results do not depend on it beyond rounding.
    """

    def __init__(
        self,
        model: nn.Module,
        test: Test,
        align_corners: bool,
        *,
        mode: Mode = "ss",
        device: torch.device | str = "cpu",
        numerics: Numerics | None = None,
        max_batch: int | None = None,
    ) -> None:
        self.test = test
        self.align_corners = align_corners
        self.device = torch.device(device)
        self.numerics = numerics or Numerics()
        self.model = for_prediction(model, self.numerics)
        self.max_batch = max_batch or (8 if self.device.type == "cuda" else 1)
        views = test.multi_scale if mode == "ms" else MultiScale(scales=(1.0,), flip=test.flip)
        if views is None:
            raise ConfigError("the row defines no multi-scale test: test.multi_scale is null; use mode ss")
        self._scales, self._relative_to, self._flip = views.scales, views.relative_to, views.flip
        self._window = views.window or (test.window if test.mode == "slide" else None)
        self._stride = views.stride or test.stride or (1, 1)
        mean, std = (torch.tensor(x, device=self.device).view(1, 3, 1, 1) for x in (MEAN_RGB, STD_RGB))
        self._mean, self._std, self._black = mean, std, -mean / std
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)

    @property
    def plain(self) -> bool:
        """Whether the prediction is the argmax of one logit map: one scale, no mirror image, no exp."""
        return len(self._scales) == 1 and not self._flip and self.test.score != "exp"

    def prepare(self, image_bgr: NDArray[np.uint8]) -> Inputs:
        """Resizes a ``H x W x 3`` BGR image to the network's input sizes (cv2, bilinear)."""
        size = image_bgr.shape[0], image_bgr.shape[1]
        sizes = tuple(input_size(size, self.test, s, self._relative_to) for s in self._scales)
        if self.test.resize == "long":
            return Inputs(size, (image_bgr,) * len(sizes), sizes)
        pixels = tuple(
            image_bgr if (h, w) == size else cv2.resize(image_bgr, (w, h), interpolation=cv2.INTER_LINEAR)
            for h, w in sizes
        )
        return Inputs(size, pixels, sizes)

    def scores(self, inputs: Inputs) -> Tensor:
        """``C x H x W`` float32 map whose argmax over C is the prediction; what it holds depends on the protocol.

        - One scale without mirror image, score ``softmax`` or ``logits``: the logits, resized to the image's size.
          Softmax is left out, since it does not move the argmax.
        - ``softmax`` otherwise: mean over scales and mirror images of the softmax of the resized logits.
        - ``logits`` otherwise: mean of the resized logits.
        - ``exp``: the natural logarithm of the official score, that is of the sum over scales of the resized mean over
          windows of exp(logit + mirrored logit). The score itself does not fit into float32.
        """
        with torch.inference_mode():
            if self.test.score == "exp":
                scores = self._exp_scores(inputs)
                return scores.log_().clamp_(min=-torch.finfo(torch.float32).max).float()
            return self._mean_scores(inputs)

    def labels(self, inputs: Inputs) -> Tensor:
        """``H x W`` uint8 class ids, on the device."""
        with torch.inference_mode():
            if self.test.score == "exp":
                return self._exp_scores(inputs).max(dim=0).indices.to(torch.uint8)
            if self.plain:
                return self._argmax(self._input_logits(next(self._tensors(inputs)))[0], inputs.size)
            return self._mean_scores(inputs).max(dim=0).indices.to(torch.uint8)

    def check(self, what: str) -> None:
        """Raises ``CheckpointError``, about ``what``, if any output of the network so far was not finite."""
        if not bool(self._finite):
            raise CheckpointError(
                f"{what}: the network's output is not finite: float16 overflowed, or the weights have diverged; set "
                "numerics.precision to fp32 or bf16, or take other weights"
            )

    def _tensors(self, inputs: Inputs) -> Iterator[Tensor]:
        """The normalised ``1 x 3 x h x w`` RGB input at each scale, on the device."""
        uploaded: dict[int, Tensor] = {}
        for pixels, size in zip(inputs.pixels, inputs.sizes, strict=True):
            if id(pixels) not in uploaded:
                bgr = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device, non_blocking=True)
                rgb = bgr.permute(2, 0, 1).flip(0).unsqueeze(0).float()
                uploaded = {id(pixels): (rgb - self._mean) / self._std}
            yield self._resize(uploaded[id(pixels)], size)

    def _resize(self, x: Tensor, size: Size) -> Tensor:
        if tuple(x.shape[-2:]) == size:
            return x
        return F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)

    def _network(self, x_N3hw: Tensor) -> Tensor:
        """Float32 logits at the head's resolution, at most ``max_batch`` inputs at a time."""
        if self.numerics.channels_last:
            x_N3hw = x_N3hw.contiguous(memory_format=torch.channels_last)
        outputs = []
        for part in torch.split(x_N3hw, self.max_batch):
            with autocast(self.numerics, self.device):
                outputs.append(self.model(part)["main"].float())
        logits = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        self._finite = self._finite & torch.isfinite(logits).all()
        return logits

    def _input_logits(self, x_N3hw: Tensor) -> Tensor:
        """Logits of inputs of one size: at the input's size, or at the head's where they are resized once.

        Windows are put together at the input's size in any case.
        """
        if self._window is not None:
            return torch.cat([self._slide(x.unsqueeze(0)) for x in x_N3hw])
        logits = self._network(x_N3hw)
        return logits if self.test.logit_resize == "once" else self._resize(logits, _size(x_N3hw))

    def _slide(self, x_13hw: Tensor) -> Tensor:
        """Mean over windows at the input's size: of logits, or in float64 of exp(logit + mirrored logit)."""
        size = _size(x_13hw)
        exp = self.test.score == "exp"
        placement = self.test.placement
        corners, window, reach = window_grid(size, self._window or size, self._stride, placement)
        if reach != size:
            edge = self._black if placement == "pad" else torch.zeros_like(self._black)
            padded = edge.repeat(1, 1, *reach)
            padded[..., : size[0], : size[1]] = x_13hw
            x_13hw = padded
        mirror = exp and self._flip
        step = max(1, self.max_batch // (2 if mirror else 1))
        total = torch.empty(0)
        count = torch.zeros(reach, device=self.device)
        for start in range(0, len(corners), step):
            part = corners[start : start + step]
            crops = torch.cat([x_13hw[..., y : y + window[0], x : x + window[1]] for y, x in part])
            logits = self._resize(self._network(torch.cat([crops, crops.flip(-1)]) if mirror else crops), window)
            if mirror:
                logits = logits[: len(part)] + logits[len(part) :].flip(-1)
            values = logits.double().exp_() if exp else logits
            if start == 0:
                total = values.new_zeros((1, values.shape[1], *reach))
            for (y, x), value in zip(part, values, strict=True):
                total[0, :, y : y + window[0], x : x + window[1]] += value
                count[y : y + window[0], x : x + window[1]] += 1
        return (total.div_(count))[..., : size[0], : size[1]]

    def _mean_scores(self, inputs: Inputs) -> Tensor:
        total: Tensor | None = None
        for x in self._tensors(inputs):
            logits = self._input_logits(torch.cat([x, x.flip(-1)]) if self._flip else x)
            for mirrored, one in enumerate(torch.split(logits, 1)):
                scores = self._resize(one.flip(-1) if mirrored else one, inputs.size)[0]
                if self.test.score == "softmax" and not self.plain:
                    scores = scores.softmax(dim=0)
                total = scores if total is None else total.add_(scores)
        assert total is not None
        return total if self.plain else total.div_(len(inputs.sizes) * (2 if self._flip else 1))

    def _exp_scores(self, inputs: Inputs) -> Tensor:
        """``C x H x W`` float64; without windows, the whole input is the one window."""
        total: Tensor | None = None
        for x in self._tensors(inputs):
            scores = self._resize(self._slide(x), inputs.size)[0]
            total = scores if total is None else total.add_(scores)
        assert total is not None
        return total

    def _argmax(self, logits_Chw: Tensor, size: Size) -> Tensor:
        """Argmax of the resized logits, a few classes at a time, so that memory does not grow with their number."""
        if tuple(logits_Chw.shape[-2:]) == size:
            return logits_Chw.max(dim=0).indices.to(torch.uint8)
        classes = max(1, _CHUNK // (size[0] * size[1]))
        best: Tensor | None = None
        labels = torch.empty(0)
        for first in range(0, logits_Chw.shape[0], classes):
            value, index = self._resize(logits_Chw[None, first : first + classes], size)[0].max(dim=0)
            index = index.to(torch.uint8)
            if best is None:
                best, labels = value, index
            else:
                better = value > best
                labels = torch.where(better, index + first, labels)
                best = torch.maximum(best, value)
        return labels


def _size(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]
