import math

import pytest

from danet.config.row import Optimizer as OptimizerConfig
from danet.config.row import Schedule
from danet.training.optim import build_optimizer, learning_rate, set_learning_rates
from tests.training.fakes import TinyNet


def poly(**changes):
    return Schedule.model_validate({"iterations": 100, "batch_size": 4, **changes})


@pytest.mark.parametrize("iteration", [0, 1, 37, 99])
def test_mmsegmentation(iteration):
    schedule = poly(power=0.9, min_lr=1e-4)
    expected = (0.01 - 1e-4) * math.exp(0.9 * math.log(1 - iteration / 100)) + 1e-4
    assert learning_rate(schedule, 0.01, iteration, 100) == pytest.approx(expected, abs=1e-12)


def test_denominators_end_where_their_source_does():
    assert learning_rate(poly(min_lr=1e-4), 0.01, 99, 100) > 1e-4 + 1e-6
    assert learning_rate(poly(min_lr=1e-4, denominator="T-1"), 0.01, 99, 100) == pytest.approx(1e-4, abs=1e-15)
    assert learning_rate(poly(denominator="T-1"), 0.01, 0, 1) == 0.01


def test_warm_up_is_linear_from_zero():
    schedule = poly(power=0.0, warmup_iterations=10)
    rates = [learning_rate(schedule, 0.5, i, 100) for i in range(12)]
    assert rates == pytest.approx([0.05 * i for i in range(10)] + [0.5, 0.5])


def test_groups_and_their_rates():
    model = TinyNet()
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.003, head_lr_multiplier=10, weight_decay=1e-4))
    assert [group["name"] for group in optimizer.param_groups] == ["backbone", "head"]
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))
    assert set(grouped[:4]) == set(map(id, model.backbone.parameters()))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}
    first = set_learning_rates(optimizer, poly(), 30, 100)
    assert first == pytest.approx(0.003 * 0.7**0.9, abs=1e-12)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([first, 10 * first])
    set_learning_rates(optimizer, poly(), 0, 100)
    assert [group["lr"] for group in optimizer.param_groups] == [0.003, 0.03]
