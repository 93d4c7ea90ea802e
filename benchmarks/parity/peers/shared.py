"""What both peers do alike. Imported in the peers' environment."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.parity import common
from benchmarks.parity.peers import draws


def keys(model: Any) -> dict[str, list[int]]:
    """Shape of every entry of the state dict."""
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def prepared(model: Any, case: str | None, dropout: bool = False) -> Any:
    """The network with the shared weights of a case, if there is one; dropout off unless asked for."""
    if case is not None:
        weights = {key: common.weight(case, key, tuple(shape)) for key, shape in keys(model).items()}
        model.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in weights.items()})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout2d) and not dropout:
            module.p = 0.0
    return model


def initialisation(folder: Path, name: str, build: Callable[[], Any], versions: dict[str, str]) -> None:
    """Mean and standard deviation of every parameter over four seeds, as the peer leaves them."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for seed in range(4):
        torch.manual_seed(seed)
        model = build()
        for key, value in model.named_parameters():
            data = value.detach().double()
            rows.setdefault(key, []).append((data.mean().item(), data.std(correction=0).item()))
    common.save(folder, f"init-{name}", {key: np.array(each) for key, each in rows.items()}, {"versions": versions})


def drawn(log: list[tuple[str, Any]], flip: str, mirrors: Callable[[Any], bool]) -> dict[str, Any]:
    """The decisions of a training pipeline; ``flip`` is the function that decides about the mirror image."""
    values = [value for _, value in log]
    ratio = 0.5 + 1.5 * values.pop(0)
    split = [function for function, _ in log].index(flip) - 1
    crops = [values[2 * i : 2 * i + 2] for i in range(split // 2)]
    values = values[split:]
    mirrored = mirrors(values.pop(0))
    found = {"ratio": ratio, "crops": crops, "flip": mirrored, "photometric": draws.photometric(values)}
    assert not values, values
    return found


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
