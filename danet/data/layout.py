"""What an adapter says of its dataset: classes, colours, label ids, and where the files lie in an unpacked tree."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from danet.core.errors import DataError
from danet.core.text import reason

IGNORE = 255
"""Train id of pixels that neither train nor count."""

Array8 = NDArray[np.uint8]
Colour = tuple[int, int, int]
"""RGB."""

_SEARCH_DEPTH = 4


@dataclass(frozen=True)
class Item:
    """One image of a layout. The paths are where the files must be; whether they are is the converter's to check."""

    id: str
    image: Path
    mask: Path | None
    splits: tuple[str, ...]


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset's facts. ``locate`` maps official folder names to folders found; ``layout`` lists the images."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    labels: Mapping[int, int]
    """Raw label id -> train id; an id outside it is an error."""
    wanted: re.Pattern[str]
    """Which archive members to unpack (searched in the member's path)."""
    locate: Callable[[Path], dict[str, Path]]
    """Of a tree whose root may lie some levels above or below the official top folder."""
    layout: Callable[[Mapping[str, Path]], list[Item]]
    image_size: tuple[int, int]
    """(height, width) of a validation image: of all, else the commonest or a typical one."""
    archives_gb: float
    """Of the official archives, about."""
    used_gb: float
    """Of the images and masks in them that a row uses, as they come; about."""
    lists: tuple[str, ...] = ()
    """Files below the located folders from which ``layout`` reads the order, where they are there."""
    palette_ids: Mapping[Colour, int] = field(default_factory=dict)
    """Colour -> raw label id, where the official masks are palette PNGs."""
    grey_images: bool = False
    """Whether the official set has 8-bit greyscale images (read as colour with three equal channels)."""

    @property
    def num_classes(self) -> int:
        """Number of train ids, without the ignored one."""
        return len(self.classes)

    def read_mask(self, path: Path) -> Array8:
        """Train ids (H, W) of a mask file as the dataset ships it.

        Raises:
            DataError: naming file and value.
        """
        raw = read_mat(path) if path.suffix == ".mat" else read_index_png(path, self.palette_ids)
        counts = np.bincount(raw.ravel(), minlength=256)
        unknown = [value for value in np.flatnonzero(counts).tolist() if value not in self.labels]
        if unknown:
            shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
            raise DataError(f"{path}: label id {shown} ({counts[unknown].sum()} pixels) is none of {self.name}'s")
        table = np.zeros(256, np.uint8)
        table[list(self.labels)] = list(self.labels.values())
        return table[raw]


def check_image(data: bytes, name: str, *, grey: bool, turned: bool = False) -> tuple[int, int]:
    """(height, width) as stored of a whole JPEG or PNG of 8-bit RGB: the one rule of what an image is.

    ``grey``: 8-bit greyscale is fine too. ``turned``: an EXIF orientation is fine, because it will be applied.

    Raises:
        DataError: naming what is wrong.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            width, height = image.size
            mode, orientation = image.mode, image.getexif().get(ExifTags.Base.Orientation, 1)
            image.load()  # OpenCV would fill the missing part of a cut-off file with grey
    except Exception as error:  # Pillow raises a dozen kinds on damaged files
        problem = f"cannot be decoded: empty, truncated or no JPEG or PNG ({type(error).__name__})"
        raise DataError(f"{name}: {problem}") from error
    bits = data[24] if data.startswith(b"\x89PNG") else 8  # Pillow and OpenCV would cut 16 bits down without a word
    if bits > 8 or (mode != "RGB" and not (mode == "L" and grey)):
        raise DataError(f"{name}: is {mode} of {bits} bits; images must be 8-bit RGB")
    if orientation not in {0, 1} and not turned:
        raise DataError(f"{name}: has EXIF orientation {orientation}; turn its pixels and remove the tag")
    return height, width


def read_index_png(path: Path, palette_ids: Mapping[Colour, int] | None = None) -> Array8:
    """Label ids (H, W) of a PNG, never luminance of colours.

    Of an 8-bit grey PNG they are the values. Of a palette PNG they are read from the colours, since programs that
    shrink files give the same colours other indices: ``palette_ids``, else grey colours (v, v, v) as v.

    Raises:
        DataError: if it cannot be decoded, is RGB, 16-bit or of another kind that holds no label ids, or has colours
            that stand for none.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            mode, pixels, palette = image.mode, np.array(image), image.getpalette("RGB")
    except Exception as error:  # Pillow raises a dozen kinds on damaged files
        raise DataError(f"{path}: mask cannot be decoded, or is no PNG ({reason(error)})") from error
    if mode not in {"L", "P"}:
        raise DataError(f"{path}: mask is {mode}; label ids come as palette or 8-bit grey PNG")
    return pixels if palette is None else _by_colour(pixels, palette, palette_ids or {}, path)


def _by_colour(pixels: Array8, palette: Sequence[int], ids: Mapping[Colour, int], path: Path) -> Array8:
    colours = {i: tuple(palette[3 * i : 3 * i + 3]) for i in np.unique(pixels).tolist()}
    unknown = [colour for colour in colours.values() if colour not in ids]
    grey = all(len(colour) == 3 and len(set(colour)) == 1 for colour in colours.values())
    if unknown and not grey:
        shown = next((colour for colour in unknown if len(set(colour)) > 1), unknown[0])
        raise DataError(
            f"{path}: its palette has the colour {shown}, which stands for no label; take the official file, or save "
            "the label ids as 8-bit grey PNG"
        )
    table = np.zeros(256, np.uint8)
    for index, colour in colours.items():
        table[index] = colour[0] if unknown else ids[colour]  # type: ignore[index]
    return table[pixels]


def read_mat(path: Path) -> Array8:
    """Label ids (H, W) of an SBD annotation, ``GTcls.Segmentation``.

    Raises:
        DataError: if the file is damaged or has no such array.
    """
    from scipy.io import loadmat

    try:
        segmentation = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # scipy's reader raises what the damage happens to hit
        raise DataError(f"{path}: is not an SBD annotation with GTcls.Segmentation ({reason(error)})") from error
    array = np.asarray(segmentation)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "ui" or array.min() < 0 or array.max() > 255:
        raise DataError(f"{path}: GTcls.Segmentation is {array.dtype} {array.shape}, not a map of label ids")
    return array.astype(np.uint8)


def find(root: Path, markers: Sequence[str], official: str, prefer: str | None = None) -> Path:
    """The shallowest folder at or below ``root`` that has all ``markers``; one named ``prefer`` wins over others.

    Raises:
        DataError: if there is none, naming what is: the ``official`` archive.
    """
    below = [path for depth in range(1, _SEARCH_DEPTH + 1) for path in sorted(root.glob("/".join("*" * depth) + "/"))]
    folders = [root, *(path for path in below if not path.name.startswith("."))]
    found = [folder for folder in folders if all((folder / marker).exists() for marker in markers)]
    if not found:
        raise DataError(f"{root}: holds no folder with {' and '.join(markers)}, as in {official}")
    return next((folder for folder in found if folder.name == prefer), found[0])


def read_list(path: Path) -> list[str]:
    """First words of the lines of a list file: ids, or paths of images; blank lines are skipped.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        return [words[0] for line in path.read_text(encoding="utf-8").splitlines() if (words := line.split())]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: list cannot be read ({error}); take it from the official archive") from error


def files(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Id (file name without the suffix) -> path of the files with one of ``suffixes``."""
    return {path.name.removesuffix(end): path for end in suffixes for path in folder.glob(f"[!.]*{end}")}


def pair_folders(
    images: Path,
    masks: Path | None,
    split: str,
    image_suffixes: Sequence[str] = (".png", ".jpg", ".jpeg"),
    mask_suffix: str = ".png",
) -> list[Item]:
    """Items of a folder of images and one of masks, sorted by id; a file without its partner becomes an item too."""
    image_files = files(images, image_suffixes)
    mask_files = files(masks, (mask_suffix,)) if masks is not None else {}
    return [
        Item(
            key,
            image_files.get(key, images / f"{key}{image_suffixes[0]}"),
            masks / f"{key}{mask_suffix}" if masks is not None else None,
            (split,),
        )
        for key in sorted({*image_files, *mask_files})
    ]
