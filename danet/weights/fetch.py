"""Weights from elsewhere, in our format: ImageNet initialisations, and what a source released for a row."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from danet.acquire.http import Patience, public
from danet.acquire.sources import Places, Source, Wanted, obtain
from danet.config.params import Params, Released, Weights
from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, ConfigError, DownloadError
from danet.core.files import sha256, write_json
from danet.weights.exchange import import_weights, refuse_other_file
from danet.weights.imagenet import prepare_weights

FORMAT: Final = 1
WEIGHTS_FILE: Final = "weights.safetensors"
SOURCE_FILE: Final = "source.json"


def imagenet_wanted(spec: Weights) -> Wanted:
    """The file of an ImageNet initialisation, which has one; the checksum of a zip is that of the file in it."""
    assert spec.file is not None
    return Wanted(spec.file, "weights", spec.url, None if spec.file.endswith(".zip") else spec.checksum)


def fetch_weights(workspace: Workspace, name: str) -> None:
    """Writes ``data/weights/NAME``, from the first of :func:`danet.acquire.sources.sources` that serves.

    Raises:
        ConfigError: if ``datasets.yaml`` has no such weights.
        DownloadError: if no source serves the file whose digest ``datasets.yaml`` gives.
        CheckpointError: if it does not hold that backbone.
    """
    spec = workspace.params().imagenet(name)
    out = workspace.weights(name)
    if spec.file is None:
        prepare_weights(name, spec, None, out)
        return
    with _obtained(imagenet_wanted(spec), out, workspace) as (file, _):
        prepare_weights(name, spec, file, out)


def fetch_released(workspace: Workspace, name: str, *, patience: Patience | None = None, progress: bool = True) -> Path:
    """Writes ``data/released/ROW`` (``weights.safetensors``, ``source.json``) and returns the weights file.

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
        with _obtained(wanted, out, workspace, patience, progress) as (file, source):
            return _store(file, source, params, row, spec, out)
    except DownloadError as error:
        raise DownloadError(f"released weights of {name}: {error}") from error


@contextmanager
def _obtained(
    wanted: Wanted, out: Path, workspace: Workspace, patience: Patience | None = None, progress: bool = True
) -> Iterator[tuple[Path, Source]]:
    """The file, while it is used. A download that broke off stays in a folder beside ``out``, to be resumed."""
    folder = out.with_name(f".{out.name}.download")
    places = Places.here(workspace.archives())
    found = obtain(wanted, folder / wanted.file, places, patience=patience, progress=progress)
    try:
        yield found
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
    """The weights that :func:`fetch_released` wrote earlier, if they are whole and of the file that is wanted today."""
    folder = workspace.released(row)
    try:
        facts = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        wanted = facts["file"] == spec.file and f"sha256:{facts['sha256']}".startswith(spec.checksum or "sha256:")
        whole = wanted and sha256(folder / WEIGHTS_FILE) == facts["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return folder / WEIGHTS_FILE if whole else None


def _store(file: Path, source: Source, params: Params, row: Row, spec: Released, out: Path) -> Path:
    try:
        refuse_other_file(file, sha256(file), spec)
    except CheckpointError as error:
        raise DownloadError(str(error)) from error
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{row.name}-") as scratch:
        staged = Path(scratch) / WEIGHTS_FILE
        imported = import_weights(file, staged, params, row=row.name)
        facts: dict[str, Any] = {
            "format": FORMAT,
            "row": row.name,
            "source": imported.source,
            "file": spec.file,
            "from": source.kind,
            "url": public(source.url) if source.url is not None else spec.url,
            "sha256": imported.sha256,
            "checksum": imported.checksum,
            "tensors": imported.tensors,
            "weights_sha256": sha256(staged),
        }
        staged.replace(out / WEIGHTS_FILE)
    write_json(out / SOURCE_FILE, facts)
    return out / WEIGHTS_FILE
