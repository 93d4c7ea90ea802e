"""SGD with the sources' two groups: backbone, and head at a multiple of its rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import nn

from danet.config.row import Optimizer, Schedule
from danet.core.errors import TrainingError
from danet.training.schedule import learning_rate


class Grouped(Protocol):
    """A model that tells its backbone from its heads (:class:`danet.models.segmentor.Segmentor`)."""

    def backbone_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters at the base rate."""
        ...

    def head_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters at the base rate times ``head_lr_multiplier``."""
        ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """All of them, with names."""
        ...


def build_optimizer(model: Grouped, config: Optimizer) -> torch.optim.SGD:
    """SGD over all parameters, weight decay on every one (batch norm and biases too), as all sources have it.

    Groups carry ``name`` and ``base_lr``. The fused kernel is used on CUDA.

    Raises:
        TrainingError: if a parameter is in no group or in both: in the official code DRANet's classifiers were in
            none and never learned, without a word.
    """
    backbone, head = list(model.backbone_parameters()), list(model.head_parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    grouped = [id(parameter) for parameter in (*backbone, *head) if parameter.requires_grad]
    if lost := [name for key, name in names.items() if grouped.count(key) != 1]:
        raise TrainingError(f"parameter {lost[0]} is in no learning-rate group or in two; put each in exactly one")
    groups = [
        {"name": name, "params": parameters, "lr": base, "base_lr": base}
        for name, parameters, base in (
            ("backbone", backbone, config.lr),
            ("head", head, config.lr * config.head_lr_multiplier),
        )
        if parameters
    ]
    on_cuda = all(parameter.is_cuda for parameter in (*backbone, *head))
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True if on_cuda else None,
    )


def set_learning_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, iteration: int, total: int) -> float:
    """Sets every group's rate for ``iteration`` (from 0) and returns the first group's (the backbone's)."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(schedule, group["base_lr"], iteration, total)
    return float(optimizer.param_groups[0]["lr"])
