"""Runs the cases: worker processes in turns, round by round."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks import null
from benchmarks.parity.environment import prepare_environment
from benchmarks.speed.cases import PEER, Case, Implementation, has_fast_bf16, implementations
from benchmarks.speed.results import Measured, Peaks, against_peer
from danet.config.row import Numerics
from danet.core import provenance
from danet.core.errors import ConfigError, DanetError
from danet.core.provenance import cpu_cores
from danet.evaluation import flops
from pipelines import dvc_environment

ALONE: Final = {"infer": 1024 * 2048, "train": 2 * 512 * 512, "attention": 0}
"""Pixels from which implementations are measured one after the other: side by side they would not fit into 24 GB."""
Say = Callable[[str], None]


def limit(device: str) -> float:
    """Seconds for one answer of a worker, and after which a turn makes no more rounds: a slow implementation must not
    take the others' time."""
    return (900 if device == "cpu" else 180) * null.PATIENCE


class Worker:
    """A process of :mod:`benchmarks.speed.timing`; a context manager."""

    def __init__(self, command: Sequence[str | Path], device: str) -> None:
        self._limit = limit(device)
        threads = {"OMP_NUM_THREADS": str(cpu_cores())} | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
        self._process = subprocess.Popen(
            [str(part) for part in command],
            cwd=provenance.PACKAGE_ROOT,
            env=dvc_environment() | threads,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.facts = self._answer()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and returns the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            return {"error": f"the process ended: {error}"}
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(self._limit, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        late = not timer.is_alive()
        timer.cancel()
        if not line:
            code = self._process.wait()
            if late:
                return {"error": f"took more than {self._limit:.0f} s"}
            return {"error": f"the process ended with status {code}" + (" (out of memory?)" if code == -9 else "")}
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._process.poll() is None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def peer_command(say: Say) -> list[str | Path] | None:
    """mmsegmentation's worker: here if it is installed, else in an environment of its own; None if that fails."""
    try:
        python = sys.executable if importlib.util.find_spec("mmseg") else prepare_environment()
    except ConfigError as error:
        say(f"mmsegmentation is left out: {error}")
        return None
    return [python, "-W", "ignore", "-m", "benchmarks.speed.mmseg"]


def run(
    cases: Sequence[Case],
    device: str,
    *,
    repeat: int | None = None,
    peer: Sequence[str | Path] | None = None,
    own: Numerics | None = None,
    say: Say = lambda text: None,
) -> Iterator[tuple[list[Measured], Peaks, dict[str, Any]]]:
    """Measures the cases one after another; gives all that was measured so far after each turn.

    Args:
        cases: what to time.
        device: ``cpu`` or ``cuda``.
        repeat: rounds; by default 5 on a CPU, 20 training steps and 40 predictions on a GPU.
        peer: the command of mmsegmentation's worker; None leaves it out.
        own: numerics of a row, measured too.
        say: told of each result.

    Yields:
        the lines, the device's peaks, and facts of the run.

    Raises:
        DanetError: if our own worker does not start.
    """
    own_command = [sys.executable, "-m", "benchmarks.speed.worker"]
    load = round(os.getloadavg()[0], 2)
    measured: list[Measured] = []
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}

        def worker(implementation: Implementation) -> Worker:
            command, shared = (own_command, "ours") if implementation.numerics else (peer or (), PEER)
            # a GPU does one thing at a time, and would not hold the memory of all side by side
            key = implementation.name if device == "cpu" else shared
            started = workers.get(key)
            if started is None or not started.alive:
                started = workers[key] = stack.enter_context(Worker(command, device))
                if "error" in started.facts:
                    raise DanetError(
                        f"the worker of {implementation.name} does not start: {started.facts['error']}; run its "
                        f"command to see why: {' '.join(map(str, command))}"
                    )
            return started

        peaks = _peaks(worker(Implementation("peaks", Numerics())), device)
        say(
            "measured peaks: "
            + ", ".join(f"{name} {value / 1e12:.2f} TFLOP/s" for name, value in peaks.flop_per_s.items())
            + f", memory {peaks.bytes_per_s / 1e9:.1f} GB/s"
        )
        for case in cases:
            known = implementations(case.what, device, own if case.what in ("infer", "train") else None)
            chosen = [each for each in known if each.numerics is not None or (peer is not None and case.has_peer)]
            alone = case.batch * case.size[0] * case.size[1] >= ALONE.get(case.what, math.inf)
            if device == "cpu":
                warm_up, rounds = 1, 20 if case.what in ("confusion", "loading") else repeat or 5
            else:
                warm_up = 12 if case.what == "infer" else 5  # also enough for SteadyCompiled to compile
                rounds = repeat or (40 if case.what == "infer" else 20)
            turns = [[each] for each in chosen] if alone or device != "cpu" else [chosen]
            for turn in turns:
                lines = _rounds(case, turn, worker, device, rounds, warm_up)
                measured += lines
                for line in lines:
                    said = line.error or f"{line.median:.3f} s, {_speedup(line, measured)}"
                    size = f"{case.batch} x {flops.size_text(case.size)}"
                    say(f"{case.what} {case.network} {size} {line.implementation.name}: {said}")
                facts = provenance.collect() | {"device": device, "threads": cpu_cores(), "repeat": repeat}
                peer_facts = workers[PEER].facts if PEER in workers else None
                yield measured, peaks, facts | {"peer": peer_facts, "load": load}


def _speedup(line: Measured, lines: Sequence[Measured]) -> str:
    ratio = against_peer(line, lines)
    return "" if ratio is None else f"{ratio:.2f}x mmsegmentation"


def _rounds(
    case: Case,
    chosen: Sequence[Implementation],
    worker: Callable[[Implementation], Worker],
    device: str,
    rounds: int,
    warm_up: int,
) -> list[Measured]:
    lines, processes = [], [worker(each) for each in chosen]
    for each, process in zip(chosen, processes, strict=True):
        answer = process.ask(op="prepare", case=case.request(each, device, warm_up))
        line = Measured(case, each, [], error=answer.get("error", ""), torch=process.facts.get("torch", ""))
        lines.append(line)
    began = time.monotonic()
    for number in range(rounds):
        if number and time.monotonic() - began > limit(device):
            break
        for line, process in zip(lines, processes, strict=True):
            if line.error:
                continue
            answer = process.ask(op="time")
            line.error = answer.get("error", "")
            if not line.error:
                line.rounds.append(answer["seconds"])
    profiled = device != "cpu" and case.what in ("infer", "train")
    for line, process in zip(lines, processes, strict=True):
        if profiled and line.implementation.name == "fast" and not line.error:
            line.kernels = process.ask(op="kernels").get("kernels")
        line.peak_gb = process.ask(op="finish").get("peak_gb")
    return lines


def _peaks(worker: Worker, device: str) -> Peaks:
    """Best of a few, as a peak should be; of operations, of a matrix product and a 3x3 convolution: on a CPU they come
    from two libraries, one twice as fast as the other in float32."""
    on_gpu = device != "cpu"
    best: dict[str, float] = {}

    def rate(kind: str, shapes: Sequence[Sequence[int]], work: float, numerics: Numerics) -> float:
        case = {"what": "peak", "kind": kind, "shapes": shapes, "device": device, "threads": cpu_cores(), "warm_up": 2}
        if "error" in worker.ask(op="prepare", case=case | {"numerics": numerics.model_dump()}):
            return 0.0
        times = [worker.ask(op="time").get("seconds", float("inf")) for _ in range(20 if on_gpu else 5)]
        worker.ask(op="finish")
        return work / float(min(times))

    for precision in ("fp32", "bf16") if on_gpu or has_fast_bf16() else ("fp32",):
        numerics = Numerics.model_validate({"precision": precision})
        side, channels, pixels = (8192, 512, 256) if on_gpu else (2048, 256, 128)
        convolution = (1, channels, pixels, pixels), (channels, channels, 3, 3)
        best[precision] = max(
            rate("product", [(side, side)] * 2, 2.0 * side**3, numerics),
            rate("convolution", convolution, 18.0 * (channels * pixels) ** 2, numerics),
        )
    elements = 2**28 if on_gpu else 2**26
    return Peaks(best, rate("copy", [(elements,)] * 2, 8.0 * elements, Numerics()))
