"""Markdown of the page of a row: its numbers, how to get them again, IoU by class and every setting."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from danet.config.params import Params
from danet.config.published import Classes, crop_text
from danet.core.text import number, signed
from danet.report.labels import METHODS, backbone_text
from danet.report.markdown import Grid, Page, escape
from danet.report.tables import CHOSEN_NOTE, SHORT_STATUS, given, released, retrained
from danet.results.measured import Measurement, class_iou, facts, facts_table
from danet.results.schema import ACCURACIES, Evaluation, ReleasedResult, TrainedSeed


def row_page(item: Measurement, params: Params, figures: Sequence[tuple[str, str]]) -> str:
    """The page; ``figures`` are ``(caption, path relative to the page)``."""
    row = item.row
    table = params.tables[row.table]
    page = Page(f"Made by `dvc repro -s report@{row.table}`; do not edit.", table.banner)
    page.heading(1, row.name)
    page.text(
        f"{METHODS[row.model.method]}, {backbone_text(row)}, on {params.datasets[row.dataset].title}: trained on "
        f"`{row.train_split}` for {row.schedule.text} at {crop_text(row)}, tested on `{row.val_split}`. "
        f"A row of [{table.title}](../{row.table}.md)."
    )
    page.text(f"Protocol: {row.protocol}. Numerics (`numerics.yaml`): {row.profile}.")
    page.bullets(row.notes)
    page.heading(2, "Result")
    if item.accuracies:
        page.table(_results(item, table.published))
        page.text(CHOSEN_NOTE if row.checkpoint == "best-on-val" else "")
    else:
        page.text(f"**{SHORT_STATUS[item.status]}**")
    page.bullets(f"`{problem.file}`: {problem.reason}" for problem in item.problems)
    if item.released and item.released.evaluation:
        page.heading(2, "Released weights")
        page.text(_released_text(item.released))
        lines = [
            [ACCURACIES[name], number(getattr(item.published, name, None)), released(item, name)]
            for name, found in item.released.accuracies.items()
            if found.mean is not None
        ]
        page.table((["Metric", "Published", "Released weights"], lines, "lrr"))
    page.heading(2, "Reproduce")
    page.code(_commands(item, table.command), "bash")
    for caption, path in figures:
        page.figure(caption, path)
    source = item.published.classes
    if item.measured or source:
        page.heading(2, "Per class")
        page.table(_classes(item, source))
        if source:
            page.text(f"Published classes: {source.of}, <{source.url}>. Measured here: `{row.val_split}`.")
    stages: dict[str, Sequence[TrainedSeed | Evaluation]] = {"training": item.trained, "evaluation": item.runs}
    if item.released and item.released.evaluation:
        stages["released weights"] = [item.released.evaluation]
    if known := facts(stages):
        page.heading(2, "Provenance")
        head, lines = facts_table(known)
        lines = [["<br>".join(map(escape, cell.split("\n"))) for cell in line] for line in lines]
        page.table((head, lines, "l" * len(head)))
    page.heading(2, "Settings")
    page.text(f"Row hash `{row.hash}`, training hash `{row.train_hash}`.")
    page.code(yaml.safe_dump(row.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100), "yaml")
    return page.end()


def _results(item: Measurement, has_published: bool) -> Grid:
    lines = []
    for name, found in item.accuracies.items():
        best = item.best_on_val.get(name)
        line = [
            ACCURACIES[name],
            retrained(item, name) + (f"; best on val {best:.2f}" if best is not None else ""),
            ", ".join(map(number, found.values)) or "-",
            "-" if found.low is None else f"{number(found.low)} to {number(found.high)}",
        ]
        lines.append(line + [given(item, name), signed(found.difference), found.verdict or "-"] * has_published)
    head = ["Metric", "Measured", "Seeds", "95 % interval"]
    if has_published:
        return [*head, "Published", "Difference", "Verdict"], lines, "lrrlrrl"
    constant, name = item.baseline
    lines.append([f"best constant mIoU (`{name}` everywhere)", number(constant), "", ""])
    return head, lines, "lrrl"


def _classes(item: Measurement, source: Classes | None) -> Grid:
    """IoU by class of what was measured, beside what is published."""
    seeds, several = item.runs, len(item.runs) > 1
    mean = f", mean of {len(seeds)}" if several else ""
    names = item.classes if seeds else tuple(source.iou if source else ())
    columns: dict[str, Sequence[float | None]] = {}
    if seeds:
        columns[f"IoU{mean}"] = list(item.iou.values())
        if multi := [run.modes.ms for run in seeds if run.modes.ms]:
            columns[f"IoU, ms+flip{mean}"] = list(class_iou(names, multi).values())
        columns |= {f"seed {run.seed}": run.modes.ss.scores.iou for run in seeds if several}
        columns |= {} if several else {"accuracy": seeds[0].modes.ss.scores.acc}
    if source:
        columns[f"published, {source.of}"] = [source.iou.get(name) for name in names]
    cells = zip(*columns.values(), strict=True)
    lines = [[escape(name), *map(number, line)] for name, line in zip(names, cells, strict=True)]
    return ["Class", *columns], lines, "l" + "r" * len(columns)


def _commands(item: Measurement, table_command: str) -> str:
    row, lines = item.row, []
    provenance = [run.provenance for run in item.trained] + [run.provenance for run in item.runs]
    commits = {facts.known_commit for facts in provenance if item.measured} - {None}
    if len(commits) == 1:
        lines.append(f"git checkout {commits.pop()}")
    if table_command:
        lines.append(f"{table_command}   # this row and the others of its table")
    else:
        lines.append(f"dvc repro evaluate@{row.name}   # with all that it needs: download, convert, weights, train")
    if item.released:
        lines.append(f"dvc repro verify@{row.name}     # the source's released weights, without training")
    return "\n".join(lines)


def _released_text(found: ReleasedResult) -> str:
    assert found.weights is not None
    known = {"matches": "its published digits", "none": "none is published"}[found.weights.checksum]
    said = f"`{found.weights.file}`, SHA-256 `{found.weights.sha256[:12]}` ({known})"
    return f"{said}; evaluated by the row's protocol."
