"""Pictures of predictions. Images are BGR as everywhere in this project, palettes and results RGB.

Errors differ from the rest in lightness and ignored pixels are striped, so that both can be seen without colours.

Figures are drawn by matplotlib's Agg canvas directly, without pyplot: no display, no global state, the same bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from danet.core.files import atomic_write
from danet.data.layout import IGNORE

IGNORE_RGB = (255, 255, 255)
CORRECT_RGB, WRONG_RGB = (232, 238, 244), (150, 10, 40)
IGNORED_RGB, STRIPE_RGB = (178, 178, 178), (128, 128, 128)

Palette = Sequence[tuple[int, int, int]]
Image8 = NDArray[np.uint8]
Captioned = tuple[Image8, str]
"""An RGB picture, ``H x W x 3``, and what stands above it."""

MAX_LEGEND = 24
MAX_CONFUSED = 20
"""Classes of a confusion matrix that can be read."""
PANEL = 2.5
"""Inches: the width of a picture on a sheet."""
COLUMNS = 5
_OVERLAY_PIXELS = 640
"""Smaller pictures are enlarged by whole factors up to this, so that a legend below them can be read."""


def palette_table(palette: Palette) -> Image8:
    """``256 x 3`` RGB lookup table; ids that are not a class, 255 among them, are white."""
    table = np.full((256, 3), IGNORE_RGB, dtype=np.uint8)
    table[: len(palette)] = palette
    return table


def colourise(mask: Image8, palette: Palette) -> Image8:
    """``H x W x 3`` RGB picture of a label map."""
    return palette_table(palette)[mask]


def save_palette_png(path: Path, mask: Image8, palette: Palette) -> None:
    """Writes a label map as an indexed PNG: the values are the ids, viewers show the dataset's colours."""
    image = Image.fromarray(mask, mode="P")
    image.putpalette(palette_table(palette).tobytes())
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", optimize=False)


def boundaries(mask: Image8) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour has another label: lines one pixel thin."""
    edge = np.zeros(mask.shape, dtype=bool)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    return edge


def overlay(image_bgr: Image8, mask: Image8, palette: Palette, alpha: float = 0.5) -> Image8:
    """The image with the classes' colours laid over it and white region borders, RGB."""
    rgb = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB)
    blended: Image8 = cv2.addWeighted(rgb, 1 - alpha, colourise(mask, palette), alpha, 0)
    edge = boundaries(mask)
    if max(mask.shape) >= 1000:  # a single pixel would not be seen when the picture is scaled to a screen
        edge = cv2.dilate(edge.astype(np.uint8), np.ones((2, 2), np.uint8)).astype(bool)
    blended[edge] = 255
    return blended


def save_overlay(path: Path, image_bgr: Image8, mask: Image8, classes: Sequence[str], palette: Palette) -> None:
    """Writes :func:`overlay`, enlarged if it is small, with a legend of the classes that occur below it.

    Args:
        path: of the PNG.
        image_bgr: ``H x W x 3``.
        mask: ``H x W`` class ids.
        classes: names by id.
        palette: RGB colours by id.
    """
    height, width = mask.shape
    larger = max(1, _OVERLAY_PIXELS // max(height, width))
    size = width * larger, height * larger
    image: Image8 = cv2.resize(image_bgr, size, interpolation=cv2.INTER_CUBIC)
    ids: Image8 = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    picture = Image.fromarray(overlay(image, ids, palette))
    counts = np.bincount(mask.ravel(), minlength=len(classes))[: len(classes)]
    present = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    entries = [(f"{classes[c]} {100 * counts[c] / mask.size:.0f} %", palette[c]) for c in present]
    with atomic_write(path) as temporary:
        _with_legend(picture, entries, max(14, size[0] // 60)).save(temporary, format="PNG")


def _with_legend(picture: Image.Image, entries: Sequence[tuple[str, tuple[int, int, int]]], points: int) -> Image.Image:
    """The picture with a legend below it: each text behind a box of its RGB colour."""
    font, gap = ImageFont.load_default(points), points // 2
    places: list[tuple[int, int]] = []
    x = y = gap
    for text, _ in entries:
        wide = 2 * points + int(font.getlength(text)) + gap
        if x > gap and x + wide > picture.width:
            x, y = gap, y + points + gap
        places.append((x, y))
        x += wide + gap
    sheet = Image.new("RGB", (picture.width, picture.height + y + points + 2 * gap), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for (text, colour), (x, y) in zip(entries, places, strict=True):
        top = picture.height + y
        draw.rectangle((x, top, x + round(1.5 * points), top + points), fill=colour, outline="black")
        draw.text((x + 2 * points, top + points / 2), text, fill="black", font=font, anchor="lm")
    return sheet


def truth_picture(truth: Image8, palette: Palette) -> Image8:
    """RGB: the classes' colours, ignored (255) grey with diagonal stripes."""
    return _striped(colourise(truth, palette), truth == IGNORE)


def error_map(prediction: Image8, truth: Image8) -> Image8:
    """RGB: right is light, wrong dark, ignored (truth 255) grey with diagonal stripes."""
    picture = np.empty((*truth.shape, 3), dtype=np.uint8)
    picture[...] = CORRECT_RGB
    ignored = truth == IGNORE
    picture[(prediction != truth) & ~ignored] = WRONG_RGB
    return _striped(picture, ignored)


def save_panels(
    path: Path,
    image_bgr: Image8,
    truth: Image8,
    predictions: Sequence[tuple[str, Image8]],
    classes: Sequence[str],
    palette: Palette,
    *,
    title: str = "",
) -> None:
    """Writes one PNG: image over truth, then prediction over errors for each prediction, and the classes present.

    From :data:`COLUMNS` columns on the sheet has a second band.

    Args:
        path: of the PNG.
        image_bgr: ``H x W x 3``.
        truth: ``H x W`` train ids, 255 = ignored.
        predictions: a label and ``H x W`` class ids each.
        classes: names by id.
        palette: RGB colours by id.
        title: above the panels.
    """
    valid = truth != IGNORE
    columns = [((np.ascontiguousarray(image_bgr[..., ::-1]), "image"), (truth_picture(truth, palette), "truth"))]
    for label, prediction in predictions:
        right = f"{100 * float((prediction == truth)[valid].mean()):.1f} % right" if valid.any() else "no labels"
        columns.append(((colourise(prediction, palette), label), (error_map(prediction, truth), right)))
    save_sheet(path, columns, legend(truth, [prediction for _, prediction in predictions], classes, palette), title)


def save_sheet(
    path: Path, columns: Sequence[tuple[Captioned, Captioned]], handles: Sequence[Patch], title: str
) -> None:
    """Writes one PNG of pictures in columns of two, with a legend below; from :data:`COLUMNS` on in several bands."""
    across = min(len(columns), COLUMNS)
    bands = -(-len(columns) // across)
    shapes = [picture.shape for column in columns for picture, _ in column]
    tall = max(height / width for height, width, _ in shapes)
    legend_columns = max(3, across + 2)
    title = "\n".join(textwrap.wrap(title, round(across * PANEL * 10)))
    inches = 2 * bands * (PANEL * tall + 0.3) + 0.22 * -(-len(handles) // legend_columns) + 0.15
    inches += 0.2 * (title.count("\n") + 1) if title else 0.0
    layout = ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.02, hspace=0.0, wspace=0.0)
    figure = Figure(figsize=(across * PANEL, inches), dpi=160, layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, parse_math=False)
    grid = figure.subplots(2 * bands, across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, column in enumerate(columns):
        for line, (picture, name) in enumerate(column):
            axes = grid[2 * (place // across) + line, place % across]
            axes.imshow(picture)
            axes.set_title(name, fontsize=10, pad=3, parse_math=False)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=legend_columns, fontsize=9, handlelength=1.2,
        columnspacing=1.0, frameon=False,
    )  # fmt: skip
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def save_confusion(path: Path, title: str, matrix: NDArray[np.int64], classes: Sequence[str]) -> None:
    """Writes :func:`confusion_figure`."""
    figure = confusion_figure(matrix, classes, title)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=180, metadata={"Software": None})


def most_confused_classes(matrix: NDArray[np.int64], count: int = MAX_CONFUSED) -> list[int]:
    """The classes of the ground truth, in their order; of more than ``count``, those with the largest shares wrong."""
    total = matrix.sum(axis=1)
    present = np.flatnonzero(total)
    wrong = 1 - np.diag(matrix)[present] / total[present]
    return sorted(present[np.argsort(-wrong, kind="stable")[:count]].tolist())


def confusion_figure(matrix: NDArray[np.int64], classes: Sequence[str], title: str) -> Figure:
    """What the pixels of each class of the ground truth (lines) were taken for (columns), in percent of the line.

    Classes without a pixel are left out; of many, those are shown that are most often wrong, with one more column for
    all that they were taken for besides.

    Args:
        matrix: pixels, ground truth x prediction.
        classes: names by id.
        title: to which the unit and the choice of classes are added.
    """
    shown = most_confused_classes(matrix)
    share = 100.0 * matrix[shown] / matrix[shown].sum(axis=1, keepdims=True)
    others = share.sum(axis=1, keepdims=True) - share[:, shown].sum(axis=1, keepdims=True)
    columns = [classes[place] for place in shown]
    share = share[:, shown]
    present = int((matrix.sum(axis=1) > 0).sum())
    if others.max() > 0.05:
        share, columns = np.hstack([share, others]), [*columns, "any other"]
    which = f"the {len(shown)} most confused of {present} classes" if len(shown) < present else ""
    unit = "percent of the pixels of each class (lines)"
    lines = [*textwrap.wrap(title, 58), *textwrap.wrap(", ".join(filter(None, (unit, which))), 66)]
    size = 9.5 if len(shown) <= 12 else 7.5
    inches = 0.115 * size / 9 * max(map(len, columns))
    figure = Figure(figsize=(5.0, 0.3 + 0.2 * len(lines) + max(0.21 * len(shown) + inches, 2.0)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # light enough for black numbers
    shades = ListedColormap(colormaps["Blues"](np.linspace(0, 0.62, 256)))
    axes.imshow(share, cmap=shades, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    axes.set_title("\n".join(lines), fontsize=9.5, loc="left", x=-0.18, parse_math=False)
    axes.set_xlabel("predicted as")
    axes.set_ylabel("truth")
    axes.tick_params(length=0)
    axes.set_yticks(range(len(shown)), columns[: len(shown)], fontsize=size)
    axes.set_xticks(range(len(columns)), columns, fontsize=size, rotation=90)
    for y, x in np.argwhere(share >= 0.5):
        axes.text(x, y, f"{share[y, x]:.0f}", ha="center", va="center", fontsize=size)
    return figure


def _striped(picture: Image8, where: NDArray[np.bool_]) -> Image8:
    height, width = where.shape
    period = max(2, min(height, width) // 80)
    stripes = (np.add.outer(np.arange(height), np.arange(width)) // period) % 2 == 0
    picture[where] = IGNORED_RGB
    picture[where & stripes] = STRIPE_RGB
    return picture


def legend(truth: Image8, predictions: Sequence[Image8], classes: Sequence[str], palette: Palette) -> list[Patch]:
    """The classes that occur, the most frequent first, then *wrong* and *ignored* as :func:`error_map` shows them."""
    wrong, ignored, stripe = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (WRONG_RGB, IGNORED_RGB, STRIPE_RGB))
    return [
        *class_legend([truth, *predictions], classes, palette),
        Patch(facecolor=wrong, edgecolor="black", linewidth=0.5, label="wrong"),
        Patch(facecolor=ignored, edgecolor=stripe, hatch="////", linewidth=0.5, label="ignored"),
    ]


def class_legend(masks: Sequence[Image8], classes: Sequence[str], palette: Palette) -> list[Patch]:
    """The classes that occur in label maps, the most frequent first, at most :data:`MAX_LEGEND` entries."""
    counts = np.sum([np.bincount(mask.ravel(), minlength=256) for mask in masks], axis=0)
    present = [c for c in np.argsort(-counts, kind="stable") if c < len(classes) and counts[c]]
    colours = palette_table(palette) / 255
    handles = [Patch(facecolor=colours[c], edgecolor="black", linewidth=0.5, label=classes[c]) for c in present]
    if len(handles) > MAX_LEGEND:
        rest = len(handles) - MAX_LEGEND + 1
        handles = [*handles[: MAX_LEGEND - 1], Patch(facecolor="none", label=f"and {rest} more")]
    return handles
