"""What both peers do alike. Imported in the peers' environment, and in ours for what both sides do."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.parity import common

DRAWS = ("randint", "uniform", "random_sample", "rand", "choice")
"""Functions of numpy's global generator that the peers draw by."""


def keys(model: Any) -> dict[str, list[int]]:
    """Shape of every entry of the state dict."""
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def prepared(model: Any, case: str | None, dropout: bool = False) -> Any:
    """The network with the shared weights of a case, if there is one; dropout off unless asked for."""
    if case is not None:
        model.load_state_dict(common.weights(case, keys(model)))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout2d) and not dropout:
            module.p = 0.0
    return model


def save_step(
    folder: Path, case: str, model: Any, heads: dict[str, Any], loss: Any, shape: list[int], facts: dict[str, Any]
) -> None:
    """Writes logits by ``MODE_HEAD``, and after a backward pass the loss, gradients and batch-norm statistics."""
    loss.backward()
    gradients = {key: value.grad for key, value in model.named_parameters()}
    statistics = {k: v for k, v in model.named_buffers() if k.endswith(("running_mean", "running_var"))}
    meta = {**facts, "shape": shape, "parameters": sum(p.numel() for p in model.parameters())}
    common.save(folder, f"model-{case}", step_arrays(heads, loss, gradients, statistics), meta)


def step_arrays(
    heads: dict[str, Any], loss: Any, gradients: dict[str, Any], statistics: dict[str, Any]
) -> dict[str, np.ndarray]:
    """What is stored of a step: logits and loss, projections of gradients and statistics by ``KIND/KEY``."""
    arrays = {name: value.detach().numpy() for name, value in {**heads, "loss": loss}.items()}
    for kind, tensors in (("gradient", gradients), ("statistic", statistics)):
        arrays |= {f"{kind}/{key}": common.projections(key, value.numpy()) for key, value in tensors.items()}
    return arrays


def starts(build: Callable[[], Any], first_seed: int = 0) -> dict[str, tuple[float, float, int]]:
    """Mean, standard deviation and number of the values of each parameter as it starts, over four seeds."""
    found: dict[str, list[tuple[float, float, int]]] = {}
    for seed in range(4):
        torch.manual_seed(first_seed + seed)
        for key, value in build().named_parameters():
            values = value.detach().double()
            found.setdefault(key, []).append((values.mean().item(), values.std(correction=0).item(), values.numel()))
    return {key: (*np.mean([seen[:2] for seen in each], 0), 4 * each[0][2]) for key, each in found.items()}


def save_starts(folder: Path, source: str, build: Callable[[], Any], versions: dict[str, str]) -> None:
    """Writes how the peer's own initialisation leaves the network."""
    found = {key: np.array(values) for key, values in starts(build).items()}
    common.save(folder, f"init-{source}", found, {"versions": versions})


@contextmanager
def recorded(seed: int) -> Iterator[list[tuple[str, Any]]]:
    """Seeds numpy and yields the list that fills with what is drawn from its global generator: (function, result)."""
    log: list[tuple[str, Any]] = []

    def recording(name: str, original: Callable[..., Any]) -> Any:
        def draw(*args: Any, **kwargs: Any) -> Any:
            value = original(*args, **kwargs)
            log.append((name, value.item() if hasattr(value, "item") else value))
            return value

        return draw

    np.random.seed(seed)
    with mock.patch.multiple(np.random, **{name: recording(name, getattr(np.random, name)) for name in DRAWS}):
        yield log


def drawn(log: list[tuple[str, Any]], flip: str, mirrors: Callable[[Any], bool]) -> dict[str, Any]:
    """The decisions of a training pipeline; ``flip`` is the function that decides about the mirror image."""
    values = [value for _, value in log]
    ratio = 0.5 + 1.5 * values.pop(0)
    split = [function for function, _ in log].index(flip) - 1
    crops = [values[2 * i : 2 * i + 2] for i in range(split // 2)]
    values = values[split:]
    mirrored = mirrors(values.pop(0))
    found = {"ratio": ratio, "crops": crops, "flip": mirrored, "photometric": photometric(values)}
    assert not values, values
    return found


def photometric(values: list[Any]) -> dict[str, Any]:
    """The decisions of PhotoMetricDistortion (both toolboxes draw in the same order); consumes them from ``values``."""
    result: dict[str, Any] = {"brightness": None, "contrast": None, "saturation": None, "hue": None}

    def optional(name: str) -> None:
        if values.pop(0):
            result[name] = values.pop(0)

    optional("brightness")
    first = result["contrast_first"] = bool(values.pop(0))
    for name in ("contrast", "saturation", "hue") if first else ("saturation", "hue", "contrast"):
        optional(name)
    return result


def sample_arrays(seed: int, image: np.ndarray, label: np.ndarray, final: np.ndarray) -> dict[str, Any]:
    """A sample as it is stored: pixels and labels, and of the normalised image projections and a corner."""
    return {
        f"{seed}/image": image,
        f"{seed}/label": label.astype(np.uint8),
        f"{seed}/projection": common.projections("final", final),
        f"{seed}/corner": final[:, -2:, -2:],
    }


def save_scores(folder: Path, case: str, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    """Writes scores in float32, whose rounding is far below their bound, and classes as bytes."""
    kinds = {key: np.uint8 if key.endswith("_class") else np.float32 for key in arrays}
    common.save(folder, f"inference-{case}", {key: arrays[key].astype(kinds[key]) for key in arrays}, meta)


def main(package: str, steps: Sequence[Callable[[Path], None]]) -> None:
    """Runs every step into the folder of the first argument."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        start = time.monotonic()
        step(folder)
        print(f"{package}: {step.__name__}, {time.monotonic() - start:.0f} s", flush=True)
