"""The command; see the package's docstring."""

from __future__ import annotations

import argparse
import functools
import hashlib
import platform
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import torch
from joblib import Parallel, delayed

from benchmarks.parity import compare, training
from benchmarks.parity.results import ASPECTS, Result
from danet.core.files import write_text
from danet.core.provenance import code_version

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / "build" / "parity-env"
OUTPUT = ROOT / "build" / "parity"
REPORT = ROOT / "reports" / "parity.md"
FIXTURES = ROOT / "tests" / "parity" / "data"
PEERS = ("mmseg_peer", "ssseg_peer")
SOURCES = ("mmsegmentation", "sssegmentation", "official", "clusterdanet", "all")

CHECKS: tuple[Callable[[], Iterator[Result]], ...] = (
    # the longest first
    *(functools.partial(training.check_official_training, kind) for kind in ("dranet", "danet", "clusterdanet")),
    functools.partial(training.check_training, OUTPUT),
    *(functools.partial(compare.check_official_model, kind) for kind in compare.OFFICIAL),
    functools.partial(compare.check_models, OUTPUT),
    functools.partial(compare.check_initialisation, OUTPUT),
    compare.check_official_initialisation,
    functools.partial(compare.check_schedule, OUTPUT),
    compare.check_row_schedules,
    functools.partial(compare.check_augmentation, OUTPUT),
    compare.check_official_augmentation,
    functools.partial(compare.check_inference, OUTPUT),
    compare.check_official_inference,
    compare.check_padded_windows,
    functools.partial(compare.check_metrics, OUTPUT),
)
NOTES = (
    "- What hangs on a ReLU's kink or on a norm over few values is compared in float64, in which rounding decides",
    "  nothing: the bounds hold on every processor. Float32 has a bound in evaluation mode.",
    "- Training: our `Trainer` against each source's own steps, R-50, with the learning rates, groups, momentum and",
    "  weight decay of the recipe, poly over the iterations. Both start as a fine-tuning does: gates 0, norms the",
    "  identity, the last norm of each residual branch 0. The labels can be learned from the colours.",
    "- The IoU of mmsegmentation and torchmetrics are quotients in float32, hence 1e-7 there.",
    "- The bias of the attention's key has gradient 0 in exact arithmetic; its rounding errors are measured against",
    "  the key's weight.",
    "- mmsegmentation divides the losses by the number of pixels plus 1.2e-7, which no float32 holds; in training so",
    "  does ours here.",
    "- sssegmentation returns the uncropped sample where the last crop has no label: not followed, it has no batch.",
    "- Learning rates and multi-scale testing of mmsegmentation's rows follow 0.x; 1.x is our named variant",
    "  (`denominator: T-1`, `relative_to: image`, `pad.image: black`), and the package is compared with that.",
)


def prepare_environment() -> Path:
    """Makes ``build/parity-env`` unless it is there with these requirements; returns its Python."""
    files = [HERE / "requirements.txt", HERE / "requirements-peers.txt"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    python = ENVIRONMENT / "bin" / "python"
    mark = ENVIRONMENT / "requirements.sha256"
    if python.exists() and mark.exists() and mark.read_text() == digest:
        return python
    print(f"parity: making {ENVIRONMENT.relative_to(ROOT)} (a few minutes, once)", flush=True)
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", files[0]], check=True)
    # sssegmentation is a source package that imports torch when it is built
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-r", files[1]], check=True)
    mark.write_text(digest)
    return python


def run_peers(python: Path) -> None:
    """Runs both peers at once, each in one thread, into an empty folder."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    command: list[str | Path] = [python, "-W", "ignore", "-m"]
    running = [subprocess.Popen([*command, f"benchmarks.parity.peers.{peer}", OUTPUT], cwd=ROOT) for peer in PEERS]
    if failed := [process for process in running if process.wait()]:
        raise subprocess.CalledProcessError(failed[0].returncode, failed[0].args)


def run_checks() -> list[Result]:
    """All comparisons, two at a time."""
    results: list[Result] = []
    work = (delayed(lambda check: list(check()))(check) for check in CHECKS)
    for measured in Parallel(n_jobs=2, return_as="generator")(work):
        results += measured
        print(f"parity: {len(results)} measured", flush=True)
    return results


def number(value: float) -> str:
    """A difference for reading."""
    return "0" if value == 0 else f"{value:.1e}"


def report(results: list[Result], seconds: float) -> str:
    """The Markdown page."""
    broken = [result for result in results if not result.passed]
    commit, dirty = code_version()
    packages = ("mmsegmentation", "sssegmentation", "torchmetrics")
    peers = sorted({r.against.split(" (")[0] for r in results if r.against.startswith(packages)})
    lines = [
        "# Parity with the sources",
        "",
        "Written by `make parity` (`python -m benchmarks.parity`); do not edit.",
        "CPU, dropout off.",
        "",
        f"**{len(results) - len(broken)} of {len(results)} comparisons within their bounds.**"
        + (f" Broken: {len(broken)}." if broken else ""),
        "",
        "| | |",
        "|-|-|",
        f"| commit | {commit[:12]}{' and uncommitted changes' if dirty else ''} |",
        f"| date | {datetime.now(UTC):%Y-%m-%d %H:%M} UTC |",
        f"| ours | Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"OpenCV {cv2.__version__} |",
        f"| compared with | {', '.join(peers)}; own references and closed forms |",
        f"| duration | {seconds / 60:.1f} min |",
        "",
        "## By source and aspect",
        "",
        "The largest difference measured in each.",
        "",
        "| source | aspect | measured as | cases | largest | bound | |",
        "|-|-|-|-:|-:|-:|-|",
    ]
    for source in SOURCES:
        for aspect, (meaning, _) in ASPECTS.items():
            cases = [r for r in results if r.source == source and r.aspect == aspect]
            if not cases:
                continue
            limits = sorted({result.limit for result in cases})
            bound = " or ".join(number(limit) for limit in limits)
            worst = max(cases, key=lambda r: (not r.passed, r.measured / r.limit if r.limit else r.measured))
            verdict = "ok" if all(r.passed for r in cases) else "**broken**"
            lines.append(
                f"| {source} | {aspect} | {meaning} | {len(cases)} | {number(worst.measured)} | {bound} | {verdict} |"
            )
    lines += [
        "",
        *NOTES,
        "",
        "## Every comparison",
        "",
        "| source | aspect | case | difference | bound | | compared with | |",
        "|-|-|-|-:|-:|-|-|-|",
    ]
    for result in sorted(results, key=lambda r: (SOURCES.index(r.source), list(ASPECTS).index(r.aspect), r.case)):
        verdict = "ok" if result.passed else "**broken**"
        lines.append(
            f"| {result.source} | {result.aspect} | {result.case} | {number(result.measured)} | "
            f"{number(result.limit)} | {verdict} | {result.against} | {result.note.replace('|', '/')} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs everything; 0 if every bound holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description="Compare with the sources' code.")
    parser.add_argument("--write-fixtures", action="store_true", help="renew tests/parity/data")
    arguments = parser.parse_args()
    start = time.monotonic()
    run_peers(prepare_environment())
    if arguments.write_fixtures:
        for path in (*OUTPUT.glob("*-small.npz"), *OUTPUT.glob("metrics-*.npz")):
            shutil.copy(path, FIXTURES)
    results = run_checks()
    write_text(REPORT, report(results, time.monotonic() - start))
    broken = [result for result in results if not result.passed]
    for result in broken:
        print(
            f"parity: BROKEN {result.source}, {result.aspect}, {result.case}: "
            f"{result.measured:.3g} > {result.limit:.3g} ({result.against}) {result.note}",
            file=sys.stderr,
        )
    print(f"parity: {len(results) - len(broken)} of {len(results)} within their bounds; {REPORT.relative_to(ROOT)}")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
