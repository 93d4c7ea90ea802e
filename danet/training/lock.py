"""One trainer a row: a lock on the row's checkpoint folder, which the system frees when its holder dies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from danet.core.errors import DanetError, TrainingError
from danet.core.files import remove_leftovers, write_json
from danet.core.process import Process

LOCK_WAIT = 60.0
"""Seconds to wait for another trainer of the row: one that was told to stop saves first, and the workers of one that
was killed live on for a few."""
HOLDER = "trainer.json"
"""Beside the lock: who holds it."""


@contextmanager
def row_lock(folder: Path, process: Process, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Holds a row's checkpoint folder (its name has the row's hash) against other trainers, while this process lives.

    Args:
        folder: with the checkpoints of the row.
        process: of several, the first holds it for all.
        say: is told if another trainer has to be waited for.

    Raises:
        TrainingError: in every process, if another trainer holds it for longer than :data:`LOCK_WAIT`.
    """
    lock: FileLock | None = None
    refused: str | None = None
    if process.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / "train.lock")
            _acquire(lock, folder, say)
        except Timeout:
            lock = None
            refused = (
                f"{folder}: another process is training this row{_holder(folder)}; wait for it or stop it, then run "
                "again"
            )
        except OSError as error:
            lock = None
            refused = (
                f"{folder}: cannot be written ({error.strerror}); free space or fix the permissions, then run again"
            )
    refused = process.gather(refused)[0]
    if refused is not None:
        raise TrainingError(refused)
    try:
        yield
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                (folder / HOLDER).unlink(missing_ok=True)
            lock.release()


def _acquire(lock: FileLock, folder: Path, say: Callable[[str], None]) -> None:
    """Takes the lock, which the system frees when its holder dies, and leaves a note of who has it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{folder}: another process is training this row{_holder(folder)}; waiting up to {LOCK_WAIT:.0f} s for it")
        lock.acquire(timeout=LOCK_WAIT)
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    remove_leftovers(folder / HOLDER)
    with contextlib.suppress(DanetError):  # only a help to the reader of a message
        write_json(folder / HOLDER, holder)


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return f" (process {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
