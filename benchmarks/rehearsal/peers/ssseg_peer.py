"""sssegmentation 1.7.0 trains a seed, or scores a file of weights, on CamVid: its Trainer and Tester, its data set.

build/parity-env/bin/python -m benchmarks.rehearsal.peers.ssseg_peer FOLDER [WEIGHTS]

Its programs insist on CUDA; here their ``torch`` is one whose calls to CUDA do nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.parity.peers import ssseg_peer as parity  # stand-ins for packages that nothing here passes through

# isort: split
import torch
from ssseg import test, train
from ssseg.modules.datasets import builder
from ssseg.modules.datasets.base import BaseDataset
from ssseg.modules.utils import misc

from benchmarks.rehearsal.peers import CLASSES, stop_with_parent, write_result

CONFIG = Path(__file__).with_name("ssseg_camvid.py")


class CamVidDataset(BaseDataset):
    """CamVid: 11 classes, 11 is unlabelled."""

    classnames: ClassVar[list[str]] = [*CLASSES]
    num_classes = len(classnames)
    clsid2label: ClassVar[dict[int, int]] = {11: -100}
    printed: ClassVar[dict[str, Any]] = {}

    def __init__(self, mode: str, logger_handle: Any, dataset_cfg: dict[str, Any]) -> None:
        super().__init__(mode=mode, logger_handle=logger_handle, dataset_cfg=dataset_cfg)
        folder = Path(dataset_cfg["rootdir"]) / dataset_cfg["set"]
        images = sorted(path for path in folder.iterdir() if path.suffix in {".png", ".jpg"})
        self.image_dir, self.ann_dir = str(folder), f"{folder}annot"
        self.image_ext = images[0].suffix
        self.imageids = [path.stem for path in images]

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """Its own evaluation, whose result is kept."""
        found = super().evaluate(*arguments, **options)
        iou, acc = list(map(float, found["iou"].values())), found["accuracy"]
        CamVidDataset.printed = {
            "miou": 100 * float(found["miou"]),
            "macc": 100 * float(acc.mean()),
            "aacc": 100 * float(found["all_accuracy"]),
            "iou": iou,
        }
        return found


class _OnCpu(types.ModuleType):
    """``torch`` for a program that insists on CUDA."""

    cuda = types.SimpleNamespace(
        is_available=lambda: True,
        set_device=lambda _: None,
        manual_seed_all=lambda _: None,
        empty_cache=lambda: None,
        FloatTensor="torch.FloatTensor",
        LongTensor="torch.LongTensor",
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def tensor(data: Any, device: str | None = None) -> torch.Tensor:
        """Of the CPU, whatever is asked for."""
        return torch.tensor(data)


def prepare() -> None:
    """Lets the programs run without CUDA and know the data set."""
    builder.DatasetBuilder.REGISTERED_MODULES["CamVidDataset"] = CamVidDataset
    train.torch = test.torch = misc.torch = _OnCpu("torch")
    torch.nn.Module.cuda = lambda self, device=None: self
    parallel = torch.nn.parallel.DistributedDataParallel
    train.BuildDistributedModel = test.BuildDistributedModel = lambda model, _: parallel(model)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


def main() -> None:
    """Trains, then scores; with weights scores them alone."""
    stop_with_parent()
    folder = Path(sys.argv[1]).resolve()
    weights = sys.argv[2] if len(sys.argv) > 2 else ""
    prepare()
    (folder / "rendezvous").unlink(missing_ok=True)
    misc.setrandomseed(int(os.environ["REHEARSAL_SEED"]))
    arguments = argparse.Namespace(
        local_rank=0, cfgfilepath=str(CONFIG), ckptspath=weights, eval_env="local", ema=False
    )
    program = (test.Tester if weights else train.Trainer)(arguments)
    program.start()
    if not weights:
        (folder / "checkpoints-epoch-latest.pth").resolve().rename(folder / "released.pth")
    write_result(folder, CamVidDataset.printed, program.cfg.SEGMENTOR_CFG, parity.VERSIONS)


if __name__ == "__main__":
    main()
