"""What accuracy costs: one figure over the rows of all tables, made from the tables' records."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danet.report.figures import COLOURS, MARKERS, STYLE, WIDTH, possible, save
from danet.report.labels import METHODS
from danet.results.schema import TableFile, TableRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = Mapping[str, TableFile]
"""Tables by name, as :func:`danet.report.records.table_record` gives them."""
EMPTY = "No row measured yet"
LARGE, SMALL = 9.0, 5.5
"""Points: markers of output stride 8, and of 16."""


@dataclass(frozen=True)
class Point:
    """A measured row."""

    table: str
    row: TableRow
    hours: float
    """Of one training, times its devices."""


def points_of(records: Records) -> list[Point]:
    """All rows with an mIoU and a training time."""
    return [
        Point(table, row, hours)
        for table, record in records.items()
        for row in record.rows
        if row.status == "measured" and (hours := device_hours(row))
    ]


def draw_all_costs(records: Records, titles: Mapping[str, str], path: Path) -> int:
    """mIoU (mean over seeds, with its 95 % interval) against the cost of one training, for every measured row.

    A panel for each data set and kind of hardware, since neither the mIoU of two data sets nor the hours of two devices
    can be compared. Marker and colour are the table's; an open marker is a ResNet-50, a small one output stride 16.
    Without any row the figure says so.

    Args:
        records: of all tables.
        titles: of data sets, by name.
        path: of the PNG, which is always written.

    Returns:
        The number of rows drawn.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    points = points_of(records)
    panels: dict[tuple[str, str], list[Point]] = {}
    datasets = list(dict.fromkeys(point.row.dataset for point in points))
    for point in sorted(points, key=lambda point: datasets.index(point.row.dataset)):
        panels.setdefault((point.row.dataset, cost_name(point.row)), []).append(point)
    with rc_context(STYLE):
        if not points:
            figure = Figure(figsize=(WIDTH, 1.0))
            figure.text(0.5, 0.5, EMPTY, ha="center", va="center", fontsize=13)
        else:
            tables = list(dict.fromkeys(point.table for point in points))
            looks = {
                table: (MARKERS[place % len(MARKERS)], COLOURS[place % len(COLOURS)])
                for place, table in enumerate(tables)
            }
            handles = _legend(points, looks, {table: records[table].title for table in tables})
            figure = Figure(figsize=(WIDTH, 2.2 * len(panels) + 0.25 * len(handles) + 0.2), layout="constrained")
            grid: Any = figure.subplots(len(panels), 1, squeeze=False)
            for axes, ((dataset, name), here) in zip(grid[:, 0], panels.items(), strict=True):
                minutes = cost_axis(axes, [point.hours for point in here], name)
                _draw_panel(axes, here, looks, 60 if minutes else 1)
                axes.set_title(titles.get(dataset, dataset), loc="left")
                axes.set_ylabel("mIoU, %")
            figure.legend(handles=handles, loc="outside lower left", ncols=1)
        save(figure, path)
    return len(points)


def cost_axis(axes: Axes, hours: Sequence[float], name: str) -> bool:
    """Label, scale, ends and ticks of the horizontal axis for these costs.

    Returns whether it is of minutes, because all are short.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    minutes = max(hours) < 0.5
    low, high = (end(hours) * (60 if minutes else 1) for end in (min, max))
    if high > 6 * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.4, high * 1.4)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, high * 1.1)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel(textwrap.fill(name.replace("hours", "minutes") if minutes else name, 48))
    return minutes


def device_hours(record: TableRow) -> float:
    """What one training of a row cost: its hours times its GPUs (on a CPU: hours); 0 if that was not measured."""
    return (record.measured and record.measured.device_hours) or 0.0


def cost_name(record: TableRow) -> str:
    """What :func:`device_hours` of a measured row are hours of: ``one training, GPU-hours, NVIDIA H200``."""
    measured = record.measured
    assert measured is not None
    names = (measured.device or "unknown hardware").split("; ")  # several where the seeds had several
    hardware = "; ".join(dict.fromkeys(name.rpartition(" x ")[2] for name in names))
    return f"one training, {'GPU-hours' if measured.gpus else 'hours'}, {hardware}"


def _draw_panel(axes: Axes, points: Sequence[Point], looks: Mapping[str, tuple[str, str]], scale: int) -> None:
    for point in points:
        marker, colour = looks[point.table]
        row, spread = point.row, point.row.spread["miou"]
        mean = sum(spread.values) / spread.n
        error = None if spread.low is None or spread.high is None else [[mean - spread.low], [spread.high - mean]]
        axes.errorbar(
            [point.hours * scale],
            [mean],
            yerr=error,
            linestyle="",
            marker=marker,
            color=colour,
            markerfacecolor="white" if row.backbone == "resnet50" else colour,
            markeredgewidth=1.6,
            markersize=SMALL if row.output_stride == 16 else LARGE,
            capsize=4,
        )
        if row.method != "danet":
            name = METHODS[row.method]
            axes.annotate(
                name,
                (point.hours * scale, mean),
                xytext=(-9, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=10,
            )
    axes.margins(y=0.2)
    axes.set_ylim(possible(axes.get_ylim()))


def _legend(points: Sequence[Point], looks: Mapping[str, tuple[str, str]], titles: Mapping[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    def handle(label: str, marker: str, colour: str, face: str, size: float = LARGE) -> Line2D:
        style: dict[str, Any] = {"linestyle": "", "markeredgewidth": 1.6, "markersize": size, "markerfacecolor": face}
        return Line2D([], [], label=label, marker=marker, color=colour, **style)

    handles = [handle(titles[table], marker, colour, colour) for table, (marker, colour) in looks.items()]
    backbones = {point.row.backbone for point in points}
    strides = {point.row.output_stride for point in points}
    if len(backbones) > 1:
        handles.append(handle("open: ResNet-50; filled: ResNet-101", "o", "#555555", "white"))
    if len(strides) > 1:
        handles.append(handle("small: output stride 16; large: 8", "o", "#555555", "#555555", SMALL))
    if any(point.row.spread["miou"].low is not None for point in points):
        handles.append(
            Line2D(
                [],
                [],
                label="95 % interval of the mean over seeds",
                marker="|",
                color="#555555",
                linestyle="",
                markersize=14,
            )
        )
    return handles
