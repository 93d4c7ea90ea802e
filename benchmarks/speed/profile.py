"""Profiler traces of a row's training step and prediction, and one page on where time goes."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType

from benchmarks.speed import worker
from benchmarks.speed.cases import Case, Implementation, row_cases
from danet.config.params import Params
from danet.config.row import Row
from danet.core.files import atomic_write, write_text
from danet.evaluation import flops

GROUPS = (
    ("convolution", ("conv",)),
    ("batch normalisation", ("batch_norm",)),
    ("attention and matrix products", ("attention", "mm", "linear", "softmax", "logsumexp")),
    ("resize", ("upsample",)),
    ("loss", ("nll", "cross_entropy", "log_softmax")),
    ("copies and layout", ("copy_", "contiguous", "cat", "reorder", "memcpy", "memset", "zero_", "fill_")),
    ("optimizer", ("sgd", "_foreach", "_fused")),
)
"""Operators by what their names contain; the first that fits."""


@dataclass(frozen=True)
class Share:
    """Time in one operator or kernel, without those it calls."""

    name: str
    seconds: float
    calls: int


def group_of(name: str) -> str:
    """The group of an operator or kernel; softmax of the loss counts as loss."""
    lower = name.lower()
    if "log_softmax" in lower:
        return "loss"
    return next((group for group, words in GROUPS if any(word in lower for word in words)), "element by element")


def profile(row: Row, params: Params, out: Path, *, device: str | None = None, steps: int = 2) -> Path:
    """Profiles a training step over the row's crop (batch 2 on a CPU) and the prediction of one test input.

    Writes ``train.json`` and ``infer.json`` (Chrome traces: chrome://tracing, Perfetto) and ``README.md`` to ``out``.

    Args:
        row: whose network, numerics, crop and test size.
        params: for the classes of its data set.
        out: folder, made if missing.
        device: by default the GPU if there is one.
        steps: profiled after one that warms up.

    Returns:
        the page.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    page = [
        f"# Where the time goes: {row.name}",
        "",
        f"Device {device}",
        "",
    ]
    for case in row_cases(row, params, ("train", "infer")):
        implementation = Implementation("row", row.numerics, row.numerics.precision)
        run = worker.build(case.request(implementation, device, 1))
        run()
        start = time.perf_counter()
        run()
        plain = time.perf_counter() - start
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device != "cpu":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as recorded:
            for _ in range(steps):
                run()
        out.mkdir(parents=True, exist_ok=True)
        with atomic_write(out / f"{case.what}.json") as temporary, tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            recorded.export_chrome_trace(str(trace))
            temporary.write_bytes(trace.read_bytes())
        page += summary(case, shares(recorded, on_gpu=device != "cpu"), plain, steps)
    write_text(out / "README.md", "\n".join(page))
    return out / "README.md"


def shares(recorded: torch.profiler.profile, on_gpu: bool) -> list[Share]:
    """Time by operator (CPU) or kernel (GPU), longest first."""
    found = []
    for event in recorded.key_averages():
        if on_gpu and event.device_type != DeviceType.CUDA:
            continue  # an operator has the time of its kernels, which are events of their own
        seconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        if seconds > 0 and not event.key.startswith("ProfilerStep"):
            found.append(Share(event.key, seconds, event.count))
    return sorted(found, key=lambda share: -share.seconds)


def summary(case: Case, found: list[Share], plain: float, steps: int) -> list[str]:
    """The part of the page about one case."""
    total = sum(share.seconds for share in found) or 1.0
    groups: defaultdict[str, float] = defaultdict(float)
    for share in found:
        groups[group_of(share.name)] += share.seconds
    subject = "Training step" if case.what == "train" else "Prediction"
    lines = [
        f"## {subject}, {case.batch} x {flops.size_text(case.size)}",
        "",
        f"{plain:.3f} s without the profiler; `{case.what}.json` is the trace of {steps} steps.",
        "",
        "| group | share | s per step |",
        "|-|-:|-:|",
    ]
    for name, seconds in sorted(groups.items(), key=lambda item: -item[1]):
        lines.append(f"| {name} | {100 * seconds / total:.1f}% | {seconds / steps:.4f} |")
    lines += ["", "| operator | share | s per step | calls per step |", "|-|-:|-:|-:|"]
    for share in found[:12]:
        name = share.name[:80].replace("|", "/")
        lines.append(
            f"| `{name}` | {100 * share.seconds / total:.1f}% | {share.seconds / steps:.4f} | {share.calls / steps:g} |"
        )
    return [*lines, ""]
