"""Checkpoints to resume from: written whole or not at all, checked when read, the last two kept.

A checkpoint is ``iteration_<n>.pt`` beside ``iteration_<n>.pt.sha256``. The checksum is written first, so a file that
is there without a fitting one is damaged. They hold tensors and plain values only and are read with
``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from danet.core.errors import CheckpointError
from danet.core.files import atomic_write, sha256, space_note, write_text
from danet.results.identity import TrainingIdentity

FORMAT = 2
KEEP = 2
_NAME = re.compile(r"iteration_(\d{8,})\.pt")
_FIELDS = {"iteration", "model", "optimizer", "scaler", "progress"}


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

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint, then removes all but the newest two good ones' files.

        Raises:
            CheckpointError: if it cannot be written, naming the file and the bytes needed; older ones stay.
        """
        path = self.path(checkpoint.iteration)
        payload = {
            "format": FORMAT,
            "identity": self.identity.model_dump_json(),
            "iteration": checkpoint.iteration,
            "model": checkpoint.model,
            "optimizer": checkpoint.optimizer,
            "scaler": checkpoint.scaler,
            "progress": checkpoint.progress,
        }
        needed = _tensor_bytes(payload)
        with atomic_write(path, needed) as temporary:
            try:
                torch.save(payload, temporary)
            except (RuntimeError, OSError) as error:
                raise CheckpointError(
                    f"{path}: cannot be written ({_first_line(error)}), {space_note(path, needed)}; free space or fix "
                    "the disk, then run again; the older checkpoints are untouched"
                ) from error
            write_text(_sidecar(path), f"{sha256(temporary)}  {path.name}\n")
        for old in [n for n in iterations(self.folder) if n < checkpoint.iteration][KEEP - 1 :]:
            self._remove(old)
        return path

    def load(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest undamaged checkpoint, on the CPU, and a line about each damaged one that was passed over.

        Raises:
            CheckpointError: if the newest readable one is of another training (data, initial weights, settings, seed).
        """
        notes: list[str] = []
        self._tidy()
        for iteration in iterations(self.folder):
            path = self.path(iteration)
            problem = _damage(path)
            payload: Any = None
            if problem is None:
                try:
                    payload = torch.load(path, map_location="cpu", weights_only=True)
                except Exception as error:  # of a file that somebody made, checksum included, it can be anything
                    problem = _first_line(error)
            if problem is None and not _is_checkpoint(payload):
                problem = "not a training checkpoint of this program"
            if problem is not None:
                notes.append(f"{path}: damaged ({problem}), using the one before it")
                continue
            self._check_origin(path, payload)
            return (
                Checkpoint(
                    iteration=payload["iteration"],
                    model=payload["model"],
                    optimizer=payload["optimizer"],
                    scaler=payload["scaler"],
                    progress=payload["progress"],
                ),
                notes,
            )
        if notes:
            notes.append(f"{self.folder}: no undamaged checkpoint is left, starting from the beginning")
        return None, notes

    def last_good(self) -> Path | None:
        """The newest checkpoint with a fitting checksum, for error messages."""
        return next((self.path(n) for n in iterations(self.folder) if _damage(self.path(n)) is None), None)

    def clear(self) -> None:
        """Removes all checkpoints, once the run's final weights are safe."""
        with contextlib.suppress(CheckpointError):
            for iteration in iterations(self.folder):
                self._remove(iteration)

    def _remove(self, iteration: int) -> None:
        with contextlib.suppress(OSError):  # one too many does no harm
            self.path(iteration).unlink(missing_ok=True)
            _sidecar(self.path(iteration)).unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Removes what a killed trainer left half made; the row's lock keeps others from working on it."""
        with contextlib.suppress(OSError):
            for path in [*self.folder.glob(".iteration_*.tmp"), *self.folder.glob("iteration_*.pt.sha256")]:
                if path.suffix == ".tmp" or not path.with_suffix("").exists():
                    path.unlink(missing_ok=True)

    def _check_origin(self, path: Path, payload: dict[str, Any]) -> None:
        """Refuses to go on from another training's state: the result would be of neither."""
        try:
            changes = TrainingIdentity.model_validate_json(payload["identity"]).changes(self.identity)
        except (KeyError, ValueError, TypeError):
            changes = ["it does not say what it was trained on"]
        if changes:
            raise CheckpointError(
                f"{path}: belongs to a training that began differently ({'; '.join(changes[:4])}); "
                f"undo that change, or start from the beginning: rm -r {self.folder}"
            )


def iterations(folder: Path) -> list[int]:
    """Iterations of the checkpoints that lie in a folder, good or not, newest first.

    Raises:
        CheckpointError: if the folder is there but cannot be read.
    """
    try:
        found = [_NAME.fullmatch(path.name) for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be read ({error.strerror}); fix the disk or the permissions, then run again"
        ) from error
    return sorted((int(match[1]) for match in found if match), reverse=True)


def _is_checkpoint(payload: Any) -> bool:
    if not isinstance(payload, dict) or payload.get("format") != FORMAT or not payload.keys() >= _FIELDS:
        return False
    states = (payload[key] for key in ("model", "optimizer", "scaler", "progress"))
    return type(payload["iteration"]) is int and all(isinstance(state, dict) for state in states)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _damage(path: Path) -> str | None:
    try:
        recorded = _sidecar(path).read_text(encoding="utf-8").split()
        if not recorded:
            return "its checksum file is empty"
        return None if sha256(path) == recorded[0] else "its checksum differs"
    except UnicodeDecodeError:
        return "its checksum file is not text"
    except OSError as error:
        return f"it or its checksum cannot be read: {error.strerror}"


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_tensor_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(_tensor_bytes(item) for item in value)
    return 0


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
