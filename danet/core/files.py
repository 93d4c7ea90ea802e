"""Writing files so that no reader ever sees half of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from danet.core.errors import DanetError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_write(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it is flushed to disk and renamed over ``path``.

    The folder is flushed too, so that after a power loss the file is there whole or as it was before.

    Args:
        path: what to write; its folder is made if need be.
        needed: bytes that will be written, for the message if they do not fit.

    Raises:
        DanetError: if the disk is full or the folder cannot be written, naming the path and, of a full disk, the bytes
            needed and free. Nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise _unwritable(path, error, needed) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error, needed) from error
    finally:
        with contextlib.suppress(OSError):  # of a vanished mount, where there is nothing to remove either
            temporary.unlink(missing_ok=True)


def refuse_existing(paths: Iterable[Path], *, force: bool) -> None:
    """Keeps a user's files: a command that is told where to write calls it with all that it would write.

    Raises:
        DanetError: if one is there and ``force`` is not given, or if one is a folder.
    """
    for path in paths:
        if path.is_dir():
            raise DanetError(f"{path}: is a folder; give the name of a file")
        if not force and (path.exists() or path.is_symlink()):
            raise DanetError(f"{path}: is there already; give another --out, or --force to overwrite it")


def remove_leftovers(path: Path) -> None:
    """Removes temporary files that a killed :func:`atomic_write` of ``path`` left; for its only writer."""
    with contextlib.suppress(OSError):
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)


def space_note(path: Path, needed: int | None) -> str:
    """``1,234 bytes needed, 56 free``: for messages about a full disk; empty if neither is known."""
    parts = [] if needed is None else [f"{needed:,} bytes needed"]
    with contextlib.suppress(OSError):
        existing = next(folder for folder in path.absolute().parents if folder.is_dir())
        parts.append(f"{shutil.disk_usage(existing).free:,} free")
    return ", ".join(parts)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns a failure to move or remove ``path`` into the message of :func:`atomic_write`."""
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error, None) from error


def _unwritable(path: Path, error: OSError, needed: int | None) -> DanetError:
    note = f", {space_note(path, needed)}" if error.errno in _FULL else ""
    remedy = "free space or fix the permissions, then run again"
    return DanetError(f"{path}: cannot be written ({error.strerror}){note}; {remedy}")


def _sync_folder(folder: Path) -> None:
    """Flushes a rename, which fsync of the file alone does not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that cannot flush a folder
            raise
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON; refuses NaN and infinities, which are not JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text; raises like :func:`atomic_write`."""
    data = text.encode()
    with atomic_write(path, len(data)) as temporary:
        temporary.write_bytes(data)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def replace_folder(new: Path, out: Path) -> None:
    """Renames the folder ``new`` to ``out``, removing what was there."""
    old = out.with_name(f".{out.name}.old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    if out.is_symlink() or out.is_file():
        out.unlink()
    elif out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def zip_entry(name: str) -> zipfile.ZipInfo:
    """A zip entry with fixed time, mode and system: the same input gives the same bytes."""
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o100644 << 16
    return entry
