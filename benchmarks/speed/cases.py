"""What is timed, and with which implementations."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import BaseModel

from danet.config.params import Params, load_params
from danet.config.published import published
from danet.config.row import Loss, Model, Numerics, Row, Size, Test
from danet.core.provenance import PACKAGE_ROOT, cpu_cores
from danet.evaluation import flops
from danet.evaluation.inference import input_size

SUBJECTS: Final = ("infer", "train", "attention", "confusion", "loading")
PEER: Final = "mmsegmentation"
LOADED: Final = (
    "mmseg-r50-d8-cityscapes-512x1024-40k", "mmseg-r50-d8-cityscapes-769x769-40k", "ssseg-r50-d8-cityscapes",
    "official-danet-r101-d8-cityscapes",
)  # fmt: skip
"""Rows whose training images are prepared, from pictures of Cityscapes' size."""
BUDGET: Final = 0.7
"""Of activations that compiled training keeps, in a variant."""


@dataclass(frozen=True)
class Implementation:
    """A way to compute a case."""

    name: str
    numerics: Numerics | None
    """None for the peer."""
    amp: str = "fp32"
    """The peer's precision; half is its AMP."""
    one_by_one: bool = False
    """As published: windows and mirror images of an image one after another, and not batched."""
    graph: bool = False
    """Prediction: the network as a CUDA graph."""

    @property
    def precision(self) -> str:
        """In which it computes."""
        return self.numerics.precision if self.numerics else self.amp


@dataclass(frozen=True)
class Case:
    """What is timed."""

    what: str
    network: str
    """As in a table: ``R-50 D8`` or a row's name."""
    size: Size
    batch: int = 1
    model: Model | None = None
    classes: int = 19
    loss: Loss = field(default_factory=lambda: Loss(aux=0.4, average="all"))
    backward: bool = False
    threads: int | None = None
    """None for all cores."""
    test: Test = field(default_factory=Test)
    """The protocol of ``infer``: how an image of ``size`` is tested at a single scale; by default whole, as it is."""

    @property
    def has_peer(self) -> bool:
        """Whether mmsegmentation has this network."""
        model = self.model
        return model is None or (
            model.method == "danet"
            and model.stem == "deep-32-32-64"
            and model.multi_grid is None
            and model.pam_bias
            and model.aux_channels == 256
            and not self.test.flip
            and self.test.placement != "pad"
        )

    def request(self, implementation: Implementation, device: str, warm_up: int) -> dict[str, Any]:
        """The case as a worker gets it."""
        fields = vars(self) | vars(implementation)
        return {
            **{name: each.model_dump() if isinstance(each, BaseModel) else each for name, each in fields.items()},
            "device": device,
            "threads": self.threads or cpu_cores(),
            "warm_up": warm_up,
            "input": input_size(self.size, self.test),
        }


@functools.cache
def repository() -> Params:
    """The rows of this repository's ``params.yaml``, read once."""
    return load_params(PACKAGE_ROOT / "params.yaml")


def profile(name: str, **changes: Any) -> Numerics:
    """A profile of numerics.yaml, with changes."""
    return repository().profiles[name].model_copy(update=changes)


def implementations(what: str, device: str, own: Numerics | None = None) -> list[Implementation]:
    """What a subject is measured with on a device; ``own`` adds the numerics of a row that no profile has."""
    if what == "confusion":
        return [Implementation("fast", Numerics()), Implementation(PEER, None)]
    if what == "loading":
        reference = Implementation("reference", Numerics(attention="reference"))
        return [Implementation("fast", Numerics()), Implementation(PEER, None), reference]
    fast = profile("fast")
    eager = profile("fast", compile=False)
    result = [  # what is worth most first: a rented GPU may be taken away
        Implementation("fast", fast),
        Implementation(f"{PEER} AMP", None, fast.precision if device == "cpu" else "fp16"),
        Implementation(PEER, None),
        Implementation("fast, not compiled", eager),
        Implementation("published", profile("published")),
        Implementation("reference", Numerics(attention="reference"), one_by_one=True),
    ]
    if device == "cpu":
        result[0] = Implementation("fast fp32", profile("fast", compile=False, precision="fp32"))
        if not has_fast_bf16():
            result = [each for each in result if each.precision == "fp32"]
    elif what == "infer":
        result.append(Implementation("fast, graph", fast, graph=True))
    elif what == "train":
        budget = profile("fast", memory_budget=BUDGET)
        result.append(Implementation(f"fast, memory budget {BUDGET}", budget))
        result.append(Implementation("fp16, not compiled", profile("fast", compile=False, precision="fp16")))
    if own is not None and own not in [each.numerics for each in result]:
        result.insert(1, Implementation("row's numerics", own))
    if what == "attention":
        return [each for each in result if each.numerics is None or not each.numerics.compile]
    return result


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 by itself (AVX512-BF16 or AMX), so that it is worth a column."""
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "avx512_bf16" in known or "amx_bf16" in known


def shapes(device: str, what: Iterable[str]) -> list[Case]:
    """The standing grid: R-50 and R-101, strides 8 and 16, the sources' sizes; on a CPU a part that takes minutes."""
    result: list[Case] = []
    sizes = ((512, 512), (512, 1024), (769, 769), (1024, 2048))
    for subject in what:
        if subject == "attention":
            result += [Case("attention", "PAM", (128, 128), backward=True), Case("attention", "PAM", (128, 256))]
        elif subject == "confusion":
            result.append(Case("confusion", "19 classes", (1024, 2048), threads=1))
        elif subject == "loading":
            result += [_loading(repository().row(name)) for name in LOADED]
        else:
            batch, networks = 2 if subject == "train" else 1, ((50, 8), (101, 8), (50, 16), (101, 16))
            grid = [danet(subject, *network, size, batch) for size in sizes for network in networks]
            result += [case for case in grid if device != "cpu" or _for_cpu(case)]
            if subject == "train":
                size, batch = ((256, 256), 2) if device == "cpu" else ((512, 1024), 8)
                result.append(danet("train", 50, 8, size, batch))
    return result


def _loading(row: Row) -> Case:
    return Case("loading", row.name, row.augment.crop_size, 8, row.model, threads=1)


def _for_cpu(case: Case) -> bool:
    small, wide, whole = (case.size == size for size in ((512, 512), (512, 1024), (1024, 2048)))
    if case.what == "train":
        return case.network == "R-50 D8" and small
    return small or (wide and case.network in ("R-50 D8", "R-50 D16")) or (whole and case.network == "R-50 D8")


def danet(what: str, depth: int, stride: int, size: Size, batch: int = 1, **more: Any) -> Case:
    """A case of mmsegmentation's DANet, which aligns corners at 769x769 alone."""
    changes = {"backbone": f"resnet{depth}", "output_stride": stride, "align_corners": size == (769, 769)}
    model = repository().row(LOADED[0]).model.model_copy(update=changes)
    return Case(what, f"R-{depth} D{stride}", size, batch, model, **more)


def row_cases(row: Row, params: Params, what: Iterable[str]) -> list[Case]:
    """A row's crop in training and its protocol in testing, of a whole image with all its windows.

    A training step has the images of a GPU in the published training, where its memory is published (2 on
    Cityscapes, 4 else), or else 2 (CPU) or the row's whole batch.
    """
    counted, classes = flops.count_row(row, params), flops.classes_of(row, params)
    result = []
    for subject in what:
        if subject == "train":
            found = published(row.name).images_per_gpu
            images = found or (row.schedule.batch_size if torch.cuda.is_available() else 2)
            # the parts of another batch would not be the source's
            loss = row.loss.model_copy(update={"replicas": 1})
            result.append(Case("train", row.name, counted.crop, images, row.model, classes, loss))
        elif subject == "infer":
            result.append(Case("infer", row.name, counted.image, 1, row.model, classes, test=row.test))
        elif subject == "attention":
            cells = tuple(-(-side // row.model.output_stride) for side in counted.input)
            result.append(Case("attention", row.name, (cells[0], cells[1])))
        elif subject == "confusion":
            result.append(Case("confusion", row.name, counted.image, classes=classes, threads=1))
        else:
            result.append(_loading(row))
    return result
