import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danet.config.row import Loss
from danet.core.errors import ConfigError
from danet.training import losses
from danet.training.losses import ResizedCrossEntropy, loss_divisors, reference_cross_entropy, segmentation_losses

ALL_PARTS = Loss(main=1.0, pam=0.5, cam=2.0, aux=0.4)


def brute_force(logits, labels, average):
    """Pixel by pixel in Python floats; logits already at the labels' size."""
    total, valid = 0.0, 0
    for n in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                label = int(labels[n, y, x])
                if label == 255:
                    continue
                scores = [float(v) for v in logits[n, :, y, x]]
                total += math.log(sum(math.exp(v) for v in scores)) - scores[label]
                valid += 1
    return total / (labels.numel() if average == "all" else max(valid, 1))


def sample(seed, size=(3, 4), classes=5, ignored=0.3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, *size, generator=generator) * 3
    labels = torch.randint(0, classes, (2, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return logits, labels.to(torch.uint8)


@pytest.fixture(params=[False, True], ids=["usual", "deterministic"])
def mode(request):
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("average", ["all", "valid"])
def test_brute_force(average):
    outputs = {part: sample(i)[0] for i, part in enumerate(("main", "pam", "cam", "aux"))}
    labels = sample(9)[1]
    config = ALL_PARTS.model_copy(update={"average": average})
    losses = segmentation_losses(outputs, labels, config, align_corners=False)
    expected = {part: getattr(config, part) * brute_force(outputs[part], labels, average) for part in outputs}
    for part, value in expected.items():
        assert losses[f"loss_{part}"].item() == pytest.approx(value, rel=1e-5)
    assert losses["loss"].item() == pytest.approx(sum(expected.values()), rel=1e-5)


@pytest.mark.parametrize("block", [1, 300, 2**23])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(17, 23), (5, 4), (40, 64), (5, 8)])
def test_the_fast_loss_is_the_reference_in_float64(monkeypatch, size, align_corners, block):
    """Values and gradients, enlarged and reduced, whatever share of the rows is held at once."""
    monkeypatch.setattr(losses, "BLOCK", block)
    logits, labels = sample(1, size)
    logits = torch.randn(2, 5, 5, 8, dtype=torch.float64, requires_grad=True)
    labels[0] = 255  # nothing labelled in the first image
    upstream = torch.tensor([0.3, 0.7], dtype=torch.float64)
    both = []
    for compute in (reference_cross_entropy, ResizedCrossEntropy.apply):
        loss_N = compute(logits, labels, align_corners)
        both.append((loss_N, *torch.autograd.grad(loss_N, logits, upstream)))
    for ours, theirs in zip(both[1], both[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("average", ["all", "valid"])
def test_nothing_labelled_is_zero(average):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.full((2, 8, 8), 255, dtype=torch.uint8)
    losses = segmentation_losses({"main": logits}, labels, Loss(pam=0, cam=0, average=average), align_corners=False)
    assert losses["loss"].item() == 0
    (65536 * losses["loss"]).backward()
    assert (logits.grad == 0).all()


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 4]), st.sampled_from(["all", "valid"]), st.sampled_from([1, 2, 4]))
def test_replicas_are_a_mean_of_means(seed, replicas, average, world):
    """Each part of the batch takes its own mean, whatever the number of processes; a part without labels adds 0."""
    pairs = [sample(seed + i, ignored=ignored) for i, ignored in enumerate((0.1, 0.8))]
    logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    labels[seed % 4] = 255
    config = Loss(pam=0, cam=0, average=average, replicas=replicas)
    parts = zip(logits.chunk(replicas), labels.chunk(replicas), strict=True)
    expected = sum(brute_force(*part, average) for part in parts) / replicas
    assert segmentation_losses({"main": logits}, labels, config, align_corners=False)["loss"].item() == pytest.approx(
        expected, rel=1e-5
    )
    shares, total = 4 // world, torch.zeros(replicas, dtype=torch.int64)
    for keep in (True, False):  # first every process's counts are summed, then each divides by the sum
        loss = 0.0
        for rank in range(world):
            mine = slice(rank * shares, (rank + 1) * shares)
            add = total.add_ if keep else lambda _: total
            divisors = loss_divisors(labels[mine], config, range(4)[mine], 4, add)
            outputs = {"main": logits[mine]}
            loss += segmentation_losses(outputs, labels[mine], config, align_corners=False, divisors=divisors)["loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_weight_without_an_output():
    logits, labels = sample(0)
    with pytest.raises(ConfigError, match=r"loss\.aux is 0\.4"):
        segmentation_losses({"main": logits}, labels, Loss(pam=0, cam=0, aux=0.4), align_corners=False)
