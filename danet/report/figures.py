"""Figures of a table: drawn from metrics files alone, the same bytes every time.

Each is a white card of phone width (5 inches, text of 10 points and more), readable in light and dark pages; what
colour says is said by marker, line style or number as well.
"""

from __future__ import annotations

import io
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danet.core.files import atomic_write
from danet.report.labels import short_labels
from danet.results.measured import Measurement
from danet.results.schema import TableRow
from danet.results.verdict import SeedStatistics, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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


def save(figure: Figure, path: Path, photographs: bool = False) -> None:
    """Writes a PNG at 180 dpi without date or software version, in 128 colours (photographs: all of them)."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=180, metadata={"Software": None})
    with Image.open(drawn) as image, atomic_write(path) as temporary:
        flat = image.convert("RGB")
        if not photographs:
            flat = flat.quantize(128, dither=Image.Dither.NONE)
        flat.save(temporary, format="PNG", optimize=True)


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
            known = [name for name in QUANTITIES if any(_has(item, name) for item in items)]
            for name in known:
                drawn = [item for item in items if _has(item, name)]
                panels.append((", ".join(where) if name == known[0] else "", name, drawn, name == known[-1]))
    if not panels:
        return False
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    heights = [QUANTITIES[name][1] + (0.5 + 0.22 * math.ceil(len(drawn) / 2)) * last for _, name, drawn, last in panels]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.2), layout="constrained")
        grid: Any = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
        for axes, (title, name, drawn, last) in zip(grid[:, 0], panels, strict=True):
            _draw_lines(axes, drawn, name)
            axes.set_title(textwrap.fill(title, 44), loc="left")
            axes.set_ylabel(QUANTITIES[name][0])
            if last:
                axes.set_xlabel("iteration")
                legend_below(axes)
        save(figure, path)
    return True


QUANTITIES = {"loss": ("loss", 2.2), "val_miou": ("val mIoU, %", 1.8), "lr": ("learning rate", 1.2)}
"""Of the curves: label and inches."""


def _has(item: Measurement, column: str) -> bool:
    return any(_points(curve, column)[0] for curve in item.curves.values())


def _iterations(item: Measurement) -> float:
    return max(curve["iteration"][-1] or 0 for curve in item.curves.values())


def legend_below(axes: Axes, least: int = 2) -> None:
    """A legend under the axis' label, of however many lines that is; none for fewer entries than ``least``."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < least:
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
    labels = short_labels([item.row for item in measurements])
    values: list[float] = []
    for place, item in enumerate(measurements):
        style: dict[str, Any] = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": LINES[place % len(LINES)],
        }
        for number, curve in enumerate(item.curves.values()):
            x, y = _points(curve, column)
            if not x:
                continue
            if column == "loss":
                y = _smooth(y, max(1, len(y) // 40))
            x, y = _thin(x, y)
            values += y
            # markers at staggered places, so that curves on top of each other can be told apart
            spacing = max(1, len(x) // 8)
            start = (place * spacing) // max(1, len(measurements))
            label = labels[item.row.name] if number == 0 else None
            axes.plot(x, y, label=label, markevery=(start % len(x), spacing), markersize=5.5, **style)
    positive = [value for value in values if value > 0]
    if column == "loss" and len(positive) == len(values) and max(values) > 8 * min(values):
        axes.set_yscale("log")
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value and axes.get_xlim()[1] >= 10_000 else f"{value:g}")
    )


def _points(curve: Mapping[str, Sequence[float | None]], column: str) -> tuple[list[float], list[float]]:
    if column not in curve:
        return [], []
    pairs = [(x, y) for x, y in zip(curve["iteration"], curve[column], strict=True) if x is not None and y is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _smooth(values: Sequence[float], half: int) -> list[float]:
    """Mean over up to ``half`` neighbours on each side, which the ends have fewer of."""
    return [
        math.fsum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - half) : i + half + 1])
    ]


def _thin(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    step = math.ceil(len(x) / MAX_POINTS)
    keep = sorted({*range(0, len(x), step), len(x) - 1})
    return [x[i] for i in keep], [y[i] for i in keep]


def loss_points(measurements: Sequence[Measurement]) -> list[list[Any]]:
    """For ``dvc plots show``: the loss of each row and seed against the percentage of its schedule."""
    lines: list[list[Any]] = [["row", "seed", "percent", "loss"]]
    for item in measurements:
        for seed, curve in item.curves.items():
            x, y = _points(curve, "loss")
            points = zip(*_thin(x, _smooth(y, max(1, len(y) // 40))), strict=True)
            lines += [[item.row.name, seed, round(100 * at / x[-1], 2), round(loss, 4)] for at, loss in points]
    return lines


def class_points(measurements: Sequence[Measurement], count: int = 20) -> list[list[Any]]:
    """For ``dvc plots show``: IoU by class, of the classes that are hardest on average over the rows."""
    lines: list[list[Any]] = [["row", "class", "iou"]]
    rows = {item.row.name: dict(zip(item.classes, item.class_iou(), strict=True)) for item in measurements if item.runs}
    found: dict[str, list[float]] = {}
    for ious in rows.values():
        for name, iou in ious.items():
            found.setdefault(name, []).extend([] if iou is None else [iou])
    hardest = sorted(
        (name for name, values in found.items() if values), key=lambda name: statistics.fmean(found[name])
    )[:count]
    for row, ious in rows.items():
        lines += [[row, name, round(iou, 2)] for name in hardest if (iou := ious.get(name)) is not None]
    return lines


def draw_results(groups: Mapping[str, Sequence[Measurement]], records: Mapping[str, TableRow], path: Path) -> bool:
    """Measured mIoU (with the 95 % interval of several seeds) beside the published number and its band.

    For tables without published numbers, beside the best constant prediction. One panel per dataset; rows without a
    result are left out. Returns whether there was anything to draw.
    """
    panels = []
    for title, measurements in groups.items():
        lines = _result_lines(measurements, records)
        if lines:
            panels.append((title, lines))
    if not panels:
        return False
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    heights = [0.9 + 0.36 * len(lines) for _, lines in panels]
    with rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.7), layout="constrained")
        grid: Any = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
        seen: dict[str, Any] = {}
        for axes, (title, lines) in zip(grid[:, 0], panels, strict=True):
            for y, line in enumerate(lines):
                _draw_result(axes, y, line)
            axes.set_yticks(range(len(lines)), [line.label for line in lines])
            axes.set_ylim(len(lines) - 0.4, -0.6)
            axes.use_sticky_edges = False  # else a band ends on the frame
            axes.margins(x=0.08)
            axes.set_xlim(possible(axes.get_xlim()))
            bands = {f"band ± {line.band:g}" for line in lines if line.band is not None}
            axes.set_xlabel(", ".join(["mIoU, %", *sorted(bands)]))
            axes.set_title(title if len(panels) > 1 else "", loc="left")
            handles, labels = axes.get_legend_handles_labels()
            seen.update(zip(labels, handles, strict=True))
        figure.legend(list(seen.values()), list(seen), loc="outside lower center", ncols=2)
        save(figure, path)
    return True


@dataclass(frozen=True)
class _ResultLine:
    """A line of the figure of results."""

    label: str
    statistics: SeedStatistics
    published: float | None
    band: float | None
    baseline: float | None
    """The best constant prediction; ``None`` where a number is published."""


def _result_lines(measurements: Sequence[Measurement], records: Mapping[str, TableRow]) -> list[_ResultLine]:
    measured = [item for item in measurements if item.status == "measured"]
    labels = short_labels([item.row for item in measured])
    lines = []
    for item in measured:
        record = records[item.row.name]
        for metric, suffix in (("miou", ""), ("miou_ms_flip", ", ms+flip")):
            summary = summarise(item.values(metric))
            against = getattr(record.published, metric)
            baseline = summarise(item.values("baseline_miou")) if against is None else None
            if summary is None or (record.band is not None and against is None):
                continue
            label = labels[item.row.name] + suffix
            lines.append(_ResultLine(label, summary, against, record.band, baseline.mean if baseline else None))
    return lines


def _draw_result(axes: Axes, y: int, line: _ResultLine) -> None:
    summary, against, band = line.statistics, line.published, line.band
    if against is not None and band is not None:
        axes.barh(y, 2 * band, left=against - band, height=0.5, color="#E0E0E0", label="published ± band")
        axes.plot(
            [against],
            [y],
            "D",
            markerfacecolor="white",
            markeredgecolor="black",
            markersize=8,
            label="published",
            linestyle="",
        )
    if line.baseline is not None:
        axes.plot(
            [line.baseline],
            [y],
            "|",
            color="black",
            markersize=14,
            markeredgewidth=2,
            label="best constant prediction",
        )
    if summary.low is not None and summary.high is not None:
        axes.plot([summary.low, summary.high], [y, y], "-", color=COLOURS[0], label="95 % interval of the mean")
    axes.plot([summary.mean], [y], "o", color=COLOURS[0], markersize=6, label="measured here", linestyle="")


def draw_confusion(measurement: Measurement, path: Path) -> bool:
    """What the pixels of each class were taken for. Returns whether there was anything to draw."""
    matrix, miou = measurement.confusion(), summarise(measurement.values("miou"))
    if miou is None:
        return False
    from matplotlib import rc_context

    from danet.evaluation.visualise import confusion_figure

    title = f"{measurement.row.name}, mIoU\u00a0{miou.mean:.2f}"
    with rc_context({**STYLE, "axes.grid": False}):
        save(confusion_figure(matrix, measurement.classes, title), path)
    return True


def draw_classes(measurements: Sequence[Measurement], path: Path) -> bool:
    """Heat map of the IoU of every class (lines) for the measured rows of one dataset (columns), with the numbers.

    Classes that no row has an IoU of, because the data lack them, are left out.

    Returns whether there was anything to draw.
    """
    measured = [item for item in measurements if item.status == "measured"]
    if not measured:
        return False
    from matplotlib import colormaps, rc_context
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    classes = measured[0].classes
    measured = [item for item in measured if item.classes == classes]
    labels = short_labels([item.row for item in measured])
    table = [[math.nan if value is None else value for value in item.class_iou()] for item in measured]
    columns = [list(column) for column in zip(*table, strict=True)]
    present = [place for place, line in enumerate(columns) if not all(map(math.isnan, line))]
    if not present:
        return False
    classes, columns = tuple(classes[place] for place in present), [columns[place] for place in present]
    crowded = len(classes) > 40
    line_height, size = (0.19, 8) if crowded else (0.3, 10)
    # a label's words below each other where they fit over their column, else upright; a character has about 0.08 inches
    width = (WIDTH - 0.3 - 0.08 * max(len(name) for name in classes)) / len(measured)
    words = [word for label in labels.values() for word in label.replace(" it", "_it").split()]
    stacked = 0.08 * max(map(len, words)) <= width
    if stacked:
        labels = {
            name: label.replace(" it", "_it").replace(" ", "\n").replace("_", " ") for name, label in labels.items()
        }
    head = 0.6 if stacked else 0.085 * max(len(label) for label in labels.values())
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, 0.3 + head + line_height * len(classes)), layout="constrained")
        axes = figure.subplots()
        # light enough for black numbers everywhere
        shade = ListedColormap(colormaps["Blues"]([0.62 * step / 255 for step in range(256)])).with_extremes(
            bad="white"
        )
        axes.imshow(columns, cmap=shade, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
        for y, line in enumerate(columns):
            for x, value in enumerate(line):
                text = "-" if math.isnan(value) else f"{value:.1f}" if len(measured) <= 8 else f"{value:.0f}"
                axes.text(x, y, text, ha="center", va="center", fontsize=size)
        axes.set_yticks(range(len(classes)), classes, fontsize=size)
        names = [labels[item.row.name] for item in measured]
        axes.set_xticks(
            range(len(measured)), names, rotation=0 if stacked else 90, fontsize=9 if len(measured) < 8 else 8
        )
        axes.xaxis.set_ticks_position("top")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        save(figure, path)
    return True
