"""Dropout whose draws belong to the samples, so that they do not depend on how a batch is divided."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

_GOLDEN: Final = 0x9E3779B97F4A7C15 - 2**64
_MIX: Final = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
_BITS: Final = 24
_MOST_CALLS: Final = 256
_MOST_CHANNELS: Final = 4096


class Dropout2d(nn.Dropout2d):
    """:class:`torch.nn.Dropout2d`, with a stream of its own for each sample.

    All sources drop channels by the generator of the device they run on, so that their draws depend on the number of
    processes and on the images before. Here they are a hash (SplitMix64) of the sample's key, the layer, the call and
    the channel: the same on every device, for any number of processes and micro-batches, and of the same distribution.
    Without keys, and in evaluation, it is PyTorch's.
    """

    steps: Tensor

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)
        # A buffer, because as a constant of a compiled graph the product does not fit the index type on CUDA.
        self.register_buffer("steps", steps(_MOST_CHANNELS), persistent=False)
        self._keys_N: Tensor | None = None
        self._layer = 0
        self._call = 0

    def draw_for(self, keys_N: Tensor, layer: int = 0) -> None:
        """Sets the samples of the next forward pass by their keys, int64 on the device, and this layer's number."""
        self._keys_N, self._layer, self._call = keys_N, layer, 0

    def forward(self, input: Tensor) -> Tensor:
        """Zeroes whole channels of ``(N, C, H, W)`` and scales the others by ``1 / (1 - p)``."""
        if not self.training or self._keys_N is None or self.p in (0.0, 1.0):
            return super().forward(input)
        stream = self._layer * _MOST_CALLS + self._call
        self._call += 1  # the head drops three times with one layer
        keep_NC = kept(self._keys_N, stream, self.steps[: input.shape[1]], self.p)
        return input * (keep_NC.to(input.dtype) / (1 - self.p))[:, :, None, None]


def steps(channels: int) -> Tensor:
    """What SplitMix64 adds for each channel."""
    return torch.arange(1, channels + 1) * _GOLDEN


def kept(keys_N: Tensor, stream: int, steps_C: Tensor, p: float) -> Tensor:
    """Which channels stay: bool ``(N, C)``, each False with probability ``p`` (to 24 bits)."""
    keys_N = _mixed(keys_N + _wrapped((stream + 1) * _GOLDEN))
    return _shifted(_mixed(keys_N[:, None] + steps_C), 64 - _BITS) >= round(p * 2**_BITS)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap around."""
    for bits, factor in _MIX:
        x = (x ^ _shifted(x, bits)) * factor
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Unsigned right shift."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _wrapped(x: int) -> int:
    """An integer as int64 arithmetic leaves it."""
    return (x + 2**63) % 2**64 - 2**63
