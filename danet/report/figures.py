"""Figures of a table: drawn from metrics files alone, the same bytes every time.

Each is a white card of phone width (5 inches, text of 10 points and more), readable in light and dark pages; what
colour says is said by marker, line style or number as well.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
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


def draw_curves(groups: Mapping[str, Sequence[Measurement]], path: Path) -> bool:
    """Loss, validation mIoU where it was measured, and learning rate against iterations, for each data set.

    Several seeds of a row share colour, line and marker. Returns whether there was anything to draw.
    """
    panels: list[tuple[str, str, list[Measurement], bool]] = []
    for dataset, measurements in groups.items():
        lengths = _by_length([item for item in measurements if item.curves])
        for items in lengths:
            where = [dataset] * (len(groups) > 1)
            where += [f"up to {_iterations(items[-1]):g} iterations"] * (len(lengths) > 1)
            known = {name: having for name in QUANTITIES if (having := [item for item in items if _has(item, name)])}
            for place, (name, having) in enumerate(known.items(), 1):
                panels.append((", ".join(where) if place == 1 else "", name, having, place == len(known)))
    if not panels:
        return False
    heights = [QUANTITIES[name][1] + (0.5 + 0.22 * math.ceil(len(drawn) / 2)) * last for _, name, drawn, last in panels]
    with figure_of(heights, path) as grid:
        for axes, (title, name, drawn, last) in zip(grid, panels, strict=True):
            _draw_lines(axes, drawn, name)
            axes.set_title(textwrap.fill(title, 44), loc="left")
            axes.set_ylabel(QUANTITIES[name][0])
            if last:
                axes.set_xlabel("iteration")
                legend_below(axes)
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


def _iterations(item: Measurement) -> float:
    return max(float(curve["iteration"].iloc[-1]) for curve in item.curves.values())


def legend_below(axes: Axes) -> None:
    """A legend under the axis' label, of however many lines that is; none for a single entry."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    space = 3.6 + 1.4 * axes.get_xlabel().count("\n")  # in units of the legend's font size
    columns = 2 if max(len(label) for label in labels) < 28 else 1
    axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=space, ncols=columns)


def possible(limits: tuple[float, float]) -> tuple[float, float]:
    """An axis of percentages as far as these can be: an interval by Student's t may end beyond 0 or 100."""
    low, high = limits
    return max(low, -2.0), min(high, 102.0)


def _by_length(measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    """Measurements grouped by like length of training, so that no short one is squeezed against the axis."""
    groups: list[list[Measurement]] = []
    for item in sorted(measurements, key=_iterations):
        if groups and _iterations(item) <= 5 * _iterations(groups[-1][0]):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _draw_lines(axes: Axes, measurements: Sequence[Measurement], column: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    labels = short_labels([item.row for item in measurements])
    values: list[float] = []
    for place, item in enumerate(measurements):
        style: dict[str, Any] = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": LINES[place % len(LINES)],
        }
        label: str | None = labels[item.name]
        for curve in item.curves.values():
            points = _points(curve, column)
            if points.empty:
                continue
            values += list(points[column])
            # markers at staggered places, so that curves on top of each other can be told apart
            spacing = max(1, len(points) // 8)
            start = (place * spacing) // len(measurements) % len(points)
            axes.plot(*points.to_numpy().T, label=label, markevery=(start, spacing), markersize=5.5, **style)
            label = None
    if column == "loss" and 0 < 8 * min(values) < max(values):
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value and axes.get_xlim()[1] >= 10_000 else f"{value:g}")
    )


def plain_ticks(axis: Axis) -> None:
    """1, 2, 5, 10 on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _points(curve: pd.DataFrame, column: str) -> pd.DataFrame:
    """``iteration`` and a column where it has values, at most :data:`MAX_POINTS`; a loss as its running mean."""
    if column not in curve:
        return curve.head(0)
    points = curve[["iteration", column]].dropna()
    if column == "loss":
        half = max(1, len(points) // 40)
        points = points.assign(loss=points["loss"].rolling(2 * half + 1, center=True, min_periods=1).mean())
    step, last = math.ceil(len(points) / MAX_POINTS), len(points) - 1
    return points.iloc[sorted({*range(0, last + 1, max(1, step)), max(0, last)})] if len(points) else points


def loss_points(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """For ``dvc plots show``: the loss of each row and seed against the percentage of its schedule."""
    tables = [pd.DataFrame(columns=["row", "seed", "percent", "loss"])]
    for item in measurements:
        for seed, curve in item.curves.items():
            points = _points(curve, "loss")
            percent = (100 * points["iteration"] / points["iteration"].iloc[-1]).round(2)
            tables.append(points.assign(row=item.name, seed=seed, percent=percent, loss=points["loss"].round(4)))
    return pd.concat(tables)[tables[0].columns]


def class_points(measurements: Sequence[Measurement], count: int = 20) -> pd.DataFrame:
    """For ``dvc plots show``: IoU by class, of the classes that are hardest on average over the rows."""
    ious = pd.DataFrame({item.name: item.iou for item in measurements if item.measured}, dtype=float)
    hardest = ious.mean(axis=1).dropna().sort_values(kind="stable").index[:count]
    points = (
        ious.loc[hardest].round(2).rename_axis("class").reset_index().melt("class", var_name="row", value_name="iou")
    )
    return points.dropna()[["row", "class", "iou"]]


def draw_results(groups: Mapping[str, Sequence[Measurement]], path: Path) -> bool:
    """Measured mIoU (with the 95 % interval of several seeds) beside the published number and its band.

    Where none is published, beside the best constant prediction. One panel per dataset; rows without a result are left
    out. Returns whether there was anything to draw.
    """
    panels = {title: lines for title, items in groups.items() if (lines := _result_lines(items))}
    if not panels:
        return False
    heights = [0.9 + 0.36 * len(lines) for lines in panels.values()]
    with figure_of(heights, path, 0.7, {**STYLE, "axes.grid.axis": "x"}) as grid:
        seen: dict[str, Any] = {}
        for axes, (title, lines) in zip(grid, panels.items(), strict=True):
            for y, (_, found, constant) in enumerate(lines):
                _draw_result(axes, y, found, constant)
            axes.set_yticks(range(len(lines)), [label for label, *_ in lines])
            axes.set_ylim(len(lines) - 0.4, -0.6)
            axes.use_sticky_edges = False  # else a band ends on the frame
            axes.margins(x=0.08)
            axes.set_xlim(possible(axes.get_xlim()))
            bands = {f"band ± {found.band:g}" for _, found, _ in lines if found.band}
            axes.set_xlabel(", ".join(["mIoU, %", *sorted(bands)]))
            axes.set_title(title if len(panels) > 1 else "", loc="left")
            handles, labels = axes.get_legend_handles_labels()
            seen.update(zip(labels, handles, strict=True))
        figure: Any = grid[0].figure
        figure.legend(list(seen.values()), list(seen), loc="outside lower center", ncols=2)
    return True


def _result_lines(items: Sequence[Measurement]) -> list[tuple[str, Accuracy, float | None]]:
    """Label, mIoU, and the best constant prediction's where nothing is published."""
    measured = [item for item in items if item.measured]
    labels = short_labels([item.row for item in measured])
    lines: list[tuple[str, Accuracy, float | None]] = []
    for item in measured:
        for metric, suffix in (("miou", ""), ("miou_ms_flip", ", ms+flip")):
            found = item.accuracies.get(metric, Accuracy())
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
    # a label's words below each other where they fit over their column, else upright; a character has about 0.08 inches
    names = [label.replace(" ", "\n").replace("\nit", " it") for label in table.columns]
    width = (WIDTH - 0.3 - 0.08 * max(map(len, table.index))) / len(measured)
    stacked = 0.08 * max(len(word) for name in names for word in name.split("\n")) <= width
    if not stacked:
        names = list(table.columns)
    head = 0.6 if stacked else 0.085 * max(map(len, names))
    # light enough for black numbers everywhere
    shade = ListedColormap(colormaps["Blues"]([0.62 * step / 255 for step in range(256)])).with_extremes(bad="white")
    with figure_of([head + line_height * len(table)], path, 0.3, {**STYLE, "axes.grid": False}) as (axes,):
        axes.imshow(table, cmap=shade, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
        digits = 1 if len(measured) <= 8 else 0
        for (y, x), value in np.ndenumerate(table.to_numpy()):
            text = "-" if math.isnan(value) else number(float(value), digits)
            axes.text(x, y, text, ha="center", va="center", fontsize=size)
        axes.set_yticks(range(len(table)), table.index, fontsize=size)
        axes.set_xticks(
            range(len(measured)), names, rotation=0 if stacked else 90, fontsize=9 if len(measured) < 8 else 8
        )
        axes.xaxis.set_ticks_position("top")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return True
