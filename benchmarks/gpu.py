"""Proves the harness on one GPU and says how fast it is, in minutes.

    python -m benchmarks.gpu run [--out FOLDER] [--peer FOLDER] [STEP ...]
    python -m benchmarks.gpu page FOLDER...    # writes reports/gpu.md; a later folder's steps replace an earlier's

Each step is a process of its own under a time limit, and writes a JSON file as it ends, so that a cut loses no more
than the step in hand. ``--peer`` is a folder with mmsegmentation's packages (benchmarks/parity/requirements-peers.txt).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed import rounds
from benchmarks.speed.cases import Case, Implementation, published_model, shapes
from benchmarks.speed.run import benchmark
from benchmarks.speed.timing import PeakMemory
from benchmarks.speed.worker import build
from danet.config.params import load_params
from danet.config.row import Numerics, Row
from danet.core import provenance
from danet.core.console import console
from danet.core.errors import DanetError, Interrupted
from danet.core.files import write_text
from danet.core.process import Process
from danet.evaluation import flops
from danet.models import build_model
from danet.models.attention import fused_attention, reference_attention
from danet.models.numerics import configured, seed_initialisation
from danet.results.identity import TrainingIdentity
from danet.training.checkpoint import CheckpointStore
from danet.training.loop import Trainer
from danet.training.progress import Reporter
from danet.training.stop import StopRequest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "reports" / "gpu.md"
BENCHMARKS = "benchmarks"
ROW = "mmseg-r50-d8-cityscapes-512x1024-40k"
METHODS = (ROW, "official-dranet-r101-d8-cityscapes", "clusterdanet-r101-d8-voc2012")
FAST = Numerics(precision="bf16", channels_last=True, compile=True, fold_bn=True)
EAGER = FAST.model_copy(update={"compile": False})
IMAGES = 30
"""Timed in a prediction, instead of the published method's 200, for the time that a rented GPU costs."""
Lines = list[dict[str, Any]]
CAPTURED: dict[str, Any] = {"capture_output": True, "text": True}


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
    """``pytest -m gpu``."""
    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8"))
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, check=False, **CAPTURED)
    print(done.stdout[-8000:], done.stderr[-2000:], flush=True)
    return [{"ok": done.returncode == 0, "result": done.stdout.strip().splitlines()[-1:] or done.stderr[-200:]}]


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
    for name, numerics in (("fp32", Numerics()), ("bf16 channels_last", EAGER)):
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


def compile_step(what: str, precision: str, batch: int) -> Lines:
    """Whether the network compiles, into how many graphs; fills the compiler's cache for the timings."""
    from torch._dynamo.utils import counters

    numerics = FAST.model_copy(update={"precision": precision})
    size = (512, 1024) if what == "train" else (1024, 2048)
    case = Case(what, "R-50 D8", size, batch, published_model("resnet50", 8))
    began = time.perf_counter()
    run = build(case.request(Implementation("", numerics), "cuda", 0))
    for _ in range(3 if what == "train" else 12):
        run()
    graphs = counters["stats"].get("unique_graphs", 0)
    return [
        {
            "what": what, "precision": precision, "batch": batch, "graphs": graphs, "ok": graphs == 1,
            "breaks": sum(counters["graph_break"].values()), "seconds": round(time.perf_counter() - began, 1),
        }
    ]  # fmt: skip


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


def _row(name: str, iterations: int, batch: int, crop: tuple[int, int], **numerics: Any) -> tuple[Row, int]:
    """A row at a size for minutes, and its number of classes."""
    params = load_params()
    fields = params.row(name).model_dump()
    fields["numerics"] |= numerics
    fields["schedule"] |= {"iterations": iterations, "epochs": None, "batch_size": batch}
    fields["augment"]["crop_size"] = crop
    if fields["augment"]["resize"]["scale"]:
        fields["augment"]["resize"]["scale"] = crop
    fields["loss"]["replicas"] = 1
    fields["runtime"] |= {"checkpoint_interval": iterations, "log_interval": iterations, "progress": "never"}
    row = Row.model_validate(fields)
    return row, flops.classes_of(row, params)


def _trainer(row: Row, classes: int, folder: Path, size: tuple[int, int], **more: Any) -> Trainer:
    seed_initialisation(0)
    model = build_model(row.model, classes, row.numerics.attention)
    identity = TrainingIdentity.of(row, 0, data=Noise.manifest_hash, initial_weights=None)
    process = Process(device=torch.device("cuda", 0))
    return Trainer(
        row, 0, model, Noise(classes, size), CheckpointStore(folder, identity), process=process,
        reporter=Reporter(console, quiet=False), **more
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
    row, classes = _row(name, 6, 4, (193, 257), precision=precision, deterministic=True)
    states = []
    with configured(row.numerics):
        for part in ("whole", "whole again", "stopped"):
            stop = StopRequest()
            run = _trainer(row, classes, folder / part, (256, 512), workers=2, stop=stop)
            if part == "stopped":
                calls = iter(range(100))

                def hook(*_: Any, stop: StopRequest = stop, calls: Iterator[int] = calls) -> None:
                    if next(calls) == 2:
                        stop.reason = "test"

                run.model.register_forward_pre_hook(hook)
                with contextlib.suppress(Interrupted):
                    run.run()
                stopped = run.iteration
                run = _trainer(row, classes, folder / part, (256, 512), workers=0)
            run.run()
            states.append(_state(run))
    first = states[0]
    repeats, resumes = (all(torch.equal(first[key], other[key]) for key in first) for other in states[1:])
    return {"repeats": repeats, "stopped_at": stopped, "resumes": resumes, "ok": repeats and resumes}


def trainer() -> Lines:
    """The real loop with workers: images a second and the share of time that it waits for data."""
    found: Lines = []
    for name, numerics, workers in (("fp32", Numerics(), 12), ("bf16 channels_last", EAGER, 12), ("fast", FAST, 12)):
        used = {"precision": numerics.precision, "channels_last": numerics.channels_last, "compile": numerics.compile}
        line: dict[str, Any] = {"numerics": name, "workers": workers}
        with tempfile.TemporaryDirectory() as folder:
            try:
                row, classes = _row(ROW, 60, 8, (512, 1024), **used)
                with configured(row.numerics):
                    run = _trainer(row, classes, Path(folder), (512, 1024), workers=workers)
                    began: dict[int, float] = {}

                    def note(*_: Any, began: dict[int, float] = began, run: Trainer = run) -> None:
                        if run.iteration == 20:  # compiled, kernels chosen, workers awake
                            torch.cuda.synchronize()
                            began[0] = time.perf_counter()

                    run.model.register_forward_pre_hook(note)
                    history = run.run()
                    torch.cuda.synchronize()
                line |= {
                    "images_per_second": round(8 * 40 / (time.perf_counter() - began[0]), 2) if began else None,
                    "data_wait_share_of_all": round(history.data_wait_share, 4),
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
    for accumulate in (1, "auto"):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(12 * 2**30 / total)
        line: dict[str, Any] = {"limit_gib": 12, "accumulate": accumulate}
        with tempfile.TemporaryDirectory() as folder:
            row, classes = _row(ROW, 2, 8, (512, 1024), accumulate=accumulate)
            try:
                with configured(row.numerics):
                    run = _trainer(row, classes, Path(folder), (512, 1024), workers=2)
                    history = run.run()
                line |= {"result": f"trained, accumulate {history.accumulate}", "ok": accumulate == "auto"}
            except DanetError as error:
                line |= {"result": str(error), "ok": accumulate == 1}
        found.append(line)
        print(line, flush=True)
    return found


def speed(what: str, folder: Path, peer: Path | None) -> Lines:
    """The benchmark's own files (:mod:`benchmarks.speed`) for a part of its grid."""
    rounds.FPS_IMAGES = IMAGES
    size = (512, 1024) if what.startswith("train") else (1024, 2048)
    if what == "train8":
        cases = [Case("train", "R-50 D8", size, 8, published_model("resnet50", 8))]
    else:
        cases = [c for c in shapes("cuda", [what]) if c.model is None or (c.network, c.size) == ("R-50 D8", size)]
    known = folder / "peer.json"
    command = _peer(peer) if known.exists() and json.loads(known.read_text())["lines"] else None
    prefix = "batch-8" if what == "train8" else ""
    written = benchmark(
        cases, folder / BENCHMARKS, device="cuda", repeat=5, prefix=prefix, peer=command, with_peer=False,
        say=lambda text: print(text, flush=True),
    )  # fmt: skip
    return [{"file": path.name, "ok": True} for path in written]


def _peer(folder: Path | None) -> list[str | Path]:
    return [sys.executable, "-W", "ignore", "-c", PEER_START.format(str(folder))]


def peer_starts(folder: Path | None) -> Lines:
    """Whether mmsegmentation is there."""
    if folder is None:
        raise DanetError("mmsegmentation is left out: --peer names no folder")
    subprocess.run(_peer(folder), cwd=ROOT, stdin=subprocess.DEVNULL, check=True)
    return [{"ok": True}]


PEER_START = "import sys; sys.path.insert(0, {!r}); import runpy; runpy.run_module('benchmarks.speed.mmseg', run_name='__main__')"  # noqa: E501

BESIDE = "compile", "peer", "memory"
"""Steps that run beside others, as nothing is timed in them."""
LIMITS: dict[str, int] = {
    "environment": 60, "compile-train-bf16-2": 200, "compile-train-bf16-8": 200, "compile-infer-bf16-1": 200,
    "peer": 90, "memory": 120, "tests": 120, "waits": 60, "resume": 100, "speed-train": 150, "speed-infer": 120,
    "speed-train8": 150, "trainer": 150, "attention": 60, "speed-attention": 60, "speed-confusion": 60,
}  # fmt: skip
"""Seconds."""


def run_step(step: str, out: Path, peer: Path | None) -> Lines:
    """One step, in this process."""
    kind, *rest = step.split("-")
    if kind == "compile":
        return compile_step(rest[0], rest[1], int(rest[2]))
    if kind == "peer":
        return peer_starts(peer)
    if kind == "speed":
        return speed(rest[0], out, peer)
    steps: dict[str, Callable[[], Lines]] = {
        "environment": environment, "tests": tests, "attention": attention, "waits": waits, "memory": memory,
        "resume": resume, "trainer": trainer,
    }  # fmt: skip
    return steps[kind]()


def run_all(chosen: Sequence[str], out: Path, peer: Path | None) -> None:
    """All steps, each in its process; those that compile run beside the ones that time nothing."""
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(out / "inductor"))
    background: list[tuple[str, float, subprocess.Popen[bytes]]] = []
    for step in chosen:
        if step.startswith(BESIDE):
            background.append((step, time.monotonic(), _start(step, out, peer)))
        elif not step.startswith(("environment", "tests", "waits", "resume")):
            for waiting, began, process in background:  # timings want the machine for themselves
                _finish(waiting, began, process, out)
            background.clear()
            _finish(step, time.monotonic(), _start(step, out, peer), out)
        else:
            _finish(step, time.monotonic(), _start(step, out, peer), out)
    for waiting, began, process in background:
        _finish(waiting, began, process, out)


def _start(step: str, out: Path, peer: Path | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-u", "-m", "benchmarks.gpu", "step", step, "--out", str(out)]
    with (out / f"{step}.log").open("wb") as log:
        return subprocess.Popen(
            command + (["--peer", str(peer)] if peer else []), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )


def _finish(step: str, began: float, process: subprocess.Popen[bytes], out: Path) -> None:
    try:
        code = process.wait(max(1.0, LIMITS[step] - (time.monotonic() - began)))
        problem = "" if code == 0 else f"ended with status {code}"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        problem = f"took more than {LIMITS[step]} s"
    path = out / f"{step}.json"
    if problem:
        lines = json.loads(path.read_text())["lines"] if path.exists() else []
        path.write_text(json.dumps({"step": step, "problem": problem, "lines": lines}))
    print(f"{step}: {problem or 'done'} ({time.monotonic() - began:.0f} s)", flush=True)


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _commit(folder: Path) -> str:
    for path in (folder / "environment.json", *sorted((folder / BENCHMARKS).glob("*.json"))):
        if path.exists():
            document = json.loads(path.read_text(encoding="utf-8"))
            lines = {line["what"]: line["is"] for line in document.get("lines", [])} or document["facts"]
            return str(lines["commit"])
    return "unknown"


def page(folders: Sequence[Path]) -> str:
    """The Markdown page of one or more runs' JSON files: every attempt of a step, and the lines of the last."""
    attempts: list[tuple[str, str, dict[str, Any]]] = []
    for folder in folders:
        commit = _commit(folder)
        known = [(step, folder / f"{step}.json") for step in LIMITS]
        attempts += [(commit, step, json.loads(path.read_text("utf-8"))) for step, path in known if path.exists()]
        cut = [step for step, path in known if not path.exists() and (folder / f"{step}.log").exists()]
        attempts += [(commit, step, {"problem": "cut off by the end of the run", "lines": []}) for step in cut]
    out = [
        "# On a GPU",
        "",
        f"Written by `python -m benchmarks.gpu page {' '.join(map(str, folders))}`; do not edit. Every figure was",
        "measured by `python -m benchmarks.gpu run`, each step in a process of its own. Times of training steps and",
        "predictions are in [benchmarks/](benchmarks/README.md).",
        "",
        "| commit | step | result | seconds |",
        "|-|-|-|-:|",
    ]
    for commit, step, document in attempts:
        good = [line["ok"] for line in document["lines"] if "ok" in line]
        said = document.get("problem") or (f"{sum(good)} of {len(good)} passed" if good else "measured")
        out.append(f"| {commit} | {step} | {said} | {document.get('seconds', '-')} |")
    missing = [step for step in LIMITS if step not in [name for _, name, _ in attempts]]
    out += ["", f"Not run: {', '.join(missing) or 'nothing'}."]
    for step, lines in {step: document["lines"] for _, step, document in attempts if document["lines"]}.items():
        names = list(dict.fromkeys(name for line in lines for name in line))
        out += ["", f"## {step}", "", f"| {' | '.join(names)} |", "|-" * len(names) + "|"]
        for line in lines:
            cells = (" ".join(str(line.get(name, "")).split()).replace("|", "/") for name in names)
            out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("action", choices=["run", "step", "page"])
    parser.add_argument("names", nargs="*", help="steps, or the folders of a page")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--peer", type=Path)
    options = parser.parse_intermixed_args()
    if options.action == "page":
        write_text(PAGE, page([Path(name) for name in options.names] or [options.out]))
    elif options.action == "run":
        run_all(options.names or list(LIMITS), options.out, options.peer)
    else:
        (step,) = options.names
        began = time.perf_counter()
        lines = run_step(step, options.out, options.peer)
        document = {"step": step, "seconds": round(time.perf_counter() - began, 1), "lines": lines}
        (options.out / f"{step}.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
