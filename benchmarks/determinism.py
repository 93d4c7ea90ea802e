"""What the deterministic mode costs and what repeats without it, on the device at hand.

    .venv/bin/python -m benchmarks.determinism              # a minute on a CPU; writes reports/determinism.md

Trains the first steps of a row with its real network on random pixels: twice with ``numerics.deterministic`` and twice
without, from the same seed. The weights after each are compared to the bit; the time is the median of a step's.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core import provenance
from danet.core.console import report_errors
from danet.core.files import write_text
from danet.core.process import Process, select_device
from danet.models import numerics
from danet.models.segmentor import build_model
from danet.results.identity import TrainingIdentity
from danet.training.checkpoint import CheckpointStore
from danet.training.loop import Trainer

CLASSES = 21


class Noise:
    """Images of random pixels with random labels, the same in every run."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self.size, self.ids = size, [f"noise{index}" for index in range(count)]

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, i: int, /) -> NDArray[np.uint8]:
        """``(H, W, 3)``."""
        return np.random.default_rng([i, 0]).integers(0, 256, (*self.size, 3), dtype=np.uint8)

    def mask(self, i: int, /) -> NDArray[np.uint8]:
        """``(H, W)``, in blocks."""
        coarse = np.random.default_rng([i, 1]).integers(0, CLASSES, (-(-self.size[0] // 8), -(-self.size[1] // 8)))
        return np.kron(coarse, np.ones((8, 8), dtype=int))[: self.size[0], : self.size[1]].astype(np.uint8)


def shortened(row: Row, steps: int, batch: int, crop: int, deterministic: bool) -> Row:
    """The row at another size; network, losses, optimizer and augmentation stay."""
    resize = row.augment.resize.model_copy(update={"scale": (crop, crop), "base": None, "rule": "ratio"})
    update = {
        "schedule": row.schedule.model_copy(update={"iterations": steps, "epochs": None, "batch_size": batch}),
        "augment": row.augment.model_copy(update={"resize": resize, "crop_size": (crop, crop)}),
        "numerics": row.numerics.model_copy(update={"deterministic": deterministic}),
        "runtime": row.runtime.model_copy(update={"checkpoint_interval": 10**9, "log_interval": 10**9}),
    }
    return row.model_copy(update=update)


def run(row: Row, device: torch.device, crop: int) -> tuple[str, float]:
    """Digest of the weights after training, and seconds of a step (median, the first two left out)."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder, numerics.configured(row.numerics):
        numerics.seed_initialisation(0)
        model = build_model(row.model, CLASSES, row.numerics.attention)
        store = CheckpointStore(Path(folder), TrainingIdentity.of(row, 0, data="", initial_weights=None))
        trainer = Trainer(row, 0, model, Noise(16, (crop, crop)), store, process=Process(device=device))

        def stamp(*_: object) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter())

        trainer.model.register_forward_pre_hook(stamp)
        trainer.run()
        stamp()
    found = hashlib.sha256()
    for tensor in trainer.model.state_dict().values():
        found.update(tensor.detach().cpu().numpy().tobytes())
    steps = [after - before for before, after in itertools.pairwise(times[2:])]
    return found.hexdigest()[:16], statistics.median(steps)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.determinism", description=__doc__)
    parser.add_argument("--row", default="mmseg-r50-d8-voc2012-20k")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=129)
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, default=Path("reports/determinism.md"))
    arguments = parser.parse_args()
    with report_errors():
        row, device = Workspace().params().row(arguments.row), select_device(arguments.device)
        lines, medians = ["| mode | run | weights | seconds a step |", "|---|---:|---|---:|"], {}
        digests: dict[bool, list[str]] = {False: [], True: []}
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for number in (1, 2):
            for mode in (False, True):
                short = shortened(row, arguments.steps, arguments.batch, arguments.crop, mode)
                digest, taken = run(short, device, arguments.crop)
                digests[mode].append(digest)
                seconds[mode].append(taken)
                lines.append(f"| {'deterministic' if mode else 'default'} | {number} | `{digest}` | {taken:.3f} |")
        medians = {mode: min(values) for mode, values in seconds.items()}
        same = {mode: len(set(values)) == 1 for mode, values in digests.items()}
        facts = provenance.collect(**row.facts)
        text = "\n\n".join(
            [
                "<!-- Made by `python -m benchmarks.determinism`; do not edit. -->",
                "# Cost of the deterministic mode",
                f"**{medians[True] / medians[False] - 1:+.0%} time a step** on {facts['gpu'] or facts['cpu']} "
                f"({device.type}, {torch.get_num_threads()} threads). Two runs give "
                f"{'the same' if same[True] else 'DIFFERENT'} weights with it and "
                f"{'the same' if same[False] else 'different'} ones without.",
                f"{row.name}, {arguments.steps} steps of {arguments.batch} images of {arguments.crop}x{arguments.crop} "
                "random pixels; seconds are the median of a step, the percentage compares the faster run of each mode.",
                "\n".join(lines),
                f"PyTorch {facts['torch']}, CUDA {facts['cuda']}, {facts['os']}, {facts['date']}, "
                f"commit `{facts['commit'][:10]}`{' with uncommitted changes' if facts['dirty'] else ''}.",
            ]
        )
        write_text(arguments.out, text + "\n")
        print(text)


if __name__ == "__main__":
    main()
