"""Weighted cross-entropies of the outputs, on logits resized to the labels' size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from danet.config.row import Loss
from danet.core.errors import ConfigError
from danet.data.layout import IGNORE
from danet.models.numerics import sent

PARTS = ("main", "pam", "cam", "aux")


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


def summed_cross_entropy(logits_NChw: Tensor, labels_NHW: Tensor, align_corners: bool) -> Tensor:
    """Cross-entropy of the bilinearly resized logits, summed over each sample's labelled pixels, ``(N,)``.

    In float32 at least. In deterministic mode classes go last and pixels flat, as only that loss kernel is
    deterministic on CUDA; the resize then takes PyTorch's deterministic path by itself.
    """
    size = labels_NHW.shape[-2:]
    wide = logits_NChw.to(torch.promote_types(logits_NChw.dtype, torch.float32))
    logits = F.interpolate(wide, size=size, mode="bilinear", align_corners=align_corners)
    labels = labels_NHW.long()
    if torch.are_deterministic_algorithms_enabled():
        logits = logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
        labels = labels.reshape(-1)
    # reduction "none" and then sum: a tree sum, exact enough for millions of pixels
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    return losses.reshape(len(labels_NHW), -1).sum(1)


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
    losses: dict[str, Tensor] = {}
    for part in PARTS:
        weight = getattr(config, part)
        if weight == 0:
            continue
        if part not in outputs:
            raise ConfigError(f"loss.{part} is {weight} but the model has no output {part!r}; set loss.{part} to 0")
        summed = summed_cross_entropy(outputs[part], labels_NHW, align_corners)
        losses[f"loss_{part}"] = weight * (summed / divisors).sum()
    if not losses:
        raise ConfigError("loss: every weight is 0, so nothing would be learned; give at least loss.main a weight")
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}
