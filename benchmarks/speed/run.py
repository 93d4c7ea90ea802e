"""Our reference path, our fast path and mmsegmentation, in turns on the same machine.

Each implementation is a process of its own (:mod:`.timing`); for a case all are built and warmed up, then each
runs once per round. So a machine that is busy for a while slows all of them, and the ratio of two implementations is
taken round by round. Times are medians with the interquartile range.

A CSV file per subject states device and versions in its name and has a line per case and implementation, with
operations and bytes (:mod:`danet.evaluation.flops`) against the device's measured peaks:
``roofline = max(FLOP / peak FLOP/s, bytes / peak bytes/s)``, ``share = roofline / median``. Operations are counted
as the explicit, unfused network does them in float32, so a path that computes less or fuses more may pass 100%.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.speed.cases import Case
from benchmarks.speed.page import finish
from benchmarks.speed.results import write
from benchmarks.speed.rounds import Say, run
from danet.config.row import Numerics
from danet.core import provenance
from danet.core.errors import ConfigError, DanetError


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
    own: Numerics | None = None,
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


def loader() -> None:
    """Times the training loader beside mmsegmentation's (``benchmarks/loading``), which writes its own page.

    Raises:
        DanetError: if that fails.
    """
    done = subprocess.run([sys.executable, "-m", "benchmarks.loading"], cwd=provenance.PACKAGE_ROOT, check=False)
    if done.returncode:
        raise DanetError(f"python -m benchmarks.loading failed with status {done.returncode}; its message is above")
