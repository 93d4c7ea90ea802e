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

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.parity.__main__ import prepare_environment
from benchmarks.speed.cases import Case
from benchmarks.speed.page import finish
from benchmarks.speed.results import write
from benchmarks.speed.rounds import Say, run
from danet.config.row import Numerics
from danet.core.errors import ConfigError


def peer_command(say: Say) -> list[str | Path] | None:
    """mmsegmentation's worker: here if it is installed, else in an environment of its own; None if that fails."""
    try:
        python = sys.executable if importlib.util.find_spec("mmseg") else prepare_environment()
        return [python, "-W", "ignore", "-m", "benchmarks.speed.mmseg"]
    except (subprocess.CalledProcessError, OSError) as error:
        say(f"mmsegmentation is left out: its environment cannot be made ({error}); is there a network?")
        return None


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
    **options: Any,
) -> list[Path]:
    """Measures, writes CSV files and plots to ``out`` and the page over all that lie there; returns the CSV files.

    ``options`` go to :func:`benchmarks.speed.rounds.run`.

    Raises:
        ConfigError: if the device is not here or there is nothing to measure.
        DanetError: if a worker does not start.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: no GPU was found here; use cpu")
    if not cases:
        raise ConfigError("there is nothing to measure: give a ROW or --all-shapes")
    peer = peer_command(say) if with_peer else None
    load = round(os.getloadavg()[0], 2)
    written: list[Path] = []
    # after every turn, so that what ends a long run loses no more than one
    for measured, peaks, facts in run(cases, device, repeat=repeat, peer=peer, own=own, say=say, **options):
        written = write(out, measured, peaks, facts | {"load": load}, prefix)
    finish(out)
    return written
