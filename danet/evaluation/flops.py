"""Operations, bytes and parameters of a row's network, counted on the meta device: nothing is computed.

The counts of the repository's rows are kept in ``operations.json`` beside this file, so that `danet doctor` need not
build 39 networks; others are counted when asked for. ``python -m danet.evaluation.flops`` writes the file again.

Convention: a multiplication and an addition are two operations; only convolutions and matrix products count (PyTorch's
FlopCounterMode); the heads that only training uses are included; the position attention counts as the explicit map,
``2 N^2 (D + C)``, whatever computes it. So mmsegmentation's R-50 D8 has 0.44, 0.92 and 4.6 TFLOP at 512x512, 512x1024
and 1024x2048. A training step counts as three forward passes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from danet.config.params import Params, load_params
from danet.config.row import Model, Row, Test
from danet.core.files import write_text
from danet.data.registry import ADAPTERS
from danet.evaluation.inference import Size, input_size, window_grid
from danet.models import build_model

NOMINAL: dict[str, Size] = {name: spec.image_size for name, spec in ADAPTERS.items()}
"""Size of a validation image: all of Cityscapes and CamVid, the commonest of VOC, a typical one of ADE20K."""
TRAINING_PASSES = 3
"""Forward passes that a training step counts as: forward, gradients of activations, gradients of weights."""


@dataclass(frozen=True)
class Operations:
    """What one forward pass does."""

    flop: int
    """Floating-point operations."""
    bytes: int
    """Bytes that the operations read and write if none is fused with another and no cache keeps anything between
    them."""


@dataclass(frozen=True)
class RowOperations:
    """What a row's network does to one image."""

    row: str
    parameters: int
    crop: Size
    crop_flop: int
    """A forward pass over a training crop."""
    image: Size
    """Of a validation image of the data set."""
    input: Size
    """What the network sees at a time: the resized image, or a window."""
    passes: int
    """Forward passes for one image in single-scale testing: windows, and mirror images."""
    test_flop: int
    """All of them."""


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums operations, and the tensors that operations read and write; views move nothing."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # slow to import

        super().__init__()  # type: ignore[no-untyped-call]
        self.formulas: Mapping[Any, Any] = flop_registry
        self.flop = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (formula := self.formulas.get(func._overloadpacket)) is not None:
            self.flop += int(formula(*args, **kwargs, out_val=out))
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not views:
            tensors = (t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor))
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


@contextmanager
def _quiet_default() -> Iterator[None]:
    """Building a model draws from the global generator, also on the meta device."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield


@lru_cache(maxsize=256)
def count(model: Model, num_classes: int, size: Size, batch: int = 1, all_heads: bool = True) -> Operations:
    """Operations of a forward pass over ``batch`` images of ``size``; bytes in float32."""
    with _quiet_default():
        network = build_model(model, num_classes, "reference").eval()
    # outside of the default device, which would slow every call down
    images = torch.empty(batch, 3, *size, device="meta")
    with torch.no_grad(), Counter() as counted:
        network(images, all_heads)
    return Operations(counted.flop, counted.bytes)


def parameters(model: Model, num_classes: int) -> int:
    """Learned numbers, all heads included."""
    with _quiet_default():
        return sum(parameter.numel() for parameter in build_model(model, num_classes).parameters())


KEPT = Path(__file__).with_name("operations.json")


@cache
def _kept() -> Mapping[str, Mapping[str, int]]:
    return dict(json.loads(KEPT.read_text(encoding="utf-8")))


def _name(model: Model, num_classes: int) -> str:
    """What the counts of a network depend on."""
    settings = model.model_dump(mode="json", exclude={"align_corners", "init", "backbone_init"})
    return json.dumps({**settings, "classes": num_classes}, sort_keys=True)


def _flop(model: Model, num_classes: int, size: Size) -> int:
    """Of a forward pass over one image, all heads included: as kept, else counted."""
    kept = _kept().get(_name(model, num_classes), {}).get(size_text(size))
    return count(model, num_classes, size).flop if kept is None else kept


def classes_of(row: Row, params: Params) -> int:
    """Classes of a row's data set."""
    return len(ADAPTERS[params.dataset(row.dataset).adapter].classes)


def forward_passes(test: Test, image: Size) -> tuple[int, Size]:
    """Forward passes for an image in single-scale testing (windows, mirror images), and what each of them sees."""
    resized = input_size(image, test)
    passes, seen = 1, resized
    if test.mode == "slide":
        assert test.window is not None
        assert test.stride is not None
        corners, seen, _ = window_grid(resized, test.window, test.stride, test.placement)
        passes = len(corners)
    return passes * (2 if test.flip else 1), seen


def count_row(row: Row, params: Params) -> RowOperations:
    """Operations of a row at its crop and at its test size (single scale)."""
    classes = classes_of(row, params)
    image = NOMINAL[params.dataset(row.dataset).adapter]
    passes, seen = forward_passes(row.test, image)
    crop = row.augment.crop_size
    kept = _kept().get(_name(row.model, classes), {}).get("parameters")
    return RowOperations(
        row=row.name,
        parameters=parameters(row.model, classes) if kept is None else kept,
        crop=crop,
        crop_flop=_flop(row.model, classes, crop),
        image=image,
        input=seen,
        passes=passes,
        test_flop=passes * _flop(row.model, classes, seen),
    )


def size_text(size: Size) -> str:
    """``512x1024``: height x width."""
    return f"{size[0]}x{size[1]}"


def recount(params: Params) -> dict[str, dict[str, int]]:
    """What ``operations.json`` must hold for these rows: parameters, and FLOP by the size of one image."""
    found: dict[str, dict[str, int]] = {}
    for row in params.rows.values():
        classes = classes_of(row, params)
        entry = found.setdefault(_name(row.model, classes), {})
        if not entry:
            entry["parameters"] = parameters(row.model, classes)
        _, seen = forward_passes(row.test, NOMINAL[params.dataset(row.dataset).adapter])
        for size in (row.augment.crop_size, seen):
            if size_text(size) not in entry:
                entry[size_text(size)] = count(row.model, classes, size).flop
    return found


if __name__ == "__main__":
    write_text(KEPT, json.dumps(recount(load_params()), indent=1) + "\n")
