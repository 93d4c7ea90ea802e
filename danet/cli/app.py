"""The ``danet`` command. Each command is a thin wrapper of a library function and imports it only when called."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from danet import __version__
from danet.config.workspace import Workspace
from danet.core.console import console, report_errors
from danet.core.files import refuse_existing
from danet.core.provenance import PACKAGE_ROOT

if TYPE_CHECKING:
    from danet.config.rows import Params

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

Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there already.")]


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

    from danet.config.rows import Row

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


def _print_rows(records: list[dict], params: Params) -> None:  # type: ignore[type-arg]
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
            number(p["miou"]), number(p["miou_ms_flip"]), number(p["aacc"]),
            number(p["memory_gb"], 1), number(p["fps"]),
        )  # fmt: skip
    wide = Console() if sys.stdout.isatty() else Console(width=140)
    wide.print(shown)
    protocols: dict[str, list[str]] = {}
    for r in records:
        protocols.setdefault(params.row(r["row"]).protocol, []).append(r["row"])
    wide.print("\n[bold]Testing protocols[/]")
    for protocol, names in protocols.items():
        wide.print(f"  [bold]{protocol}[/]: {', '.join(names)}", style="dim")
    wide.print(f"\n{len(records)} rows; the numbers are the published ones. `danet rows ROW` shows a row's settings.")


@app.command()
def train(
    row: RowName,
    device: Device = None,
    workspace: Root = Path(),
    no_mlflow: Annotated[bool, typer.Option("--no-mlflow", help="Do not log to MLflow.")] = False,
) -> None:
    """Train a row (all its seeds) outside DVC; resumes where it was stopped.

    With several GPUs: torchrun --nproc-per-node N -m danet.cli train ROW.
    """
    from danet.results.tracking import log, run
    from danet.training.train import train_row

    space = Workspace(workspace)
    chosen = space.params().row(row)
    train_row(chosen, space, tracker_factory=None if no_mlflow else run, device=device)
    if not no_mlflow:
        log([chosen], space)


@app.command()
def evaluate(
    row: RowName,
    weights: Annotated[
        Path | None,
        typer.Option(help="Evaluate this file (trained, imported or released) instead.", show_default=False),
    ] = None,
    device: Device = None,
    workspace: Root = Path(),
    no_mlflow: Annotated[bool, typer.Option("--no-mlflow", help="Do not log to MLflow.")] = False,
) -> None:
    """Evaluate a row's trained weights by its source's testing protocol."""
    from danet.evaluation.evaluate import evaluate_row
    from danet.results.tracking import log

    space = Workspace(workspace)
    chosen = space.params().row(row)
    evaluate_row(chosen, space, weights=weights, device=device)
    if weights is None and not no_mlflow:
        log([chosen], space)


@app.command()
def verify(
    row: Annotated[
        str | None, typer.Argument(metavar="[ROW]", help="A row's name, as `danet rows` prints it; or --all.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every row with published numbers, one after the other.")
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The released file (as it is, or imported) instead of fetching the one that released.yaml names.",
            show_default=False,
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="With --all: also what was measured before with the same weights and data.")
    ] = False,
    device: Device = None,
    workspace: Root = Path(),
    no_mlflow: Annotated[bool, typer.Option("--no-mlflow", help="Do not log to MLflow.")] = False,
) -> None:
    """Check a published number: evaluate the weights that were released with it, by its source's protocol.

    The weights are fetched if need be; the data set must be prepared (dvc repro convert@DATASET). With --all, rows that
    lack weights or data are skipped, each with its reason. The tables show the result as "Released weights".
    """
    from danet.core.errors import ConfigError
    from danet.evaluation.verify import exit_code, summary_of, verify_all, verify_row
    from danet.results.tracking import log

    space = Workspace(workspace)
    if every == (row is not None) or (every and weights is not None):
        raise ConfigError("give either one ROW (with --weights FILE if you like) or --all")
    if row is not None:
        params = space.params()
        chosen = params.row(row)
        result = verify_row(chosen, space, weights=weights, device=device)
        if not no_mlflow:
            log([chosen], space)
        _print_verified([summary_of(chosen, result.metrics, "measured", params.bands.released)])
        return
    results = verify_all(
        space,
        device=device,
        again=again,
        report=lambda one, done, count: console.print(
            f"{done}/{count} {one.row}: {one.state}{': ' if one.reason else ''}{one.reason}", markup=False
        ),
    )
    if not no_mlflow:
        log([space.params().row(one.row) for one in results if one.state == "measured"], space)
    _print_verified(results)
    if exit_code(results):
        raise typer.Exit(exit_code(results))


def _print_verified(results: list) -> None:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("row", no_wrap=True)
    for title in ("published", "released weights", "difference", "verdict", "published ms+flip", "measured", "verdict"):
        shown.add_column(title, justify="left" if title == "verdict" else "right")

    def cells(published: float | None, measured: float | None, verdict: str) -> list[str]:
        gap = "-" if None in (published, measured) else f"{(measured or 0) - (published or 0):+.2f}"
        return [_two(published), _two(measured), gap, verdict or "-"]

    measured = [each for each in results if each.state in ("measured", "kept")]
    for each in measured:
        single, multi = each.verdicts
        more = cells(each.published_ms_flip, each.miou_ms_flip, multi)
        shown.add_row(each.row, *cells(each.published_miou, each.miou, single), more[0], more[1], more[3])
    wide = Console() if sys.stdout.isatty() else Console(width=160)
    if measured:
        wide.print(shown)
    if not results:
        wide.print("No row here has published numbers or released weights; give a ROW and --weights FILE.")
        return
    others = {state: sum(each.state == state for each in results) for state in ("skipped", "failed")}
    wide.print(
        f"{len(measured)} of {len(results)} rows verified (mIoU in percent)"
        + "".join(f", {count} {state}" for state, count in others.items() if count)
    )


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


@app.command("import-weights")
def import_weights_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint as its source released it.")],
    out: Annotated[Path, typer.Option(help="The .safetensors to write.")],
    row: Annotated[
        str | None,
        typer.Option(help="Whose weights they are (default: found by name, hash or tensors).", show_default=False),
    ] = None,
    incomplete: Annotated[
        bool,
        typer.Option("--incomplete", help="Import also a file that lacks tensors or has others; they are listed."),
    ] = False,
    force: Force = False,
    workspace: Root = Path(),
) -> None:
    """Bring a released checkpoint (mmsegmentation, sssegmentation, official DANet, DRANet, ClusterDANet) to our format.

    The source is recognised from the names of the tensors; every tensor is accounted for. Nothing in the file is run.
    """
    from danet.weights.exchange import import_weights

    refuse_existing([out], force=force)
    typer.echo(import_weights(file, out, Workspace(workspace).params(), row=row, incomplete=incomplete))


@app.command("export-weights")
def export_weights_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Trained or imported weights (.safetensors).")],
    out: Annotated[Path, typer.Option(help="The .pth to write.")],
    to: Annotated[
        str, typer.Option(help="mmsegmentation, sssegmentation, official, official-dranet or clusterdanet.")
    ] = "mmsegmentation",
    force: Force = False,
) -> None:
    """Write weights in another toolbox's names, to be loaded there; `import-weights` brings them back exactly."""
    from danet.weights.exchange import export_weights

    refuse_existing([out], force=force)
    typer.echo(f"{out}: {export_weights(file, out, target=to)} tensors in the names of {to}")


@app.command()
def submit(
    row: RowName,
    weights: Annotated[Path, typer.Option(help="Trained, imported or released weights of that row's model.")],
    out: Annotated[Path, typer.Option(help="The .zip to write.")],
    mode: Annotated[
        Mode | None,
        typer.Option(help="ss or ms (default: ms where the row defines it).", show_default=False),
    ] = None,
    device: Device = None,
    force: Force = False,
    workspace: Root = Path(),
) -> None:
    """Write the zip for the Cityscapes test server: label ids of the 1525 test images at 1024x2048."""
    from danet.evaluation.submission import write_submission

    refuse_existing([out], force=force)
    space = Workspace(workspace)
    count = write_submission(
        space.params().row(row), space, weights=weights, out=out, mode=mode.value if mode else None, device=device
    )
    typer.echo(f"{out}: {count} images; upload it at https://www.cityscapes-dataset.com/submit/")


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Photographs (JPEG, PNG).")],
    row: Annotated[str, typer.Option(help="The row whose model and testing protocol to use.")],
    weights: Annotated[Path, typer.Option(help="Weights of that row's model: trained, imported or released.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; made if missing.")],
    mode: Annotated[Mode, typer.Option(help="ss: single scale; ms: multi-scale + flip.")] = Mode.ss,
    logits: Annotated[bool, typer.Option("--logits", help="Also write float32 C x H x W scores as .npy.")] = False,
    device: Device = None,
    force: Force = False,
    workspace: Root = Path(),
) -> None:
    """Segment images: for each a mask PNG with the dataset's palette and an overlay PNG."""
    from danet.evaluation.predict import predict_files

    params = Workspace(workspace).params()
    chosen = params.row(row)
    adapter = params.dataset(chosen.dataset).adapter
    written = predict_files(
        chosen,
        weights=weights,
        images=images,
        out=out,
        mode=mode.value,
        logits=logits,
        device=device,
        adapter=adapter,
        force=force,
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
    force: Force = False,
    workspace: Root = Path(),
) -> None:
    """Write a contact sheet of samples: image, mask, names; raw, or augmented as a row trains on them."""
    from danet.data.browse import browse_dataset, browse_row

    refuse_existing([out], force=force)
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


RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="ROW, ROW:SEED, ROW:released, or the path of an evaluation.json (PATH:SEED)."),
]


@app.command()
def show(
    run: RunName,
    format: Annotated[Format, typer.Option(help="table for people, json for programs.")] = Format.table,
    workspace: Root = Path(),
) -> None:
    """Show a run: its numbers, per-class IoU and where they came from (code, data, weights, seed, machine)."""
    from danet.results.runs import describe, load_run, show_text

    found = load_run(run, Workspace(workspace))
    typer.echo(json.dumps(describe(found), indent=2) if format is Format.json else show_text(found))


@app.command()
def diff(
    first: RunName,
    second: RunName,
    format: Annotated[Format, typer.Option(help="table for people, json for programs.")] = Format.table,
    workspace: Root = Path(),
) -> None:
    """Say what differs between two runs: settings, provenance, weights, data, and per-class IoU."""
    from danet.results.runs import compare, diff_text, load_run

    space = Workspace(workspace)
    runs = load_run(first, space), load_run(second, space)
    difference = compare(*runs)
    if format is Format.json:
        typer.echo(json.dumps(difference.describe(), indent=2))
    else:
        typer.echo(diff_text(*runs, difference))


@app.command()
def reproduce(
    report: Annotated[Path, typer.Argument(metavar="REPORT.json", help="A table as data: reports/tables/NAME.json.")],
    row: RowName,
    train: Annotated[
        bool, typer.Option("--train", help="Train the reported seeds anew, in build/reproduce, instead of evaluating.")
    ] = False,
    device: Device = None,
    workspace: Root = Path(),
) -> None:
    """Run a row of a table's JSON again, ours or a colleague's, and say whether it agrees (exit code 1: it does not).

    By default the row's trained weights are evaluated again. With the weights of the report, the numbers must agree
    within bands.released; otherwise within the dataset's band.
    """
    from danet.cli.reproduce import check_row

    check = check_row(report, row, Workspace(workspace), train=train, device=device)
    typer.echo(check)
    if not check.agrees:
        raise typer.Exit(1)


@app.command()
def sync(workspace: Root = Path()) -> None:
    """Send to MLflow what it lacks of the metrics files, however often: after it could not be reached, say."""
    from danet.results.tracking import send

    space = Workspace(workspace)
    sent = send(space.params().rows.values(), space)
    for row, values in sent.items():
        typer.echo(f"{row}: {values} values sent" if values else f"{row}: nothing was missing")
    if not sent:
        typer.echo("no row has metrics files of its settings")


@app.command(name="open")
def open_(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE]", help="Whose runs to show (default: those of the newest run).")
    ] = None,
    port: Annotated[int, typer.Option(help="For the pages, where no server is named by MLFLOW_TRACKING_URI.")] = 5000,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in a browser.")] = True,
    workspace: Root = Path(),
) -> None:
    """Show the runs in MLflow: published, measured, difference and verdict of each row as columns."""
    from danet.cli.mlflow_pages import show

    show(Workspace(workspace), table, port, browser)


@app.command()
def doctor(
    format: Annotated[Format, typer.Option(help="table for people, json for programs.")] = Format.table,
    workspace: Root = Path(),
) -> None:
    """Check Python, torch, GPU, disk, datasets and credentials: which rows can run here, and what the others need."""
    from danet.cli.doctor import examine, print_findings

    findings = examine(Workspace(workspace))
    if format is Format.json:
        typer.echo(json.dumps(findings, indent=2))
    else:
        print_findings(findings)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def sweep(context: typer.Context) -> None:
    """Train and evaluate many rows side by side: on this machine's GPUs, or with --slurm on a cluster."""
    # the orchestration lies beside the stages, above this library
    command = [sys.executable, "-m", "pipelines.sweep", *context.args]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")])}
    os.execve(sys.executable, command, environment)  # noqa: S606  # in this process's place, so that it gets Ctrl-C itself


@app.command("flops")
def flops_command(
    row: Annotated[str | None, typer.Argument(metavar="[ROW]", help="A row's name; or --all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All rows.")] = False,
    format: Annotated[Format, typer.Option(help="table for people, json and csv for programs.")] = Format.table,
    workspace: Root = Path(),
) -> None:
    """Count parameters and the operations of a forward pass, at the crop and for a test image; computes nothing.

    A multiplication and an addition are two operations; convolutions and matrix products count, with the heads that
    only training uses; position attention as the explicit map. R-50 D8: 0.44 TFLOP at 512x512, 4.6 at 1024x2048.
    """
    from dataclasses import asdict

    from danet.core.errors import ConfigError
    from danet.evaluation.flops import count_row, size_text

    params = Workspace(workspace).params()
    if every == (row is not None):
        raise ConfigError("give either a ROW or --all")
    counted = [count_row(each, params) for each in ([params.row(row)] if row else params.rows.values())]
    if format is Format.json:
        typer.echo(json.dumps([asdict(each) for each in counted], indent=2))
        return
    records = [
        {
            "row": each.row, "parameters": each.parameters, "crop": size_text(each.crop),
            "crop_tflop": f"{each.crop_flop / 1e12:.3f}", "image": size_text(each.image),
            "input": size_text(each.input), "passes": each.passes, "test_tflop": f"{each.test_flop / 1e12:.3f}",
        }
        for each in counted
    ]  # fmt: skip
    if format is Format.csv:
        out = io.StringIO()
        writer = csv.DictWriter(out, fieldnames=list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        typer.echo(out.getvalue(), nl=False)
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in records[0]:
        shown.add_column(title, justify="left" if title == "row" else "right", no_wrap=True)
    for record in records:
        shown.add_row(*map(str, record.values()))
    (Console() if sys.stdout.isatty() else Console(width=140)).print(shown)


def main() -> None:
    """Entry point of ``danet`` and ``python -m danet.cli``."""
    with report_errors():
        app()


if __name__ == "__main__":
    main()
