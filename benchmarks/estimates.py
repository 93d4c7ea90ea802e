"""What each part of the fast path should bring on one H200, by operations and bytes: writes reports/estimates.md.

    python -m benchmarks.estimates

The plain network in bfloat16, with the explicit attention map in float32 and PyTorch's resize and cross-entropy, runs
on fake tensors: every operation is seen, and nothing is computed. An operation takes as long as its multiplications or
its bytes, whichever is longer (:data:`FLOPS`, :data:`BYTES`); so nothing can be faster, and no launch costs anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from benchmarks.speed.cases import Case, danet
from danet.core.files import write_text
from danet.core.provenance import PACKAGE_ROOT
from danet.evaluation.flops import Counter, size_text
from danet.models import build_model
from danet.models.attention import HEAD
from danet.models.heads import KEY_CHANNELS, WIDTH
from danet.models.resnet import CHANNELS
from danet.report.markdown import Page
from danet.results.speed import read
from danet.training.losses import segmentation_losses

FLOPS: Final = 553e12
"""Operations a second in bfloat16: what an H200 sustains."""
FLOPS_FP32: Final = FLOPS / 10
"""Of the loss's resizes, products of float32 matrices without TF32. An H100 was measured at 51e12."""
BYTES: Final = 4e12
"""Bytes a second, read and written."""
HALF: Final = 2
"""Bytes of a number."""
CASES: Final = (
    *(danet("train", depth, 8, (512, 1024), batch) for depth in (50, 101) for batch in (2, 8)),
    *(danet("infer", depth, 8, (1024, 2048)) for depth in (50, 101)),
)
GROUPS: Final = ("convolutions", "normalisation", "attention map", "resize, loss", "optimizer", "all others")


def seconds(flop: float, moved: float, rate: float = FLOPS) -> float:
    """The longer of computing and moving."""
    return max(flop / rate, moved / BYTES)


@dataclass
class Work:
    """Of one step or prediction."""

    flop: float = 0.0
    bytes: float = 0.0
    launches: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By group."""

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.seconds.values())


class _Recorder(Counter):  # type: ignore[no-untyped-call]
    """Adds up the time of every operation by its group."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        height, width = case.size
        self.map = case.batch * (height * width // 64) ** 2
        self.resized = case.batch * case.classes * height * width
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flop, moved = self.flop, self.bytes
        out = super().__torch_dispatch__(func, types, args, kwargs)
        flop, moved = self.flop - flop, self.bytes - moved
        if moved:
            sizes = {x.numel() for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
            name = str(func)
            if self.map in sizes:
                group = "attention map"
            elif self.resized in sizes:
                group = "resize, loss"
            elif "convolution" in name:
                group = "convolutions"
            else:
                group = "normalisation" if "batch_norm" in name else "all others"
            self.work.seconds[group] += seconds(flop, moved)
            self.work.flop, self.work.bytes = self.work.flop + flop, self.work.bytes + moved
            self.work.launches += 1
        return out


def plain(case: Case) -> Work:
    """A training step, or a prediction up to the label map, operation by operation."""
    assert case.model is not None
    with FakeTensorMode():
        torch.set_default_dtype(torch.bfloat16)  # parameters of fake tensors cannot be cast
        model = build_model(case.model, case.classes, "reference").train(case.what == "train")
        torch.set_default_dtype(torch.float32)
        images = torch.empty(case.batch, 3, *case.size, dtype=torch.bfloat16)
        labels = torch.zeros(case.batch, *case.size, dtype=torch.uint8)
        recorder = _Recorder(case)
        with recorder:
            if case.what == "train":
                outputs = model(images, all_heads=True)
                losses = segmentation_losses(outputs, labels, case.loss, align_corners=case.model.align_corners)
                torch.autograd.backward(losses["loss"])
            else:
                with torch.no_grad():
                    logits = model(images, all_heads=False)["main"]
                    torch.nn.functional.interpolate(logits, case.size, mode="bilinear").argmax(1)
    work = recorder.work
    if case.what == "train":
        moved = sum(p.numel() for p in model.parameters()) * 4 * 5  # weight, gradient, momentum; both written
        work.bytes += moved
        work.seconds["optimizer"] += moved / BYTES
    return work


def parts(case: Case, work: Work) -> Iterator[tuple[str, float]]:
    """Each part of the fast path, and the seconds that it takes off."""
    training, batch, (height, width) = case.what == "train", case.batch, case.size
    positions, heads = height * width // 64, WIDTH // HEAD
    keys = heads * KEY_CHANNELS  # each head computes the scores again
    flop = 2.0 * batch * positions**2 * (keys + WIDTH)
    moved = 2.0 * batch * positions * (keys + WIDTH) * HALF
    took = seconds(flop, moved)
    if training:  # scores again, and the gradients of q, k, scores and v
        took += seconds(2.0 * batch * positions**2 * (3 * keys + 2 * WIDTH), 3 * moved)
    yield f"attention kernel, {heads} heads of {HEAD}", work.seconds["attention map"] - took
    if training:
        logits = 4 * batch * case.classes  # four heads
        resizes = 2 * 2.0 * logits * (positions * width + height // 8 * width * height)
        in_blocks = seconds(resizes, 2 * 4.0 * logits * positions, FLOPS_FP32)
        yield "loss in blocks, with its gradient", work.seconds["resize, loss"] - in_blocks
        features = batch * positions * CHANNELS[3] * HALF
        yield "`pam_in` and `cam_in` as one convolution (not done): one sum of gradients", 3 * features / BYTES
    else:
        yield "normalisation folded into convolutions", work.seconds["normalisation"]
    yield "compile: what is left element by element joins other passes, at most", work.seconds["all others"]


def measured() -> dict[tuple[str, str, int], str]:
    """Images per second of ``fast`` on GPUs, by subject, network and batch, at the sizes of :data:`CASES`."""
    found = {}
    for document, lines in read(PACKAGE_ROOT / "reports" / "benchmarks"):
        for line in lines:
            size = int(line["height"]), int(line["width"])
            known = any((line["what"], size) == (case.what, case.size) for case in CASES)
            if document["kind"] != "cpu" and line["implementation"] == "fast" and known and line["images_per_second"]:
                rate = f"{float(line['images_per_second']):.1f} ({document['device']})"
                found[line["what"], line["network"], int(line["batch"])] = rate
    return found


def page() -> str:
    """The Markdown page."""
    works = [plain(case) for case in CASES]
    gains = [dict(parts(case, work)) for case, work in zip(CASES, works, strict=True)]
    rates = measured()
    titles = [
        f"{'training' if case.what == 'train' else 'prediction'} {case.network}, {case.batch} x {size_text(case.size)}"
        for case in CASES
    ]
    out = Page("Written by `python -m benchmarks.estimates`; do not edit.")
    out.heading(1, "Estimates for one H200")
    out.text(
        f"Nothing here is measured but the last column of the first table. At {FLOPS / 1e12:.0f} TFLOP/s in bfloat16 "
        f"and {BYTES / 1e12:.0f} TB/s, every operation of the plain network (counted on fake tensors, its attention "
        "map in float32) takes the longer of computing and moving its bytes; launches cost nothing. So these are the "
        "least times. What a GPU did: [gpu.md](gpu.md); what was tried: [benchmarks/NOTES.md](../benchmarks/NOTES.md)."
    )
    head = ["case", "TFLOP", "GB", "launches", "plain, ms", "fast, ms", "fast, images/s", "measured, images/s"]
    lines = []
    for case, work, gain, title in zip(CASES, works, gains, titles, strict=True):
        fast = work.total - sum(gain.values())
        cells = [f"{work.flop / 1e12:.2f}", f"{work.bytes / 1e9:.1f}", str(work.launches), f"{1000 * work.total:.1f}"]
        cells += [f"{1000 * fast:.1f}", f"{case.batch / fast:.0f}"]
        lines.append([title, *cells, rates.get((case.what, case.network, case.batch), "-")])
    out.table((head, lines, "lrrrrrrr"))
    for text, found in (
        ("Where the plain network's time goes, ms:", [dict.fromkeys(GROUPS, 0.0) | work.seconds for work in works]),
        ("What each part of the fast path should take off, ms:", gains),
    ):
        out.text(text)
        names = dict.fromkeys(name for each in found for name in each)
        lines = [[name, *(f"{1000 * each[name]:.2f}" if name in each else "-" for each in found)] for name in names]
        out.table((["", *titles], lines, "l" + "r" * len(titles)))
    out.text(
        "A CUDA graph takes nothing off these times: it launches all operations by one call, which helps where the "
        "host needs longer for the launches than the GPU for the work."
    )
    return out.end()


if __name__ == "__main__":
    path = Path(PACKAGE_ROOT, "reports", "estimates.md")
    write_text(path, page())
    print(path)
