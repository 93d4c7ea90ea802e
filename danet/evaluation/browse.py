"""Contact sheets: what a dataset, or a row's augmentation of it, looks like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from matplotlib.patches import Patch

from danet.config.row import Row
from danet.data.layout import IGNORE
from danet.data.loader import TrainingSet
from danet.data.prepared import PreparedDataset
from danet.evaluation.visualise import Captioned, Image8, Palette, class_legend, overlay, save_sheet

Picture = tuple[str, Image8, Image8 | None]
"""(name, image (H, W, 3) BGR, train ids (H, W) or None)."""


def contact_sheet(
    samples: Iterable[Picture], path: Path, classes: tuple[str, ...], palette: Palette, title: str
) -> None:
    """Writes a PNG with each sample's image over the same with its mask, and a legend below."""
    columns: list[tuple[Captioned, Captioned]] = []
    masks = []
    for name, image, mask in samples:
        rgb, size = np.ascontiguousarray(image[..., ::-1]), "{}x{}".format(*image.shape)
        if mask is None:
            columns.append(((rgb, name), (rgb, f"{size}, no labels")))
        else:
            columns.append(((rgb, name), (overlay(np.ascontiguousarray(image), mask, palette), size)))
            masks.append(mask)
    handles = class_legend(masks, classes, palette) if masks else []
    if any((mask == IGNORE).any() for mask in masks):
        handles.append(Patch(facecolor="white", edgecolor="black", linewidth=0.5, label="ignored"))
    save_sheet(path, columns, handles, title)


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
            image, mask, _ = training[position]
            yield dataset.ids[training.index(position)], image, mask

    title = f"{row.name}, {split} of {dataset.title}, seed {seed}: the first {n} training samples"
    contact_sheet(samples(), out, dataset.classes, dataset.palette, title)
