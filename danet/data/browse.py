"""Contact sheets: what a dataset, or a row's augmentation of it, looks like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from danet.config.row import Row
from danet.core.errors import DataError
from danet.core.files import atomic_write
from danet.data.layout import IGNORE, Colour
from danet.data.prepared import PreparedDataset

Pixels = NDArray[np.uint8]
Sample = tuple[str, Pixels, Pixels | None]
"""(name, image (H, W, 3) BGR, train ids (H, W) or None)."""

IGNORE_COLOUR: Colour = (255, 255, 255)
_CELL = 320
_MARGIN = 10
_LINE = 18


def overlay(image: Pixels, mask: Pixels, palette: tuple[Colour, ...], opacity: float = 0.55) -> Pixels:
    """RGB (H, W, 3): the image (BGR) under its mask's colours; ignored pixels hatched in white."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[IGNORE] = IGNORE_COLOUR
    rgb = image[..., ::-1].astype(np.float32)
    mixed = rgb * (1 - opacity) + table[mask].astype(np.float32) * opacity
    rows, columns = np.indices(mask.shape)
    plain = (mask == IGNORE) & ((rows + columns) % 8 >= 3)
    mixed[plain] = rgb[plain]
    return np.clip(mixed + 0.5, 0, 255).astype(np.uint8)


def contact_sheet(
    samples: Iterable[Sample],
    path: Path,
    classes: tuple[str, ...],
    palette: tuple[Colour, ...],
    *,
    columns: int = 2,
    title: str = "",
) -> None:
    """Writes a PNG with a cell for each sample: image | mask over the image, its name and size, and a legend below.

    Raises:
        DataError: if there is no sample, or an image and its mask differ in size.
    """
    cells = []
    present: set[int] = set()
    for name, image, mask in samples:
        if mask is not None and mask.shape != image.shape[:2]:
            raise DataError(f"{name}: image {image.shape[:2]} and mask {mask.shape} differ in size")
        cells.append(_tile(name, image, mask, palette))
        present |= set(np.unique(mask).tolist()) if mask is not None else set()
    if not cells:
        raise DataError(f"{path}: nothing to show; ask for at least one sample")
    columns = min(columns, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    width = columns * (cells[0].width + _MARGIN) + _MARGIN
    legend = _legend(sorted(present), classes, palette, width)
    head = _LINE + _MARGIN if title else 0
    sheet = Image.new("RGB", (width, head + sum(heights) + (len(rows) + 1) * _MARGIN + legend.height), "white")
    if title:
        ImageDraw.Draw(sheet).text((_MARGIN, _MARGIN), title, fill="black", font=_font(14))
    top = head + _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (_MARGIN + column * (cell.width + _MARGIN), top))
        top += height + _MARGIN
    sheet.paste(legend, (0, top))
    with atomic_write(path) as temporary:
        sheet.save(temporary, "PNG")


def _tile(name: str, image: Pixels, mask: Pixels | None, palette: tuple[Colour, ...]) -> Image.Image:
    height, width = image.shape[:2]
    factor = _CELL / width
    size = (_CELL, max(1, min(round(height * factor), 2 * _CELL)))
    cell = Image.new("RGB", (2 * _CELL + 4, size[1] + _LINE), "white")
    ImageDraw.Draw(cell).text((0, 1), f"{name}  {width}x{height}", fill="black", font=_font(12))
    right = overlay(image, mask, palette) if mask is not None else np.full_like(image, 230)
    shown = (np.ascontiguousarray(image[..., ::-1]), right)
    for index, pixels in enumerate(shown):
        resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
        cell.paste(Image.fromarray(resized), (index * (_CELL + 4), _LINE))
    if mask is None:
        ImageDraw.Draw(cell).text((_CELL + 14, _LINE + 8), "no labels", fill="black", font=_font(12))
    return cell


def _legend(present: list[int], classes: tuple[str, ...], palette: tuple[Colour, ...], width: int) -> Image.Image:
    font = _font(12)
    places: list[tuple[int, int, str, Colour]] = []
    left, top = _MARGIN, 0
    for value in present:
        text = "ignored" if value == IGNORE else classes[value] if value < len(classes) else f"id {value}"
        colour = IGNORE_COLOUR if value == IGNORE else palette[value] if value < len(palette) else (0, 0, 0)
        needed = _LINE + round(font.getlength(text)) + 2 * _MARGIN
        if left + needed > width and left > _MARGIN:
            left, top = _MARGIN, top + _LINE + 2
        places.append((left, top, text, colour))
        left += needed
    legend = Image.new("RGB", (width, top + _LINE + _MARGIN if places else 1), "white")
    pen = ImageDraw.Draw(legend)
    for x, y, text, colour in places:
        pen.rectangle((x, y + 2, x + 13, y + 15), fill=colour, outline="black")
        pen.text((x + _LINE, y + 2), text, fill="black", font=font)
    return legend


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def browse_dataset(folder: Path, split: str, n: int, out: Path, *, seed: int = 0) -> None:
    """Writes a contact sheet of ``n`` images of a prepared split, drawn by ``seed``, as they are before augmentation.

    Raises:
        DataError: if the dataset has no such split, or a file of it is damaged.
    """
    dataset = PreparedDataset(folder, split)
    count = min(n, len(dataset))
    chosen = sorted(np.random.default_rng(seed).choice(len(dataset), count, replace=False).tolist())
    samples = ((dataset.ids[index], dataset.image(index), dataset.mask(index)) for index in chosen)
    title = f"{dataset.title}, {split}: {count} of {len(dataset)} images"
    contact_sheet(samples, out, dataset.classes, dataset.palette, title=title)


def browse_row(row: Row, folder: Path, split: str, n: int, out: Path, *, seed: int = 0) -> None:
    """Writes a contact sheet of the first ``n`` samples that ``row`` trains on with ``seed``, augmented.

    Padding shows in the colour that it stands for: the mean, or black.

    Raises:
        DataError: if the dataset has no such split or no labels there, or a file of it is damaged.
    """
    from danet.data.loader import TrainingSet
    from danet.data.transforms import MEAN_RGB, STD_RGB

    dataset = PreparedDataset(folder, split)
    training = TrainingSet(dataset, row.augment, seed)

    def samples() -> Iterator[Sample]:
        for position in range(n):
            sample = training[position]
            rgb = sample.image.transpose(1, 2, 0) * np.array(STD_RGB, np.float32) + np.array(MEAN_RGB, np.float32)
            image = np.clip(rgb + 0.5, 0, 255).astype(np.uint8)[..., ::-1]
            yield sample.id, np.ascontiguousarray(image), sample.mask

    title = f"{row.name}, {split} of {dataset.title}, seed {seed}: the first {n} training samples"
    contact_sheet(samples(), out, dataset.classes, dataset.palette, title=title)
