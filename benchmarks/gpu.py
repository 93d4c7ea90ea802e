"""Proves the harness on one GPU and says how fast it is, in minutes: ``make gpu``.

    python -m benchmarks.gpu [--budget SECONDS] [--out FOLDER] [STEP ...]
    python -m benchmarks.gpu take FOLDER    # files of a run elsewhere: into reports/, with the page

Each step is a process of its own under a time limit and writes a JSON file as it ends, so that a cut loses no more
than the step in hand; what is worth most comes first. Speed is measured by :mod:`benchmarks.speed`, whose files are
written after each implementation, and what must hold is tested by ``pytest -m gpu``. The last act is reports/gpu.md.
Where there is no GPU, ``DANET_NULL_CUDA`` names the null device (:mod:`benchmarks.null`): all steps run, nothing that
they say means anything, and the page stays in FOLDER.

A machine without network needs, beside this folder and what pyproject.toml asks for, no more than PyTorch, OpenCV,
pandas and matplotlib have with them, pydantic, and for the comparison mmsegmentation, mmengine and mmcv-lite (versions:
benchmarks/parity/requirements-peers.txt) with addict, yapf, platformdirs, termcolor, prettytable and ftfy.
DVC and MLflow are not needed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import null
from benchmarks.speed import cost_page
from benchmarks.speed.cases import PEER, repository
from benchmarks.speed.page import finish
from danet.config.workspace import Workspace
from danet.core import provenance
from danet.core.console import report_errors
from danet.core.errors import ConfigError
from danet.core.files import write_text
from danet.evaluation import cost
from danet.report.markdown import Grid, Page, escape
from danet.results.speed import read

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "reports"
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Step:
    """What runs in a process of its own."""

    name: str
    limit: int
    """Seconds."""
    command: str
    """After ``python``; {out} is the run's folder."""


def _tests() -> str:
    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8"))
    # on the null device which tests there are; tests/nullcuda runs those that can pass there
    how = "--collect-only" if null.running() else "-n 4" if importlib.util.find_spec("xdist") else ""
    return f"-m pytest -m gpu -v -rs -p no:cacheprovider {how} {shlex.join(files)}"


SPEED = "-m benchmarks.speed time --out {out}/benchmarks --what"
STEPS = (
    Step("speed-train", 600, f"{SPEED} train --only 'R-50 D8 512x1024'"),
    Step("speed-infer", 300, f"{SPEED} infer --only 'R-50 D8 1024x2048'"),
    Step("tests", 300, _tests()),
    Step("trainer", 120, "-m benchmarks.trainer"),
    Step("speed-attention", 120, f"{SPEED} attention"),
    Step("speed-confusion", 60, f"{SPEED} confusion"),
)
"""In the order of their worth."""


def perform(step: Step, out: Path, seconds: float) -> str:
    """Runs a step and writes its file; returns what stopped it, or nothing."""
    command = [sys.executable, "-u", *(part.replace("{out}", str(out)) for part in shlex.split(step.command))]
    began, log = time.monotonic(), out / f"{step.name}.log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(seconds)
            problem = f"ended with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            problem = f"took more than {seconds:.0f} s"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)  # its workers too
            process.wait()
    document = {
        "step": step.name,
        "seconds": round(time.monotonic() - began, 1),
        "facts": provenance.collect() | {"null": null.running()},
        "lines": lines_of(log.read_text("utf-8", "replace")),
    }
    write_text(out / f"{step.name}.json", json.dumps(document | ({"problem": problem} if problem else {}), indent=1))
    return problem


def lines_of(log: str) -> Lines:
    """The tests that ended, as ``pytest -v`` says it, with or without pytest-xdist, or the lines of JSON."""
    states = "PASSED|FAILED|ERROR|SKIPPED"
    found = re.findall(rf"^(tests/\S+::.*?) ({states})|^\[gw\d+\].*? ({states}) (tests/\S+::.*)", log, re.MULTILINE)
    pairs = {(a or d).strip(): b or c for a, b, c, d in found}
    tests = [{"test": name, "result": state, "ok": state in ("PASSED", "SKIPPED")} for name, state in pairs.items()]
    return tests or [json.loads(line) for line in log.splitlines() if line.startswith('{"')]


def goals(folder: Path) -> Lines:
    """The aims for one H100 or H200, each with the figure of the run, from the benchmark files in a folder."""
    measured = {
        (line["what"], int(line["batch"]), int(line["height"]), line["implementation"]): line
        for document, lines in read(folder)
        if document["kind"] != "cpu"
        for line in lines
        if line["network"] == "R-50 D8" and line["images_per_second"]
    }

    def value(what: str, batch: int, column: str, implementation: str = "fast") -> float | None:
        line = measured.get((what, batch, 512 if what == "train" else 1024, implementation), {})
        return float(line[column]) if line.get(column) else None

    mine, amp = (value("train", 2, "peak_gb", name) for name in ("fast", f"{PEER} AMP"))
    train, infer = "training step, 512x1024, batch", "prediction of 1024x2048"
    wanted = [  # the largest figure that will do where it is an upper bound, else the smallest
        (f"{train} 2: times mmsegmentation without AMP", None, False, value("train", 2, "against_mmsegmentation")),
        (f"{train} 2: times mmsegmentation's AMP", 2.0, False, value("train", 2, "against_amp")),
        (f"{train} 8: times mmsegmentation's AMP", 2.0, False, value("train", 8, "against_amp")),
        (f"{infer}: times mmsegmentation's fps", 5.0, False, value("infer", 1, "against_mmsegmentation")),
        (f"{train} 2: memory, share of mmsegmentation's AMP", 0.6, True, mine / amp if mine and amp else None),
        (f"{infer}: GiB, weights and backbone in it", 2.0, True, value("infer", 1, "peak_gb")),
    ]
    found: Lines = []
    for name, bound, upper, figure in wanted:
        line: dict[str, Any] = {"goal": name, "measured": "not measured" if figure is None else f"{figure:.2f}"}
        if bound is not None:
            line["aim"] = f"at {'most' if upper else 'least'} {bound:g}"
            if figure is not None:
                line["reached"] = "yes" if (figure <= bound) == upper else "no"
        found.append(line)
    params = repository()
    published = params.published_rows()
    for each in cost.rates(folder):
        hours = [cost.row_cost(row, params, each).hours for row in published]
        total = None if None in hours else f"{sum(filter(None, hours)):,.0f} h"
        title = f"all {len(published)} published rows on one {each.device}, {each.profile}"
        found.append({"goal": title, "measured": total})
    return found


def page(folder: Path, benchmarks: Path) -> str:
    """The Markdown page of the JSON files in a folder, with the goals from the benchmark files in another."""
    order = {step.name: place for place, step in enumerate(STEPS)}
    paths = sorted(folder.glob("*.json"), key=lambda path: (order.get(path.stem, len(STEPS)), path.stem))
    documents = {path.stem: json.loads(path.read_text("utf-8")) for path in paths}
    out = Page("Written by `make gpu`; do not edit.")
    out.heading(1, "On a GPU")
    out.text(
        "Each step ran in a process of its own. Training steps and predictions in full: "
        "[benchmarks/](benchmarks/README.md)."
    )
    if any(document["facts"]["null"] for document in documents.values()):
        out.text("**On the null device: its kernels compute nothing, so no figure on this page means anything.**")
    out.table(_grid(goals(benchmarks)))
    steps: Lines = [{"step": name, "result": "not run"} for name in order if name not in documents]
    for name, document in documents.items():
        good = [line["ok"] for line in document["lines"] if "ok" in line]
        said = document.get("problem") or (f"{sum(good)} of {len(good)} passed" if good else "measured")
        known = document["facts"]
        commit = known["commit"][:7] + ("+" if known["dirty"] else "")
        where = {"commit": commit, "device": known["gpu"], "torch": known["torch"], "date": known["date"][:10]}
        steps.append({"step": name, "result": said, "seconds": document.get("seconds"), **where})
    out.heading(2, "Steps")
    out.table(_grid(steps))
    for name, document in documents.items():
        if document["lines"]:
            out.heading(2, name)
            out.table(_grid(document["lines"]))
    return out.end()


def _grid(lines: Lines) -> Grid:
    names = list(dict.fromkeys(name for line in lines for name in line))
    cells = [["-" if line.get(name) in (None, "") else escape(str(line[name])) for name in names] for line in lines]
    return names, cells, "l" * len(names)


def take(folder: Path) -> None:
    """Puts a run's files into reports/: steps replace those of earlier runs, and page, plots and cost are made anew.

    A step that was cut without a line replaces nothing.
    """
    for path in folder.glob("*.json"):
        document, target = json.loads(path.read_text("utf-8")), REPORTS / "gpu" / path.name
        if document["lines"] or "problem" not in document or not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for path in (folder / "benchmarks").glob("*.[cj]s*"):
        shutil.copyfile(path, REPORTS / "benchmarks" / path.name)
    finish(REPORTS / "benchmarks")
    cost_page.write(Workspace(ROOT))
    write_text(REPORTS / "gpu.md", page(REPORTS / "gpu", REPORTS / "benchmarks"))


def run(steps: Sequence[Step], out: Path, budget: float) -> None:
    """The steps, one after the other, within a budget of seconds."""
    end = time.monotonic() + budget * null.PATIENCE
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(out / "inductor"))
    for step in steps:
        began = time.monotonic()
        left = min(step.limit * null.PATIENCE, end - began)
        problem = perform(step, out, left) if left > 0 else "the run's budget was spent"
        print(f"{step.name}: {problem or 'done'} ({time.monotonic() - began:.0f} s)", flush=True)


def main() -> None:
    """The command line.

    Raises:
        ConfigError: without a GPU, or for an unknown step.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = {step.name: step for step in STEPS}
    parser.add_argument("names", nargs="*", metavar="STEP", help=f"of: {', '.join(known)}")
    parser.add_argument("--budget", type=float, default=1200, help="seconds for all steps (default: %(default)g)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    options = parser.parse_args()
    if options.names[:1] == ["take"]:
        return take(Path(options.names[1]))
    if unknown := set(options.names) - set(known):
        raise ConfigError(f"{min(unknown)!r} is no step; allowed: {', '.join(known)}")
    if not torch.cuda.is_available():
        if not (tool := null.command()):
            raise ConfigError(
                f"no GPU was found here; {null.VARIABLE}=FOLDER names a null device, on which all steps run"
            )
        os.execv(tool[0], [*map(str, tool), sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:]])  # noqa: S606
    run([known[name] for name in options.names] or STEPS, options.out, options.budget)
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
