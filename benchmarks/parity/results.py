"""One measured difference, and the bound that the harness promises."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

ASPECTS = {
    # aspect: (what is measured, bound)
    "parameters": ("number of parameters, difference", 0.0),
    "logits": ("largest difference / largest logit", 1e-4),
    "statistics": ("batch-norm and cluster buffers after a training step, largest relative difference", 1e-4),
    "loss": ("relative difference", 1e-4),
    "gradients": ("norm of the difference / norm of the gradient, worst parameter", 1e-4),
    "initialisation": ("mean and standard deviation, in standard errors, worst parameter", 5.0),
    "learning rate": ("largest difference", 1e-9),
    "augmentation, pixels": ("largest difference of uint8 values", 0.0),
    "augmentation, labels": ("pixels that differ", 0.0),
    "augmentation, normalised": ("largest difference", 2e-6),
    "inference, scores": ("largest difference / largest score", 1e-5),
    "inference, argmax": ("share of pixels that differ", 1e-4),
    "metrics": ("largest difference of IoU, accuracy and means", 1e-12),
    "training, loss curve": ("largest relative difference in 20 iterations", 1e-3),
    "training, weights": ("norm of the difference / norm of the weights, all parameters together", 1e-3),
    "training in float64, loss curve": ("largest relative difference in 20 iterations", 1e-9),
    "training in float64, weights": ("norm of the difference / norm of the weights, all parameters together", 1e-9),
    "training in float64, single tensors": (
        "norm of the difference / its norm, worst parameter or buffer",
        1e-9,
    ),
    "training, learning rate": ("largest difference", 1e-9),
}


@dataclass(frozen=True)
class Result:
    """A case's largest difference in one aspect."""

    source: str
    aspect: str
    case: str
    measured: float
    against: str
    note: str = ""
    bound: float | None = None
    noise: float | None = None
    """What the difference is between two runs of our own program that start one unit in the last place apart."""

    @property
    def limit(self) -> float:
        """The bound that applies."""
        return ASPECTS[self.aspect][1] if self.bound is None else self.bound

    @property
    def passed(self) -> bool:
        """Whether the bound holds; NaN does not."""
        return self.measured <= self.limit


def measure(check: Callable[[], Iterator[Result]]) -> tuple[list[Result], float]:
    """A check's results and its seconds, in one thread; if it raises, a broken bound with the error as its note.

    Not in ``__main__``, from which a spawned process can import nothing.
    """
    torch.set_num_threads(1)  # as the peers: sums in the same order
    start = time.monotonic()
    try:
        results = list(check())
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        results = [Result("all", "metrics", "a check failed to run", float("inf"), "-", message)]
    return results, time.monotonic() - start
