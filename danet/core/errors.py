"""Errors that a user can act on. Everything the harness refuses on purpose is one of these.

Each message names the file, the offending value and the remedy; the command line prints it as one
line and exits with the class's ``exit_code``. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations


class DanetError(Exception):
    """Base of all expected failures."""

    exit_code = 2


def out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU or of the host was too small; PyTorch raises both as a ``RuntimeError``."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in words)
    )


class ConfigError(DanetError):
    """``params.yaml`` contradicts itself, or a row, table or dataset is unknown."""


class DataError(DanetError):
    """A dataset is missing, incomplete or damaged."""


class DownloadError(DataError):
    """A file could not be fetched, or what came is not what was asked for."""


class ArchiveError(DataError):
    """An archive is damaged, or holds something that must not be unpacked."""


class CheckpointError(DanetError):
    """A weights file or training checkpoint is damaged, unsafe, or of another model."""


class TrainingError(DanetError):
    """Training cannot go on (non-finite loss, out of memory, run locked by another process)."""

    exit_code = 3


class Interrupted(DanetError):  # noqa: N818 - a request to stop, not a fault
    """Training was asked to stop and has saved its state; run the same command again to go on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later
