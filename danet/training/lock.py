"""One trainer a row: a lock on the row's checkpoint folder, which the system frees when its holder dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from danet.core.errors import TrainingError
from danet.core.process import Process

LOCK_WAIT = 60.0
"""Seconds to wait for another trainer of the row: one that was told to stop saves first, and the workers of one that
was killed live on for a few."""


@contextmanager
def row_lock(folder: Path, process: Process) -> Iterator[None]:
    """Holds a row's checkpoint folder (its name has the row's hash) against other trainers, while this process lives.

    Of several processes the first holds it for all.

    Raises:
        TrainingError: in every process, if another trainer holds it for longer than :data:`LOCK_WAIT`.
    """
    lock = FileLock(folder / "train.lock")
    held = True
    if process.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=LOCK_WAIT)
        except Timeout:
            held = False
    if not process.gather(held)[0]:
        raise TrainingError(
            f"{folder}: another process is training this row; wait for it or stop it (`fuser {lock.lock_file}` "
            "says which), then run again"
        )
    try:
        yield
    finally:
        lock.release()
