"""What accuracy costs: one figure over the rows of all tables."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danet.config.params import Params
from danet.report.figures import COLOURS, MARKERS, STYLE, WIDTH, figure_of, plain_ticks, possible, save
from danet.report.labels import METHODS
from danet.results.measured import Measurement, hardware

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EMPTY = "No row measured yet"
LARGE, SMALL = 9.0, 5.5
"""Points: markers of output stride 8, and of 16."""


def draw_all_costs(tables: Mapping[str, Sequence[Measurement]], params: Params, path: Path) -> int:
    """mIoU (mean over seeds, with its 95 % interval) against the cost of one training, for every measured row.

    A panel for each data set and kind of hardware, since neither the mIoU of two data sets nor the hours of two devices
    can be compared. Marker and colour are the table's; an open marker is a ResNet-50, a small one output stride 16.
    Without any row the figure says so.

    Returns:
        The number of rows drawn.
    """
    rows = [item for items in tables.values() for item in items if item.measured and item.costs.get("device_hours")]
    panels: dict[tuple[str, str], list[Measurement]] = {}
    for item in sorted(rows, key=lambda item: [each.row.dataset for each in rows].index(item.row.dataset)):
        panels.setdefault((item.row.dataset, cost_name(item)), []).append(item)
    if not panels:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        with rc_context(STYLE):
            figure = Figure(figsize=(WIDTH, 1.0))
            figure.text(0.5, 0.5, EMPTY, ha="center", va="center", fontsize=13)
            save(figure, path)
        return 0
    names = list(dict.fromkeys(item.row.table for item in rows))
    looks = {table: (MARKERS[place % len(MARKERS)], COLOURS[place % len(COLOURS)]) for place, table in enumerate(names)}
    handles = _legend(rows, looks, params)
    with figure_of([2.2] * len(panels), path, 0.25 * len(handles) + 0.2) as grid:
        for axes, ((dataset, name), here) in zip(grid, panels.items(), strict=True):
            _draw_panel(axes, here, looks, name)
            axes.set_title(params.datasets[dataset].title, loc="left")
            axes.set_ylabel("mIoU, %")
        figure = grid[0].figure  # type: ignore[assignment]
        figure.legend(handles=handles, loc="outside lower left", ncols=1)
    return len(rows)


def cost_name(item: Measurement) -> str:
    """What ``device_hours`` of a measured row are: ``one training, GPU-hours, NVIDIA H200``."""
    names = (hardware(item.trained) or "unknown hardware").split("; ")  # several where the seeds had several
    unit = "GPU-hours" if item.trained[0].provenance.gpus else "hours"
    return f"one training, {unit}, {'; '.join(dict.fromkeys(name.rpartition(' x ')[2] for name in names))}"


def _draw_panel(axes: Axes, items: Sequence[Measurement], looks: Mapping[str, tuple[str, str]], name: str) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    hours = [item.costs["device_hours"] for item in items]
    minutes = max(hours) < 0.5
    amounts = [60 * value if minutes else value for value in hours]
    for item, amount in zip(items, amounts, strict=True):
        marker, colour = looks[item.row.table]
        found, model = item.accuracies["miou"], item.row.model
        mean = found.mean or 0.0
        axes.errorbar(
            [amount], [mean],
            yerr=None if found.low is None or found.high is None else [[mean - found.low], [found.high - mean]],
            linestyle="", marker=marker, color=colour, markeredgewidth=1.6, capsize=4,
            markerfacecolor="white" if model.backbone == "resnet50" else colour,
            markersize=SMALL if model.output_stride == 16 else LARGE,
        )  # fmt: skip
        if model.method != "danet":
            axes.annotate(
                METHODS[model.method], (amount, mean), xytext=(-9, 0), textcoords="offset points", ha="right",
                va="center", fontsize=10,
            )  # fmt: skip
    if max(amounts) > 6 * min(amounts):
        axes.set_xscale("log")
        axes.set_xlim(min(amounts) / 1.4, max(amounts) * 1.4)
        plain_ticks(axes.xaxis)
    else:
        axes.set_xlim(0, max(amounts) * 1.1)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel(textwrap.fill(name.replace("hours", "minutes") if minutes else name, 48))
    axes.margins(y=0.2)
    axes.set_ylim(possible(axes.get_ylim()))


def _legend(items: Sequence[Measurement], looks: Mapping[str, tuple[str, str]], params: Params) -> list[Any]:
    from matplotlib.lines import Line2D

    def handle(label: str, marker: str, colour: str, face: str, size: float = LARGE) -> Line2D:
        style: dict[str, Any] = {"linestyle": "", "mew": 1.6, "markersize": size, "markerfacecolor": face}
        return Line2D([], [], label=label, marker=marker, color=colour, **style)

    grey = "#555555"
    handles = [handle(params.tables[table].title, marker, colour, colour) for table, (marker, colour) in looks.items()]
    if len({item.row.model.backbone for item in items}) > 1:
        handles.append(handle("open: ResNet-50; filled: ResNet-101", "o", grey, "white"))
    if len({item.row.model.output_stride for item in items}) > 1:
        handles.append(handle("small: output stride 16; large: 8", "o", grey, grey, SMALL))
    if any(item.accuracies["miou"].low is not None for item in items):
        handles.append(handle("95 % interval of the mean over seeds", "|", grey, grey, 14))
    return handles
