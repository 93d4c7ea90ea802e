"""What the null CUDA device (a stand-in for the driver whose kernels compute nothing) asks of those who run on it.

``DANET_NULL_CUDA`` names its folder. PyTorch's dispatcher, allocator, streams, kernel choice and compiler are real
there; every number and every time is garbage.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch

from danet.core.errors import ConfigError

VARIABLE = "DANET_NULL_CUDA"


def command() -> list[str | Path]:
    """What a Python command begins with to run on the null device; empty where none is named.

    Raises:
        ConfigError: if the variable names no such tool.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        return []
    tool = Path(folder).resolve() / "null-cuda"
    if not tool.exists():
        raise ConfigError(f"{VARIABLE}={folder}: holds no null-cuda; unset it, or give the folder of the tool")
    return [tool]


def running() -> bool:
    """Whether this process runs on the null device."""
    return importlib.util.find_spec("null_cuda") is not None


PATIENCE = 12 if running() else 1
"""Times as long as a time limit: the null device's kernels are compiled by a laptop."""


def blind() -> None:
    """Lets training and prediction go on though losses and logits are garbage."""
    from danet.evaluation.inference import Predictor
    from danet.training.loop import Trainer

    settle = Trainer._settle

    def settled(self: Trainer) -> None:
        for losses in self._pending:
            losses.update({name: torch.ones(()) for name in losses})
        settle(self)

    Trainer._settle = settled  # type: ignore[method-assign]
    Trainer._check_finite = lambda self: None  # type: ignore[method-assign]
    Predictor.check = lambda self, what: None  # type: ignore[method-assign]
