"""One process of a measured training; started by torchrun from :mod:`benchmarks.scaling`."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import nn

from danet.config.params import load_params
from danet.config.row import Row
from danet.core.errors import Interrupted
from danet.core.files import write_json
from danet.core.process import Process, processes
from danet.models import numerics
from danet.models.segmentor import build_model
from danet.results.identity import TrainingIdentity
from danet.training.checkpoint import CheckpointStore
from danet.training.loop import Trainer
from danet.training.stop import StopRequest

ROW = "camvid-r50-d8"
"""Its loss is the mean over labelled pixels, the one that needs weighting across processes, and its recipe is one from
random weights: the others start from ImageNet's, and without these their rate makes rounding errors grow by orders of
magnitude in a few steps, on one process as on many."""
BATCH, CLASSES, IMAGES = 4, 11, 10


class Scenes:
    """Coloured blobs whose colour says their class; the share of ignored pixels grows with the index."""

    ids = tuple(f"scene{index}" for index in range(IMAGES))
    _palette = np.random.default_rng(1).integers(0, 256, (CLASSES, 3)).astype(np.uint8)

    def __len__(self) -> int:
        return IMAGES

    def _classes(self, index: int) -> NDArray[np.uint8]:
        coarse = np.random.default_rng(index).integers(0, CLASSES, (8, 10)).astype(np.uint8)
        return np.asarray(cv2.resize(coarse, (200, 160), interpolation=cv2.INTER_NEAREST))

    def image(self, index: int, /) -> NDArray[np.uint8]:
        """``(160, 200, 3)`` BGR."""
        noise = np.random.default_rng(100 + index).normal(0, 12, (160, 200, 3))
        return np.clip(self._palette[self._classes(index)] + noise, 0, 255).astype(np.uint8)

    def mask(self, index: int, /) -> NDArray[np.uint8]:
        """``(160, 200)``."""
        mask = self._classes(index).copy()
        mask[: 16 * index] = 255
        return mask


def row_at(crop: int, steps: int) -> Row:
    """The row at the measurement's size."""
    row = load_params().row(ROW)
    augment = row.augment.model_copy(
        update={"crop_size": (crop, crop), "resize": row.augment.resize.model_copy(update={"scale": (160, 200)})}
    )
    schedule = row.schedule.model_copy(update={"iterations": steps, "epochs": None, "batch_size": BATCH, "replicas": 1})
    changes = {
        "augment": augment,
        "schedule": schedule,
        "loss": row.loss.model_copy(update={"replicas": 1}),
        "weights": "none",
        "runtime": row.runtime.model_copy(update={"log_interval": 1, "workers": 0, "checkpoint_interval": 10**6}),
    }
    return Row.model_validate(row.model_copy(update=changes).model_dump())


def network(row: Row) -> nn.Module:
    """DANet from random weights, each residual branch starting at zero: otherwise rounding errors grow in each step."""
    numerics.seed_initialisation(0)
    model = build_model(row.model, CLASSES, row.numerics.attention)
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.zeros_(parameter)
    return model


def measure(process: Process, folder: Path, crop: int, steps: int, stop_after: int | None) -> dict[str, Any]:
    """Trains and returns the curve; stopped after an iteration, if asked, with a checkpoint left."""
    row = row_at(crop, steps)
    steps_begun = iter(range(1, 10**6))
    with StopRequest() as stop:
        trainer = Trainer(
            row,
            0,
            network(row),
            Scenes(),
            CheckpointStore(folder, TrainingIdentity.of(row, 0, data="", initial_weights=None)),
            process=process,
            stop=stop,
        )

        def tick(*_: object) -> None:
            if next(steps_begun) == stop_after and process.is_main:
                signal.raise_signal(signal.SIGTERM)

        trainer.model.register_forward_pre_hook(tick)
        try:
            history = trainer.run()
        except Interrupted:
            return {"stopped": trainer.iteration}
        curve = [[entry["iteration"], entry["loss"]] for entry in history.curve]
        return {"world": process.world, "curve": curve}


def main() -> None:
    """Joins the other processes and measures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("settings", type=json.loads)
    arguments = parser.parse_args()
    with processes("cpu") as process:
        found = measure(process, Path(arguments.settings.pop("folder")), **arguments.settings)
        if process.is_main:
            write_json(arguments.out, found)


if __name__ == "__main__":
    main()
