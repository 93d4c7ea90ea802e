"""Weights from elsewhere, in our format: ImageNet initialisations, and what a source released for a row."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from danet.acquire.http import checksum_matches
from danet.acquire.sources import Wanted, obtain
from danet.acquire.unpack import unpack
from danet.config.params import Params, Released, Weights
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, ConfigError, DownloadError
from danet.core.files import write_json
from danet.weights.exchange import checksum_state, import_weights
from danet.weights.imagenet import SOURCE_FILE, WEIGHTS_FILE, prepare_weights
from danet.weights.ours import metadata_of


def imagenet_wanted(spec: Weights) -> Wanted:
    """The file of an ImageNet initialisation, which has one; the checksum of a zip is that of the file in it."""
    assert spec.file is not None
    return Wanted(spec.file, "weights", spec.url, None if spec.file.endswith(".zip") else spec.checksum)


def fetch_weights(workspace: Workspace, name: str) -> None:
    """Writes ``data/weights/NAME``, from the first of :func:`danet.acquire.sources.sources` that serves.

    Of ``none``, a random start, there is only a ``source.json``.

    Raises:
        ConfigError: if ``datasets.yaml`` has no such weights.
        DownloadError: if no source serves the file whose digest ``datasets.yaml`` gives.
        CheckpointError: if it does not hold that backbone.
    """
    spec = workspace.params().imagenet(name)
    out = workspace.weights(name)
    if spec.file is None:
        write_json(out / SOURCE_FILE, {"name": name, "title": spec.title})
        return
    with _obtained(imagenet_wanted(spec), out, workspace) as file:
        if file.suffix != ".zip":
            prepare_weights(name, spec, file, out)
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{name}-") as scratch:
            unpack(file, Path(scratch) / "zip", wanted=lambda member: member.endswith(".pth"))
            for member in (Path(scratch) / "zip").rglob("*.pth"):
                if spec.checksum is None or checksum_matches(member, spec.checksum):
                    prepare_weights(name, spec, member, out)
                    return
        raise CheckpointError(f"{file}: holds no .pth file of checksum {spec.checksum}; delete it and run again")


def fetch_released(workspace: Workspace, name: str) -> Path:
    """Writes ``data/released/ROW`` and returns the weights file.

    Raises:
        ConfigError: if the row is unknown, or its source released no weights.
        DownloadError: if no source serves the file whose checksum is published.
        CheckpointError: if it is damaged, unsafe or of another network.
    """
    params = workspace.params()
    row = params.row(name)
    spec = released_of(params, name)
    out = workspace.released(row)
    wanted = Wanted(spec.file, "released", spec.url, spec.checksum, also=(f"{name}.pth",), command=spec.command)
    try:
        with _obtained(wanted, out, workspace) as file:
            import_weights(file, out / WEIGHTS_FILE, params, row=name)
    except DownloadError as error:
        raise DownloadError(f"released weights of {name}: {error}") from error
    return out / WEIGHTS_FILE


@contextmanager
def _obtained(wanted: Wanted, out: Path, workspace: Workspace) -> Iterator[Path]:
    """The file, while it is used. A download that broke off stays in a folder beside ``out``, to be resumed."""
    folder = out.with_name(f".{out.name}.download")
    file, _ = obtain(wanted, folder / wanted.file, workspace.archives())
    try:
        yield file
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def released_of(params: Params, name: str) -> Released:
    """The entry of a row in ``params.yaml``.

    Raises:
        ConfigError: if the row is unknown or has none.
    """
    params.row(name)
    if name not in params.released:
        raise ConfigError(
            f"row {name} has no released weights (no entry under `released` in params.yaml); give a file with --weights"
        )
    return params.released[name]


def stored(workspace: Workspace, row: Row, spec: Released) -> Path | None:
    """The weights that :func:`fetch_released` wrote earlier, if they are of the file that is wanted today."""
    file = workspace.released(row) / WEIGHTS_FILE
    metadata = metadata_of(file) or {}
    same = checksum_state(metadata.get("source_sha256", ""), spec) != "differs"
    return file if metadata and same else None
