"""The ends of the schedules; the rates of whole trainings are compared in test_loop.py and tests/parity."""

import pytest

from danet.config.row import Schedule
from danet.training.optim import learning_rate


def poly(**changes):
    return Schedule.model_validate({"iterations": 100, "batch_size": 4, **changes})


def test_denominators_end_where_their_source_does():
    assert learning_rate(poly(min_lr=1e-4), 0.01, 99, 100) > 1e-4 + 1e-6
    assert learning_rate(poly(min_lr=1e-4, denominator="T-1"), 0.01, 99, 100) == pytest.approx(1e-4, abs=1e-15)
    assert learning_rate(poly(denominator="T-1"), 0.01, 0, 1) == 0.01


def test_warm_up_is_linear_from_zero():
    schedule = poly(power=0.0, warmup_iterations=10)
    rates = [learning_rate(schedule, 0.5, i, 100) for i in range(12)]
    assert rates == pytest.approx([0.05 * i for i in range(10)] + [0.5, 0.5])
