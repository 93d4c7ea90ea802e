"""The command; see the package's docstring."""

from __future__ import annotations

import argparse
import functools
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from joblib import Parallel, delayed

from benchmarks.parity import compare, training
from benchmarks.parity.environment import prepare_environment
from benchmarks.parity.results import ASPECTS, Result
from danet.core import provenance
from danet.core.console import report_errors
from danet.core.files import write_text
from danet.core.provenance import PACKAGE_ROOT as ROOT
from danet.report.markdown import Page

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
    "What hangs on a ReLU's kink or on a norm over few values is compared in float64, in which rounding decides "
    "nothing: the bounds hold on every processor. Float32 has a bound in evaluation mode.",
    "Training: our `Trainer` against each source's own steps, R-50, with the learning rates, groups, momentum and "
    "weight decay of the recipe, poly over the iterations. Both start as a fine-tuning does: gates 0, norms the "
    "identity, the last norm of each residual branch 0. The labels can be learned from the colours.",
    "The IoU of mmsegmentation and torchmetrics are quotients in float32, hence 1e-7 there.",
    "The bias of the attention's key has gradient 0 in exact arithmetic; its rounding errors are measured against "
    "the key's weight.",
    "mmsegmentation divides the losses by the number of pixels plus 1.2e-7, which no float32 holds; in training so "
    "does ours here.",
    "sssegmentation returns the uncropped sample where the last crop has no label: not followed, it has no batch.",
    "Learning rates and multi-scale testing of mmsegmentation's rows follow 0.x; 1.x is our named variant "
    "(`denominator: T-1`, `relative_to: image`, `pad.image: black`), and the package is compared with that.",
)


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


def verdict(passed: bool) -> str:
    """A cell of the tables."""
    return "ok" if passed else "**broken**"


def report(results: list[Result], seconds: float) -> str:
    """The Markdown page."""
    broken = sum(not result.passed for result in results)
    facts = provenance.collect()
    packages = ("mmsegmentation", "sssegmentation", "torchmetrics")
    peers = sorted({r.against.split(" (")[0] for r in results if r.against.startswith(packages)})
    page = Page("Written by `make parity` (`python -m benchmarks.parity`); do not edit.")
    page.heading(1, "Parity with the sources")
    page.text("CPU, dropout off.")
    page.text(
        f"**{len(results) - broken} of {len(results)} comparisons within their bounds.**"
        + (f" Broken: {broken}." if broken else "")
    )
    lines = [
        ["commit", f"{facts['commit'][:12]}{' and uncommitted changes' if facts['dirty'] else ''}"],
        ["date", facts["date"]],
        [
            "ours",
            f"Python {facts['python']}, torch {facts['torch']}, numpy {np.__version__}, OpenCV {cv2.__version__}",
        ],
        ["compared with", f"{', '.join(peers)}; own references and closed forms"],
        ["duration", f"{seconds / 60:.1f} min"],
    ]
    page.table((["", ""], lines, "ll"))
    page.heading(2, "By source and aspect")
    page.text("The largest difference measured in each.")
    results = sorted(results, key=lambda r: (SOURCES.index(r.source), list(ASPECTS).index(r.aspect), r.case))
    lines = []
    for (source, aspect), group in itertools.groupby(results, key=lambda r: (r.source, r.aspect)):
        cases = list(group)
        bound = " or ".join(number(limit) for limit in sorted({result.limit for result in cases}))
        worst = max(cases, key=lambda r: (not r.passed, r.measured / r.limit if r.limit else r.measured))
        meaning, largest = ASPECTS[aspect][0], number(worst.measured)
        lines.append([source, aspect, meaning, str(len(cases)), largest, bound, verdict(worst.passed)])
    page.table((["source", "aspect", "measured as", "cases", "largest", "bound", ""], lines, "lllrrrl"))
    page.bullets(NOTES)
    page.heading(2, "Every comparison")
    titles = ["source", "aspect", "case", "difference", "bound", "", "compared with", ""]
    lines = [
        [r.source, r.aspect, r.case, number(r.measured), number(r.limit), verdict(r.passed), r.against, r.note]
        for r in results
    ]
    page.table((titles, lines, "lllrrlll"))
    return page.end()


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
    with report_errors():
        raise SystemExit(main())
