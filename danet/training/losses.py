"""Weighted cross-entropies of the outputs, on logits resized to the labels' size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from danet.config.row import Loss
from danet.core.errors import ConfigError
from danet.data.layout import IGNORE
from danet.models.numerics import sent

PARTS = ("main", "pam", "cam", "aux")

BLOCK = 2**23
"""Elements of resized logits that :class:`ResizedCrossEntropy` holds at once: 32 MiB of float32."""


def loss_divisors(
    labels_NHW: Tensor,
    config: Loss,
    places: Sequence[int] | None = None,
    batch_size: int | None = None,
    total: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> Tensor:
    """What each sample's summed cross-entropy is divided by, ``(N,)`` float32, so that the sum is the batch's loss.

    The mean is over all pixels (``average: all``, mmsegmentation's, in which ignored ones count as zero loss) or over
    labelled ones. With ``config.replicas`` R above 1 it is the mean of R means, each over its part of the batch, as the
    sources' processes take it; the batch is divided as it comes, so that any number of our processes and micro-batches
    adds up to the same loss. A part without any labelled pixel contributes 0 (the sources: 0/0).

    Args:
        labels_NHW: this process's share of the batch; 255 = ignore.
        config: average and replicas.
        places: of these samples in the whole batch; by default they are the batch.
        batch_size: samples of the whole batch.
        total: sums over processes.
    """
    samples = len(labels_NHW)
    places, batch_size = places or range(samples), batch_size or samples
    counts_N = torch.full((samples,), labels_NHW[0].numel(), device=labels_NHW.device)
    if config.average == "valid":
        counts_N = (labels_NHW != IGNORE).flatten(1).sum(1)
    part_N = sent([place * config.replicas // batch_size for place in places], labels_NHW.device)
    counts_R = torch.zeros(config.replicas, dtype=torch.int64, device=labels_NHW.device).index_add_(0, part_N, counts_N)
    return total(counts_R)[part_N].clamp(min=1).float() * config.replicas


def reference_cross_entropy(logits_NChw: Tensor, labels_NHW: Tensor, align_corners: bool) -> Tensor:
    """Cross-entropy of the bilinearly resized logits, summed over each sample's labelled pixels, ``(N,)``.

    In float32 at least. PyTorch's resize and cross-entropy keep the resized logits of every output for backward.
    """
    wide = logits_NChw.to(torch.promote_types(logits_NChw.dtype, torch.float32))
    logits = F.interpolate(wide, size=labels_NHW.shape[-2:], mode="bilinear", align_corners=align_corners)
    # reduction "none" and then sum: a tree sum, exact enough for millions of pixels
    losses = F.cross_entropy(logits, labels_NHW.long(), ignore_index=IGNORE, reduction="none")
    return losses.reshape(len(labels_NHW), -1).sum(1)


class ResizedCrossEntropy(torch.autograd.Function):
    """:func:`reference_cross_entropy`, some rows at a time, with the gradient computed on the way.

    A bilinear resize is a product with a matrix from the left and one from the right, so its gradient is too, where
    PyTorch's kernel adds up 64 pixels of a cell one after the other (output stride 8), in any order. Kept for backward
    is the gradient at the size of the logits: memory does not grow with the classes, and runs repeat to the bit.
    """

    @staticmethod
    def forward(ctx: Any, logits_NChw: Tensor, labels_NHW: Tensor, align_corners: bool) -> Tensor:
        """``(N,)``, as :func:`reference_cross_entropy`."""
        logits_NChw = logits_NChw.to(torch.promote_types(logits_NChw.dtype, torch.float32))
        (N, C, h, w), (H, W) = logits_NChw.shape, labels_NHW.shape[-2:]
        rows_Hh, columns_Ww = (_resizing(*sizes, align_corners, logits_NChw) for sizes in ((h, H), (w, W)))
        wide_ChW = (logits_NChw.reshape(-1, w) @ columns_Ww.T).view(N * C, h, W)
        gradient_ChW = torch.zeros_like(wide_ChW)
        total_N = wide_ChW.new_zeros(N)
        classes_C11 = torch.arange(C, device=wide_ChW.device).view(-1, 1, 1)
        step = max(1, BLOCK // (N * C * W))
        for first in range(0, H, step):
            rows_rh = rows_Hh[first : first + step].expand(N * C, -1, -1)
            labels_N1rW = labels_NHW[:, None, first : first + step].long()
            labelled = labels_N1rW != IGNORE
            labels_N1rW = labels_N1rW.where(labelled, 0)
            log_NCrW = torch.bmm(rows_rh, wide_ChW).view(N, C, -1, W).log_softmax(1)
            total_N -= (log_NCrW.gather(1, labels_N1rW) * labelled).flatten(1).sum(1)
            gradient_NCrW = log_NCrW.exp_().sub_((labels_N1rW == classes_C11).view(torch.uint8)).mul_(labelled)
            gradient_ChW.baddbmm_(rows_rh.transpose(1, 2), gradient_NCrW.view(N * C, -1, W))
        ctx.save_for_backward((gradient_ChW.view(-1, W) @ columns_Ww).view_as(logits_NChw))
        return total_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the logits."""
        (gradient_NChw,) = ctx.saved_tensors
        return gradients[0].view(-1, 1, 1, 1) * gradient_NChw, None, None


def _resizing(length: int, wanted: int, align_corners: bool, like: Tensor) -> Tensor:
    """The matrix ``wanted x length`` that resizes a line as :func:`torch.nn.functional.interpolate` does."""
    lines = torch.eye(length, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(lines, size=wanted, mode="linear", align_corners=align_corners)[0].T.contiguous()


def segmentation_losses(
    outputs: Mapping[str, Tensor],
    labels_NHW: Tensor,
    config: Loss,
    *,
    align_corners: bool,
    divisors: Tensor | None = None,
) -> dict[str, Tensor]:
    """``loss`` and its parts ``loss_main``, ``loss_pam``, ... (weighted: they add up to ``loss``), scalars.

    Args:
        outputs: logits ``(N, C, h, w)`` by output.
        labels_NHW: integer labels, 255 = ignore.
        divisors: what each sample's sum is divided by, ``(N,)``; by default this batch's own :func:`loss_divisors`. A
            batch without any labelled pixel has loss 0 (not 0/0), and a gradient of 0.

    Raises:
        ConfigError: if the row weighs an output that the model does not have.
    """
    if divisors is None:
        divisors = loss_divisors(labels_NHW, config)
    compute: Any = ResizedCrossEntropy.apply if labels_NHW.is_cuda else reference_cross_entropy
    losses: dict[str, Tensor] = {}
    for part in PARTS:
        weight = getattr(config, part)
        if weight == 0:
            continue
        if part not in outputs:
            raise ConfigError(f"loss.{part} is {weight} but the model has no output {part!r}; set loss.{part} to 0")
        summed = compute(outputs[part], labels_NHW, align_corners)
        losses[f"loss_{part}"] = weight * (summed / divisors).sum()
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}
