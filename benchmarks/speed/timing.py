"""Timing a computation in a process of its own, driven line by line, so that competitors can take turns.

A worker builds a case, warms up, then runs it once per request; the harness asks each worker in turn, so that whatever
else the machine does falls on all alike. Only PyTorch is imported here: the peers' environment has no more.

Protocol: JSON lines on standard input and output. ``{"op": "prepare", "case": {...}}``, ``{"op": "time"}`` (answers
``seconds``), ``{"op": "kernels"}`` (see :func:`longest`), ``{"op": "finish"}`` (answers ``peak_gb``); every answer may
instead hold ``error``.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], object]
"""Computes a case once, start to end; the harness waits for the device."""
Case = Mapping[str, Any]
"""A :class:`benchmarks.speed.cases.Case` as it was sent."""
Build = Callable[[Case], Run]


class PeakMemory:
    """Peak memory since it was made: allocated on CUDA, growth of the resident set on the CPU (Linux), in GiB."""

    def __init__(self, device: str = "cpu") -> None:
        self.cuda = device.startswith("cuda")
        self._before: float | None
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / 2**30
            return
        self._exact = trim()
        self._before = _status("VmRSS")

    def extra(self) -> float | None:
        """GiB above what there was; None where the system does not say."""
        if self.cuda:
            return torch.cuda.max_memory_allocated() / 2**30 - (self._before or 0.0)
        peak = _status("VmHWM") if self._exact else None
        return None if peak is None or self._before is None else max(0.0, peak - self._before)


def trim() -> bool:
    """Gives freed memory back and makes the kernel forget the peak so far; False where it cannot."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def _status(field: str) -> float | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 2**20
    except OSError:
        pass
    return None


def training_batch(case: Case) -> tuple[Tensor, Tensor]:
    """The images (``N x 3 x H x W``, float32) and labels (``N x H x W``, int64) of a training step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((case["batch"], 3, *case["size"]), generator=generator)
    return images, torch.randint(case["classes"], (case["batch"], *case["size"]), generator=generator)


def label_maps(case: Case) -> Tensor:
    """A prediction and a truth: ``2 x H x W``, int64."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(case["classes"], (2, *case["size"]), generator=generator)


def attention(case: Case, module: torch.nn.Module, precision: Callable[[], AbstractContextManager[object]]) -> Run:
    """A position attention of 512 channels alone, forward and, with ``backward``, backward."""
    x = torch.randn((1, 512, *case["size"]), generator=torch.Generator().manual_seed(0))
    x = (0.1 * x).to(case["device"]).requires_grad_(case["backward"])

    def run() -> None:
        with torch.set_grad_enabled(case["backward"]), precision():
            out = module(x)
        if case["backward"]:
            torch.autograd.backward(out.sum())

    return run


def waited(run: Run, device: str) -> None:
    """Computes once, and waits for CUDA."""
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def longest(run: Run, steps: int = 3, count: int = 15) -> list[tuple[str, float, float]]:
    """The longest kernels of a computation on CUDA, after all of them together: name, milliseconds, calls."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(steps):
            run()
    found = [
        (event.key[:100], round(event.self_device_time_total / 1000 / steps, 3), event.count / steps)
        for event in recorded.key_averages()
        if event.device_type == torch.profiler.DeviceType.CUDA  # an operator's time is that of its kernels
    ]
    found.sort(key=lambda kernel: -kernel[1])
    return [("all", round(sum(ms for _, ms, _ in found), 3), sum(calls for *_, calls in found)), *found[:count]]


def serve(build: Build, facts: Mapping[str, Any]) -> None:
    """Answers requests until standard input ends. ``facts`` (versions) are the first line.

    What the computation prints goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    answers.write(json.dumps({**facts, "torch": torch.__version__}) + "\n")
    run: Run | None = None
    memory: PeakMemory | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if request["op"] == "prepare":
                run = memory = None
                memory = PeakMemory(request["case"]["device"])
                run = functools.partial(waited, build(request["case"]), request["case"]["device"])
                for _ in range(request["case"]["warm_up"]):
                    run()
            elif request["op"] == "time":
                assert run is not None
                start = time.perf_counter()
                run()
                answer = {"seconds": time.perf_counter() - start}
            elif request["op"] == "kernels":
                assert run is not None
                answer = {"kernels": longest(run)}
            else:
                answer = {"peak_gb": memory.extra() if memory else None}
                run = memory = None
                if "torch._dynamo" in sys.modules:
                    torch.compiler.reset()  # compiled code keeps what it was compiled for
                gc.collect()
                trim()
                torch.cuda.empty_cache()  # the other workers share the GPU; does nothing on the CPU
        except Exception as error:
            run = None
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            gc.collect()
        answers.write(json.dumps(answer) + "\n")
