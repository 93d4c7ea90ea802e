"""Markdown of the page of a row: its numbers, how to get them again, IoU by class and every setting."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from danet.config.params import Params
from danet.config.published import Classes
from danet.config.row import Row
from danet.core.text import fact, number, signed
from danet.report.labels import METHODS, backbone_text
from danet.report.markdown import Grid, Page, escape
from danet.report.tables import CHOSEN_NOTE, SHORT_STATUS, environment, given, released, retrained, when
from danet.results.measured import Measurement, fact_name
from danet.results.schema import Stage, TableRow
from danet.results.verdict import summarise

METRIC_NAMES = {
    "miou": "mIoU", "miou_ms_flip": "mIoU, ms+flip", "aacc": "aAcc", "aacc_ms": "aAcc, ms+flip", "macc": "mAcc",
}  # fmt: skip


def row_page(
    row: Row, record: TableRow, measurement: Measurement, params: Params, figures: Sequence[tuple[str, str]]
) -> str:
    """The page; ``figures`` are ``(caption, path relative to the page)``."""
    table = params.tables[row.table]
    measured = measurement.status == "measured"
    page = Page(f"Made by `dvc repro -s report@{row.table}`; do not edit.", table.banner)
    page.heading(1, row.name)
    page.text(
        f"{METHODS[row.model.method]}, {backbone_text(row)}, on {params.datasets[row.dataset].title}: trained on "
        f"`{row.train_split}` for {row.schedule.text} at {record.crop_size}, tested on `{row.val_split}`. "
        f"A row of [{table.title}](../{row.table}.md)."
    )
    page.text(f"Protocol: {row.protocol}. Numerics (`numerics.yaml`): {row.profile}.")
    page.bullets(row.notes)
    page.heading(2, "Result")
    if measured:
        page.table(_results(record, measurement, table.published))
        page.text(CHOSEN_NOTE if record.best_on_val is not None else "")
    else:
        page.text(f"**{SHORT_STATUS[measurement.status]}**")
    page.bullets(f"`{problem.file}`: {problem.reason}" for problem in measurement.problems)
    if record.released and record.released.status == "measured":
        page.heading(2, "Released weights")
        page.text(_released_text(record))
        lines = [
            [name, number(getattr(record.published, metric, None)), released(record, metric)]
            for metric, name in METRIC_NAMES.items()
            if getattr(record.released, metric) is not None
        ]
        page.table((["Metric", "Published", "Released weights"], lines, "lrr"))
    page.heading(2, "Reproduce")
    page.code(_commands(row, record, table.command), "bash")
    for caption, path in figures:
        page.figure(caption, path)
    published = record.published.classes
    if measured or published:
        page.heading(2, "Per class")
        page.table(_classes(measurement, published))
        if published:
            page.text(f"Published classes: {published.of}, <{published.url}>. Measured here: `{row.val_split}`.")
    if measured:
        if confused := most_confused(measurement):
            page.text("Most often taken for another class, in percent of the pixels of the class:")
            lines = [[escape(is_), escape(taken), f"{share:.1f}"] for is_, taken, share in confused]
            page.table((["Is", "Predicted as", "%"], lines, "llr"))
        page.heading(2, "Environment")
        page.table((["Fact", "Value"], _environment(record.provenance), "ll"))
    page.heading(2, "Settings")
    page.text(f"Row hash `{row.hash}`, training hash `{row.train_hash}`.")
    page.code(yaml.safe_dump(row.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100), "yaml")
    return page.end()


def most_confused(measurement: Measurement, count: int = 10) -> list[tuple[str, str, float]]:
    """The largest shares off the diagonal of the confusion matrix: class, what it was taken for, percent."""
    names, matrix = measurement.classes, measurement.confusion().tolist()
    shares = [
        (100 * pixels / sum(line), truth, predicted)
        for truth, line in enumerate(matrix)
        for predicted, pixels in enumerate(line)
        if pixels and truth != predicted
    ]
    largest = sorted(shares, key=lambda item: (-item[0], *item[1:]))[:count]
    return [(names[truth], names[predicted], share) for share, truth, predicted in largest]


def _results(record: TableRow, measurement: Measurement, has_published: bool) -> Grid:
    lines = []
    for metric, name in METRIC_NAMES.items():
        summary = summarise(measurement.values(metric))
        against = getattr(record.published, metric, None)
        if summary is None and against is None:
            continue
        interval = f"{summary.low:.2f} to {summary.high:.2f}" if summary and summary.low is not None else "-"
        seeds = ", ".join(f"{value:.2f}" for value in measurement.values(metric)) or "-"
        best = (record.best_on_val or {}).get(metric)
        line = [name, retrained(record, metric) + (f"; best on val {best:.2f}" if best else ""), seeds, interval]
        if has_published:
            line += [given(record, metric), signed(record.difference.get(metric)), record.verdict.get(metric) or "-"]
        lines.append(line)
    head = ["Metric", "Measured", "Seeds", "95 % interval"]
    if has_published:
        return [*head, "Published", "Difference", "Verdict"], lines, "lrrlrrl"
    if record.measured:
        where = f"best constant mIoU (`{record.measured.baseline_class}` everywhere)"
        lines.append([where, number(record.measured.baseline_miou), "", ""])
    return head, lines, "lrrl"


def _classes(measurement: Measurement, published: Classes | None) -> Grid:
    """IoU by class of what was measured, beside what is published."""
    seeds = [run.seed for run in measurement.runs]
    columns: dict[str, list[float | None]] = {}
    for mode, name in (("ss", "IoU"), ("ms", "IoU, ms+flip")):
        if any(run.modes.get(mode) for run in measurement.runs):
            columns[name if len(seeds) == 1 else f"{name}, mean of {len(seeds)}"] = measurement.class_iou(mode)
    if len(seeds) > 1:
        columns |= {f"seed {run.seed}": run.modes.ss.iou for run in measurement.runs}
    elif seeds:
        columns["accuracy"] = measurement.runs[0].modes.ss.acc
    names = measurement.classes if seeds else tuple(published.iou if published else ())
    if published:
        columns[f"published, {published.of}"] = [published.iou.get(name) for name in names]
    lines = [
        [escape(name), *(number(column[place]) for column in columns.values())] for place, name in enumerate(names)
    ]
    return ["Class", *columns], lines, "l" + "r" * len(columns)


def _environment(provenance: Sequence[Stage]) -> list[list[str]]:
    """One line per fact; where stages or seeds differ in it, each with its own value, said as briefly as can be."""
    lines = []
    facts = [(each, each.facts) for each in provenance]
    for key in dict.fromkeys(key for _, known in facts for key in known):
        stages = {each.stage for each, known in facts if known.get(key) is not None}
        ways: list[dict[str, set[str]]] = [{}, {}, {}, {}]
        for each, known in facts:
            if each.stage in stages:
                seed = f"seed {each.seed}"
                for found, who in zip(ways, ("", each.stage, seed, f"{each.stage}, {seed}"), strict=True):
                    found.setdefault(who, set()).add(escape(fact(known.get(key))))
        clear = next(found for found in ways if all(len(values) == 1 for values in found.values()))
        shown = [f"{who}: {min(values)}" if who else min(values) for who, values in clear.items()]
        lines.append([escape(fact_name(key)), "<br>".join(shown) or "-"])
    return lines


def _commands(row: Row, record: TableRow, table_command: str) -> str:
    lines = []
    commits = {stage.provenance.known_commit for stage in record.provenance} - {None}
    if len(commits) == 1:
        lines.append(f"git checkout {commits.pop()}")
    if table_command:
        lines.append(f"{table_command}   # this row and the others of its table")
    else:
        lines.append(f"dvc repro evaluate@{row.name}   # with all that it needs: download, convert, weights, train")
    if record.released:
        lines.append(f"dvc repro verify@{row.name}     # the source's released weights, without training")
    return "\n".join(lines)


def _released_text(record: TableRow) -> str:
    assert record.released is not None
    weights, facts = record.released.weights, record.released.provenance
    assert weights is not None
    assert facts is not None
    known = {"matches": "its published digits", "none": "none is published"}[weights.checksum]
    said = f"`{weights.file}`, SHA-256 `{weights.sha256[:12]}` ({known})"
    return f"{said}; evaluated by the row's protocol: {when(facts)}, {environment(facts)}."
