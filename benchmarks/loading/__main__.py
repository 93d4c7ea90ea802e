"""Measures and writes reports/benchmarks/loading.md.

    python -m benchmarks.loading                    # about four minutes; build/parity-env adds mmsegmentation
    python -m benchmarks.loading --images 24 --repetitions 2 --out build/loading/try     # a quick look

Everything on one core, to which all processes are bound. Images are read through the operating system's cache; a disk
that cannot deliver them is not measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import torch

from benchmarks.loading import scenes, timing
from danet.config.params import load_params
from danet.config.row import Augment
from danet.core import provenance
from danet.core.console import report_errors
from danet.core.errors import DanetError
from danet.core.files import write_text
from danet.data.loader import TrainingSet, collate
from danet.data.prefetch import Normaliser
from danet.data.prepared import PreparedDataset

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / "build" / "parity-env" / "bin" / "python"
BATCH = 8
ROW = "mmseg-r50-d8-cityscapes-512x1024-40k"
OTHERS = ("mmseg-r50-d8-cityscapes-769x769-40k", "ssseg-r50-d8-cityscapes", "official-danet-r101-d8-cityscapes")
TARGET = 100.0
OURS = {True: "fast path", False: "reference path"}
STORED = {"raw": "pack, pixels as they are", "source": "pack, PNG"}
MMSEG = {"memory": "arrays in memory", "png": "PNG"}
OUTPUT = {"uint8": "grey levels (uint8)", "float32": "normalised (float32)"}
HEADLINE = (STORED["raw"], OUTPUT["uint8"])
"""What the target is about."""
IDLE = 0.5
"""Load average up to which a machine counts as idle."""


@dataclass(frozen=True)
class Measured:
    """A line of the tables."""

    recipe: str
    pipeline: str
    source: str
    output: str
    rate: timing.Rate


def ours(datasets: Mapping[str, PreparedDataset], images: int, repetitions: int, warm_up: int) -> list[Measured]:
    """Our cases: all of them for the main recipe, raw pack to grey levels for the others."""
    recipes = {name: load_params(ROOT / "params.yaml").row(name).augment for name in (ROW, *OTHERS)}
    wanted = [(ROW, storage, output) for storage in datasets for output in OUTPUT]
    wanted += [(name, "raw", "uint8") for name in OTHERS]
    keys = [(*case, lazy) for case in wanted for lazy in (True, False)]
    rates = timing.rates(
        {
            str(index): preparing(datasets[storage], recipes[name], output, lazy)
            for index, (name, storage, output, lazy) in enumerate(keys)
        },
        images,
        repetitions,
        warm_up,
    )
    return [
        Measured(name, OURS[lazy], STORED[storage], OUTPUT[output], rates[str(index)])
        for index, (name, storage, output, lazy) in enumerate(keys)
    ]


def preparing(dataset: PreparedDataset, augment: Augment, output: str, lazy: bool) -> Callable[[int], None]:
    """What a loading process does: reads, augments and stacks the batches of the first positions of a run."""
    samples = TrainingSet(dataset, augment, seed=0, lazy=lazy)
    normalise = Normaliser(augment, torch.device("cpu"))

    def run(images: int) -> None:
        for first in range(0, images, BATCH):
            batch = collate([samples[position] for position in range(first, first + BATCH)])
            if output == "float32":
                normalise(batch.images, batch.boxes or [])

    return run


def peer(pairs: Path, images: int, repetitions: int, warm_up: int) -> tuple[list[Measured], dict[str, str]]:
    """mmsegmentation's cases and its versions; nothing where its environment is missing."""
    if not PEER.exists():
        return [], {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rates.json"
        numbers = [str(number) for number in (images, repetitions, warm_up)]
        command = [str(PEER), "-W", "ignore", "-m", "benchmarks.loading.peer", str(pairs), str(out), *numbers]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        if done.returncode:
            raise DanetError(f"mmsegmentation's pipeline failed in {PEER.parents[1]}: {done.stderr.strip()[-500:]}")
        found = json.loads(out.read_text(encoding="utf-8"))
    measured = []
    for name, values in found["rates"].items():
        where, output = name.split("/")
        measured.append(
            Measured(
                ROW,
                f"mmsegmentation {found['versions']['mmsegmentation']}",
                MMSEG[where],
                OUTPUT[output],
                timing.Rate(**values),
            )
        )
    return measured, found["versions"]


def table(measured: list[Measured]) -> str:
    """The lines of one recipe or of several."""
    head = ["pipeline", "from", "to", "images/s", "slowest to fastest", "images/s of CPU time"]
    lines = [
        [
            line.pipeline,
            line.source,
            line.output,
            f"**{line.rate.wall:.0f}**",
            f"{line.rate.slowest:.0f} to {line.rate.fastest:.0f}",
            f"{line.rate.cpu:.0f}",
        ]
        for line in measured
    ]
    if len({line.recipe for line in measured}) > 1:
        head.insert(0, "row")
        lines = [[line.recipe, *cells] for line, cells in zip(measured, lines, strict=True)]
    marks = ["---"] * (len(head) - 3) + ["---:"] * 3
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, marks, *lines))


def page(measured: list[Measured], facts: Mapping[str, Any], settings: Mapping[str, int]) -> str:
    """The Markdown page."""
    main, others = ([line for line in measured if (line.recipe == ROW) == mine] for mine in (True, False))
    from_raw = {line.pipeline: line.rate for line in main if (line.source, line.output) == HEADLINE}
    fast, reference = from_raw[OURS[True]], from_raw[OURS[False]]
    against = "; mmsegmentation was not there to compare with (`make parity` makes its environment)"
    like = next((line for line in main if (line.source, line.output) == (MMSEG["memory"], HEADLINE[1])), None)
    if like is not None:
        against = (
            f", {like.pipeline} {like.rate.wall:.0f} ({like.rate.cpu:.0f}) from arrays in memory, up to the same point"
        )
    busy = float(facts["load"])
    shown = {name: value for name, value in facts.items() if name != "load"}
    shown["load of the machine before"] = f"{busy:.1f}{' (not idle: preliminary)' if busy > IDLE else ''}"
    paragraphs = [
        "<!-- Made by `python -m benchmarks.loading`; do not edit. -->",
        "# Training images a second on one core",
        f"**{fast.wall:.0f} images/s** ({fast.cpu:.0f} by CPU time) from the raw pack to batches of grey levels, which "
        "is what training on a GPU takes: it normalises them itself. The reference path makes "
        f"{reference.wall:.0f} ({reference.cpu:.0f}){against}. The target is {TARGET:.0f}.",
        f"Recipe of `{ROW}`: images of 1024x2048, ratio 0.5 to 2, crop 512x1024 with up to 10 redraws, mirror, "
        "colours. Both paths give the same samples to the bit (`tests/data/test_fast_transforms.py`).",
        table(main),
        "Other recipes on the same images:",
        table(others),
        f"{settings['count']} generated images (dead leaves under 1/f noise), {settings['images']} samples in batches "
        f"of {BATCH} a repetition, median of {settings['repetitions']} after {settings['warm_up']} that do not count. "
        "One core, to which the process is bound; OpenCV and torch with one thread. Files come from the operating "
        "system's cache. CPU time leaves out what other programs took of the core, though not of its caches.",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in shown.items())]),
    ]
    return "\n\n".join(paragraphs) + "\n"


def provenance_facts(load: float, versions: Mapping[str, str]) -> dict[str, Any]:
    """Where and with what it was measured."""
    found = provenance.collect()
    commit = f"{found['commit'][:12]}{' with changes' if found['dirty'] else ''}"
    facts = {
        "commit": commit,
        "date": found["date"],
        "command": found["command"],
        "CPU": f"{found['cpu']}, {found['cpu_cores']} core used",
        "system": found["os"],
        "ours": f"Python {found['python']}, OpenCV {cv2.__version__}, Pillow {PIL.__version__}, "
        f"NumPy {np.__version__}, torch {torch.__version__}",
    }
    if versions:
        facts["mmsegmentation's"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return facts | {"load": load}


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loading", description="Times the preparation of images."
    )
    parser.add_argument("--count", type=int, default=24, help="generated images (default: %(default)s)")
    parser.add_argument("--images", type=int, default=96, help="samples a repetition (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="that count (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=1, help="repetitions before them (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks", help="folder to write to")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("count", "images", "repetitions", "warm_up")}
    with report_errors():
        load = os.getloadavg()[0]
        timing.one_core()
        cv2.setNumThreads(0)
        torch.set_num_threads(1)
        if options.images % BATCH:
            raise DanetError(f"--images {options.images}: give a multiple of {BATCH}")
        folder = ROOT / "build" / "loading" / f"{options.count}-images"
        prepared = scenes.prepare(folder, options.count)
        datasets = {storage: PreparedDataset(path, "train") for storage, path in prepared.items()}
        numbers = options.images, options.repetitions, options.warm_up
        measured = ours(datasets, *numbers)
        peers, versions = peer(folder / "pairs", *numbers)
        measured = sorted([*measured, *peers], key=lambda line: line.recipe != ROW)
        facts = provenance_facts(load, versions)
        text = page(measured, facts, settings)
        write_text(options.out / "loading.md", text)
    sys.stdout.write(f"{text.split(chr(10) * 2)[2]}\n{table([line for line in measured if line.recipe == ROW])}\n")


if __name__ == "__main__":
    main()
