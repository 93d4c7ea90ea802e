"""What was measured, and its CSV files."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.speed.cases import PEER, Case, Implementation
from danet.core.files import write_json, write_text
from danet.core.provenance import cpu_cores
from danet.evaluation import flops
from danet.results.speed import COLUMNS, device_name


@dataclass
class Measured:
    """One line of a table."""

    case: Case
    implementation: Implementation
    rounds: list[float]
    """Seconds, each to be compared with another implementation's in the same round."""
    peak_gb: float | None = None
    error: str = ""
    torch: str = ""
    kernels: list[tuple[str, float, float]] | None = None
    """The longest: name, milliseconds and calls in one run."""

    @property
    def median(self) -> float | None:
        """Seconds."""
        return statistics.median(self.rounds) if self.rounds else None


@dataclass(frozen=True)
class Peaks:
    """What the device was measured to do at best, by precision and in bytes/s (read and write)."""

    flop_per_s: Mapping[str, float]
    bytes_per_s: float


def against_peer(line: Measured, lines: Iterable[Measured], name: str = PEER) -> float | None:
    """Median over rounds of the peer's time over this one's, of the same case."""
    peers = [other.rounds for other in lines if other.case == line.case and other.implementation.name == name]
    ratios = [theirs / ours for rounds in peers for theirs, ours in zip(rounds, line.rounds, strict=False)]
    return statistics.median(ratios) if ratios else None


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
        "repeat": len(line.rounds),
        "threads": case.threads or cpu_cores(),
        "torch": line.torch,
        "error": line.error,
    }
    if line.peak_gb is not None and not line.error:
        result["peak_gb"] = f"{line.peak_gb:.3f}"
    if median is None or line.error:
        return result
    spread = float(np.subtract(*np.percentile(line.rounds, [75, 25])))
    result |= {
        "images_per_second": f"{case.batch / median:.4g}",
        "median_s": f"{median:.5g}",
        "iqr_s": f"{spread:.3g}",
    }
    for column, name in (("against_mmsegmentation", PEER), ("against_amp", f"{PEER} AMP")):
        if (ratio := against_peer(line, lines, name)) is not None:
            result[column] = f"{ratio:.3f}"
    if case.model is not None and case.what in ("infer", "train"):
        passes, seen = (flops.TRAINING_PASSES, case.size)
        if case.what == "infer":
            passes, seen = flops.forward_passes(case.test, case.size)
        work = flops.count(case.model, case.classes, seen, case.batch, case.what == "train")
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


def write(
    folder: Path, measured: Sequence[Measured], peaks: Peaks, facts: Mapping[str, Any], prefix: str = ""
) -> list[Path]:
    """Writes a CSV file per subject, and the facts of the run as JSON beside it; returns the CSV files.

    A file's name states subject, device and torch's version: what it is told on any turn of a run.
    """
    written = []
    for subject in dict.fromkeys(line.case.what for line in measured):
        lines = [line for line in measured if line.case.what == subject]
        torch_version = str(facts["torch"]).partition("+")[0]
        parts = [subject, prefix, slug(device_name(facts)), f"torch{torch_version}"]
        path = folder / ("-".join(part for part in parts if part) + ".csv")
        table = pd.DataFrame([record(line, lines, peaks) for line in lines], columns=COLUMNS)
        write_text(path, table.to_csv(index=False))
        document = {
            "device": device_name(facts),
            "kind": facts["device"],
            "peak_flop_per_s": dict(peaks.flop_per_s),
            "peak_bytes_per_s": peaks.bytes_per_s,
            "facts": dict(facts),
            "kernels": {
                f"{line.case.network} {flops.size_text(line.case.size)}, batch {line.case.batch}": line.kernels
                for line in lines
                if line.kernels
            },
        }
        write_json(path.with_suffix(".json"), document)
        written.append(path)
    return written
