"""Figures of a table: drawn from metrics files alone, the same bytes every time.

Each is a white card of phone width (5 inches, text of 10 points and more), readable in light and dark pages; what
colour says is said by marker, line style or number as well.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from danet.core.files import atomic_write
from danet.core.text import number
from danet.report.labels import short_labels
from danet.results.measured import Measurement
from danet.results.schema import Accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#7F7F7F")
"""Okabe and Ito's palette, which the colour-blind can tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.handlelength": 1.8,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.0,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "text.parse_math": False,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
}
WIDTH = 5.0
MAX_POINTS = 300


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG at 180 dpi in 128 colours, without date or software version."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=180, metadata={"Software": None})
    with Image.open(drawn) as image, atomic_write(path) as temporary:
        flat = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        flat.save(temporary, format="PNG", optimize=True)


QUANTITIES = {"loss": ("loss", 2.2), "val_miou": ("val mIoU, %", 1.8), "lr": ("learning rate", 1.2)}
"""Of the curves: label and inches."""


def draw_curves(measurements: Sequence[Measurement], path: Path) -> bool:
    """Loss, validation mIoU where it was measured, and learning rate, over the schedule.

    Several seeds of a row share colour, line and marker. Returns whether there was anything to draw.
    """
    drawn = [item for item in measurements if item.curves]
    names = [name for name in QUANTITIES if any(_has(item, name) for item in drawn)]
    if not names:
        return False
    with figure_of([QUANTITIES[name][1] for name in names], path, 0.5 + _legend_height(len(drawn))) as grid:
        for axes, name in zip(grid, names, strict=True):
            _draw_lines(axes, drawn, name)
            axes.set_ylabel(QUANTITIES[name][0])
            axes.set_xlim(-3, 103)
        grid[-1].set_xlabel("% of the schedule")
        _legend_below(grid[0])
    return True


@contextmanager
def figure_of(
    heights: Sequence[float], path: Path, more: float = 0.2, style: dict[Any, Any] = STYLE
) -> Iterator[list[Axes]]:
    """Panels of these heights above each other, and ``more`` inches around them: saved when the block ends."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(style):
        figure = Figure(figsize=(WIDTH, sum(heights) + more), layout="constrained")
        grid: Any = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
        yield list(grid[:, 0])
        save(figure, path)


def _has(item: Measurement, column: str) -> bool:
    return any(column in curve and curve[column].notna().any() for curve in item.curves.values())


def _legend_height(entries: int) -> float:
    return 0.22 * math.ceil(entries / 2)


def _legend_below(axes: Axes) -> None:
    """A legend of all entries at the foot of the figure; none for a single one."""
    handles, labels = axes.get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    if len(known) > 1:
        columns = 2 if max(map(len, known)) < 28 else 1
        figure: Any = axes.figure
        figure.legend(list(known.values()), list(known), loc="outside lower center", ncols=columns)


def possible(limits: tuple[float, float]) -> tuple[float, float]:
    """An axis of percentages as far as these can be: an interval by Student's t may end beyond 0 or 100."""
    low, high = limits
    return max(low, -2.0), min(high, 102.0)


def _draw_lines(axes: Axes, measurements: Sequence[Measurement], column: str) -> None:
    labels = short_labels([item.row for item in measurements])
    for place, item in enumerate(measurements):
        style: dict[str, Any] = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": LINES[place % len(LINES)],
            # at staggered places, so that curves on top of each other can be told apart
            "markevery": (0.02 * (place % 6), 0.12),
            "markersize": 5.5,
        }
        for curve in item.curves.values():
            points = _points(curve, column)
            axes.plot(points["percent"], points[column], label=labels[item.name], **style)
    if column == "loss":
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)


def plain_ticks(axis: Axis) -> None:
    """1, 2, 5, 10 on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _points(curve: pd.DataFrame, column: str) -> pd.DataFrame:
    """``percent`` of the schedule and a column where it has values, about :data:`MAX_POINTS`; a loss smoothed."""
    percent = (100 * curve["iteration"] / curve["iteration"].iloc[-1]).round(2)
    points = curve.assign(percent=percent).get(["percent", column], pd.DataFrame(columns=["percent", column])).dropna()
    if column == "loss":
        half = max(1, len(points) // 40)
        points = points.assign(loss=points["loss"].rolling(2 * half + 1, center=True, min_periods=1).mean().round(4))
    return points.iloc[:: max(1, len(points) // MAX_POINTS)]


def loss_points(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """For ``dvc plots show``: the loss of each row and seed against the percentage of its schedule."""
    tables = [pd.DataFrame(columns=["row", "seed", "percent", "loss"])]
    for item in measurements:
        tables += [_points(curve, "loss").assign(row=item.name, seed=seed) for seed, curve in item.curves.items()]
    return pd.concat(tables)[tables[0].columns]


def class_points(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """For ``dvc plots show``: IoU by class, of the 20 classes that are hardest on average over the rows."""
    ious = pd.DataFrame({item.name: item.iou for item in measurements if item.measured}, dtype=float)
    hardest = ious.mean(axis=1).dropna().sort_values(kind="stable").index[:20]
    points = (
        ious.loc[hardest].round(2).rename_axis("class").reset_index().melt("class", var_name="row", value_name="iou")
    )
    return points.dropna()[["row", "class", "iou"]]


def draw_results(measurements: Sequence[Measurement], path: Path) -> bool:
    """Measured mIoU (with the 95 % interval of several seeds) of one dataset beside the published number and its band.

    Where none is published, beside the best constant prediction. Rows without a result are left out. Returns whether
    there was anything to draw.
    """
    lines = _result_lines(measurements)
    if not lines:
        return False
    with figure_of([0.9 + 0.36 * len(lines)], path, 0.7, {**STYLE, "axes.grid.axis": "x"}) as (axes,):
        for y, (_, found, constant) in enumerate(lines):
            _draw_result(axes, y, found, constant)
        axes.set_yticks(range(len(lines)), [label for label, *_ in lines])
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.use_sticky_edges = False  # else a band ends on the frame
        axes.margins(x=0.08)
        axes.set_xlim(possible(axes.get_xlim()))
        bands = {f"band ± {found.band:g}" for _, found, _ in lines if found.band}
        axes.set_xlabel(", ".join(["mIoU, %", *sorted(bands)]), loc="right")  # else it may end beyond the page
        _legend_below(axes)
    return True


def _result_lines(items: Sequence[Measurement]) -> list[tuple[str, Accuracy, float | None]]:
    """Label, mIoU, and the best constant prediction's where nothing is published."""
    measured = [item for item in items if item.measured]
    labels = short_labels([item.row for item in measured])
    lines: list[tuple[str, Accuracy, float | None]] = []
    for item in measured:
        for metric, suffix in (("miou", ""), ("miou_ms_flip", ", ms+flip")):
            found = item.accuracy(metric)
            if found.mean is not None:
                constant = item.baseline[0] if found.published is None else None
                lines.append((labels[item.name] + suffix, found, constant))
    return lines


def _draw_result(axes: Axes, y: int, found: Accuracy, constant: float | None) -> None:
    against, band = found.published, found.band
    if against is not None and band is not None:
        axes.barh(y, 2 * band, left=against - band, height=0.5, color="#E0E0E0", label="published ± band")
        axes.plot([against], [y], "D", mfc="white", mec="black", ms=8, label="published", linestyle="")
    if constant is not None:
        axes.plot([constant], [y], "|", color="black", ms=14, mew=2, label="best constant prediction")
    if found.low is not None and found.high is not None:
        axes.plot([found.low, found.high], [y, y], "-", color=COLOURS[0], label="95 % interval of the mean")
    axes.plot([found.mean or 0.0], [y], "o", color=COLOURS[0], ms=6, label="measured here", linestyle="")


def draw_confusion(measurement: Measurement, path: Path) -> bool:
    """What the pixels of each class were taken for. Returns whether there was anything to draw."""
    if not measurement.measured:
        return False
    from matplotlib import rc_context

    from danet.evaluation.visualise import confusion_figure

    title = f"{measurement.name}, mIoU\u00a0{measurement.mean('miou'):.2f}"
    with rc_context({**STYLE, "axes.grid": False}):
        save(confusion_figure(measurement.confusion(), measurement.classes, title), path)
    return True


def draw_classes(measurements: Sequence[Measurement], path: Path) -> bool:
    """Heat map of the IoU of every class (lines) for the measured rows of one dataset (columns), with the numbers.

    Classes that no row has an IoU of, because the data lack them, are left out.

    Returns whether there was anything to draw.
    """
    measured = [item for item in measurements if item.measured]
    labels = short_labels([item.row for item in measured])
    table = pd.DataFrame({labels[item.name]: item.iou for item in measured}, dtype=float).dropna(how="all")
    if table.empty:
        return False
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    line_height, size = (0.19, 8) if len(table) > 40 else (0.3, 10)
    head = 0.085 * max(map(len, table.columns))
    # light enough for black numbers everywhere
    shade = ListedColormap(colormaps["Blues"]([0.62 * step / 255 for step in range(256)])).with_extremes(bad="white")
    with figure_of([head + line_height * len(table)], path, 0.3, {**STYLE, "axes.grid": False}) as (axes,):
        axes.imshow(table, cmap=shade, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
        digits = 1 if len(measured) <= 8 else 0
        for (y, x), value in np.ndenumerate(table.to_numpy()):
            text = "-" if math.isnan(value) else number(float(value), digits)
            axes.text(x, y, text, ha="center", va="center", fontsize=size)
        axes.set_yticks(range(len(table)), table.index, fontsize=size)
        axes.set_xticks(range(len(measured)), table.columns, rotation=90, fontsize=9)
        axes.xaxis.set_ticks_position("top")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return True
