"""``danet rows`` and ``danet report``: what there is, and the tables of it."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from danet.cli.options import Format, Root
from danet.config.workspace import Workspace
from danet.core.console import console, output, print_columns
from danet.core.text import number, signed

if TYPE_CHECKING:
    from danet.config.params import Params
    from danet.config.row import Row
    from danet.results.measured import Measurement

app = typer.Typer()


class Sort(StrEnum):
    """What rows are sorted by, the highest first."""

    published = "published"
    measured = "measured"
    difference = "difference"


@app.command()
def rows(
    name: Annotated[
        str | None, typer.Argument(metavar="[ROW]", help="Print this row's numbers and complete settings instead.")
    ] = None,
    format: Annotated[
        Format, typer.Option(help="table for people, json (as reports/tables has it) for programs.")
    ] = Format.table,
    table: Annotated[str | None, typer.Option(help="Only this table's rows.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only rows of this data set.")] = None,
    measured: Annotated[bool, typer.Option("--measured", help="Only rows that have been measured.")] = False,
    sort: Annotated[
        Sort | None, typer.Option(help="Highest first (default: the order of params.yaml).", show_default=False)
    ] = None,
    workspace: Root = Path(),
) -> None:
    """List the rows with their published and measured numbers, or show one row's numbers and settings.

    mIoU and aAcc are percent, crop size is height x width; a dash (null in
    JSON) is what the source does not give, or what has not been measured.
    """
    space = Workspace(workspace)
    params = space.params()
    if name is not None:
        _show_row(params.row(name), params, space, format)
        return
    chosen = params.table_rows(table) if table is not None else list(params.rows.values())
    if dataset is not None:
        params.dataset(dataset)
        chosen = [row for row in chosen if row.dataset == dataset]
    records = [record for record in _records(chosen, params, space) if record.measured or not measured]
    if sort is not None:
        # a row without the number comes last
        records.sort(key=lambda each: value if (value := _value(each, sort)) is not None else -math.inf, reverse=True)
    if format is Format.json:
        typer.echo(json.dumps(_as_data(records), indent=2))
    else:
        _print_rows(records, params)


def _records(rows: Sequence[Row], params: Params, workspace: Workspace) -> list[Measurement]:
    """What the tables say of rows, from the metrics files at hand."""
    from danet.results.measured import read

    return [read(row, params, workspace) for row in rows]


def _as_data(records: Sequence[Measurement]) -> list[dict[str, Any]]:
    """As in a table's JSON."""
    from pydantic import TypeAdapter

    from danet.results.schema import TableRow

    return TypeAdapter(list[TableRow]).dump_python(list(records), mode="json")  # type: ignore[no-any-return]


def _value(record: Measurement, by: Sort) -> float | None:
    """mIoU in percent, or points of it."""
    if by is Sort.published:
        return record.published.miou
    if by is Sort.measured:
        return record.mean("miou")
    return record.accuracy("miou").difference


def _show_row(row: Row, params: Params, workspace: Workspace, format: Format) -> None:
    import yaml

    (record,) = _records([row], params, workspace)
    state, step = _next(row, params, workspace, record.status)
    if format is Format.json:
        typer.echo(json.dumps({"state": state, "next": step, **_as_data([record])[0]}, indent=2))
        return

    def numbers(of: Callable[[str], float | None]) -> str:
        titles = {"miou": "mIoU", "miou_ms_flip": "ms+flip", "aacc": "aAcc"}
        return ", ".join(f"{title} {number(of(name))}" for name, title in titles.items())

    verdict = record.accuracies["miou"].verdict if record.measured else None
    lines = [
        ("published", numbers(lambda name: getattr(record.published, name))),
        ("measured", numbers(record.mean) + (f"; {verdict}" if verdict else "")),
        ("state", state),
        ("next", step),
    ]
    if record.released:  # whose source released weights
        lines.insert(2, ("released", f"mIoU {number(_released(record))} (the source's weights, evaluated here)"))
    # comments, so that what follows can be read as YAML
    typer.echo("\n".join(f"# {title:<11}{text}" for title, text in lines) + "\n")
    settings = {"row_hash": row.hash, "train_hash": row.train_hash, **row.model_dump(mode="json")}
    typer.echo(yaml.safe_dump(settings, sort_keys=False), nl=False)


def _released(record: Measurement) -> float | None:
    found = record.released.accuracies.get("miou") if record.released else None
    return found.mean if found else None


def _next(row: Row, params: Params, workspace: Workspace, status: str) -> tuple[str, str]:
    """How a row stands, and the command that comes next."""
    from danet.cli.doctor import dataset_state, row_state

    here = workspace.root.resolve() == Path().resolve()
    if status == "measured":
        return status, f"danet show {'' if here else f'-C {workspace.root} '}{row.name}"
    repro = f"dvc {'' if here else f'--cd {workspace.root} '}repro evaluate@{row.name}"
    data = dataset_state(row.dataset, params.dataset(row.dataset), workspace)
    state = row_state(row, workspace, data)
    if state == "blocked":
        return f"blocked: {row.dataset} is missing: {data.how}", repro
    return (state if state == "trained" else status), repro


def _print_rows(records: Sequence[Measurement], params: Params) -> None:
    from danet.config.published import crop_text
    from danet.report.labels import short_schedule

    protocols = dict.fromkeys(record.row.protocol for record in records)
    letters = dict(zip(protocols, string.ascii_lowercase, strict=False))
    columns: dict[str, list[str]] = {}  # in the order of their use
    for record in records:
        row, source, miou = record.row, record.published, record.mean("miou")
        seeds = f" (n={len(record.runs)})" if len(record.runs) > 1 else ""
        cells = {
            "row": row.name,
            "published": number(source.miou),
            # what is in its place where a metrics file is not used
            "measured": number(miou) + seeds if record.measured else record.status.replace("not run", "-"),
            "difference": signed(_value(record, Sort.difference)),
            "test": letters[row.protocol],
            "verdict": (record.accuracies["miou"].verdict if record.measured else None) or "-",
            "ms+flip": number(source.miou_ms_flip),
            "measured ms": number(record.mean("miou_ms_flip")),
            "released": number(_released(record)),
            "schedule": short_schedule(row),
            "crop": crop_text(row),
            "aAcc": number(source.aacc),
            "GB": number(source.memory_gb, 1),
            "fps": number(source.fps),
        }
        for title, text in cells.items():
            columns.setdefault(title, []).append(text)
    # a column in which nothing stands yet only takes room
    columns = {t: cells for t, cells in columns.items() if t == "measured" or any(cell != "-" for cell in cells)}
    out = output()
    left_out = print_columns(out, columns, left=("row", "test", "verdict", "schedule"))
    for protocol, letter in letters.items():
        out.print(f"test {letter}: {protocol}", style="dim")
    measured = sum(record.measured for record in records)
    of = f" of {len(params.rows)}" if len(records) < len(params.rows) else ""
    out.print(f"\n{len(records)}{of} rows, {measured} measured; mIoU in percent, crop is height x width.")
    if left_out:
        out.print(f"A wider terminal also shows {', '.join(left_out)}; `danet rows --format json` has all.")
    out.print("`danet rows ROW`: a row's settings, and the command that comes next.")


@app.command()
def report(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="Only this table (default: all, and the index).")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail, once all is written, if a metrics file had to be left out.")
    ] = False,
    workspace: Root = Path(),
) -> None:
    """Rebuild tables and figures from the metrics files at hand; runs nothing else."""
    from danet.core.errors import DanetError
    from danet.report import write_index, write_table
    from danet.results.schema import Problem

    space = Workspace(workspace)
    params = space.params()
    left_out: list[Problem] = []
    for each in [table] if table else list(params.tables):
        written = write_table(each, params, space)
        typer.echo(written)
        left_out += written.problems
    if table is None:
        typer.echo(write_index(params, space))
    for problem in left_out:
        console.print(f"left out: {problem.file}: {problem.reason}", markup=False)
    if strict and left_out:
        raise DanetError(f"{len(left_out)} metrics files, or parts of them, had to be left out of the tables (above)")
