"""Finished seeds: ``models/ROW/seedK.safetensors`` and, beside it, ``seedK.json`` with what they follow from.

The folder is an output of DVC that is kept when the stage starts (``persist: true``), so a seed that was trained
elsewhere and pulled counts as done, and a seed that is added leaves the others alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from danet.config.row import Row
from danet.config.workspace import Workspace
from danet.core.errors import CheckpointError
from danet.core.files import sha256
from danet.results.identity import TrainingIdentity


class BestEpoch(BaseModel):
    """The epoch that was best on val, whose weights are in ``seedK-best.safetensors``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iteration: int
    score: float
    """(pixAcc + mIoU) / 2 on centre crops (:mod:`danet.training.selection`), in percent."""
    weights_sha256: str


class SeedRecord(BaseModel):
    """``seedK.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    row: str
    identity: TrainingIdentity
    weights_sha256: str
    best: BestEpoch | None = None
    """Of rows with ``checkpoint: best-on-val``."""
    run: dict[str, Any]
    """As in ``train.json``."""
    curve: list[dict[str, float | int | None]]
    """As in ``curve.csv``."""


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
    try:
        record = SeedRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(
            f"{weights}: {path.name} is not beside it, so nothing says what it was trained on; {remedy}, or evaluate "
            f"the file by itself: danet evaluate {row.name} --weights {weights}"
        ) from None
    except (OSError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{path}: is damaged ({' '.join(str(error).split())[:200]}); {remedy}") from None
    best = best_path(workspace, row, seed)
    for file, digest in ((weights, record.weights_sha256), (best, record.best and record.best.weights_sha256)):
        if digest is not None and (not file.is_file() or sha256(file) != digest):
            raise CheckpointError(f"{file}: was removed or changed since it was trained; {remedy}")
    return record
