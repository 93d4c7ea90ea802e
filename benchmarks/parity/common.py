"""What both sides of a comparison share: deterministic weights, inputs, images and labels.

Weights are a function of a case's name and of the parameter's name in the *peer's* state dict, so they need not be
stored: the peer writes the list of its keys and shapes, and our side makes the same numbers again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

ATTENTION_SCALES = {"pam": 0.3, "cam": 0.2}
"""gamma of the two attention modules; their initial 0 would hide the modules."""

TRAININGS: dict[str, dict[str, int]] = {
    "full": {"iterations": 20, "batch": 4, "height": 25, "width": 33},
    "small": {"iterations": 2, "batch": 2, "height": 33, "width": 41},
}
"""Training runs of every source, at its recipe's learning rates; ``small`` is CI's.

As many images as the official code has processes, each of which takes its own mean.
"""


def generator(*key: object) -> np.random.Generator:
    """A generator that depends on nothing but ``key``."""
    digest = hashlib.sha256(json.dumps([str(part) for part in key]).encode()).digest()
    return np.random.default_rng(list(digest[:16]))


def weight(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of entry ``name`` of a peer's state dict: sizes that keep activations of order 1 through 101 layers.

    Cases with "training" in their name start as training does: gates 0, norms the identity and the last norm of each
    residual branch 0 (mmsegmentation's ``zero_init_residual``). From arbitrary weights twenty steps at the recipe's
    rate are chaotic: two runs of one and the same program that differ by a rounding error end 50% apart.
    """
    rng, leaf, start = generator(case, name), name.rsplit(".", 1)[-1], "training" in case
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "V_count_buffer":
        return np.ones(shape, np.float64)
    if shape in ((), (1,)) and ("gamma" in name or "scale" in name):
        scale = ATTENTION_SCALES["cam" if "cam" in name or ".sc." in name else "pam"]
        first = float(name.endswith("clgd.gamma"))  # the gate of DRANet's decoder starts open
        return np.full(shape, first if start else scale, np.float32)
    value: np.ndarray
    if leaf in {"running_mean", "bias"}:
        value = np.zeros(shape) if start else 0.1 * rng.standard_normal(shape)
    elif leaf == "running_var":
        value = np.ones(shape) if start else rng.uniform(0.5, 1.5, shape)
    elif len(shape) <= 1:
        last = ".bn3." in name
        value = np.full(shape, float(not last)) if start else (0.3 if last else 1.0) * rng.uniform(0.7, 1.3, shape)
    else:
        spread = np.sqrt(1.5 / np.prod(shape[1:]))
        if start:
            classifier = shape[2:] == (1, 1) and shape[0] in (19, 21)
            spread = 0.01 if classifier else np.sqrt(2 / (shape[0] * np.prod(shape[2:])))
        value = spread * rng.standard_normal(shape, np.float32)
    return value.astype(np.float32)


def weights(case: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """The value of every entry of a peer's state dict, from its shape."""
    return {key: torch.from_numpy(np.asarray(weight(case, key, tuple(shape)))) for key, shape in shapes.items()}


def network_input(case: str, batch: int, height: int, width: int) -> np.ndarray:
    """Smooth normalised images, N x 3 x height x width, float32."""
    rng = generator(case, "input")
    coarse = rng.standard_normal((batch, 3, 6, 7)).astype(np.float32)
    fine = rng.standard_normal((batch, 3, height, width)).astype(np.float32)
    rows = np.linspace(0, 5, height).astype(int)
    columns = np.linspace(0, 6, width).astype(int)
    return (coarse[:, :, rows][:, :, :, columns] + 0.3 * fine).astype(np.float32)


def network_label(case: str, batch: int, height: int, width: int, classes: int) -> np.ndarray:
    """Labels in blocks, N x height x width, int64, about a tenth of them 255 (ignored)."""
    rng = generator(case, "label")
    coarse = rng.integers(0, classes, (batch, 5, 6))
    label = coarse[:, np.linspace(0, 4, height).astype(int)][:, :, np.linspace(0, 5, width).astype(int)].copy()
    label[rng.random(label.shape) < 0.1] = 255
    result: np.ndarray = label.astype(np.int64)
    return result


def training_batch(case: str, iteration: int, run: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images (float64) and labels of an iteration of a ``run`` of :data:`TRAININGS`.

    Eight classes show in the colours, so that there is something to learn: from labels that are noise the gradient is
    noise, and rounding errors grow tenfold every few steps.
    """
    batch, height, width = run["batch"], run["height"], run["width"]
    rng = generator(case, "batch", iteration)
    bits = rng.integers(0, 2, (batch, 3, 4, 5))
    rows, columns = np.linspace(0, 3, height).round().astype(int), np.linspace(0, 4, width).round().astype(int)
    bits = bits[:, :, rows][:, :, :, columns]
    image = (2.0 * bits - 1 + 0.3 * rng.standard_normal((batch, 3, height, width))).astype(np.float32)
    label = (bits * np.array([1, 2, 4])[None, :, None, None]).sum(1)
    label[rng.random(label.shape) < 0.1] = 255
    return image.astype(np.float64), np.ascontiguousarray(label, dtype=np.int64)


def photograph(case: str, height: int, width: int) -> np.ndarray:
    """A BGR image, height x width x 3, uint8: gradients, flat regions, saturated spots and noise."""
    rng = generator(case, "photograph")
    coarse = torch.from_numpy(rng.integers(0, 256, (9, 12, 3))).double().permute(2, 0, 1)
    smooth = interpolate(coarse[None], (height, width), mode="bilinear", align_corners=True)[0]
    image = smooth.permute(1, 2, 0).numpy() + rng.normal(0, 12, (height, width, 3))
    image[: height // 6, : width // 6] = (255, 255, 255)
    image[-height // 6 :, -width // 6 :] = 0
    image[: height // 8, -width // 8 :] = (128, 128, 128)
    mixed: np.ndarray = np.clip(image, 0, 255).astype(np.uint8)
    return mixed


def annotation(case: str, height: int, width: int, classes: int, dominant: float = 0.6) -> np.ndarray:
    """A label map, height x width, uint8, in which one class covers about ``dominant`` of the blocks; 5% are 255."""
    rng = generator(case, "annotation")
    coarse = rng.integers(0, classes, (8, 10))
    coarse[rng.random((8, 10)) < dominant] = 1
    coarse[rng.random((8, 10)) < 0.05] = 255
    rows, columns = np.linspace(0, 7, height).round().astype(int), np.linspace(0, 9, width).round().astype(int)
    label: np.ndarray = coarse[rows][:, columns].astype(np.uint8)
    return label


METRIC_CLASSES = 19


def metric_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions and labels, uint8, in which two classes are absent, pixels are ignored, and one image is empty."""
    rng = generator("metrics")
    present = [c for c in range(METRIC_CLASSES) if c not in (7, 12)]
    pairs = []
    for index, (height, width) in enumerate([(37, 53), (64, 48), (20, 20), (50, 70)]):
        label = rng.choice(present, (height, width)).astype(np.uint8)
        prediction = np.where(rng.random((height, width)) < 0.7, label, rng.choice(present, (height, width)))
        label[rng.random((height, width)) < 0.1] = 255
        if index == 2:
            label[:] = 255  # nothing labelled
        if index == 3:
            prediction[:5] = 12  # predicted, never labelled: IoU 0, not absent
        pairs.append((prediction.astype(np.uint8), label))
    return pairs


def projections(name: str, value: np.ndarray) -> np.ndarray:
    """Norm and four random projections of a tensor: enough to notice any difference, small enough to store."""
    flat = value.astype(np.float64).ravel()
    signs = generator("projection", name).choice([-1.0, 1.0], (4, flat.size)) if flat.size <= 65536 else None
    if signs is None:  # folded first, so that millions of signs are not drawn
        padded = np.resize(flat, -(-flat.size // 4096) * 4096)
        padded[flat.size :] = 0
        pattern = generator("projection", name).choice([-1.0, 1.0], (4, 4096))
        rotation = generator("rotation", name).choice([-1.0, 1.0], padded.size // 4096)
        signs_dot = pattern @ (padded.reshape(-1, 4096) * rotation[:, None]).sum(0)
    else:
        signs_dot = signs @ flat
    return np.concatenate([[np.linalg.norm(flat)], signs_dot])


def save(folder: Path, name: str, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    """Writes ``folder/name.npz`` with ``meta`` (JSON) beside the arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", __meta__=np.array(json.dumps(meta)), **arrays)


def training_arrays(losses: Any, rates: Any, state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What is stored of a training run: its curves, and projections of the final state."""
    final = {f"state/{key}": projections(key, value.numpy()) for key, value in state.items()}
    return {"loss": np.array(losses), "lr": np.array(rates), **final}


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what :func:`save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta: dict[str, Any] = json.loads(str(arrays.pop("__meta__")))
    return arrays, meta
