"""``danet predict``, ``browse``, ``show`` and ``diff``: looking at images and at runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from danet.cli.options import Device, Force, Format, Root, TestMode
from danet.config.workspace import Workspace
from danet.core.files import refuse_existing

if TYPE_CHECKING:
    from danet.config.row import Row

app = typer.Typer()


@app.command()
def predict(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Photographs (JPEG, PNG), or folders of them.")
    ],
    row: Annotated[str, typer.Option(help="The row whose model and testing protocol to use.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; made if missing.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights of that row's model: trained, imported or released (default: the row's own, once trained).",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[TestMode, typer.Option(help="ss: single scale; ms: multi-scale + flip.")] = TestMode.ss,
    device: Device = None,
    force: Force = False,
    workspace: Root = Path(),
) -> None:
    """Segment images: for each a mask PNG with the dataset's palette and an overlay PNG with a legend."""
    from danet.evaluation.predict import predict_files

    space = Workspace(workspace)
    params = space.params()
    chosen = params.row(row)
    adapter = params.dataset(chosen.dataset).adapter
    written = predict_files(
        chosen,
        weights=weights or _own_weights(chosen, space),
        images=images,
        out=out,
        mode=mode.value,
        device=device,
        adapter=adapter,
        force=force,
    )
    for path in written:
        typer.echo(path)


def _own_weights(row: Row, workspace: Workspace) -> Path:
    """The trained weights of a row's first seed; the released ones of a row that was not trained."""
    from danet.core.errors import CheckpointError

    trained = workspace.model(row) / f"seed{row.seeds[0]}.safetensors"
    released = workspace.released(row) / "weights.safetensors"
    for path in (trained, released):
        if path.is_file():
            return path
    raise CheckpointError(
        f"{trained}: does not exist; train the row (`dvc repro train@{row.name}`), or give --weights FILE"
    )


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
    from danet.evaluation.browse import browse_dataset, browse_row

    refuse_existing([out], force=force)
    space = Workspace(workspace)
    params = space.params()
    if name in params.datasets:
        browse_dataset(space.prepared(name), split or next(iter(params.dataset(name).counts)), number, out, seed=seed)
    else:
        row = params.row(name)
        browse_row(row, space.prepared(row.dataset), split or row.train_split, number, out, seed=seed)
    typer.echo(out)


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
    workspace: Root = Path(),
) -> None:
    """Say what differs between two runs: settings, provenance, weights, data, and per-class IoU."""
    from danet.results.runs import compare, diff_text, load_run

    space = Workspace(workspace)
    runs = load_run(first, space), load_run(second, space)
    typer.echo(diff_text(*runs, compare(*runs)))
