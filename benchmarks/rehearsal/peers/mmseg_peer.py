"""mmsegmentation 1.2.2 trains a seed, or scores a file of weights, on CamVid: its runner, its data set, its IoUMetric.

build/parity-env/bin/python -m benchmarks.rehearsal.peers.mmseg_peer FOLDER [WEIGHTS]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.parity.peers import mmseg_peer as parity  # registers the package's modules; stand-ins for CUDA

# isort: split
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.datasets import BaseSegDataset
from mmseg.evaluation import IoUMetric
from mmseg.registry import DATASETS, METRICS

from benchmarks.rehearsal.peers import CLASSES, stop_with_parent, write_result

CONFIG = Path(__file__).with_name("mmseg_camvid.py")


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """CamVid; the configuration leaves the last class out, whose labels the base class then ignores."""

    METAINFO: ClassVar[dict[str, Any]] = {"classes": (*CLASSES, "unlabelled")}

    def __init__(self, **settings: Any) -> None:
        images = Path(settings["data_root"]) / settings["data_prefix"]["img_path"]
        super().__init__(
            img_suffix=next(path for path in images.iterdir() if path.suffix in {".png", ".jpg"}).suffix, **settings
        )


@METRICS.register_module(name="IoUMetric", force=True)
class Recording(IoUMetric):
    """Its metric, that keeps what it prints."""

    printed: ClassVar[dict[str, Any]] = {}

    @staticmethod
    def total_area_to_metrics(*arguments: Any, **options: Any) -> Any:
        """Keeps IoU and accuracy of each class before they are rounded."""
        found = IoUMetric.total_area_to_metrics(*arguments, **options)
        Recording.printed["iou"] = found["IoU"].tolist()
        return found

    def compute_metrics(self, results: list[Any]) -> Any:
        """Keeps the summary, in percent with two decimals."""
        summary = super().compute_metrics(results)
        Recording.printed |= {name.lower(): round(float(summary[name]), 2) for name in ("mIoU", "mAcc", "aAcc")}
        return summary


def options(folder: Path) -> dict[str, Any]:
    """What its train.py takes as ``--cfg-options``: the folder, the images and the seed."""
    roots = {f"{part}_dataloader.dataset.data_root": os.environ["CAMVID"] for part in ("train", "val", "test")}
    return roots | {"work_dir": str(folder), "randomness.seed": int(os.environ["REHEARSAL_SEED"])}


def main() -> None:
    """Trains, then scores; with weights scores them alone."""
    stop_with_parent()
    folder = Path(sys.argv[1]).resolve()
    settings = Config.fromfile(CONFIG)
    settings.merge_from_dict(options(folder))
    if len(sys.argv) > 2:
        settings.load_from = sys.argv[2]
        Runner.from_cfg(settings).test()
    else:
        Runner.from_cfg(settings).train()
        Path((folder / "last_checkpoint").read_text()).rename(folder / "released.pth")
    write_result(folder, Recording.printed, settings.to_dict(), parity.VERSIONS)


if __name__ == "__main__":
    main()
