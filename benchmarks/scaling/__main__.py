"""Measures that a row trains alike on any number of processes.

    .venv/bin/python -m benchmarks.scaling          # minutes; writes reports/scaling.md and .json

The loss curves are of real trainings of a full-width DANet by torchrun over gloo.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling.worker import BATCH, ROW
from danet.core import provenance
from danet.core.console import report_errors
from danet.core.errors import DanetError
from danet.core.files import write_json, write_text

WORLDS = (1, 2, 4)
TOLERANCE = 1e-4
CONTROL = "1 process, 2 threads"
Measured = dict[str, Any]


def train(world: int, folder: Path, crop: int, steps: int, stop_after: int | None = None, threads: int = 1) -> Measured:
    """Runs the worker in ``world`` processes; returns what the first one found."""
    out = folder.with_suffix(".json")
    settings = {"folder": str(folder), "crop": crop, "steps": steps, "stop_after": stop_after}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m"]
    done = subprocess.run(
        [*command, "benchmarks.scaling.worker", str(out), json.dumps(settings)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DanetError(f"a training on {world} processes failed: {done.stderr.strip()[-2000:]}")
    found: Measured = json.loads(out.read_text(encoding="utf-8"))
    return found


def measure(steps: int, crop: int) -> Measured:
    """All trainings: curves on 1, 2, 4 processes, and resumed from 2 on 1 and 4."""
    found: Measured = {"row": ROW, "batch": BATCH, "crop": crop}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        found["curves"] = [train(world, root / f"curve{world}", crop, steps) for world in WORLDS]
        found["control"] = train(1, root / "control", crop, steps, threads=2)
        train(2, root / "stopped", crop, steps, stop_after=steps // 2)
        found["resumed"] = []
        for world in (1, 4):
            shutil.copytree(root / "stopped", root / f"resumed{world}")
            found["resumed"].append(train(world, root / f"resumed{world}", crop, steps))
    commit, dirty = provenance.code_version()
    facts = provenance.collect()
    return found | {
        "commit": commit[:10] + (" with changes" if dirty else ""),
        "machine": f"{facts['cpu']}, {facts['cpu_cores']} cores",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[2], 1),
        "date": facts["date"],
    }


def table(head: list[str], lines: list[list[str]]) -> str:
    """A markdown table, numbers to the right."""
    rule = [":---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def columns(found: Measured) -> dict[str, dict[int, float]]:
    """Loss by iteration for every training, by the name of its column."""
    named = {f"{run['world']} process{'es' if run['world'] > 1 else ''}": run["curve"] for run in found["curves"]}
    named |= {f"2, then {run['world']}": run["curve"] for run in found["resumed"]}
    named[CONTROL] = found["control"]["curve"]
    return {name: {int(iteration): loss for iteration, loss in curve} for name, curve in named.items()}


def differences(found: Measured) -> dict[str, float]:
    """Largest relative difference of each training's losses from those of one process."""
    curves = columns(found)
    alone = next(iter(curves.values()))
    return {name: max(abs(curve[i] / loss - 1) for i, loss in alone.items()) for name, curve in curves.items()}


def curve_table(found: Measured) -> str:
    """Loss of every iteration on every number of processes, and the largest difference."""
    curves = columns(found)
    lines = [[str(i), *(f"{curve[i]:.6f}" for curve in curves.values())] for i in sorted(next(iter(curves.values())))]
    away = ["largest relative difference", *(f"{value:.1e}" for value in differences(found).values())]
    return table(["iteration", *curves], [*lines, away])


def page(found: Measured) -> str:
    """``reports/scaling.md``."""
    worst = max(value for name, value in differences(found).items() if name != CONTROL)
    verdict = "within" if worst <= TOLERANCE else "NOT within"
    return (
        "\n\n".join(
            [
                "<!-- Made by `python -m benchmarks.scaling`; do not edit. -->",
                "# Scaling of a row",
                f"Measured on {found['machine']} (load before: {found['load']}), PyTorch {found['torch']}, gloo, "
                f"float32, commit `{found['commit']}`, {found['date']}. "
                "[docs/scaling.md](../docs/scaling.md) explains.",
                "## Loss curves, measured",
                f"`{found['row']}` at full width from random weights on generated images, crops of {found['crop']} x "
                f"{found['crop']}, batch {found['batch']}, the same seed; *2, then N* was stopped half-way on "
                "2 processes and continued on N; the last column is one process again, rounding in another order.",
                f"Largest relative difference **{worst:.1e}**: {verdict} {TOLERANCE:g}.",
                curve_table(found),
            ]
        )
        + "\n"
    )


def main() -> None:
    """Measures, and writes the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="Measures scaling.")
    parser.add_argument("--steps", type=int, default=8, help="of the loss curves (default: %(default)s)")
    parser.add_argument("--crop", type=int, default=65, help="of the loss curves (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    with report_errors():
        found = measure(options.steps, options.crop)
        write_json(options.out / "scaling.json", found)
        write_text(options.out / "scaling.md", page(found))
        sys.stdout.write(f"{curve_table(found)}\n\nwritten to {options.out / 'scaling.md'}\n")


if __name__ == "__main__":
    main()
