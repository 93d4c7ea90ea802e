"""The weights that a source released for a row: fetched or taken from a folder, verified, in our format."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final

from danet.acquire.download import Patience, fetch_file
from danet.acquire.drive import direct_url
from danet.config import rows
from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, ConfigError, DownloadError
from danet.core.files import sha256, write_json
from danet.weights.exchange import import_weights, refuse_other_file

FORMAT: Final = 1
WEIGHTS_FILE: Final = "weights.safetensors"
SOURCE_FILE: Final = "source.json"


def fetch_released(workspace: Workspace, name: str, *, patience: Patience | None = None, progress: bool = True) -> Path:
    """Writes ``data/released/ROW`` (``weights.safetensors``, ``source.json``) and returns the weights file.

    The checkpoint is taken from the folder in ``DANET_ARCHIVES`` or from ``data/archives`` (as ``FILE``,
    ``released/FILE`` or ``released/ROW.pth``), else from the mirror in ``DANET_MIRROR``, else from its URL.

    Raises:
        ConfigError: if the row is unknown, or its source released no weights.
        DownloadError: if the file cannot be had, or is not the one whose checksum is published.
        CheckpointError: if it is damaged, unsafe or of another network.
    """
    params = workspace.params()
    row = params.row(name)
    spec = released_of(params, name)
    out = workspace.released(row)
    local = placed_by_hand(workspace, row, spec)
    if local is not None:
        return _store(local, "local file", None, params, row, spec, out)
    remedy = f"download {spec.file} with a browser and place it in data/archives (or a folder named by DANET_ARCHIVES)"
    mirror = os.environ.get("DANET_MIRROR")
    url = f"{mirror.rstrip('/')}/{spec.file}" if mirror else spec.url
    if url is None:
        raise DownloadError(f"released weights of {name}: they have no URL; {remedy}")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Not a temporary folder: what came of an interrupted download is resumed next time
    part = out.parent / f".{name}.download"
    file = part / spec.file
    try:
        address = direct_url(url, remedy, patience=patience)
        fetch_file(address, spec.checksum, file, patience=patience, progress=progress)
    except DownloadError as error:
        raise DownloadError(f"released weights of {name}: {error}; or {remedy}") from error
    try:
        return _store(file, "mirror" if mirror else "url", url, params, row, spec, out)
    finally:
        file.unlink(missing_ok=True)
        part.rmdir()


def released_of(params: rows.Params, name: str) -> rows.Released:
    """The entry of a row in ``released.yaml``.

    Raises:
        ConfigError: if the row is unknown or has none.
    """
    params.row(name)
    if name not in params.released:
        raise ConfigError(f"row {name} has no released weights (no entry in released.yaml); give a file with --weights")
    return params.released[name]


def placed_by_hand(workspace: Workspace, row: rows.Row, spec: rows.Released) -> Path | None:
    """The checkpoint in ``DANET_ARCHIVES`` or ``data/archives``, if it is there."""
    named = os.environ.get("DANET_ARCHIVES")
    folders = [Path(named).expanduser()] if named else []
    for folder in [*folders, workspace.root / "data" / "archives"]:
        for part in (spec.file, f"released/{spec.file}", f"released/{row.name}.pth"):
            if (folder / part).is_file():
                return folder / part
    return None


def stored(workspace: Workspace, row: rows.Row, spec: rows.Released) -> Path | None:
    """The weights that :func:`fetch_released` wrote earlier, if they are whole and of the file that is wanted today."""
    folder = workspace.released(row)
    try:
        facts = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        wanted = facts["file"] == spec.file and f"sha256:{facts['sha256']}".startswith(spec.checksum or "sha256:")
        whole = wanted and sha256(folder / WEIGHTS_FILE) == facts["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return folder / WEIGHTS_FILE if whole else None


def _store(
    file: Path, kind: str, url: str | None, params: rows.Params, row: rows.Row, spec: rows.Released, out: Path
) -> Path:
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
            "from": kind,
            "url": url or spec.url,
            "sha256": imported.sha256,
            "checksum": imported.checksum,
            "tensors": imported.tensors,
            "weights_sha256": sha256(staged),
        }
        staged.replace(out / WEIGHTS_FILE)
    write_json(out / SOURCE_FILE, facts)
    return out / WEIGHTS_FILE
