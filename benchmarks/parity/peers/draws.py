"""Records what a peer's augmentation draws from numpy's global generator, so that ours can replay it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

FUNCTIONS = ("randint", "uniform", "random_sample", "rand", "choice")


@contextmanager
def record(seed: int) -> Iterator[list[tuple[str, Any]]]:
    """Seeds numpy and yields the list that fills with (function, result)."""
    log: list[tuple[str, Any]] = []
    originals = {name: getattr(np.random, name) for name in FUNCTIONS}

    def wrap(name: str) -> Any:
        def drawn(*args: Any, **kwargs: Any) -> Any:
            value = originals[name](*args, **kwargs)
            log.append((name, value.item() if hasattr(value, "item") else value))
            return value

        return drawn

    np.random.seed(seed)
    for name in FUNCTIONS:
        setattr(np.random, name, wrap(name))
    try:
        yield log
    finally:
        for name, function in originals.items():
            setattr(np.random, name, function)


def photometric(values: list[Any]) -> dict[str, Any]:
    """The decisions of PhotoMetricDistortion (both toolboxes draw in the same order); consumes them from ``values``."""
    result: dict[str, Any] = {"brightness": None, "contrast": None, "saturation": None, "hue": None}

    def optional(name: str) -> None:
        if values.pop(0):
            result[name] = values.pop(0)

    optional("brightness")
    result["contrast_first"] = bool(values.pop(0))
    if result["contrast_first"]:
        optional("contrast")
    optional("saturation")
    optional("hue")
    if not result["contrast_first"]:
        optional("contrast")
    return result
