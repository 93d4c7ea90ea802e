"""The checkpoint to resume a training from: written whole or not at all, and replaced by the next.

It is a mapping of tensors and plain values only and is read with ``weights_only=True``: ``iteration`` (the finished
optimizer steps), the state dicts ``model``, ``optimizer`` and ``scaler``, and ``progress``, the fields of
:class:`danet.training.progress.History`. With them a run goes on as if it had never stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from danet.core.errors import CheckpointError
from danet.core.files import atomic_write
from danet.results.identity import TrainingIdentity


class CheckpointStore:
    """The resume checkpoint of one seed of a row, in ``folder``."""

    def __init__(self, folder: Path, identity: TrainingIdentity) -> None:
        self.folder = folder
        self.path = folder / "checkpoint.pt"
        self.identity = identity

    def save(self, **checkpoint: Any) -> None:
        """Replaces the checkpoint.

        Raises:
            CheckpointError: if it cannot be written, naming the file; the one before stays.
        """
        with atomic_write(self.path) as temporary:
            try:
                torch.save({"identity": self.identity.model_dump_json(), **checkpoint}, temporary)
            except RuntimeError as error:  # a full disk, mostly
                raise CheckpointError(
                    f"{self.path}: cannot be written ({_first_line(error)}); free space or fix the disk, then run "
                    "again (the checkpoint before it is untouched)"
                ) from error

    def load(self) -> dict[str, Any] | None:
        """The checkpoint, on the CPU; None if there is none.

        Raises:
            CheckpointError: if it is damaged, or of another training (data, initial weights, settings, seed).
        """
        if not self.path.exists():
            return None
        start_again = f"start from the beginning: rm -r {self.folder}"
        try:
            checkpoint: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            identity = TrainingIdentity.model_validate_json(checkpoint.pop("identity"))
        except Exception as error:  # the reader raises whatever the damaged bytes lead to
            raise CheckpointError(f"{self.path}: damaged ({_first_line(error)}); {start_again}") from error
        if changes := identity.changes(self.identity):  # the result would be of neither
            raise CheckpointError(
                f"{self.path}: belongs to a training that began differently ({'; '.join(changes[:4])}); "
                f"undo that change, or {start_again}"
            )
        return checkpoint


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
