"""Cityscapes, fine annotations: 19 classes out of 34 label ids; the test split has no labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from danet.data.layout import IGNORE, DatasetSpec, Item, find, pair_folders

IMAGES = "leftImg8bit"
LABELS = "gtFine"

# train id order: (name, label id, RGB)
CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)

LABEL_TO_TRAIN = {label: train for train, (_, label, _) in enumerate(CLASSES)}
TRAIN_TO_LABEL = {train: label for label, train in LABEL_TO_TRAIN.items()}
"""For the test server, which takes label ids."""


def locate(root: Path) -> dict[str, Path]:
    """The folders ``leftImg8bit`` and ``gtFine``, which need not be side by side."""
    return {name: find(root, (f"{name}/val",), f"{name}_trainvaltest.zip") / name for name in (IMAGES, LABELS)}


def layout(found: Mapping[str, Path]) -> list[Item]:
    """``train``, ``val`` and ``test``, each sorted by city and file name, as the official lists are."""
    items: list[Item] = []
    for split in ("train", "val", "test"):
        images, labels = found[IMAGES] / split, None if split == "test" else found[LABELS] / split
        cities = {folder.name for parent in (images, labels) if parent for folder in parent.glob("*/")}
        for city in sorted(cities):
            masks = labels / city if labels else None
            items += pair_folders(images / city, masks, split, ("_leftImg8bit.png",), "_gtFine_labelIds.png")
    return items


SPEC = DatasetSpec(
    name="cityscapes",
    classes=tuple(name for name, _, _ in CLASSES),
    palette=tuple(colour for _, _, colour in CLASSES),
    labels={label: LABEL_TO_TRAIN.get(label, IGNORE) for label in range(34)},
    wanted=re.compile(
        r"(^|/)(leftImg8bit/(train|val|test)/[^/]+/[^/]+_leftImg8bit|gtFine/(train|val)/[^/]+/[^/]+_gtFine_labelIds)\.png$"
    ),
    locate=locate,
    layout=layout,
    image_size=(1024, 2048),
    archives_gb=11.9,
    used_gb=12.0,
)
