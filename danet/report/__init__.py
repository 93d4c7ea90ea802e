"""Result tables, figures and the index, regenerated from metrics files alone: no MLflow, no GPU, no PyTorch.

The same metrics files give the same bytes: dates and versions come from the measurements' provenance.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from danet.config.params import Params
from danet.config.published import check_published
from danet.config.workspace import Workspace
from danet.core.files import write_text
from danet.report import costs, examples, figures
from danet.report.records import csv_table
from danet.report.rows import row_page
from danet.report.tables import index_page, table_page
from danet.results.measured import Measurement, read
from danet.results.schema import Problem, TableFile, save

ALL_COSTS = "all-costs.png"
"""In ``reports/``: mIoU against cost for the rows of all tables."""


@dataclass(frozen=True)
class TableReport:
    """What :func:`write_table` wrote."""

    page: Path
    rows: int
    measured: int
    problems: tuple[Problem, ...]

    def __str__(self) -> str:
        left_out = f", {len(self.problems)} files or parts of files left out" if self.problems else ""
        return f"{self.page}: {self.measured} of {self.rows} rows measured{left_out}"


def write_table(table: str, params: Params, workspace: Workspace) -> TableReport:
    """Writes ``reports/<table>.md``, ``reports/<table>/`` (row pages, figures), ``reports/tables/<table>.csv, .json``.

    And for ``dvc plots show``, ``reports/plots/<table>-loss.csv, -classes.csv``.

    Args:
        table: its name in ``params.yaml``.
        params: with the rows as they are today; results of other settings are left out.
        workspace: where metrics files are read and reports are written.

    Images of the dataset are shown where ``tables.<table>.pictures`` allows it: overlays on the row pages, examples
    across rows on the table's. It is off, since pictures of most datasets must not be redistributed; the examples are
    drawn all the same, into ``evaluations/examples@<table>``, out of Git.

    Raises:
        ConfigError: for an unknown table, or a row of a table with published numbers that has no entry for them.
    """
    rows = params.table_rows(table)
    check_published(table, params)
    items = tuple(read(row, params, workspace) for row in rows)
    keep_pictures = params.tables[table].pictures
    reports = workspace.reports()
    folder = reports / table
    groups: dict[str, list[Measurement]] = {}
    for item in items:
        groups.setdefault(params.datasets[item.row.dataset].title, []).append(item)
    for earlier in (*folder.glob("*.md"), *folder.glob("*.png")):  # perhaps of rows and results that are gone
        earlier.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _draw(groups, folder)
    hidden = workspace.evaluation_examples(table)
    shutil.rmtree(hidden, ignore_errors=True)
    for group in groups.values():
        shown = examples.draw_examples(group, workspace, folder if keep_pictures else hidden)
        pictures += [(caption, path.name) for caption, path in shown if keep_pictures]
    for item in items:
        name = item.name
        own: list[tuple[str, str]] = []
        curve, confusion = folder / f"{name}.png", folder / f"{name}-confusion.png"
        if figures.draw_curves([item], curve):
            own.append(("Learning curves of every seed (loss: running mean)", curve.name))
        if figures.draw_confusion(item, confusion):
            own.append(("Confusion matrix: what the pixels of each class were taken for, in percent", confusion.name))
        own += _copy_overlays(item, workspace, folder) if keep_pictures else []
        write_text(folder / f"{name}.md", row_page(item, params, own))
    page = reports / f"{table}.md"
    write_text(page, table_page(table, params, items, [(caption, f"{table}/{path}") for caption, path in pictures]))
    problems = tuple(problem for item in items for problem in item.problems)
    title = params.tables[table].title
    save(reports / "tables" / f"{table}.json", TableFile(table=table, title=title, rows=items, left_out=problems))
    for path, lines in (
        (f"tables/{table}.csv", csv_table(items)),
        (f"plots/{table}-loss.csv", figures.loss_points(items)),
        (f"plots/{table}-classes.csv", figures.class_points(items)),
    ):
        write_text(reports / path, lines.to_csv(index=False))
    return TableReport(page, len(rows), sum(item.measured for item in items), problems)


def write_index(params: Params, workspace: Workspace) -> Path:
    """Writes ``reports/README.md``, one line per table with rows, and ``reports/all-costs.png`` beside it.

    Returns the path of the page.
    """
    found = {table: [read(row, params, workspace) for row in params.table_rows(table)] for table in params.tables}
    tables = {table: items for table, items in found.items() if items}
    path = workspace.reports() / "README.md"
    costs.draw_all_costs(tables, params, path.with_name(ALL_COSTS))
    write_text(path, index_page(params, tables, ALL_COSTS))
    return path


def _draw(groups: dict[str, list[Measurement]], folder: Path) -> list[tuple[str, str]]:
    """Draws a table's figures for each dataset; captions and file names of those that there was something for."""
    drawn = []
    for title, items in groups.items():
        beside = "published numbers" if any(item.published.miou for item in items) else "the best constant prediction"
        for draw, kind, caption in (
            (figures.draw_results, "results", f"mIoU measured here beside {beside}, on {title}"),
            (figures.draw_curves, "curves", f"Learning curves of all rows on {title} (loss: running mean)"),
            (figures.draw_classes, "classes", f"IoU of every class on {title}, in percent (without absent ones)"),
        ):
            name = f"{kind}-{items[0].row.dataset}.png"
            if draw(items, folder / name):
                drawn.append((caption, name))
    return drawn


def _copy_overlays(measurement: Measurement, workspace: Workspace, folder: Path) -> list[tuple[str, str]]:
    copied = []
    for path in sorted(workspace.evaluation(measurement.row).glob("seed*-panels.png")):
        target = folder / f"{measurement.name}-{path.name}"
        shutil.copyfile(path, target)
        seed, _, image = path.stem.removesuffix("-panels").removeprefix("seed").partition("-")
        copied.append((f"Seed {seed}, {image}: image, truth, prediction, errors", target.name))
    return copied
