"""``danet import-weights``, ``export-weights`` and ``submit``: files that come from elsewhere or go there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from danet.cli.options import Device, Force, Root, RowName, TestMode
from danet.config.workspace import Workspace
from danet.core.files import refuse_existing

app = typer.Typer()


@app.command("import-weights")
def import_weights_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint as its source released it.")],
    out: Annotated[Path, typer.Option(help="The .safetensors to write.")],
    row: Annotated[
        str | None,
        typer.Option(help="Whose weights they are (default: found by the name of the file).", show_default=False),
    ] = None,
    force: Force = False,
    workspace: Root = Path(),
) -> None:
    """Bring a released checkpoint (mmsegmentation, sssegmentation, official DANet, DRANet, ClusterDANet) to our format.

    The source is recognised from the names of the tensors; every tensor is accounted for. Nothing in the file is run.
    """
    from danet.weights.exchange import import_weights

    refuse_existing([out], force=force)
    facts = import_weights(file, out, Workspace(workspace).params(), row=row)
    typer.echo(f"{out}: {facts['source']} weights for row {facts['row']}; published checksum: {facts['checksum']}")


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
        TestMode | None,
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
