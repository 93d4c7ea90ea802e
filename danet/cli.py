"""The ``danet`` command. Each command is a thin wrapper of a library function and imports it only when called."""

from __future__ import annotations

import csv
import io
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from danet import __version__
from danet.console import console, report_errors
from danet.workspace import Workspace

app = typer.Typer(
    name="danet",
    help=(
        "Do DANet's published mIoU numbers hold, and what do they cost?\n\n"
        "The full sweep is [bold]dvc repro[/]; these commands run single parts of it by hand. "
        "Start with [bold]danet doctor[/] (what can run here) and [bold]danet rows[/] (what there is)."
    ),
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Root = Annotated[
    Path,
    typer.Option("--workspace", "-C", envvar="DANET_WORKSPACE", help="Folder with params.yaml (default: here)."),
]
RowName = Annotated[str, typer.Argument(metavar="ROW", help="A row's name, as `danet rows` prints it.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N (default: the GPU if there is one).", show_default=False)
]


class Format(StrEnum):
    """How ``danet rows`` prints."""

    table = "table"
    json = "json"
    csv = "csv"


class Mode(StrEnum):
    """Testing mode."""

    ss = "ss"
    ms = "ms"


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"danet {__version__}")
        raise typer.Exit


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
    from danet.published import rows_as_records

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
        _print_rows(records)


def _show_row(row: object, format: Format) -> None:
    import yaml

    from danet.rows import Row

    assert isinstance(row, Row)
    settings = {"row_hash": row.hash, "train_hash": row.train_hash, **row.model_dump(mode="json")}
    typer.echo(
        json.dumps(settings, indent=2) if format is Format.json else yaml.safe_dump(settings, sort_keys=False), nl=False
    )


def _csv(records: list[dict]) -> str:  # type: ignore[type-arg]
    flat = [
        {**{k: v for k, v in r.items() if k != "published"}, **{f"published_{k}": v for k, v in r["published"].items()}}
        for r in records
    ]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _print_rows(records: list[dict]) -> None:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("row", "backbone", "os", "crop", "schedule"):
        shown.add_column(title, no_wrap=True)
    for title in ("mIoU", "ms+flip", "aAcc", "GB", "fps"):
        shown.add_column(title, justify="right", no_wrap=True)

    def number(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    last = None
    for r in records:
        if last not in (None, (r["source"], r["dataset"])):
            shown.add_section()
        last = (r["source"], r["dataset"])
        p = r["published"]
        shown.add_row(
            r["row"], r["backbone"], str(r["output_stride"]), r["crop_size"], r["schedule"],
            number(p["miou"]), number(p["miou_ms_flip"]), number(p["aacc"]), number(p["memory_gb"], 1), number(p["fps"]),
        )  # fmt: skip
    wide = Console() if sys.stdout.isatty() else Console(width=140)
    wide.print(shown)
    wide.print(f"{len(records)} rows; the numbers are the published ones. `danet rows ROW` shows a row's settings.")


@app.command()
def train(
    row: RowName,
    device: Device = None,
    workspace: Root = Path(),
    no_mlflow: Annotated[bool, typer.Option("--no-mlflow", help="Do not log to MLflow.")] = False,
) -> None:
    """Train a row (all its seeds) outside DVC; resumes where it was stopped.

    With several GPUs: torchrun --nproc-per-node N -m danet train ROW.
    """
    from danet.tracking import run
    from danet.training.loop import train_row

    space = Workspace(workspace)
    train_row(space.params().row(row), space, tracker_factory=None if no_mlflow else run, device=device)


@app.command()
def evaluate(
    row: RowName,
    weights: Annotated[
        Path | None,
        typer.Option(help="Evaluate this file instead of the row's own trained weights.", show_default=False),
    ] = None,
    device: Device = None,
    workspace: Root = Path(),
    no_mlflow: Annotated[bool, typer.Option("--no-mlflow", help="Do not log to MLflow.")] = False,
) -> None:
    """Evaluate a row's trained weights by its source's testing protocol."""
    from danet.evaluation.evaluate import evaluate_row
    from danet.tracking import run

    space = Workspace(workspace)
    evaluate_row(
        space.params().row(row), space, weights=weights, tracker_factory=None if no_mlflow else run, device=device
    )


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Photographs (JPEG, PNG).")],
    row: Annotated[str, typer.Option(help="The row whose model and testing protocol to use.")],
    weights: Annotated[Path, typer.Option(help="Weights of that row's model (.safetensors).")],
    out: Annotated[Path, typer.Option(help="Folder for the results; made if missing.")],
    mode: Annotated[Mode, typer.Option(help="ss: single scale; ms: multi-scale + flip.")] = Mode.ss,
    logits: Annotated[bool, typer.Option("--logits", help="Also write float32 C x H x W scores as .npy.")] = False,
    device: Device = None,
    workspace: Root = Path(),
) -> None:
    """Segment images: for each a mask PNG with the dataset's palette and an overlay PNG."""
    from danet.evaluation.predict import predict_files

    params = Workspace(workspace).params()
    chosen = params.row(row)
    adapter = params.dataset(chosen.dataset).adapter
    written = predict_files(
        chosen, weights=weights, images=images, out=out, mode=mode.value, logits=logits, device=device, adapter=adapter
    )
    for path in written:
        typer.echo(path)


@app.command()
def browse(
    name: Annotated[
        str, typer.Argument(metavar="DATASET|ROW", help="A dataset, or a row (samples as it trains on them).")
    ],
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
    split: Annotated[
        str | None, typer.Option(help="Split (default: train, or the row's own).", show_default=False)
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=64, help="How many samples.")] = 12,
    seed: Annotated[int, typer.Option(help="Which samples and, for a row, which augmentation draws.")] = 0,
    workspace: Root = Path(),
) -> None:
    """Write a contact sheet of samples: image, mask, names; raw, or augmented as a row trains on them."""
    from danet.data.browse import browse_dataset, browse_row

    space = Workspace(workspace)
    params = space.params()
    if name in params.datasets:
        browse_dataset(space.prepared(name), split or next(iter(params.dataset(name).counts)), number, out, seed=seed)
    else:
        row = params.row(name)
        browse_row(row, space.prepared(row.dataset), split or row.train_split, number, out, seed=seed)
    typer.echo(out)


@app.command()
def report(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="Only this table (default: all, and the index).")
    ] = None,
    workspace: Root = Path(),
) -> None:
    """Rebuild tables and figures from the metrics files at hand; runs nothing else."""
    from danet.report import write_index, write_table

    space = Workspace(workspace)
    params = space.params()
    for each in [table] if table else list(params.tables):
        typer.echo(write_table(each, params, space))
    if table is None:
        typer.echo(write_index(params, space))


@app.command()
def doctor(
    format: Annotated[Format, typer.Option(help="table for people, json for programs.")] = Format.table,
    workspace: Root = Path(),
) -> None:
    """Check Python, torch, GPU, disk, datasets and credentials: which rows can run here, and what the others need."""
    from danet.doctor import examine, print_findings

    findings = examine(Workspace(workspace))
    if format is Format.json:
        typer.echo(json.dumps(findings, indent=2))
    else:
        print_findings(findings)


def main() -> None:
    """Entry point of ``danet`` and ``python -m danet``."""
    with report_errors():
        try:
            app()
        except KeyboardInterrupt:
            console.print("[yellow]stopped[/] by the keyboard")
            sys.exit(130)


if __name__ == "__main__":
    main()
