"""From the name of an ImageNet initialisation to its file in our names: fetch, verify, convert."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from danet.acquire.download import fetch_file
from danet.config.workspace import Workspace
from danet.core.errors import DownloadError
from danet.weights.imagenet import prepare_weights


def fetch_weights(workspace: Workspace, name: str) -> None:
    """Writes ``data/weights/NAME``.

    Taken from the folder in ``DANET_ARCHIVES``, else from the mirror in ``DANET_MIRROR``, else from its URL.

    Raises:
        ConfigError: if ``datasets.yaml`` has no such weights.
        DownloadError: if it cannot be had, or is not the file whose digest ``datasets.yaml`` gives.
        CheckpointError: if it does not hold that backbone.
    """
    spec = workspace.params().imagenet(name)
    out = workspace.weights(name)
    if spec.file is None:
        prepare_weights(name, spec, None, out)
        return
    local = os.environ.get("DANET_ARCHIVES")
    for folder in [Path(local), Path(local) / "weights"] if local else []:
        if (folder / spec.file).is_file():
            prepare_weights(name, spec, folder / spec.file, out)
            return
    mirror = os.environ.get("DANET_MIRROR")
    url = f"{mirror.rstrip('/')}/{spec.file}" if mirror else spec.url
    if url is None:
        raise DownloadError(f"weights {name}: no URL; put {spec.file} into a folder and set DANET_ARCHIVES to it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{name}-") as scratch:
        file = Path(scratch) / spec.file
        fetch_file(url, None if spec.file.endswith(".zip") else spec.checksum, file)
        prepare_weights(name, spec, file, out)
