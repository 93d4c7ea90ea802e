"""``danet rows`` and ``danet report``: what there is, and the tables of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from danet.cli.options import Format, Root
from danet.config.workspace import Workspace
from danet.core.console import console, output, result_table
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
    format: Annotated[Format, typer.Option(help="table for people, json and csv for programs.")] = Format.table,
    table: Annotated[str | None, typer.Option(help="Only this table's rows.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only rows of this data set.")] = None,
    measured: Annotated[bool, typer.Option("--measured", help="Only rows that have been measured.")] = False,
    sort: Annotated[
        Sort | None, typer.Option(help="Highest first (default: the order of params.yaml).", show_default=False)
    ] = None,
    workspace: Root = Path(),
) -> None:
    """List the rows with their published and measured numbers, or show one row's numbers and settings.

    mIoU and aAcc are percent, crop size is height x width; a dash (null in JSON) is what the source does not give, or
    what has not been measured.
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
    lines = [_Line.of(row, params, space) for row in chosen]
    if measured:
        lines = [line for line in lines if line.record["measured"]["miou"] is not None]
    if sort is not None:
        # a row without the number comes last
        lines.sort(key=lambda line: value if (value := line.value(sort)) is not None else float("-inf"), reverse=True)
    if format is Format.json:
        typer.echo(json.dumps([line.record for line in lines], indent=2))
    elif format is Format.csv:
        import pandas as pd

        records = pd.json_normalize([line.record for line in lines], sep="_")
        typer.echo(records.astype(object).to_csv(index=False), nl=False)
    else:
        _print_rows(lines, len(params.rows))


@dataclass(frozen=True)
class _Line:
    """A row with its published and measured numbers."""

    row: Row
    record: dict[str, Any]
    """As ``danet rows --format json`` prints it."""

    @classmethod
    def of(cls, row: Row, params: Params, workspace: Workspace) -> _Line:
        from danet.config.published import row_record
        from danet.results.measured import read
        from danet.results.verdict import judge, summarise

        found: Measurement = read(row, workspace)
        record = row_record(row)
        values = {name: found.values(name) for name in ("miou", "miou_ms_flip", "aacc")}
        means = {name: summary.mean if (summary := summarise(each)) else None for name, each in values.items()}
        published = record["published"]["miou"]
        verdict = None
        if published is not None and values["miou"]:
            verdict = judge(values["miou"], published, params.bands.of(row.dataset)).text
        record |= {
            "status": found.status,
            "seeds": len(found.runs),
            "measured": means,
            "released": found.verification.value("miou"),
            "verdict": verdict,
        }
        return cls(row, record)

    @property
    def measured(self) -> str:
        """The mean over seeds and how many; what is in its place otherwise."""
        miou, seeds = self.record["measured"]["miou"], self.record["seeds"]
        if miou is None:
            return "-" if self.record["status"] == "not run" else str(self.record["status"])
        return number(miou) + (f" (n={seeds})" if seeds > 1 else "")

    def value(self, by: Sort) -> float | None:
        """mIoU in percent, or points of it."""
        published, measured = self.record["published"]["miou"], self.record["measured"]["miou"]
        if by is Sort.published:
            return published  # type: ignore[no-any-return]
        if by is Sort.measured or measured is None:
            return measured  # type: ignore[no-any-return]
        return None if published is None else measured - published


def _show_row(row: Row, params: Params, workspace: Workspace, format: Format) -> None:
    import yaml

    record = _Line.of(row, params, workspace).record
    state, step = _next(row, params, workspace, record["status"])
    settings = {"row_hash": row.hash, "train_hash": row.train_hash, **row.model_dump(mode="json")}
    if format is Format.json:
        facts = {key: record[key] for key in ("published", "measured", "released", "verdict")}
        typer.echo(json.dumps({"state": state, "next": step, **facts, **settings}, indent=2))
        return
    facts = record["published"]
    lines = [
        ("published", f"mIoU {number(facts['miou'])}, ms+flip {number(facts['miou_ms_flip'])}, "
         f"aAcc {number(facts['aacc'])}"),
        ("measured", f"mIoU {number(record['measured']['miou'])}, ms+flip "
         f"{number(record['measured']['miou_ms_flip'])}, aAcc {number(record['measured']['aacc'])}"
         + (f"; {record['verdict']}" if record["verdict"] else "")),
        ("released", f"mIoU {number(record['released'])} (the source's weights, evaluated here)"),
        ("state", state),
        ("next", step),
    ]  # fmt: skip
    # comments, so that what follows can be read as YAML
    typer.echo("\n".join(f"# {title:<11}{text}" for title, text in lines) + "\n")
    typer.echo(yaml.safe_dump(settings, sort_keys=False), nl=False)


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


def _short(row: Row) -> str:
    iterations = row.schedule.iterations
    if iterations is None:
        return f"{row.schedule.epochs} epochs"
    return f"{iterations // 1000}k it." if iterations % 1000 == 0 else f"{iterations} it."


def _print_rows(lines: Sequence[_Line], count: int) -> None:
    protocols = {protocol: _letter(i) for i, protocol in enumerate(dict.fromkeys(line.row.protocol for line in lines))}
    columns: dict[str, list[str]] = {"row": [line.row.name for line in lines]}  # in the order of their use
    for line in lines:
        source, found, row = line.record["published"], line.record["measured"], line.row
        cells = {
            "published": number(source["miou"]),
            "measured": line.measured,
            "difference": signed(line.value(Sort.difference)),
            "test": protocols[row.protocol],
            "verdict": line.record["verdict"] or "-",
            "ms+flip": number(source["miou_ms_flip"]),
            "measured ms": number(found["miou_ms_flip"]),
            "released": number(line.record["released"]),
            "schedule": _short(row),
            "crop": line.record["crop_size"],
            "aAcc": number(source["aacc"]),
            "GB": number(source["memory_gb"], 1),
            "fps": number(source["fps"]),
        }
        for title, text in cells.items():
            columns.setdefault(title, []).append(text)
    # a column in which nothing stands yet only takes room
    columns = {t: cells for t, cells in columns.items() if t == "measured" or any(cell != "-" for cell in cells)}
    out = output(200)
    shown, left_out = _fitting(columns, out.width)
    table = result_table(*shown, left=("row", "test", "verdict", "schedule"))
    for index, line in enumerate(lines):
        table.add_row(*(columns[title][index] for title in shown))
        after = lines[index + 1].row if index + 1 < len(lines) else line.row
        if (after.source, after.dataset) != (line.row.source, line.row.dataset):
            table.add_section()
    out.print(table)
    for protocol, letter in protocols.items():
        out.print(f"test {letter}: {protocol}", style="dim")
    measured = sum(line.record["measured"]["miou"] is not None for line in lines)
    of = f" of {count}" if len(lines) < count else ""
    out.print(f"\n{len(lines)}{of} rows, {measured} measured; mIoU in percent, crop is height x width.")
    if left_out:
        out.print(f"A wider terminal also shows {', '.join(left_out)}; `danet rows --format csv` has all.")
    out.print("`danet rows ROW`: a row's settings, and the command that comes next.")


def _letter(index: int) -> str:
    return chr(ord("a") + index)


def _fitting(columns: dict[str, list[str]], width: int) -> tuple[list[str], list[str]]:
    """The columns that fit whole, from the first on, and the others: no number is ever cut."""
    shown: list[str] = []
    used = -2
    for title, cells in columns.items():
        used += 2 + max(map(len, [title, *cells]))
        if used > width and len(shown) > 1:
            break
        shown.append(title)
    return shown, [title for title in columns if title not in shown]


@app.command()
def report(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="Only this table (default: all, and the index).")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail, once all is written, if a metrics file had to be left out.")
    ] = False,
    keep_pictures: Annotated[
        bool | None,
        typer.Option(
            "--keep-pictures/--no-pictures",
            help="Show the dataset's images in reports/ (default: as the table's `pictures` in params.yaml says). "
            "Do not commit those of a dataset that must not be redistributed.",
            show_default=False,
        ),
    ] = None,
    workspace: Root = Path(),
) -> None:
    """Rebuild tables and figures from the metrics files at hand; runs nothing else."""
    from danet.core.errors import DanetError
    from danet.report import Problem, write_index, write_table

    space = Workspace(workspace)
    params = space.params()
    left_out: list[Problem] = []
    for each in [table] if table else list(params.tables):
        written = write_table(each, params, space, keep_pictures=keep_pictures)
        typer.echo(written)
        left_out += written.problems
    if table is None:
        typer.echo(write_index(params, space))
    for problem in left_out:
        console.print(f"left out: {problem.file}: {problem.reason}", markup=False)
    if strict and left_out:
        raise DanetError(f"{len(left_out)} metrics files, or parts of them, had to be left out of the tables (above)")
