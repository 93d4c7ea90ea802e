"""What accuracy costs: one figure over the rows of all tables."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danet.config.params import Params
from danet.report.figures import COLOURS, MARKERS, figure_of, plain_ticks, possible
from danet.report.labels import METHODS
from danet.results.measured import Measurement, hardware

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EMPTY = "No row measured yet"


def draw_all_costs(tables: Mapping[str, Sequence[Measurement]], params: Params, path: Path) -> None:
    """mIoU (mean over seeds, with its 95 % interval) against the cost of one training, for every measured row.

    A panel for each data set and kind of hardware, since neither the mIoU of two data sets nor the hours of two devices
    can be compared. Marker and colour are the table's; an open marker is a ResNet-50, a small one output stride 16.
    Without any row the figure says so.
    """
    rows = [item for items in tables.values() for item in items if item.measured and item.costs.get("device_hours")]
    panels: dict[tuple[str, str], list[Measurement]] = {}
    for item in sorted(rows, key=lambda item: [each.row.dataset for each in rows].index(item.row.dataset)):
        panels.setdefault((item.row.dataset, cost_name(item)), []).append(item)
    names = list(dict.fromkeys(item.row.table for item in rows))
    handles: dict[str, Any] = {}
    with figure_of([2.2] * max(1, len(panels)), path, 0.25 * len(names) + 0.2) as grid:
        for axes, ((dataset, name), here) in zip(grid, panels.items(), strict=False):
            for item in here:
                place = names.index(item.row.table) % len(COLOURS)
                handles[item.row.table] = _draw_row(axes, item, MARKERS[place], COLOURS[place])
            axes.set_xscale("log")
            plain_ticks(axes.xaxis)
            axes.margins(x=0.25, y=0.2)
            axes.set_ylim(possible(axes.get_ylim()))
            axes.set_title(params.datasets[dataset].title, loc="left")
            axes.set_xlabel(textwrap.fill(name, 48))
            axes.set_ylabel("mIoU, %")
        figure: Any = grid[0].figure
        if panels:
            titles = [params.tables[table].title for table in handles]
            figure.legend(list(handles.values()), titles, loc="outside lower left", ncols=1)
        else:
            grid[0].set_axis_off()
            figure.text(0.5, 0.5, EMPTY, ha="center", va="center", fontsize=13)


def cost_name(item: Measurement) -> str:
    """What ``device_hours`` of a measured row are: ``one training, GPU-hours, NVIDIA H200``."""
    names = (hardware(item.trained) or "unknown hardware").split("; ")  # several where the seeds had several
    unit = "GPU-hours" if item.trained[0].provenance.gpus else "hours"
    return f"one training, {unit}, {'; '.join(dict.fromkeys(name.rpartition(' x ')[2] for name in names))}"


def _draw_row(axes: Axes, item: Measurement, marker: str, colour: str) -> Any:
    """A row's point, with its method beside it where that is not DANet; what a legend shows of it."""
    found, hours = item.accuracies["miou"], item.costs["device_hours"]
    mean = found.mean or 0.0
    spread = None if found.low is None or found.high is None else [[mean - found.low], [found.high - mean]]
    model = item.row.model
    if model.method != "danet":
        axes.annotate(METHODS[model.method], (hours, mean), xytext=(8, 0), textcoords="offset points", va="center")
    return axes.errorbar(
        [hours], [mean], yerr=spread, linestyle="", marker=marker, color=colour, capsize=4, markeredgewidth=1.6,
        markerfacecolor="white" if model.backbone == "resnet50" else colour,
        markersize=5.5 if model.output_stride == 16 else 9.0,
    )  # fmt: skip
