"""The real training loop for a few steps on a GPU: ``python -m benchmarks.trainer``, a step of ``make gpu``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from benchmarks import null
from benchmarks.speed.cases import profile, repository
from danet.config.row import Row
from danet.core import provenance
from danet.core.errors import DanetError
from danet.core.process import Process
from danet.data.prepared import PreparedDataset
from danet.evaluation import flops
from danet.models import build_model
from danet.models.numerics import configured, seed_initialisation
from danet.results.identity import TrainingIdentity
from danet.training.checkpoint import CheckpointStore
from danet.training.loop import Trainer

ROW = "mmseg-r50-d8-cityscapes-512x1024-40k"


class Noise:
    """A data set in memory: any image of a size, any labels."""

    manifest_hash = "0" * 64

    def __init__(self, classes: int, size: tuple[int, int], count: int = 64) -> None:
        self.num_classes, self.size = classes, size
        self.ids = [f"image{number}" for number in range(count)]

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, i: int) -> Any:
        """``H x W x 3``, uint8."""
        return np.random.default_rng(i).integers(0, 256, (*self.size, 3), dtype=np.uint8)

    def mask(self, i: int) -> Any:
        """``H x W``, uint8."""
        return np.random.default_rng(i).integers(0, self.num_classes, self.size, dtype=np.uint8)


def short_row(
    name: str, iterations: int, batch: int, crop: tuple[int, int], small: bool = False, **numerics: Any
) -> tuple[Row, int]:
    """A row with a short schedule, also on images of about its crop's size, and its number of classes."""
    params = repository()
    fields = params.row(name).model_dump()
    fields["numerics"] |= numerics
    fields["schedule"] |= {"iterations": iterations, "epochs": None, "batch_size": batch}
    fields["augment"]["crop_size"] = crop
    if small and fields["augment"]["resize"]["scale"]:
        fields["augment"]["resize"]["scale"] = crop
    fields["loss"]["replicas"] = 1
    fields["runtime"] |= {"checkpoint_interval": iterations, "log_interval": -(-iterations // 2)}
    row = Row.model_validate(fields)
    return row, flops.classes_of(row, params)


def trainer_of(row: Row, classes: int, folder: Path, size: tuple[int, int], **more: Any) -> Trainer:
    """The row's trainer on images of a size, with its checkpoints in a folder."""
    seed_initialisation(0)
    model = build_model(row.model, classes, row.numerics.attention)
    identity = TrainingIdentity.of(row, 0, data=Noise.manifest_hash, initial_weights=None)
    process, dataset = Process(device=torch.device("cuda", 0)), cast(PreparedDataset, Noise(classes, size))
    return Trainer(row, 0, model, dataset, CheckpointStore(folder, identity), process=process, show=True, **more)


def throughput() -> None:
    """The real loop with workers, its second half: images a second, and the share of time without data.

    Prints a line of JSON for each profile.
    """
    for name, iterations in (("fast", 80 // null.PATIENCE), ("published", 30 // null.PATIENCE)):
        line: dict[str, Any] = {"profile": name, "batch": 8, "workers": min(12, provenance.cpu_cores())}
        with tempfile.TemporaryDirectory() as folder:
            try:
                row, classes = short_row(ROW, iterations, 8, (512, 1024), **profile(name).model_dump())
                with configured(row.numerics):
                    run = trainer_of(row, classes, Path(folder), (1024, 2048), workers=line["workers"])
                    history = run.run()
                warm = history.curve[-1]
                line |= {
                    "images_per_second": warm["images_per_second"],
                    "data_wait": round(float(warm["data_wait_share"] or 0.0), 4),
                    "peak_memory_gib": round(history.peak_memory_gib, 3),
                    "energy_kj": history.energy_kj,
                    "ok": True,
                }
            except (DanetError, RuntimeError) as error:  # the compiler's are RuntimeErrors
                line |= {"ok": False, "error": " ".join(str(error).split())[:400]}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    if null.running():
        null.blind()
    throughput()
