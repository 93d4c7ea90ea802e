"""Slow, plain implementations of what no package provides: the official DANet, DRANet and ClusterDANet.

Written from the official code's formulas for comparison only: float64, functions of a dictionary of weights under the
*official* names, no module classes, no shared code with ``danet``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

Weights = dict[str, Tensor]
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


@dataclass
class Network:
    """One official network as a function.

    ``statistics`` collects, in training mode, the buffers after the step.
    """

    kind: str  # danet, dranet, clusterdanet
    depth: int
    weights: Weights
    multi_grid: tuple[int, int, int] | None
    training: bool = False
    statistics: Weights = field(default_factory=dict)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Batch normalisation, eps 1e-5, momentum 0.1."""
        mean, var = (self.weights[f"{name}.running_{which}"].clone() for which in ("mean", "var"))
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        x = F.batch_norm(x, mean, var, weight, bias, self.training, 0.1, 1e-5)
        if self.training:
            self.statistics |= {f"{name}.running_mean": mean, f"{name}.running_var": var}
        return x

    def conv(self, x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        """Convolution padded to keep the size (over the stride)."""
        weight = self.weights[f"{name}.weight"]
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(x, weight, self.weights.get(f"{name}.bias"), stride, padding, dilation)

    def unit(self, x: Tensor, name: str) -> Tensor:
        """The official Sequential(conv, norm, relu)."""
        return self.norm(self.conv(x, f"{name}.0"), f"{name}.1").clamp_min(0)

    def backbone(self, x: Tensor) -> list[Tensor]:
        """Features of layer1 to layer4, output stride 8."""
        if "pretrained.conv1.weight" in self.weights:
            x = F.conv2d(x, self.weights["pretrained.conv1.weight"], None, 2, 3)
        else:
            x = self.norm(self.conv(x, "pretrained.conv1.0", 2), "pretrained.conv1.1").clamp_min(0)
            x = self.norm(self.conv(x, "pretrained.conv1.3"), "pretrained.conv1.4").clamp_min(0)
            x = self.conv(x, "pretrained.conv1.6")
        x = self.norm(x, "pretrained.bn1").clamp_min(0)
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for layer, blocks in enumerate(BLOCKS[self.depth], 1):
            for block in range(blocks):
                if layer < 3:
                    dilation = 1
                elif layer == 3:
                    dilation = 1 if block == 0 else 2
                elif self.multi_grid:
                    dilation = self.multi_grid[block]
                else:
                    dilation = 2 if block == 0 else 4
                stride = 2 if layer == 2 and block == 0 else 1
                x = self.bottleneck(x, f"pretrained.layer{layer}.{block}", stride, dilation)
            features.append(x)
        return features

    def bottleneck(self, x: Tensor, name: str, stride: int, dilation: int) -> Tensor:
        """1x1, 3x3, 1x1 and the shortcut."""
        y = self.norm(self.conv(x, f"{name}.conv1"), f"{name}.bn1").clamp_min(0)
        y = self.norm(self.conv(y, f"{name}.conv2", stride, dilation), f"{name}.bn2").clamp_min(0)
        y = self.norm(self.conv(y, f"{name}.conv3"), f"{name}.bn3")
        if f"{name}.downsample.0.weight" in self.weights:
            x = self.norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return (x + y).clamp_min(0)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits of all heads at their own resolution; dropout off."""
        features = self.backbone(image)
        if self.kind == "dranet":
            return self.dran_head(features)
        x = features[3]
        position = self.unit(x, "head.conv5a")
        channel = self.unit(x, "head.conv5c")
        if self.kind == "clusterdanet":
            position = self.cluster(position, "head.ca")
            channel = self.cluster(channel, "head.cc")
        position = self.unit(self.pam(position), "head.conv51")
        channel = self.unit(self.cam(channel), "head.conv52")
        return {
            "main": self.conv(position + channel, "head.conv8.1"),
            "pam": self.conv(position, "head.conv6.1"),
            "cam": self.conv(channel, "head.conv7.1"),
        }

    def pam(self, x: Tensor) -> Tensor:
        """Position attention, image by image, with the explicit map."""
        images = []
        for one in x:
            _, height, width = one.shape
            q, k, v = (
                self.conv(one[None], f"head.sa.{name}_conv")[0].reshape(-1, height * width)
                for name in ("query", "key", "value")
            )
            energy = q.T @ k
            attention = torch.exp(energy - energy.max(1, keepdim=True).values)
            attention = attention / attention.sum(1, keepdim=True)
            images.append((v @ attention.T).reshape(-1, height, width))
        return self.weights["head.sa.gamma"] * torch.stack(images) + x

    def cam(self, x: Tensor) -> Tensor:
        """Channel attention: softmax of (row maximum minus energy) = softmax of minus energy."""
        images = []
        for one in x:
            flat = one.reshape(one.shape[0], -1)
            images.append((torch.softmax(-(flat @ flat.T), 1) @ flat).reshape(one.shape))
        return self.weights["head.sc.gamma"] * torch.stack(images) + x

    def cluster(self, x: Tensor, name: str) -> Tensor:
        """Cosine similarities to the centres; in training the centres move (Sculley, soft counts, K = 100)."""
        batch, channels, height, width = x.shape
        u = x.permute(0, 2, 3, 1).reshape(-1, channels)
        u = u / u.norm(dim=1, keepdim=True).clamp_min(1e-12)
        centres, counts = self.weights[f"{name}.V_buffer"], self.weights[f"{name}.V_count_buffer"]
        unit = centres / centres.norm(dim=1, keepdim=True).clamp_min(1e-12)
        similarity = u @ unit.T
        if self.training:
            with torch.no_grad():
                share = torch.softmax(100.0 * similarity, 1)
                mass = share.sum(0)
                moved = (share.T @ u) / mass[:, None]
                step = (mass / (counts + mass))[:, None]
                self.statistics[f"{name}.V_buffer"] = (1 - step) * centres + step * moved
                self.statistics[f"{name}.V_count_buffer"] = counts + mass
        attended: Tensor = similarity.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
        return attended

    def dran_head(self, features: list[Tensor]) -> dict[str, Tensor]:
        """CPAM, CCAM, fusion, gate; auxiliary head on layer3."""
        w = self.weights
        b = self.unit(features[3], "head.conv_ccam_b")
        gathered = self.unit(b, "head.ccam_enc")
        maps = []
        for one, few in zip(b, gathered, strict=True):
            x, y = one.reshape(one.shape[0], -1), few.reshape(few.shape[0], -1)
            maps.append((torch.softmax(-(x @ y.T), 1) @ y).reshape(one.shape))
        channel = self.unit(b + w["head.ccam_dec.scale"] * torch.stack(maps), "head.conv_ccam_e")
        b = self.unit(features[3], "head.conv_cpam_b")
        centres = []
        for index, grid in enumerate((1, 2, 3, 6), 1):
            pooled = F.adaptive_avg_pool2d(b, grid)
            centres.append(self.unit(pooled, f"head.cpam_enc.conv{index}").flatten(2))
        y = torch.cat(centres, 2).transpose(1, 2)
        query = self.conv(b, "head.cpam_dec.conv_query").flatten(2).transpose(1, 2)
        key = y @ w["head.cpam_dec.conv_key.weight"].T + w["head.cpam_dec.conv_key.bias"]
        value = y @ w["head.cpam_dec.conv_value.weight"].T + w["head.cpam_dec.conv_value.bias"]
        out = torch.softmax(query @ key.transpose(1, 2), 2) @ value
        position = b + w["head.cpam_dec.scale"] * out.transpose(1, 2).reshape(b.shape)
        position = self.unit(position, "head.conv_cpam_e")
        high = self.unit(torch.cat([position, channel], 1), "head.conv_cat")
        low = self.unit(features[0], "head.clgd.conv_low")
        high = bilinear(high, (low.shape[2], low.shape[3]))
        gate = torch.sigmoid(self.conv(torch.cat([low, high], 1), "head.clgd.conv_att.0"))
        refined = w["head.clgd.gamma"] * gate * low
        final = self.unit(self.unit(torch.cat([refined, high], 1), "head.clgd.conv_cat"), "head.clgd.conv_out")
        aux = self.unit(features[2], "cls_aux")
        return {"main": self.conv(final, "cls_seg.1"), "aux": self.conv(aux, "cls_aux.4")}


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """As the official code resizes."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def official_augmentation(
    image: np.ndarray, mask: np.ndarray, rule: str, crop: int, draws: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """The official order with PIL: mirror, resize a side, pad right and bottom with black, crop.

    Args:
        image: ``H x W x 3`` uint8, any channel order.
        rule: ``short`` (2018: label padded with 255) or ``long`` (HEAD and fork: label padded with 0).
        draws: ``side``, ``flip``, ``left``, ``top``.
    """
    img, lab = Image.fromarray(image), Image.fromarray(mask)
    if draws["flip"]:
        img, lab = ImageOps.mirror(img), ImageOps.mirror(lab)
    width, height = img.size
    side = draws["side"]
    if rule == "short":
        size = (side, int(1.0 * height * side / width)) if height > width else (int(1.0 * width * side / height), side)
    elif height > width:
        size = (int(1.0 * width * side / height + 0.5), side)
    else:
        size = (side, int(1.0 * height * side / width + 0.5))
    img, lab = img.resize(size, Image.Resampling.BILINEAR), lab.resize(size, Image.Resampling.NEAREST)
    border = (0, 0, max(0, crop - size[0]), max(0, crop - size[1]))
    img = ImageOps.expand(img, border=border, fill=0)
    lab = ImageOps.expand(lab, border=border, fill=255 if rule == "short" else 0)
    box = (draws["left"], draws["top"], draws["left"] + crop, draws["top"] + crop)
    return np.array(img.crop(box)), np.array(lab.crop(box))


def official_scores(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    base: int,
    crop: int,
    stride: int,
    scales: tuple[float, ...],
    black: Tensor,
) -> Tensor:
    """The official evaluator: sum over scales of resized means over windows of exp(logit + mirrored logit).

    Args:
        network: ``1 x 3 x crop x crop`` to logits at the head's resolution.
        image: normalised, ``1 x 3 x H x W``.
        black: what a black pixel becomes by normalisation, ``1 x 3 x 1 x 1``.

    Returns:
        ``C x H x W`` in float64.
    """
    height, width = image.shape[2:]
    total = torch.zeros(())
    for scale in scales:
        long = math.ceil(base * scale)
        if height > width:
            h, w = long, int(1.0 * width * long / height + 0.5)
        else:
            h, w = int(1.0 * height * long / width + 0.5), long
        scaled = bilinear(image, (h, w))
        rows = max(0, math.ceil((max(h, crop) - crop) / stride)) + 1
        columns = max(0, math.ceil((max(w, crop) - crop) / stride)) + 1
        canvas = black.repeat(1, 1, (rows - 1) * stride + crop, (columns - 1) * stride + crop).clone()
        canvas[:, :, :h, :w] = scaled
        sums, counts = None, torch.zeros(canvas.shape[2:], dtype=torch.float64)
        for i in range(rows):
            for j in range(columns):
                y, x = i * stride, j * stride
                window = canvas[:, :, y : y + crop, x : x + crop]
                plain = bilinear(network(window), (crop, crop))
                mirrored = bilinear(network(window.flip(3)), (crop, crop)).flip(3)
                if sums is None:
                    sums = torch.zeros(1, plain.shape[1], *canvas.shape[2:], dtype=torch.float64)
                sums[:, :, y : y + crop, x : x + crop] += torch.exp(plain + mirrored)
                counts[y : y + crop, x : x + crop] += 1
        assert sums is not None
        total = total + bilinear((sums / counts)[:, :, :h, :w], (height, width))[0]
    return total


def padded_window_scores(
    network: Callable[[Tensor], Tensor], views: Sequence[Tensor], size: tuple[int, int], crop: int, stride: int
) -> Tensor:
    """mmsegmentation v0.5.0's multi-scale test with flip: windows that reach over a small input are filled with zeros.

    Written from the description of its code: each window ends at most at the input's edge and begins a window before
    that, at least at 0; what is cut out there is laid into a window of zeros, the logits are resized to the window, and
    the part that was cut out is added up; the sums are divided, flipped back, resized to the image; softmax; mean.

    Args:
        network: ``1 x 3 x crop x crop`` to logits at the head's resolution, resized with align_corners.
        views: the normalised image at each scale, ``1 x 3 x h x w``.
        size: of the image.
        crop: side of the windows.
        stride: between their corners.

    Returns:
        ``C x H x W`` in float64.
    """
    total, count = torch.zeros(()), 0
    for view in views:
        height, width = view.shape[2:]
        for mirrored in (False, True):
            x = view.flip(3) if mirrored else view
            sums, seen = torch.zeros(()), torch.zeros(height, width, dtype=torch.float64)
            for i in range(max(0, math.ceil((height - crop) / stride)) + 1):
                for j in range(max(0, math.ceil((width - crop) / stride)) + 1):
                    bottom, right = min(i * stride + crop, height), min(j * stride + crop, width)
                    top, left = max(0, bottom - crop), max(0, right - crop)
                    window = torch.zeros(1, 3, crop, crop, dtype=x.dtype)
                    window[:, :, : bottom - top, : right - left] = x[:, :, top:bottom, left:right]
                    logits = bilinear(network(window).double(), (crop, crop))
                    if sums.dim() == 0:
                        sums = torch.zeros(1, logits.shape[1], height, width, dtype=torch.float64)
                    sums[:, :, top:bottom, left:right] += logits[:, :, : bottom - top, : right - left]
                    seen[top:bottom, left:right] += 1
            logits = sums / seen
            logits = bilinear(logits.flip(3) if mirrored else logits, size)
            total, count = total + torch.softmax(logits[0], 0), count + 1
    return total / count
