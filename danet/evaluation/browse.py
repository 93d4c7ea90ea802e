"""Contact sheets: what a dataset, or a row's augmentation of it, looks like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from danet.config.row import Row
from danet.core.errors import DataError
from danet.core.files import atomic_write
from danet.data.layout import IGNORE
from danet.data.loader import TrainingSet
from danet.data.prepared import PreparedDataset
from danet.evaluation.visualise import IGNORE_RGB, Image8, Palette, overlay, with_legend

Picture = tuple[str, Image8, Image8 | None]
"""(name, image (H, W, 3) BGR, train ids (H, W) or None)."""

_SIDE, _GAP, _POINTS = 320, 8, 12
_COLUMNS = 2


def contact_sheet(
    samples: Iterable[Picture], path: Path, classes: tuple[str, ...], palette: Palette, title: str
) -> None:
    """Writes a PNG with a cell for each sample: image | mask over the image, its name and size, and a legend below.

    Raises:
        DataError: if there is no sample.
    """
    cells, present = [], set()
    for name, image, mask in samples:
        cells.append(_cell(name, image, mask, palette))
        present |= set(np.unique(mask).tolist()) if mask is not None else set()
    if not cells:
        raise DataError(f"{path}: nothing to show; ask for at least one sample")
    lines = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    heights = [max(cell.height for cell in line) for line in lines]
    sheet = Image.new("RGB", (_COLUMNS * cells[0].width, 2 * _POINTS + sum(heights)), "white")
    ImageDraw.Draw(sheet).text((0, 0), title, fill="black", font=ImageFont.load_default(_POINTS + 2))
    top = 2 * _POINTS
    for line, height in zip(lines, heights, strict=True):
        for column, cell in enumerate(line):
            sheet.paste(cell, (column * cell.width, top))
        top += height
    entries = [
        ("ignored", IGNORE_RGB) if label == IGNORE else (classes[label], palette[label]) for label in sorted(present)
    ]
    with atomic_write(path) as temporary:
        with_legend(sheet, entries, _POINTS).save(temporary, "PNG")


def _cell(name: str, image: Image8, mask: Image8 | None, palette: Palette) -> Image.Image:
    rgb = np.ascontiguousarray(image[..., ::-1])
    pair = [rgb, rgb if mask is None else overlay(np.ascontiguousarray(image), mask, palette)]
    shown = [ImageOps.contain(Image.fromarray(pixels), (_SIDE, _SIDE)) for pixels in pair]
    cell = Image.new("RGB", (2 * (_SIDE + _GAP), shown[0].height + 2 * _POINTS), "white")
    text = f"{name}  {image.shape[1]}x{image.shape[0]}{'' if mask is not None else ', no labels'}"
    ImageDraw.Draw(cell).text((0, 0), text, fill="black", font=ImageFont.load_default(_POINTS))
    for index, picture in enumerate(shown):
        cell.paste(picture, (index * (_SIDE + _GAP), _POINTS + 4))
    return cell


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
    contact_sheet(samples, out, dataset.classes, dataset.palette, title)


def browse_row(row: Row, folder: Path, split: str, n: int, out: Path, *, seed: int = 0) -> None:
    """Writes a contact sheet of the first ``n`` samples that ``row`` trains on with ``seed``, padding in black.

    Raises:
        DataError: if the dataset has no such split or no labels there, or a file of it is damaged.
    """
    dataset = PreparedDataset(folder, split)
    training = TrainingSet(dataset, row.augment, seed)

    def samples() -> Iterator[Picture]:
        for position in range(n):
            sample = training[position]
            yield sample.id, sample.image, sample.mask

    title = f"{row.name}, {split} of {dataset.title}, seed {seed}: the first {n} training samples"
    contact_sheet(samples(), out, dataset.classes, dataset.palette, title)
