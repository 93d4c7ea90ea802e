"""Result tables, figures and the index, regenerated from metrics files alone: no MLflow, no GPU, no PyTorch.

The same metrics files give the same bytes: dates and versions come from the measurements' provenance.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from danet.config.params import Params
from danet.config.workspace import Workspace
from danet.core.errors import ConfigError
from danet.core.files import write_text
from danet.report import costs, examples, figures
from danet.report.records import csv_rows, table_record
from danet.report.rows import row_page
from danet.report.tables import index_page, table_page
from danet.results.measured import Measurement, Problem, read
from danet.results.schema import TableFile, save

__all__ = ["ALL_COSTS", "Problem", "TableReport", "measured_tables", "write_index", "write_table"]

RESERVED = ("metrics", "plots", "readme", "scores", "tables")
"""Names in ``reports/`` that a table cannot have."""
ALL_COSTS = "all-costs.png"
"""In ``reports/``: mIoU against cost for the rows of all tables; without any row it says so."""
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class TableReport:
    """What :func:`write_table` wrote."""

    page: Path
    rows: int
    measured: int
    problems: tuple[Problem, ...]
    files: tuple[Path, ...] = ()
    """The page, the same as data, and all pictures."""

    def __str__(self) -> str:
        left_out = f", {len(self.problems)} files or parts of files left out" if self.problems else ""
        return f"{self.page}: {self.measured} of {self.rows} rows measured{left_out}"


def write_table(
    table: str,
    params: Params,
    workspace: Workspace,
    *,
    keep_pictures: bool | None = None,
    published_path: Path | None = None,
) -> TableReport:
    """Writes ``reports/<table>.md``, ``reports/<table>/`` (row pages, figures), ``reports/tables/<table>.csv, .json``.

    And for ``dvc plots show``, ``reports/plots/<table>-loss.csv, -classes.csv``.

    Args:
        table: its name in ``params.yaml``.
        params: with the rows as they are today; results of other settings are left out.
        workspace: where metrics files are read and reports are written.
        keep_pictures: show the dataset's images: overlays on the row pages, examples across rows on the table's.
            By default as ``tables.<table>.pictures`` says: off, since pictures of most datasets must not be
            redistributed. The examples are drawn all the same, into ``evaluations/examples@<table>``, out of Git.
        published_path: of the published numbers, if not the repository's.

    Raises:
        ConfigError: for an unknown table, or one whose name is taken in ``reports/``.
    """
    rows = params.table_rows(table)
    if table in RESERVED:
        raise ConfigError(f"{params.path}: tables.{table}: the name is taken in reports/; call it something else")
    measurements = [read(row, workspace) for row in rows]
    record = table_record(table, params, measurements, published_path)
    if keep_pictures is None:
        keep_pictures = params.tables[table].pictures
    reports = workspace.reports()
    folder = reports / table
    groups = _by_dataset(measurements, params)
    pictures = _draw(table, params, groups, record, folder)
    shown = _draw_examples(table, groups, workspace, folder if keep_pictures else None)
    pictures += [(caption, path.name) for caption, path in shown if keep_pictures]
    kept = {folder / path for _, path in pictures}
    for row_record, measurement in zip(record.rows, measurements, strict=True):
        row = measurement.row
        own: list[tuple[str, str]] = []
        curve, confusion = folder / f"{row.name}.png", folder / f"{row.name}-confusion.png"
        if figures.draw_curves({row.name: [measurement]}, curve):
            own.append((f"Learning curves ({len(measurement.curves)} seeds; loss: running mean)", curve.name))
        if figures.draw_confusion(measurement, confusion):
            own.append(("Confusion matrix: what the pixels of each class were taken for, in percent", confusion.name))
        own += _copy_overlays(measurement, workspace, folder) if keep_pictures else []
        page = folder / f"{row.name}.md"
        write_text(page, row_page(row, row_record, measurement, params, own))
        kept |= {page, *(folder / path for _, path in own)}
    _remove_others(folder, kept)
    linked = [(caption, f"{table}/{path}") for caption, path in pictures]
    page = reports / f"{table}.md"
    write_text(page, table_page(record, params, linked))
    save(reports / "tables" / f"{table}.json", record)
    import pandas as pd  # slow to import, and `danet rows` needs the records alone

    head, lines = csv_rows(record)
    text = pd.DataFrame(lines, columns=head, dtype=object).to_csv(index=False)
    write_text(reports / "tables" / f"{table}.csv", text)
    for name, lines in (("loss", figures.loss_points(measurements)), ("classes", figures.class_points(measurements))):
        write_text(
            reports / "plots" / f"{table}-{name}.csv", pd.DataFrame(lines[1:], columns=lines[0]).to_csv(index=False)
        )
    problems = tuple(problem for item in measurements for problem in item.problems)
    measured = sum(item.status == "measured" for item in measurements)
    drawn = [path for path in sorted(kept) if path.suffix in PICTURE_SUFFIXES] + [path for _, path in shown]
    files = (page, *(reports / "tables" / f"{table}.{suffix}" for suffix in ("csv", "json")), *dict.fromkeys(drawn))
    return TableReport(page, len(rows), measured, problems, files)


def write_index(params: Params, workspace: Workspace, *, published_path: Path | None = None) -> Path:
    """Writes ``reports/README.md``, one line per table with rows, and ``reports/all-costs.png`` beside it.

    Returns the path of the page.
    """
    records = {}
    for table in params.tables:
        measurements = [read(row, workspace) for row in params.table_rows(table)]
        if measurements:
            records[table] = table_record(table, params, measurements, published_path)
    path = workspace.reports() / "README.md"
    titles = {name: dataset.title for name, dataset in params.datasets.items()}
    drawn = costs.draw_all_costs(records, titles, path.with_name(ALL_COSTS))
    write_text(path, index_page(params, records, ALL_COSTS if drawn else None))
    return path


def measured_tables(params: Params, workspace: Workspace) -> list[str]:
    """The tables with a measured row."""
    return [
        table
        for table in params.tables
        if any(read(row, workspace).status == "measured" for row in params.table_rows(table))
    ]


def _by_dataset(measurements: Sequence[Measurement], params: Params) -> dict[str, list[Measurement]]:
    """Measurements by the title of their dataset, both in the order of ``params.yaml``'s rows."""
    groups: dict[str, list[Measurement]] = {}
    for item in measurements:
        groups.setdefault(params.datasets[item.row.dataset].title, []).append(item)
    return groups


def _draw(
    table: str, params: Params, groups: dict[str, list[Measurement]], record: TableFile, folder: Path
) -> list[tuple[str, str]]:
    """Draws a table's figures; captions and file names of those that there was something for."""
    drawn = []
    if figures.draw_results(groups, record.by_name, folder / "results.png"):
        beside = "published numbers" if params.tables[table].published else "the best constant prediction"
        drawn.append((f"mIoU measured here beside {beside}", "results.png"))
    if figures.draw_curves(groups, folder / "curves.png"):
        drawn.append(("Learning curves of all rows (loss: running mean)", "curves.png"))
    for title, items in groups.items():
        name = f"classes-{items[0].row.dataset}.png"
        if figures.draw_classes(items, folder / name):
            drawn.append((f"IoU of every class on {title}, in percent (without classes that the data lack)", name))
    return drawn


def _draw_examples(
    table: str, groups: dict[str, list[Measurement]], workspace: Workspace, folder: Path | None
) -> list[tuple[str, Path]]:
    """Examples across the rows of each dataset, into ``folder`` or beside the evaluations."""
    hidden = workspace.evaluation_examples(table)
    shutil.rmtree(hidden, ignore_errors=True)
    return [found for items in groups.values() for found in examples.draw_examples(items, workspace, folder or hidden)]


def _copy_overlays(measurement: Measurement, workspace: Workspace, folder: Path) -> list[tuple[str, str]]:
    source = workspace.evaluation(measurement.row)
    found = sorted(source.glob("seed*-panels.png"))
    copied = []
    for path in found:
        name = re.sub(r"[^A-Za-z0-9._-]", "-", path.relative_to(source).as_posix())
        target = folder / f"{measurement.row.name}-{name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        seed, _, image = path.stem.removesuffix("-panels").removeprefix("seed").partition("-")
        copied.append((f"Seed {seed}, {image}: image, truth, prediction, errors", target.name))
    return copied


def _remove_others(folder: Path, kept: set[Path]) -> None:
    """Removes pages and pictures of rows and results that are gone."""
    for path in folder.glob("*"):
        if path.is_file() and path not in kept and path.suffix in {".md", *PICTURE_SUFFIXES}:
            path.unlink()
