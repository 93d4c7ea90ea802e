"""Measures how a row scales on this machine, counts what it sends, and estimates the rest.

    .venv/bin/python -m benchmarks.scaling          # minutes; writes reports/scaling.md and .csv, fills docs/scaling.md
    .venv/bin/python -m benchmarks.scaling --skip-measured      # only what is counted, from the last measurement

The loss curves and speeds are real trainings of a full-width DANet by torchrun over gloo. Everything about GPUs is
counted or estimated, and says so.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling import estimate
from benchmarks.scaling.estimate import Link
from benchmarks.scaling.worker import BATCH, ROW
from danet.config.params import Params, load_params
from danet.core import provenance
from danet.core.console import report_errors
from danet.core.errors import DanetError
from danet.core.files import write_json, write_text

WORLDS = (1, 2, 4)
TOLERANCE = 1e-4
CONTROL = "1 process, 2 threads"
LINKS = (
    Link("NVLink in a node, 300 GB/s", 300e9, 20e-6),
    Link("PCIe 4 x16 in a node, 20 GB/s", 20e9, 20e-6),
    Link("400 Gb/s a GPU between nodes, 45 GB/s", 45e9, 40e-6),
    Link("100 Gb/s a node between nodes, 11 GB/s", 11e9, 50e-6),
)
SPEEDS = (10e12, 25e12, 100e12)
"""Sustained FLOP/s of a GPU, assumed: about half of a V100's or A100's float32 peak, less than half of an H100's, and
tensor cores with bf16."""
TABLES = ("mmsegmentation", "sssegmentation", "official", "clusterdanet")
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


def measure(steps: int, crop: int, timing_crop: int, timing_steps: int) -> Measured:
    """All trainings: curves on 1, 2, 4 processes, resumed from 2 on 1 and 4, and the timed ones."""
    found: Measured = {"row": ROW, "batch": BATCH, "crop": crop, "timing_crop": timing_crop}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        found["curves"] = [train(world, root / f"curve{world}", crop, steps) for world in WORLDS]
        found["control"] = train(1, root / "control", crop, steps, threads=2)
        train(2, root / "stopped", crop, steps, stop_after=steps // 2)
        found["resumed"] = []
        for world in (1, 4):
            shutil.copytree(root / "stopped", root / f"resumed{world}")
            found["resumed"].append(train(world, root / f"resumed{world}", crop, steps))
        found["timed"] = []
        for world, threads in ((1, 1), (1, 2), (2, 1), (4, 1)):
            timed = train(world, root / f"timed{world}{threads}", timing_crop, timing_steps, threads=threads)
            found["timed"].append(timed | {"threads": threads})
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


def largest(found: Measured) -> float:
    """The largest of the differences, without the control's."""
    return max(value for name, value in differences(found).items() if name != CONTROL)


def curve_table(found: Measured) -> str:
    """Loss of every iteration on every number of processes, and the largest difference."""
    curves = columns(found)
    lines = [[str(i), *(f"{curve[i]:.6f}" for curve in curves.values())] for i in sorted(next(iter(curves.values())))]
    away = ["largest relative difference", *(f"{value:.1e}" for value in differences(found).values())]
    return table(["iteration", *curves], [*lines, away])


def curve_csv(found: Measured) -> str:
    """The same as CSV, with all digits."""
    curves, text = columns(found), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["iteration", *curves])
    writer.writerows([i, *(curve[i] for curve in curves.values())] for i in sorted(next(iter(curves.values()))))
    return text.getvalue()


def speed_table(found: Measured) -> str:
    """Images per second and efficiency, measured."""
    lines, alone = [], 0.0
    for run in found["timed"]:
        speed = found["batch"] / statistics.median(run["seconds"][2:])
        alone = alone or speed
        threads = run["world"] * run["threads"]
        used = f"{run['world']} x {run['threads']}"
        lines.append([used, f"{speed:.2f}", f"{speed / alone:.2f}", f"{speed / alone / threads:.0%}"])
    return table(["processes x threads", "images/s", "of one", "of that a thread"], lines)


def counted_table(found: Measured) -> str:
    """What was really sent in a step on two processes, and what the counting says."""
    run = next(run for run in found["curves"] if run["world"] == 2)
    sent, norms = run["sent"], run["norms"]
    return table(
        ["sent by each process in a step", "counted in the run", "by the formula"],
        [
            ["gradients, bytes", f"{sum(sent['bucket_bytes']):,}", f"{4 * run['parameters']:,}"],
            ["gradients, buckets", str(len(sent["bucket_bytes"])), ""],
            ["batch statistics, bytes", f"{sent['statistics_bytes']:,}", f"{sum(4 * (4 * c + 2) for c in norms):,}"],
            ["batch statistics, collectives", str(sent["statistics"]), str(4 * len(norms))],
        ],
    )


def step_table(params: Params) -> str:
    """Compute and communication per step of every kind of network and crop, counted."""
    lines, seen = [], set()
    for row in (row for name in TABLES for row in params.table_rows(name)):
        counted = estimate.step(params, row)
        key = (row.model, row.augment.crop_size, row.dataset)
        if key in seen:
            continue
        seen.add(key)
        height, width = row.augment.crop_size
        images = row.schedule.batch_size
        share = counted.gradient_bytes + counted.statistics_bytes
        lines.append(
            [
                row.name,
                f"{images} x {height} x {width}",
                f"{counted.flops * images / 1e12:.1f}",
                f"{counted.gradient_bytes / 1e6:.0f}",
                str(counted.buckets),
                f"{counted.statistics_bytes / 1e6:.2f}",
                str(counted.statistics),
                f"{counted.flops * images / share / 1e3:.0f}",
            ]
        )
    head = ["row", "batch", "TFLOP", "gradients, MB", "buckets", "statistics, MB", "collectives", "kFLOP/byte"]
    return table(head, lines)


def efficiency_table(params: Params) -> str:
    """Estimated efficiency of one row on more GPUs."""
    lines = []
    for name in ("mmseg-r101-d8-cityscapes-512x1024-80k", "ssseg-r50-d16-voc2012"):
        row = params.row(name)
        counted, images = estimate.step(params, row), row.schedule.batch_size
        for world, link in ((2, 0), (4, 0), (8, 0), (8, 1), (8, 2), (8, 3), (16, 2), (16, 3)):
            if images % world:
                continue
            cells = []
            for speed in SPEEDS:
                alone = counted.flops * images / speed
                best, worst = estimate.step_seconds(counted, images, world, speed, LINKS[link])
                cells.append(f"{alone / world / worst:.0%} to {alone / world / best:.0%}")
            lines.append([name, str(world), str(images // world), LINKS[link].name, *cells])
    speeds = [f"at {speed / 1e12:.0f} TFLOP/s" for speed in SPEEDS]
    return table(["row", "GPUs", "images each", "slowest link", *speeds], lines)


def sweep_table(params: Params) -> str:
    """Estimated hours of the full sweep by the number of GPUs and how many of them train one row."""
    published = [row for name in TABLES for row in params.table_rows(name)]
    lines = []
    for gpus in (1, 8, 64):
        for each in (1, 2, 4, 8):
            fitting = [row for row in published if row.schedule.batch_size % each == 0]
            if each > gpus or len(fitting) < len(published) - 1:
                continue
            cells = []
            for speed in SPEEDS:
                jobs = [
                    estimate.training_seconds(params, row, each if row in fitting else 1, speed, LINKS[0])
                    for row in published
                ]
                cells.append(f"{estimate.makespan(jobs, gpus // each) / 3600:,.0f}")
            lines.append([str(gpus), str(each), str(gpus // each), *cells])
    return table(["GPUs", "GPUs a row", "rows at a time", *(f"hours at {s / 1e12:.0f} TFLOP/s" for s in SPEEDS)], lines)


def fill(text: str, blocks: dict[str, str]) -> str:
    """``text`` with each block between its two marks replaced; raises DanetError where the marks are missing."""
    for name, block in blocks.items():
        marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise DanetError(f"docs/scaling.md: must hold {marks[0]} and {marks[1]} once")
        text = pattern.sub(lambda _, put=f"{marks[0]}\n\n{block}\n\n{marks[1]}": put, text)  # type: ignore[misc]
    return text


def page(found: Measured, params: Params) -> str:
    """``reports/scaling.md``."""
    worst = largest(found)
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
                "## Speed, measured",
                f"Crops of {found['timing_crop']} x {found['timing_crop']}, batch {found['batch']} over all processes; "
                "median of the steps after the second.",
                speed_table(found),
                "## Sent, counted in the run",
                counted_table(found),
                "## A step of every network, counted",
                "Forward and backward of the whole batch; bytes that each process contributes in a step on GPUs.",
                step_table(params),
                "## Efficiency on more GPUs, estimated",
                "Not measured: from the counts, the named bandwidths and assumed sustained speeds. From no overlap "
                "of the gradients' exchange with the backward pass to as much as fits.",
                efficiency_table(params),
                "## The full sweep, estimated",
                "Not measured: training alone, without evaluation; no overlap; NVLink.",
                sweep_table(params),
            ]
        )
        + "\n"
    )


def main() -> None:
    """Measures, and writes the report and the tables of the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="Measures and counts scaling.")
    parser.add_argument("--steps", type=int, default=8, help="of the loss curves (default: %(default)s)")
    parser.add_argument("--crop", type=int, default=65, help="of the loss curves (default: %(default)s)")
    parser.add_argument("--timing-crop", type=int, default=129, help="of the timed runs (default: %(default)s)")
    parser.add_argument("--timing-steps", type=int, default=7, help="of the timed runs (default: %(default)s)")
    parser.add_argument("--skip-measured", action="store_true", help="take the last measurement, count again")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder (default: %(default)s)")
    parser.add_argument("--docs", type=Path, default=Path("docs/scaling.md"), help="default: %(default)s")
    options = parser.parse_args()
    with report_errors():
        record, params = options.out / "scaling.json", load_params()
        if not options.skip_measured:
            measured = measure(options.steps, options.crop, options.timing_crop, options.timing_steps)
            write_json(record, measured)
        elif not record.is_file():
            raise DanetError(f"{record}: does not exist; measure first (leave --skip-measured out)")
        found = json.loads(record.read_text(encoding="utf-8"))
        write_text(options.out / "scaling.md", page(found, params))
        write_text(options.out / "scaling.csv", curve_csv(found))
        blocks = {
            "curves": curve_table(found),
            "speed": speed_table(found),
            "sent": counted_table(found),
            "step": step_table(params),
            "efficiency": efficiency_table(params),
            "sweep": sweep_table(params),
        }
        write_text(options.docs, fill(options.docs.read_text(encoding="utf-8"), blocks))
        worst = largest(found)
        print(f"{curve_table(found)}\n\n{speed_table(found)}")
        print(f"\nwritten to {options.out / 'scaling.md'} and {options.docs}")
        if worst > TOLERANCE:
            raise DanetError(f"the loss curves differ by {worst:.1e}, more than {TOLERANCE:g}")


if __name__ == "__main__":
    main()
