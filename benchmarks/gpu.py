"""Proves the harness on one GPU and says how fast it is, in minutes: ``make gpu``.

    python -m benchmarks.gpu [--budget SECONDS] [--out FOLDER] [--pack FILE] [STEP ...]
    python -m benchmarks.gpu take FOLDER    # files of a run elsewhere: into reports/, with the page

Each step is a process of its own under a time limit and writes a JSON file as it ends, so that a cut loses no more than
the step in hand; what is worth most comes first. The last act is reports/gpu.md. Where there is no GPU,
``DANET_NULL_CUDA`` names the null device (:mod:`benchmarks.null`): all steps run, nothing that they say means
anything, and the page stays in FOLDER.

A machine without network needs, beside this folder and what pyproject.toml asks for, no more than PyTorch, OpenCV,
pandas and matplotlib have with them, pydantic, and for the comparison mmsegmentation, mmengine and mmcv-lite (versions:
benchmarks/parity/requirements-peers.txt) with addict, yapf, platformdirs, termcolor, prettytable and ftfy.
DVC and MLflow are not needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import null
from benchmarks.speed.cases import Case, Implementation, published_model, shapes
from benchmarks.speed.page import finish
from benchmarks.speed.profile import shares
from benchmarks.speed.run import benchmark
from benchmarks.speed.timing import PeakMemory
from benchmarks.speed.worker import build
from danet.config.params import load_params
from danet.config.row import Numerics, Row
from danet.config.workspace import Workspace
from danet.core import provenance
from danet.core.console import report_errors
from danet.core.errors import ConfigError, DanetError, Interrupted
from danet.core.files import atomic_write, write_text
from danet.core.process import Process
from danet.evaluation import cost, flops
from danet.models import build_model
from danet.models.attention import fused_attention, reference_attention
from danet.models.numerics import configured, seed_initialisation
from danet.results.identity import TrainingIdentity
from danet.results.speed import read
from danet.training.checkpoint import CheckpointStore
from danet.training.loop import Trainer
from danet.training.stop import StopRequest

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "reports"
ROW = "mmseg-r50-d8-cityscapes-512x1024-40k"
METHODS = (ROW, "official-dranet-r101-d8-cityscapes", "clusterdanet-r101-d8-voc2012")
IMAGES = 40
"""Timed in a prediction, instead of the published method's 200, for the time that a rented GPU costs."""
GRAPH = "fast, graph"
BUDGET = 0.7
"""Of activations that compiled training keeps, in a variant."""
Lines = list[dict[str, Any]]
CAPTURED: dict[str, Any] = {"capture_output": True, "text": True}


def profile(name: str, **changes: Any) -> Numerics:
    """A profile of numerics.yaml."""
    return load_params(ROOT / "params.yaml").profiles[name].model_copy(update=changes)


def environment() -> Lines:
    """The machine and its software."""
    query = "--query-gpu=name,memory.total,driver_version,clocks.max.sm,power.limit"
    try:
        found = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], check=False, **CAPTURED).stdout
    except OSError:
        found = "no nvidia-smi"
    facts = {name: value for name, value in provenance.collect().items() if value is not None}
    return [{"what": name, "is": str(value)} for name, value in {**facts, "nvidia-smi": found.strip()}.items()]


def tests() -> Lines:
    """``pytest -m gpu``; on the null device, which tests there are."""
    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8"))
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        [*command, *(["--collect-only"] if null.running() else [])], cwd=ROOT, check=False, **CAPTURED
    )
    print(done.stdout[-8000:], done.stderr[-2000:], flush=True)
    said = [line for line in done.stdout.strip().splitlines() if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    return [{"ok": done.returncode == 0, "result": "; ".join([*done.stdout.strip().splitlines()[-1:], *said])}]


def attention() -> Lines:
    """PyTorch's kernels by the number of heads into which the values are cut: time, memory, error."""
    kernels = {-1: "none", 0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "override"}
    found: Lines = []
    for positions in (8192, 32768):
        for dtype in (torch.float32, torch.bfloat16):
            make = torch.Generator("cuda").manual_seed(0)
            q, k, v, upstream = (
                scale * torch.randn(1, positions, width, generator=make, device="cuda").to(dtype)
                for width, scale in ((64, 0.5), (64, 0.5), (512, 1.0), (512, 1.0))
            )
            rows = slice(0, 512)  # of the explicit map, in float64
            exact = reference_attention(q[:, rows].double(), k.double(), v.double())
            exact_gradients = _gradients(reference_attention, q, k, v, upstream, torch.float64)
            for training in (False, True):
                for heads in (0, 1, 2, 4, 8):  # 0: the explicit map
                    line: dict[str, Any] = {
                        "positions": positions, "dtype": str(dtype)[6:], "training": training, "heads": heads or "map"
                    }  # fmt: skip
                    try:
                        line |= _measured(q, k, v, upstream, heads, training, exact[:, rows], exact_gradients)
                        if heads:
                            parts = [
                                torch.empty(1, heads, positions, width, dtype=dtype, device="cuda")
                                for width in (64, 64, 512 // heads)
                            ]
                            for part in parts:
                                part.requires_grad_(training)
                            line["kernel"] = kernels[torch._fused_sdp_choice(*parts, scale=1.0)]
                    except Exception as error:
                        line["error"] = _short(error)
                    found.append(line)
                    print(line, flush=True)
            del exact, exact_gradients
            torch.cuda.empty_cache()
    return found


def _gradients(attend: Callable[..., Any], q: Any, k: Any, v: Any, upstream: Any, dtype: torch.dtype) -> list[Any]:
    """Of q, k and v; of a map in float64 only where it fits."""
    if dtype == torch.float64 and q.shape[1] > 8192:
        return []
    leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
    attend(*leaves).backward(upstream.to(dtype))
    return [leaf.grad for leaf in leaves]


def _measured(
    q: Any, k: Any, v: Any, upstream: Any, heads: int, training: bool, exact: Any, exact_gradients: Sequence[Any]
) -> dict[str, Any]:
    def attend(*parts: Any) -> Any:
        return fused_attention(*parts, heads=heads) if heads else reference_attention(*parts)

    def once() -> object:
        if training:
            return _gradients(attend, q, k, v, upstream, q.dtype)
        with torch.no_grad():
            return attend(q, k, v)

    once()
    memory = PeakMemory("cuda")
    once()
    peak = memory.extra()
    line = {"ms": round(_milliseconds(once), 3), "peak_gib": round(peak or 0.0, 3)}
    with torch.no_grad():
        out = attend(q, k, v)
    line["error_out"] = _error(out[:, : exact.shape[1]], exact)
    if training and exact_gradients:
        pairs = zip("qkv", _gradients(attend, q, k, v, upstream, q.dtype), exact_gradients, strict=True)
        line |= {f"error_d{name}": _error(mine, theirs) for name, mine, theirs in pairs}
    return line


def _error(mine: Any, exact: Any) -> float:
    """Largest difference over the largest value."""
    return float(f"{((mine.double() - exact).abs().max() / exact.abs().max()).item():.2e}")


def _milliseconds(once: Callable[[], object], repeat: int = 7) -> float:
    times = []
    for _ in range(repeat):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        once()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return float(np.median(times))


def waits() -> Lines:
    """Whether the host waits for the GPU in a training step."""
    from benchmarks.speed import worker

    worker.synchronise = lambda device: None  # type: ignore[assignment]
    found: Lines = []
    for name, numerics in (("published", profile("published")), ("fast, not compiled", profile("fast", compile=False))):
        case = Case("train", "R-50 D8", (256, 512), 2, published_model("resnet50", 8))
        run = build(case.request(Implementation("", numerics), "cuda", 0))
        run()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
            found.append({"step": name, "waits": False, "ok": True})
        except RuntimeError as error:
            found.append({"step": name, "waits": _short(error), "ok": False})
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return found


def compiles(what: str, batch: int, **changes: Any) -> Lines:
    """Whether the network compiles, into how many graphs; fills the compiler's cache for the timings."""
    from torch._dynamo.utils import counters

    size = (512, 1024) if what == "train" else (1024, 2048)
    case = Case(what, "R-50 D8", size, batch, published_model("resnet50", 8))
    run = build(case.request(Implementation("", profile("fast", **changes)), "cuda", 0))
    for _ in range(3 if what == "train" else 12):
        run()
    graphs = counters["stats"].get("unique_graphs", 0)
    breaks = sum(counters["graph_break"].values())
    return [{"what": what, "batch": batch, "graphs": graphs, "breaks": breaks, "ok": graphs == 1}]


def kernels() -> Lines:
    """The fifteen longest kernels of a fast training step and a fast prediction."""
    found: Lines = []
    for what, size, batch in (("train", (512, 1024), 2), ("infer", (1024, 2048), 1)):
        case = Case(what, "R-50 D8", size, batch, published_model("resnet50", 8))
        run = build(case.request(Implementation("", profile("fast")), "cuda", 0))
        for _ in range(12):
            run()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as recorded:
            for _ in range(3):
                run()
        longest = shares(recorded, on_gpu=True)
        total = sum(each.seconds for each in longest)
        found.append({"of": what, "kernel": "all", "ms": round(1000 * total / 3, 3), "calls": None})
        for each in longest[:15]:
            ms = round(1000 * each.seconds / 3, 3)
            found.append({"of": what, "kernel": each.name[:100], "ms": ms, "calls": each.calls / 3})
    return found


class Noise:
    """A data set in memory: any image of a size, any labels."""

    manifest_hash = "0" * 64

    def __init__(self, classes: int, size: tuple[int, int], count: int = 64) -> None:
        self.num_classes, self.size = classes, size
        self.ids = [f"image{number}" for number in range(count)]

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, i: int) -> Any:
        """``H x W x 3``, uint8."""
        return np.random.default_rng(i).integers(0, 256, (*self.size, 3), dtype=np.uint8)

    def mask(self, i: int) -> Any:
        """``H x W``, uint8."""
        return np.random.default_rng(i).integers(0, self.num_classes, self.size, dtype=np.uint8)


def short_row(
    name: str, iterations: int, batch: int, crop: tuple[int, int], small: bool = False, **numerics: Any
) -> tuple[Row, int]:
    """A row with a short schedule, also on images of about its crop's size, and its number of classes."""
    params = load_params()
    fields = params.row(name).model_dump()
    fields["numerics"] |= numerics
    fields["schedule"] |= {"iterations": iterations, "epochs": None, "batch_size": batch}
    fields["augment"]["crop_size"] = crop
    if small and fields["augment"]["resize"]["scale"]:
        fields["augment"]["resize"]["scale"] = crop
    fields["loss"]["replicas"] = 1
    fields["runtime"] |= {"checkpoint_interval": iterations, "log_interval": iterations, "progress": "never"}
    row = Row.model_validate(fields)
    return row, flops.classes_of(row, params)


class Timed(Trainer):
    """Notes when it is warm: compiled, kernels chosen, workers awake."""

    WARM = 15
    began = waited = 0.0

    def _train_on(self, stream: Any) -> None:
        if self.iteration == self.WARM:
            torch.cuda.synchronize()
            self.began, self.waited = time.perf_counter(), stream.waited
        super()._train_on(stream)


def trainer_of(row: Row, classes: int, folder: Path, size: tuple[int, int], **more: Any) -> Timed:
    """The row's trainer on images of a size, with its checkpoints in a folder."""
    seed_initialisation(0)
    model = build_model(row.model, classes, row.numerics.attention)
    identity = TrainingIdentity.of(row, 0, data=Noise.manifest_hash, initial_weights=None)
    process = Process(device=torch.device("cuda", 0))
    return Timed(
        row, 0, model, Noise(classes, size), CheckpointStore(folder, identity), process=process, show=True, **more
    )  # fmt: skip


def _state(trainer: Trainer) -> dict[str, Any]:
    tensors = dict(trainer.model.state_dict())
    for number, values in trainer.optimizer.state_dict()["state"].items():
        tensors[f"momentum of {number}"] = values["momentum_buffer"]
    return {name: tensor.clone() for name, tensor in tensors.items()}


def resume() -> Lines:
    """Deterministic training, stopped and continued: the same bits?"""
    found: Lines = []
    for name in METHODS:
        for precision in ("fp32", "bf16"):
            line: dict[str, Any] = {"row": name, "precision": precision}
            with tempfile.TemporaryDirectory() as folder:
                try:
                    line |= _resumed(name, precision, Path(folder))
                except Exception as error:
                    line |= {"ok": False, "error": _short(error)}
            found.append(line)
            print(line, flush=True)
    return found


def _resumed(name: str, precision: str, folder: Path) -> dict[str, Any]:
    row, classes = short_row(name, 6, 4, (193, 257), small=True, precision=precision, deterministic=True)
    states = []
    with configured(row.numerics):
        for part in ("whole", "whole again", "stopped"):
            stop = StopRequest()
            run = trainer_of(row, classes, folder / part, (256, 512), workers=2, stop=stop)
            if part == "stopped":
                calls = iter(range(100))

                def hook(*_: Any, stop: StopRequest = stop, calls: Iterator[int] = calls) -> None:
                    if next(calls) == 2:
                        stop.reason = "test"

                run.model.register_forward_pre_hook(hook)
                with contextlib.suppress(Interrupted):
                    run.run()
                stopped = run.iteration
                run = trainer_of(row, classes, folder / part, (256, 512), workers=0)
            run.run()
            states.append(_state(run))
    first = states[0]
    repeats, resumes = (all(torch.equal(first[key], other[key]) for key in first) for other in states[1:])
    return {"repeats": repeats, "stopped_at": stopped, "resumes": resumes, "ok": repeats and resumes}


def trainer() -> Lines:
    """The real loop with workers: images a second, and the share of time that the GPU waits for data."""
    found: Lines = []
    for name, iterations in (("fast", 80), ("published", 30)):
        line: dict[str, Any] = {"profile": name, "batch": 8, "workers": min(12, provenance.cpu_cores())}
        with tempfile.TemporaryDirectory() as folder:
            try:
                row, classes = short_row(ROW, iterations, 8, (512, 1024), **profile(name).model_dump())
                with configured(row.numerics):
                    run = trainer_of(row, classes, Path(folder), (1024, 2048), workers=line["workers"])
                    history = run.run()
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - run.began
                line |= {
                    "images_per_second": round(8 * (iterations - Timed.WARM) / seconds, 2),
                    "data_wait": round((history.wait_seconds - run.waited) / seconds, 4),
                    "peak_memory_gib": round(history.peak_memory_gib, 3),
                    "energy_kj": history.energy_kj,
                    "ok": True,
                }
            except Exception as error:
                line |= {"ok": False, "error": _short(error)}
        found.append(line)
        print(line, flush=True)
    return found


def memory() -> Lines:
    """Out of memory: the message, and the remedy that it names."""
    found: Lines = []
    total = torch.cuda.get_device_properties(0).total_memory
    for accumulate in (1, 4):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(12 * 2**30 / total)
        line: dict[str, Any] = {"limit_gib": 12, "accumulate": accumulate}
        with tempfile.TemporaryDirectory() as folder:
            row, classes = short_row(ROW, 2, 8, (512, 1024), accumulate=accumulate)
            try:
                with configured(row.numerics):
                    trainer_of(row, classes, Path(folder), (1024, 2048), workers=2).run()
                line |= {"result": "trained", "ok": accumulate > 1}
            except DanetError as error:
                line |= {"result": str(error), "ok": accumulate == 1}
        found.append(line)
        print(line, flush=True)
    return found


def speed(what: str, folder: Path) -> Lines:
    """The benchmark's own files (:mod:`benchmarks.speed`) for a part of its grid."""
    size = (512, 1024) if what.startswith("train") else (1024, 2048)
    options: dict[str, Any] = {}
    if what == "train8":
        cases = [Case("train", "R-50 D8", size, 8, published_model("resnet50", 8))]
        options = {"prefix": "batch-8", "without": ("reference", "published")}
    else:
        cases = [c for c in shapes("cuda", [what]) if c.model is None or (c.network, c.size) == ("R-50 D8", size)]
    if what == "infer":
        options = {"extra": [Implementation(GRAPH, profile("fast"), "bf16", graph=True)]}
    if what == "train":
        half, budget = profile("fast", compile=False, precision="fp16"), profile("fast", memory_budget=BUDGET)
        options = {
            "extra": [
                Implementation(f"fast, memory budget {BUDGET}", budget, "bf16"),
                Implementation("fp16, not compiled", half, "fp16"),
            ]
        }
    files = folder / "benchmarks"
    written = benchmark(
        cases, files, device="cuda", repeat=5, images=IMAGES, say=lambda text: print(text, flush=True), **options
    )
    return [
        {name: line[name] for name in ("implementation", "precision", "batch", *SHOWN, "error")}
        for document, lines in read(files)
        if document["file"] in [path.name for path in written]
        for line in lines
    ]


SHOWN = "images_per_second", "median_s", "against_mmsegmentation", "against_amp", "peak_gb", "roofline_share"


@dataclass(frozen=True)
class Step:
    """What runs in a process of its own."""

    name: str
    compute: Callable[[Path], Lines]
    limit: int
    """Seconds."""
    beside: bool = False
    """Whether it runs beside others, as nothing is timed in it."""


STEPS = (
    Step("environment", lambda out: environment(), 60, beside=True),
    Step("compile-train-2", lambda out: compiles("train", 2), 150, beside=True),
    Step("compile-infer-1", lambda out: compiles("infer", 1), 150, beside=True),
    Step("compile-train-8", lambda out: compiles("train", 8), 150, beside=True),
    Step("compile-budget", lambda out: compiles("train", 2, memory_budget=BUDGET), 150, beside=True),
    Step("tests", lambda out: tests(), 120, beside=True),
    Step("waits", lambda out: waits(), 90, beside=True),
    Step("memory", lambda out: memory(), 120, beside=True),
    Step("resume", lambda out: resume(), 150, beside=True),
    Step("speed-train", lambda out: speed("train", out), 200),
    Step("speed-infer", lambda out: speed("infer", out), 120),
    Step("trainer", lambda out: trainer(), 100),
    Step("kernels", lambda out: kernels(), 60),
    Step("speed-train8", lambda out: speed("train8", out), 90),
    Step("attention", lambda out: attention(), 60),
    Step("speed-confusion", lambda out: speed("confusion", out), 60),
)
"""In the order of their worth; those that run beside others first, as they also compile for the timed ones."""


class Run:
    """A run of steps within a budget of seconds, whose files lie in ``out``, and packed into one archive."""

    def __init__(self, out: Path, budget: float, pack: Path | None) -> None:
        self.out, self.pack = out, pack
        self.patience = 12 if null.running() else 1  # the null device's kernels are compiled by a laptop
        self.end = time.monotonic() + budget * self.patience
        out.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(out / "inductor"))

    def all(self, chosen: Sequence[Step]) -> None:
        """Runs the steps: those that may beside each other, then one after the other."""
        waiting = [step for step in chosen if step.beside]
        together = max(1, provenance.cpu_cores() // 2)
        running: list[tuple[Step, float, subprocess.Popen[bytes]]] = []
        while waiting or running:
            while waiting and len(running) < together:
                running.append(self._start(waiting.pop(0)))
            time.sleep(0.2)
            running = [each for each in running if not self._ended(*each)]
        for step in chosen:
            if not step.beside:
                started = self._start(step)
                while not self._ended(*started):
                    time.sleep(0.2)

    def _start(self, step: Step) -> tuple[Step, float, subprocess.Popen[bytes]]:
        command = [sys.executable, "-u", "-m", "benchmarks.gpu", "step", step.name, "--out", str(self.out)]
        with (self.out / f"{step.name}.log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        return step, time.monotonic(), process

    def _ended(self, step: Step, began: float, process: subprocess.Popen[bytes]) -> bool:
        now = time.monotonic()
        if process.poll() is None:
            if now < min(began + step.limit * self.patience, self.end):
                return False
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)  # its workers too
            process.wait()
            spent = "the run's budget was spent" if now >= self.end else f"took more than {step.limit} s"
        else:
            spent = "" if process.returncode == 0 else f"ended with status {process.returncode}"
        if spent:
            document = {"step": step.name, "problem": spent, "lines": [], "facts": facts()}
            write_text(self.out / f"{step.name}.json", json.dumps(document, indent=1))
        print(f"{step.name}: {spent or 'done'} ({now - began:.0f} s)", flush=True)
        if self.pack is not None:
            with atomic_write(self.pack) as temporary, tarfile.open(temporary, "w:gz") as archive:
                for path in sorted(path for path in self.out.rglob("*") if path.suffix in (".json", ".csv", ".log")):
                    if "inductor" not in path.parts:
                        archive.add(path, path.relative_to(self.out))
        return True


def facts() -> dict[str, Any]:
    """Of this run, for every file."""
    found = provenance.collect()
    return {name: found[name] for name in ("commit", "dirty", "date", "gpu", "torch")} | {"null": null.running()}


def one(step: Step, out: Path) -> None:
    """A step, in this process."""
    if null.running():
        null.blind()
    began = time.perf_counter()
    lines = step.compute(out)
    seconds = round(time.perf_counter() - began, 1)
    document = {"step": step.name, "seconds": seconds, "facts": facts(), "lines": lines}
    write_text(out / f"{step.name}.json", json.dumps(document, indent=1))


def goals(documents: dict[str, dict[str, Any]], folder: Path) -> Lines:
    """The aims for one H100 or H200, each with the figure of the run."""
    lines = {name: document["lines"] for name, document in documents.items()}

    def value(step: str, column: str, implementation: str = "fast") -> float | None:
        found = [line[column] for line in lines.get(step, []) if line["implementation"] == implementation]
        return float(found[0]) if found and found[0] else None

    amp, mine = (value("speed-train", "peak_gb", name) for name in ("mmsegmentation AMP", "fast"))
    train, infer = "training step, 512x1024, batch", "prediction of 1024x2048"
    wanted = [  # the largest figure that will do where it is an upper bound, else the smallest
        (f"{train} 2: times mmsegmentation's AMP", 2.0, False, value("speed-train", "against_amp")),
        (f"{train} 8: times mmsegmentation's AMP", 2.0, False, value("speed-train8", "against_amp")),
        (f"{infer}: times mmsegmentation's fps", 5.0, False, value("speed-infer", "against_mmsegmentation")),
        (f"{train} 2: memory, share of mmsegmentation's AMP", 0.6, True, mine / amp if mine and amp else None),
        (f"{infer}: GiB, weights and backbone in it", 2.0, True, value("speed-infer", "peak_gb")),
    ]
    plain = value("speed-train", "against_mmsegmentation")
    found: Lines = [
        {
            "goal": f"{train} 2: times mmsegmentation without AMP",
            "measured": f"{plain:.2f}" if plain else "not measured",
        }
    ]
    for name, bound, upper, figure in wanted:
        line = {"goal": name, "aim": f"at {'most' if upper else 'least'} {bound:g}", "measured": "not measured"}
        if figure is not None:
            line |= {"measured": f"{figure:.2f}", "reached": "yes" if (figure <= bound) == upper else "no"}
        found.append(line)
    for name, step in (
        ("training step: the host does not wait", "waits"),
        ("stopped and resumed to the bit", "resume"),
    ):
        good = [line["ok"] for line in lines.get(step, [])]
        line = {"goal": name, "aim": "all", "measured": "not measured"}
        if good:
            line |= {"measured": f"{sum(good)} of {len(good)}", "reached": "yes" if all(good) else "no"}
        found.append(line)
    params = load_params(ROOT / "params.yaml")
    published = params.published_rows()
    for each in cost.rates(folder):
        hours = [cost.row_cost(row, params, each).hours for row in published]
        total = None if None in hours else f"{sum(filter(None, hours)):,.0f} h"
        found.append(
            {"goal": f"all {len(published)} published rows on one {each.device}, {each.profile}", "measured": total}
        )
    return found


def page(folder: Path, benchmarks: Path) -> str:
    """The Markdown page of the JSON files in a folder, with the goals from the benchmark files in another."""
    paths = [folder / f"{step.name}.json" for step in STEPS]
    documents = {path.stem: json.loads(path.read_text("utf-8")) for path in paths if path.exists()}
    imaginary = any(document["facts"]["null"] for document in documents.values())
    out = [
        "# On a GPU",
        "",
        "Written by `make gpu`; do not edit. Each step ran in a process of its own, all that are not timed beside each",
        "other. Training steps and predictions in full: [benchmarks/](benchmarks/README.md).",
        "",
    ]
    if imaginary:
        out += ["**On the null device: its kernels compute nothing, so no figure on this page means anything.**", ""]
    out += _table(goals(documents, benchmarks))
    steps: Lines = []
    for step in STEPS:
        if (document := documents.get(step.name)) is None:
            steps.append({"step": step.name, "result": "not run"})
            continue
        good = [line["ok"] for line in document["lines"] if "ok" in line]
        said = document.get("problem") or (f"{sum(good)} of {len(good)} passed" if good else "measured")
        known = document["facts"]
        where = {
            "commit": known["commit"][:7] + ("+" if known["dirty"] else ""),
            "device": known["gpu"],
            "torch": known["torch"],
        }
        steps.append(
            {"step": step.name, "result": said, "seconds": document.get("seconds"), **where, "date": known["date"][:10]}
        )
    out += ["", "## Steps", "", *_table(steps)]
    for name, document in documents.items():
        if document["lines"]:
            out += ["", f"## {name}", "", *_table(document["lines"])]
    return "\n".join(out) + "\n"


def _table(lines: Lines) -> list[str]:
    names = list(dict.fromkeys(name for line in lines for name in line))
    rows = [[line.get(name) for name in names] for line in lines]
    cells = [
        ["-" if cell in (None, "") else " ".join(str(cell).split()).replace("|", "/") for cell in row] for row in rows
    ]
    return [f"| {' | '.join(row)} |" for row in (names, ["-"] * len(names), *cells)]


def take(folder: Path) -> None:
    """Puts a run's files into reports/: steps replace those of earlier runs, and page, plots and cost are made anew.

    A step that was cut replaces nothing.
    """
    steps = [path for step in STEPS if (path := folder / f"{step.name}.json").exists()]
    steps = [
        path
        for path in steps
        if json.loads(path.read_text("utf-8"))["lines"] or not (REPORTS / "gpu" / path.name).exists()
    ]
    for source, target in [
        *((path, REPORTS / "gpu" / path.name) for path in steps),
        *((path, REPORTS / "benchmarks" / path.name) for path in (folder / "benchmarks").glob("*.[cj]s*")),
    ]:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    finish(REPORTS / "benchmarks")
    cost.write(Workspace(ROOT))
    write_text(REPORTS / "gpu.md", page(REPORTS / "gpu", REPORTS / "benchmarks"))


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def main() -> None:
    """The command line.

    Raises:
        ConfigError: without a GPU, or for an unknown step.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="STEP", help=f"of: {', '.join(step.name for step in STEPS)}")
    parser.add_argument("--budget", type=float, default=1200, help="seconds for all steps (default: 1200)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--pack", type=Path, help="an archive of the files, written anew after each step")
    options = parser.parse_args()
    action, *names = options.names or ["run"]
    known = {step.name: step for step in STEPS}
    if action == "take":
        return take(Path(names[0]))
    if action == "step":
        return one(known[names[0]], options.out)
    names = [name for name in options.names if name != "run"]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"{unknown[0]!r} is no step; allowed: {', '.join(known)}")
    if not torch.cuda.is_available():
        if not (tool := null.command()):
            raise ConfigError(
                f"no GPU was found here; {null.VARIABLE}=FOLDER names a null device, on which all steps run"
            )
        os.execv(tool[0], [*map(str, tool), sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:]])  # noqa: S606
    Run(options.out, options.budget, options.pack).all([known[name] for name in names] or STEPS)
    if null.running():
        write_text(options.out / "gpu.md", page(options.out, options.out / "benchmarks"))
        print(f"{options.out / 'gpu.md'}: on the null device, so its figures mean nothing")
    else:
        take(options.out)
        print(REPORTS / "gpu.md")
    return None


if __name__ == "__main__":
    with report_errors():
        main()
