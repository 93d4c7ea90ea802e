"""Learning rate at every iteration, as a closed form."""

from __future__ import annotations

from danet.config.row import Schedule


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
