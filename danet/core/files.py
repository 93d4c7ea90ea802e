"""Writing files so that no reader ever sees half of one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from danet.core.errors import DanetError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it is flushed to disk and renamed over ``path``.

    The folder is made if need be. What a killed writer left is overwritten by the next one; a file has one at a time.

    Raises:
        DanetError: if the disk is full or the folder cannot be written, naming the path. Nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        remedy = "free space or fix the permissions, then run again"
        raise DanetError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error
    finally:
        with contextlib.suppress(OSError):
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


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON; refuses NaN and infinities, which are not JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text; raises like :func:`atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


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
