"""The backbone against torchvision's, and how it starts."""

import math

import pytest
import torch
import torchvision
from torch import nn

from danet.models.resnet import ResNet


def torchvision_features(peer, images):
    x = peer.maxpool(peer.relu(peer.bn1(peer.conv1(images))))
    features = []
    for stage in (peer.layer1, peer.layer2, peer.layer3, peer.layer4):
        x = stage(x)
        features.append(x)
    return features


@pytest.mark.parametrize(("output_stride", "dilate"), [(8, [False, True, True]), (16, [False, False, True])])
def test_same_features_as_torchvision_to_the_bit(output_stride, dilate):
    torch.manual_seed(0)
    peer = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=dilate)
    ours = ResNet("resnet50", "7x7", output_stride)
    for module in peer.modules():  # statistics and weights of batch normalisation that are not the identity
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    state = {key: value for key, value in peer.state_dict().items() if not key.startswith("fc.")}
    renamed = {
        key.replace("conv1.", "stem.0.") if key == "conv1.weight" else key: value for key, value in state.items()
    }
    renamed = {f"stem.1.{key[4:]}" if key.startswith("bn1.") else key: value for key, value in renamed.items()}
    ours.load_state_dict(renamed)
    images = torch.randn(2, 3, 49, 67)
    for train in (False, True):
        peer.train(train)
        ours.train(train)
        with torch.no_grad():
            pairs = list(zip(ours(images), torchvision_features(peer, images), strict=True))
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
        assert all(float(mine.std()) > 1e-3 for mine, _ in pairs)


def close_in_distribution(values, std):
    """Standard deviation and mean within five standard errors (of a normal; less for a uniform distribution)."""
    values = values.detach()
    n = values.numel()
    return abs(float(values.std()) / std - 1) < 5 / math.sqrt(2 * n) and abs(
        float(values.mean())
    ) < 5 * std / math.sqrt(n)


def test_initialisation_of_other_sources():
    """mmsegmentation's residual branches start at 0; sssegmentation leaves PyTorch's default."""
    zero, default = (ResNet("resnet50", "7x7", 16, init=init) for init in ("mmsegmentation", "pytorch"))
    last = [module.bn3.weight for module in zero.modules() if hasattr(module, "bn3")]
    assert len(last) == 16
    assert not any(bool(weight.any()) for weight in last)
    assert bool((zero.layer1[0].bn2.weight == 1).all())
    weight = default.layer4[0].conv2.weight
    assert float(weight.detach().abs().max()) <= 1 / math.sqrt(weight[0].numel())


def test_from_scratch_initialisation():
    torch.manual_seed(0)
    model = ResNet("resnet50", "deep-32-32-64", 8)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert close_in_distribution(module.weight, math.sqrt(2 / fan_out)), name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 0.1)
            assert bool((module.weight == 1).all())
            assert bool((module.bias == 0).all())
