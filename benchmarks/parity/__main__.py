"""The command; see the package's docstring."""

from __future__ import annotations

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
import time
import traceback
import venv
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.parity import compare
from benchmarks.parity.results import ASPECTS, Result
from danet.files import write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / "build" / "parity-env"
OUTPUT = ROOT / "build" / "parity"
REPORT = ROOT / "reports" / "parity.md"
FIXTURES = ROOT / "tests" / "parity" / "data"
STORED = (
    "model-mmseg-small",
    "model-ssseg-small",
    "augment-mmseg-small",
    "augment-ssseg-small",
    "inference-mmseg-inference-small",
    "inference-ssseg-inference-small",
    "init-mmseg",
    "init-ssseg",
    "metrics-mmseg",
    "metrics-ssseg",
)
PEERS = ("mmseg_peer", "ssseg_peer")
SOURCES = ("mmsegmentation", "sssegmentation", "official", "clusterdanet", "all")

CHECKS: tuple[Callable[[], Iterator[Result]], ...] = (
    lambda: compare.check_models(OUTPUT),
    compare.check_official_models,
    lambda: compare.check_initialisation(OUTPUT),
    compare.check_official_initialisation,
    compare.check_backbone_initialisation,
    lambda: compare.check_schedule(OUTPUT),
    compare.check_row_schedules,
    lambda: compare.check_augmentation(OUTPUT),
    compare.check_official_augmentation,
    lambda: compare.check_inference(OUTPUT),
    compare.check_official_inference,
    lambda: compare.check_metrics(OUTPUT),
    lambda: compare.check_training(OUTPUT),
    compare.check_official_training,
)
EXPECTED = {
    # what a complete run must have measured; a peer that wrote nothing must not look like success
    "mmsegmentation": {
        "logits",
        "gradients",
        "initialisation",
        "learning rate",
        "augmentation, pixels",
        "inference, scores",
        "metrics",
        "training, loss curve",
    },
}
EXPECTED |= {source: EXPECTED["mmsegmentation"] for source in ("sssegmentation", "official", "clusterdanet")}


NOTES = (
    "- The IoU of mmsegmentation and torchmetrics are quotients in float32, hence 1e-7 there.",
    "- The bias of the attention's key has gradient 0 in exact arithmetic; its rounding errors are measured against",
    "  the gradient of the key's weight.",
    "- Training starts from weights as training has them, and its labels can be learned: from arbitrary ones twenty",
    "  steps at a recipe's rate amplify rounding errors without limit. Single tensors are compared at a tenth of the",
    "  rate, and so is everything of the official recipe (head 0.03), of which two runs that start one part in 10^7",
    "  apart end 2.6e-3 apart in the loss.",
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
    """Runs both peers, one after the other, into an empty folder."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    for peer in PEERS:
        command: list[str | Path] = [python, "-W", "ignore", "-m", f"benchmarks.parity.peers.{peer}", OUTPUT]
        subprocess.run(command, check=True, cwd=ROOT)


def run_checks() -> list[Result]:
    """All comparisons; one that raises becomes a broken bound, with the error as its note."""
    results: list[Result] = []
    for check in CHECKS:
        start = time.monotonic()
        try:
            results.extend(check())
        except Exception as error:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            results.append(Result("all", "metrics", "a check failed to run", float("inf"), "-", message))
        print(f"parity: {len(results)} measured, {time.monotonic() - start:.0f} s", flush=True)
    for source, aspects in EXPECTED.items():
        for aspect in sorted(aspects - {r.aspect for r in results if r.source == source}):
            results.append(Result(source, aspect, "nothing was measured", float("inf"), "-"))
    return results


def git(*arguments: str) -> str:
    """Output of a git command in the repository, or a dash."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "-"


def number(value: float) -> str:
    """A difference for reading."""
    return "0" if value == 0 else f"{value:.1e}"


def report(results: list[Result], seconds: float) -> str:
    """The Markdown page."""
    broken = [result for result in results if not result.passed]
    changed = git("status", "--porcelain", "--", "danet", "params.yaml", "benchmarks")
    commit = git("rev-parse", "--short=12", "HEAD") + (" and uncommitted changes" if changed not in ("", "-") else "")
    packages = ("mmsegmentation", "sssegmentation", "torchmetrics")
    peers = sorted({r.against.split(" (")[0] for r in results if r.against.startswith(packages)})
    lines = [
        "# Parity with the sources",
        "",
        "Written by `make parity` (`python -m benchmarks.parity`); do not edit.",
        "CPU, float32 unless said otherwise, dropout off.",
        "",
        f"**{len(results) - len(broken)} of {len(results)} comparisons within their bounds.**"
        + (f" Broken: {len(broken)}." if broken else ""),
        "",
        "| | |",
        "|-|-|",
        f"| commit | {commit} |",
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


def write_fixtures() -> None:
    """Copies the small cases for CI."""
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name in STORED:
        shutil.copyfile(OUTPUT / f"{name}.npz", FIXTURES / f"{name}.npz")


def main() -> int:
    """Runs everything; 0 if every bound holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description="Compare with the sources' code.")
    parser.add_argument("--reuse", action="store_true", help="take the peers' outputs of the last run")
    parser.add_argument("--write-fixtures", action="store_true", help="renew tests/parity/data")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as the peers: sums in the same order
    start = time.monotonic()
    if not arguments.reuse:
        run_peers(prepare_environment())
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
    if arguments.write_fixtures:
        write_fixtures()
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
