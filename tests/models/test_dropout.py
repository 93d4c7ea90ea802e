"""Dropout by sample: PyTorch's distribution, and nothing but the sample decides."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from danet.models.dropout import Dropout2d, kept, steps
from danet.models.numerics import seed_step


def keys(count, seed=0):
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed))


def splitmix(state):
    """The next number of SplitMix64 in Python's integers (Steele, Lea and Flood 2014)."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    value = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31), state


def test_draws_are_splitmix():
    """A stream starts at the hash of key and number; its draws are SplitMix64's from there, of which 24 bits count."""
    for key, stream in ((5, 0), (-7, 3), (2**63 - 1, 700)):
        state = (key + stream * 0x9E3779B97F4A7C15) % 2**64
        state, _ = splitmix(state)
        expected = []
        for _ in range(6):
            value, state = splitmix(state)
            expected.append((value >> 40) / 2**24 >= 0.4)
        assert kept(torch.tensor([key]), stream, steps(6), 0.4)[0].tolist() == expected


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_distribution_is_pytorch_s(p):
    """Dropped channels of a sample are binomial, as nn.Dropout2d's are; every channel and stream has the same share."""
    samples, channels = 4000, 64
    torch.manual_seed(1)
    theirs = (nn.Dropout2d(p)(torch.ones(samples, channels, 1, 1)) == 0).flatten(1)
    for stream in (0, 1, 256):
        mine = ~kept(keys(samples, stream), stream, steps(channels), p)
        counts, other = mine.sum(1).numpy(), theirs.sum(1).numpy()
        assert stats.ks_2samp(counts, other).pvalue > 1e-3
        observed = np.bincount(counts, minlength=channels + 1)
        expected = samples * stats.binom(channels, p).pmf(np.arange(channels + 1))
        often = expected > 5
        both = [np.append(x[often], x[~often].sum()) for x in (observed, expected)]
        assert stats.chisquare(*both).pvalue > 1e-3
        shares = stats.binomtest
        assert min(shares(int(n), samples, p).pvalue for n in mine.sum(0)) > 1e-5
        assert shares(int(mine.sum()), mine.numel(), p).pvalue > 1e-3


def test_draws_are_independent():
    """Of neighbouring channels, of neighbouring positions' samples, of layers and calls."""
    positions = torch.arange(20_000)
    first = kept(positions, 0, steps(8), 0.5).double()
    pairs = [
        (first[:, :-1], first[:, 1:]),
        (first[:-1], first[1:]),
        (first, kept(positions, 1, steps(8), 0.5).double()),
        (first, kept(positions, 256, steps(8), 0.5).double()),
    ]
    for one, other in pairs:
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 4 / one.numel() ** 0.5


def test_values_are_zero_or_scaled_and_gradients_follow():
    layer, x = Dropout2d(0.3).train(), torch.randn(5, 40, 3, 2, requires_grad=True)
    layer.draw_for(keys(5))
    out = layer(x)
    mask = (out != 0).all(dim=(2, 3))
    assert ((out == 0).all(dim=(2, 3)) | mask).all()
    torch.testing.assert_close(out, x * mask[:, :, None, None] / 0.7)
    out.sum().backward()
    torch.testing.assert_close(x.grad, mask[:, :, None, None].expand_as(x) / 0.7)
    assert layer.eval()(x) is x


def test_calls_and_layers_differ_and_repeat():
    model = nn.Sequential(Dropout2d(0.5), nn.Identity(), Dropout2d(0.5)).train()
    x = torch.ones(2, 64, 1, 1)

    def draw(positions, seed=3):
        seed_step(model, seed, positions)
        return [model[0](x), model[0](x), model[2](x)]

    first = draw([8, 9])
    assert all(torch.equal(a, b) for a, b in zip(first, draw([8, 9]), strict=True))
    assert len({tuple(mask.flatten().tolist()) for mask in first}) == 3
    for other in (draw([9, 8]), draw([8, 9], seed=4)):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(draw([9, 8])[0], first[0].flip(0))  # whatever its place in the batch


def test_one_graph_whatever_the_step():
    from torch._dynamo.testing import CompileCounter

    layer, counter, x = Dropout2d(0.4).train(), CompileCounter(), torch.ones(4, 8, 2, 2)
    model = nn.Sequential(layer)
    compiled = torch.compile(model, backend=counter)
    for step in range(4):
        outputs = []
        for network in (model, compiled):
            seed_step(model, 0, range(4 * step, 4 * step + 4))
            outputs.append(network(x))
        assert torch.equal(*outputs)
    assert counter.frame_count == 1
