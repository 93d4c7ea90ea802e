"""The demo's scenes (:mod:`pipelines.demo.scenes`) at Cityscapes' size, prepared as training images."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2

from danet.config.params import Dataset
from danet.core.provenance import PACKAGE_ROOT
from danet.data.convert import convert_dataset
from danet.data.prepared import PreparedDataset
from danet.data.raw import download_dataset
from pipelines.demo.scenes import Sizes, make_archives

FOLDER = PACKAGE_ROOT / "build" / "loading"
PAIRS = FOLDER / "pairs"


def prepare(count: int = 24) -> Path:
    """Makes the pictures and converts them to raw pixels, unless that has been done; the prepared folder.

    :data:`PAIRS` has image and train ids as PNG files, for the peer.
    """
    prepared = FOLDER / "cityscapes"
    if prepared.exists():
        return prepared
    shutil.rmtree(FOLDER, ignore_errors=True)
    archives = FOLDER / "archives"
    made = make_archives(archives, sizes=Sizes(train=count, val=1, test=1, cityscapes=(1024, 2048)))["cityscapes"]
    spec = Dataset.model_validate({"adapter": "cityscapes", "title": "generated", "storage": "raw", **made})
    download_dataset("cityscapes", spec, FOLDER / "download", archives)
    convert_dataset("cityscapes", spec, FOLDER / "download", prepared)
    PAIRS.mkdir()
    samples = PreparedDataset(prepared, "train")
    for index in range(len(samples)):
        for what, pixels in (("image", samples.image(index)), ("labels", samples.mask(index))):
            cv2.imwrite(str(PAIRS / f"{index:06d}_{what}.png"), pixels)
    shutil.rmtree(archives)
    return prepared
