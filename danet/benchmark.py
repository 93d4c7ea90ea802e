"""``danet benchmark``: our reference path, our fast path and mmsegmentation, in turns on the same machine.

Each implementation is a process of its own (:mod:`danet.timing`); for a case all are built and warmed up, then each
runs once per round. So a machine that is busy for a while slows all of them, and the ratio of two implementations is
taken round by round. Times are medians with the interquartile range.

A CSV file per subject states device and versions in its name and has a line per case and implementation, with
operations and bytes (:mod:`danet.flops`) against the device's measured peaks:
``roofline = max(FLOP / peak FLOP/s, bytes / peak bytes/s)``, ``share = roofline / median``. Operations are counted
as the explicit, unfused network does them in float32, so a path that computes less or fuses more may pass 100%.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import joblib
import numpy as np
import torch

from danet import flops, provenance, rows
from danet.errors import ConfigError, DanetError
from danet.files import atomic_write, write_json, write_text

SUBJECTS: Final = ("infer", "train", "attention", "confusion")
FPS_SKIPPED, FPS_IMAGES = 5, 200
"""mmsegmentation's tools/benchmark.py: images not timed, and timed. On a CPU ``repeat`` takes their place."""
PEER: Final = "mmsegmentation"
BASELINES: Final = {"infer": "mmsegmentation", "train": "mmsegmentation", "attention": "mmsegmentation"}
COLUMNS: Final = (
    "what", "network", "height", "width", "batch", "implementation", "precision", "images_per_second", "median_s",
    "iqr_s", "repeat", "against_mmsegmentation", "peak_gb", "tflop", "gbyte", "tflop_per_s", "roofline_s",
    "roofline_share", "threads", "torch", "error",
)  # fmt: skip
HUGE: Final = 1024 * 2048
"""Pixels from which implementations are measured one after the other, on a CPU at most :data:`HUGE_ROUNDS` times."""
HUGE_ROUNDS: Final = 2
Say = Callable[[str], None]


@dataclass(frozen=True)
class Implementation:
    """A way to compute a case."""

    name: str
    numerics: rows.Numerics | None
    """None for the peer."""
    precision: str = "fp32"


@dataclass(frozen=True)
class Case:
    """What is timed."""

    what: str
    network: str
    """As in a table: ``R-50 D8`` or a row's name."""
    size: rows.Size
    batch: int = 1
    model: rows.Model | None = None
    classes: int = 19
    loss: rows.Loss = field(default_factory=lambda: rows.Loss(aux=0.4, average="all"))
    backward: bool = False
    threads: int | None = None
    """None for all cores."""

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
        )

    def request(self, implementation: Implementation, device: str, warm_up: int) -> dict[str, Any]:
        """The case as a worker gets it."""
        model = self.model
        return {
            "what": self.what,
            "device": device,
            "threads": self.threads or cores(),
            "warm_up": warm_up,
            "height": self.size[0],
            "width": self.size[1],
            "batch": self.batch,
            "classes": self.classes,
            "backward": self.backward,
            "precision": implementation.precision,
            "numerics": implementation.numerics.model_dump() if implementation.numerics else None,
            "align_corners": model.align_corners if model else False,
            "model": model.model_dump() if model else None,
            "loss": self.loss.model_dump(),
            "depth": 101 if model and model.backbone == "resnet101" else 50,
            "output_stride": model.output_stride if model else 8,
        }


@dataclass
class Measured:
    """One line of a table."""

    case: Case
    implementation: Implementation
    seconds: list[float]
    rounds: dict[int, float]
    """Time by round, to be compared with another implementation's of the same round."""
    peak_gb: float | None = None
    error: str = ""
    torch: str = ""

    @property
    def median(self) -> float | None:
        """Seconds."""
        return statistics.median(self.seconds) if self.seconds else None


@dataclass(frozen=True)
class Peaks:
    """What the device was measured to do at best, by precision and in bytes/s (read and write)."""

    flop_per_s: Mapping[str, float]
    bytes_per_s: float


class Worker:
    """A process of :mod:`danet.timing`; a context manager."""

    def __init__(self, command: Sequence[str | Path], threads: int, device: str) -> None:
        environment = worker_environment(threads, device)
        self._process = subprocess.Popen(
            [str(part) for part in command],
            cwd=provenance.PACKAGE_ROOT,
            env=environment,
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
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            return {"error": f"the process ended with status {code}" + (" (out of memory?)" if code == -9 else "")}
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._process.poll() is None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        if self.alive and error is None:
            self._process.stdin.close()
            self._process.wait(timeout=60)
        else:
            self._process.kill()
            self._process.wait()


def worker_environment(threads: int, device: str) -> dict[str, str]:
    """The same for all: threads, passive waiting and freed memory kept, as the stages have them."""
    environment = dict(os.environ)
    environment["OMP_NUM_THREADS"] = str(threads)
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    for name, value in {
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
        "MALLOC_MMAP_THRESHOLD_": str(2**32),
        "MALLOC_TOP_PAD_": str(2**28),
    }.items():
        environment.setdefault(name, value)
    return environment


def cores() -> int:
    """CPU cores that this process may use."""
    return int(joblib.cpu_count())


def implementations(what: str, device: str, own: rows.Numerics | None = None) -> list[Implementation]:
    """What a subject is measured with on a device; ``own`` adds the numerics of a row, if they are neither of ours."""
    reference = rows.Numerics(attention="reference")
    result = [Implementation("reference", reference)]
    if device == "cpu":
        fast = rows.Numerics(channels_last=True, fold_bn=True, winograd=True)
        result.append(Implementation("fast", fast))
        if has_fast_bf16():
            result.append(
                Implementation("fast bf16", fast.model_copy(update={"precision": "bf16", "winograd": False}), "bf16")
            )
        result.append(Implementation(PEER, None))
    else:
        fast = rows.Numerics(precision="bf16", tf32=True, channels_last=True, compile=True, fold_bn=True)
        plain = fast.model_copy(update={"precision": "fp32", "tf32": False})
        result += [Implementation("fast fp32", plain), Implementation("fast", fast, "bf16"), Implementation(PEER, None)]
        if what == "train":
            result.append(Implementation(f"{PEER} AMP", None, "fp16"))
    if own is not None and own not in [each.numerics for each in result]:
        result.insert(-1, Implementation("row's numerics", own, own.precision))
    if what == "confusion":
        return [Implementation("fast", rows.Numerics()), Implementation(PEER, None)]
    if what == "attention":
        return [each for each in result if each.precision == "fp32" and each.name != "fast fp32"]
    return result


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 by itself (AVX512-BF16 or AMX), so that it is worth a column."""
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "avx512_bf16" in known or "amx_bf16" in known


def shapes(device: str, what: Iterable[str]) -> list[Case]:
    """The standing grid: R-50 and R-101, strides 8 and 16, the sources' sizes; on a CPU a part that takes minutes.

    An empty ``device`` is the one found.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    result: list[Case] = []
    sizes = ((512, 512), (512, 1024), (769, 769), (1024, 2048))
    for subject in what:
        if subject == "attention":
            result += [Case("attention", "PAM", (128, 128), backward=True), Case("attention", "PAM", (128, 256))]
        elif subject == "confusion":
            result.append(Case("confusion", "19 classes", (1024, 2048), threads=1))
        else:
            for size in sizes:
                for backbone, stride in (("resnet50", 8), ("resnet101", 8), ("resnet50", 16), ("resnet101", 16)):
                    case = Case(
                        subject,
                        f"R-{backbone.removeprefix('resnet')} D{stride}",
                        size,
                        batch=2 if subject == "train" else 1,
                        model=published_model(backbone, stride, align_corners=size == (769, 769)),
                    )
                    if device != "cpu" or _for_cpu(case):
                        result.append(case)
            if subject == "train" and device == "cpu":
                result.insert(0, Case("train", "R-50 D8", (256, 256), 2, published_model("resnet50", 8)))
    return result


def _for_cpu(case: Case) -> bool:
    small, wide, whole = (case.size == size for size in ((512, 512), (512, 1024), (1024, 2048)))
    if case.what == "train":
        return case.network == "R-50 D8" and small
    return small or (wide and case.network in ("R-50 D8", "R-50 D16")) or (whole and case.network == "R-50 D8")


def published_model(backbone: str, stride: int, align_corners: bool = False) -> rows.Model:
    """mmsegmentation's DANet."""
    return rows.Model.model_validate(
        {
            "method": "danet",
            "backbone": backbone,
            "output_stride": stride,
            "stem": "deep-32-32-64",
            "aux_channels": 256,
            "align_corners": align_corners,
            "init": "mmsegmentation",
        }
    )


def row_cases(row: rows.Row, params: rows.Params, what: Iterable[str], batch: int | None = None) -> list[Case]:
    """A row's crop in training and its input in testing; by default a batch of 2 (CPU) or the row's whole batch."""
    counted, classes = flops.count_row(row, params), flops.classes_of(row, params)
    result = []
    for subject in what:
        if subject == "train":
            size, images = counted.crop, batch or (row.schedule.batch_size if torch.cuda.is_available() else 2)
            result.append(Case("train", row.name, size, images, row.model, classes, row.loss))
        elif subject == "infer":
            result.append(Case("infer", row.name, counted.input, 1, row.model, classes))
        elif subject == "attention":
            cells = tuple(-(-side // row.model.output_stride) for side in counted.input)
            result.append(Case("attention", row.name, (cells[0], cells[1])))
        else:
            result.append(Case("confusion", row.name, counted.image, classes=classes, threads=1))
    return result


def run(
    cases: Sequence[Case],
    device: str,
    *,
    repeat: int = 5,
    peer: Sequence[str | Path] | None = None,
    own: rows.Numerics | None = None,
    say: Say = lambda text: None,
) -> tuple[list[Measured], Peaks, dict[str, Any]]:
    """Measures the cases.

    Args:
        cases: what to time.
        device: ``cpu`` or ``cuda``.
        repeat: rounds; on CUDA, inference takes 5 untimed and 200 timed images by the published method instead.
        peer: the command of mmsegmentation's worker; None leaves it out.
        own: numerics of a row, measured too.
        say: told of each result.

    Returns:
        the lines, the device's peaks, and facts of the run.

    Raises:
        DanetError: if our own worker does not start.
    """
    command = [sys.executable, "-m", "danet.worker"]
    measured: list[Measured] = []
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}

        def worker(implementation: Implementation) -> Worker:
            started = workers.get(implementation.name)
            if started is None or not started.alive:
                started = stack.enter_context(
                    Worker(command if implementation.numerics else list(peer or ()), cores(), device)
                )
                if "error" in started.facts:
                    shown = " ".join(map(str, command if implementation.numerics else peer or ()))
                    raise DanetError(
                        f"the worker of {implementation.name} does not start: {started.facts['error']}; run its "
                        f"command to see why: {shown}"
                    )
                workers[implementation.name] = started
            return started

        peaks = _peaks(worker(Implementation("peaks", rows.Numerics())), device)
        say(
            "measured peaks: "
            + ", ".join(f"{name} {value / 1e12:.2f} TFLOP/s" for name, value in peaks.flop_per_s.items())
            + f", memory {peaks.bytes_per_s / 1e9:.1f} GB/s"
        )
        for case in cases:
            chosen = [
                each
                for each in implementations(case.what, device, own if case.what in ("infer", "train") else None)
                if each.numerics is not None or (peer is not None and case.has_peer)
            ]
            rounds, warm_up = repeat, 1
            if device != "cpu":
                warm_up = 12 if case.what == "infer" else 5  # also enough for SteadyCompiled to compile
                rounds = FPS_IMAGES if case.what == "infer" else max(repeat, 20)
            if case.what == "confusion":
                rounds = max(repeat, 20)
            # the explicit maps of several processes would not fit into memory side by side
            huge = case.what == "attention" or case.size[0] * case.size[1] >= HUGE
            if huge and device == "cpu":
                rounds = min(rounds, HUGE_ROUNDS)
            turns = [[each] for each in chosen] if huge else [chosen]
            lines = [line for each in turns for line in _rounds(case, each, worker, device, rounds, warm_up)]
            measured += lines
            for line in lines:
                said = line.error or f"{line.median:.3f} s, {_speedup(line, lines)}"
                say(f"{case.what} {case.network} {flops.size_text(case.size)} {line.implementation.name}: {said}")
        facts = provenance.collect() | {
            "device": device,
            "threads": cores(),
            "repeat": repeat,
            "peer": workers[PEER].facts if PEER in workers else None,
        }
    return measured, peaks, facts


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
    lines = []
    for each in chosen:
        process = worker(each)
        answer = process.ask(op="prepare", case=case.request(each, device, warm_up))
        line = Measured(case, each, [], {}, error=answer.get("error", ""), torch=process.facts.get("torch", ""))
        lines.append(line)
    for number in range(rounds):
        for line in lines:
            if line.error:
                continue
            answer = worker(line.implementation).ask(op="time")
            line.error = answer.get("error", "")
            if not line.error:
                line.seconds.append(answer["seconds"])
                line.rounds[number] = answer["seconds"]
    for line in lines:
        line.peak_gb = worker(line.implementation).ask(op="finish").get("peak_gb")
    return lines


def _peaks(worker: Worker, device: str) -> Peaks:
    """Best of a few, as a peak should be."""
    on_gpu = device != "cpu"
    best: dict[str, float] = {}

    def rate(kind: str, side: int, work: float, numerics: rows.Numerics) -> float:
        case = {"what": "peak", "kind": kind, "side": side, "device": device, "threads": cores(), "warm_up": 2}
        if "error" in worker.ask(op="prepare", case=case | {"numerics": numerics.model_dump()}):
            return 0.0
        times = [worker.ask(op="time").get("seconds", float("inf")) for _ in range(20 if on_gpu else 5)]
        worker.ask(op="finish")
        return work / float(min(times))

    for precision in ("fp32", "bf16") if on_gpu or has_fast_bf16() else ("fp32",):
        numerics = rows.Numerics.model_validate({"precision": precision})
        side, channels = (8192, 2048) if on_gpu else (2048, 512)
        best[precision] = max(
            rate("matmul", side, 2.0 * side**3, numerics), rate("conv", channels, 18.0 * channels**2 * 64**2, numerics)
        )
    elements = 2**28 if on_gpu else 2**26
    return Peaks(best, rate("copy", elements, 8.0 * elements, rows.Numerics()))


def against_peer(line: Measured, lines: Iterable[Measured]) -> float | None:
    """Median over rounds of the peer's time over this one's, of the same case; the peer of the same kind of
    precision."""
    peers = [
        other
        for other in lines
        if other.case == line.case and other.implementation.name == PEER and other.implementation.numerics is None
    ]
    common = [number for other in peers for number in other.rounds if number in line.rounds]
    if not common:
        return None
    return float(statistics.median(peers[0].rounds[number] / line.rounds[number] for number in common))


def record(line: Measured, lines: Sequence[Measured], peaks: Peaks) -> dict[str, Any]:
    """A line of the CSV file; empty cells for what was not measured."""
    case, median = line.case, line.median
    result: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    result |= {
        "what": case.what + (" (forward and backward)" if case.backward else ""),
        "network": case.network,
        "height": case.size[0],
        "width": case.size[1],
        "batch": case.batch,
        "implementation": line.implementation.name,
        "precision": line.implementation.precision,
        "repeat": len(line.seconds),
        "threads": case.threads or cores(),
        "torch": line.torch,
        "error": line.error,
    }
    if line.peak_gb is not None and not line.error:
        result["peak_gb"] = f"{line.peak_gb:.3f}"
    if median is None or line.error:
        return result
    spread = float(np.subtract(*np.percentile(line.seconds, [75, 25])))
    result |= {
        "images_per_second": f"{case.batch / median:.4g}",
        "median_s": f"{median:.5g}",
        "iqr_s": f"{spread:.3g}",
    }
    if (ratio := against_peer(line, lines)) is not None:
        result["against_mmsegmentation"] = f"{ratio:.3f}"
    if case.model is not None and case.what in ("infer", "train"):
        work = flops.count(case.model, case.classes, case.size, case.batch, case.what == "train")
        passes = flops.TRAINING_PASSES if case.what == "train" else 1
        flop, moved = passes * work.flop, passes * work.bytes
        rate = peaks.flop_per_s.get("bf16" if line.implementation.precision in ("bf16", "fp16") else "fp32", 0.0)
        roofline = max(flop / rate if rate else 0.0, moved / peaks.bytes_per_s if peaks.bytes_per_s else 0.0)
        result |= {
            "tflop": f"{flop / 1e12:.4g}",
            "gbyte": f"{moved / 1e9:.4g}",
            "tflop_per_s": f"{flop / median / 1e12:.4g}",
            "roofline_s": f"{roofline:.4g}",
            "roofline_share": f"{roofline / median:.3f}",
        }
    return result


def slug(text: str) -> str:
    """A name for a file: lower-case letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def device_name(facts: Mapping[str, Any]) -> str:
    """``NVIDIA H200``, or ``AMD EPYC, 2 cores``."""
    return str(facts["gpu"]) if facts["device"] != "cpu" else f"{facts['cpu']}, {facts['threads']} cores"


def write(
    folder: Path, measured: Sequence[Measured], peaks: Peaks, facts: Mapping[str, Any], prefix: str = ""
) -> list[Path]:
    """Writes a CSV file per subject, and the facts of the run as JSON beside it; returns the CSV files.

    A file's name states subject, device, torch and mmsegmentation versions and the precisions.
    """
    written = []
    peer = (facts.get("peer") or {}).get("name", "")
    for subject in dict.fromkeys(line.case.what for line in measured):
        lines = [line for line in measured if line.case.what == subject]
        precisions = "+".join(sorted({line.implementation.precision for line in lines}, reverse=True))
        torch_version = str(facts["torch"]).partition("+")[0]
        parts = [subject, prefix, slug(device_name(facts)), f"torch{torch_version}", slug(peer), precisions]
        path = folder / ("-".join(part for part in parts if part) + ".csv")
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(record(line, lines, peaks) for line in lines)
        write_text(path, text.getvalue())
        document = {
            "device": device_name(facts),
            "kind": facts["device"],
            "peak_flop_per_s": dict(peaks.flop_per_s),
            "peak_bytes_per_s": peaks.bytes_per_s,
            "facts": dict(facts),
        }
        write_json(path.with_suffix(".json"), document)
        written.append(path)
    return written


def read(folder: Path) -> list[tuple[dict[str, Any], list[dict[str, str]]]]:
    """The runs in a folder: the facts and the lines of each CSV file that :func:`write` made.

    Raises:
        ConfigError: naming the file, if one is damaged.
    """
    result = []
    for path in sorted(folder.glob("*.csv")):
        facts = path.with_suffix(".json")
        if not facts.exists():
            continue  # another benchmark's
        try:
            document = json.loads(facts.read_text(encoding="utf-8"))
            document["file"] = path.name
            with path.open(encoding="utf-8", newline="") as stream:
                lines = list(csv.DictReader(stream))
            if not {"peak_flop_per_s", "kind", "facts"} <= document.keys() or (lines and set(lines[0]) != set(COLUMNS)):
                continue
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: is not a benchmark's table ({error}); measure again: make benchmark") from error
        result.append((document, lines))
    return result


TITLES: Final = {
    "infer": "Inference, batch 1: from the 8-bit image to the label map on the host",
    "train": "Training step: forward, losses of all heads, backward, SGD",
    "attention": "Position attention alone, 512 channels",
    "confusion": "Confusion matrix of one image, one core",
}


def report(folder: Path) -> str:
    """The Markdown page over all benchmark files of a folder."""
    runs = read(folder)
    out = [
        "# Speed",
        "",
        "Written by `danet benchmark`; do not edit. How it is measured: "
        "[danet/benchmark.py](../../danet/benchmark.py); what made the difference: "
        "[benchmarks/NOTES.md](../../benchmarks/NOTES.md).",
        "",
        "*reference* is our plain path (explicit attention map, NCHW, batch normalisation apart), *fast* our fastest",
        "in float32 on a CPU, in bfloat16 on a GPU. *x mmseg*: median over rounds of mmsegmentation's time over ours;",
        "roofline is the least time for the counted operations and bytes at the device's measured peaks, as a share of",
        "the time taken. Operations count as the plain network does them, so what computes less (Winograd's",
        "convolutions) or fuses more may pass 100%.",
        "",
    ]
    for kind, name in (("cpu", "CPU"), ("cuda", "GPU")):
        mine = [(document, lines) for document, lines in runs if (document["kind"] == "cpu") == (kind == "cpu")]
        out += [f"## {name}", ""]
        if not mine:
            out += [
                "Not run: `danet benchmark --all-shapes --device cuda` on a machine with a GPU fills these tables.",
                "",
            ]
            for subject in ("infer", "train"):
                cases = [c for c in shapes("cuda", [subject])]
                out += [f"### {TITLES[subject]}", "", "| network | size | batch | all implementations |", "|-|-|-:|-|"]
                out += [f"| {c.network} | {flops.size_text(c.size)} | {c.batch} | not run |" for c in cases]
                out.append("")
        for document, lines in mine:
            out += _section(document, lines)
    return "\n".join(out).rstrip() + "\n"


def _section(document: Mapping[str, Any], lines: Sequence[Mapping[str, str]]) -> list[str]:
    facts = document["facts"]
    subject = lines[0]["what"].split(" ")[0] if lines else ""
    rates = ", ".join(f"{key} {value / 1e12:.2f} TFLOP/s" for key, value in document["peak_flop_per_s"].items())
    peer = facts.get("peer") or {}
    said = [
        f"{document['device']}, {facts['threads']} threads",
        f"torch {facts['torch']}",
        f"{peer['name']} on torch {peer['torch']}" if peer else "without mmsegmentation",
        f"commit {str(facts['commit'])[:12]}{' with uncommitted changes' if facts.get('dirty') else ''}",
        str(facts["date"]),
        f"load average at the start {facts.get('load', '-')}",
    ]
    out = [
        f"### {TITLES.get(subject, subject)}",
        "",
        f"{'; '.join(said)}. Measured peaks: {rates}, memory {document['peak_bytes_per_s'] / 1e9:.1f} GB/s. "
        f"Command: `{facts['command']}`. Data: [{document['file']}]({document['file']}).",
        "",
        "| network | size | batch | implementation | precision | images/s | median s | IQR s | runs | x mmseg "
        "| peak GiB | TFLOP/s | roofline |",
        "|-|-|-:|-|-|-:|-:|-:|-:|-:|-:|-:|-:|",
    ]
    for line in lines:
        share = f"{100 * float(line['roofline_share']):.0f}%" if line["roofline_share"] else "-"
        what = line["network"] + (" fwd+bwd" if "backward" in line["what"] else "")
        cells = [what, f"{line['height']}x{line['width']}", line["batch"], line["implementation"], line["precision"]]
        if line["error"]:
            out.append("| " + " | ".join([*cells, "failed: " + line["error"].replace("|", "/"), *["-"] * 7]) + " |")
            continue
        ratio = f"{float(line['against_mmsegmentation']):.2f}" if line["against_mmsegmentation"] else "-"
        numbers = [
            line["images_per_second"], line["median_s"], line["iqr_s"], line["repeat"], ratio, line["peak_gb"] or "-",
            line["tflop_per_s"] or "-", share,
        ]  # fmt: skip
        out.append("| " + " | ".join([*cells, *numbers]) + " |")
    figure = document["file"].removesuffix(".csv") + ".png"
    return [*out, "", f"![images per second]({figure})", ""]


def draw(path: Path, lines: Sequence[Mapping[str, str]], title: str) -> None:
    """Bars of images/s by case and implementation, from the lines of a CSV file; logarithmic, with values."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    good = [line for line in lines if line["images_per_second"]]
    names = list(dict.fromkeys(line["implementation"] for line in good))
    groups = list(dict.fromkeys(_label(line) for line in good))
    figure = Figure(figsize=(7.2, 0.9 + 0.24 * len(good) + 0.2 * len(groups)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = ("#9aa5b1", "#1f5fa8", "#66a3d9", "#d98c2b", "#7a5195", "#2f7d4f")
    hatches = ("", "", "//", "..", "xx", "--")
    places: list[tuple[float, str]] = []
    at = 0.0
    for group in groups:
        members = [line for line in good if _label(line) == group]
        places.append((at + (len(members) - 1) / 2, group))
        for line in members:
            index, value = names.index(line["implementation"]), float(line["images_per_second"])
            known = line["implementation"] in axes.get_legend_handles_labels()[1]
            axes.barh(
                at, value, 0.85, color=colours[index % 6], hatch=hatches[index % 6], edgecolor="white",
                label=None if known else line["implementation"],
            )  # fmt: skip
            axes.text(value, at, f" {value:.3g}", va="center", fontsize=7)
            at += 1
        at += 0.8
    axes.set_yticks([place for place, _ in places], labels=[name for _, name in places], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel("images per second")
    axes.set_title(title, fontsize=9, parse_math=False)
    axes.legend(fontsize=7, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _label(line: Mapping[str, str]) -> str:
    both = " fwd+bwd" if "backward" in line["what"] else ""
    return f"{line['network']}{both}\n{line['height']}x{line['width']}, batch {line['batch']}"


def peer_command(make: bool, say: Say = lambda text: None) -> list[str | Path] | None:
    """mmsegmentation's worker in its own environment; None if it is not there and ``make`` is false or fails."""
    root = provenance.PACKAGE_ROOT
    python = root / "build" / "parity-env" / "bin" / "python"
    if make:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.speed.environment"],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            say(f"mmsegmentation's environment cannot be made: {done.stderr.strip().splitlines()[-1:]}")
    if not python.exists():
        return None
    return [python, "-W", "ignore", "-m", "benchmarks.speed.mmseg"]


def benchmark(
    cases: Sequence[Case],
    out: Path,
    *,
    device: str | None = None,
    repeat: int = 5,
    with_peer: bool = True,
    own: rows.Numerics | None = None,
    prefix: str = "",
    say: Say = lambda text: None,
) -> list[Path]:
    """Measures, writes CSV files and plots to ``out`` and the page over all that lie there; returns the CSV files.

    Raises:
        ConfigError: if the device is not here or there is nothing to measure.
        DanetError: if a worker does not start.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: no GPU was found here; use cpu")
    if not cases:
        raise ConfigError("there is nothing to measure: give a ROW or --all-shapes")
    peer = peer_command(make=True, say=say) if with_peer else None
    if with_peer and peer is None:
        say("mmsegmentation is left out: build/parity-env could not be made (is there a network?)")
    load = round(os.getloadavg()[0], 2)
    measured, peaks, facts = run(cases, device, repeat=repeat, peer=peer, own=own, say=say)
    written = write(out, measured, peaks, facts | {"load": load}, prefix)
    finish(out)
    return written


def finish(folder: Path) -> None:
    """Plots of all the benchmark files of a folder, and its page."""
    for document, lines in read(folder):
        if lines:
            subject = lines[0]["what"].split(" ")[0]
            name = document["file"].removesuffix(".csv")
            draw(folder / f"{name}.png", lines, f"{TITLES.get(subject, subject)}\n{document['device']}")
    write_text(folder / "README.md", report(folder))


def loader() -> None:
    """Times the training loader beside mmsegmentation's (``benchmarks/loading``), which writes its own page.

    Raises:
        DanetError: if that fails.
    """
    done = subprocess.run([sys.executable, "-m", "benchmarks.loading"], cwd=provenance.PACKAGE_ROOT, check=False)
    if done.returncode:
        raise DanetError(f"python -m benchmarks.loading failed with status {done.returncode}; its message is above")
