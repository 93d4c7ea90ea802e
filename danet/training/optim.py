"""SGD with the sources' two groups, backbone and head at a multiple of its rate, and the rate at every iteration."""

from __future__ import annotations

import torch
from torch import nn

from danet.config.row import Optimizer, Schedule


def build_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.SGD:
    """SGD over all parameters, weight decay on every one (batch norm and biases too), as all sources have it.

    Groups carry ``name`` and ``base_lr``: ``backbone`` has the parameters of ``model.backbone``, ``head`` all others
    (in the official code DRANet's classifiers were in no group and never learned). The fused kernel is used on CUDA.
    """
    groups: dict[str, list[nn.Parameter]] = {"backbone": [], "head": []}
    for name, parameter in model.named_parameters():
        groups["backbone" if name.startswith("backbone.") else "head"].append(parameter)
    rates = {"backbone": config.lr, "head": config.lr * config.head_lr_multiplier}
    return torch.optim.SGD(
        [
            {"name": name, "params": parameters, "lr": rates[name], "base_lr": rates[name]}
            for name, parameters in groups.items()
            if parameters
        ],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True if all(parameter.is_cuda for parameter in model.parameters()) else None,
    )


def learning_rate(schedule: Schedule, base: float, iteration: int, total: int) -> float:
    """The rate of a group with base rate ``base`` at ``iteration``, which counts from 0.

    ``(base - min_lr) * (1 - it/T)^power + min_lr``: mmcv's hook, sssegmentation's scheduler and, with ``min_lr`` 0,
    the official one, all per iteration. ``base`` is the group's own (head: times its multiplier), ``min_lr`` is
    not multiplied, as in mmcv. Denominator ``T-1`` is mmengine's. A linear warm-up from 0 multiplies it by
    ``it / warmup_iterations``, as the official scheduler's does.
    """
    length = total if schedule.denominator == "T" else total - 1
    rest = max(0.0, 1.0 - iteration / length) if length > 0 else 1.0
    rate = (base - schedule.min_lr) * rest**schedule.power + schedule.min_lr
    if iteration < schedule.warmup_iterations:
        rate *= iteration / schedule.warmup_iterations
    return float(rate)


def set_learning_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, iteration: int, total: int) -> float:
    """Sets every group's rate for ``iteration`` (from 0) and returns the first group's (the backbone's)."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(schedule, group["base_lr"], iteration, total)
    return float(optimizer.param_groups[0]["lr"])
