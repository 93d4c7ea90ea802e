"""The files of a speed benchmark: a CSV file a subject, and the facts of the run as JSON beside it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from danet.core.errors import ConfigError

COLUMNS: Final = (
    "what", "network", "height", "width", "batch", "implementation", "precision", "images_per_second", "median_s",
    "iqr_s", "repeat", "against_mmsegmentation", "against_amp", "peak_gb", "tflop", "gbyte", "tflop_per_s",
    "roofline_s", "roofline_share", "threads", "torch", "error",
)  # fmt: skip


def device_name(facts: Mapping[str, Any]) -> str:
    """``NVIDIA H200``, or ``AMD EPYC, 2 cores``."""
    return str(facts["gpu"]) if facts["device"] != "cpu" else f"{facts['cpu']}, {facts['threads']} cores"


def read(folder: Path) -> list[tuple[dict[str, Any], list[dict[str, str]]]]:
    """The runs in a folder: the facts and the lines of each CSV file that :mod:`benchmarks.speed.results` made.

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
