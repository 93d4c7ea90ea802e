"""How the official code of 2018 chose the weights that it kept: the epoch that was best on centre crops of val.

``danet/train.py`` validates after each epoch unless it is told not to, and saves only when (pixAcc + mIoU) / 2 is
better than ever. A row with ``checkpoint: best-on-val`` keeps those weights beside the last ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danet.config.row import Row
from danet.core.parallel import ahead
from danet.core.process import Process
from danet.data.layout import Array8
from danet.data.prefetch import Normaliser
from danet.data.prepared import PreparedDataset
from danet.data.transforms import crop_box, resize, side_size
from danet.evaluation.metrics import Confusion
from danet.models.numerics import autocast


def centre_crop(image: Array8, mask: Array8, side: int) -> tuple[Array8, Array8]:
    """The short side resized to ``side`` (PIL: bilinear, labels nearest), then the middle ``side x side`` of it."""
    height, width = side_size(mask.shape, "short", side)
    box = (round((height - side) / 2), round((width - side) / 2), side, side)
    whole = resize(image, (height, width), "pil"), resize(mask, (height, width), "pil", nearest=True)
    return crop_box(whole[0], box), crop_box(whole[1], box)


def selection_score(row: Row, dataset: PreparedDataset, process: Process) -> Callable[[nn.Module], float]:
    """What is to be as high as can be: (pixAcc + mIoU) / 2 in percent over the centre crops, absent classes 0.

    Each process takes its share of the images, prepared by ``row.runtime.workers`` threads; all get the same score. The
    model must be in evaluation mode.
    """
    side, device = row.augment.crop_size[0], process.device
    normalise = Normaliser(row.augment, torch.device("cpu"))

    def load(index: int) -> tuple[Tensor, Tensor]:
        mask = dataset.mask(index)
        assert mask is not None
        image, labels = centre_crop(dataset.image(index), mask, side)
        pixels = normalise(torch.from_numpy(image.copy())[None], [(0, 0, side, side)])
        return pixels, torch.from_numpy(labels.copy())

    def score(model: nn.Module) -> float:
        confusion = Confusion(dataset.num_classes, device)
        mine = range(process.rank, len(dataset), process.world)
        for pixels, labels in ahead(load, mine, row.runtime.workers):
            with torch.inference_mode(), autocast(row.numerics, device):
                logits = model(pixels.to(device))["main"].float()
            logits = F.interpolate(logits, (side, side), mode="bilinear", align_corners=row.model.align_corners)
            confusion.update(logits[0].argmax(0).to(torch.uint8), labels.to(device))
        confusion.reduce(process)
        scores = confusion.scores("zero")
        return (scores.aacc + scores.miou) / 2

    return score
