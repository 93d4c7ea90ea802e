"""The comparison of training runs: what it must let pass, and what it must notice."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.parity import __main__ as command
from benchmarks.parity import compare, reference, training
from benchmarks.parity.results import ASPECTS, Result
from danet.config import rows
from danet.training import loop

RUN = {"dtype": "float64", "iterations": 6, "batch": 2, "height": 17, "width": 25}


class Tiny(nn.Module):
    """A convolution, a norm and a classifier, in two groups as the sources' networks are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3, 4, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 19, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"main": self.second(self.norm(self.first(image)).relu())}

    def backbone_parameters(self) -> list[nn.Parameter]:
        return [*self.first.parameters(), *self.norm.parameters()]

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.second.parameters())


NAMES = {"pretrained.conv": "first", "pretrained.bn": "norm", "head.out": "second"}


class TinyReference(reference.Network):
    """The same by formula."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.conv(image, "pretrained.conv", 4), "pretrained.bn").clamp_min(0)
        return {"main": self.conv(x, "head.out")}


def tiny_row(**changes: dict[str, Any]) -> rows.Row:
    """The official recipe with one output, and with ``changes`` to its sections."""
    row = compare.row("danet")
    sections = {"loss": {"pam": 0.0, "cam": 0.0, "replicas": 1}}
    for section, update in changes.items():
        sections[section] = sections.get(section, {}) | update
    return row.model_copy(update={name: getattr(row, name).model_copy(update=u) for name, u in sections.items()})


def tiny_distance(**changes: dict[str, Any]) -> training.Distance:
    """How far our Trainer ends from the recipe written out."""
    model = Tiny().double()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {
        f"{theirs}.{key.removeprefix(f'{name}.')}": value.clone()
        for theirs, name in NAMES.items()
        for key, value in start.items()
        if key.startswith(f"{name}.") and not key.endswith("num_batches_tracked")
    }
    for key, value in weights.items():
        if not key.endswith(("running_mean", "running_var")):
            value.requires_grad_()
    network = TinyReference("danet", 50, weights, None, training=True)
    losses, rates = training.reference_training(network, tiny_row().loss, "tiny-training", RUN)
    state = {
        f"{NAMES[prefix]}.{leaf}": value.detach()
        for prefix, leaf, value in ((*key.rsplit(".", 1), value) for key, value in network.weights.items())
    }
    ours = training.trained(model, tiny_row(**changes), "tiny-training", RUN)
    parameters = {key for key, _ in model.named_parameters()}
    return training.distance(ours, training.Trained(losses, rates, state), start, parameters)


def test_the_recipe_holds_in_float64() -> None:
    apart = tiny_distance()
    assert apart.loss < 1e-13
    assert apart.weights < 1e-13
    assert apart.tensor < 1e-12


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"head_lr_multiplier": 9.99}},
        {"optimizer": {"momentum": 0.899}},
        {"optimizer": {"weight_decay": 0.0}},
        {"schedule": {"denominator": "T-1"}},
        {"schedule": {"power": 1.0}},
        {"loss": {"average": "all"}},
        {"loss": {"replicas": 2}},
    ],
    ids=str,
)
def test_a_deviation_from_the_recipe_is_noticed(changes: dict[str, Any]) -> None:
    apart = tiny_distance(**changes)
    assert apart.loss > 1e2 * ASPECTS["training in float64, loss curve"][1]
    assert apart.weights > 1e3 * ASPECTS["training in float64, weights"][1]


def test_a_batch_smaller_than_the_replicas_is_refused() -> None:
    with pytest.raises(ValueError, match="2 images do not divide over the 4 replicas"):
        tiny_distance(loss={"replicas": 4})


def test_a_norm_without_decay_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop.build_optimizer

    def undecayed(model: Any, config: rows.Optimizer) -> torch.optim.SGD:
        optimizer = original(model, config)
        backbone = optimizer.param_groups[0]
        norm = {id(parameter) for parameter in model.norm.parameters()}
        rest = {**backbone, "params": [p for p in backbone["params"] if id(p) in norm], "weight_decay": 0.0}
        backbone["params"] = [p for p in backbone["params"] if id(p) not in norm]
        optimizer.add_param_group(rest)
        return optimizer

    monkeypatch.setattr(loop, "build_optimizer", undecayed)
    assert tiny_distance().weights > 1e3 * ASPECTS["training in float64, weights"][1]


def test_a_nudge_is_one_unit_in_the_last_place() -> None:
    start = {"weight": torch.randn(50, 40), "gate": torch.zeros(1), "steps": torch.tensor(3)}
    nudged = training.nudged(start)
    value = start["weight"].numpy()
    assert np.array_equal(np.abs(nudged["weight"].numpy() - value), np.spacing(np.abs(value)))
    up = float((nudged["weight"] > start["weight"]).float().mean())
    assert 0.4 < up < 0.6
    assert nudged["gate"].item() == 0
    assert nudged["steps"].item() == 3


def test_distance_of_known_runs() -> None:
    start = {"w": torch.tensor([3.0, 0.0]), "b": torch.zeros(1), "w.running_var": torch.ones(1)}
    theirs = {"w": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0]), "w.running_var": torch.tensor([2.0])}
    ours = {"w": torch.tensor([3.0, 4.5]), "b": torch.tensor([1.2]), "w.running_var": torch.tensor([2.5])}
    apart = training.distance(
        training.Trained(np.array([2.0, 1.0]), np.zeros(2), ours),
        training.Trained(np.array([2.0, 1.25]), np.zeros(2), theirs),
        start,
        {"w", "b"},
    )
    assert apart.loss == pytest.approx(0.2)
    assert apart.weights == pytest.approx(1.3 / 5)  # 0.5 and 1.2 over (3, 4, 0)
    assert apart.learned == pytest.approx(1.3 / 4)
    assert (apart.tensor, apart.worst) == (pytest.approx(0.25), "w.running_var")  # "b" starts at 0


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0.0), (1e-30, np.inf)])
def test_what_stays_at_zero_must_stay_there_in_both(value: float, expected: float) -> None:
    zero = {"w": torch.ones(1, dtype=torch.float64), "unused.bias": torch.zeros(2, dtype=torch.float64)}
    ours = zero | {"unused.bias": torch.tensor([value, 0.0], dtype=torch.float64)}
    curve = np.ones(1)
    moved = {"w": torch.zeros(1, dtype=torch.float64), "unused.bias": zero["unused.bias"]}
    apart = training.distance(training.Trained(curve, curve, ours), training.Trained(curve, curve, zero), moved, {"w"})
    assert apart.tensor == expected


@pytest.mark.parametrize("function", [*command.CHECKS, command.measure])
def test_spawned_processes_can_import_every_check(function: Any) -> None:
    assert b"__main__" not in pickle.dumps(function)


def test_the_report_sets_the_noise_beside_the_difference() -> None:
    results = [
        Result("official", "training, weights", "danet", 2e-5, "own reference", noise=3e-5),
        Result("official", "training in float64, weights", "danet", 5e-14, "own reference"),
    ]
    line = command.training_section(results)
    expected = "| official | danet | weights | 2.0e-05 | 1.0e-03 | 3.0e-05 | 5.0e-14 | 1.0e-09 | ok |"
    assert expected in line
    broken = command.training_section([results[0], Result("official", results[1].aspect, "danet", 1e-8, "")])
    assert any(row.endswith("| **broken** |") for row in broken)
