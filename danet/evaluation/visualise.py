"""Pictures of predictions. Images are BGR as everywhere in this project, palettes and results RGB.

Nothing depends on colour alone: errors differ from the rest in lightness and ignored pixels are striped, the largest
regions carry their class's name, and the legend lists the classes that are present.

Figures are drawn by matplotlib's Agg canvas directly, without pyplot: no display, no global state, the same bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from danet.core.files import atomic_write

IGNORE = 255
IGNORE_RGB = (255, 255, 255)
CORRECT_RGB, WRONG_RGB = (232, 238, 244), (150, 10, 40)
IGNORED_RGB, STRIPE_RGB = (178, 178, 178), (128, 128, 128)

Palette = Sequence[tuple[int, int, int]]
Image8 = NDArray[np.uint8]

MAX_LEGEND = 24
MAX_CONFUSED = 20
"""Classes of a confusion matrix that can be read."""
_PANEL_INCHES = 2.8  # two make phone width
_MAX_PANEL_PIXELS = 900
_NAME_POINTS = 6.5
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
    points = max(14, size[0] // 60)
    font = ImageFont.load_default(points)
    counts = np.bincount(mask.ravel(), minlength=len(classes))[: len(classes)]
    present = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    gap = points // 2
    places: list[tuple[int, int, int]] = []
    x = y = gap
    for label in present:
        wide = 2 * points + int(font.getlength(f"{classes[label]} {100 * counts[label] / mask.size:.0f} %")) + gap
        if x > gap and x + wide > size[0]:
            x, y = gap, y + points + gap
        places.append((label, x, y))
        x += wide + gap
    sheet = Image.new("RGB", (size[0], size[1] + y + points + 2 * gap), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for label, x, y in places:
        top = size[1] + y
        draw.rectangle((x, top, x + round(1.5 * points), top + points), fill=palette[label], outline="black")
        text = f"{classes[label]} {100 * counts[label] / mask.size:.0f} %"
        draw.text((x + 2 * points, top + points / 2), text, fill="black", font=font, anchor="lm")
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")


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
    title: str,
    image_bgr: Image8,
    truth: Image8,
    prediction: Image8,
    classes: Sequence[str],
    palette: Palette,
) -> None:
    """Writes one PNG of four panels (image, ground truth, prediction, errors) with a legend of the classes present.

    Args:
        path: of the PNG.
        title: above the panels.
        image_bgr: ``H x W x 3``.
        truth: ``H x W`` train ids, 255 = ignored.
        prediction: ``H x W`` class ids.
        classes: names by id.
        palette: RGB colours by id.
    """
    height, width = truth.shape
    small = min(1.0, _MAX_PANEL_PIXELS / max(height, width))
    size = max(1, round(width * small)), max(1, round(height * small))
    shown_truth: Image8 = cv2.resize(truth, size, interpolation=cv2.INTER_NEAREST)
    shown_prediction: Image8 = cv2.resize(prediction, size, interpolation=cv2.INTER_NEAREST)
    shown_image = cv2.cvtColor(cv2.resize(image_bgr, size, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
    valid = truth != IGNORE
    right = float((prediction == truth)[valid].mean()) if valid.any() else None
    caption = "errors" if right is None else f"errors ({100 * right:.1f} % right)"

    handles = legend(truth, [prediction], classes, palette)
    layout = (1, 4) if height > 1.2 * width else (2, 2)
    legend_columns = 4
    legend_inches = 0.2 * (-(-len(handles) // legend_columns)) + 0.25
    panel_inches = _PANEL_INCHES * (0.6 if layout[0] == 1 else 1)
    # at the width of a telephone nine points must be readable, so the figure is narrow and its title wrapped
    title = "\n".join(textwrap.wrap(title, round(layout[1] * panel_inches * 10)))
    title_inches = 0.16 * title.count("\n") + 0.35
    inches = layout[1] * panel_inches, layout[0] * (panel_inches * height / width + 0.28) + legend_inches + title_inches
    figure = Figure(figsize=inches, dpi=float(np.clip(size[0] / panel_inches, 160, 340)))
    FigureCanvasAgg(figure)
    grid = figure.subplots(*layout, squeeze=False).flat
    figure.subplots_adjust(
        left=0.005,
        right=0.995,
        top=1 - (title_inches + 0.23) / inches[1],
        bottom=legend_inches / inches[1],
        wspace=0.02,
        hspace=0.12,
    )
    figure.suptitle(title, fontsize=10, y=1 - 0.08 / inches[1], va="top", parse_math=False)
    pictures = [
        (shown_image, "image", None),
        (truth_picture(shown_truth, palette), "ground truth", shown_truth),
        (colourise(shown_prediction, palette), "prediction", shown_prediction),
        (error_map(shown_prediction, shown_truth), caption, None),
    ]
    for axes, (picture, name, mask) in zip(grid, pictures, strict=True):
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        axes.set_title(name, fontsize=9, pad=3)
        axes.set_xticks([])
        axes.set_yticks([])
        if mask is not None:
            name_regions(axes, mask, classes, size[0] / (panel_inches * 72))
    figure.legend(
        handles=handles, loc="lower center", ncols=legend_columns, fontsize=8, frameon=False, handlelength=1.4
    )
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
    counts = np.sum([np.bincount(mask.ravel(), minlength=256) for mask in (truth, *predictions)], axis=0)
    present = [c for c in np.argsort(-counts, kind="stable") if c < len(classes) and counts[c]]
    colours = palette_table(palette) / 255
    handles = [Patch(facecolor=colours[c], edgecolor="black", linewidth=0.5, label=classes[c]) for c in present]
    if len(handles) > MAX_LEGEND:
        rest = len(handles) - MAX_LEGEND + 1
        handles = [*handles[: MAX_LEGEND - 1], Patch(facecolor="none", label=f"and {rest} more")]
    wrong, ignored, stripe = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (WRONG_RGB, IGNORED_RGB, STRIPE_RGB))
    handles.append(Patch(facecolor=wrong, edgecolor="black", linewidth=0.5, label="wrong"))
    handles.append(Patch(facecolor=ignored, edgecolor=stripe, hatch="////", linewidth=0.5, label="ignored"))
    return handles


def name_regions(axes: Axes, mask: Image8, classes: Sequence[str], pixels_per_point: float) -> None:
    """Writes class names into connected regions that have room for them, where they are widest."""
    height = _NAME_POINTS * pixels_per_point
    for label in np.unique(mask):
        if label >= len(classes):
            continue
        width = 0.6 * len(classes[label]) * height
        count, regions, stats, _ = cv2.connectedComponentsWithStats((mask == label).astype(np.uint8), connectivity=4)
        for region in range(1, count):
            if stats[region, cv2.CC_STAT_WIDTH] < width or stats[region, cv2.CC_STAT_AREA] < width * height:
                continue
            inside = np.pad((regions == region).astype(np.uint8), 1)
            distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = (int(i) for i in np.unravel_index(int(distance.argmax()), distance.shape))
            gaps = np.flatnonzero(regions[y] != region)
            left, right = gaps[gaps < x].max(initial=-1) + 1, gaps[gaps > x].min(initial=mask.shape[1])
            if right - left < width or distance[y, x] < height / 2:
                continue
            middle = (left + right - 1) / 2
            text = axes.text(middle, y, classes[label], ha="center", va="center", fontsize=_NAME_POINTS, clip_on=True)
            text.set_path_effects([patheffects.withStroke(linewidth=1.8, foreground="white")])
