"""Finished seeds: ``models/ROW/seedK.safetensors`` and, beside it, ``seedK.json`` with what they follow from.

The folder is an output of DVC that is kept when the stage starts (``persist: true``), so a seed that was trained
elsewhere and pulled counts as done, and a seed that is added leaves the others alone.
"""

from __future__ import annotations

from pathlib import Path

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError, DataError
from danet.core.files import sha256
from danet.results.schema import SeedRecord, load


def weights_path(workspace: Workspace, row: Row, seed: int) -> Path:
    """The weights of a finished seed."""
    return workspace.model(row) / f"seed{seed}.safetensors"


def best_path(workspace: Workspace, row: Row, seed: int) -> Path:
    """The weights of the epoch that was best on val."""
    return workspace.model(row) / f"seed{seed}-best.safetensors"


def record_path(workspace: Workspace, row: Row, seed: int) -> Path:
    """The record beside the weights."""
    return workspace.model(row) / f"seed{seed}.json"


def load_record(workspace: Workspace, row: Row, seed: int) -> SeedRecord:
    """The record of a finished seed whose weights are there, and are those that it is of.

    Raises:
        CheckpointError: if there are none, if there is no record or it is damaged, or if the weights were changed.
    """
    weights, path = weights_path(workspace, row, seed), record_path(workspace, row, seed)
    remedy = f"run `dvc repro train@{row.name}`"
    if not weights.is_file():
        raise CheckpointError(f"{weights}: does not exist; {remedy}")
    if not path.is_file():
        raise CheckpointError(
            f"{weights}: {path.name} is not beside it, so nothing says what it was trained on; {remedy}, or evaluate "
            f"the file by itself: danet evaluate {row.name} --weights {weights}"
        )
    try:
        record = load(path, SeedRecord, remedy)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    best = best_path(workspace, row, seed)
    for file, digest in ((weights, record.weights_sha256), (best, record.best and record.best.weights_sha256)):
        if digest is not None and (not file.is_file() or sha256(file) != digest):
            raise CheckpointError(f"{file}: was removed or changed since it was trained; {remedy}")
    return record
