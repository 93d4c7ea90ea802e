"""How a step is computed: precision, layout, determinism, compilation, and the seed of every step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from danet.config.row import Numerics
from danet.models.dropout import Dropout2d

_STEP = 0x73746570
_INIT = 0x696E6974

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def configured(numerics: Numerics, *, training: bool = True) -> Iterator[None]:
    """Sets PyTorch's global switches as the row says, and puts them back.

    Crops have one size, so in training cuDNN may search for the fastest kernels, except in deterministic mode, in which
    every operation is one that gives the same bits each time (or raises). Without it, on CUDA, the resize and the loss
    add up in varying order, and cuDNN may choose other kernels in each run; on the CPU runs repeat either way.

    Images to predict have many sizes, and each would start a new search: without ``training`` there is none. cuDNN's
    kernels are the deterministic ones where the row says so, and other operations are left as they are.

    TF32 is for convolutions alone, PyTorch's default and so the sources': the energies of CAM and clustering, whose
    small differences matter, are products of matrices and stay float32.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    precisions = [backend.fp32_precision for backend in _BACKENDS]
    budget = _memory_budget(numerics.memory_budget if numerics.compile else None)
    try:
        _set_precisions("ieee", *["tf32" if numerics.tf32 else "ieee"] * 2)
        cudnn.benchmark, cudnn.deterministic = training and not numerics.deterministic, numerics.deterministic
        if training:
            if numerics.deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to repeat itself
            _use_deterministic(numerics.deterministic)
        yield
    finally:
        _memory_budget(budget)
        _set_precisions(*precisions)
        cudnn.benchmark, cudnn.deterministic = before[:2]
        _use_deterministic(before[2])


_CUDNN: Any = torch.backends.cudnn
_BACKENDS: tuple[Any, ...] = torch.backends.cuda.matmul, _CUDNN.conv, _CUDNN.rnn


def _set_precisions(matmul: str, convolution: str, rnn: str) -> None:
    """By both of PyTorch's interfaces: the compiler reads the old one, which raises where the new one alone was set."""
    _BACKENDS[0].allow_tf32, _CUDNN.allow_tf32 = matmul == "tf32", convolution == "tf32"
    for backend, precision in zip(_BACKENDS, (matmul, convolution, rnn), strict=True):
        backend.fp32_precision = precision


def _memory_budget(share: float | None) -> float | None:
    """Sets what the compiler keeps for backward and returns what it was; None leaves the compiler unimported."""
    if share is None:
        return None
    from torch._functorch import config

    before, config.activation_memory_budget = config.activation_memory_budget, share
    return before


def _use_deterministic(mode: bool) -> None:
    """Changes PyTorch's mode if need be: each call imports the compiler, which takes seconds."""
    if torch.are_deterministic_algorithms_enabled() != mode:
        torch.use_deterministic_algorithms(mode)


def autocast(numerics: Numerics, device: torch.device) -> torch.autocast:
    """Autocast to the row's precision; does nothing for fp32."""
    return torch.autocast(device.type, dtype=DTYPES[numerics.precision], enabled=numerics.precision != "fp32")


def gradient_scaler(numerics: Numerics, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling for fp16, whose gradients would underflow; does nothing for fp32 and bf16."""
    return torch.amp.GradScaler(device.type, enabled=numerics.precision == "fp16")


def seed_initialisation(seed: int) -> None:
    """Seeds PyTorch before a model is built: the same weights in every process."""
    torch.manual_seed(_mixed(seed, _INIT))


def seed_step(model: nn.Module, seed: int, positions: Sequence[int], device: torch.device | None = None) -> None:
    """Seeds a forward pass: each sample's dropout by its global position, anything else by the first one's.

    So the state of no generator has to be kept: a run continues to the bit from any iteration, and a sample's dropout
    is the same whichever process and micro-batch it is in.
    """
    torch.manual_seed(_mixed(seed, positions[0], _STEP))
    layers = [module for module in model.modules() if isinstance(module, Dropout2d)]
    if layers:
        keys_N = sent([_mixed(seed, position, _STEP) for position in positions], device or torch.device("cpu"))
        for number, layer in enumerate(layers):
            layer.draw_for(keys_N, number)


def sent(numbers: Sequence[int], device: torch.device) -> Tensor:
    """An int64 tensor on a device, without the wait for all its work that ``torch.tensor(..., device=)`` is."""
    tensor = torch.tensor(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _mixed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
