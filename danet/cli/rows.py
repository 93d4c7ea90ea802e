"""``danet rows`` and ``danet report``: what there is, and the tables of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from danet.cli.options import Format, Root
from danet.config.workspace import Workspace
from danet.core.console import console, output, result_table
from danet.core.text import number

if TYPE_CHECKING:
    from danet.config.params import Params

app = typer.Typer()


@app.command()
def rows(
    name: Annotated[
        str | None, typer.Argument(metavar="[ROW]", help="Print this row's complete settings instead of the list.")
    ] = None,
    format: Annotated[Format, typer.Option(help="table for people, json and csv for programs.")] = Format.table,
    table: Annotated[str | None, typer.Option(help="Only this table's rows.")] = None,
    workspace: Root = Path(),
) -> None:
    """List the rows with their published numbers, or show one row's settings.

    mIoU and aAcc are percent, crop size is height x width; a dash (null in JSON) is what the source does not give.
    """
    from danet.config.published import rows_as_records

    params = Workspace(workspace).params()
    if name is not None:
        _show_row(params.row(name), format)
        return
    if table is not None:
        params.table_rows(table)
    records = [r for r in rows_as_records(params) if table is None or params.row(r["row"]).table == table]
    if format is Format.json:
        typer.echo(json.dumps(records, indent=2))
    elif format is Format.csv:
        typer.echo(_csv(records), nl=False)
    else:
        _print_rows(records, params)


def _show_row(row: object, format: Format) -> None:
    import yaml

    from danet.config.row import Row

    assert isinstance(row, Row)
    settings = {"row_hash": row.hash, "train_hash": row.train_hash, **row.model_dump(mode="json")}
    typer.echo(
        json.dumps(settings, indent=2) if format is Format.json else yaml.safe_dump(settings, sort_keys=False), nl=False
    )


def _csv(records: list[dict]) -> str:  # type: ignore[type-arg]
    import pandas as pd

    return str(pd.json_normalize(records, sep="_").astype(object).to_csv(index=False))


def _print_rows(records: list[dict], params: Params) -> None:  # type: ignore[type-arg]
    settings = ("row", "backbone", "os", "crop", "schedule")
    shown = result_table(*settings, "mIoU", "ms+flip", "aAcc", "GB", "fps", left=settings)
    last = None
    for r in records:
        if last not in (None, (r["source"], r["dataset"])):
            shown.add_section()
        last = (r["source"], r["dataset"])
        p = r["published"]
        shown.add_row(
            r["row"], r["backbone"], str(r["output_stride"]), r["crop_size"], r["schedule"],
            number(p["miou"]), number(p["miou_ms_flip"]), number(p["aacc"]),
            number(p["memory_gb"], 1), number(p["fps"]),
        )  # fmt: skip
    wide = output()
    wide.print(shown)
    protocols: dict[str, list[str]] = {}
    for r in records:
        protocols.setdefault(params.row(r["row"]).protocol, []).append(r["row"])
    wide.print("\n[bold]Testing protocols[/]")
    for protocol, names in protocols.items():
        wide.print(f"  [bold]{protocol}[/]: {', '.join(names)}", style="dim")
    wide.print(f"\n{len(records)} rows; the numbers are the published ones. `danet rows ROW` shows a row's settings.")


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
