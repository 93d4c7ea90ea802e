"""Unpacking tar, tgz and zip files that came over a network.

The members that are wanted go into a temporary folder, which is renamed when whole. Nothing leads out of it: tars go
through ``tarfile``'s filter ``data``, and ``zipfile`` drops ``..`` and leading slashes by itself.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from danet.core.errors import ArchiveError
from danet.core.progress import Progress
from danet.core.text import reason

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)
"""What the standard library's readers raise on damaged (or encrypted) archives."""


def unpack(
    archive: Path,
    folder: Path,
    *,
    wanted: Callable[[str], object] = lambda name: True,
    remedy: str = "delete it and download it again",
) -> None:
    """Unpacks the files for which ``wanted(path)`` is true into ``folder``, which must not exist.

    Raises:
        ArchiveError: naming archive and remedy; ``folder`` then does not exist.
    """
    temporary = folder.with_name(f".{folder.name}.unpack.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with Progress(f"unpack {archive.name}", None, "files") as bar:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as members:
                    for info in members.infolist():
                        if not info.is_dir() and wanted(info.filename):
                            members.extract(info, temporary)  # checks the member's CRC
                            bar.advance()
            else:
                with tarfile.open(archive) as tar:
                    for member in tar:
                        if not member.isdir() and wanted(member.name.removeprefix("./")):
                            tar.extract(member, temporary, filter="data")
                            bar.advance()
        temporary.rename(folder)
    except DAMAGE as error:
        raise ArchiveError(f"{archive}: cannot be unpacked ({reason(error)}); {remedy}") from error
    except OSError as error:
        if error.errno is not None:
            raise  # the disk's fault, not the archive's; gzip's bad headers and checksums have no number
        raise ArchiveError(f"{archive}: cannot be unpacked ({reason(error)}); {remedy}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def damage(archive: Path) -> str | None:
    """What is wrong with a zip (or the ``.part`` of one), read to its end; None if nothing is, or if it is no zip."""
    if not archive.name.endswith((".zip", ".zip.part")):
        return None
    try:
        with zipfile.ZipFile(archive) as members:
            bad = members.testzip()
    except DAMAGE as error:
        return f"is damaged or no archive ({reason(error)})"
    return None if bad is None else f"is damaged (member {bad})"
