"""Checkpoints to resume from: written whole or not at all, the last two kept.

They hold tensors and plain values only and are read with ``weights_only=True``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from danet.core.errors import CheckpointError
from danet.core.files import atomic_write
from danet.results.identity import TrainingIdentity

FORMAT = 2
KEEP = 2
_NAME = re.compile(r"iteration_(\d{8,})\.pt")


@dataclass
class Checkpoint:
    """What a run needs to go on as if it had never stopped.

    ``iteration`` counts the finished optimizer steps. ``progress`` holds curve, validations, unfinished interval sums
    and totals as plain values (:class:`danet.training.progress.History`).
    """

    iteration: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    progress: dict[str, Any]


class CheckpointStore:
    """The resume checkpoints of one seed of a row, in ``folder``."""

    def __init__(self, folder: Path, identity: TrainingIdentity) -> None:
        self.folder = folder
        self.identity = identity

    def path(self, iteration: int) -> Path:
        """The file of a checkpoint."""
        return self.folder / f"iteration_{iteration:08d}.pt"

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, then removes all but the newest two.

        Raises:
            CheckpointError: if it cannot be written, naming the file; older ones stay.
        """
        path = self.path(checkpoint.iteration)
        payload = {"format": FORMAT, "identity": self.identity.model_dump_json(), **vars(checkpoint)}
        with atomic_write(path) as temporary:
            try:
                torch.save(payload, temporary)
            except RuntimeError as error:  # a full disk, mostly
                raise CheckpointError(
                    f"{path}: cannot be written ({_first_line(error)}); free space or fix the disk, then run again "
                    "(older checkpoints are untouched)"
                ) from error
        for old in iterations(self.folder)[KEEP:]:
            self.path(old).unlink(missing_ok=True)

    def load(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest readable checkpoint, on the CPU, and a line about each damaged one that was passed over.

        Raises:
            CheckpointError: if the newest readable one is of another training (data, initial weights, settings, seed).
        """
        notes: list[str] = []
        for iteration in iterations(self.folder):
            path = self.path(iteration)
            try:
                payload = torch.load(path, map_location="cpu", weights_only=True)
                identity = TrainingIdentity.model_validate_json(payload["identity"])
                checkpoint = Checkpoint(**{each.name: payload[each.name] for each in fields(Checkpoint)})
            except Exception as error:  # the reader raises whatever the damaged bytes lead to
                notes.append(f"{path}: damaged ({_first_line(error)}), using the one before it")
                continue
            if changes := identity.changes(self.identity):  # the result would be of neither
                raise CheckpointError(
                    f"{path}: belongs to a training that began differently ({'; '.join(changes[:4])}); "
                    f"undo that change, or start from the beginning: rm -r {self.folder}"
                )
            return checkpoint, notes
        if notes:
            notes.append(f"{self.folder}: no undamaged checkpoint is left, starting from the beginning")
        return None, notes

    def newest(self) -> Path | None:
        """The newest checkpoint, for error messages."""
        return next(map(self.path, iterations(self.folder)), None)

    def clear(self) -> None:
        """Removes all checkpoints, once the run's final weights are safe."""
        for iteration in iterations(self.folder):
            self.path(iteration).unlink(missing_ok=True)


def iterations(folder: Path) -> list[int]:
    """Iterations of the checkpoints that lie in a folder, good or not, newest first."""
    found = [_NAME.fullmatch(path.name) for path in folder.glob("iteration_*")]
    return sorted((int(match[1]) for match in found if match), reverse=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
