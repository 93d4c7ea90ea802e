"""Weighted cross-entropies of the outputs, on logits resized to the labels' size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from danet import rows
from danet.data.layout import IGNORE
from danet.errors import ConfigError

PARTS = ("main", "pam", "cam", "aux")


def loss_denominator(labels_NHW: Tensor, average: Literal["all", "valid"]) -> Tensor:
    """What the summed cross-entropy is divided by: the number of pixels, or of labelled ones (scalar, float32).

    ``all`` is mmsegmentation's mean, in which ignored pixels count as zero loss. Taken over a whole batch, and summed
    over processes, it makes micro-batches and processes add up to exactly that batch's loss.
    """
    if average == "all":
        return torch.tensor(float(labels_NHW.numel()), device=labels_NHW.device)
    return (labels_NHW != IGNORE).sum().float()


def summed_cross_entropy(logits_NChw: Tensor, labels_NHW: Tensor, align_corners: bool) -> Tensor:
    """Cross-entropy of the bilinearly resized logits, in float32, summed over the labelled pixels (scalar).

    In deterministic mode classes go last and pixels flat, as only that loss kernel is deterministic on CUDA; the
    resize then takes PyTorch's deterministic path by itself.
    """
    size = labels_NHW.shape[-2:]
    logits = F.interpolate(logits_NChw.float(), size=size, mode="bilinear", align_corners=align_corners)
    labels = labels_NHW.long()
    if torch.are_deterministic_algorithms_enabled():
        logits = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
        labels = labels.reshape(-1)
    # reduction "none" and then sum: a tree sum, exact enough for millions of pixels
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none").sum()


def segmentation_losses(
    outputs: Mapping[str, Tensor],
    labels_NHW: Tensor,
    config: rows.Loss,
    *,
    align_corners: bool,
    denominator: Tensor | None = None,
) -> dict[str, Tensor]:
    """``loss`` and its parts ``loss_main``, ``loss_pam``, ... (weighted: they add up to ``loss``), scalars.

    Args:
        outputs: logits ``(N, C, h, w)`` by output.
        labels_NHW: integer labels, 255 = ignore.
        denominator: what the sums are divided by; by default this batch's own :func:`loss_denominator`. A batch without
            any labelled pixel has loss 0 (not 0/0), and a gradient of 0.

    Raises:
        ConfigError: if the row weighs an output that the model does not have.
    """
    if denominator is None:
        denominator = loss_denominator(labels_NHW, config.average)
    divisor = torch.where(denominator > 0, denominator, 1.0)
    losses: dict[str, Tensor] = {}
    for part in PARTS:
        weight = getattr(config, part)
        if weight == 0:
            continue
        if part not in outputs:
            raise ConfigError(f"loss.{part} is {weight} but the model has no output {part!r}; set loss.{part} to 0")
        summed = summed_cross_entropy(outputs[part], labels_NHW, align_corners)
        losses[f"loss_{part}"] = weight * summed / divisor
    if not losses:
        raise ConfigError("loss: every weight is 0, so nothing would be learned; give at least loss.main a weight")
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}
