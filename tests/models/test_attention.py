"""The attention modules against loops over single positions, closed forms and symmetries.

DRANet's are held against a reference of their own in tests/parity.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from danet.models import attention as attention_module
from danet.models.attention import (
    ChannelAttention,
    Clustering,
    CompactChannelDecoder,
    CompactPositionDecoder,
    PositionAttention,
    adaptive_average_pool,
    fused_attention,
    reference_attention,
)


def filled(module, seed=0, gain=0.7):
    """All parameters drawn from a normal distribution, so that scales which start at 0 take part."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(gain * torch.randn(parameter.shape, generator=generator))
    return module


def noise(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def softmax(scores):
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("attention", ["fused", "reference"])
@pytest.mark.parametrize("bias", [True, False])
def test_pam_is_unscaled_attention_plus_input(attention, bias):
    pam = filled(PositionAttention(6, 3, bias, attention).double())
    x = noise(2, 6, 2, 3, dtype=torch.float64)
    projected = {
        name: (getattr(pam, name).weight[:, :, 0, 0].detach(), getattr(pam, name).bias)
        for name in ("query", "key", "value")
    }
    expected = torch.empty_like(x)
    for image in range(2):
        columns = [x[image, :, h, w] for h in range(2) for w in range(3)]
        q, k, v = (
            [weight @ column + (0 if offset is None else offset.detach()) for column in columns]
            for weight, offset in projected.values()
        )
        for i in range(6):
            weights = softmax([float(q[i] @ k[j]) for j in range(6)])
            attended = sum(weights[j] * v[j] for j in range(6))
            expected[image, :, i // 3, i % 3] = pam.gamma.item() * attended + columns[i]
    torch.testing.assert_close(pam(x), expected, rtol=0, atol=1e-12)
    assert (pam.query.bias is not None) == bias


def test_cam_favours_dissimilar_channels():
    cam = filled(ChannelAttention().double())
    x = noise(2, 5, 2, 3, dtype=torch.float64)
    expected = torch.empty_like(x)
    for image in range(2):
        for c in range(5):
            energy = [float((x[image, c] * other).sum()) for other in x[image]]
            weights = softmax([max(energy) - e for e in energy])
            attended = sum(weight * other for weight, other in zip(weights, x[image], strict=True))
            expected[image, c] = cam.gamma * attended + x[image, c]
    torch.testing.assert_close(cam(x), expected, rtol=0, atol=1e-12)


def test_attention_starts_as_the_identity():
    x = noise(2, 16, 5, 4)
    for module in (PositionAttention(16, 2), PositionAttention(16, 2, attention="reference"), ChannelAttention()):
        assert module.gamma.shape == ()
        assert torch.equal(module(x), x)
    assert torch.equal(CompactPositionDecoder(16)(x, noise(2, 50, 16)), x)
    assert torch.equal(CompactChannelDecoder()(x, noise(2, 3, 5, 4)), x)


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 1, 1), (1, 33, 41)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_equals_reference_forward_and_backward(shape, layout):
    batch, height, width = shape
    # Gain such that scores spread over several units, as in a trained network.
    fused = filled(PositionAttention(128, 16, attention="fused"), gain=0.06)
    reference = filled(PositionAttention(128, 16, attention="reference"), gain=0.06)
    inputs = [noise(batch, 128, height, width).to(memory_format=layout).requires_grad_() for _ in range(2)]
    out = [module(x) for module, x in zip((fused, reference), inputs, strict=True)]
    assert (out[0] - out[1]).abs().max() < 1e-5
    assert out[0].is_contiguous(memory_format=layout)
    upstream = noise(batch, 128, height, width, seed=3)
    for value in out:
        value.backward(upstream)
    pairs = [(inputs[0].grad, inputs[1].grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(fused.parameters(), reference.parameters(), strict=True)]
    for mine, other in pairs:
        assert (mine - other).abs().max() < 1e-4 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_what_it_gives_and_little_else(dtype, monkeypatch):
    """Scores of several units, over several blocks; differences as shares of the largest value."""
    monkeypatch.setattr(attention_module, "BLOCK", 2**12)
    drawn = [
        (gain * noise(2, 200, width, seed=seed)).to(dtype)
        for seed, (width, gain) in enumerate(((16, 0.7), (16, 1), (64, 1)))
    ]
    upstream = noise(2, 200, 64, seed=3).to(dtype)
    found = []
    for attend, kind in ((fused_attention, dtype), (reference_attention, torch.float64)):
        leaves = [x.detach().to(kind).requires_grad_() for x in drawn]
        out = attend(*leaves)
        out.backward(upstream.to(kind))
        assert all(x.grad.dtype == kind for x in leaves)
        found.append([out.detach(), *(x.grad for x in leaves)])
    for mine, exact in zip(*found, strict=True):
        assert float((mine.double() - exact).abs().max() / exact.abs().max()) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_heads_are_only_a_way_to_compute(heads):
    q, k, v = noise(2, 40, 8, seed=1), noise(2, 40, 8, seed=2), noise(2, 40, 64, seed=3)
    torch.testing.assert_close(fused_attention(q, k, v, heads), reference_attention(q, k, v), rtol=0, atol=1e-5)


class Largest(TorchDispatchMode):
    """Records the largest tensor, in elements, that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                # Of the storage, so that views which repeat memory (expand) count once.
                self.elements = max(self.elements, value.untyped_storage().nbytes() // value.element_size())
        return out


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_attention_never_holds_the_map(layout, monkeypatch):
    monkeypatch.setattr(attention_module, "BLOCK", 2**18)
    positions, channels = 48 * 48, 64
    largest = {}
    for attention in ("fused", "reference"):
        pam = filled(PositionAttention(channels, 8, attention=attention), gain=0.05)
        x = noise(1, channels, 48, 48).to(memory_format=layout).requires_grad_()
        with Largest() as record:
            pam(x).sum().backward()
        largest[attention] = record.elements
    assert largest["reference"] >= positions**2  # the measurement sees the map where there is one
    assert largest["fused"] <= 4 * positions * channels < positions**2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_attention_on_cuda(dtype):
    positions = 128 * 256  # Cityscapes whole at stride 8: the map alone would take 2 to 4 GiB
    q, k = (0.5 * noise(1, positions, 64, seed=seed) for seed in (1, 2))
    v = noise(1, positions, 512, seed=3)
    leaves = [x.to("cuda", dtype).requires_grad_() for x in (q, k, v)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = fused_attention(*leaves)
    out.sum().backward()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 1.5 * 2**30
    rows = slice(0, 256)  # the reference for some of the queries is cheap
    expected = reference_attention(*(x.detach().float() for x in (leaves[0][:, rows], leaves[1], leaves[2])))
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out[:, rows].detach().float(), expected, rtol=0, atol=tolerance)


def test_cam_does_not_overflow_in_half_precision():
    cam = ChannelAttention()
    nn.init.constant_(cam.gamma, 1.0)
    x = 30 * noise(1, 8, 32, 32).abs()  # energies near 1e6; float16 ends at 65504
    torch.testing.assert_close(cam(x.half()).float(), cam(x.half().float()), rtol=2e-3, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = cam(x.bfloat16())
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), cam(x.bfloat16().float()), rtol=2e-2, atol=0.5)


@pytest.mark.parametrize("size", [(7, 5), (33, 65), (6, 6), (2, 1)])
def test_deterministic_pooling_is_the_same_pooling(size):
    x = noise(2, 3, *size)
    for grid in (1, 2, 3, 6):
        plain = adaptive_average_pool(x, grid)
        torch.use_deterministic_algorithms(True)
        try:
            deterministic = adaptive_average_pool(x, grid)
        finally:
            torch.use_deterministic_algorithms(False)
        assert deterministic is not plain
        torch.testing.assert_close(deterministic, plain, rtol=0, atol=1e-6)


def test_clusters_give_cosine_similarities_and_move_by_counts_in_training_alone():
    clusters = Clustering(6, 4).double()  # the factor of 100 in the softmax leaves little of float32
    centres, counts = clusters.V_buffer.numpy().copy(), np.ones(4)
    for step in range(3):
        x = noise(2, 6, 3, 2, seed=step, dtype=torch.float64).relu().requires_grad_()
        tested, out = clusters.eval()(x), clusters.train()(x)
        features = x.detach().permute(0, 2, 3, 1).reshape(-1, 6).numpy()
        features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        unit = centres / np.linalg.norm(centres, axis=1, keepdims=True)
        similarity = features @ unit.T
        for found in (tested, out):
            np.testing.assert_allclose(found.detach().permute(0, 2, 3, 1).reshape(-1, 4), similarity, atol=1e-12)
        assigned = np.array([softmax(list(100 * row)) for row in similarity])
        for k in range(4):
            amount = assigned[:, k].sum()
            counts[k] += amount
            mean = (assigned[:, k, None] * features).sum(0) / amount
            centres[k] += amount / counts[k] * (mean - centres[k])
        np.testing.assert_allclose(clusters.V_buffer.numpy(), centres, atol=1e-10)
        np.testing.assert_allclose(clusters.V_count_buffer.numpy(), counts, rtol=1e-10)
        out.sum().backward()  # the update must not disturb what backward reads
        assert bool(x.grad.isfinite().all())
    assert clusters.V_count_buffer.dtype == torch.float64
    assert not list(clusters.parameters())


def test_clusters_start_at_the_sources_centres():
    start = np.random.RandomState(1).randn(512, 512)
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    np.testing.assert_allclose(Clustering(512, 512).V_buffer.numpy(), start, atol=1e-6)


def test_a_cluster_without_features_keeps_its_centre():
    clusters = Clustering(2, 2).train()
    clusters.V_buffer.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # softmax underflows to 0 for the second
    clusters(torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1))
    assert clusters.V_buffer.tolist() == [[1.0, 0.0], [-1.0, 0.0]]
    assert clusters.V_count_buffer.tolist() == [2.0, 1.0]
