"""PASCAL VOC 2012 with the extra annotations of SBD (Hariharan et al. 2011).

Splits: ``train`` and ``val`` as VOC lists them, ``trainval`` = train then val, and
``trainaug`` = (all SBD ids ∪ VOC train) − VOC val, in a fixed order: VOC's train.txt first, then the other SBD ids
sorted. Masks are VOC's own where VOC has one and SBD's otherwise, as in mmsegmentation's ``pascal_voc12_aug``
(whose own list comes out of a set and changes order from one preparation to the next).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from danet.core.errors import DataError
from danet.data.layout import IGNORE, Colour, DatasetSpec, Item, find, read_list

VOC = "VOCdevkit/VOC2012"
SBD = "benchmark_RELEASE/dataset"
SETS = "ImageSets/Segmentation"


def colour_map(count: int) -> tuple[Colour, ...]:
    """The devkit's colours: id bits 0, 3, 6 are red from the highest bit down, 1, 4, 7 green, 2, 5 blue."""
    colours = []
    for index in range(count):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        colours.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colours)


NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)


def locate(root: Path) -> dict[str, Path]:
    """VOC2012's folder and, if there, SBD's ``dataset`` folder."""
    found = {VOC: find(root, ("JPEGImages", SETS), "VOCtrainval_11-May-2012.tar", prefer="VOC2012")}
    with suppress(DataError):
        found[SBD] = find(root, ("cls", "train.txt", "val.txt"), "benchmark.tgz", prefer="dataset")
    return found


def layout(found: Mapping[str, Path]) -> list[Item]:
    """The four splits; without SBD, ``trainaug`` comes from ``SegmentationClassAug`` and its list, or is left out."""
    voc, sbd = found[VOC], found.get(SBD)
    train, val = (read_list(voc / SETS / f"{split}.txt") for split in ("train", "val"))
    aug, masks, suffix = [], voc / "SegmentationClassAug", ".png"
    if sbd is not None:
        aug, masks, suffix = read_list(sbd / "train.txt") + read_list(sbd / "val.txt"), sbd / "cls", ".mat"
    elif masks.is_dir() and (voc / SETS / "trainaug.txt").is_file():
        aug = read_list(voc / SETS / "trainaug.txt")
    extra = sorted(set(aug) - set(train) - set(val))
    in_aug = ("trainaug",) if aug else ()
    items = [_own(voc, key, ("train", "trainval", *in_aug)) for key in train]
    items += [_own(voc, key, ("val", "trainval")) for key in val]
    items += [Item(key, voc / "JPEGImages" / f"{key}.jpg", masks / f"{key}{suffix}", in_aug) for key in extra]
    return items


def _own(voc: Path, key: str, splits: tuple[str, ...]) -> Item:
    return Item(key, voc / "JPEGImages" / f"{key}.jpg", voc / "SegmentationClass" / f"{key}.png", splits)


SPEC = DatasetSpec(
    name="voc2012",
    classes=tuple(NAMES.split()),
    palette=colour_map(21),
    palette_ids={colour: index for index, colour in enumerate(colour_map(256)) if index <= 20 or index == IGNORE},
    labels={**{index: index for index in range(21)}, IGNORE: IGNORE},
    wanted=re.compile(
        r"(^|/)(JPEGImages/[^/]+\.jpg|SegmentationClass(Aug)?/[^/]+\.png|ImageSets/Segmentation/[^/]+\.txt"
        r"|dataset/(cls/[^/]+\.mat|(train|val)\.txt))$"
    ),
    locate=locate,
    layout=layout,
    lists=(*(f"{SETS}/{split}.txt" for split in ("train", "val", "trainaug")), "train.txt", "val.txt"),
    image_size=(375, 500),
    archives_gb=3.4,
    used_gb=1.1,
)
