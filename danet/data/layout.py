"""What an adapter says of its dataset: classes, colours, label ids, and where the files lie in an unpacked tree."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from danet.core.errors import DataError

IGNORE = 255
"""Train id of pixels that neither train nor count."""

Mask = NDArray[np.uint8]
Colour = tuple[int, int, int]
"""RGB."""

SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""Ids become file names inside the prepared form and in predictions."""

MAX_PIXELS = 64 << 20
"""Of one image or mask; the largest of the official ones have 12 million. A small file may claim any size."""
EXIF_ORIENTATION = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SEARCH_DEPTH = 4


class LabelledImages(Protocol):
    """The part of :class:`danet.data.prepared.PreparedDataset` that training and evaluation need."""

    @property
    def ids(self) -> Sequence[str]:
        """Names of the images, in order."""
        ...

    @property
    def num_classes(self) -> int:
        """Train ids, without the ignored one."""
        ...

    def __len__(self) -> int: ...

    def image(self, i: int, /) -> NDArray[np.uint8]:
        """``H x W x 3`` BGR, to be read only; called from threads."""
        ...

    def mask(self, i: int, /) -> Mask | None:
        """``H x W`` train ids, 255 = ignored; None without labels. Called from threads."""
        ...


@dataclass(frozen=True)
class LabelMap:
    """Raw label id -> train id; an id outside ``mapping`` is an error."""

    mapping: Mapping[int, int]
    _table: NDArray[np.int16] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table = np.full(256, -1, np.int16)
        for raw, train in self.mapping.items():
            table[raw] = train
        object.__setattr__(self, "_table", table)

    def apply(self, raw: Mask, path: Path | str) -> Mask:
        """Train ids (H, W) of raw ids (H, W).

        Raises:
            DataError: naming ``path`` and the ids outside the mapping.
        """
        counts = np.bincount(raw.ravel(), minlength=256)
        unknown = [int(value) for value in np.flatnonzero(counts) if self._table[value] < 0]
        if unknown:
            shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
            pixels = int(counts[unknown].sum())
            raise DataError(f"{path}: label id {shown} ({pixels} pixels) is outside the dataset's ids {self.text}")
        return self._table.astype(np.uint8)[raw]

    @property
    def text(self) -> str:
        """The known raw ids as ranges, e.g. ``0-20, 255``."""
        ranges: list[list[int]] = []
        for value in sorted(self.mapping):
            if ranges and value == ranges[-1][1] + 1:
                ranges[-1][1] = value
            else:
                ranges.append([value, value])
        return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


@dataclass(frozen=True)
class Item:
    """One image of a layout. The paths are where the files must be; whether they are is the converter's to check."""

    id: str
    image: Path
    mask: Path | None
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The images of an unpacked tree in their fixed order, and the list files that the order was read from."""

    items: tuple[Item, ...]
    lists: tuple[Path, ...] = ()


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset's facts. ``locate`` maps official folder names to folders found; ``layout`` reads those."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    labels: LabelMap
    wanted: re.Pattern[str]
    """Which archive members to unpack (searched in the member's path)."""
    locate: Callable[[Path], dict[str, Path]]
    layout: Callable[[Mapping[str, Path]], Layout]
    image_size: tuple[int, int]
    """(height, width) of a validation image: of all, else the commonest or a typical one."""
    archives_gb: float
    """Of the official archives, about."""
    used_gb: float
    """Of the images and masks in them that a row uses, as they come; about."""
    expected_ids: Callable[[str, int], list[str]] | None = None
    """The ids that a split of the given size must have, where the numbering says so."""
    palette_ids: Mapping[Colour, int] = field(default_factory=dict)
    """Colour -> raw label id, where the official masks are palette PNGs."""
    grey_images: bool = False
    """Whether the official set has 8-bit greyscale images (read as colour with three equal channels)."""
    ignore_index: int = IGNORE

    @property
    def num_classes(self) -> int:
        """Number of train ids, without the ignored one."""
        return len(self.classes)

    def discover(self, root: Path) -> Layout:
        """The layout of the tree at ``root``, which may lie some levels above or below the official top folder.

        Raises:
            DataError: if the official folders are not there.
        """
        return self.layout(self.locate(root))

    def read_mask(self, path: Path) -> Mask:
        """Train ids (H, W) of a mask file as the dataset ships it.

        Raises:
            DataError: naming file and value.
        """
        raw = read_mat(path) if path.suffix == ".mat" else read_index_png(path, self.palette_ids)
        return self.labels.apply(raw, path)


def bit_depth(data: bytes) -> tuple[int, int] | None:
    """(bits per channel, colour type) of a PNG, None for anything else."""
    if data[:8] != _PNG_SIGNATURE or len(data) < 26:
        return None
    return data[24], data[25]


def check_image(
    data: bytes, name: str, problems: list[str], *, grey: bool, turned: bool = False
) -> tuple[tuple[int, int] | None, str | None]:
    """The one rule of what an image is: a whole JPEG or PNG of 8-bit RGB.

    What is wrong is added to ``problems``. ``grey``: 8-bit greyscale is fine too. ``turned``: an EXIF orientation is
    fine, because it will be applied.

    Returns:
        (height, width) as stored, None if the image cannot be used, and Pillow's name of its mode.
    """
    if not data:
        problems.append(f"{name}: has zero bytes")
        return None, None
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                problems.append(f"{name}: is {height}x{width}; allowed are {MAX_PIXELS:,} pixels")
                return None, None
            mode, orientation = image.mode, image.getexif().get(EXIF_ORIENTATION, 1)
            image.load()  # OpenCV would fill the missing part of a cut-off file with grey
    except Exception as error:  # Pillow raises a dozen kinds on damaged files
        text = _reason(error).replace(repr(data)[:60], "")[:120]
        problems.append(f"{name}: cannot be decoded, truncated or no JPEG or PNG ({text})")
        return None, None
    depth = bit_depth(data)
    before = len(problems)
    if depth is not None and depth[0] == 16:
        problems.append(f"{name}: has 16 bits per channel; images must be 8-bit RGB")
    elif mode != "RGB" and not (mode == "L" and grey):
        problems.append(f"{name}: is {mode}; images must be 8-bit RGB")
    if orientation not in {0, 1} and not turned:
        problems.append(f"{name}: has EXIF orientation {orientation}; turn its pixels and remove the tag")
    return ((height, width) if len(problems) == before else None), mode


def read_index_png(path: Path, palette_ids: Mapping[Colour, int] | None = None) -> Mask:
    """Label ids (H, W) of a PNG, never luminance of colours.

    Of an 8-bit grey PNG they are the values. Of a palette PNG they are read from the colours, since programs that
    shrink files give the same colours other indices: ``palette_ids``, else grey colours (v, v, v) as v.

    Raises:
        DataError: if it cannot be decoded, is RGB, 16-bit or of another kind that holds no label ids, or has colours
            that stand for none.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(26)
        if not head:
            raise DataError(f"{path}: has zero bytes")
        with Image.open(path, formats=("PNG", "JPEG", "GIF", "BMP", "TIFF")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: mask is {image.height}x{image.width}, allowed are {MAX_PIXELS:,} pixels")
            image.load()
            mode, pixels, palette = image.mode, np.array(image), image.getpalette("RGB")
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except DataError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds on damaged files
        raise DataError(f"{path}: mask cannot be decoded ({_reason(error)})") from error
    depth = bit_depth(head)
    if depth is None or mode not in {"L", "P"} or (depth[1] == 0 and depth[0] != 8) or pixels.ndim != 2:
        kind = f"{depth[0]} bit {mode}" if depth else f"not PNG ({mode})"
        raise DataError(f"{path}: mask is {kind}; label ids come as palette or 8-bit grey PNG")
    if orientation not in {0, 1}:
        raise DataError(f"{path}: mask has EXIF orientation {orientation}; turn its pixels and remove the tag")
    pixels = pixels.astype(np.uint8, copy=False)
    return pixels if palette is None else _by_colour(pixels, palette, palette_ids or {}, path)


def _by_colour(pixels: Mask, palette: Sequence[int], ids: Mapping[Colour, int], path: Path) -> Mask:
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


def read_mat(path: Path) -> Mask:
    """Label ids (H, W) of an SBD annotation, ``GTcls.Segmentation``.

    Raises:
        DataError: if the file is damaged or has no such array.
    """
    from scipy.io import loadmat

    try:
        segmentation = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # scipy's reader raises what the damage happens to hit
        raise DataError(f"{path}: is not an SBD annotation with GTcls.Segmentation ({_reason(error)})") from error
    array = np.asarray(segmentation)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "ui" or array.min() < 0 or array.max() > 255:
        raise DataError(f"{path}: GTcls.Segmentation is {array.dtype} {array.shape}, not a map of label ids")
    return array.astype(np.uint8)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def find(root: Path, markers: Sequence[str], prefer: str | None = None) -> Path | None:
    """The shallowest folder at or below ``root`` that has all ``markers``; one named ``prefer`` wins over others."""
    below = [path for depth in range(1, _SEARCH_DEPTH + 1) for path in sorted(root.glob("/".join("*" * depth) + "/"))]
    folders = [root, *(path for path in below if not path.name.startswith("."))]
    found = [folder for folder in folders if all((folder / marker).exists() for marker in markers)]
    return next((folder for folder in found if folder.name == prefer), found[0] if found else None)


def read_list(path: Path, *, paths: bool = False) -> list[str]:
    """First words of the lines of a list file: ids, or paths of images if ``paths``; blank lines are skipped.

    Raises:
        DataError: if it cannot be read, or names an id twice or of unsafe form.
    """
    try:
        names = [words[0] for line in path.read_text(encoding="utf-8").splitlines() if (words := line.split())]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"{path}: list cannot be read ({reason}); take it from the official archive") from error
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path}: names {name[:200]!r} twice; take the list from the official archive")
        if len(name) > 1000 or not SAFE_ID.fullmatch(name.rpartition("/")[2] if paths else name):
            raise DataError(f"{path}: {name[:200]!r} is not an image id; take the list from the official archive")
        seen.add(name)
    return names


def files(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Id (file name without the suffix) -> path of the files with one of ``suffixes``, sorted by id.

    Raises:
        DataError: if two files have one id.
    """
    result: dict[str, Path] = {}
    suffixes = tuple(suffixes)
    if not folder.is_dir():
        return result
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix.lower())), None)
        if suffix is None or path.name.startswith("."):
            continue
        key = path.name[: -len(suffix)]
        if key in result:
            raise DataError(f"{path}: the id {key!r} also names {result[key].name}; remove one of the two")
        result[key] = path
    return dict(sorted(result.items()))


def pair_folders(
    images: Path,
    masks: Path | None,
    split: str,
    image_suffixes: Iterable[str] = (".jpg", ".png", ".jpeg"),
    mask_suffix: str = ".png",
) -> list[Item]:
    """Items of a folder of images and one of masks, sorted by id; a file without its partner becomes an item too."""
    image_files = files(images, image_suffixes)
    if masks is None:
        return [Item(key, path, None, (split,)) for key, path in image_files.items()]
    mask_files = files(masks, (mask_suffix,))
    suffix = next(iter(image_files.values())).suffix if image_files else next(iter(image_suffixes))
    return [
        Item(
            key,
            image_files.get(key, images / f"{key}{suffix}"),
            mask_files.get(key, masks / f"{key}{mask_suffix}"),
            (split,),
        )
        for key in sorted({*image_files, *mask_files})
    ]
