"""``reports/cost.md``: what every row costs on the devices whose throughput was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from danet.config.params import Params
from danet.config.workspace import Workspace
from danet.core.files import write_text
from danet.core.text import duration
from danet.evaluation.cost import Cost, Rates, rates, row_cost
from danet.report.labels import label_head, short_labels, unbroken
from danet.report.markdown import Page


def cost_page(params: Params, devices: Sequence[Rates]) -> str:
    """The page; a section for each table, with a line for each row."""
    page = Page("Written by `make benchmark`; do not edit.")
    page.heading(1, "Cost")
    page.text(
        "Time on one device under each profile of `numerics.yaml`, all seeds of `params.yaml`, from measured "
        "throughput ([benchmarks/](benchmarks/README.md)) and counted operations (`danet flops`):"
    )
    page.code(
        "training = 3 x forward FLOP at the crop x images seen / measured FLOP/s of our training step\n"
        "testing  = FLOP of a validation image (windows, mirror images) x images / measured FLOP/s of prediction",
        "text",
    )
    page.text(
        "The rate is taken at the row's FLOP per image, linearly between the benchmarked shapes, that of the nearest "
        "shape beyond them. Loading is not in it: it runs beside. Multi-scale tests are not in it."
    )
    if not any("cores" not in each.device for each in devices):
        page.text("No GPU has been measured (`make benchmark` on one adds its columns).")
    head = [f"{each.device}, {each.profile}" for each in devices]
    published = params.published_rows()
    page.heading(2, f"All {len(published)} published rows")
    hours = [[row_cost(row, params, each).hours for row in published] for each in devices]
    times = ["not measured" if None in each else f"**{sum(filter(None, each)):,.0f} h**" for each in hours]
    page.bullets(f"{name}: {time}" for name, time in zip(head, times, strict=True))
    for name, table in params.tables.items():
        if rows := params.table_rows(name):
            page.heading(2, table.title)
            page.text(f"The rows run under `{'`, `'.join(dict.fromkeys(row.profile for row in rows))}`.")
            costs = [[row_cost(row, params, each) for each in devices] for row in rows]
            labels = short_labels(rows)
            lines = []
            for row, own in zip(rows, costs, strict=True):
                work = row_cost(row, params, None)
                label = f"[{unbroken(labels[row.name])}]({name}/{row.name}.md)"
                cells = [_pflop(work.train_flop), _pflop(work.test_flop), *(_hours([each]) for each in own)]
                lines.append([label, params.datasets[row.dataset].title, *cells])
            totals = [_hours(column) for column in zip(*costs, strict=True)]
            lines.append([f"**all {len(rows)}**", "", "", "", *(f"**{time}**" for time in totals)])
            titles = [label_head(rows), "Data set", "Training, PFLOP", "Testing, PFLOP", *head]
            page.table((titles, lines, "ll" + "r" * (len(titles) - 2)))
    page.heading(2, "Rates")
    page.bullets(
        f"{each.device}, {each.profile}: {each.threads} threads, measured {each.date}: "
        f"training {_span(each.train)}, prediction {_span(each.infer)}."
        for each in devices
    )
    return page.end()


def _hours(costs: Sequence[Cost]) -> str:
    """All of them together."""
    hours = [cost.hours for cost in costs if cost.hours is not None]
    return duration(3600 * sum(hours)) if len(hours) == len(costs) else "not measured"


def _pflop(flop: float) -> str:
    return f"{flop / 1e15:,.0f}" if flop >= 1e17 else f"{flop / 1e15:.2g}"


def _span(points: Sequence[tuple[float, float]]) -> str:
    if not points:
        return "not measured"
    values = [rate / 1e12 for _, rate in points]
    if len(values) == 1:
        return f"{values[0]:.2f} TFLOP/s at one shape"
    return f"{min(values):.2f} to {max(values):.2f} TFLOP/s over {len(points)} shapes"


def write(workspace: Workspace) -> Path:
    """Writes ``reports/cost.md`` from the benchmark files at hand."""
    path = workspace.reports() / "cost.md"
    write_text(path, cost_page(workspace.params(), rates(workspace.reports() / "benchmarks")))
    return path
