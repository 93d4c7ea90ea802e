"""The comparison of training runs: what it must let pass, and what it must notice."""

import pytest
import torch
from torch import nn

from benchmarks.parity import compare, reference, training
from benchmarks.parity.results import ASPECTS

RUN = {"iterations": 6, "batch": 2, "height": 17, "width": 25}


class Tiny(nn.Module):
    """A convolution, a norm and a classifier, in two groups as the sources' networks are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.BatchNorm2d(6))
        self.head = nn.Conv2d(6, 19, 1)

    def forward(self, image):
        return {"main": self.head(self.backbone(image).relu())}


NAMES = {"pretrained.conv": "backbone.0", "pretrained.bn": "backbone.1", "head.out": "head"}


class TinyReference(reference.Network):
    """The same by formula."""

    def forward(self, image):
        x = self.norm(self.conv(image, "pretrained.conv", 4), "pretrained.bn").clamp_min(0)
        return {"main": self.conv(x, "head.out")}


def tiny_row(**changes):
    """The official recipe with one output, and with ``changes`` to its sections."""
    row = compare.row("danet")
    sections = {"loss": {"pam": 0.0, "cam": 0.0, "replicas": 1}}
    for section, update in changes.items():
        sections[section] = sections.get(section, {}) | update
    return row.model_copy(update={name: getattr(row, name).model_copy(update=u) for name, u in sections.items()})


def tiny_results(**changes):
    """How far our Trainer ends from the recipe written out, by aspect."""
    model = Tiny().double()
    mapping = {
        f"{theirs}.{leaf}": f"{ours}.{leaf}"
        for theirs, ours in NAMES.items()
        for leaf in model.get_submodule(ours).state_dict()
        if leaf != "num_batches_tracked"
    }
    weights = {key: model.state_dict()[ours].clone() for key, ours in mapping.items()}
    for key, value in weights.items():
        if not key.endswith(("running_mean", "running_var")):
            value.requires_grad_()
    network = TinyReference("danet", 50, weights, None, training=True)
    theirs = training.reference_training(network, tiny_row().loss, "tiny-training", RUN).projected()
    ours = training.trained(model, tiny_row(**changes), "tiny-training", RUN)
    return {r.aspect: r for r in training.compared("official", "tiny", "-", ours, theirs, mapping)}


def test_the_recipe_holds():
    assert all(result.measured < 1e-12 for result in tiny_results().values())


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
def test_a_deviation_from_the_recipe_is_noticed(changes):
    results = tiny_results(**changes)
    for aspect in ("training, loss curve", "training, weights"):
        assert results[aspect].measured > 1e2 * ASPECTS[aspect][1]
