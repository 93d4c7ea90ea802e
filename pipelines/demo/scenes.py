"""Generated scenes that a network learns in a minute, packed as the official archives of the three datasets.

They are for the demo and the tests: each class has a colour and texture of its own and a habit of place, so that local
colour decides; regions are large, noise is mild, and no constant prediction reaches 20% mIoU. The archives have the
official names, layouts and file formats, so that download, checksum, unpacking and conversion run as on the real ones.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from danet.core import files
from danet.data import voc2012
from danet.data.layout import Colour

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Sizes:
    """How many images, and of what (height, width). VOC's ``train`` images are half VOC's and half SBD's."""

    train: int = 48
    val: int = 16
    test: int = 4
    size: tuple[int, int] = (96, 128)
    cityscapes: tuple[int, int] = (96, 192)


@dataclass(frozen=True)
class Thing:
    """A class of a scene: its id in the dataset's own labels, colour, stripes, and where it is found."""

    label: int
    colour: Colour
    stripes: tuple[int, int] = (0, 0)
    """Period across and down in pixels; 0 for none."""
    place: tuple[float, float] = (0.3, 0.7)
    """Range of the centre, as a share of the height."""
    aspect: float = 1.0
    """Width over height of the shape."""
    box: bool = False


@dataclass(frozen=True)
class Scene:
    """Bands from the top down (with the share of the height where each ends) and the objects before them."""

    bands: tuple[tuple[Thing, float], ...]
    objects: tuple[Thing, ...]
    extra: tuple[Thing, ...] = ()
    """Small patches of ids that are ignored in training."""


VOC = Scene(
    bands=((Thing(0, (112, 116, 114)), 1.0),),
    objects=(
        Thing(15, (205, 45, 45), (0, 8), (0.45, 0.65), 0.85),
        Thing(7, (45, 65, 210), (0, 0), (0.6, 0.75), 1.7, box=True),
        Thing(12, (225, 195, 45), (8, 0), (0.55, 0.75), 1.3),
        Thing(16, (45, 175, 65), (6, 6), (0.3, 0.55), 0.9),
    ),
)
ADE = Scene(
    bands=((Thing(3, (70, 130, 235)), 0.3), (Thing(1, (198, 190, 180), (10, 0)), 0.68), (Thing(4, (72, 48, 34)), 1.0)),
    objects=(
        Thing(5, (45, 165, 60), (6, 6), (0.3, 0.5), 0.8),
        Thing(13, (210, 45, 50), (0, 8), (0.5, 0.7), 0.85),
        Thing(21, (205, 60, 205), (0, 0), (0.68, 0.8), 1.8, box=True),
    ),
    extra=(Thing(0, (120, 120, 60), (3, 3), (0.45, 0.6)),),
)
STREET = Scene(
    bands=((Thing(23, (228, 236, 250)), 0.3), (Thing(11, (205, 172, 62), (8, 8)), 0.6), (Thing(7, (62, 62, 68)), 1.0)),
    objects=(
        Thing(21, (45, 165, 60), (6, 6), (0.35, 0.5), 0.9),
        Thing(26, (40, 60, 205), (0, 0), (0.65, 0.78), 1.8, box=True),
        Thing(24, (210, 45, 50), (0, 8), (0.55, 0.7), 0.85),
    ),
    extra=(Thing(4, (120, 90, 120), (3, 3), (0.55, 0.65)), Thing(1, (20, 20, 22), (0, 0), (0.98, 1.0), 3.0)),
)


def draw(scene: Scene, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Pixels, Pixels]:
    """One image (H, W, 3) RGB and its labels (H, W) in the dataset's own ids."""
    height, width = size
    labels = np.zeros(size, np.uint8)
    image = np.zeros((*size, 3), np.float32)
    top = 0
    for thing, end in scene.bands:
        bottom = height if end == 1.0 else round(height * (end + rng.uniform(-0.07, 0.07)))
        region = np.zeros(size, bool)
        region[top:bottom] = True
        _paint(image, labels, region, thing, rng)
        top = bottom
    # Every object class is likely to be seen: at least two of three or three of four in each image.
    count = int(rng.integers(len(scene.objects) - 1, len(scene.objects) + 1))
    for index in rng.permutation(len(scene.objects))[:count]:
        thing = scene.objects[int(index)]
        _paint(image, labels, _shape(thing, rng, size, rng.uniform(0.45, 0.62)), thing, rng)
    for thing in scene.extra:
        _paint(image, labels, _shape(thing, rng, size, rng.uniform(0.1, 0.15)), thing, rng)
    image += rng.normal(0, 5, (height, width, 1)) + rng.normal(0, 3, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), labels


def _shape(thing: Thing, rng: np.random.Generator, size: tuple[int, int], share: float) -> NDArray[np.bool_]:
    height, width = size
    radius_y = share * height / 2
    radius_x = min(radius_y * thing.aspect, width / 3)
    y, x = rng.uniform(*thing.place) * height, rng.uniform(0.12, 0.88) * width
    rows, columns = np.ogrid[:height, :width]
    down, across = np.abs(rows - y) / radius_y, np.abs(columns - x) / radius_x
    return np.asarray(np.maximum(down, across) <= 0.9 if thing.box else down**2 + across**2 <= 1)


def _paint(
    image: NDArray[np.float32], labels: Pixels, region: NDArray[np.bool_], thing: Thing, rng: np.random.Generator
) -> None:
    rows, columns = np.nonzero(region)
    colour = np.array(thing.colour, np.float32) + rng.uniform(-8, 8, 3).astype(np.float32)
    shade = np.zeros(len(rows), np.float32)
    for position, period in zip((columns, rows), thing.stripes, strict=True):
        if period:
            shade += np.where(position % period < period // 2, 9, -9)
    image[rows, columns] = colour + shade[:, None]
    labels[rows, columns] = thing.label


def make_archives(folder: Path, seed: int = 0, sizes: Sizes | None = None) -> dict[str, dict[str, Any]]:
    """Writes the five archives of VOC 2012 + SBD, ADE20K and Cityscapes into ``folder``.

    The same seed gives the same scenes. Returns for each dataset
    ``{"archives": [{"file", "checksum"}], "counts": {split: images}}``, as ``datasets.yaml`` wants them.
    """
    sizes = sizes or Sizes()
    makers: dict[str, Callable[[np.random.Generator, Sizes], _Made]] = {
        "voc2012": _voc,
        "ade20k": _ade,
        "cityscapes": _cityscapes,
    }
    result = {}
    for index, (name, make) in enumerate(makers.items()):
        archives, counts = make(np.random.default_rng([seed, index]), sizes)
        entries = []
        for file, members in archives.items():
            with files.atomic_write(folder / file) as temporary:
                if file.endswith(".zip"):
                    _pack_zip(members, temporary)
                else:
                    _pack_tar(members, temporary, "w:gz" if file.endswith(".tgz") else "w")
            entries.append({"file": file, "checksum": f"sha256:{files.sha256(folder / file)}"})
        result[name] = {"archives": entries, "counts": counts}
    return result


_Members = dict[str, bytes]
_Made = tuple[dict[str, _Members], dict[str, int]]


def _voc(rng: np.random.Generator, sizes: Sizes) -> _Made:
    """VOC's tar and SBD's tgz. SBD annotates half of VOC train and some of VOC val again, as the real one does."""
    own = max(sizes.train // 2, 1)
    train = [f"2007_{number:06d}" for number in range(1, own + 1)]
    val = [f"2007_{number:06d}" for number in range(5001, 5001 + sizes.val)]
    extra = [f"2008_{number:06d}" for number in range(1, sizes.train - own + 1)]
    voc: _Members = {}
    sbd: _Members = {}
    root, sbd_root = voc2012.VOC, voc2012.SBD
    in_sbd = {*train[::2], *val[::3], *extra}
    for key in [*train, *val, *extra]:
        image, labels = draw(VOC, rng, sizes.size)
        voc[f"{root}/JPEGImages/{key}.jpg"] = _jpeg(image)
        if key not in extra:
            voc[f"{root}/SegmentationClass/{key}.png"] = _palette_png(_with_border(labels))
        if key in in_sbd:
            sbd[f"{sbd_root}/img/{key}.jpg"] = voc[f"{root}/JPEGImages/{key}.jpg"]
            sbd[f"{sbd_root}/cls/{key}.mat"] = _sbd_mat(labels)
    for name, keys in (("train", train), ("val", val), ("trainval", sorted(train + val))):
        voc[f"{root}/ImageSets/Segmentation/{name}.txt"] = _lines(keys)
    # SBD's own split cuts across VOC's.
    listed = sorted(in_sbd)
    sbd[f"{sbd_root}/train.txt"] = _lines([key for index, key in enumerate(listed) if index % 4 != 3])
    sbd[f"{sbd_root}/val.txt"] = _lines([key for index, key in enumerate(listed) if index % 4 == 3])
    counts = {
        "train": len(train),
        "val": len(val),
        "trainval": len(train) + len(val),
        "trainaug": len(train) + len(extra),
    }
    return {"VOCtrainval_11-May-2012.tar": voc, "benchmark.tgz": sbd}, counts


def _ade(rng: np.random.Generator, sizes: Sizes) -> _Made:
    members: _Members = {}
    for split, folder, count in (("train", "training", sizes.train), ("val", "validation", sizes.val)):
        for number in range(1, count + 1):
            image, labels = draw(ADE, rng, sizes.size)
            key = f"ADE_{split}_{number:08d}"
            members[f"ADEChallengeData2016/images/{folder}/{key}.jpg"] = _jpeg(image)
            members[f"ADEChallengeData2016/annotations/{folder}/{key}.png"] = _png(labels)
    return {"ADEChallengeData2016.zip": members}, {"train": sizes.train, "val": sizes.val}


def _cityscapes(rng: np.random.Generator, sizes: Sizes) -> _Made:
    images: _Members = {}
    labels: _Members = {}
    plan = (
        ("train", ("aachen", "bochum"), sizes.train),
        ("val", ("frankfurt", "lindau"), sizes.val),
        ("test", ("berlin",), sizes.test),
    )
    for split, cities, count in plan:
        for number in range(count):
            city = cities[number % len(cities)]
            stem = f"{split}/{city}/{city}_{number:06d}_000019"
            image, ids = draw(STREET, rng, sizes.cityscapes)
            if split == "test":
                ids = np.where(ids == 1, 1, 3).astype(np.uint8)  # the real test labels are withheld, too
            images[f"leftImg8bit/{stem}_leftImg8bit.png"] = _png(image)
            labels[f"gtFine/{stem}_gtFine_labelIds.png"] = _png(ids)
            labels[f"gtFine/{stem}_gtFine_color.png"] = b"not used"
    archives = {"gtFine_trainvaltest.zip": labels, "leftImg8bit_trainvaltest.zip": images}
    return archives, {"train": sizes.train, "val": sizes.val, "test": sizes.test}


def _with_border(labels: Pixels) -> Pixels:
    """VOC's masks have a void (255) contour around objects."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    edge = cv2.dilate(labels, cross) != cv2.erode(labels, cross)
    return np.where(edge, 255, labels).astype(np.uint8)


def _sbd_mat(labels: Pixels) -> bytes:
    """``GTcls.Segmentation``; the real files hold the boundaries too."""
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(stream, {"GTcls": {"Segmentation": labels}}, do_compression=True)
    return stream.getvalue()


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _jpeg(image: Pixels) -> bytes:
    return _encoded(Image.fromarray(image), "JPEG", quality=92)


def _png(array: Pixels) -> bytes:
    return _encoded(Image.fromarray(array), "PNG", compress_level=3)


def _palette_png(labels: Pixels) -> bytes:
    image = Image.fromarray(labels)
    image.putpalette([value for colour in voc2012.colour_map(256) for value in colour])
    return _encoded(image, "PNG")


def _lines(keys: list[str]) -> bytes:
    return "".join(f"{key}\n" for key in keys).encode()


def _pack_zip(members: _Members, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in sorted(members):
            archive.writestr(name, members[name])


def _pack_tar(members: _Members, path: Path, mode: Literal["w", "w:gz"]) -> None:
    with tarfile.open(path, mode) as archive:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            archive.addfile(info, io.BytesIO(members[name]))
